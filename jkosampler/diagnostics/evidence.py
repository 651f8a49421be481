"""Evidence, evidence lower bound and effective sample size from importance weights.

With draws x_i of a normalised law q and w_i = p~(x_i) / q(x_i) for an unnormalised target p~ = Z p,

    elbo = mean log w = log Z - KL(q | p),      log_evidence = log mean w,
    ess = (sum w)^2 / sum w^2,                  log_evidence_se = sqrt(1/ess - 1/n),

the last one being the delta-method error of log mean w. It knows the drawn weights only: `tail_error` is what
the weights beyond them may add. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jkosampler.diagnostics.psis import as_log_weights

__all__ = ["Evidence", "evidence", "tail_error"]


@dataclass(frozen=True)
class Evidence:
    """What the importance weights say about the normalising constant, in nats.

    Attributes
    ----------
    n : int
        Number of draws.
    elbo, elbo_se : float
        Evidence lower bound and its standard error; -inf and NaN when a draw has weight zero.
    log_evidence, log_evidence_se : float
        Logarithm of the normalising constant and its standard error.
    ess, ess_fraction : float
        Effective number of draws, between 1 and n, and its ratio to n.
    """

    n: int
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    ess: float
    ess_fraction: float


@np.errstate(under="ignore")  # of weights that are nothing beside the largest
def evidence(log_weights: np.ndarray) -> Evidence:
    """Estimate log Z, its lower bound and the effective sample size.

    Parameters
    ----------
    log_weights : ndarray (n,)
        log unnormalised target - log normalised proposal at iid draws of the proposal; -inf is legal.

    Raises
    ------
    ArgumentError
        `log_weights` is not one-dimensional with n >= 2, holds NaN or +inf, or is -inf everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> result = evidence(np.log([1.0, 3.0]))
    >>> round(result.log_evidence, 6), round(result.ess, 6)
    (0.693147, 1.6)
    """
    values = as_log_weights(log_weights)
    n = len(values)
    largest = values.max()
    relative = np.exp(values - largest)
    mean = float(relative.mean())
    ess = float(relative.sum() ** 2 / (relative**2).sum())
    finite = bool(np.isfinite(values).all())
    return Evidence(
        n=n,
        elbo=float(values.mean()),
        elbo_se=float(values.std(ddof=1) / np.sqrt(n)) if finite else float("nan"),
        log_evidence=float(largest + np.log(mean)),
        # The same as sqrt(1/ess - 1/n), without its cancellation for nearly equal weights.
        log_evidence_se=float(relative.std() / (mean * np.sqrt(n))),
        ess=ess,
        ess_fraction=ess / n,
    )


def tail_error(largest_weight: float, k_hat: float, n: int) -> float:
    """Error of log mean w by the weights beyond the largest of n draws, if they go on as a Pareto law does.

    The excess of a weight over the mean weight, exceeded with probability s < 1/n, is taken to be
    (largest_weight - 1) (n s)^-k; its integral over those s is (largest_weight - 1) / (n (1 - k)), and
    infinite for k >= 1, where no finite error can be stated.

    Parameters
    ----------
    largest_weight : float
        The largest of the n weights over their mean.
    k_hat : float
        Shape of their tail, see `psis`.
    n : int
        Number of draws.
    """
    if k_hat == -np.inf:
        return 0.0
    return (largest_weight - 1) / (n * (1 - k_hat)) if k_hat < 1 else np.inf
