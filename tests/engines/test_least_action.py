"""Steps with a mobility: the derivatives of the objective, exact steps, and the aggregation equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_pde
import torch
from small_problems import seeded
from torch import Tensor

from jkosampler import JKOSampler, laws
from jkosampler.energies import Energy, EnergyEvaluator, Entropy, Interaction, Potential
from jkosampler.engines.density_barrier import DensityBarrier
from jkosampler.engines.least_action import _Action, least_action, path_resistance
from jkosampler.engines.objectives import StepProblem
from jkosampler.maps import RidgeField
from jkosampler.metrics import Wasserstein
from jkosampler.mobility import Exclusion, FunctionMobility, Mobility
from jkosampler.particles import Particles
from jkosampler.potentials import draw_ridges

ATTRACTION = Interaction(lambda z: z.square().sum(-1))
F64 = torch.float64


def problem_and_points(
    energy: Energy, mobility: Mobility, law: laws.Law, n: int, tau: float = 0.05
) -> tuple[StepProblem, Particles, Tensor]:
    particles = Particles.draw(law, n, seeded(0))
    weights = torch.full((n,), 1.0 / n, dtype=F64)
    evaluator = EnergyEvaluator(energy, dim=law.dim, dtype=F64, device="cpu", mass=law.mass)
    frame = Wasserstein().frame(particles, weights)
    return StepProblem(evaluator, frame, tau, mobility), frame.to_inner(particles), weights


def moving_field(dim: int) -> RidgeField:
    field = RidgeField(dim, 4)
    draw_ridges(field.weight, field.bias, (0.3, 5.0), 2.2, seeded(1))
    field.set(field.get() + 0.02 * torch.randn(len(field.get()), generator=seeded(2), dtype=F64))
    return field


def test_resistance_along_a_path_is_an_integral_in_s() -> None:
    # a uniform dilation of density one half: rho_s = rho / (1 + s g)^d, to the accuracy of Simpson's rule
    growth, dim = 0.2, 2
    ends = [dim * math.log1p(s * growth) for s in (0.5, 1.0)]
    s = np.linspace(0.0, 1.0, 10001)
    exact = np.trapezoid(1.0 / (1.0 - 0.5 / (1.0 + s * growth) ** dim), s)
    found = path_resistance(Exclusion(), torch.tensor([math.log(0.5)]), *(torch.tensor([end]) for end in ends))
    assert float(found) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("gradient_only", [True, False], ids=["gradient", "free"])
@pytest.mark.parametrize(
    "energy",
    [ATTRACTION, 0.3 * Entropy() + Potential(lambda x: x.square().sum(1)) + ATTRACTION],
    ids=["attraction", "with entropy"],
)
def test_gradient_of_the_action(energy: Energy, dim: int, gradient_only: bool) -> None:
    problem, points, weights = problem_and_points(energy, Exclusion(), laws.Parabola(dim), 60)
    if not problem.energy.has_internal:
        points = points.without_score()
    barrier = DensityBarrier(points, log_limit=math.log(0.9 / problem.energy.mass), margin=0.2, size=0.1)
    action = _Action(problem, points, weights, moving_field(dim), barrier)
    now = action.at(action.field.get())
    assert now is not None
    gradient, _ = action.derivatives(now, gradient_only=gradient_only)
    for k in range(0, len(gradient), 3):
        shift = torch.zeros_like(now.parameters)
        shift[k] = 1e-5
        ahead, behind = action.at(now.parameters + shift), action.at(now.parameters - shift)
        assert ahead is not None
        assert behind is not None
        assert float(gradient[k]) == pytest.approx((ahead.value - behind.value) / 2e-5, rel=1e-4, abs=1e-6)


def test_constant_mobility_of_a_translation() -> None:
    # M = c rho in a linear potential: the step is a translation by -tau c grad V, exactly
    slope = torch.tensor([1.0, -2.0], dtype=F64)
    half = FunctionMobility(lambda rho: 0.5 * rho)
    law = laws.Gaussian([0.0, 0.0], np.eye(2))
    problem, points, weights = problem_and_points(Potential(lambda x: x @ slope), half, law, 400, tau=0.3)
    field = RidgeField(2, 4)
    draw_ridges(field.weight, field.bias, (0.3, 5.0), 2.2, seeded(1))
    found = least_action(problem, points.without_score(), weights, field, max_iterations=30, span=1.0)
    assert found is not None
    moved = problem.frame.to_outer(points.x + field(points.x)) - problem.frame.to_outer(points.x)
    torch.testing.assert_close(moved.detach(), (-0.15 * slope).expand(400, 2), rtol=1e-3, atol=1e-3)


def test_a_rotating_motion_is_found() -> None:
    # exclusion in a linear potential from an anisotropic law: (1 - rho) grad V has a curl
    slope = torch.tensor([1.0, 0.0], dtype=F64)
    law = laws.Gaussian([0.0, 0.0], np.diag([0.25, 0.25]))
    problem, points, weights = problem_and_points(Potential(lambda x: x @ slope), Exclusion(), law, 3000, tau=0.02)
    field = RidgeField(2, 24)
    draw_ridges(field.weight, field.bias, (0.3, 5.0), 2.2, seeded(1))
    found = least_action(problem, points.without_score(), weights, field, max_iterations=60, span=1.0)
    assert found is not None
    x = problem.frame.to_outer(points.x)
    moved = (problem.frame.to_outer(points.x + field(points.x)) - x).detach()
    exact = -0.02 * (1.0 - points.log_rho.exp()).unsqueeze(1) * slope
    error = (moved - exact).square().sum(1).mean().sqrt() / exact.square().sum(1).mean().sqrt()
    assert float(error) < 0.05  # the scheme's own error is of the order of tau; a gradient leaves .2
    gradient = RidgeField(2, 24)
    gradient.set(field.get()[: field.n_gradient])
    left = (problem.frame.to_outer(points.x + gradient(points.x)) - x - exact).detach()
    assert float(left.square().sum(1).mean().sqrt() / exact.square().sum(1).mean().sqrt()) > 2.0 * float(error)


@pytest.mark.parametrize("dim", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["line", "plane"])
def test_aggregation_before_the_shock(dim: int) -> None:
    start = laws.Parabola(dim)
    sampler = JKOSampler(
        energy=ATTRACTION,
        mobility="exclusion",
        initial=start,
        step_size=0.02,
        n_steps=5,
        random_state=0,
        progress=False,
    ).fit()
    x, log_density = sampler.sample_with_log_density(20_000, random_state=1)
    rho = start.mass * np.exp(log_density)
    radius = np.linalg.norm(x, axis=1)
    exact = reference_pde.aggregation_density(radius, 0.1, dim)
    assert np.mean(np.abs(rho - exact) / rho) < 0.03  # the relative L1 error, by importance
    np.testing.assert_allclose(sampler.density(x[:100]), rho[:100], rtol=1e-6)
    assert rho.max() < 1.0
    last = sampler.history_[-1]
    assert last.stage == "mobility"
    assert last.energy == pytest.approx({1: 0.16251, 2: 0.35992}[dim], rel=4 * last.energy_se / last.energy + 0.02)


def test_a_start_close_to_the_limit_can_move() -> None:
    law = laws.Gaussian([0.0], [[(0.9995 * math.sqrt(2.0 * math.pi)) ** -2]])
    sampler = JKOSampler(
        energy=ATTRACTION, mobility="exclusion", initial=law, step_size=1e-3, n_steps=2, random_state=0, progress=False
    ).fit()
    assert len(sampler.history_) == 2
    x, log_density = sampler.sample_with_log_density(20_000, random_state=1)
    assert 0.9 < np.exp(log_density).max() < 1.0
    assert np.isfinite(x).all()


def test_particles_of_infinite_energy_are_left_out() -> None:
    wall = Potential(lambda x: torch.where(x[:, 0] < -2.0, torch.inf, (x[:, 0] - 0.5).square()))
    law = laws.Gaussian([0.0], [[1.0]])
    sampler = JKOSampler(
        energy=wall, mobility="exclusion", initial=law, step_size=0.05, n_steps=2, random_state=0, progress=False
    ).fit()
    assert len(sampler.history_) == 2
    assert sampler.history_[1].energy < sampler.history_[0].energy


@pytest.mark.slow
def test_aggregation_beyond_the_shock() -> None:
    start = laws.Parabola(1)
    sampler = JKOSampler(
        energy=ATTRACTION,
        mobility="exclusion",
        initial=start,
        step_size=0.02,
        n_steps=50,
        random_state=0,
        progress=False,
    )
    _, _, energy = reference_pde.aggregation_entropy_solution(1, [0.2, 0.5, 1.0], n_cells=500)
    found = {}
    for record in sampler.steps():
        x, log_density = sampler.sample_with_log_density(20_000, random_state=1)
        assert np.exp(log_density).max() < 1.0
        found[round(record.time, 3)] = np.mean(x**2) - np.mean(x) ** 2
    for t, expected in zip((0.2, 0.5, 1.0), energy, strict=True):
        assert found[t] == pytest.approx(expected, rel=0.03)
