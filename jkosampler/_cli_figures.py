"""The figures of the command line, from a fitted sampler; each function returns a matplotlib `Figure`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from jkosampler import _plot_style as style
from jkosampler import plotting
from jkosampler.errors import ArgumentError
from jkosampler.estimator import JKOSampler
from jkosampler.fields import FittedFields

__all__ = ["energy", "evolution", "fields", "is_field", "pairs"]

_MOST_PANELS = 6
_RESOLUTION = 80  # points along each side of a field's grid


def is_field(sampler: JKOSampler) -> bool:
    """Whether the fit is of a field rather than a density."""
    return isinstance(sampler._fitted.flow, FittedFields)


def pairs(draws: np.ndarray, names: Sequence[str]) -> Any:
    """Marginals and pairs."""
    return plotting.plot_pairs(draws, names=names)[0, 0].figure


def evolution(sampler: JKOSampler, n: int, seed: int, names: Sequence[str]) -> Any:
    """Particles coloured by density at up to six times of the fit."""
    if sampler.n_features_in_ < 2:
        raise ArgumentError("--kind evolution shows two coordinates, and this fit has one: choose --kind pairs.")
    times = _some(sampler.times_, _MOST_PANELS)
    # with one seed, so that all panels show the same particles
    snapshots = [sampler.sample_with_log_density(n, t=t, random_state=seed) for t in times]
    defined = [np.isfinite(log_density) for _, log_density in snapshots]
    particles = [x[rows] for (x, _), rows in zip(snapshots, defined, strict=True)]
    densities = [np.exp(log_density[rows]) for (_, log_density), rows in zip(snapshots, defined, strict=True)]
    width = min(len(times), 3)
    height = -(-len(times) // width)
    figure = style.new_figure(3.2 * width + 0.8, 2.8 * height)
    axes = figure.subplots(height, width, squeeze=False).ravel()
    for ax in axes[len(times) :]:
        ax.set_axis_off()
    plotting.plot_density_evolution(particles, densities, times, names=names, axes=axes[: len(times)])
    return figure


def energy(sampler: JKOSampler) -> Any:
    """The energy by step."""
    if not sampler.n_steps_:
        raise ArgumentError("--kind energy: this fit has no steps.")
    return plotting.plot_energy(
        np.arange(1, sampler.n_steps_ + 1), [record.energy for record in sampler.history_]
    ).figure


def fields(sampler: JKOSampler) -> Any:
    """A field at up to four times of the fit, on a line or in the plane."""
    flow = sampler._fitted.flow
    assert isinstance(flow, FittedFields)
    domain = flow.domain
    lower, upper = (side.cpu().double().numpy() for side in (domain.lower, domain.upper))
    # the field at the start may be a function that a file can't hold
    times = _some(sampler.times_[1:], 4) if sampler.n_steps_ else sampler.times_
    if domain.dim > 2:
        raise ArgumentError(f"--kind fields shows lines and planes, and this domain has {domain.dim} dimensions.")
    axes = [np.linspace(low, high, _RESOLUTION) for low, high in zip(lower, upper, strict=True)]
    x = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, domain.dim)
    inside = domain.contains(torch.from_numpy(x)).numpy()
    values = np.full((len(times), len(x)), np.nan)
    for row, t in zip(values, times, strict=True):
        row[inside] = sampler.field(x[inside], t=t)
    titles = [f"t = {t:.3g}" for t in times]
    if domain.dim == 2:
        grids = [row.reshape(_RESOLUTION, _RESOLUTION) for row in values]
        extent = (lower[0], upper[0], lower[1], upper[1])
        return plotting.plot_fields(grids, extent, titles)[0].figure
    figure = style.new_figure(4.6, 3.2)
    ax = figure.subplots()
    for row, title in zip(values, titles, strict=True):
        ax.plot(x[:, 0], row, label=title)
    ax.set(xlabel="x1", ylabel="u")
    ax.legend(frameon=False)
    return figure


def _some(times: np.ndarray, most: int) -> list[float]:
    """The first and the last, and some between them, even by step."""
    rows = np.unique(np.linspace(0, len(times) - 1, min(len(times), most)).round().astype(int))
    return [float(times[row]) for row in rows]
