"""KL flows to four Gaussians: from two in the plane, and from one in ten dimensions (section 4.1).

In the plane the potential and the start are sums over coordinates, so the solution is a product of two on the line,
by a spectral method. In ten dimensions eight coordinates are stationary; finite volumes solve the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import reference_pde as pde
import torch
from common.measures import Measure, fitted, fresh_particles, mean_and_error, relative_l2
from reference_line import step_on_line
from scipy.integrate import cumulative_simpson
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp

from jkosampler import laws

__all__ = ["exact_plane_density", "four_in", "plane_problem", "ten_dimensions", "two_to_four"]

TIMES, KL_AT_THE_END = (0.1, 0.2, 0.3, 0.4), 0.257302
CENTRES = np.array([[2.0, 2.5], [-2.5, 2.0], [-2.0, -2.5], [2.5, -2.0]])
DRAWS = 20_000


def plane_problem(**changes: Any) -> tuple[tuple[Any], dict[str, Any]]:
    """Arguments of the sampler for the flow from two Gaussians to four."""
    spread = 0.25 * np.eye(2)
    start = [laws.Gaussian([a, 0.0], spread) for a in (-1.2, 1.2)]
    end = [laws.Gaussian([a, b], spread) for a in (-2.0, 2.0) for b in (-2.0, 2.0)]
    parameters = {
        "metric": "wasserstein",
        "initial": laws.Mixture([0.5] * 2, start),
        "step_size": 0.025,
        "n_steps": 16,
    }
    return (laws.Mixture([0.25] * 4, end).log_prob,), parameters | changes


def two_to_four(seed: int, quick: bool, order: int) -> Iterator[Measure]:
    """Two Gaussians to four in the plane."""
    target, parameters = plane_problem(order=order, random_state=seed)
    if quick:
        parameters["n_steps"] = 4
    sampler, seconds = fitted(*target, **parameters)
    bound, aim = {1: (0.06, None), 2: (0.03, 0.015)}[order]
    for t in TIMES if not quick else TIMES[:1]:
        x, log_density = sampler.sample_with_log_density(DRAWS, t=t, random_state=1000 + seed)
        error = relative_l2(np.exp(log_density), exact_plane_density(x, t))
        note = f"order 1, exactly solved: {_of_first_order(t):.4f}"
        yield Measure(f"relative L2 error of the density, t = {t}", error, bound, aim, seconds=seconds, note=note)
    if not quick:
        x, log_density = sampler.sample_with_log_density(5 * DRAWS, random_state=2000 + seed)
        kl, error = mean_and_error(log_density + pde.four_gaussians(x))
        what, note = "KL at t = 0.4, less the true one, absolute", f"{kl:.4f} +- {error:.4f} of {KL_AT_THE_END}"
        yield Measure(what, abs(kl - KL_AT_THE_END), 0.015 if order == 2 else None, seconds=seconds, note=note)
        yield Measure("CPU seconds of the fit", seconds, 90.0, 30.0, seconds=seconds)


def exact_plane_density(x: np.ndarray, t: float) -> np.ndarray:
    """Density (n,) of the Fokker-Planck equation at points (n, 2) and one of `TIMES`."""
    factors = [CubicSpline(*_line(start))(column) for start, column in zip((1.2, 0.0), x.T, strict=True)]
    k = TIMES.index(t)
    return factors[0][:, k] * factors[1][:, k]


@cache
def _line(start: float) -> tuple[np.ndarray, np.ndarray]:
    """Points (n,) of the line and the densities (n, 4) there of the coordinate that starts so."""
    initial = pde.two_bumps(start)
    x, densities = pde.fokker_planck_line(pde.two_bumps(2.0), lambda x: np.exp(-initial(x)[0]), 6.0, 400, TIMES)
    return x, densities.T


def _of_first_order(t: float) -> float:
    """The error of the scheme's own density, a product of its coordinates', at 20 000 draws of it."""
    generator, draws, values = np.random.default_rng(0), [], []
    for start in (1.2, 0.0):
        x, log_density = _line_of_first_order(start)[t]
        mass = cumulative_simpson(np.exp(log_density), x=x, initial=0.0)
        draws.append(np.interp(mass[-1] * generator.random(20_000), mass, x))
        values.append(np.exp(CubicSpline(x, log_density)(draws[-1])))
    return relative_l2(values[0] * values[1], exact_plane_density(np.stack(draws, axis=1), t))


@cache
def _line_of_first_order(start: float) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Points (n,) and log densities (n,) of the coordinate that starts so after exact JKO steps, at `TIMES`."""
    potential, log_density, found = pde.two_bumps(start), None, {}
    nodes, tau = np.linspace(-5.5, 5.5, 2001), 0.025
    for k in range(1, 17):
        before = log_density or (lambda x: -potential(x)[0])
        step = step_on_line(pde.two_bumps(2.0), before, tau, nodes)
        log_density, nodes = CubicSpline(step.moved, step.log_rho), np.linspace(step.moved[0], step.moved[-1], 2001)
        found[round(k * tau, 9)] = step.moved, step.log_rho
    return found


def four_in(dim: int) -> laws.Mixture:
    """Equal mixture of four Gaussians of unit covariance, centred in the first two coordinates."""
    means = np.zeros((4, dim))
    means[:, :2] = CENTRES
    return laws.Mixture([0.25] * 4, [laws.Gaussian(mean, np.eye(dim)) for mean in means])


def ten_dimensions(seed: int, quick: bool) -> Iterator[Measure]:
    """N(0, I) to four Gaussians in ten dimensions, to t = 3.4 and on until the fit calls itself stationary."""
    target = four_in(10)
    sampler, seconds = fitted(
        target.log_prob,
        metric="wasserstein",
        initial=laws.Gaussian(np.zeros(10), np.eye(10)),
        step_size=0.2,
        n_steps=2 if quick else 17,
        random_state=seed,
    )
    end = sampler.times_[-1]
    yield Measure("CPU seconds of the fit to t = 3.4" if not quick else "CPU seconds of two steps", seconds)
    if not quick:
        sampler.max_time = 600.0
        sampler.extend()
    kls: list[np.ndarray] = []
    for k, (t, x, log_density) in enumerate(fresh_particles(sampler, DRAWS, 1000 + seed)):
        kls.append(log_density - target.log_prob(torch.as_tensor(x)).numpy())
        if k in (1, 5, 17):
            exact = _exact_in_ten(x, round(t, 9))
            error = relative_l2(np.exp(log_density), exact)
            yield Measure(f"relative L2 error of the density, t = {t:.3g}", error, seconds=seconds)
        if t == end:
            yield Measure(f"KL at t = {t:.3g}", float(np.mean(kls[-1])), None if quick else 0.05, seconds=seconds)
    if quick:
        return
    final, error = mean_and_error(kls[-1])
    note = f"+- {error:.4f}; {sampler.n_steps_} steps, {sampler.stop_reason_}"
    yield Measure("KL at the end", final, 0.05, seconds=seconds, note=note)
    nearest = np.square(x[:, None, :2] - CENTRES).sum(-1).argmin(1)
    weights = np.bincount(nearest, minlength=4) / len(x)
    yield Measure("mode weights, largest error", float(np.abs(weights - 0.25).max()), 0.02, seconds=seconds)
    rises = [mean_and_error(after - before) for before, after in pairwise(kls)]
    worst = max(rise / error for rise, error in rises)
    yield Measure("largest rise of the energy in a step, in standard errors", worst, 3.0, seconds=seconds)


def _exact_in_ten(x: np.ndarray, t: float) -> np.ndarray:
    rest = np.exp(-0.5 * np.square(x[:, 2:]).sum(1)) / (2.0 * math.pi) ** 4
    return _plane_solution(t).density_at(x[:, :2]) * rest


@cache
def _plane_solution(t: float) -> pde.PlaneSolution:
    """The first two coordinates, on cells of width 0.1 (error of the density below 1e-3)."""

    def potential(points: np.ndarray) -> np.ndarray:
        square = np.square(points[:, None] - CENTRES).sum(-1)
        return math.log(8.0 * math.pi) - logsumexp(-0.5 * square, axis=1)

    def start(points: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * np.square(points).sum(1)) / (2.0 * math.pi)

    return pde.fokker_planck(potential, start, 8.0, 160, (t,), step=0.02)
