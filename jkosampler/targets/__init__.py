"""Targets: a log density with its names, prior and data, and its counted, checked evaluation."""

from __future__ import annotations

from jkosampler.targets.base import Target, as_target
from jkosampler.targets.evaluation import TargetEvaluator
from jkosampler.targets.external import from_numpy
from jkosampler.targets.inverse_problem import BayesianInverseProblem

__all__ = ["BayesianInverseProblem", "Target", "TargetEvaluator", "as_target", "from_numpy"]
