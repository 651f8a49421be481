"""Levenberg and Marquardt's method for objectives that are not defined everywhere, as where a map folds.

The damping follows the ratio of the gain to what the quadratic model promised (Nielsen 1999). (MINPACK's method, as in
scipy, knows no walls, and its QR factorisation of thousands of equations in hundreds of unknowns is many times slower
than the normal equations.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["Iterate", "levenberg_marquardt"]

_DAMPING, _LEAST, _MOST = 1e-2, 1e-9, 1e8
_FLOOR = 1e-4  # of the mean curvature, in the damping of parameters that the objective does not feel


class Iterate(Protocol):
    """A point, with the objective there."""

    @property
    def parameters(self) -> Tensor: ...

    @property
    def value(self) -> float: ...


Point = TypeVar("Point", bound=Iterate)


def levenberg_marquardt(
    start: Point,
    at: Callable[[Tensor], Point | None],
    model: Callable[[Point], tuple[Tensor, Tensor]],
    done: Callable[[Point, list[float]], bool],
    *,
    max_iterations: int,
) -> tuple[Point, int]:
    """The best iterate, and how many were tried.

    Parameters
    ----------
    start : Iterate
    at : callable
        Iterate of parameters (p,), or None where the objective is not defined.
    model : callable
        Gradient (q,) and positive semi-definite curvature (q, q) in the first q <= p parameters, which alone move.
    done : callable
        Whether to stop, by the last accepted iterate and the values of all.
    max_iterations : int
    """
    now, values, n_iterations = start, [start.value], 0
    damping, growth = _DAMPING, 2.0
    scale = torch.zeros(())
    while n_iterations < max_iterations and damping < _MOST and not done(now, values):
        gradient, curvature = model(now)
        diagonal = curvature.diagonal()
        scale = torch.maximum(scale.to(diagonal), diagonal)
        metric = scale + _FLOOR * diagonal.mean()
        while n_iterations < max_iterations and damping < _MOST:
            n_iterations += 1
            step = torch.linalg.solve(curvature + torch.diag(damping * metric), gradient)
            parameters = now.parameters.clone()
            parameters[: len(step)] -= step
            tried = at(parameters)
            if tried is not None and tried.value < now.value:
                promised = 0.5 * float(step @ (damping * metric * step + gradient))
                ratio = (now.value - tried.value) / promised
                damping, growth = max(damping * max(1.0 / 3.0, 1.0 - (2.0 * ratio - 1.0) ** 3), _LEAST), 2.0
                now = tried
                values.append(now.value)
                break
            damping, growth = damping * growth, 2.0 * growth
    return now, n_iterations
