"""The barrier of a step with a mobility: its value, its derivatives, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from small_problems import seeded

from jkosampler.engines.density_barrier import DensityBarrier
from jkosampler.maps import RidgeField
from jkosampler.particles import Particles
from jkosampler.potentials import draw_ridges

F64 = torch.float64


def dilation(dim: int, factor: float) -> RidgeField:
    """`u(x) = (factor - 1) x`."""
    field = RidgeField(dim, 3)
    draw_ridges(field.weight, field.bias, (0.3, 5.0), 2.2, seeded(0))
    with torch.no_grad():
        i, j = torch.triu_indices(dim, dim)
        field.symmetric[i == j] = factor - 1.0
    return field


def reflection(dim: int) -> RidgeField:
    field = dilation(dim, 1.0)
    with torch.no_grad():
        field.symmetric[0] = -2.0  # of the first coordinate
    return field


def particles(density: float, n: int, dim: int) -> Particles:
    x = torch.randn(n, dim, generator=seeded(1), dtype=F64)
    return Particles(x, torch.full((n,), math.log(density), dtype=F64), None)


def test_value_of_a_contraction() -> None:
    # density .5 contracted to .5 / .9^2 = .6173 of a limit of .65: room (1 - .6173 / .65) / .4
    barrier = DensityBarrier(particles(0.5, 5, 2), log_limit=math.log(0.65), margin=0.2, size=3.0)
    room = (1.0 - 0.5 / 0.9**2 / 0.65) / 0.4
    assert barrier.value(dilation(2, 0.9)) == pytest.approx(3.0 * (room - 1.0 - math.log(room)), rel=1e-12)
    log_rho = torch.tensor([0.1, 0.5 / 0.9**2, 0.65, 0.7], dtype=F64).log()
    values = barrier.at(log_rho).tolist()
    assert values == pytest.approx([0.0, 3.0 * (room - 1.0 - math.log(room)), math.inf, math.inf], rel=1e-9)


def test_nothing_far_from_the_limit() -> None:
    barrier = DensityBarrier(particles(0.5, 5, 2), log_limit=math.log(0.9), margin=0.1, size=3.0)
    assert barrier.value(dilation(2, 1.0)) == 0.0
    gradient, rows = barrier.derivatives(dilation(2, 1.0), gradient_only=False)
    assert not bool(gradient.any())
    assert len(rows) == 0


@pytest.mark.parametrize("factor", [0.87, -1.0], ids=["too dense", "folded"])
def test_what_it_refuses(factor: float) -> None:
    barrier = DensityBarrier(particles(0.5, 5, 1), log_limit=math.log(0.57), margin=0.1, size=3.0)
    assert barrier.value(dilation(1, factor)) is None


def test_without_a_limit_it_watches_for_folds() -> None:
    barrier = DensityBarrier(particles(0.5, 5, 2), log_limit=math.inf, margin=0.1, size=3.0)
    assert barrier.value(dilation(2, 0.01)) == 0.0
    assert len(barrier.derivatives(dilation(2, 0.01), gradient_only=True)[1]) == 0
    assert barrier.value(reflection(2)) is None


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("gradient_only", [True, False], ids=["gradient", "free"])
def test_derivatives(dim: int, gradient_only: bool) -> None:
    field = dilation(dim, 1.0)
    field.set(field.get() + 0.02 * torch.randn(len(field.get()), generator=seeded(2), dtype=F64))
    at = field.get()
    barrier = DensityBarrier(particles(0.5, 40, dim), log_limit=math.log(0.8), margin=0.4, size=0.7)
    gradient, rows = barrier.derivatives(field, gradient_only=gradient_only)
    assert rows.shape == (40, len(gradient))
    for k in range(0, len(gradient), 2):
        values = []
        for step in (1e-5, -1e-5):
            shifted = at.clone()
            shifted[k] += step
            field.set(shifted)
            values.append(barrier.value(field))
        assert float(gradient[k]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_rows_are_the_curvature_in_the_log_determinant() -> None:
    # a field that is linear in its parameters of the log determinant: the dilation of a line, near the identity
    barrier = DensityBarrier(particles(0.5, 4, 1), log_limit=math.log(0.6), margin=0.3, size=1.0)
    field = dilation(1, 1.0)
    _, rows = barrier.derivatives(field, gradient_only=True)
    index = field.n_gradient - 1  # d log det / d symmetric = 1 / factor
    h = 1e-4
    slopes = []
    for shift in (h, -h):  # b as a function of the log determinant
        slopes.append(barrier.value(dilation(1, math.exp(shift))))
    second = (slopes[0] - 2.0 * barrier.value(field) + slopes[1]) / h**2
    assert float(rows[:, index].square().sum()) == pytest.approx(second, rel=1e-5)
