"""Exact posterior of the elliptic problem by quadrature, in numpy: shares no code with the package.

Given u1 the posterior of u2 is Gaussian, so u2 is integrated in closed form; a trapezium rule does u1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp, ndtr

__all__ = ["exact_elliptic"]

POINTS = np.array([0.25, 0.75])
LEVELS = np.array([0.05, 0.5, 0.95])


def exact_elliptic(
    noise_std: float = 0.1,
    prior_std: float = 10.0,
    y: tuple[float, float] = (27.5, 79.7),
    n_nodes: int = 400_001,
) -> dict[str, Any]:
    """Evidence and marginals of (u1, u2) given y = G(u) + N(0, noise_std^2), prior N(0, prior_std^2 I).

    Returns
    -------
    dict
        `log_evidence` = log p(y); `log_z_paper` = log int exp(-Phi), without constants; `mean`, `sd` (2,);
        `quantiles_u1`, `quantiles_u2` (3,) at 5, 50, 95 %; `plateau_mass` = P(u1 > -1).
    """
    u1 = np.linspace(-8.0, 60.0, n_nodes)
    residual = np.asarray(y)[:, None] - 0.5 * (POINTS - POINTS**2)[:, None] * np.exp(-u1)
    precision = POINTS @ POINTS / noise_std**2 + 1 / prior_std**2
    centre = POINTS @ residual / (noise_std**2 * precision)
    misfit = (residual**2).sum(axis=0) / noise_std**2 - precision * centre**2 + u1**2 / prior_std**2
    log_integrand = -0.5 * misfit + 0.5 * np.log(2 * np.pi / precision)
    log_z = float(logsumexp(log_integrand) + np.log(u1[1] - u1[0]))  # both ends carry no mass
    weights = np.exp(log_integrand - logsumexp(log_integrand))
    mean = np.array([weights @ u1, weights @ centre])
    variance = np.array([weights @ (u1 - mean[0]) ** 2, weights @ (centre - mean[1]) ** 2 + 1 / precision])
    constants = -np.log(2 * np.pi * noise_std**2) - np.log(2 * np.pi * prior_std**2)
    cumulative = np.cumsum(weights) - 0.5 * weights
    return {
        "log_evidence": log_z + float(constants),
        "log_z_paper": log_z,
        "mean": mean,
        "sd": np.sqrt(variance),
        "quantiles_u1": np.interp(LEVELS, cumulative, u1),
        "quantiles_u2": _mixture_quantiles(weights, centre, precision**-0.5),
        "plateau_mass": float(weights[u1 > -1.0].sum()),
    }


def _mixture_quantiles(weights: np.ndarray, centres: np.ndarray, scale: float) -> np.ndarray:
    """Quantiles of a mixture of Gaussians of one scale."""
    kept = weights > 1e-16 * weights.max()
    weights, centres = weights[kept] / weights[kept].sum(), centres[kept]
    low, high = centres.min() - 10 * scale, centres.max() + 10 * scale
    return np.array(
        [brentq(lambda q, p=level: weights @ ndtr((q - centres) / scale) - p, low, high) for level in LEVELS]
    )
