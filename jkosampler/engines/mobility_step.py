"""A step with a mobility: the points that it is solved on, and those that must not come to a forbidden density.

Shocks form where a law is thinnest, and densities come to the limit of the mobility between the points of a step first:
the particles that started where the law is thinnest all take part, with a share of the others, and those that a
solution brings too near the limit join them until there are no more.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from jkosampler.displacement import DisplacementMap, RidgeField
from jkosampler.engines.least_action import least_action
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.training import TrainingResult
from jkosampler.particles import Particles

__all__ = ["draw_ridges", "solve_with_mobility"]

_SLOPES, _KINKS = (0.3, 5.0), 2.2  # of ridges before they are trained, per whitened unit
_SPARSE, _OTHERS = 500, 2000  # points where the law began thinnest, and elsewhere
_POINTS_PER_RIDGE = 4  # and dimension, at least
_ITERATIONS, _ROUNDS, _NEW_POINTS = 20, 4, 300
_MARGIN = 0.02  # of the limit of the density: within twice that a barrier rises, for points between those of the step
_NEAR = 0.25  # of the margin: particles that come nearer to the limit join the points


def draw_ridges(field: RidgeField, generator: torch.Generator) -> None:
    """Draw the hidden layer: all directions, a range of slopes, kinks all over the law; no motion."""
    normal = torch.randn(field.width, field.dim, generator=generator, dtype=torch.float64)
    uniform = torch.rand(2, field.width, generator=generator, dtype=torch.float64)
    low, high = (math.log(slope) for slope in _SLOPES)
    slopes = torch.exp(low + (high - low) * uniform[0])
    with torch.no_grad():
        field.weight.copy_(slopes.unsqueeze(1) * normal / normal.norm(dim=1, keepdim=True))
        field.bias.copy_(slopes * _KINKS * (2.0 * uniform[1] - 1.0))


def solve_with_mobility(
    problem: StepProblem,
    inner: Particles,
    guess: nn.Module | None,
    *,
    n_ridges: int,
    effort: int,
    generator: torch.Generator,
) -> tuple[DisplacementMap, TrainingResult] | None:
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
        Ridge functions at most; effort multiplies iterations and margins.
    generator : torch.Generator
        Source of the points, and of ridges where there is no guess.
    """
    assert problem.mobility is not None
    d, n = inner.x.shape[1], len(inner)
    width = max(1, min(n_ridges, n // (_POINTS_PER_RIDGE * (d + 2))))
    field = RidgeField(d, width, device=inner.x.device)
    if isinstance(guess, RidgeField) and (guess.dim, guess.width) == (d, width):
        field = deepcopy(guess)
    else:
        draw_ridges(field, generator)
    rows, weights = _sparse_first(n, generator)
    margin = min(0.2, _MARGIN * effort)
    limit = math.log(problem.mobility.limit) - math.log(problem.energy.mass)
    step, training, inside = DisplacementMap(field), TrainingResult(0.0, 0), False
    for _ in range(_ROUNDS):
        found = least_action(
            problem,
            inner[rows],
            weights.to(inner.x) / weights.sum(),
            field,
            max_iterations=effort * _ITERATIONS,
            margin=margin,
        )
        if found is None:
            return None
        training = TrainingResult(found.decrease, training.n_iterations + found.n_iterations)
        log_rho = inner.without_score().push(step).log_rho
        inside = bool((log_rho < limit).all())
        near = (~(log_rho < limit + math.log1p(-_NEAR * margin))).nonzero().squeeze(-1).cpu()
        new = near[~torch.isin(near, rows)][:_NEW_POINTS]
        if not len(new):
            break
        rows, weights = torch.cat([rows, new]), torch.cat([weights, torch.full((len(new),), 1.0 / n)])
    return (step, training) if inside else None


def _sparse_first(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of a pool of n that is sorted by its first density, and their weights.

    All of the thinnest part, where maps fold first and few particles are, and a share of the rest.
    """
    n_sparse = min(_SPARSE, n // 4)
    order = torch.randperm(n - n_sparse, generator=generator)[:_OTHERS].cpu()
    others = torch.full((len(order),), (n - n_sparse) / (n * len(order)))
    return torch.cat([torch.arange(n_sparse), n_sparse + order]), torch.cat([torch.full((n_sparse,), 1.0 / n), others])
