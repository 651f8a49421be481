"""The emulator of a potential against the potential, and fits that are made in it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_targets import TARGETS
from torch import Tensor

from jkosampler import JKOSampler, engines
from jkosampler.engines.emulator import Emulator
from jkosampler.errors import ArgumentError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def evaluated(name: str, n: int, spread: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
    target = TARGETS[name]()
    x = spread * torch.from_numpy(np.random.default_rng(0).standard_normal((n, target.dim))).requires_grad_(True)
    value = -target.log_density(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return x.detach(), value.detach(), gradient


@pytest.mark.parametrize("d", [1, 2, 7])
def test_a_quadratic_potential_is_emulated_exactly_also_far_away(d: int) -> None:
    rng = np.random.default_rng(d)
    root = torch.from_numpy(rng.standard_normal((d, d)))
    matrix, x = root @ root.mT, torch.from_numpy(rng.standard_normal((200, d)))
    value, gradient = 3.0 + 0.5 * ((x @ matrix) * x).sum(1), x @ matrix
    emulator = Emulator(x, value, gradient, seeded())
    far = 10.0 * x
    log_density, slope = emulator.value_and_grad(far)
    scale = float(value.max()) * 100.0
    np.testing.assert_allclose(-log_density, 3.0 + 0.5 * ((far @ matrix) * far).sum(1), rtol=1e-7, atol=1e-7 * scale)
    np.testing.assert_allclose(-slope, far @ matrix, rtol=1e-7, atol=1e-6 * float(gradient.abs().max()))


def test_values_at_other_points_and_gradients_that_are_the_values_own() -> None:
    x, value, gradient = evaluated("banana", 2000)
    emulator = Emulator(x, value, gradient, seeded())
    other, exact, _ = evaluated("banana", 2500)
    low = exact < 20.0
    error = -emulator.value_and_grad(other)[0] - exact
    assert float(error[low].square().mean().sqrt()) < 0.05
    point, h = other[:1], 1e-5
    for axis in range(2):
        step = torch.zeros(1, 2, dtype=torch.float64)
        step[0, axis] = h
        ahead, behind = (emulator.value_and_grad(point + sign * step)[0] for sign in (1.0, -1.0))
        assert float((ahead - behind) / (2.0 * h)) == pytest.approx(
            float(emulator.value_and_grad(point)[1][0, axis]), rel=1e-6
        )


def test_few_points_get_few_functions() -> None:
    emulator = Emulator(*evaluated("banana", 30), seeded())
    assert emulator.potential.width == 30 * 3 // 4 - 5


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_fit_that_evaluates_each_particle_once_a_step() -> None:
    """A smooth target in the plane, against quadrature; affine steps take what they need."""

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (x - 1.0).square().sum(1) - torch.log(torch.cosh(x[:, 0] + x[:, 1]))

    grid = torch.linspace(-9.0, 9.0, 721, dtype=torch.float64)
    cell = float(grid[1] - grid[0]) ** 2
    log_z = float(torch.logsumexp(log_density(torch.cartesian_prod(grid, grid)), 0)) + math.log(cell)
    engine = engines.Lagrangian(potential="explicit")
    fit = JKOSampler(log_density, dim=2, engine=engine, random_state=0, progress=False).fit()
    assert fit.n_target_evaluations_ < 40_000
    for record in fit.history_:
        if record.stage == "collocation" and not record.rejected:  # pool, a quarter of it far out, held-out ones
            assert record.target_evaluations == 1700 + 425 + 1700
    assert fit._fitted.state.emulated is None  # of the step alone: the next one has its own
    x, log_q = fit.sample_with_log_density(20_000, random_state=1)
    log_weights = log_density(torch.from_numpy(x)).numpy() - log_q
    error = log_weights.std() / len(x) ** 0.5
    assert log_weights.mean() == pytest.approx(log_z, abs=1e-4 + 5.0 * error)
    assert log_weights.std() < 0.03


def test_explicit_steps_are_adaptive_ones() -> None:
    engine = engines.Lagrangian(potential="explicit")
    with pytest.raises(ArgumentError, match="potential='explicit' is for adaptive steps: leave step_size out"):
        JKOSampler(lambda x: -x.square().sum(1), dim=2, engine=engine, step_size=0.1, n_steps=1, progress=False).fit()
    with pytest.raises(ArgumentError, match="at most 20 dimensions, got 21"):
        JKOSampler(lambda x: -x.square().sum(1), dim=21, engine=engine, progress=False).fit()
    with pytest.raises(ArgumentError, match="potential must be one of"):
        JKOSampler(lambda x: -x.square().sum(1), dim=2, engine=engines.Lagrangian(potential="both")).fit()
