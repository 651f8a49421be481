"""Interacting ensembles that follow the Kalman-Wasserstein flow by Euler steps: EKS and ALDI.

All particles x_j move along the drift, preconditioned by their own covariance C, and are spread by sqrt(2 C) noise.

* EKS: G. Garbuno-Inigo, F. Hoffmann, W. Li, A. M. Stuart (2020), arXiv 1903.08866. The derivative of G is the
  regression of its outputs on the particles, sum_k <G(x_k) - G_mean, G(x_j) - y> (x_k - x_mean) / J; the prior's part
  of the drift is implicit; the time step is `step` over the Frobenius norm of the products.
* ALDI: A. Garbuno-Inigo, N. Nuesken, S. Reich (2020), SIAM J. Appl. Dyn. Syst. 19. The finite-ensemble term
  (d + 1) / J (x_j - x_mean) makes the posterior invariant for any J > d + 1; the gradient is given, or the same
  regression is in its place (`aldi_without_gradient`). Steps keep the longest drift at a part of the ensemble's width.

Each is an endless iterator over times and the ensembles (J, d) then, without that of the start. It calls its function
once a step, for the whole ensemble. Forward models and observations are in units of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

__all__ = ["aldi", "aldi_without_gradient", "eks", "snapshots"]

Function = Callable[[np.ndarray], np.ndarray]
Walk = Iterator[tuple[float, np.ndarray]]


def eks(
    x: np.ndarray,
    predicted: Function,
    y: np.ndarray,
    prior_std: float,
    rng: np.random.Generator,
    step: float = 1.0,
) -> Walk:
    """The ensemble Kalman sampler from particles x (J, d).

    `predicted` maps (J, d) to G / noise (J, k); y (k,) is over the noise, too; the prior is N(0, prior_std^2 I).
    """
    now = 0.0
    while True:
        products = _products(predicted(x), y)
        h = step / (np.linalg.norm(products) + 1e-8)
        centred, covariance = _covariance(x)
        towards = x - h * products.T @ centred
        towards = np.linalg.solve(np.eye(x.shape[1]) + h * covariance / prior_std**2, towards.T).T
        x = towards + math.sqrt(2.0 * h) * _noise(covariance, len(x), rng)
        now += h
        yield now, x


def aldi(x: np.ndarray, gradient: Function, rng: np.random.Generator, share: float = 0.1) -> Walk:
    """ALDI with the gradient (J, d) of the log density, from particles x (J, d).

    A step's longest drift is at most `share` of the ensemble's width, its length at most half of `share`.
    """
    return _aldi(x, lambda x, centred, covariance: gradient(x) @ covariance, rng, share)


def aldi_without_gradient(
    x: np.ndarray,
    predicted: Function,
    y: np.ndarray,
    prior_std: float,
    rng: np.random.Generator,
    share: float = 0.1,
) -> Walk:
    """ALDI with the regression for a derivative; the arguments are those of `eks` and `aldi`."""

    def drift(x: np.ndarray, centred: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        return -_products(predicted(x), y).T @ centred - x @ covariance / prior_std**2

    return _aldi(x, drift, rng, share)


def snapshots(walk: Walk, n_steps: int, n: int = 10) -> np.ndarray:
    """About n ensembles, (n J, d), evenly from the second half of the first n_steps."""
    wanted = set(np.linspace(n_steps // 2, n_steps - 1, n).astype(int).tolist())
    return np.concatenate([x for i, (_, x) in enumerate(islice(walk, n_steps)) if i in wanted])


def _aldi(
    x: np.ndarray,
    drift_of: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    rng: np.random.Generator,
    share: float,
) -> Walk:
    now = 0.0
    while True:
        centred, covariance = _covariance(x)
        drift = drift_of(x, centred, covariance) + (x.shape[1] + 1) / len(x) * centred
        reach = math.sqrt((drift**2 / covariance.diagonal()).mean(1).max())
        h = min(share / reach, 0.5 * share)  # a Gaussian relaxes in a time of one
        x = x + h * drift + math.sqrt(2.0 * h) * _noise(covariance, len(x), rng)
        now += h
        yield now, x


def _products(outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    """<G(x_k) - G_mean, G(x_j) - y> / J, (J, J): rows are k."""
    return (outputs - outputs.mean(0)) @ (outputs - y).T / len(outputs)


def _covariance(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Particles less their mean, and their covariance."""
    centred = x - x.mean(0)
    return centred, centred.T @ centred / len(x)


def _noise(covariance: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n draws of N(0, covariance), which may be singular."""
    values, vectors = np.linalg.eigh(covariance)
    return rng.standard_normal((n, len(values))) @ (vectors * np.sqrt(values.clip(min=0.0))).T
