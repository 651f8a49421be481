"""What `plotting` draws, before it is drawn: checked arrays, windows, subsets, regions of highest density.

numpy only. Shapes: n points, d coordinates, K panels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jkosampler.errors import ArgumentError, TargetCallError, TargetShapeError, TargetValueError

__all__ = [
    "check_evolution",
    "check_names",
    "check_points",
    "check_weights",
    "evaluate_on_grid",
    "panel_windows",
    "region_heights",
    "thin",
    "window",
]

Array = NDArray[np.float64]


def thin(count: int, limit: int) -> NDArray[np.intp]:
    """At most `limit` rows of `count`, evenly spaced: iid draws have no order, and the choice repeats."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.intp))


def window(column: Array, tail: float = 0.001, room: float = 0.2) -> tuple[float, float]:
    """From the quantile `tail` to that of `1 - tail`, and the part `room` of that width on both sides."""
    low, high = np.quantile(column, [tail, 1.0 - tail])
    width = (high - low) or max(abs(low), 1.0)
    return float(low - room * width), float(high + room * width)


def panel_windows(points: Sequence[Array], spread: float = 4.0) -> list[Array]:
    """For each panel the window (2, 2) = ((left, right), (bottom, top)) of its points (n, 2).

    It is the same for all panels, unless that would be more than `spread` times as wide as one panel needs.
    """
    own = np.array([[window(column, tail=0.0, room=0.05) for column in x.T] for x in points])
    shared = np.stack([own[..., 0].min(axis=0), own[..., 1].max(axis=0)], axis=-1)
    too_wide = np.ptp(shared, axis=-1) > spread * np.ptp(own, axis=-1)
    return list(own) if too_wide.any() else [shared] * len(points)


def evaluate_on_grid(log_target_fn: Callable[[Any], Any], x: Array, y: Array) -> Array:
    """The density on the grid, (len(y), len(x)), with its maximum at one."""
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    value = np.asarray(_call(log_target_fn, points), dtype=float)
    if value.shape != (len(points),):
        raise TargetShapeError(
            f"log_target_fn: one number for each of {len(points)} points is needed, got shape {value.shape}."
        )
    wrong = np.flatnonzero(np.isnan(value) | (value == np.inf))
    if wrong.size:
        raise TargetValueError(
            f"log_target_fn: NaN or +inf at {wrong.size} points of the draws' window, first at "
            f"{points[wrong[0]]}; return -inf where the density is zero.",
            points[wrong[:10]],
            wrong[:10],
        )
    if value.max() == -np.inf:
        raise TargetValueError("log_target_fn: -inf everywhere in the window of the draws; are they its draws?")
    return np.exp(value - value.max()).reshape(len(y), len(x))


def _call(log_target_fn: Callable[[Any], Any], points: Array) -> Any:
    """Its values at numpy points or, if these raise TypeError or AttributeError, at the same as a torch tensor.

    These two are what torch functions and methods raise of a numpy array. torch is not imported: a function that
    needs it has done so.
    """
    try:
        return _plain(log_target_fn(points))
    except (TypeError, AttributeError) as refused:
        torch = sys.modules.get("torch")
        if torch is None:
            raise
        try:
            with torch.no_grad():
                return _plain(log_target_fn(torch.as_tensor(points)))
        except (TypeError, AttributeError, RuntimeError) as error:
            raise TargetCallError(
                f"log_target_fn takes neither a numpy array (n, 2), {type(refused).__name__}: {refused}, nor a torch "
                f"float64 tensor, {type(error).__name__}: {error}. Pass a function of one of the two."
            ) from error


def _plain(value: Any) -> Any:
    """numpy for a torch tensor, whether it needs gradients or lives elsewhere; all else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def region_heights(density: Array, masses: Array) -> Array:
    """For each mass the height above which the density holds that part of its sum over the grid."""
    height = np.sort(density, axis=None)[::-1]
    held = np.cumsum(height) / height.sum()
    return height[np.searchsorted(held, masses)]


def check_evolution(
    particles: Sequence[ArrayLike], densities: Sequence[ArrayLike], times: ArrayLike, dims: tuple[int, int]
) -> tuple[list[Array], list[Array]]:
    """Positions and densities of the panels as float arrays, or an `ArgumentError`."""
    count = np.size(np.asarray(times))
    if not count or len(particles) != count or len(densities) != count:
        raise ArgumentError(
            "particles, densities, times: one of each is needed for every panel, got "
            f"{len(particles)}, {len(densities)} and {count}."
        )
    points = [check_points(x, f"particles[{k}]") for k, x in enumerate(particles)]
    values = [np.asarray(rho, dtype=float) for rho in densities]
    for k, (x, rho) in enumerate(zip(points, values, strict=True)):
        if rho.shape != (len(x),):
            raise ArgumentError(f"densities[{k}]: shape {(len(x),)} is needed, got {rho.shape}.")
        if min(dims) < 0 or max(dims) >= x.shape[1]:
            raise ArgumentError(f"dims: {tuple(dims)} are not columns of particles[{k}], shape {x.shape}.")
    if not any((rho > 0).any() for rho in values):
        raise ArgumentError("densities: none is positive; pass densities, not log densities.")
    return points, values


def check_points(points: ArrayLike, argument: str) -> Array:
    """A finite float array (n, d), or an `ArgumentError`."""
    x = np.asarray(points, dtype=float)
    if x.ndim != 2 or not x.size:
        raise ArgumentError(f"{argument}: an array (n, d) is needed, got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ArgumentError(f"{argument}: row {np.argmin(np.isfinite(x).all(axis=1))} is not finite.")
    return x


def check_weights(weights: ArrayLike | None, n: int) -> Array:
    """Weights (n,) that sum to one, equal ones for None, or an `ArgumentError`."""
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    if w.shape != (n,) or not np.isfinite(w).all() or w.min() < 0 or w.sum() == 0:
        raise ArgumentError(f"weights: {n} finite numbers >= 0, not all zero, are needed (shape {w.shape}).")
    return np.asarray(w / w.sum())


def check_names(names: Sequence[str] | None, d: int) -> list[str]:
    """A name for each coordinate, x1, x2, ... for None, or an `ArgumentError`."""
    if names is None:
        return [f"x{i + 1}" for i in range(d)]
    if len(names) != d:
        raise ArgumentError(f"names: {d} are needed, one for each coordinate, got {len(names)}.")
    return list(names)
