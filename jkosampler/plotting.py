"""Figures of a flow and its draws: density evolution, draws on contours, marginal pairs, and those of `_plot_flow`.

They are like those of Lee, Wang, Li (arXiv 2311.06700), section 4. Each function takes numpy arrays,
draws on the axes that it is given, or on those of a new `matplotlib.figure.Figure` that pyplot does not know
(so that nothing stays open), and returns the axes; `ax.figure.savefig("name.png")` writes the file. For
`plt.show()` pass axes made by `plt.subplots()`. matplotlib is imported by the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jkosampler import _plot_data as data
from jkosampler import _plot_style as style
from jkosampler._plot_fields import plot_fields
from jkosampler._plot_flow import plot_energy, plot_paths, plot_profile, plot_ring
from jkosampler.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "plot_density_evolution",
    "plot_energy",
    "plot_fields",
    "plot_pairs",
    "plot_paths",
    "plot_posterior_contours",
    "plot_profile",
    "plot_ring",
]


def plot_density_evolution(
    particles: Sequence[ArrayLike],
    densities: Sequence[ArrayLike],
    times: ArrayLike,
    *,
    dims: tuple[int, int] = (0, 1),
    names: Sequence[str] | None = None,
    axes: Any = None,
    max_points: int = 5000,
) -> style.AxesArray:
    """Particles at chosen flow times, coloured by their density: one panel a time, one colour scale for all.

    The panels share a window, unless it would be more than four times as wide as some panel's particles: then
    each has its own, and the ticks tell its size. The colour scale is logarithmic if the panels' median
    densities lie more than tenfold apart.

    Parameters
    ----------
    particles : sequence of K arrays (n, d)
        Positions at each time.
    densities : sequence of K arrays (n,)
        The density of the law at its particles (not its logarithm), per unit of volume.
    times : array (K,)
        Flow times, for the titles.
    dims : pair of int
        The two coordinates to draw.
    names : sequence of d str, optional
        Names of the coordinates; x1, x2, ... otherwise.
    axes : K axes, optional
        Where to draw; a row of new axes otherwise.
    max_points : int
        Particles drawn in a panel; of more, an evenly spaced subset.

    Returns
    -------
    ndarray (K,) of Axes
        The panels, without the axes of the colour bar.

    Raises
    ------
    ArgumentError
        If lengths or shapes do not agree, or no density is positive.
    """
    points, values = data.check_evolution(particles, densities, times, dims)
    labels = data.check_names(names, points[0].shape[1])
    if axes is None:
        axes = style.new_figure(2.4 * len(points) + 0.9, 2.6).subplots(1, len(points), squeeze=False)
    panels = style.flat_axes(axes, len(points))
    norm = style.density_norm(values)
    windows = data.panel_windows([x[:, list(dims)] for x in points])
    for ax, x, rho, time, limits in zip(panels, points, values, np.ravel(times), windows, strict=True):
        rows = data.thin(len(x), max_points)
        rows = rows[np.argsort(rho[rows])]  # the densest on top
        dots = ax.scatter(
            x[rows, dims[0]],
            x[rows, dims[1]],
            c=np.clip(rho[rows], norm.vmin, None),  # a logarithmic scale has no colour for zero
            s=style.dot_area(len(rows)),
            cmap=style.density_colours(),
            norm=norm,
            linewidths=0,
            rasterized=True,
        )
        style.few_ticks(ax)
        ax.set(title=f"t = {time:.3g}", xlabel=labels[dims[0]], xlim=limits[0], ylim=limits[1])
    panels[0].set_ylabel(labels[dims[1]])
    bar = panels[0].figure.colorbar(dots, ax=list(panels), label="density", pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    return panels


def plot_posterior_contours(
    log_target_fn: Callable[[Any], Any],
    draws: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
    levels: Sequence[float] = (0.5, 0.9, 0.99),
    resolution: int = 200,
    max_points: int = 2000,
) -> Axes:
    """Draws over the target's contours, in two dimensions.

    The window is chosen from the draws, with room around them. Each contour encloses the smallest region that
    holds the given part of the target's mass in this window: where the law is right, that part of the draws.

    Parameters
    ----------
    log_target_fn : callable (n, 2) -> (n,)
        The unnormalised log density, -inf where the density is zero; a `Target`, a function of numpy arrays, or
        the torch function that the sampler was given. It is called with numpy float64 points first; if that
        raises TypeError or AttributeError, as torch functions do, with the same points as a torch float64 tensor.
    draws : array (n, 2)
        Unweighted draws.
    names : pair of str, optional
        Names of the coordinates; x1, x2 otherwise.
    ax : Axes, optional
        Where to draw; new axes otherwise.
    levels : sequence of float
        Enclosed masses, each in (0, 1).
    resolution : int
        Points of the grid along each axis; `log_target_fn` gets all `resolution**2` in one call.
    max_points : int
        Draws shown; of more, an evenly spaced subset.

    Returns
    -------
    Axes

    Raises
    ------
    ArgumentError
        If the draws are not (n, 2), or a level is not in (0, 1), or the grid is too coarse for the levels.
    TargetShapeError, TargetValueError
        If `log_target_fn` does not return one number a point, or returns NaN or +inf.
    TargetCallError
        If it raises with numpy and with torch points.
    """
    x = data.check_points(draws, "draws")
    if x.shape[1] != 2:
        raise ArgumentError(f"draws: two columns are needed, got shape {x.shape}; choose with draws[:, [0, 1]].")
    masses = np.unique(np.asarray(levels, dtype=float))[::-1]
    if not masses.size or masses.max() >= 1 or masses.min() <= 0:
        raise ArgumentError(f"levels: masses in (0, 1) are needed, got {tuple(levels)}.")
    labels = data.check_names(names, 2)
    grid = [np.linspace(*data.window(column), resolution) for column in x.T]
    density = data.evaluate_on_grid(log_target_fn, *grid)
    heights = data.region_heights(density, masses)
    if np.any(np.diff([*heights, 1.0]) <= 0):
        raise ArgumentError(f"levels: {tuple(levels)} can't be told apart; raise resolution={resolution}.")
    if ax is None:
        ax = style.new_figure(4.2, 3.4).subplots()
    fills, inks = ([str(g) for g in np.linspace(*ends, len(heights))] for ends in ((0.95, 0.8), (0.6, 0.1)))
    ax.contourf(*grid, density, levels=[*heights, 1.0], colors=fills)
    rows = data.thin(len(x), max_points)
    ax.plot(*x[rows].T, "o", color=style.BLUE, markersize=1.8, alpha=0.6, markeredgewidth=0, rasterized=True)
    lines = ax.contour(*grid, density, levels=heights, colors=inks, linewidths=1.2)
    percent = [f"{100 * mass:.3g} %" for mass in masses]
    ax.legend(lines.legend_elements()[0], percent, title="target mass", frameon=False)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    style.few_ticks(ax)
    return ax


def plot_pairs(
    draws: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    max_dims: int = 6,
    weights: ArrayLike | None = None,
    axes: Any = None,
    max_points: int = 2000,
) -> style.AxesArray:
    """Marginal histograms on the diagonal, scatter plots of the pairs below it.

    Parameters
    ----------
    draws : array (n, d)
        Draws, unweighted unless `weights` are given.
    names : sequence of d str, optional
        Names of the coordinates; x1, x2, ... otherwise.
    max_dims : int
        The first `max_dims` coordinates are shown; a note in the corner says if there are more.
    weights : array (n,), optional
        Importance weights >= 0 of any scale, for the histograms and the areas of the dots.
    axes : (k, k) axes, optional
        Where to draw, k = min(d, max_dims); new axes otherwise. Those above the diagonal are switched off.
    max_points : int
        Dots in a scatter plot; of more draws, an evenly spaced subset. The histograms use all.

    Returns
    -------
    ndarray (k, k) of Axes

    Raises
    ------
    ArgumentError
        If draws, weights, names or axes have the wrong shape, or a value is not finite, or a weight negative.
    """
    x = data.check_points(draws, "draws")
    n, d = x.shape
    shown = min(d, max_dims)
    labels, mass = data.check_names(names, d), data.check_weights(weights, n)
    if axes is None:
        size = 1.1 + 1.5 * shown
        axes = style.new_figure(size, size).subplots(shown, shown, squeeze=False)
    panels = style.flat_axes(axes, shown * shown).reshape(shown, shown)
    rows = data.thin(n, max_points)
    areas = style.dot_area(len(rows)) * np.minimum(n * mass[rows], 10.0)
    windows = [data.window(column, tail=0.0, room=0.05) for column in x.T[:shown]]
    for (i, j), ax in np.ndenumerate(panels):
        if j > i:
            ax.set_axis_off()
            continue
        if i == j:
            ax.hist(x[:, i], bins=40, range=windows[i], weights=mass, color=style.BLUE, alpha=0.75)
        else:
            ax.scatter(x[rows, j], x[rows, i], s=areas, color=style.BLUE, alpha=0.5, linewidths=0, rasterized=True)
            ax.set_ylim(windows[i])
        ax.set_xlim(windows[j])
        _label_edge(ax, labels[j] if i == shown - 1 else "", labels[i] if j == 0 < i else "", diagonal=i == j)
    if shown < d:
        panels[0, -1].set_title(f"first {shown} of {d} coordinates", loc="right", fontsize="small")
    return panels


def _label_edge(ax: Axes, xlabel: str, ylabel: str, *, diagonal: bool) -> None:
    """Names and ticks at the left and lower edge of the triangle; no height scale for the histograms."""
    style.few_ticks(ax)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelbottom=bool(xlabel), labelleft=bool(ylabel), left=not diagonal)
    ax.spines["left"].set_visible(not diagonal)
    ax.set(xlabel=xlabel, ylabel=ylabel)
