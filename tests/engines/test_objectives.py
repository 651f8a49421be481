"""The objective of a step and the three estimates of its gradient, against independent computations."""

from __future__ import annotations

import numpy as np
import oracles
import pytest
import torch
from oracles import WORKED, Problem
from scipy.integrate import solve_ivp
from small_problems import (
    Square,
    double_well,
    draw,
    evaluator,
    exact_frame,
    gaussian_law,
    gaussian_log_target,
    random_map,
)
from torch import Tensor

from jkosampler.energies import KL, Energy, Entropy, Potential
from jkosampler.engines.objectives import GRADIENTS, ControlVariate, Objective, PathGradient, Plain, StepProblem
from jkosampler.errors import ArgumentError
from jkosampler.laws import Uniform
from jkosampler.maps import GradientMap, Map
from jkosampler.metrics import Frame
from jkosampler.particles import Particles

TAU = 0.3
MIXED = 2.0 * Entropy() + 0.5 * Square() + Potential(lambda x: -double_well(x))
FRAME = Frame(torch.tensor([0.2, -0.1]).double(), torch.tensor([[1.1, 0.2], [-0.3, 0.8]]).double(), 1.7)


def small_step(energy: Energy, n: int, frame: Frame = FRAME) -> tuple[StepProblem, Particles]:
    """A problem and its particles in the coordinates of the frame."""
    return StepProblem(evaluator(energy, 2), frame, TAU), frame.to_inner(draw(gaussian_law(WORKED), n))


def hand_computed(step: Map, batch: Particles, kind: str) -> np.ndarray:
    """J (n,) of MIXED from the potential's value alone: its derivatives by autograd, the ODE by scipy."""
    moved, log_det, action = (_by_autograd if kind == "gradient" else _by_integration)(step, batch.x)
    log_rho = batch.log_rho.numpy() - log_det
    outer = FRAME.centre.numpy() + moved @ FRAME.factor.numpy().T
    potential = -double_well(torch.tensor(outer)).numpy()
    return potential + 2.0 * log_rho + 0.5 * np.exp(log_rho) + 1.7 * action / (2.0 * TAU)


def _by_autograd(step: Map, z: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    v = torch.stack([_slope(step, point) for point in z])
    jacobians = torch.eye(2) + torch.stack([_hessian(step, point) for point in z])
    return (z + v).numpy(), np.linalg.slogdet(jacobians.numpy())[1], v.square().sum(-1).numpy()


def _by_integration(step: Map, z: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    def rates(s: float, y: np.ndarray) -> np.ndarray:
        point = torch.tensor(y[:2])
        v = _slope(step, point, s).numpy()
        return np.array([*v, float(_hessian(step, point, s).trace()), v @ v])

    ends = [solve_ivp(rates, (0.0, 1.0), [*point, 0.0, 0.0], rtol=1e-9, atol=1e-11).y[:, -1] for point in z.numpy()]
    return np.array(ends)[:, :2], np.array(ends)[:, 2], np.array(ends)[:, 3]


def _slope(step: Map, point: Tensor, s: float | None = None) -> Tensor:
    return torch.autograd.functional.jacobian(lambda y: step.potential.value(y.unsqueeze(0), s)[0], point)


def _hessian(step: Map, point: Tensor, s: float | None = None) -> Tensor:
    return torch.autograd.functional.hessian(lambda y: step.potential.value(y.unsqueeze(0), s)[0], point)


@pytest.mark.parametrize("kind", ["gradient", "ode"])
def test_value_is_the_hand_computed_objective(kind: str) -> None:
    problem, batch = small_step(MIXED, 6)
    step = random_map(kind, 2, size=0.1)
    exact = hand_computed(step, batch, kind).mean()
    value = float(Plain(problem)(step, batch)[1])
    assert value == pytest.approx(exact, abs=1e-9 if kind == "gradient" else 1e-4)  # RK4 in two steps
    if kind == "ode":
        step.inner_steps = 16
        assert float(Plain(problem)(step, batch)[1]) == pytest.approx(exact, abs=1e-8)
    else:
        assert float(PathGradient(problem)(step, batch)[1]) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("kind", ["gradient", "ode"])
def test_control_variate_adds_the_weak_form_of_the_score(kind: str) -> None:
    problem, batch = small_step(MIXED, 50)
    step = random_map(kind, 2)
    velocity, divergence = step.initial_velocity(batch.x)
    rho = batch.log_rho.exp()
    # P / rho = 2 + rho / 2 and P' = 2 + rho for 2 rho log rho + rho^2 / 2
    control = (2.0 + 0.5 * rho) * divergence + (2.0 + rho) * (velocity * batch.score).sum(-1)
    difference = ControlVariate(problem)(step, batch)[1] - Plain(problem)(step, batch)[1]
    assert difference.item() == pytest.approx(control.mean().item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["gradient", "ode"])
@pytest.mark.parametrize("energy", [KL(double_well), MIXED], ids=["kl", "mixed"])
def test_plain_gradient_is_that_of_the_sample_mean(kind: str, energy: Energy) -> None:
    problem, batch = small_step(energy, 40)
    step = random_map(kind, 2)
    parameters = list(step.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(1)
    gradient = torch.autograd.grad(Plain(problem)(step, batch)[0], parameters)
    for _ in range(5):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        values = []
        for h in (-1e-5, 1e-5):
            with torch.no_grad():
                for parameter, origin, d in zip(parameters, start, direction, strict=True):
                    parameter.copy_(origin + h * d)
            values.append(float(Plain(problem)(step, batch)[1]))
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
        assert slope == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-6, abs=1e-7)


def batch_gradients(objective: Objective, step: Map, particles: Particles, n_batches: int) -> Tensor:
    """The gradient on each of equal batches, (n_batches, number of weights)."""
    rows = []
    for part in torch.arange(len(particles)).chunk(n_batches):
        loss, _ = objective(step, particles[part])
        gradient = torch.autograd.grad(loss, list(step.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(rows)


@pytest.mark.parametrize("energy", [KL(double_well), MIXED], ids=["kl", "mixed"])
@pytest.mark.parametrize(
    ("kind", "estimate"), [("gradient", "control-variate"), ("gradient", "path"), ("ode", "control-variate")]
)
def test_estimates_are_unbiased(kind: str, estimate: str, energy: Energy) -> None:
    problem, particles = small_step(energy, 200_000 if kind == "gradient" else 100_000)
    step = random_map(kind, 2, width=4, depth=1, size=0.1)
    plain = batch_gradients(Plain(problem), step, particles, 40)
    difference = batch_gradients(GRADIENTS[estimate](problem), step, particles, 40) - plain
    error = difference.std(0) / 40**0.5
    assert bool((difference.mean(0).abs() <= 4.5 * error + 1e-12).all())
    # The comparison is not vacuous: the error is small against the gradient.
    assert float(error.norm()) < 0.02 * float(plain.mean(0).norm())


def exact_gaussian_step(kind: str, metric: str, size: float) -> tuple[StepProblem, Particles, Map]:
    """A step from near the target, and a map that solves it but for random weights of the given size."""
    p = WORKED._replace(m=WORKED.b, S=1.05 * np.linalg.inv(WORKED.A))
    frame = exact_frame(p, metric)
    problem = StepProblem(evaluator(KL(gaussian_log_target(p)), 2), frame, 1.0)
    step = random_map(kind, 2, size=size)
    _add_exact(step, p, metric, frame, 1.0)
    return problem, frame.to_inner(draw(gaussian_law(p), 8_000)), step


def _add_exact(step: Map, p: Problem, metric: str, frame: Frame, tau: float) -> None:
    exact = (oracles.kalman_step if metric == "kalman" else oracles.wasserstein_step)(p, tau)
    inner = torch.linalg.solve(frame.factor, torch.tensor(exact.matrix) @ frame.factor)
    with torch.no_grad():
        step.potential.quadratic[:2, :2] += inner - torch.eye(2)
        step.potential.linear[:2] += torch.linalg.solve(frame.factor, torch.tensor(exact.mean - p.m))


@pytest.mark.parametrize("metric", ["wasserstein", "kalman"])
@pytest.mark.parametrize(
    ("kind", "estimate", "size", "factor"),
    [
        ("gradient", "path", 0.0, 1e-20),
        ("gradient", "control-variate", 0.0, 1e-3),
        ("ode", "control-variate", 0.0, 0.1),
        ("gradient", "path", 0.01, 0.02),
        ("gradient", "control-variate", 0.01, 0.02),
        ("ode", "control-variate", 0.01, 0.1),
    ],
)
def test_variance_is_smaller_near_the_solution(
    metric: str, kind: str, estimate: str, size: float, factor: float
) -> None:
    problem, particles, step = exact_gaussian_step(kind, metric, size)
    plain = batch_gradients(Plain(problem), step, particles, 20).var(0).sum()
    other = batch_gradients(GRADIENTS[estimate](problem), step, particles, 20).var(0).sum()
    assert float(other) < factor * float(plain)


@pytest.mark.parametrize("metric", ["wasserstein", "kalman"])
def test_residual_vanishes_at_every_particle_at_the_exact_step(metric: str) -> None:
    frame = exact_frame(WORKED, metric)
    problem = StepProblem(evaluator(KL(gaussian_log_target(WORKED)), 2), frame, TAU)
    batch = frame.to_inner(draw(gaussian_law(WORKED), 1000))
    step = random_map("gradient", 2, size=0.0)
    _add_exact(step, WORKED, metric, frame, TAU)
    pushed = step.push(batch.x, batch.score)
    gradient = problem.field(pushed.x).gradient
    residual = problem.residual(batch.x, pushed, batch.log_rho - pushed.log_det, gradient)
    assert float(residual.abs().max()) < 1e-8
    loss, _ = PathGradient(problem)(step, batch)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, list(step.parameters()))) < 1e-8


def test_residual_is_the_slope_of_the_first_variation() -> None:
    problem, batch = small_step(MIXED, 5)
    step = random_map("gradient", 2, size=0.1)
    pushed = step.push(batch.x, batch.score)
    found = problem.residual(batch.x, pushed, batch.log_rho - pushed.log_det, problem.field(pushed.x).gradient)

    def variation(y: Tensor) -> Tensor:
        """V + U'(rho') at y, with rho' from the inverse map: U' = 2 (log rho + 1) + rho."""
        z, log_det = step.inverse(y)
        log_rho = gaussian_law(WORKED).log_prob(FRAME.to_outer(z)) + log_det
        return -double_well(FRAME.to_outer(y)) + 2.0 * log_rho + log_rho.exp()

    h = 1e-4
    slopes = [(variation(pushed.x + h * e) - variation(pushed.x - h * e)) / (2 * h) for e in torch.eye(2).double()]
    expected = 1.7 / TAU * (pushed.x - batch.x) + torch.stack(slopes, dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimate", ["path", "control-variate"])
def test_a_start_without_score_is_refused_in_words(estimate: str) -> None:
    problem, _ = small_step(KL(double_well), 10)
    batch = FRAME.to_inner(draw(Uniform([-1.0, -1.0], [1.0, 1.0]), 10))
    with pytest.raises(ArgumentError, match="gradient='plain' or a smooth initial law"):
        GRADIENTS[estimate](problem)(random_map("gradient", 2), batch)
    assert Plain(problem)(random_map("gradient", 2), batch)[1].isfinite()


def test_the_target_sees_its_own_precision_whatever_the_network_has() -> None:
    seen = []

    def log_target(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return double_well(x)

    problem, batch = small_step(KL(log_target), 10)
    value, _, gradient = problem.field(batch.x.float())
    assert (value.dtype, gradient.dtype, seen) == (torch.float32, torch.float32, [torch.float64])
    step = random_map("gradient", 2).float()
    assert isinstance(step, GradientMap)
    loss, _ = Plain(problem)(step, batch.to(torch.float32))
    assert loss.dtype == torch.float32
