"""Steps by least squares: by collocation in random ridge functions, and by ridges that are trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import WORKED, kalman_step, wasserstein_step
from reference_line import bimodal, step_on_line
from scipy.stats import norm
from small_problems import (
    draw,
    evaluator,
    exact_frame,
    gaussian_law,
    gaussian_log_target,
    ridge_potential,
    seeded,
)
from torch import Tensor

from jkosampler.energies import KL, Energy
from jkosampler.engines.collocation import solve_collocation, train_ridges
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_equation import StepEquation
from jkosampler.laws import Normal
from jkosampler.maps import GradientMap
from jkosampler.metrics import Frame
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential


def small_problem(energy: Energy, n: int, tau: float = 0.4) -> tuple[StepProblem, Particles, Tensor]:
    frame = exact_frame(WORKED, "kalman")
    problem = StepProblem(evaluator(energy, 2), frame, tau)
    points = frame.to_inner(draw(gaussian_law(WORKED), n))
    return problem, points, torch.linspace(1.0, 2.0, n, dtype=torch.float64)


def even(points: Particles) -> Tensor:
    return torch.ones(len(points), dtype=torch.float64)


@pytest.mark.parametrize("metric", ["wasserstein", "kalman"])
def test_gaussian_steps_are_exact(metric: str) -> None:
    exact = {"wasserstein": wasserstein_step, "kalman": kalman_step}[metric](WORKED, 0.3)
    frame = exact_frame(WORKED, metric)
    problem = StepProblem(evaluator(KL(gaussian_log_target(WORKED)), 2), frame, 0.3)
    points = frame.to_inner(draw(gaussian_law(WORKED), 300))
    potential = ridge_potential(width=20)
    result = solve_collocation(problem, points, torch.ones(300), potential, max_iterations=20)
    assert result is not None
    assert result.after < 1e-20
    moved, _ = frame.conjugate(GradientMap(potential))(draw(gaussian_law(WORKED), 10).x)
    expected = exact.mean + (draw(gaussian_law(WORKED), 10).x.numpy() - WORKED.m) @ exact.matrix.T
    np.testing.assert_allclose(moved.detach().numpy(), expected, atol=1e-8)


def test_fresh_points_see_the_step_solved_too() -> None:
    rippled = KL(lambda x: -0.5 * x.square().sum(-1) - 0.2 * (2.0 * x[:, 0]).cos())
    problem, points, weights = small_problem(rippled, 3000)
    potential = ridge_potential(width=150)
    result = solve_collocation(problem, points, weights, potential)
    assert result is not None
    assert result.after < 1e-5 * result.before
    fresh = problem.frame.to_inner(draw(gaussian_law(WORKED), 2000, seed=9))
    found = StepEquation(problem, fresh, torch.ones(2000), potential).start()
    assert found is not None
    assert found.misfit < 1e-3 * result.before  # some lie beyond all points of the fit


def test_points_of_infinite_energy_are_left_out() -> None:
    def log_target(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < 3.0, -0.5 * x.square().sum(-1), -torch.inf)

    problem, points, weights = small_problem(KL(log_target), 2000)
    assert 0 < int((problem.field(points.x).energy == torch.inf).sum()) < 40
    result = solve_collocation(problem, points, weights, ridge_potential(width=30))
    assert result is not None
    assert np.isfinite([result.before, result.after]).all()
    half, _, _ = small_problem(KL(lambda x: torch.where(x[:, 0] < 0.0, -x.square().sum(-1), -torch.inf)), 1)
    assert solve_collocation(half, points, weights, ridge_potential(width=30)) is None


def test_ridge_functions_are_reproducible_and_cover_the_law() -> None:
    first, again = ridge_potential(width=500, seed=3), ridge_potential(width=500, seed=3)
    assert torch.equal(first.weights[0], again.weights[0])
    slopes = first.weights[0].detach().norm(dim=1)
    assert 0.3 <= float(slopes.min()) < 0.35
    assert 1.4 < float(slopes.max()) <= 1.5
    kinks = first.biases[0].detach().abs() / slopes
    assert 3.9 < float(kinks.max()) <= 4.0
    assert float(first.output.detach().abs().max()) == 0.0


def test_the_map_does_not_fold_beyond_the_points() -> None:
    rippled = KL(lambda x: -0.5 * x.square().sum(-1) - 0.3 * (1.5 * x[:, 0]).cos() * x[:, 1].tanh())
    problem, points, weights = small_problem(rippled, 2500, tau=10.0)
    potential = ridge_potential(width=200)
    result = solve_collocation(problem, points, weights, potential)
    assert result is not None
    assert result.after < 1e-3 * result.before
    direction = torch.randn(4000, 2, generator=seeded(1), dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    for radius in (4.0, 6.0, 9.0, 14.0):
        least = torch.linalg.eigvalsh(potential.hessian(radius * direction).detach())[:, 0].min()
        assert float(least) > -0.95


def test_tails_are_defended_by_the_error_of_the_equation() -> None:
    def log_target(x: Tensor) -> Tensor:
        return -0.5 * x.square().sum(-1) - 0.3 * (2.0 * x[:, 0]).cos()

    problem, points, _ = small_problem(KL(log_target), 3000, tau=1e4)
    potential = ridge_potential(width=30)  # few, so that there is an error to see
    result = solve_collocation(problem, points, torch.ones(3000), potential)
    assert result is not None
    assert 1e-6 < result.after < 0.1 * result.before
    found = StepEquation(problem, points, torch.ones(3000), potential).start()
    assert found is not None
    radius = points.x.norm(dim=1)
    far, near = found.residual[radius > 3.5], found.residual[radius < 2.0]
    assert float(far.mean() - near.mean()) > 0.5 * (2.0 * result.after) ** 0.5


def trained(problem: StepProblem, points: Particles, potential: ResNetPotential) -> StepEquation:
    return StepEquation(problem, points, even(points), potential, hidden=True)


class TestTrainedRidges:
    @pytest.mark.parametrize("width", [10, 20])
    @pytest.mark.parametrize("metric", ["wasserstein", "kalman"])
    def test_gaussian_steps_from_nothing(self, metric: str, width: int) -> None:
        """Ridges drawn at random, no affine part to start from: 600 points, judged at others."""
        exact = {"wasserstein": wasserstein_step, "kalman": kalman_step}[metric](WORKED, 0.3)
        frame = exact_frame(WORKED, metric)
        problem = StepProblem(evaluator(KL(gaussian_log_target(WORKED)), 2), frame, 0.3)
        points = frame.to_inner(draw(gaussian_law(WORKED), 600))
        potential = ridge_potential(width, to_train=True)
        result = train_ridges(trained(problem, points, potential), max_iterations=60)
        assert result is not None
        assert result.before > 1.0
        assert result.after < 1e-6
        assert result.n_iterations <= 60
        x = draw(gaussian_law(WORKED), 2000, seed=5).x
        moved, _ = frame.conjugate(GradientMap(potential))(x)
        expected = exact.mean + (x.numpy() - WORKED.m) @ exact.matrix.T
        assert np.sqrt(np.mean((moved.detach().numpy() - expected) ** 2)) < 2e-3

    def test_the_step_on_the_line_whose_law_gets_two_modes(self) -> None:
        exact = step_on_line(bimodal, norm.logpdf, 0.1, np.linspace(-7.0, 7.0, 801))
        start, unit = Normal(0.0, 1.0), torch.eye(1, dtype=torch.float64)
        target = KL(lambda x: -((x[:, 0].square() - 1.0).square() - 0.5 * x[:, 0]))
        problem = StepProblem(evaluator(target, 1), Frame(torch.zeros(1, dtype=torch.float64), unit, 1.0), 0.1)
        points = draw(start, 1500)
        potential = ridge_potential(64, dim=1, to_train=True)
        result = train_ridges(trained(problem, points, potential), max_iterations=80)
        assert result is not None
        assert result.after < 1e-6 < 1e-3 * result.before
        kept = (np.cumsum(exact.mass) > 1e-3) & (np.cumsum(exact.mass) < 1.0 - 1e-3)
        moved, log_det = GradientMap(potential)(torch.tensor(exact.x[kept, None]))
        gap = moved.detach().numpy()[:, 0] - exact.moved[kept]
        assert np.sqrt(exact.mass[kept] @ gap**2) < 3e-3
        ratio = np.exp(norm.logpdf(exact.x[kept]) - log_det.detach().numpy() - exact.log_rho[kept])
        assert (
            np.sqrt(exact.mass[kept] @ (ratio - 1.0) ** 2) < 0.015
        )  # most of it in the tails, where of 1500 points few lie

    def test_it_never_ends_worse_and_goes_no_further_than_asked(self) -> None:
        rippled = KL(lambda x: -0.5 * x.square().sum(-1) - 0.2 * (2.0 * x[:, 0]).cos())
        problem, points, _ = small_problem(rippled, 500)
        misfits = []
        for most in (1, 3, 10):
            potential = ridge_potential(8, to_train=True)
            result = train_ridges(trained(problem, points, potential), max_iterations=most)
            assert result is not None
            assert result.n_iterations <= most
            misfits.append(result.after)
            found = StepEquation(problem, points, torch.full((500,), 1.0 / 500), potential, hidden=True).start()
            assert found is not None
            assert found.misfit == pytest.approx(result.after, rel=1e-6)  # the potential is the best one found
        assert result.before > misfits[0] >= misfits[1] > misfits[2]

    def test_it_does_not_fold_at_its_points(self) -> None:
        problem, points, _ = small_problem(KL(lambda x: -8.0 * (x.square().sum(-1) - 1.0).square()), 500, tau=0.05)
        potential = ridge_potential(12, to_train=True)
        assert train_ridges(trained(problem, points, potential), max_iterations=40) is not None
        hessian = potential.hessian(points.x).detach()
        assert float(torch.linalg.eigvalsh(hessian)[:, 0].min()) > -1.0

    def test_too_many_points_without_energy(self) -> None:
        problem, points, _ = small_problem(
            KL(lambda x: torch.where(x[:, 0] < 0.0, -x.square().sum(-1), -torch.inf)), 400
        )
        potential = ridge_potential(8, to_train=True)
        before = {name: value.clone() for name, value in potential.state_dict().items()}
        assert train_ridges(trained(problem, points, potential), max_iterations=10) is None
        torch.testing.assert_close(dict(potential.state_dict()), before, rtol=0.0, atol=0.0)
