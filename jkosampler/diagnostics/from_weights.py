"""The report of a fitted law, built from the importance weights of its draws. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jkosampler.diagnostics.evidence import evidence, tail_error
from jkosampler.diagnostics.psis import as_log_weights, pareto_k
from jkosampler.diagnostics.report import REFIT, REWEIGHT, TAIL_WARNING, Report, k_threshold, listed, nearly_equal
from jkosampler.diagnostics.stationarity import Stationarity
from jkosampler.errors import ArgumentError

__all__ = ["FEWEST_DRAWS", "report_from_log_weights"]

# Fewer draws leave fewer than five in the tail (n/5), and k-hat says nothing.
FEWEST_DRAWS = 25


def report_from_log_weights(
    log_weights: np.ndarray,
    *,
    stationarity: Stationarity | float | None,
    converged: bool,
    dim: int,
    warnings: Sequence[str] = (),
    n_undefined: int = 0,
    missing_evidence: str | None = None,
) -> Report:
    """Build the report from importance weights at iid draws of the fitted law.

    Parameters
    ----------
    log_weights : ndarray (n,)
        log unnormalised target - log density of the fitted law; -inf is legal. n >= 25.
    stationarity : Stationarity, float or None
        See `jkosampler.diagnostics.estimate_stationarity`; a float has no standard error; None when it can't be
        computed.
    converged : bool
        Did the fit end by its stopping rule?
    dim : int
        Dimension of the draws.
    warnings : sequence of str
        Anything else that a user must know; draws of weight zero, the two below, and nearly equal weights with a
        high k-hat are added here.
    n_undefined : int
        Draws at which the law's own density is undefined because a map folds; `log_weights` leaves them out.
    missing_evidence : str, optional
        A sentence, when something else than these draws has shown mass that the law lacks.

    Raises
    ------
    ArgumentError
        `log_weights` is not one-dimensional with n >= 25, holds NaN or +inf, or is -inf everywhere.
    """
    values = as_log_weights(log_weights)
    _refuse_few(len(values), n_undefined)
    found, k_hat = evidence(values), pareto_k(values)
    largest = float(np.exp(values.max() - found.log_evidence))
    heavy = not k_hat < k_threshold(found.n)
    value, standard_error = _with_error(stationarity)
    notes = [*warnings, *_notes(values, n_undefined, missing_evidence)]
    if heavy and nearly_equal(largest, k_hat):
        notes.append(TAIL_WARNING)
    return Report(
        n=found.n,
        dim=dim,
        pareto_k=k_hat,
        ess=found.ess,
        ess_fraction=found.ess_fraction,
        log_evidence=found.log_evidence,
        log_evidence_se=found.log_evidence_se + (tail_error(largest, k_hat, found.n) if heavy else 0.0),
        elbo=found.elbo,
        elbo_se=found.elbo_se,
        largest_weight=largest,
        stationarity=value,
        stationarity_se=standard_error,
        converged=bool(converged),
        warnings=notes,
        n_undefined=n_undefined,
        missing_evidence=missing_evidence,
    )


def _refuse_few(n: int, n_undefined: int) -> None:
    if n < FEWEST_DRAWS:
        of = f" ({n_undefined} more have no density, where the fitted law folds)" if n_undefined else ""
        raise ArgumentError(f"n={n} is too few draws for a verdict{of}: take at least {FEWEST_DRAWS}, better 4000.")


def _with_error(stationarity: Stationarity | float | None) -> Stationarity:
    if isinstance(stationarity, Stationarity):
        return stationarity
    return Stationarity(float("nan") if stationarity is None else float(stationarity), float("nan"))


def _notes(values: np.ndarray, n_undefined: int, missing_evidence: str | None) -> list[str]:
    notes = [] if missing_evidence is None else [missing_evidence]
    if n_undefined:
        notes.append(
            f"{n_undefined} of {len(values) + n_undefined} draws are left out: a map of the flow folds there, and "
            f"the law's density is undefined. More steps won't mend it: refit with {listed(REFIT)}."
        )
    outside = int(np.isneginf(values).sum())
    if outside:
        notes.append(
            f"{outside} of {len(values)} draws lie where the target is zero (log density -inf). "
            f"{REWEIGHT} leaves them out."
        )
    return notes
