"""Constraints: round trips, Jacobians and gradients, in the middle and as near to a boundary as numbers go."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributions as td
from scipy.integrate import dblquad, quad
from torch import Tensor

from jkosampler.targets.constraints import (
    CholeskyCorrelation,
    Constraint,
    HalfLine,
    Interval,
    Ordered,
    Real,
    Simplex,
)

# (constraint, free columns)
ALL = {
    "real": (Real(2), [0, 1]),
    "positive": (HalfLine(2, 0.0), [0, 1]),
    "negative": (HalfLine(2, 0.0, -1), [0, 1]),
    "above": (HalfLine(2, 3.0), [0, 1]),
    "below": (HalfLine(2, -1e3, -1), [0, 1]),
    "unit": (Interval(2, 0.0, 1.0), [0, 1]),
    "interval": (Interval(2, -3.0, 1e4), [0, 1]),
    "up to zero": (Interval(2, -2.0, 0.0), [0, 1]),
    "ordered": (Ordered(4), [0, 1, 2, 3]),
    "positive ordered": (Ordered(3, positive=True), [0, 1, 2]),
    "pair": (Simplex(2), [0]),
    "simplex": (Simplex(4), [0, 1, 2]),
    "correlation of two": (CholeskyCorrelation(2), [2]),
    "correlation": (CholeskyCorrelation(4), [4, 8, 9, 12, 13, 14]),
}
each = pytest.mark.parametrize(("constraint", "free"), ALL.values(), ids=ALL)


def points(dim: int, scale: float, n: int = 50, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)


@each
def test_there_and_back(constraint: Constraint, free: list[int]) -> None:
    z = points(constraint.dim, 2.0)
    x = constraint.to_user(z)
    assert x.shape == (50, constraint.n_columns)
    assert bool(constraint.inside(x).all())
    # an increasing vector loses digits of small gaps to large entries, an interval those of x - low
    torch.testing.assert_close(constraint.to_unconstrained(x), z, rtol=0.0, atol=1e-9)


@each
def test_jacobian_is_that_of_autograd(constraint: Constraint, free: list[int]) -> None:
    for scale in (0.1, 1.0, 1.5):  # farther out the derivative of tanh, 1 - tanh^2, is the less accurate of the two
        z = points(constraint.dim, scale, n=10)
        jacobians = [torch.autograd.functional.jacobian(lambda row: constraint.to_user(row[None])[0], row) for row in z]
        exact = torch.linalg.slogdet(torch.stack(jacobians)[:, free])[1]
        torch.testing.assert_close(constraint.log_jacobian(z), exact, rtol=0.0, atol=1e-10)


@each
@pytest.mark.parametrize("size", [40.0, 700.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_far_out_nothing_overflows_and_nothing_lies_on_the_boundary(
    constraint: Constraint, free: list[int], size: float, dtype: torch.dtype
) -> None:
    signs = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0], [1.0] * 6, [-1.0] * 6])
    z = (size * signs[:, : constraint.dim]).to(dtype).requires_grad_(True)
    x = constraint.to_user(z)
    log_jacobian = constraint.log_jacobian(z)
    assert bool(constraint.inside(x).all())
    assert bool(log_jacobian.isfinite().all())
    assert bool(constraint.to_unconstrained(x.detach()).isfinite().all())
    # the density's gradient as a target with a wall or a pole at the boundary has it
    distances = [x] if isinstance(constraint, Simplex) else [x.abs().clamp(min=torch.finfo(dtype).tiny)]
    if isinstance(constraint, Interval | HalfLine):
        edges = [constraint.edge] if isinstance(constraint, HalfLine) else [constraint.low, constraint.high]
        distances = [(x - edge).abs() for edge in edges]
    assert all(bool(distance.reciprocal().isfinite().all()) for distance in distances)
    value = sum(distance.log().sum() for distance in distances) + log_jacobian.sum()
    (gradient,) = torch.autograd.grad(value, z)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("size", [5.0, 30.0, 300.0, 700.0])
def test_logarithms_keep_their_digits_where_the_numbers_lose_them(size: float) -> None:
    z = torch.tensor([[-size], [size]], dtype=torch.float64)
    torch.testing.assert_close(HalfLine(1, 0.0).log_jacobian(z), z[:, 0], rtol=1e-15, atol=0.0)
    # of 1 / (1 + e^-z): log jacobian -|z| - 2 log(1 + e^-|z|)
    exact = torch.full((2,), -size - 2.0 * math.log1p(math.exp(-size)), dtype=torch.float64)
    torch.testing.assert_close(Interval(1, 0.0, 1.0).log_jacobian(z), exact, rtol=1e-15, atol=0.0)
    torch.testing.assert_close(Interval(1, 0.0, 1.0).to_user(z)[0].log(), -exact[:1] * 0.0 - size, rtol=2e-3, atol=0.0)
    if size > 5.0:
        torch.testing.assert_close((-Interval(1, -2.0, 0.0).to_user(z[1:]) / 2.0).log(), -z[1:], rtol=1e-13, atol=0.0)
    # of tanh: the derivative is sech^2
    exact = torch.full((2,), 2.0 * (math.log(2.0) - size - math.log1p(math.exp(-2.0 * size))), dtype=torch.float64)
    correlation = CholeskyCorrelation(2)
    torch.testing.assert_close(correlation.log_jacobian(z), exact, rtol=1e-15, atol=1e-14)
    torch.testing.assert_close(correlation.to_unconstrained(correlation.to_user(z)), z, rtol=1e-13, atol=0.0)
    simplex = Simplex(2)
    torch.testing.assert_close(simplex.to_unconstrained(simplex.to_user(z / 2)), z / 2, rtol=1e-13, atol=0.0)


def test_correlation_factors_are_those_of_torch() -> None:
    z = points(6, 1.0)
    transform = td.CorrCholeskyTransform()
    factor = transform(z)
    ours = CholeskyCorrelation(4)
    torch.testing.assert_close(ours.to_user(z), factor.flatten(1), rtol=0.0, atol=1e-12)
    torch.testing.assert_close(ours.log_jacobian(z), transform.log_abs_det_jacobian(z, factor), rtol=0.0, atol=1e-10)


def integral_1d(constraint: Constraint, log_density, column: int) -> float:
    """Integral of a density of one free column, over z."""

    def integrand(z: float) -> float:
        point = torch.tensor([[z]], dtype=torch.float64)
        return float((log_density(constraint.to_user(point)[:, column]) + constraint.log_jacobian(point)).exp())

    return quad(integrand, -60.0, 60.0, points=[0.0], limit=200)[0]


@pytest.mark.parametrize(
    ("constraint", "law", "column"),
    [
        (HalfLine(1, 0.0), td.Gamma(torch.tensor(0.7, dtype=torch.float64), 2.0), 0),
        (Interval(1, 0.0, 1.0), td.Beta(torch.tensor(0.6, dtype=torch.float64), 3.0), 0),
        (Interval(1, -3.0, 5.0), td.Uniform(torch.tensor(-3.0, dtype=torch.float64), 5.0), 0),
        (Simplex(2), td.Beta(torch.tensor(0.8, dtype=torch.float64), 2.0), 0),
        (CholeskyCorrelation(2), td.Uniform(torch.tensor(-1.0, dtype=torch.float64), 1.0), 2),
    ],
    ids=["gamma", "beta", "uniform", "simplex", "correlation"],
)
def test_laws_keep_their_integral_in_one_dimension(constraint: Constraint, law: td.Distribution, column: int) -> None:
    # 1 - x of x near 1 has rounding of 1e-16, where a uniform law's support is checked
    edge = 1e-15
    density = lambda x: law.log_prob(x.clamp(-1 + edge, 1 - edge) if column == 2 else x)  # noqa: E731
    assert integral_1d(constraint, density, column) == pytest.approx(1.0, abs=1e-6)


def test_a_dirichlet_law_keeps_its_integral_in_two_dimensions() -> None:
    simplex, law = Simplex(3), td.Dirichlet(torch.tensor([0.9, 2.0, 3.5], dtype=torch.float64))

    def integrand(a: float, b: float) -> float:
        z = torch.tensor([[a, b]], dtype=torch.float64)
        return float((law.log_prob(simplex.to_user(z)) + simplex.log_jacobian(z)).exp())

    assert dblquad(integrand, -25.0, 25.0, -25.0, 25.0, epsabs=1e-5)[0] == pytest.approx(1.0, abs=1e-4)


def test_ordered_columns_stay_apart_where_gaps_are_below_rounding() -> None:
    x = Ordered(3).to_user(torch.tensor([[1e6, -60.0, -700.0]], dtype=torch.float64))
    assert bool((x.diff(dim=1) > 0).all())
