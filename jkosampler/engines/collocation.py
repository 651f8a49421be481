"""A step by least squares for its integrated Euler-Lagrange equation (`step_equation`) at collocation points.

To first order the equation is linear in phi, `F_0 + (grad V . grad - P' Laplace + k) phi`: near the target a step is a
linear elliptic equation, which Gauss-Newton solves in a few sweeps for phi in the span of linear, quadratic and
random ridge functions (`solve_collocation`). Where mass must part, the ridges have to go where the map bends: they are
trained, all parameters at once, by Levenberg and Marquardt's method (`train_ridges`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jkosampler.engines.levenberg_marquardt import levenberg_marquardt
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_equation import Linearised, StepEquation
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential, draw_ridges

__all__ = ["CollocationResult", "draw_ridge_functions", "solve_collocation", "train_ridges"]

_SLOPES = (0.3, 1.5)  # of the ridge functions, per whitened unit
_KINKS = 4.0  # whitened distance from the centre within which they bend
_RIDGE = 1e-8  # of the normalised normal equations: beyond it, coefficients grow without a better fit
_PRICES = (1e-5, 1e-4, 1e-3)  # nats that a second derivative of one costs far out, raised while the map folds there
_SHORTEST = 1e-3  # fraction of a Gauss-Newton step
_WORTHWHILE = 0.8  # fraction of the misfit that a Gauss-Newton step may leave and still be made
_TRAINED_SLOPES, _TRAINED_KINKS = (0.3, 5.0), 2.5  # of ridges before they are trained
_LITTLE = 0.999  # fraction of the misfit that two iterations of their training must not leave


class CollocationResult(NamedTuple):
    """Half the variance of F over the points (nats), at the start and at the end; sweeps made."""

    before: float
    after: float
    n_iterations: int


def draw_ridge_functions(potential: ResNetPotential, generator: torch.Generator, *, to_train: bool = False) -> None:
    """Draw the hidden layer of a potential of depth 1: all directions, a range of slopes, kinks all over the law."""
    slopes, kinks = (_TRAINED_SLOPES, _TRAINED_KINKS) if to_train else (_SLOPES, _KINKS)
    draw_ridges(potential.weights[0], potential.biases[0], slopes, kinks, generator)


def solve_collocation(
    problem: StepProblem,
    points: Particles,
    weights: Tensor,
    potential: ResNetPotential,
    *,
    n_draws: int | None = None,
    max_iterations: int = 8,
) -> CollocationResult | None:
    """Solve a step for the outer layer, linear and quadratic terms of a potential of depth 1, in place.

    Starts from the potential as it is. The points carry positive weights (n,); those where F is infinite at the start
    are left out. None where these are more than a few.
    """
    equation = StepEquation(problem, points, weights, potential, n_draws=n_draws)
    start = equation.start()
    if start is None:
        return None
    total = 0
    for price in _PRICES:
        equation.price = price
        end, n_sweeps = _gauss_newton(equation, start, max_iterations)
        total += n_sweeps
        if not equation.folds_beyond(end):
            break
    defended, n_sweeps = _gauss_newton(equation, equation.defended(end), max_iterations)
    equation.set(end.parameters if equation.folds_beyond(defended) else defended.parameters)
    return CollocationResult(start.misfit, end.misfit, total + n_sweeps)


def train_ridges(equation: StepEquation, *, max_iterations: int, enough: float = 0.0) -> CollocationResult | None:
    """Solve a step's equation for all parameters of its potential, in place, hidden ones too.

    Starts from the potential as it is, and ends when the misfit is small enough, or no longer falls; None where F is
    infinite at more than a few points.
    """
    start = equation.start()
    if start is None:
        return None
    weights = equation.weights

    def model(now: Linearised) -> tuple[Tensor, Tensor]:
        derivative = equation.derivative(now)
        weighted = derivative * weights.unsqueeze(-1)
        gradient, curvature = weighted.mT @ now.residual, weighted.mT @ derivative
        stretching, rows = equation.far_stretching(now)
        return gradient + rows.mT @ stretching, curvature + rows.mT @ rows

    def done(now: Linearised, values: list[float]) -> bool:
        return now.misfit <= enough or (len(values) > 2 and values[-1] >= _LITTLE * values[-3])

    end, n_iterations = levenberg_marquardt(start, equation.at, model, done, max_iterations=max_iterations)
    equation.set(end.parameters)
    return CollocationResult(equation.misfit_of_draws(start), equation.misfit_of_draws(end), n_iterations)


def _gauss_newton(equation: StepEquation, start: Linearised, max_iterations: int) -> tuple[Linearised, int]:
    """Sweeps until they bring little or the budget of the fit is used up, and how many."""
    now = equation.priced(start)
    for sweep in range(max_iterations):
        if equation.problem.energy.budget_used() >= 1.0:
            return now, sweep
        step, promised = _gauss_newton_step(equation, now)
        better = _line_search(equation, now, step) if promised < _WORTHWHILE * now.value else None
        if better is None:
            return now, sweep
        now = better
    return now, max_iterations


def _gauss_newton_step(equation: StepEquation, now: Linearised) -> tuple[Tensor, float]:
    """The change of the coefficients that removes the objective to first order, and what it leaves (nats)."""
    root = equation.weights.sqrt().unsqueeze(-1)
    derivative = root * equation.derivative(now)
    scale = derivative.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    derivative = derivative / scale
    bends = math.sqrt(equation.price) * equation.far_bends
    derivative = torch.cat([derivative, bends / scale])
    residual = torch.cat([root.squeeze(-1) * now.residual, bends @ now.parameters])
    normal = derivative.mT @ derivative
    normal.diagonal().add_(_RIDGE)
    step = -torch.linalg.solve(normal, derivative.mT @ residual)
    return step / scale, 0.5 * float((residual + derivative @ step).square().sum())


def _line_search(equation: StepEquation, now: Linearised, step: Tensor) -> Linearised | None:
    """The first point on the way of a Gauss-Newton step, halved again and again, that pays."""
    size = 1.0
    while size > _SHORTEST:
        tried = equation.at(now.parameters + size * step)
        if tried is not None and tried.value < (1.0 - 0.1 * size) * now.value:
            return tried
        size *= 0.5
    return None
