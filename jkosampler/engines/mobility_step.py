"""A step with a mobility: the points that it is solved on, and those that must not come to a forbidden density.

Shocks form where a law is thinnest, and densities come to the limit of the mobility between the points of a step first:
the particles that started where the law is thinnest all take part, with a share of the others. A barrier watches ten
thousand, and those that a solution folds or brings too near the limit as well.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jkosampler.engines.density_barrier import DensityBarrier
from jkosampler.engines.least_action import least_action
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.training import TrainingResult
from jkosampler.maps import DisplacementMap, RidgeField
from jkosampler.particles import Particles
from jkosampler.potentials import draw_ridges

__all__ = ["MobilitySolution", "solve_with_mobility"]

_SLOPES, _KINKS = (0.3, 5.0), 2.2  # of ridges before they are trained, per whitened unit
_SPARSE, _OTHERS = 500, 2000  # points where the law began thinnest, and elsewhere
_POINTS_PER_RIDGE = 4  # and dimension, at least
_ITERATIONS, _ROUNDS = 20, 4
_WATCHED = 10_000  # particles at which the barrier is felt, and all that a solution brought near the limit
_BARRIER = 2.0  # its size, in margins of the range of dE/drho
_NEGLIGIBLE = 1e-5  # of that range: what a step may fail to gain on particles that it was not solved on
_MARGIN = 0.015  # of the limit of the density: within twice that a barrier rises, for points between those of the step
_NEAR = 0.25  # of the margin: particles that come nearer to the limit are watched, too


class MobilitySolution(NamedTuple):
    """The map, its training, the barrier that it kept away from, and a gain of the objective that is none."""

    step: DisplacementMap
    training: TrainingResult
    barrier: DensityBarrier
    negligible: float


def solve_with_mobility(
    problem: StepProblem,
    inner: Particles,
    guess: nn.Module | None,
    *,
    n_ridges: int,
    effort: int,
    generator: torch.Generator,
) -> MobilitySolution | None:
    """The map of a step, and how it was found; None where a particle would fold or reach the limit of the density.

    Parameters
    ----------
    problem : StepProblem
        With a mobility.
    inner : Particles
        The law in the step's coordinates, the particles that started where it is thinnest first.
    guess : nn.Module, optional
        The field of the step before.
    n_ridges, effort : int
        Ridge functions at most; effort multiplies iterations and the particles that are watched.
    generator : torch.Generator
        Source of the points, and of ridges where there is no guess.
    """
    assert problem.mobility is not None
    d, n = inner.x.shape[1], len(inner)
    width = max(1, min(n_ridges, n // (_POINTS_PER_RIDGE * (d + 2))))
    field = RidgeField(d, width, device=inner.x.device)
    if isinstance(guess, RidgeField) and (guess.dim, guess.width) == (d, width):
        field = deepcopy(guess).double()
    else:
        draw_ridges(field.weight, field.bias, _SLOPES, _KINKS, generator)
    rows, weights = _sparse_first(n, generator)
    points, weights = inner[rows], weights.to(inner.x)
    variation = problem.field(points.x, weights / weights.sum()).variation
    variation = variation + problem.energy.internal_variation(points.log_rho)
    inside = variation.isfinite()
    if not bool(inside.any()):
        return None
    points, weights = points[inside], weights[inside] / weights[inside].sum()
    span = float(variation[inside].max() - variation[inside].min())
    watched = torch.unique(torch.cat([rows, torch.randperm(n, generator=generator)[: effort * _WATCHED].cpu()]))
    log_limit = math.log(problem.mobility.limit) - math.log(problem.energy.mass)
    allowed = (log_limit + math.log1p(-_NEAR * _MARGIN)) * torch.ones_like(inner.log_rho)
    allowed = allowed.maximum(inner.log_rho)  # nearer to the limit only where a particle began there
    training = TrainingResult(0.0, 0)
    for _ in range(_ROUNDS):
        size = _BARRIER * _MARGIN * span
        barrier = DensityBarrier(inner[watched], log_limit=log_limit, margin=_MARGIN, size=size)
        iterations = effort * _ITERATIONS
        found = least_action(problem, points, weights, field, max_iterations=iterations, span=span, barrier=barrier)
        if found is None:
            return None
        training = TrainingResult(-found.decrease, training.n_iterations + found.n_iterations)
        step = DisplacementMap(deepcopy(field).to(inner.x))
        wrong = ~(inner.without_score().push(step).log_rho <= allowed)
        if not bool(wrong.any()):
            return MobilitySolution(step, training, barrier, _NEGLIGIBLE * span)
        watched = torch.unique(torch.cat([watched, wrong.nonzero().squeeze(-1).cpu()]))
    return None


def _sparse_first(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of a pool of n that is sorted by its first density, and their weights.

    All of the thinnest part, where maps fold first and few particles are, and a share of the rest.
    """
    n_sparse = min(_SPARSE, n // 4)
    order = torch.randperm(n - n_sparse, generator=generator)[:_OTHERS].cpu()
    others = torch.full((len(order),), (n - n_sparse) / (n * len(order)))
    return torch.cat([torch.arange(n_sparse), n_sparse + order]), torch.cat([torch.full((n_sparse,), 1.0 / n), others])
