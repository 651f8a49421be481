"""The optimisation loop of a step: Adam on mini-batches, or L-BFGS on a fixed batch.

Algorithm 2 of arXiv 2311.06700: particles may be drawn anew every C iterations, and the loop may end by the
relative change of the loss; here that change is taken on the same particles, where it isn't noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from jkosampler.engines.objectives import Objective, PathGradient
from jkosampler.errors import ArgumentError
from jkosampler.maps import Map
from jkosampler.particles import Particles

__all__ = ["OPTIMIZERS", "TrainingResult", "TrainingSettings", "train"]

OPTIMIZERS = ("adam", "lbfgs")

_WARM_UP, _FIRST = 0.1, 0.04  # share of the training in which the learning rate rises, and what it rises from
_LARGEST_GRADIENT = 10.0  # of an iteration; longer ones, from a few points far out, are cut


@dataclass(frozen=True)
class TrainingSettings:
    """How a map is trained; see `engines.Lagrangian` for the meaning of each."""

    n_iterations: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adam"
    tolerance: float | None = None
    resample_every: int | None = None

    @property
    def block(self) -> int:
        """Iterations between two looks at the loss."""
        if self.resample_every is not None:
            return self.resample_every
        return self.n_iterations if self.tolerance is None else 50


class TrainingResult(NamedTuple):
    """The objective at the end, up to a constant (NaN when the training broke down), and the iterations made."""

    loss: float
    n_iterations: int


def train(
    step: Map,
    objective: Objective,
    pool: Particles,
    settings: TrainingSettings,
    generator: torch.Generator,
    resample: Callable[[], Particles] | None = None,
) -> TrainingResult:
    """Train a map in place on a pool of particles; `resample` draws a new pool."""
    if settings.optimizer == "adam":
        return _train_adam(step, objective, pool, settings, generator, resample)
    if settings.optimizer == "lbfgs":
        return _train_lbfgs(step, objective, pool, settings)
    raise ArgumentError(f"optimizer must be one of {OPTIMIZERS}, got {settings.optimizer!r}.")


def _train_adam(
    step: Map,
    objective: Objective,
    pool: Particles,
    settings: TrainingSettings,
    generator: torch.Generator,
    resample: Callable[[], Particles] | None,
) -> TrainingResult:
    budget_used = objective.problem.energy.budget_used
    before_all, losses = budget_used(), []  # type: float, list[float]

    def progress() -> float:
        """Of the iterations, or of what is left of the budget: the learning rate has decayed when either ends."""
        spent = (budget_used() - before_all) / max(1.0 - before_all, 1e-9)
        return max(len(losses) / settings.n_iterations, spent)

    optimizer = torch.optim.Adam(step.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: _share_of_learning_rate(progress()))
    while progress() < 1.0:
        if losses and resample is not None and settings.resample_every is not None:
            pool = resample()
        block = min(settings.block, settings.n_iterations - len(losses))
        before = _value(step, objective, pool, settings)
        for batch in islice(_batches(pool, settings.batch_size, generator), block):
            optimizer.zero_grad()
            loss, value = objective(step, batch)
            if not bool(loss.isfinite()):
                return TrainingResult(torch.nan, len(losses))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(step.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            losses.append(float(value))
            schedule.step()
            if progress() >= 1.0:
                break
        after = _value(step, objective, pool, settings)
        if settings.tolerance is not None and abs(after - before) <= settings.tolerance * abs(before):
            break
    tail = losses[-max(1, len(losses) // 10) :]
    return TrainingResult(sum(tail) / len(tail) if tail else torch.nan, len(losses))


def _share_of_learning_rate(progress: float) -> float:
    """A linear rise over the first tenth, and half a wave of the cosine to nothing."""
    if progress < _WARM_UP:
        return _FIRST + (1.0 - _FIRST) * progress / _WARM_UP
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - _WARM_UP) / (1.0 - _WARM_UP))))


def _train_lbfgs(step: Map, objective: Objective, pool: Particles, settings: TrainingSettings) -> TrainingResult:
    if isinstance(objective, PathGradient):
        raise ArgumentError(
            "optimizer='lbfgs' needs the gradient of a fixed sample mean: take gradient='control-variate' with it."
        )
    optimizer = torch.optim.LBFGS(
        step.parameters(), max_iter=settings.n_iterations, history_size=20, line_search_fn="strong_wolfe"
    )
    batch = pool[: settings.batch_size]
    first = objective(step, batch)[0].detach()
    if not bool(first.isfinite()):
        return TrainingResult(torch.nan, 0)
    count = 0

    def closure() -> Tensor:
        nonlocal count
        count += 1
        optimizer.zero_grad()
        loss, _ = objective(step, batch)
        if not bool(loss.isfinite()):  # the map folds: a wall, which sends the line search back
            return first + first.abs() + 1.0
        loss.backward()
        return loss

    optimizer.step(closure)
    return TrainingResult(float(objective(step, batch)[1]), count)


def _value(step: Map, objective: Objective, pool: Particles, settings: TrainingSettings) -> float:
    """The objective on the pool's first batch, where the tolerance asks for it."""
    return float("nan") if settings.tolerance is None else float(objective(step, pool[: settings.batch_size])[1])


def _batches(pool: Particles, size: int, generator: torch.Generator) -> Iterator[Particles]:
    """Mini-batches without end; each pass over the pool is a new permutation."""
    while True:
        order = torch.randperm(len(pool), generator=generator, device=generator.device).to(pool.x.device)
        for rows in order.split(min(size, len(pool))):
            if len(rows) == min(size, len(pool)):
                yield pool[rows]
