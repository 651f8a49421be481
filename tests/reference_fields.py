"""Fields that L2 flows are compared with: heat by its modes, Allen-Cahn's equation by a spectral method.

Eigenfunctions e of the Laplacian with no flux through the boundary, -Lap e = mu^2 e, are multiplied by
exp(-kappa mu^2 t) by the heat equation, by 1 / (1 + tau kappa mu^2) by an implicit step, and by `sdirk_factor` in a
step of second order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.fft import dctn, idctn
from scipy.special import j0

__all__ = [
    "DISC_RATE", "HEAT_2D", "HEAT_8D", "Modes", "allen_cahn_energy", "allen_cahn_flow", "allen_cahn_steps", "at_points",
    "disc_mode", "four_points", "grid", "sdirk_factor", "torus",
]  # fmt: skip

GAMMA = 1.0 - math.sqrt(0.5)
DISC_RATE = 3.8317059702075125  # the first positive zero of J_1: J_0 of so many radii is level at the unit circle
EPSILON, HALF_SIDE = 0.25, 2.0


class Modes(NamedTuple):
    """`sum_i coefficient_i prod_j cos(frequency_ij x_j)` on a box on whose sides all its modes are level, and kappa."""

    half_side: float
    kappa: float
    coefficients: np.ndarray
    frequencies: np.ndarray  # (k, d)

    def __call__(self, x: np.ndarray, multiplier: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """The field (n,) at x (n, d), each mode times a function of kappa mu^2."""
        rates = self.kappa * (self.frequencies**2).sum(1)
        factors = self.coefficients * (1.0 if multiplier is None else multiplier(rates))
        total = np.zeros(len(x))
        for factor, frequency in zip(factors, self.frequencies, strict=True):
            total += factor * np.cos(x[:, frequency > 0] * frequency[frequency > 0]).prod(1)
        return total

    def at(self, x: np.ndarray, t: float) -> np.ndarray:
        """The solution of the heat equation."""
        return self(x, lambda rate: np.exp(-rate * t))

    def after_steps(self, x: np.ndarray, tau: float, n: int, order: int = 1) -> np.ndarray:
        """What exact steps make of it."""
        factor = sdirk_factor if order == 2 else lambda z: 1.0 / (1.0 + z)
        return self(x, lambda rate: factor(tau * rate) ** n)


def _modes(half_side: float, kappa: float, d: int, modes: list[tuple[float, dict[int, float]]]) -> Modes:
    frequencies = np.zeros((len(modes), d))
    for i, (_, mode) in enumerate(modes):
        for axis, frequency in mode.items():
            frequencies[i, axis - 1] = frequency
    return Modes(half_side, kappa, np.array([coefficient for coefficient, _ in modes]), frequencies)


# arXiv 2109.14851, section 4.1.1
HEAT_2D = _modes(
    math.pi / 4.0,
    0.1,
    2,
    [(4.0, {}), (-0.5, {1: 4.0}), (0.6, {2: 4.0}), (1.0, {1: 8.0, 2: 4.0}), (1.0, {1: 8.0, 2: 8.0})],
)
HEAT_8D = _modes(
    math.pi / 4.0,
    0.25,
    8,
    [
        (1.0, {}), (-0.2, {2: 8.0}), (2.0, {4: 4.0}), (-1.0, {6: 4.0}), (1.0, {8: 4.0}),
        (2.0, {1: 4.0, 3: 4.0, 8: 4.0}), (2.0, {2: 4.0, 5: 4.0, 7: 4.0}),
    ],
)  # fmt: skip


def sdirk_factor(z: np.ndarray) -> np.ndarray:
    """What a step of second order makes of a mode with tau kappa mu^2 = z."""
    stage = 1.0 / (1.0 + GAMMA * z)
    return (1.0 + (1.0 - GAMMA) / GAMMA * (stage - 1.0)) * stage


def disc_mode(x: np.ndarray) -> np.ndarray:
    """J_0 of the first radial mode on the unit disc (n,), at x (n, 2)."""
    return j0(DISC_RATE * np.linalg.norm(x, axis=1))


def torus(x: np.ndarray) -> np.ndarray:
    """A ring in [-2, 2]^2."""
    return np.tanh((0.4 - np.abs(np.linalg.norm(x, axis=-1) - 1.1)) / (math.sqrt(2.0) * EPSILON))


def four_points(x: np.ndarray) -> np.ndarray:
    """Four discs in [-2, 2]^2."""
    centres = np.array([(a, b) for a in (0.9, -0.9) for b in (0.9, -0.9)])
    distance = np.linalg.norm(x[..., None, :] - centres, axis=-1).min(-1)
    return np.tanh((0.5 - distance) / (math.sqrt(2.0) * EPSILON))


def grid(n: int) -> np.ndarray:
    """Centres (n, n, 2) of the cells of [-2, 2]^2, where cosine transforms have their nodes."""
    axis = -HALF_SIDE + (np.arange(n) + 0.5) * 2.0 * HALF_SIDE / n
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)


def allen_cahn_flow(u: np.ndarray, t: float, dt: float = 1e-4) -> np.ndarray:
    """Allen-Cahn's equation on the grid (n, n), by Strang's splitting with both parts exact."""
    n_steps = round(t / dt)
    heat = np.exp(-dt * _squares(len(u)))
    decay = math.exp(-dt / EPSILON**2)

    def half_reaction(v: np.ndarray) -> np.ndarray:
        return v / np.sqrt(v**2 + (1.0 - v**2) * decay)

    for _ in range(n_steps):
        u = half_reaction(idctn(heat * dctn(half_reaction(u), norm="ortho"), norm="ortho"))
    return u


def allen_cahn_steps(u: np.ndarray, tau: float, n_steps: int) -> np.ndarray:
    """Exact implicit steps on the grid, by a contraction: the reaction is small beside 1 / tau."""
    shift = 1.0 / EPSILON**2
    inverse = 1.0 / (1.0 + tau * _squares(len(u)) + tau * shift)
    for _ in range(n_steps):
        before = u
        for _ in range(200):
            right = before - tau * ((u**3 - u) / EPSILON**2 - shift * u)
            after = idctn(inverse * dctn(right, norm="ortho"), norm="ortho")
            change, u = float(np.abs(after - u).max()), after
            if change < 1e-12:
                break
    return u


def allen_cahn_energy(u: np.ndarray) -> float:
    """Of a field on the grid, the gradient by its modes."""
    area = (2.0 * HALF_SIDE) ** 2 / u.size
    modes = dctn(u, norm="ortho")
    return float(area * (0.5 * (_squares(len(u)) * modes**2).sum() + ((u**2 - 1.0) ** 2).sum() / (4.0 * EPSILON**2)))


def at_points(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A field on the grid at points (k, 2) of the square, by its cosine series."""
    n = len(u)
    modes = dctn(u, norm="ortho")
    scale = np.full(n, math.sqrt(2.0 / n))
    scale[0] = math.sqrt(1.0 / n)
    waves = np.pi * np.arange(n) / (2.0 * HALF_SIDE)
    first, second = (scale * np.cos((x[:, i, None] + HALF_SIDE) * waves) for i in (0, 1))
    return np.einsum("ki,ij,kj->k", first, modes, second, optimize=True)


def _squares(n: int) -> np.ndarray:
    """-Laplacian of the cosine modes."""
    waves = (np.pi * np.arange(n) / (2.0 * HALF_SIDE)) ** 2
    return waves[:, None] + waves
