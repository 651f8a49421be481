"""Steps by least squares: the equation, its derivative, exact steps, points that can't be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import WORKED, kalman_step, wasserstein_step
from small_problems import Square, double_well, draw, evaluator, exact_frame, gaussian_law, gaussian_log_target, seeded
from torch import Tensor

from jkosampler.energies import KL, Energy, Entropy, Potential
from jkosampler.engines.collocation import _Equation, draw_ridge_functions, n_functions, solve_collocation
from jkosampler.engines.objectives import StepProblem
from jkosampler.maps import GradientMap
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential

ENERGIES: dict[str, Energy] = {
    "kl": KL(double_well),
    "porous": 0.5 * Square() + Potential(lambda x: x[:, 0].square() + x[:, 1].cos()),
    "sum": 2.0 * Entropy() + Potential(lambda x: (x[:, 0] * x[:, 1]).sin()),
}


def ridge_potential(width: int = 8, seed: int = 0, size: float = 0.0, dim: int = 2) -> ResNetPotential:
    generator = seeded(seed)
    potential = ResNetPotential(dim, width=width, depth=1, generator=generator)
    draw_ridge_functions(potential, generator)
    with torch.no_grad():
        potential.output += size * torch.randn(width, generator=generator, dtype=torch.float64)
        potential.quadratic += size * torch.eye(dim, dtype=torch.float64)
        potential.linear += size
    return potential


def small_problem(energy: Energy, n: int, tau: float = 0.4) -> tuple[StepProblem, Particles, Tensor]:
    frame = exact_frame(WORKED, "kalman")
    problem = StepProblem(evaluator(energy, 2), frame, tau)
    points = frame.to_inner(draw(gaussian_law(WORKED), n))
    return problem, points, torch.linspace(1.0, 2.0, n, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(ENERGIES))
def test_equation_is_the_integral_of_the_residual(name: str) -> None:
    problem, points, weights = small_problem(ENERGIES[name], 40)
    potential = ridge_potential(size=0.02)
    step = GradientMap(potential)

    def variation(z: Tensor) -> Tensor:
        # the density of the points as a function of z, so that autograd sees all of F
        law = gaussian_law(WORKED)
        log_rho = law.log_prob(problem.frame.to_outer(z))
        gradient, hessian = potential.gradient_and_hessian(z)
        moved = z + gradient
        x = problem.frame.to_outer(moved)
        log_new = log_rho - torch.linalg.slogdet(torch.eye(2, dtype=z.dtype) + hessian)[1]
        outer = potential_of(ENERGIES[name], x) + problem.energy.internal(log_new)
        outer = outer + problem.energy.pressure_per_mass(log_new)
        return outer + problem.stiffness * (potential.value(z) + 0.5 * gradient.square().sum(-1))

    z = points.x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(variation(z).sum(), z)
    assert points.score is not None
    pushed = step.push(points.x, points.score)
    gradient = problem.field(pushed.x).gradient
    residual = problem.residual(points.x, pushed, points.log_rho - pushed.log_det, gradient)
    jacobian = torch.eye(2, dtype=z.dtype) + potential.hessian(points.x)
    torch.testing.assert_close(slope, (jacobian @ residual.detach().unsqueeze(-1)).squeeze(-1).detach())
    found = _Equation(problem, points, weights, potential).start()
    assert found is not None
    with torch.no_grad():
        expected = variation(points.x)
    weights = weights / weights.sum()
    torch.testing.assert_close(found.residual, expected - weights @ expected)
    assert found.misfit == pytest.approx(0.5 * float(weights @ (expected - weights @ expected).square()))


def potential_of(energy: Energy, x: Tensor) -> Tensor:
    """V by hand, for autograd."""
    total = torch.zeros_like(x[:, 0])
    for coefficient, term in energy.terms():
        if isinstance(term, KL):
            total = total - coefficient * term.log_target(x)
        if isinstance(term, Potential):
            total = total + coefficient * term.potential(x)
    return total


@pytest.mark.parametrize("name", sorted(ENERGIES))
def test_derivative_agrees_with_finite_differences(name: str) -> None:
    problem, points, weights = small_problem(ENERGIES[name], 30)
    equation = _Equation(problem, points, weights, ridge_potential(size=0.02))
    now = equation.start()
    assert now is not None
    derivative = equation._derivative(now)
    assert derivative.shape == (30, n_functions(equation.potential))
    h = 1e-5
    for k in range(derivative.shape[1]):
        shift = torch.zeros_like(now.parameters)
        shift[k] = h
        plus, minus = (equation._variation(now.parameters + sign * shift)[0] for sign in (1.0, -1.0))
        torch.testing.assert_close(derivative[:, k], (plus - minus) / (2.0 * h), rtol=1e-6, atol=1e-7)


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
    found = _Equation(problem, fresh, torch.ones(2000), potential).start()
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
    found = _Equation(problem, points, torch.ones(3000), potential).start()
    assert found is not None
    radius = points.x.norm(dim=1)
    far, near = found.residual[radius > 3.5], found.residual[radius < 2.0]
    assert float(far.mean() - near.mean()) > 0.5 * (2.0 * result.after) ** 0.5
