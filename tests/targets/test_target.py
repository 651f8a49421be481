"""Targets: what they know about themselves, and what can be made one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributions as td
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.laws import Gaussian, Normal, Product, Uniform
from jkosampler.targets import Target, as_target


def log_density(x: Tensor) -> Tensor:
    return -0.5 * x.square().sum(dim=1)


def test_plain_callable_becomes_a_target() -> None:
    target = as_target(log_density, dim=3)
    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    assert torch.equal(target(x), torch.tensor([-2.5, -25.0], dtype=torch.float64))
    assert (target.dim, target.names, target.prior, target.differentiable) == (3, None, None, True)
    assert target.log_likelihood(x) is None
    assert target.observed_data == target.constant_data == {}


def test_target_carries_what_it_was_given() -> None:
    prior = Gaussian([0.0, 0.0], 1.0)
    target = Target(
        log_density,
        names=["a", "b"],
        prior=prior,
        log_likelihood=lambda x: x[:, :1],
        observed_data={"y": [1.0, 2.0]},
        constant_data={"sigma": 0.5},
        differentiable=False,
    )
    assert as_target(target) is target
    assert as_target(target, dim=2) is target
    assert target.dim == 2
    assert target.names == ["a", "b"]
    assert target.prior is prior
    assert not target.differentiable
    assert target.log_likelihood(torch.ones(3, 2)).shape == (3, 1)
    assert isinstance(target.observed_data["y"], np.ndarray)
    assert target.observed_data["y"].tolist() == [1.0, 2.0]
    assert target.constant_data["sigma"].shape == ()


@pytest.mark.parametrize(
    "law",
    [
        Product([Normal(0.0, 1.0), Uniform(90.0, 110.0)]),
        td.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)),
        td.Laplace(torch.zeros(2, dtype=torch.float64), 1.0),
    ],
    ids=["law", "torch event", "torch batch"],
)
def test_law_becomes_a_target(law: object) -> None:
    target = as_target(law)
    x = torch.tensor([[0.0, 100.0], [0.5, 1.0]], dtype=torch.float64)
    expected = law.log_prob(x)
    assert target.dim == 2
    torch.testing.assert_close(target(x), expected.sum(-1) if expected.ndim == 2 else expected)


def test_dimension_of_a_callable_may_be_its_own() -> None:
    class WithDim:
        dim = 4

        def __call__(self, x: Tensor) -> Tensor:
            return log_density(x)

    assert as_target(WithDim()).dim == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: as_target(log_density), "give dim="),
        (lambda: as_target(3.0, dim=1), "log_target must be a callable"),
        (lambda: as_target(Gaussian([0.0, 0.0], 1.0), dim=3), "dim says 3, log_target says 2"),
        (lambda: as_target(td.Poisson(1.0)), "no density"),
        (lambda: Target(None, 2), "log_density must be a callable"),
        (lambda: Target(log_density, 0), "positive whole number"),
        (lambda: Target(log_density, 2.5), "positive whole number"),
        (lambda: Target(log_density, 2, names=["a"]), "dim says 2, names says 1"),
        (lambda: Target(log_density, 2, prior=Normal(0.0, 1.0)), "dim says 2, prior says 1"),
        (lambda: Target(log_density, 2, prior="normal"), "prior must be a law"),
        (lambda: Target(log_density, 2, names="ab"), "list of strings"),
        (lambda: Target(log_density, 2, names=["a", "a"]), "differ"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
