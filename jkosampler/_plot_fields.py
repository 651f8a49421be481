"""Figures of fields on a plane domain, as colours or grey levels on a grid, side by side on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jkosampler import _plot_style as style
from jkosampler.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_fields"]


def plot_fields(
    fields: Sequence[ArrayLike],
    extent: tuple[float, float, float, float],
    titles: Sequence[str],
    *,
    axes: Any = None,
    colour_map: str = "viridis",
    label: str = "u",
) -> list[Axes]:
    """Fields of the plane side by side, all in the same colours.

    Parameters
    ----------
    fields : sequence of arrays (n1, n2)
        Values on a grid, the first index along x1; NaN outside the domain.
    extent : (float, float, float, float)
        Lowest and highest x1, lowest and highest x2.
    titles : sequence of str
        One for each.
    axes : array of Axes, optional
        As many; new ones in a row otherwise.
    colour_map : str
        A colour map of matplotlib; "gray" for phases.
    label : str
        Of the colour bar.

    Returns
    -------
    list of Axes

    Raises
    ------
    ArgumentError
        A field is no grid, none has a finite value, or the numbers of fields, titles and axes differ.
    """
    grids = [np.asarray(field, dtype=float) for field in fields]
    if not grids or any(grid.ndim != 2 for grid in grids):
        raise ArgumentError("fields must be a sequence of arrays (n1, n2), at least one.")
    if len(titles) != len(grids):
        raise ArgumentError(f"titles: {len(grids)} are needed, got {len(titles)}.")
    finite = [grid[np.isfinite(grid)] for grid in grids]
    if not any(values.size for values in finite):
        raise ArgumentError("fields: no value is finite.")
    if axes is None:
        axes = style.new_figure(2.6 * len(grids) + 0.6, 2.7).subplots(1, len(grids), sharex=True, sharey=True)
    panels = style.flat_axes(axes, len(grids))
    low = min(values.min() for values in finite if values.size)
    high = max(values.max() for values in finite if values.size)
    for ax, grid, title in zip(panels, grids, titles, strict=True):
        image = ax.imshow(grid.T, origin="lower", extent=extent, vmin=low, vmax=high, cmap=colour_map)
        ax.set_title(title)
        style.few_ticks(ax)
    panels[0].figure.colorbar(image, ax=list(panels), label=label, shrink=0.8)
    return list(panels)
