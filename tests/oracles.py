"""Closed forms of gradient flows between Gaussians, in numpy: shares no code with the package.

The energy is `KL(. | N(b, A^-1))`, the start N(m, S). A step minimises `KL + d^2 / (2 tau)`; its map is
`T(x) = m' + K (x - m)`. `WORKED` is the example behind all printed values; S and A do not commute.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "WORKED",
    "GaussianStep",
    "Problem",
    "kalman_eigenvalue",
    "kalman_flow",
    "kalman_step",
    "kl",
    "midpoint_step",
    "ornstein_uhlenbeck",
    "random_problem",
    "root",
    "scalar_step",
    "sdirk_step",
    "wasserstein_squared",
    "wasserstein_step",
]


class Problem(NamedTuple):
    """Precision A and mean b of the target, mean m and covariance S of the start."""

    A: np.ndarray
    b: np.ndarray
    m: np.ndarray
    S: np.ndarray


class GaussianStep(NamedTuple):
    """Mean m' and covariance S' after a step, and the matrix K of its map."""

    mean: np.ndarray
    covariance: np.ndarray
    matrix: np.ndarray


WORKED = Problem(
    A=np.array([[2.0, 0.5], [0.5, 1.0]]),
    b=np.array([1.0, -1.0]),
    m=np.array([0.0, 0.5]),
    S=np.array([[1.0, 0.3], [0.3, 0.5]]),
)


def random_problem(d: int, condition: float, seed: int) -> Problem:
    """Precision and start covariance of one condition number, along random axes: they don't commute."""
    rng = np.random.default_rng(seed)

    def positive() -> np.ndarray:
        axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
        return (axes * np.geomspace(1.0, condition, d)) @ axes.T

    return Problem(positive(), rng.standard_normal(d), rng.standard_normal(d), positive())


def ornstein_uhlenbeck(p: Problem, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at time t of the Wasserstein flow, the Ornstein-Uhlenbeck process."""
    decay = _of_symmetric(lambda a: np.exp(-a * t), p.A)
    filled = _of_symmetric(lambda a: -np.expm1(-2.0 * a * t) / a, p.A)
    return p.b + decay @ (p.m - p.b), decay @ p.S @ decay + filled


def wasserstein_step(p: Problem, tau: float) -> GaussianStep:
    """The exact W2 step: `tau N^2 + N = S^(-1/2) (I + tau A) S^(-1/2)`, `K = S^(-1/2) N^-1 S^(-1/2)`."""
    d = len(p.m)
    drift = np.eye(d) + tau * p.A
    inverse_root = np.linalg.inv(root(p.S))
    n = (root(np.eye(d) + 4.0 * tau * inverse_root @ drift @ inverse_root) - np.eye(d)) / (2.0 * tau)
    k = inverse_root @ np.linalg.inv(n) @ inverse_root
    mean = np.linalg.solve(drift, p.m + tau * p.A @ p.b)
    return GaussianStep(mean, k @ p.S @ k, k)


def midpoint_step(p: Problem, tau: float) -> GaussianStep:
    """Second order: the W2 step of size tau / 2, gone twice as far."""
    half = wasserstein_step(p, 0.5 * tau)
    k = 2.0 * half.matrix - np.eye(len(p.m))
    return GaussianStep(2.0 * half.mean - p.m, k @ p.S @ k, k)


def scalar_step(sigma: float, tau: float, a: float) -> float:
    """Standard deviation after a W2 step on the line, target precision a >= 0 (0: heat)."""
    return (sigma + np.sqrt(sigma**2 + 4.0 * tau * (1.0 + tau * a))) / (2.0 * (1.0 + tau * a))


def kalman_flow(p: Problem, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance at time t of the Kalman-Wasserstein flow."""
    start = np.linalg.inv(p.S)
    covariance = np.linalg.inv(p.A + np.exp(-2.0 * t) * (start - p.A))
    values, vectors = np.linalg.eig(covariance @ start)
    half = (vectors * np.sqrt(values)) @ np.linalg.inv(vectors)
    return p.b + np.exp(-t) * half @ (p.m - p.b), covariance


def kalman_step(p: Problem, tau: float, metric: np.ndarray | None = None) -> GaussianStep:
    """The exact Kalman-Wasserstein step, C = S frozen at its start or given: the W2 step in `y = C^(-1/2) x`."""
    c = root(p.S if metric is None else metric)
    back = np.linalg.inv(c)
    white = wasserstein_step(Problem(c @ p.A @ c, back @ p.b, back @ p.m, back @ p.S @ back), tau)
    return GaussianStep(c @ white.mean, c @ white.covariance @ c, c @ white.matrix @ back)


def sdirk_step(p: Problem, tau: float, metric: str) -> tuple[Problem, Problem]:
    """A step of second order: the laws at its inner stage, time (1 - g) tau, and at its end, g = 1 - 1 / sqrt(2).

    Runge-Kutta with the rows (g), (1 - g, g), both slopes implicit: two JKO steps of size g tau, the first of which is
    gone (1 - g) / g as far. For the Kalman metric C is that at the end of a JKO step, foreseen with C = S.
    """
    gamma, laws = 1.0 - np.sqrt(0.5), []
    for factor in ((1.0 - gamma) / gamma, 1.0):
        if metric == "wasserstein":
            step = wasserstein_step(p, gamma * tau)
        else:
            step = kalman_step(p, gamma * tau, kalman_step(p, gamma * tau).covariance)
        k = np.eye(len(p.m)) + factor * (step.matrix - np.eye(len(p.m)))
        p = p._replace(m=p.m + factor * (step.mean - p.m), S=k @ p.S @ k.T)
        laws.append(p)
    return laws[0], laws[1]


def kalman_eigenvalue(alpha: float, tau: float) -> float:
    """Where a Kalman step takes an eigenvalue alpha of S A; its fixed point is 1."""
    return 4.0 * tau**2 * alpha / (np.sqrt(1.0 + 4.0 * tau + 4.0 * tau**2 * alpha) - 1.0) ** 2


def kl(p: Problem) -> float:
    """`KL(N(m, S) | N(b, A^-1))`."""
    product = p.A @ p.S
    shift = p.m - p.b
    return 0.5 * float(np.trace(product) - len(shift) - np.linalg.slogdet(product)[1] + shift @ p.A @ shift)


def wasserstein_squared(m: np.ndarray, S: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """Squared Wasserstein distance of N(m, S) and N(mean, covariance)."""
    half = root(S)
    shift = mean - m
    return float(shift @ shift + np.trace(S + covariance - 2.0 * root(half @ covariance @ half)))


def root(matrix: np.ndarray) -> np.ndarray:
    """Symmetric square root of a symmetric positive matrix."""
    return _of_symmetric(np.sqrt, matrix)


def _of_symmetric(function: np.ufunc, matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return (vectors * function(values)) @ vectors.T
