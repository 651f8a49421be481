"""Pareto-smoothed importance sampling: how heavy is the tail of the importance weights?

The largest weights are fitted by a generalised Pareto law; its shape, k-hat, says whether averages with
these weights can be believed (below about 0.7) and the fitted quantiles replace the largest weights.

* Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto smoothed importance sampling", JMLR 25(72), 2024: tail
  length, weakly informative prior on k, smoothing.
* Zhang, Stephens, "A new and efficient estimation method for the generalized Pareto distribution",
  Technometrics 51(3), 2009: the quasi-Bayesian fit.

Sign: a large log weight is a large weight. numpy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jkosampler.errors import ArgumentError

__all__ = ["as_log_weights", "fit_generalized_pareto", "pareto_k", "psis"]

_MIN_TAIL = 5
_FLAT = 1e-6
_LOG_TINY = float(np.log(np.finfo(float).tiny))
# Vehtari et al. 2024, section 2.3: the prior on k is worth ten observations at k = 1/2.
_PRIOR_COUNT, _PRIOR_K = 10, 0.5


@np.errstate(under="ignore")  # of weights that are nothing beside the largest
def psis(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smooth the largest importance weights.

    Parameters
    ----------
    log_weights : ndarray (n,)
        log target - log proposal at draws of the proposal, up to a constant; -inf is legal.

    Returns
    -------
    smoothed : ndarray (n,)
        Smoothed log weights, normalised so that their exponentials sum to one. They are the raw ones,
        normalised, where no tail can be fitted (k_hat infinite).
    k_hat : float
        Shape of the tail. ``-inf`` when the largest weights are equal to rounding (a bounded tail, the
        perfect case); ``inf`` when fewer than five draws make up the tail, so that nothing is known.

    Raises
    ------
    ArgumentError
        `log_weights` is not one-dimensional, holds NaN or +inf, or is -inf everywhere.

    Notes
    -----
    The tail is the ceil(min(n/5, 3 sqrt(n))) largest weights, less those equal to the next one; weights
    e^-708 times the largest never belong to it.

    Examples
    --------
    >>> import numpy as np
    >>> smoothed, k_hat = psis(np.zeros(100))
    >>> float(np.exp(smoothed).sum().round(12)), k_hat
    (1.0, -inf)
    """
    raw = as_log_weights(log_weights)
    shifted = raw - raw.max()
    k_hat = _smooth_tail(shifted, rounding=max(_FLAT, 64 * np.finfo(float).eps * abs(float(raw.max()))))
    return shifted - np.log(np.exp(shifted).sum()), k_hat


def pareto_k(log_weights: np.ndarray) -> float:
    """Shape k-hat of the tail of the importance weights, see `psis`."""
    return psis(log_weights)[1]


def as_log_weights(log_weights: Any) -> np.ndarray:
    """Check log weights and return them as a float64 array (n,), n >= 2.

    Raises
    ------
    ArgumentError
        Fewer than two weights, not one-dimensional, NaN or +inf, or -inf everywhere.
    """
    values = np.asarray(log_weights, dtype=float)
    if values.ndim != 1 or len(values) < 2:
        raise ArgumentError(f"log_weights must have shape (n,) with n >= 2, not {values.shape}.")
    bad = np.flatnonzero(np.isnan(values) | (values == np.inf))
    if len(bad):
        raise ArgumentError(
            f"log_weights is NaN or +inf at {len(bad)} of {len(values)} draws, first at index {bad[0]}. "
            "Make the log target finite (or -inf) there."
        )
    if not np.any(np.isfinite(values)):
        raise ArgumentError(
            f"log_weights is -inf at all {len(values)} draws: no draw lies where the target is positive. "
            "Start from an `initial` law that overlaps the target."
        )
    return values


def _smooth_tail(shifted: np.ndarray, rounding: float) -> float:
    """Replace, in place, the tail of log weights whose maximum is 0 by fitted quantiles; return k-hat."""
    n = len(shifted)
    length = int(np.ceil(min(n / 5, 3 * np.sqrt(n))))
    order = np.argsort(shifted, kind="stable")
    # With too short a tail only weights that are all equal can be judged.
    cutoff = float(shifted[order[-length - 1] if length >= _MIN_TAIL else order[0]])
    if -cutoff <= rounding:
        return -np.inf
    if length < _MIN_TAIL:
        return np.inf
    cutoff = max(cutoff, _LOG_TINY)
    tail = order[shifted[order] > cutoff]
    if len(tail) < _MIN_TAIL:
        return np.inf
    # In units of the cutoff the excesses neither underflow nor cancel.
    k_hat, sigma = fit_generalized_pareto(np.expm1(shifted[tail] - cutoff))
    if np.isfinite(k_hat) and sigma > 0:
        probabilities = (np.arange(len(tail)) + 0.5) / len(tail)
        shifted[tail] = np.minimum(cutoff + _log1p_quantile(probabilities, k_hat, sigma), 0.0)
    return k_hat


def _log1p_quantile(probabilities: np.ndarray, k: float, sigma: float) -> np.ndarray:
    """log(1 + q), q the quantiles of the generalised Pareto law with shape k (k > 0: heavy tail)."""
    exponential = -np.log1p(-probabilities)
    with np.errstate(over="ignore"):
        excess = exponential if abs(k) < np.finfo(float).eps else np.expm1(k * exponential) / k
        return np.log1p(sigma * excess)


def fit_generalized_pareto(excess: np.ndarray) -> tuple[float, float]:
    """Fit shape and scale of a generalised Pareto law to excesses over a threshold.

    Zhang and Stephens (2009) average the profile likelihood over b = -k / sigma on a grid fixed by the
    data; the shape is then shrunk towards 1/2 with the weight of ten observations.

    Parameters
    ----------
    excess : ndarray (m,)
        Positive, in ascending order.

    Returns
    -------
    k, sigma : float
        Shape (positive: heavy tail; moments of order below 1/k exist) and scale.
    """
    m = len(excess)
    size = 30 + int(np.sqrt(m))
    quartile = excess[int(m / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + (1 - np.sqrt(size / (np.arange(size) + 0.5))) / (3 * quartile)
    shape = np.log1p(-grid[:, None] * excess).mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_likelihood = m * (np.log(-grid / shape) - shape - 1)
    usable = np.isfinite(log_likelihood)
    grid, log_likelihood = grid[usable], log_likelihood[usable]
    weight = np.exp(log_likelihood - log_likelihood.max())
    b = float(weight @ grid / weight.sum())
    k = float(np.log1p(-b * excess).mean())
    sigma = -k / b if b else float(excess.mean())
    return (m * k + _PRIOR_COUNT * _PRIOR_K) / (m + _PRIOR_COUNT), sigma
