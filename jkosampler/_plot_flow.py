"""Figures of a flow beside its exact solution: energy decay, particles' paths, density profiles, the support's ring.

They are like those of sections 4.1 to 4.3 of Lee, Wang, Li (arXiv 2311.06700); `plotting` is where they are public, and
says what all figures have in common. Exact solutions are dashed lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jkosampler import _plot_data as data
from jkosampler import _plot_style as style
from jkosampler.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_energy", "plot_paths", "plot_profile", "plot_ring"]

_DASHED: dict[str, Any] = {"color": style.RED, "linestyle": "--", "linewidth": 1.4}


def plot_energy(
    times_or_steps: ArrayLike,
    energy: ArrayLike,
    *,
    exact: ArrayLike | None = None,
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The decay of the energy along the flow.

    Parameters
    ----------
    times_or_steps : array (K,)
        Flow times (float) or step numbers (int); the axis is labelled accordingly.
    energy : array (K,)
        The energy there; in nats, if it is a Kullback-Leibler divergence.
    exact : array (K,), optional
        The energy of the exact flow there, for a dashed line.
    reference : float, optional
        The energy's minimum, such as `-log Z` for the divergence from an unnormalised target. The excess over
        it is drawn on a logarithmic scale; estimates not above it (by Monte Carlo error) are open triangles,
        drawn at the lowest positive excess.
    ax : Axes, optional
        Where to draw; new axes otherwise.

    Returns
    -------
    Axes

    Raises
    ------
    ArgumentError
        If the arrays differ in length, or no energy lies above the reference.
    """
    where, level = np.asarray(times_or_steps), np.asarray(energy, dtype=float)
    truth = None if exact is None else np.asarray(exact, dtype=float)
    if where.ndim != 1 or where.shape != level.shape or not where.size:
        raise ArgumentError(f"energy: shape {where.shape} of times_or_steps is needed, got {level.shape}.")
    if truth is not None and truth.shape != where.shape:
        raise ArgumentError(f"exact: shape {where.shape} of times_or_steps is needed, got {truth.shape}.")
    if reference is not None and not (level > reference).any():
        raise ArgumentError(f"reference: no energy lies above {reference:.6g}; pass the energy's minimum.")
    if ax is None:
        ax = style.new_figure(4.2, 3.0).subplots()
    curve: dict[str, Any] = {"color": style.BLUE, "marker": "o", "markersize": 3.5, "linewidth": 1.2}
    if reference is None:
        ax.plot(where, level, **curve)
        ax.set_ylabel("energy")
    else:
        _plot_excess(ax, where, level - reference, curve)
    if truth is not None:
        ax.plot(where, truth - (reference or 0.0), **_DASHED, label="exact")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False)
    ax.set_xlabel("step" if where.dtype.kind in "iu" else "flow time")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _plot_excess(ax: Axes, where: NDArray[Any], excess: NDArray[np.float64], curve: dict[str, Any]) -> None:
    """The excess over the minimum on a logarithmic scale, with a mark for what has no logarithm."""
    above, below = excess > 0, excess <= 0
    ax.plot(where, np.where(above, excess, np.nan), **curve)
    if below.any():
        floor = np.full(np.count_nonzero(below), excess[above].min())
        ax.plot(where[below], floor, "v", color=style.BLUE, fillstyle="none", label="not above the minimum")
    ax.set_yscale("log")
    ax.set_ylabel("energy above its minimum")


def plot_paths(
    paths: ArrayLike,
    times: ArrayLike,
    *,
    values: ArrayLike | None = None,
    dims: tuple[int, int] = (0, 1),
    names: Sequence[str] | None = None,
    ax: Any = None,
    max_paths: int = 300,
) -> Any:
    """Paths of particles through two coordinates and time, which goes upwards; a dot where each ends.

    Parameters
    ----------
    paths : array (K, n, d)
        Positions of the same particles at each time.
    times : array (K,)
        Flow times, K >= 2.
    values : array (n,), optional
        What colours the paths, such as the density where they start or end; one colour otherwise.
    dims : pair of int
        The two coordinates to draw.
    names : sequence of d str, optional
        Names of the coordinates; x1, x2, ... otherwise.
    ax : 3-D Axes, optional
        Where to draw, made with `projection="3d"`; new axes otherwise.
    max_paths : int
        Paths drawn; of more, an evenly spaced subset.

    Returns
    -------
    3-D Axes

    Raises
    ------
    ArgumentError
        If shapes do not agree, or the axes are not 3-D.
    """
    x, t = np.asarray(paths, dtype=float), np.asarray(times, dtype=float)
    if x.ndim != 3 or len(x) < 2 or not x.size or not np.isfinite(x).all():
        raise ArgumentError(f"paths: a finite array (K, n, d) with K >= 2 is needed, got shape {x.shape}.")
    if t.shape != (len(x),):
        raise ArgumentError(f"times: shape {(len(x),)} is needed, one for each position, got {t.shape}.")
    _, n, d = x.shape
    if min(dims) < 0 or max(dims) >= d:
        raise ArgumentError(f"dims: {tuple(dims)} are not coordinates of paths, shape {x.shape}.")
    levels = None if values is None else np.asarray(values, dtype=float)
    if levels is not None and levels.shape != (n,):
        raise ArgumentError(f"values: shape {(n,)} is needed, one for each path, got {levels.shape}.")
    labels = data.check_names(names, d)
    if ax is None:
        ax = style.new_figure(4.6, 4.2).add_subplot(projection="3d")
    if not hasattr(ax, "get_zlim"):
        raise ArgumentError("ax: 3-D axes are needed, made with projection='3d'.")
    rows = data.thin(n, max_paths)
    first, second = (x[:, rows, i] for i in dims)
    lines = np.stack([first, second, np.broadcast_to(t[:, None], first.shape)], axis=-1).swapaxes(0, 1)
    colours = _path_colours(levels, rows)
    for line, colour in zip(lines, colours, strict=True):
        ax.plot(*line.T, color=colour, linewidth=0.7, alpha=0.7)
    ax.scatter(*lines[:, -1].T, c=colours, s=style.dot_area(len(rows)), depthshade=False, linewidths=0)
    across, deep = (data.window(column.ravel(), tail=0.0, room=0.02) for column in (first, second))
    ax.set(xlim=across, ylim=deep, zlim=(t.min(), t.max()))
    ax.set(xlabel=labels[dims[0]], ylabel=labels[dims[1]], zlabel="flow time")
    style.few_ticks(ax)
    return ax


def _path_colours(levels: NDArray[np.float64] | None, rows: NDArray[np.intp]) -> Any:
    """A colour for each path that is drawn."""
    if levels is None:
        return [style.BLUE] * len(rows)
    low, high = levels[rows].min(), levels[rows].max()
    return style.density_colours()((levels[rows] - low) / ((high - low) or 1.0))


def plot_profile(
    where: ArrayLike,
    density: ArrayLike,
    *,
    exact: tuple[ArrayLike, ArrayLike] | None = None,
    name: str = "x1",
    ax: Axes | None = None,
    max_points: int = 2000,
) -> Axes:
    """The density at particles against one coordinate of theirs, or against a distance: the law from the side.

    Parameters
    ----------
    where : array (n,)
        The coordinate of each particle.
    density : array (n,)
        The density there.
    exact : pair of arrays (k,), optional
        Coordinates, in order, and the exact densities there, for a dashed line.
    name : str
        Name of the coordinate.
    ax : Axes, optional
        Where to draw; new axes otherwise.
    max_points : int
        Particles drawn; of more, an evenly spaced subset.

    Returns
    -------
    Axes

    Raises
    ------
    ArgumentError
        If coordinates and densities differ in length.
    """
    x, rho = np.asarray(where, dtype=float), np.asarray(density, dtype=float)
    if x.ndim != 1 or not x.size or x.shape != rho.shape:
        raise ArgumentError(f"density: shape {x.shape} of where is needed, (n,) for both, got {rho.shape}.")
    if ax is None:
        ax = style.new_figure(4.2, 3.0).subplots()
    rows, top = data.thin(len(x), max_points), rho.max()
    ax.plot(x[rows], rho[rows], "o", color=style.BLUE, markersize=2.0, alpha=0.6, markeredgewidth=0, rasterized=True)
    if exact is not None:
        line, level = (np.asarray(part, dtype=float) for part in exact)
        if line.ndim != 1 or line.shape != level.shape:
            raise ArgumentError(f"exact: coordinates and densities (k,) are needed, got {line.shape}, {level.shape}.")
        ax.plot(line, level, **_DASHED, label="exact", zorder=3)
        ax.legend(frameon=False)
        top = max(top, level.max())
    taken = 0.0 if ax.get_autoscaley_on() else ax.get_ylim()[1]  # by another profile, perhaps on axes that share theirs
    ax.set(xlabel=name, ylabel="density", ylim=(0.0, max(1.05 * top, taken) or 1.0))
    style.few_ticks(ax)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_ring(radius: float, *, center: tuple[float, float] = (0.0, 0.0), ax: Axes | None = None) -> Axes:
    """A dashed circle, such as the edge of an exact solution's support; widens the window if it must.

    Parameters
    ----------
    radius : float
        Positive.
    center : pair of float
        Its centre.
    ax : Axes, optional
        Where to draw; new axes otherwise.

    Returns
    -------
    Axes

    Raises
    ------
    ArgumentError
        If the radius is not positive.
    """
    if not 0.0 < radius < np.inf:
        raise ArgumentError(f"radius must be positive and finite, got {radius!r}.")
    if ax is None:
        ax = style.new_figure(3.2, 3.2).subplots()
    angle = np.linspace(0.0, 2.0 * np.pi, 181)
    ax.plot(center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle), **_DASHED)
    windows = zip((ax.get_xlim(), ax.get_ylim()), center, strict=True)
    room = 1.05 * radius
    across, up = ((min(low, middle - room), max(high, middle + room)) for (low, high), middle in windows)
    ax.set(xlim=across, ylim=up)
    ax.set_aspect("equal")
    return ax
