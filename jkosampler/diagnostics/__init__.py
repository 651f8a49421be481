"""Can the draws be trusted? Diagnostics in numpy only: importing them loads neither torch nor ArviZ."""

from __future__ import annotations

from jkosampler.diagnostics.evidence import Evidence, evidence
from jkosampler.diagnostics.psis import pareto_k, psis
from jkosampler.diagnostics.report import Report, report_from_log_weights
from jkosampler.diagnostics.stationarity import StepIdentities, stationarity, step_identities

__all__ = [
    "Evidence",
    "Report",
    "StepIdentities",
    "evidence",
    "pareto_k",
    "psis",
    "report_from_log_weights",
    "stationarity",
    "step_identities",
]
