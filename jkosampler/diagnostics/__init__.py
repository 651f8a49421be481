"""Can the draws be trusted? Diagnostics in numpy only: importing them loads neither torch nor ArviZ."""

from __future__ import annotations

from jkosampler.diagnostics.evidence import Evidence, evidence
from jkosampler.diagnostics.from_weights import report_from_log_weights
from jkosampler.diagnostics.psis import pareto_k, psis
from jkosampler.diagnostics.record import FitRecord
from jkosampler.diagnostics.report import Report
from jkosampler.diagnostics.stationarity import (
    Stationarity,
    StepIdentities,
    estimate_stationarity,
    stationarity,
    step_identities,
)

__all__ = [
    "Evidence",
    "FitRecord",
    "Report",
    "Stationarity",
    "StepIdentities",
    "estimate_stationarity",
    "evidence",
    "pareto_k",
    "psis",
    "report_from_log_weights",
    "stationarity",
    "step_identities",
]
