"""Targets: a log density with its names, prior and data, and its counted, checked evaluation."""

from __future__ import annotations

from jkosampler.targets.base import Target, as_target
from jkosampler.targets.black_box import BlackBoxEvaluator
from jkosampler.targets.bridgestan import from_bridgestan
from jkosampler.targets.evaluation import TargetEvaluator
from jkosampler.targets.external import from_numpy
from jkosampler.targets.hosts import HostTarget
from jkosampler.targets.inverse_problem import BayesianInverseProblem
from jkosampler.targets.numpyro import from_numpyro
from jkosampler.targets.pymc import from_pymc
from jkosampler.targets.space import Space
from jkosampler.targets.told import Told

__all__ = [
    "BayesianInverseProblem",
    "BlackBoxEvaluator",
    "HostTarget",
    "Space",
    "Target",
    "TargetEvaluator",
    "Told",
    "as_target",
    "from_bridgestan",
    "from_numpy",
    "from_numpyro",
    "from_pymc",
]
