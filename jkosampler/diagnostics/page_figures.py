"""The figures of a report's page, as PNG in base64. numpy only; matplotlib when called."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jkosampler import _plot_data as data
from jkosampler import _plot_style as style
from jkosampler import plotting
from jkosampler.diagnostics.psis import psis
from jkosampler.diagnostics.report import FAR_PER_DIM, STATIONARY_PER_DIM, Report
from jkosampler.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MOST_MARGINALS", "MOST_PAIRED", "Picture", "history", "labels", "marginals", "pairs", "standing", "weights"]

MOST_MARGINALS, MOST_PAIRED = 12, 5  # coordinates shown
_LONGEST_NAME = 16  # letters that fit on an axis
_SHOWN_PER_INCH, _DENSITY = 96, 2  # pixels of the page, and of the image for each

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Picture:
    """A PNG in base64, its size in pixels of the page, and what it shows in words."""

    png: str
    width: int
    height: int
    words: str


def labels(names: Sequence[str]) -> list[str]:
    """Names as matplotlib shows them as they are: a dollar sign starts no formula, and long ones are cut."""
    cut = [name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…" for name in names]
    return [name.replace("\n", " ").replace("$", r"\$") for name in cut]


def marginals(draws: Array, names: Sequence[str]) -> list[Picture]:
    """A histogram for each of the first coordinates."""
    shown = list(zip(draws.T, labels(names), names, strict=True))[:MOST_MARGINALS]
    return [_drawn(2.1, 1.6, partial(_bars, column, label), f"Histogram of {name}") for column, label, name in shown]


def _bars(column: Array, label: str, ax: Axes) -> None:
    ax.hist(column, bins=40, range=data.window(column, tail=0.0, room=0.05), color=style.BLUE, alpha=0.75)
    ax.axvline(float(np.median(column)), color=style.RED, linewidth=1.2)
    ax.set(xlabel=label, yticks=[])
    ax.locator_params(axis="x", nbins=3)
    _open(ax)
    ax.spines["left"].set_visible(False)


def pairs(draws: Array, names: Sequence[str]) -> Picture | None:
    """Scatter plots of the first coordinates, two by two; None for a single one."""
    if draws.shape[1] < 2:
        return None
    shown = min(draws.shape[1], MOST_PAIRED)
    with _plain_figures():
        axes = plotting.plot_pairs(draws[:, :shown], names=labels(names[:shown]))
        for ax in axes[-1]:
            ax.tick_params(axis="x", labelrotation=35)  # long numbers would touch their neighbours
        return _picture(axes[0, 0].figure, f"Scatter plots of pairs of {', '.join(names[:shown])}")


def history(steps: Sequence[Mapping[str, Any]], log_evidence: float) -> list[Picture]:
    """Energy, step size, effective sample size and residual of the steps, as far as they are known."""
    drawn = []
    energy = _column(steps, "energy")
    if np.isfinite(energy).any():
        drawn.append(_drawn(4.4, 2.9, lambda ax: _energy(ax, energy, -log_evidence), "Energy by step"))
    rows: tuple[tuple[str, str, str], ...] = (
        ("step_size", "step size", "log"),
        ("ess", "effective fraction", "linear"),
        ("residual", "residual", "log"),
    )
    for key, label, scale in rows:
        values = _column(steps, key)
        if np.isfinite(values).any():
            drawn.append(_drawn(4.4, 2.9, _curve(values, label, scale), f"{label.capitalize()} by step"))
    return drawn


def weights(log_weights: Array, report: Report) -> list[Picture]:
    """The importance weights over their mean: all of them, and the largest beside the fitted tail."""
    smoothed, k_hat = psis(log_weights)
    shift = log_weights.max()
    log_mean = shift + np.log(np.exp(log_weights - shift).mean())
    relative = log_weights[np.isfinite(log_weights)] - log_mean

    def bars(ax: Axes) -> None:
        ax.hist(relative, bins=50, range=data.window(relative, tail=0.001, room=0.1), color=style.BLUE, alpha=0.75)
        ax.axvline(0.0, color=style.RED, linewidth=1.2)
        ax.set(xlabel="log(weight / mean weight)", ylabel="draws")
        style.few_ticks(ax)
        _open(ax)

    def tail(ax: Axes) -> None:
        count = max(int(np.ceil(min(report.n / 5, 3 * np.sqrt(report.n)))), 5)
        rank = np.arange(1, count + 1)
        largest = np.exp(np.sort(log_weights)[::-1][:count] - log_mean)
        fitted = np.exp(np.sort(smoothed)[::-1][:count] + np.log(len(smoothed)))
        positive = largest > 0
        ax.plot(rank[positive], largest[positive], "o", color=style.BLUE, markersize=3, label="weights")
        if np.isfinite(k_hat):
            ax.plot(rank, fitted, color=style.RED, linewidth=1.4, label="Pareto tail")
        ax.set(xlabel="rank (1: the largest)", ylabel="weight / mean weight", xscale="log")
        if largest[0] > 3.0 * largest[positive][-1]:
            ax.set_yscale("log")
        else:
            ax.locator_params(axis="y", nbins=4)
        ax.legend(frameon=False)
        _open(ax)

    return [
        _drawn(4.4, 2.9, bars, "Histogram of the logarithms of the importance weights"),
        _drawn(4.4, 2.9, tail, "The largest importance weights by rank, and the fitted Pareto tail"),
    ]


def standing(report: Report) -> Picture | None:
    """The stationarity with its error among its limits, on a logarithmic scale; None where it is unknown."""
    value, error = report.stationarity, report.stationarity_se
    if not np.isfinite(value) or value <= 0:
        return None
    good, bad = STATIONARY_PER_DIM * report.dim, FAR_PER_DIM * report.dim

    def scale(ax: Axes) -> None:
        low, high = min(value / 10.0, good / 10.0), max(value * 10.0, bad * 10.0)
        for left, right, colour in ((low, good, "#d9efe0"), (good, bad, "#fbecc8"), (bad, high, "#f8d7d3")):
            ax.axvspan(left, right, color=colour, linewidth=0)
        spread = error if np.isfinite(error) else 0.0
        ax.errorbar([value], [0.0], xerr=[[min(spread, 0.9 * value)], [spread]], fmt="o", color=style.BLUE, capsize=3)
        ax.set(xscale="log", xlim=(low, high), ylim=(-1, 1), yticks=[], xlabel="stationarity")
        for where, word, colour in ((good, "good below", "#1b6e3c"), (bad, "bad above", "#a12a1e")):
            beside: dict[str, Any] = {"ha": "right"} if where == good else {"ha": "left"}
            ax.text(where, 0.6, f" {word} {where:.2g} ", color=colour, fontsize="small", **beside)
        ax.spines[["top", "right", "left"]].set_visible(False)

    return _drawn(4.8, 1.3, scale, f"Stationarity {value:.3g} among its limits {good:.2g} and {bad:.2g}")


def _energy(ax: Axes, energy: Array, least: float) -> None:
    step = np.arange(1, len(energy) + 1)
    known = np.isfinite(energy)
    reference = least if np.isfinite(least) and (energy[known] > least).any() else None
    plotting.plot_energy(step[known], energy[known], reference=reference, ax=ax)
    _whole_steps(ax)
    if reference is not None:
        ax.set_ylabel("energy + log evidence")


def _curve(values: Array, label: str, scale: str) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        step, known = np.arange(1, len(values) + 1), np.isfinite(values)
        ax.plot(step[known], values[known], color=style.BLUE, marker="o", markersize=3.5, linewidth=1.2)
        ax.set(xlabel="step", ylabel=label)
        if scale == "log" and (values[known] > 0).all():
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=min(0.0, float(values[known].min())))
        _whole_steps(ax)
        _open(ax)

    return draw


def _whole_steps(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _column(steps: Sequence[Mapping[str, Any]], key: str) -> Array:
    return np.array([float(step.get(key, np.nan)) for step in steps])


def _open(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


@contextmanager
def _plain_figures() -> Iterator[None]:
    """Ticks without an offset beside the axis, and no warnings of letters that the font lacks: a name may hold any."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise MissingDependencyError("a page has figures: run `pip install matplotlib`.") from error
    with warnings.catch_warnings(), rc_context({"axes.formatter.useoffset": False}):
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def _drawn(width: float, height: float, draw: Callable[[Axes], None], words: str) -> Picture:
    with _plain_figures():
        figure = style.new_figure(width, height)
        draw(figure.subplots())
        return _picture(figure, words)


def _picture(figure: Any, words: str) -> Picture:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DENSITY * _SHOWN_PER_INCH)
    width, height = (round(inches * _SHOWN_PER_INCH) for inches in figure.get_size_inches())
    return Picture(base64.b64encode(stream.getvalue()).decode("ascii"), width, height, words)
