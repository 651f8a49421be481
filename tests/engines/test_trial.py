"""What held-out particles say of a step, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from small_problems import evaluator, seeded

from jkosampler.energies import KL, Entropy, Potential
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.trial import _optimality_gap, stationarity_of
from jkosampler.laws import Gaussian
from jkosampler.metrics import Frame
from jkosampler.particles import Particles

F64 = torch.float64
INSIDE = torch.ones(200_000, dtype=torch.bool)


@pytest.mark.parametrize("scale", [1.05, 0.95])
def test_discrepancy_and_dissipation_of_gaussians(scale: float) -> None:
    """From N(0, s^2 I) to N(0, I): (s^2 - 1)^2 d / 4, which is KL to second order, and (s^2 - 1)^2 d."""
    d, excess = 3, scale**2 - 1.0
    particles = Particles.draw(Gaussian([0.0] * d, scale**2 * torch.eye(d)), len(INSIDE), seeded(0))
    energy = evaluator(KL(lambda x: -0.5 * x.square().sum(1)), d)
    discrepancy, dissipation = stationarity_of(energy, particles, energy.field(particles.x), INSIDE)
    assert discrepancy == pytest.approx(0.25 * d * excess**2, rel=0.03)
    assert discrepancy == pytest.approx(0.5 * d * (excess - math.log1p(excess)), rel=0.15)
    assert dissipation == pytest.approx(d * excess**2, rel=0.03)


@pytest.mark.parametrize("curvature", [0.0, 0.7])
def test_optimality_gap_bounds_what_is_left_to_gain(curvature: float) -> None:
    """V = g.z + a |z|^2 / 2 and no motion: the exact step gains E|grad V|^2 / (2 (k + a)), the gap is that of a = 0."""
    slope, cost, tau = torch.tensor([1.0, -2.0], dtype=F64), 1.7, 0.3
    x = torch.randn(500, 2, generator=seeded(1), dtype=F64)
    energy = evaluator(Potential(lambda x: x @ slope + 0.5 * curvature * x.square().sum(1)), 2)
    problem = StepProblem(energy, Frame(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), cost), tau)
    here = Particles(x, torch.zeros(500, dtype=F64), torch.zeros_like(x))
    gradient = energy.field(x).gradient
    gap = _optimality_gap(energy, problem, torch.zeros_like(x), here, gradient)
    k = cost / tau
    moved = x - gradient / (k + curvature)
    change = energy.field(x).energy - energy.field(moved).energy - 0.5 * k * (moved - x).square().sum(1)
    gain = float(change.mean())
    assert gain == pytest.approx(float(gradient.square().sum(1).mean()) / (2.0 * (k + curvature)), rel=1e-12)
    assert gap == pytest.approx(gain * (1.0 + curvature / k), rel=1e-12)


def test_the_exact_step_of_an_entropy_has_no_gap() -> None:
    """Heat from N(0, I): the map is a dilation by (1 + sqrt(1 + 4 tau)) / 2."""
    tau, d = 0.3, 2
    growth = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * tau))
    before = Particles.draw(Gaussian([0.0] * d, torch.eye(d)), 300, seeded(2))
    after = Particles(growth * before.x, before.log_rho - d * math.log(growth), before.score / growth)
    problem = StepProblem(evaluator(Entropy(), d), Frame(torch.zeros(d).double(), torch.eye(d).double(), 1.0), tau)
    gap = _optimality_gap(problem.energy, problem, after.x - before.x, after, torch.zeros_like(after.x))
    assert gap < 1e-25
