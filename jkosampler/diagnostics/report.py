"""The verdict: may a non-expert use these draws, and if not, what to do?

`Report` gathers the diagnostics of a fitted law against its target. A draw is judged by

* Pareto k-hat < min(1 - 1/log10 n, 0.7): the importance weights have an average that n draws can find
  (Vehtari, Simpson, Gelman, Yao, Gabry, JMLR 25(72), 2024);
* the effective fraction f = ESS / n: for every function g, |E_target g - E_draws g| <= sd(g) sqrt(1/f - 1)
  by Cauchy-Schwarz, since 1/f - 1 estimates the chi-square divergence of the target from the draws;
* convergence of the fit, its stationarity, and whatever the caller warns of.

numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jkosampler.diagnostics.evidence import evidence
from jkosampler.diagnostics.psis import as_log_weights, pareto_k

__all__ = ["Report", "report_from_log_weights"]

# Bias of unweighted means at most a third of a standard deviation; beyond three, the draws are not it.
_GOOD_FRACTION, _BAD_FRACTION = 0.9, 0.1
# KL <= 0.05 a dimension for a target as log-concave as the Gaussian of the draws' covariance.
_STATIONARY_PER_DIM = 0.1
# Fewer draws leave fewer than five in the tail (n/5), and k-hat says nothing.
_FEWEST_DRAWS = 25
_BLIND_SPOT = (
    "What these numbers can't see: they are computed at the sampler's own draws, so a mode that no\n"
    "  draw reached leaves no trace in them. To look from outside, fit again with a wider `initial` or\n"
    "  another `random_state` and compare the log evidence."
)
_MORE_STEPS = "`sampler.extend(10)` (more steps)"
_REFINE = (_MORE_STEPS, "a larger `n_particles`", "a wider `initial`")
_REWEIGHT = "weighing the draws by exp(log_weight) of `to_arviz()`"
# k-hat has no scale: of weights that are all alike it reads the shape of their rounding. Where no draw has more
# than so many times the mean weight there is no tail to judge.
_NO_TAIL = 2.0
_MORE_DRAWS = "`sampler.diagnose(n=4000)`"

_Problem = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Report:
    """Diagnostics of a fitted law against its target.

    Attributes
    ----------
    n, dim : int
        Number of draws looked at, and their dimension.
    pareto_k : float
        Tail shape of the importance weights; -inf: all equal, inf: too few draws to say.
    ess, ess_fraction : float
        Effective number of draws when reweighted to the target, and its ratio to n.
    log_evidence, log_evidence_se : float
        log of the target's normalising constant, and its standard error.
    elbo, elbo_se : float
        Evidence lower bound and its standard error; -inf and NaN when a draw has weight zero.
    largest_weight : float
        The largest importance weight over the mean one; near 1, k-hat has no tail to judge.
    stationarity : float
        Relative Fisher information, 0 at the target; NaN when it was not computed.
    converged : bool
        Did the fit end by its stopping rule?
    warnings : list of str
        What else a user must know.
    """

    n: int
    dim: int
    pareto_k: float
    ess: float
    ess_fraction: float
    log_evidence: float
    log_evidence_se: float
    elbo: float
    elbo_se: float
    largest_weight: float
    stationarity: float
    converged: bool
    warnings: list[str] = field(default_factory=list)

    @property
    def kl_estimate(self) -> float:
        """KL(draws | target), nats: log evidence - ELBO."""
        return self.log_evidence - self.elbo

    @property
    def pareto_k_threshold(self) -> float:
        """Largest k-hat that n draws can bear: min(1 - 1/log10 n, 0.7), and 0 for n <= 10."""
        return min(1 - 1 / max(np.log10(self.n), 1.0), 0.7)

    @property
    def bias_bound(self) -> float:
        """Largest bias of an unweighted mean, in sd of the draws: sqrt(1/ess_fraction - 1)."""
        return float(np.sqrt(max(1 / self.ess_fraction - 1, 0.0)))

    @property
    def trustworthy(self) -> bool:
        """True when nothing speaks against using the draws as they are."""
        return not self._fatal() and not self._flaws()

    @property
    def verdict(self) -> str:
        """The report in one line, with a remedy where one is needed."""
        if fatal := self._fatal():
            return _line("do not trust these draws", fatal + self._unfinished())
        if flaws := self._flaws():
            return _line("use with care", flaws)
        return (
            "Verdict: trust these draws. Wherever they look, the fitted law matches the target: "
            f"unweighted means are off by at most about {self.bias_bound:.2g} sd."
        )

    def __str__(self) -> str:
        title = f"Diagnosis of {self.n} draws in {self.dim} dimension{'s' if self.dim != 1 else ''}"
        rows = [f"  {name:<16}{value:>12}   {note}".rstrip() for name, value, note in self._rows()]
        notes = [f"  Warning: {text}" for text in self.warnings]
        return "\n".join([title, *rows, *notes, f"  {_BLIND_SPOT}", self.verdict])

    def _rows(self) -> list[tuple[str, str, str]]:
        limit = _STATIONARY_PER_DIM * self.dim
        return [
            ("Pareto k-hat", _number(self.pareto_k), f"good below {self.pareto_k_threshold:.2f}"),
            ("largest weight", _number(self.largest_weight), "times the mean weight"),
            ("effective draws", f"{self.ess:.0f}", f"{self.ess_fraction:.1%} of {self.n}"),
            ("log evidence", _number(self.log_evidence), f"+/- {_number(self.log_evidence_se)}"),
            ("ELBO", _number(self.elbo), f"+/- {_number(self.elbo_se)}"),
            ("KL to the target", _number(self.kl_estimate), "log evidence - ELBO"),
            ("bias of means", _number(self.bias_bound), "at most, in sd of the draws, without reweighting"),
            ("stationarity", _number(self.stationarity), f"0 at the target, good below {limit:.2g}"),
            ("converged", "yes" if self.converged else "no", ""),
        ]

    def _fatal(self) -> list[_Problem]:
        """Reasons, with remedies, not to use the draws at all."""
        found: list[_Problem] = []
        if not self.pareto_k < self.pareto_k_threshold and not self._has_no_tail():
            if self.n < _FEWEST_DRAWS:
                found.append((f"{self.n} draws are too few to judge", (_MORE_DRAWS,)))
            else:
                reason = f"a few draws carry most of the weight (k-hat {_number(self.pareto_k)})"
                found.append((reason, _REFINE))
        if self.ess_fraction < _BAD_FRACTION:
            found.append((f"{self.n} of them are worth only {self.ess:.0f} of the target", _REFINE))
        return found

    def _has_no_tail(self) -> bool:
        return self.n >= _FEWEST_DRAWS and self.largest_weight < _NO_TAIL

    def _flaws(self) -> list[_Problem]:
        """Reasons, with remedies, to use the draws with care."""
        found: list[_Problem] = []
        if self.ess_fraction < _GOOD_FRACTION:
            reason = f"unweighted means may be off by up to {self.bias_bound:.2g} sd"
            found.append((reason, (_REWEIGHT, *_REFINE)))
        found += self._unfinished()
        if self.warnings:
            found.append(("see the warnings above", ()))
        return found

    def _unfinished(self) -> list[_Problem]:
        found: list[_Problem] = []
        if not self.converged:
            found.append(("the fit has not converged", (_MORE_STEPS,)))
        if self.stationarity > _STATIONARY_PER_DIM * self.dim:
            found.append((f"the flow still moves (stationarity {_number(self.stationarity)})", (_MORE_STEPS,)))
        return found


def report_from_log_weights(
    log_weights: np.ndarray,
    *,
    stationarity: float | None,
    converged: bool,
    dim: int,
    warnings: Sequence[str] = (),
) -> Report:
    """Build the report from importance weights at iid draws of the fitted law.

    Parameters
    ----------
    log_weights : ndarray (n,)
        log unnormalised target - log density of the fitted law; -inf is legal.
    stationarity : float or None
        See `jkosampler.diagnostics.stationarity`; None when it can't be computed.
    converged : bool
        Did the fit end by its stopping rule?
    dim : int
        Dimension of the draws.
    warnings : sequence of str
        Anything else that a user must know; a draw of weight zero is added here.

    Raises
    ------
    ArgumentError
        `log_weights` is not one-dimensional with n >= 2, holds NaN or +inf, or is -inf everywhere.
    """
    values = as_log_weights(log_weights)
    found = evidence(values)
    notes = list(warnings)
    outside = int(np.isneginf(values).sum())
    if outside:
        notes.append(
            f"{outside} of {found.n} draws lie where the target is zero (log density -inf). {_REWEIGHT} leave them out."
        )
    return Report(
        n=found.n,
        dim=dim,
        pareto_k=pareto_k(values),
        ess=found.ess,
        ess_fraction=found.ess_fraction,
        log_evidence=found.log_evidence,
        log_evidence_se=found.log_evidence_se,
        elbo=found.elbo,
        elbo_se=found.elbo_se,
        largest_weight=float(np.exp(values.max() - found.log_evidence)),
        stationarity=float("nan") if stationarity is None else float(stationarity),
        converged=bool(converged),
        warnings=notes,
    )


def _line(judgement: str, problems: list[_Problem]) -> str:
    reasons = "; ".join(reason for reason, _ in problems)
    remedies = list(dict.fromkeys(remedy for _, several in problems for remedy in several))
    listed = ", ".join(remedies[:-1]) + (" or " if len(remedies) > 1 else "") + "".join(remedies[-1:])
    return f"Verdict: {judgement}: {reasons}." + (f" Try {listed}." if remedies else "")


def _number(value: float) -> str:
    """Three decimals, or three significant digits for the very small and the very large."""
    if np.isnan(value):
        return "unknown"
    return f"{value:.3f}" if 1 <= abs(value) < 1e6 else f"{value:.3g}"
