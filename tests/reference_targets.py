"""Targets that samplers are compared on, with exact normalising constants and exact draws.

Definitions after Neal (the funnel), Hertrich and Gruhlke (shifted modes, mixtures), and the "many wells" of diffusion
samplers. The centres in `data/targets.npz` were drawn once, from uniform laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import quad
from scipy.stats import t as student
from torch import Tensor

__all__ = ["TARGETS", "ReferenceTarget", "equal_gaussians", "many_wells", "sliced_energy_distance"]

_CENTRES = np.load(Path(__file__).parent / "data" / "targets.npz")


@dataclass(frozen=True)
class ReferenceTarget:
    """A target over R^d: log density (n,) of points (n, d), log of its integral, draws, centres (k, d) of its modes.

    `draw(n, rng)` gives exact draws (n, d).
    """

    dim: int
    log_density: Callable[[Tensor], Tensor]
    log_z: float
    draw: Callable[[int, np.random.Generator], np.ndarray]
    modes: np.ndarray | None = None


def funnel(d: int = 10, scale: float = 3.0) -> ReferenceTarget:
    """v = x_0 ~ N(0, scale^2), the others given v ~ N(0, e^v)."""

    def log_density(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        first = -0.5 * (v / scale).square() - math.log(scale) - 0.5 * math.log(2.0 * math.pi)
        return first - 0.5 * (rest.square().sum(1) * (-v).exp() + (d - 1) * (v + math.log(2.0 * math.pi)))

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        v = scale * rng.standard_normal((n, 1))
        return np.concatenate([v, np.exp(v / 2.0) * rng.standard_normal((n, d - 1))], axis=1)

    return ReferenceTarget(d, log_density, 0.0, draw)


def equal_gaussians(centres: np.ndarray, variance: float) -> ReferenceTarget:
    """Equal mixture of isotropic Gaussians."""
    k, d = centres.shape
    at, normaliser = torch.from_numpy(centres), math.log(k) + 0.5 * d * math.log(2.0 * math.pi * variance)

    def log_density(x: Tensor) -> Tensor:
        squares = (x.unsqueeze(1) - at.to(x)).square().sum(-1)
        return torch.logsumexp(-0.5 * squares / variance, dim=1) - normaliser

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        return centres[rng.integers(k, size=n)] + math.sqrt(variance) * rng.standard_normal((n, d))

    return ReferenceTarget(d, log_density, 0.0, draw, centres)


def eight_modes(variance: float) -> ReferenceTarget:
    """Eight Gaussians on the unit circle about (-1, 0)."""
    angles = 2.0 * math.pi * np.arange(8) / 8.0
    return equal_gaussians(np.stack([np.cos(angles) - 1.0, np.sin(angles)], axis=1), variance)


def many_wells(pairs: int = 16) -> ReferenceTarget:
    """Independent pairs (a, b): log density a / 2 + 6 a^2 - a^4 - b^2 / 2, not normalised."""

    def well(a: np.ndarray) -> np.ndarray:
        return 0.5 * a + 6.0 * a**2 - a**4

    def log_density(x: Tensor) -> Tensor:
        a, b = x[:, 0::2], x[:, 1::2]
        return (0.5 * a + 6.0 * a.square() - a.pow(4) - 0.5 * b.square()).sum(1)

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        grid = np.linspace(-3.5, 3.5, 20_001)
        cdf = np.cumsum(np.exp(well(grid)))
        a = np.interp(rng.random((n, pairs)), cdf / cdf[-1], grid)
        return np.stack([a, rng.standard_normal((n, pairs))], axis=2).reshape(n, 2 * pairs)

    integral = quad(lambda a: math.exp(float(well(np.asarray(a)))), -4.0, 4.0, epsabs=0.0, epsrel=1e-12, limit=200)[0]
    return ReferenceTarget(2 * pairs, log_density, pairs * (math.log(integral) + 0.5 * math.log(2.0 * math.pi)), draw)


def bent_chain(d: int, bend: Callable[[Any], Any], noise: float = 0.5) -> ReferenceTarget:
    """x_0 ~ N(0, 1), and every other given the one before ~ N(bend(x), noise^2)."""

    def log_density(x: Tensor) -> Tensor:
        steps = (x[:, 1:] - bend(x[:, :-1])) / noise
        constant = 0.5 * d * math.log(2.0 * math.pi) + (d - 1) * math.log(noise)
        return -0.5 * x[:, 0].square() - 0.5 * steps.square().sum(1) - constant

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        x = rng.standard_normal((n, d))
        for i in range(1, d):
            x[:, i] = np.asarray(bend(torch.from_numpy(x[:, i - 1]))) + noise * x[:, i]
        return x

    return ReferenceTarget(d, log_density, 0.0, draw)


def hyperbola(x: Tensor) -> Tensor:
    """A banana's bend, `x^2 - 1/2` in the middle, whose arms become straight: chains of it don't run away."""
    return 0.5 * (1.0 + 4.0 * x.square()).sqrt() - 1.0


def bananas(pairs: int) -> ReferenceTarget:
    """Independent pairs (a, b): a ~ N(0, 1), b given a ~ N((a^2 - 1) / 2, .5^2)."""
    one = bent_chain(2, lambda a: 0.5 * (a**2 - 1.0))

    def log_density(x: Tensor) -> Tensor:
        return one.log_density(x.reshape(-1, 2)).reshape(len(x), pairs).sum(1)

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        return one.draw(n * pairs, rng).reshape(n, 2 * pairs)

    return ReferenceTarget(2 * pairs, log_density, 0.0, draw)


def stretched_gaussian(d: int, condition: float) -> ReferenceTarget:
    """A Gaussian about 1 in turned coordinates, its covariance of this condition."""
    rng = np.random.default_rng(d)
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    deviations = condition ** np.linspace(-0.25, 0.25, d)
    precision = torch.from_numpy((axes / deviations**2) @ axes.T)
    constant = 0.5 * d * math.log(2.0 * math.pi) + float(np.log(deviations).sum())

    def log_density(x: Tensor) -> Tensor:
        return -0.5 * (((x - 1.0) @ precision.to(x)) * (x - 1.0)).sum(1) - constant

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        return 1.0 + (rng.standard_normal((n, d)) * deviations) @ axes.T

    return ReferenceTarget(d, log_density, 0.0, draw)


def student_mixture() -> ReferenceTarget:
    """Ten equal products of Student's t with two degrees of freedom."""
    centres = _CENTRES["mos_2d_locations"]
    k, d = centres.shape
    at, law = torch.from_numpy(centres), torch.distributions.StudentT(2.0)

    def log_density(x: Tensor) -> Tensor:
        return torch.logsumexp(law.log_prob(x.unsqueeze(1) - at.to(x)).sum(-1), dim=1) - math.log(k)

    def draw(n: int, rng: np.random.Generator) -> np.ndarray:
        return centres[rng.integers(k, size=n)] + student.rvs(2.0, size=(n, d), random_state=rng)

    return ReferenceTarget(d, log_density, 0.0, draw, centres)


def cauchy() -> ReferenceTarget:
    """Two independent coordinates with density 1 / (pi (1 + x^2))."""

    def log_density(x: Tensor) -> Tensor:
        return -torch.log1p(x.square()).sum(1)

    return ReferenceTarget(2, log_density, 2.0 * math.log(math.pi), lambda n, rng: rng.standard_cauchy((n, 2)))


TARGETS: dict[str, Callable[[], ReferenceTarget]] = {
    "shifted8modes": lambda: eight_modes(0.01),
    "shifted8peaky": lambda: eight_modes(0.005),
    "gmm20": lambda: equal_gaussians(_CENTRES["gmm20_means"], 0.01),
    "gmm50": lambda: equal_gaussians(_CENTRES["gmm50_means"], 0.01),
    "funnel10": funnel,
    "banana": lambda: bent_chain(2, lambda x: 0.5 * (x**2 - 1.0)),
    "bananas3": lambda: bent_chain(3, lambda x: 0.5 * (x**2 - 1.0)),
    "bananas10": lambda: bananas(5),
    "chain5": lambda: bent_chain(5, lambda x: torch.sin(1.5 * x)),
    "funnel4": lambda: funnel(4, 2.0),
    "bananas30": lambda: bananas(15),
    "bananas-chain100": lambda: bent_chain(100, hyperbola),
    "sine-chain100": lambda: bent_chain(100, lambda x: torch.sin(1.5 * x)),  # has two states between which it jumps
    "gaussian100": lambda: stretched_gaussian(100, 1e6),
    "manywell32": many_wells,
    "mos_2d": student_mixture,
    "cauchy": cauchy,
    "two-modes": lambda: equal_gaussians(np.array([[-8.0, 0.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0]]), 1.0),
}


def sliced_energy_distance(x: np.ndarray, y: np.ndarray, rng: np.random.Generator, n_directions: int = 1000) -> float:
    """E|X - Y| - E|X - X'| / 2 - E|Y - Y'| / 2 of the empirical laws of x (n, d) and y (m, d), by random directions.

    `(1 / c_d) E int (F - G)^2`, F and G the distribution functions along a direction.
    """
    d = x.shape[1]
    directions = rng.standard_normal((n_directions, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    jumps = np.concatenate([np.full(len(x), 1.0 / len(x)), np.full(len(y), -1.0 / len(y))])
    total = 0.0
    for direction in directions:
        along = np.concatenate([x @ direction, y @ direction])
        order = np.argsort(along)
        gaps = np.cumsum(jumps[order])[:-1]
        total += float(gaps**2 @ np.diff(along[order]))
    c = math.exp(math.lgamma(d / 2.0) - math.lgamma((d + 1.0) / 2.0)) / math.sqrt(math.pi)
    return total / n_directions / c
