"""How `plotting` draws: figures that pyplot does not know, colours, sizes of dots, ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jkosampler.errors import ArgumentError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "RED",
    "AxesArray",
    "density_colours",
    "density_norm",
    "dot_area",
    "few_ticks",
    "flat_axes",
    "new_figure",
]

AxesArray: TypeAlias = np.ndarray[Any, Any]  # numpy's types can't say "objects that are Axes"

BLUE, RED = "#0072B2", "#D55E00"  # of Okabe and Ito's palette, distinct for every kind of colour vision


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that pyplot does not know."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plotting needs matplotlib: run `pip install matplotlib`.") from error
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def flat_axes(axes: Any, count: int) -> AxesArray:
    """A flat array of axes from one axes, a list or an array of them."""
    flat = np.array(axes, dtype=object).reshape(-1)
    if flat.size != count:
        raise ArgumentError(f"axes: {count} are needed, got {flat.size}.")
    return flat


def density_norm(values: Sequence[NDArray[np.float64]]) -> Normalize:
    """One scale for all panels; logarithmic if their median densities lie more than tenfold apart."""
    from matplotlib.colors import LogNorm, Normalize

    positive = [rho[rho > 0] for rho in values if (rho > 0).any()]
    medians = [np.median(rho) for rho in positive]
    top = max(rho.max() for rho in positive)
    if max(medians) > 10.0 * min(medians):
        return LogNorm(min(np.quantile(rho, 0.05) for rho in positive), top)
    return Normalize(0.0, top)


def density_colours() -> Colormap:
    """Viridis, even in lightness for every kind of colour vision, without the end that is lost on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.93, 256)))


def dot_area(count: int) -> float:
    """Area of a dot in points squared: smaller where there are many."""
    return float(np.clip(6000.0 / count, 2.0, 14.0))


def few_ticks(ax: Axes) -> None:
    """Few enough that the labels of neighbouring panels do not touch."""
    ax.locator_params(axis="x", nbins=3)
    ax.locator_params(axis="y", nbins=4)
