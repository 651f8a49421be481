"""Certificates that need no reference: how far from the target, how well was a step solved?

`stationarity` is the relative Fisher information in the Kalman-Wasserstein metric (Garbuno-Inigo, Hoffmann,
Li, Stuart, "Interacting Langevin diffusions", 2020): the rate at which that flow dissipates KL.

`step_identities` are first-order conditions of the exact JKO step of KL(. | e^-V / Z) from x ~ rho to
T(x) ~ rho', obtained by varying the step along translations and linear maps:

    C^-1 E[T - x] = -tau E[grad V(T)],
    C^-1 E[(T - x)(T - c)^T] = tau (I - E[grad V(T)(T - c)^T])      for every constant c,

with C = I in the Wasserstein metric and C the frozen covariance in the Kalman one. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jkosampler.errors import ArgumentError

__all__ = ["Stationarity", "StepIdentities", "estimate_stationarity", "stationarity", "step_identities"]


def stationarity(relative_score: np.ndarray, covariance: np.ndarray) -> float:
    """Relative Fisher information E[g' C g] with g = grad log rho - grad log target.

    It is zero exactly at the target, does not change under affine maps of the space, and equals -dKL/dt of
    the Kalman-Wasserstein flow. When -Hess log target >= C^-1 everywhere, KL(rho | target) <= value / 2
    (log-Sobolev inequality), and no mean is off by more than sqrt(value) sd (Talagrand); without that it bounds
    nothing: modes that rho misses leave no trace. It is a mean of heavy tails, see `estimate_stationarity`.

    Parameters
    ----------
    relative_score : ndarray (n, d)
        g at draws of rho.
    covariance : ndarray (d, d)
        C, usually the covariance of the draws; symmetric, positive semi-definite.

    Raises
    ------
    ArgumentError
        An argument has a wrong shape or is not finite, or `covariance` is not symmetric and positive.
    """
    return estimate_stationarity(relative_score, covariance).value


class Stationarity(NamedTuple):
    """A relative Fisher information and its Monte Carlo standard error.

    The value is the mean of g' C g over the draws, >= 0. The error is NaN for one draw; where a few draws decide the
    mean it is of the size of the value, and too small more often than not.
    """

    value: float
    standard_error: float


def estimate_stationarity(relative_score: np.ndarray, covariance: np.ndarray) -> Stationarity:
    """Relative Fisher information with its standard error; arguments and errors are those of `stationarity`."""
    g = _as_points("relative_score", relative_score)
    c = _as_covariance(covariance, g.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):  # of a law as far off as that it is all that can be said
        values = np.einsum("ni,ij,nj->n", g, c, g)
        n = len(values)
        return Stationarity(float(values.mean()), float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan"))


@dataclass(frozen=True)
class StepIdentities:
    """How far a step is from the first-order conditions of the exact step, see `step_identities`.

    Attributes
    ----------
    translation : ndarray (d,)
        C^-1 E[T - x] + tau E[grad V(T)], zero at the exact step.
    matrix : ndarray (d, d)
        C^-1 E[(T - x)(T - c)^T] - tau (I - E[grad V(T)(T - c)^T]), zero at the exact step.
    residual : float
        Both in one number, per dimension and relative to tau: 0 at the exact step, of order 1 when a step far
        from the target was not solved at all; Monte Carlo noise about sqrt((d + 2) / n).
    """

    translation: np.ndarray
    matrix: np.ndarray
    residual: float


def step_identities(
    displacement: np.ndarray,
    moved: np.ndarray,
    grad_potential: np.ndarray,
    step_size: float,
    covariance: np.ndarray | None = None,
) -> StepIdentities:
    """Check a Wasserstein or Kalman-Wasserstein step of KL against its first-order conditions.

    Parameters
    ----------
    displacement : ndarray (n, d)
        T(x) - x, x drawn from the law at the start of the step.
    moved : ndarray (n, d)
        T(x).
    grad_potential : ndarray (n, d)
        grad V = -grad log target at T(x).
    step_size : float
        tau of the functional KL + d^2 / (2 tau), in flow time.
    covariance : ndarray (d, d) or None
        The covariance C frozen at the start of the step (Kalman); None: the Wasserstein metric.

    Returns
    -------
    StepIdentities

    Raises
    ------
    ArgumentError
        An argument has a wrong shape, is not finite, or a covariance is singular.

    Notes
    -----
    The origin c is the mean of T(x). Another origin adds translation (outer) (mean - c) to the matrix, so far
    from the origin the noise of the translation would swamp it; centred, the matrix is also unchanged when
    the whole space is shifted.

    For `residual` both are expressed in z = S^(-1/2) x, S the covariance at the start of the step (C in the
    Kalman metric, that of the points x in the Wasserstein metric): translation -> S^(1/2) translation,
    matrix -> S^(1/2) matrix S^(-1/2). Their Euclidean and Frobenius norms, joined and divided by
    tau sqrt(d), are then free of units, and in the Kalman metric free of every affine map.
    """
    shift, points, gradient = _same_shape(displacement, moved, grad_potential)
    if not (np.isfinite(step_size) and step_size > 0):
        raise ArgumentError(f"step_size must be positive and finite, not {step_size!r}.")
    n, d = points.shape
    centred = points - points.mean(axis=0)
    if covariance is None:
        start = points - shift
        spread = start - start.mean(axis=0)
        root, inverse_root = _roots(spread.T @ spread / n, "The covariance of moved - displacement")
        force = shift / step_size + gradient
    else:
        root, inverse_root = _roots(_as_covariance(covariance, d), "covariance")
        force = shift @ (inverse_root @ inverse_root) / step_size + gradient
    translation = force.mean(axis=0)
    matrix = force.T @ centred / n - np.eye(d)
    white = np.concatenate([(root @ translation)[:, None], root @ matrix @ inverse_root], axis=1)
    return StepIdentities(
        translation=step_size * translation,
        matrix=step_size * matrix,
        residual=float(np.linalg.norm(white) / np.sqrt(d)),
    )


def _roots(covariance: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric square root and its inverse."""
    values, vectors = np.linalg.eigh(covariance)
    if values[0] <= len(values) * np.finfo(float).eps * max(values[-1], 0.0):
        raise ArgumentError(f"{name} is singular: pass more points, or points that spread in every direction.")
    return (vectors * np.sqrt(values)) @ vectors.T, (vectors / np.sqrt(values)) @ vectors.T


def _same_shape(displacement: Any, moved: Any, grad_potential: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = {"displacement": displacement, "moved": moved, "grad_potential": grad_potential}
    shift, points, gradient = (_as_points(name, value) for name, value in names.items())
    for name, value in (("displacement", shift), ("grad_potential", gradient)):
        if value.shape != points.shape:
            raise ArgumentError(f"{name} must have the shape of moved, {points.shape}, not {value.shape}.")
    return shift, points, gradient


def _as_points(name: str, value: Any) -> np.ndarray:
    points = np.asarray(value, dtype=float)
    if points.ndim != 2 or 0 in points.shape:
        raise ArgumentError(f"{name} must have shape (n, d) with n, d >= 1, not {points.shape}.")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise ArgumentError(
            f"{name} is not finite at {len(bad)} of {len(points)} points, first in row {bad[0]}. "
            "Leave those points out, or make the log target differentiable there."
        )
    return points


def _as_covariance(value: Any, d: int) -> np.ndarray:
    matrix = np.asarray(value, dtype=float)
    if matrix.shape != (d, d):
        raise ArgumentError(f"covariance must have shape ({d}, {d}), not {matrix.shape}.")
    scale = np.abs(matrix).max()
    if not np.isfinite(scale) or np.abs(matrix - matrix.T).max() > 1e-6 * scale:
        raise ArgumentError("covariance must be finite and symmetric.")
    matrix = (matrix + matrix.T) / 2
    if np.linalg.eigvalsh(matrix)[0] < -1e-6 * scale:
        raise ArgumentError("covariance must be positive semi-definite.")
    return matrix
