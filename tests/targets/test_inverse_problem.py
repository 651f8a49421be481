"""Inverse problems: density against scipy, evidence against a closed form, faults against their errors."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats
from torch import Tensor

from jkosampler.errors import ArgumentError, TargetShapeError, TargetValueError
from jkosampler.laws import Gaussian, Normal, Product, Uniform
from jkosampler.targets import BayesianInverseProblem, TargetEvaluator

F64 = torch.float64
MATRIX = torch.tensor([[1.0, 0.5], [0.0, 2.0], [1.0, -1.0]], dtype=F64)
Y = [0.3, -0.2, 1.0]
NOISE_COV = np.array([[0.5, 0.1, 0.0], [0.1, 0.3, 0.05], [0.0, 0.05, 0.2]])
NOISE_STD = np.array([0.7, 0.5, 0.4])


def linear(x: Tensor) -> Tensor:
    return x @ MATRIX.to(x.dtype).T


@pytest.mark.parametrize(
    ("noise", "covariance", "columns"),
    [
        ({"noise_cov": NOISE_COV}, NOISE_COV, 1),
        ({"noise_cov": np.diag(NOISE_STD**2)}, np.diag(NOISE_STD**2), 3),
        ({"noise_std": NOISE_STD}, np.diag(NOISE_STD**2), 3),
        ({"noise_std": 0.5}, 0.25 * np.eye(3), 3),
    ],
    ids=["correlated", "diagonal matrix", "each its own", "one for all"],
)
def test_density_and_its_parts(noise: dict[str, object], covariance: np.ndarray, columns: int) -> None:
    problem = BayesianInverseProblem(linear, Y, **noise, prior_std=[1.0, 2.0], names=["a", "b"])
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    likelihood = stats.multivariate_normal(Y, covariance).logpdf(linear(x).numpy())
    prior = stats.multivariate_normal([0, 0], np.diag([1.0, 4.0])).logpdf(x.numpy())
    np.testing.assert_allclose(problem(x), likelihood + prior, rtol=1e-12)
    parts = problem.log_likelihood(x)
    assert parts is not None
    assert parts.shape == (6, columns)
    np.testing.assert_allclose(parts.sum(1), likelihood, rtol=1e-12)
    if columns == 3:
        single = stats.norm(Y[1], math.sqrt(covariance[1, 1])).logpdf(linear(x)[:, 1].numpy())
        np.testing.assert_allclose(parts[:, 1], single, rtol=1e-12)
    np.testing.assert_array_equal(problem.observed_data["y"], Y)
    np.testing.assert_allclose(problem.constant_data["noise_cov"], covariance)
    assert (problem.dim, problem.names) == (2, ["a", "b"])


def test_evidence_is_that_of_the_observations() -> None:
    """Linear Gaussian problem: y ~ N(0, G S G' + Gamma); the integral of the density over a grid is p(y)."""
    problem = BayesianInverseProblem(linear, Y, noise_cov=NOISE_COV, prior_std=[1.0, 2.0])
    grid = torch.linspace(-8.0, 8.0, 641, dtype=F64)
    x = torch.cartesian_prod(grid, grid)
    log_evidence = torch.logsumexp(problem(x), 0) + 2 * torch.log(grid[1] - grid[0])
    covariance = MATRIX.numpy() @ np.diag([1.0, 4.0]) @ MATRIX.numpy().T + NOISE_COV
    assert float(log_evidence) == pytest.approx(stats.multivariate_normal(np.zeros(3), covariance).logpdf(Y), abs=1e-9)


@pytest.mark.parametrize(
    "prior",
    [
        Product([Normal(0.0, 1.0), Uniform(-2.0, 2.0)]),
        td.Independent(td.Normal(torch.zeros(2, dtype=F64), 1.0), 1),
        td.Normal(torch.zeros(2, dtype=F64), 1.0),
    ],
    ids=["law", "torch event", "torch batch"],
)
def test_prior_may_be_any_law(prior: object) -> None:
    problem = BayesianInverseProblem(linear, Y, noise_std=0.5, prior=prior)
    x = torch.tensor([[0.5, 1.0], [0.1, -0.3]], dtype=F64)
    prior_value = prior.log_prob(x)
    expected = prior_value.sum(-1) if prior_value.ndim == 2 else prior_value
    torch.testing.assert_close(problem(x) - problem.log_likelihood(x).sum(1), expected)
    assert problem.dim == 2


def test_gradient_is_the_closed_one() -> None:
    problem = BayesianInverseProblem(linear, Y, noise_cov=NOISE_COV, prior_std=2.0, names=["a", "b"])
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    _, gradient = TargetEvaluator(problem).value_and_grad(x)
    residual = np.array(Y) - linear(x).numpy()
    expected = residual @ np.linalg.inv(NOISE_COV) @ MATRIX.numpy() - x.numpy() / 4.0
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    single = TargetEvaluator(problem, dtype=torch.float32).value_and_grad(x)[1]
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-4)


def test_forward_model_may_fail_outside_the_prior() -> None:
    def logarithm(x: Tensor) -> Tensor:
        return torch.log(x)

    x = torch.tensor([[-1.0], [0.5]], dtype=F64)
    positive = BayesianInverseProblem(logarithm, [0.0], noise_std=1.0, prior=Uniform(0.0, 2.0))
    value, gradient = TargetEvaluator(positive).value_and_grad(x)
    assert value[0] == -math.inf
    assert gradient[0] == 0.0
    assert value.isfinite().tolist() == [False, True]
    anywhere = BayesianInverseProblem(logarithm, [0.0], noise_std=1.0, prior=Normal(0.0, 1.0))
    with pytest.raises(TargetValueError, match=r"x\[0\] = \(-1\)"):
        TargetEvaluator(anywhere).log_density(x)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    "noise",
    [{"noise_std": 0.1}, {"noise_cov": [[0.02, 0.01], [0.01, 0.02]]}],
    ids=["independent", "correlated"],
)
def test_overflow_is_a_likelihood_of_zero(noise: dict[str, object], dtype: torch.dtype) -> None:
    def steep(x: Tensor) -> Tensor:
        return torch.exp(-x) * torch.tensor([1.0, -2.0], dtype=x.dtype)

    problem = BayesianInverseProblem(steep, [1.0, 1.0], **noise, prior=Normal(0.0, 10.0))
    x = -torch.linspace(0.0, 1000.0, 20001, dtype=dtype)[:, None]
    value, gradient = TargetEvaluator(problem, dtype=dtype).value_and_grad(x)
    assert value[-1] == -math.inf
    assert value[0].isfinite()
    assert gradient.isfinite().all()
    assert (value.diff()[: int(value.isfinite().sum()) - 1] < 0).all()


def test_forward_output_is_checked() -> None:
    problem = BayesianInverseProblem(lambda x: x, Y, noise_std=1.0, prior_std=[1.0, 1.0])
    with pytest.raises(TargetShapeError, match=r"shape \(4, 3\).*got \(4, 2\)"):
        problem(torch.zeros(4, 2, dtype=F64))
    problem = BayesianInverseProblem(lambda x: x.numpy(), Y, noise_std=1.0, prior_std=[1.0, 1.0])
    with pytest.raises(TargetShapeError, match="got ndarray"):
        problem(torch.zeros(4, 2, dtype=F64))


class BlackBox:
    dim = 2
    output_dim = 3
    names = ("a", "b")
    differentiable = False
    constant_data = {"where": np.arange(3.0)}  # noqa: RUF012

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x)


def test_attributes_of_the_forward_model_are_used() -> None:
    problem = BayesianInverseProblem(BlackBox(), Y, noise_std=1.0, prior_std=1.0)
    assert (problem.dim, problem.names, problem.differentiable) == (2, ["a", "b"], False)
    assert set(problem.constant_data) == {"noise_cov", "where"}
    assert isinstance(problem.prior, Gaussian)


def test_deep_copy_is_the_same_problem() -> None:
    """As `sklearn.base.clone` makes it."""
    problem = BayesianInverseProblem(linear, Y, noise_std=0.5, prior_std=[1.0, 2.0])
    x = torch.ones(2, 2, dtype=F64)
    assert torch.equal(copy.deepcopy(problem)(x), problem(x))


GOOD: dict[str, object] = {"forward_model": linear, "y": Y, "noise_std": 1.0, "prior_std": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward_model": 3}, "forward_model must be a callable"),
        ({"forward_model": BlackBox(), "y": [1.0]}, "y has 1 observations.*returns 3"),
        ({"y": [Y, Y]}, r"y must have shape \(k,\)"),
        ({"y": [1.0, math.nan, 0.0]}, "y must be finite"),
        ({"y": "data"}, "y must be a number"),
        ({"noise_cov": np.eye(3)}, "exactly one of noise_cov"),
        ({"noise_std": None}, "exactly one of noise_cov"),
        ({"noise_std": 0.0}, "noise_std must be positive"),
        ({"noise_std": [1.0, 1.0]}, "noise_std must be positive, one number or one for each of 3"),
        ({"noise_std": None, "noise_cov": np.eye(2)}, r"noise_cov must have shape \(3, 3\)"),
        ({"noise_std": None, "noise_cov": -np.eye(3)}, "noise_cov must be positive definite"),
        ({"noise_std": None, "noise_cov": np.triu(np.ones((3, 3)))}, "noise_cov must be symmetric"),
        ({"prior": Gaussian([0.0, 0.0], 1.0)}, "exactly one of prior"),
        ({"prior_std": None}, "exactly one of prior"),
        ({"prior_std": 1.0}, "prior_std is one number"),
        ({"prior_std": [1.0, -1.0]}, "prior_std must be positive"),
        ({"prior_std": None, "prior": "normal"}, "prior must be a law"),
        ({"names": ["a", "b", "c"]}, "names says 3, prior says 2"),
        ({"forward_model": BlackBox(), "prior_std": [1.0] * 3}, "forward_model says 2"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        BayesianInverseProblem(**{**GOOD, **change})
