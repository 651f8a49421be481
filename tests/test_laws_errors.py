"""Bad arguments of laws: each error names the argument."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.laws import CallableLaw, Gaussian, Mixture, Normal, Product, TorchLaw, Uniform, as_law


def no_draws(n: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(n, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian([0.0, 0.0]), "exactly one of covariance"),
        (lambda: Gaussian([0.0, 0.0], 1.0, scale=1.0), "exactly one of covariance"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: Gaussian([0.0, 0.0], np.eye(3)), r"mean must have shape \(d,\)"),
        (lambda: Gaussian([0.0, math.nan], 1.0), "mean must be finite"),
        (lambda: Gaussian("zero", 1.0), "mean must be a number"),
        (lambda: Normal([0.0, 1.0], 1.0), "two numbers"),
        (lambda: Normal(0.0, -1.0), "scale > 0"),
        (lambda: Uniform(1.0, 1.0), "low must be below high"),
        (lambda: Uniform([0.0, 0.0], [1.0, 1.0, 1.0]), "low and high"),
        (lambda: Mixture([1.0], []), "one number for each"),
        (lambda: Mixture([1.0, 0.0], [Normal(0.0, 1.0)] * 2), "positive"),
        (lambda: Mixture([1.0, 1.0], [Normal(0.0, 1.0), Gaussian([0.0, 0.0], 1.0)]), "one dimension"),
        (lambda: Product([]), "at least one"),
        (lambda: Product([stats.norm()]), r"factors\[0\] must be a law"),
        (lambda: Normal(0.0, 1.0).with_mass(-1.0), "mass must be one positive number"),
        (lambda: Normal(0.0, 1.0).with_mass(math.inf), "mass must be finite"),
        (lambda: Normal(0.0, 1.0).with_mass([1.0, 2.0]), "mass must be one positive number"),
        (lambda: as_law(None), "law must be a law"),
        (lambda: as_law(td.Normal(0.0, 1.0), dim=2, name="initial"), r"initial must be over R\^2"),
        (lambda: TorchLaw(td.Poisson(1.0)), "no density"),
        (lambda: TorchLaw(td.Dirichlet(torch.ones(3))), "no density"),
        (lambda: TorchLaw(td.Normal(torch.zeros(2, 2), 1.0)), r"batch shape \(d,\)"),
        (lambda: TorchLaw(td.Cauchy(0.0, 1.0)).mean, "no finite mean"),
        (
            lambda: CallableLaw(lambda n, g: torch.zeros(n), lambda x: x.sum(1), 2).sample(3),
            "result of sampler",
        ),
        (
            lambda: CallableLaw(no_draws, lambda x: x, 2).log_prob(torch.zeros(3, 2)),
            "result of log_prob",
        ),
        (
            lambda: CallableLaw(no_draws, lambda x: x.sum(1).detach(), 2).score(torch.zeros(3, 2)),
            "differentiable",
        ),
        (lambda: CallableLaw(no_draws, lambda x: x, 2, mean=[0.0, 0.0]), "both mean and covariance"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
