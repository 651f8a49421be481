"""Rows of a target evaluator by this process alone, and what a point costs it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jkosampler.targets import TargetEvaluator

__all__ = ["attempted_rows", "timed_rows"]

_FORGETTING = 1.05  # a disturbance makes a batch slower; a cost that has risen for good does so again and again


def timed_rows(evaluator: TargetEvaluator, kind: str, x: Tensor) -> Tensor:
    """Rows by this process alone, and what a point costs, from the fastest batch."""
    began = time.perf_counter()
    rows = evaluator.rows(kind, x)
    if len(x):
        seconds, before = (time.perf_counter() - began) / len(x), evaluator.seconds_a_point.get(kind)
        evaluator.seconds_a_point[kind] = seconds if before is None else min(seconds, _FORGETTING * before)
        evaluator.n_outputs = rows.shape[1]
    return rows


def attempted_rows(evaluator: TargetEvaluator, kind: str, x: Tensor) -> tuple[Tensor | None, BaseException | None]:
    """Rows, or what was raised in their place: whoever raises must not leave the others waiting."""
    try:
        return timed_rows(evaluator, kind, x), None
    except BaseException as error:
        return None, error
