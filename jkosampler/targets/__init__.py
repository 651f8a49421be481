"""Targets: a log density with its names, prior and data, and its counted, checked evaluation."""

from __future__ import annotations

from jkosampler.targets.base import Target, as_target
from jkosampler.targets.black_box import BlackBoxEvaluator
from jkosampler.targets.evaluation import TargetEvaluator
from jkosampler.targets.external import from_numpy
from jkosampler.targets.inverse_problem import BayesianInverseProblem
from jkosampler.targets.space import Space

__all__ = [
    "BayesianInverseProblem",
    "BlackBoxEvaluator",
    "Space",
    "Target",
    "TargetEvaluator",
    "as_target",
    "from_numpy",
]
