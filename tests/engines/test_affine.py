"""The affine stage: exact on Gaussians whatever the sample, and safe where the energy is infinite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import pytest
import torch
from oracles import WORKED, Problem, random_problem
from scipy.integrate import solve_ivp
from small_problems import (
    Square,
    double_well,
    draw,
    evaluator,
    gaussian_law,
    gaussian_log_target,
    seeded,
)
from torch import Tensor

from jkosampler.energies import KL, Energy, Entropy
from jkosampler.engines.affine import AffineSolution, solve_affine
from jkosampler.engines.objectives import Plain, StepProblem
from jkosampler.errors import TargetValueError
from jkosampler.laws import Gaussian
from jkosampler.maps import GradientMap
from jkosampler.metrics import Frame, as_metric
from jkosampler.particles import Particles, calibrated_weights
from jkosampler.potentials import ResNetPotential

D = torch.float64


def problem_and_particles(
    p: Problem, metric: str, tau: float, energy: Energy, n: int = 4000
) -> tuple[StepProblem, Particles, Tensor]:
    particles = draw(gaussian_law(p), n)
    weights = calibrated_weights(particles)
    frame = as_metric(metric).frame(particles, weights)
    return StepProblem(evaluator(energy, len(p.m)), frame, tau), frame.to_inner(particles), weights


def in_outer_coordinates(solution: AffineSolution, frame: Frame, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m' and K of `T(x) = m' + K (x - m)`."""
    matrix = (frame.factor @ solution.matrix @ torch.linalg.inv(frame.factor)).numpy()
    image_of_centre = frame.to_outer(solution.shift.unsqueeze(0))[0].numpy()
    return image_of_centre + matrix @ (m - frame.centre.numpy()), matrix


@pytest.mark.parametrize(
    ("metric", "p", "tau"),
    [
        ("wasserstein", WORKED, 0.3),
        ("wasserstein", random_problem(3, 10.0, 0), 0.3),
        ("wasserstein", random_problem(3, 30.0, 1), 2.0),
        ("kalman", WORKED, 0.3),
        ("kalman", random_problem(8, 1e3, 2), 0.5),  # S A has a condition of 2e5
        ("kalman", random_problem(8, 1e3, 2)._replace(S=np.eye(8)), 0.5),
    ],
    ids=["worked", "d=3", "d=3, long step", "kalman, worked", "kalman, d=8", "kalman, d=8, S=I"],
)
def test_gaussian_steps_are_exact_with_few_draws(metric: str, p: Problem, tau: float) -> None:
    problem, inner, weights = problem_and_particles(p, metric, tau, KL(gaussian_log_target(p)))
    solution = solve_affine(problem, inner, weights, max_iterations=400)
    mean, matrix = in_outer_coordinates(solution, problem.frame, p.m)
    exact = (oracles.kalman_step if metric == "kalman" else oracles.wasserstein_step)(p, tau)
    # In units of the start's standard deviations: those are the coordinates in which the sample is accurate.
    root = oracles.root(p.S)
    np.testing.assert_allclose(np.linalg.solve(root, mean - exact.mean), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.solve(root, (matrix - exact.matrix) @ root), 0.0, atol=2e-6)
    if metric == "wasserstein":
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    else:
        assert np.abs(matrix - matrix.T).max() > 1e-3 or np.allclose(p.S, np.eye(len(p.m)))


def test_without_calibration_the_step_has_the_noise_of_its_sample() -> None:
    problem, inner, _ = problem_and_particles(WORKED, "wasserstein", 0.3, KL(gaussian_log_target(WORKED)))
    equal = torch.full((4000,), 1.0 / 4000, dtype=D)
    mean, _ = in_outer_coordinates(solve_affine(problem, inner, equal, max_iterations=400), problem.frame, WORKED.m)
    error = np.abs(mean - oracles.wasserstein_step(WORKED, 0.3).mean).max()
    assert 1e-4 < error < 5.0 / 4000**0.5


def test_gaussian_steps_are_exact_in_many_dimensions() -> None:
    """d = 100 and 2000 draws: fewer than the map has parameters."""
    p = random_problem(100, 1e4, 3)
    problem, inner, weights = problem_and_particles(p, "wasserstein", 0.5, KL(gaussian_log_target(p)), n=2000)
    assert bool((weights == weights[0]).all())
    mean, matrix = in_outer_coordinates(solve_affine(problem, inner, weights, max_iterations=20), problem.frame, p.m)
    exact = oracles.wasserstein_step(p, 0.5)
    np.testing.assert_allclose(mean, exact.mean, atol=1e-6)
    np.testing.assert_allclose(matrix, exact.matrix, atol=1e-6)


@pytest.mark.parametrize("energy", [KL(double_well), 0.5 * Square() + 2.0 * KL(double_well)], ids=["kl", "mixed"])
def test_solution_is_a_minimum_and_its_decrease_is_that_of_the_objective(energy: Energy) -> None:
    problem, inner, weights = problem_and_particles(WORKED, "kalman", 0.7, energy)
    solution = solve_affine(problem, inner, weights, max_iterations=400)

    def value(exponent: Tensor, shift: Tensor) -> float:
        matrix = torch.linalg.matrix_exp(exponent)
        moved = inner.x @ matrix + shift
        log_rho = inner.log_rho - torch.linalg.slogdet(matrix)[1]
        cost = (moved - inner.x).square().sum(-1) / (2.0 * 0.7)
        potential = problem.energy.potential(problem.frame.to_outer(moved))[0]
        return float(weights @ (potential + problem.energy.internal(log_rho) + cost))

    start = AffineSolution.identity(inner.x)
    best = value(solution.exponent, solution.shift)
    assert solution.decrease == pytest.approx(value(start.exponent, start.shift) - best, rel=1e-9)
    assert solution.decrease > 0.1
    generator = seeded(3)
    for _ in range(10):
        move = 1e-3 * torch.randn(2, 2, generator=generator, dtype=D)
        shift = 1e-3 * torch.randn(2, generator=generator, dtype=D)
        assert value(solution.exponent + move + move.mT, solution.shift + shift) > best


def test_value_agrees_with_the_objective_of_the_networks() -> None:
    problem, inner, _ = problem_and_particles(WORKED, "kalman", 0.7, KL(double_well), n=500)
    equal = torch.full((500,), 1.0 / 500, dtype=D)
    solution = solve_affine(problem, inner, equal, max_iterations=50)
    potential = ResNetPotential(2, depth=0)
    step = GradientMap(potential)
    before = Plain(problem)(step, inner)[1]
    with torch.no_grad():
        potential.quadratic.copy_(solution.matrix - torch.eye(2))
        potential.linear.copy_(solution.shift)
    assert float(before - Plain(problem)(step, inner)[1]) == pytest.approx(solution.decrease, rel=1e-9)


def huge(x: Tensor) -> Tensor:
    """Log densities down to -1e26 a few standard deviations away."""
    return -torch.exp((3.0 * x.sum(-1)).clamp(max=60.0)) - 0.5 * (x + 30.0).square().sum(-1)


def walled(value: float) -> Callable[[Tensor], Tensor]:
    """A target that pulls far to the left, and is -inf or NaN beyond a wall on the way."""

    def log_target(x: Tensor) -> Tensor:
        inside = -0.5 * (x + 50.0).square().sum(-1)
        return torch.where((x > -12.0).all(-1), inside, torch.full_like(inside, value))

    return log_target


def steep(x: Tensor) -> Tensor:
    """The same pull, finite everywhere, but with a NaN as gradient beyond x = -12."""
    return -0.5 * (x + 50.0).square().sum(-1) + (x + 12.0).clamp(min=0.0).sqrt().sum(-1)


@pytest.mark.parametrize(
    "log_target",
    [huge, walled(-torch.inf), walled(torch.nan), steep],
    ids=["huge", "minus infinity", "nan", "nan gradient"],
)
def test_the_line_search_backs_off_from_where_the_energy_is_infinite(log_target: Callable[[Tensor], Tensor]) -> None:
    start = Problem(np.eye(2), np.zeros(2), np.zeros(2), np.eye(2))
    problem, inner, weights = problem_and_particles(start, "kalman", 100.0, KL(log_target), n=500)
    solution = solve_affine(problem, inner, weights, max_iterations=200)
    moved = inner.x @ solution.matrix + solution.shift
    value, _, gradient = problem.field(moved)  # raises where the target fails
    assert bool(value.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert solution.decrease > 1.0
    assert float(solution.shift.mean()) < -1.0


def test_a_guess_that_is_worse_than_no_motion_is_not_taken() -> None:
    # Over the narrow start the target is a slope, whose Gaussian step leads far up the wall behind it.
    start = Problem(np.eye(1), np.zeros(1), np.zeros(1), 0.01 * np.eye(1))
    log_target = KL(lambda x: 10.0 * x[:, 0] - torch.exp(20.0 * (x[:, 0] - 1.0)))
    problem, inner, weights = problem_and_particles(start, "wasserstein", 1.0, log_target)
    for max_iterations in (1, 200):
        solution = solve_affine(problem, inner, weights, max_iterations=max_iterations)
        assert solution.decrease > 0.0
    mean, _ = in_outer_coordinates(solution, problem.frame, start.m)
    assert 0.5 < mean.item() < 1.0


def test_a_target_that_fails_at_the_start_says_so() -> None:
    start = Problem(np.eye(2), np.zeros(2), np.zeros(2), np.eye(2))
    problem, inner, weights = problem_and_particles(
        start, "kalman", 1.0, KL(lambda x: torch.where(x[:, 0] > 1.0, torch.nan, 0.0 * x[:, 0])), n=500
    )
    with pytest.raises(TargetValueError):
        solve_affine(problem, inner, weights, max_iterations=10)


def test_particles_where_no_mass_may_be_leave_the_way_to_the_others() -> None:
    start = Problem(np.eye(2), np.zeros(2), np.zeros(2), np.eye(2))

    def inside(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x[:, 0] > -1.0, -0.5 * (10.0 * (x - 1.0)).square().sum(-1), -torch.inf)

    problem, inner, weights = problem_and_particles(start, "kalman", 10.0, KL(inside), n=4000)
    outside = inner.x[:, 0] < -1.0
    assert outside.double().mean() > 0.1
    solution = solve_affine(problem, inner, weights, max_iterations=100)
    assert solution.decrease > 10.0
    moved = inner.x @ solution.matrix + solution.shift
    assert float(moved[:, 0].min()) > -1.0  # also those that had no slope to follow


def test_identity() -> None:
    solution = AffineSolution.identity(torch.zeros(5, 3, dtype=D))
    torch.testing.assert_close(solution.matrix, torch.eye(3, dtype=D))
    torch.testing.assert_close(solution.shift, torch.zeros(3, dtype=D))
    torch.testing.assert_close(solution.velocity, torch.zeros(3, dtype=D))
    assert solution.decrease == 0.0


@pytest.mark.parametrize("rates", [[0.7, -1.5, 0.2], [0.7, 0.0, 1e-11]], ids=["regular", "singular"])
def test_velocity_is_that_of_the_flow_which_ends_at_the_map(rates: list[float]) -> None:
    axes = torch.linalg.qr(torch.randn(3, 3, generator=seeded(0), dtype=D))[0]
    exponent = (axes * torch.tensor(rates, dtype=D)) @ axes.mT
    solution = AffineSolution(exponent, torch.tensor([0.4, -2.0, 1.0], dtype=D), 0.0)
    q, a = exponent.numpy(), solution.velocity.numpy()
    z = np.array([0.3, -0.7, 1.1])
    end = solve_ivp(lambda _, y: q @ y + a, (0.0, 1.0), z, rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(end, solution.matrix.numpy() @ z + solution.shift.numpy(), rtol=1e-8)


@pytest.mark.parametrize("kappa", [1.0, 0.3])
def test_pure_heat_widens_a_gaussian_by_the_closed_form(kappa: float) -> None:
    # the flow of kappa int rho log rho is that of diffusivity kappa
    particles = draw(Gaussian([0.0], [[1.0]]), 2000)
    weights = calibrated_weights(particles)
    frame = as_metric("wasserstein").frame(particles, weights)
    problem = StepProblem(evaluator(kappa * Entropy(), 1), frame, 0.1)
    solution = solve_affine(problem, frame.to_inner(particles), weights, max_iterations=100)
    assert float(solution.matrix) == pytest.approx(oracles.scalar_step(1.0, kappa * 0.1, 0.0), abs=1e-7)
