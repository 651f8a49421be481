"""The verdict: may a non-expert use these draws, and if not, what to do?

`Report` gathers the diagnostics of a fitted law against its target. A draw is judged by

* Pareto k-hat < min(1 - 1/log10 n, 0.7): the importance weights have an average that n draws can find
  (Vehtari, Simpson, Gelman, Yao, Gabry, JMLR 25(72), 2024);
* the effective fraction f = ESS / n: for every function g, |E_target g - E_draws g| <= sd(g) sqrt(1/f - 1)
  by Cauchy-Schwarz, where 1/f - 1 is the chi-square divergence of the target from the law. The draws estimate
  that divergence, and see of it only what lies where they look;
* stationarity I: of a target as log-concave as the Gaussian of the draws' covariance, KL <= I / 2 and no mean is
  off by more than sqrt(I) sd (log-Sobolev and Talagrand inequalities). No such constant is known of a user's
  target, so that I condemns draws but bounds nothing;
* convergence of the fit, folded maps, mass that was seen elsewhere, and whatever the caller warns of.

The builder is `from_weights`. numpy only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from jkosampler.diagnostics.record import FitRecord

__all__ = [
    "BLIND_SPOT",
    "FAR_PER_DIM",
    "REFIT",
    "REWEIGHT",
    "STATIONARY_PER_DIM",
    "TAIL_WARNING",
    "Report",
    "k_threshold",
    "listed",
    "nearly_equal",
]

# Bias of unweighted means of a third of a standard deviation; beyond three, the draws are not it.
_GOOD_FRACTION, _BAD_FRACTION = 0.9, 0.1
# A dimension, for a target as log-concave as the Gaussian of the draws' covariance: KL <= 0.05, and a bias of half a
# standard deviation (root mean square over the coordinates).
STATIONARY_PER_DIM, FAR_PER_DIM = 0.1, 0.25
# k-hat has no scale: where no draw has more than so many times the mean weight, a heavy tail has not yet taken part
# in the averages, and k-hat speaks only of what lies beyond the draws. From k-hat 1 on, where that may be most of the
# mass, they must be closer.
_NEARLY_EQUAL, _NEARLY_EQUAL_FROM_ONE = 2.0, 1.05
BLIND_SPOT = (
    "No number here sees a mode that nothing has reached: compare the log evidence of a fit with a wider `initial` "
    "or another `random_state`."
)
_TAILS = "the tails beyond the draws, and the error bar of the log evidence, are not certified"
TAIL_WARNING = f"k-hat is high, although the weights are nearly equal: means and quantiles can be trusted; {_TAILS}."
_MORE_STEPS = "`sampler.extend(10)` (more steps)"
_REFINE = (_MORE_STEPS, "a larger `n_particles`", "a wider `initial`")
REFIT = ("another `random_state`", "a larger `n_particles`", "a smaller `step_size`")
REWEIGHT = "weighing the draws by exp(log_weight) of `to_arviz()`"

_Problem = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Report:
    """Diagnostics of a fitted law against its target; `str(report)` is a table that ends in the verdict.

    There are three verdicts, the first reason that applies deciding:

    * "do not trust these draws": k-hat not below `pareto_k_threshold` (unless the weights are nearly equal, the
      largest below twice the mean, or below 1.05 times it where k-hat is 1 or more), `ess_fraction` below 0.1,
      `stationarity` above 0.25 `dim` (unless it is noise and `ess_fraction` at least 0.9), `missing_evidence`, or
      more than a tenth of the draws undefined;
    * "use with care": `ess_fraction` below 0.9, not `converged`, `stationarity` above 0.1 `dim`, any draw
      undefined, or any warning but that of nearly equal weights with a high k-hat;
    * "trust these draws" else; "for means and quantiles" when the weights are nearly equal with a high k-hat.

    Attributes
    ----------
    n, dim : int
        Number of draws looked at, and their dimension.
    pareto_k : float
        Tail shape of the importance weights; -inf: all equal, inf: nothing known.
    ess, ess_fraction : float
        Effective number of draws when reweighted to the target, and its ratio to n.
    log_evidence, log_evidence_se : float
        log of the target's normalising constant, and its standard error. With k-hat above its threshold the
        latter has `evidence.tail_error` added: it is inf, and printed as unknown, for k-hat >= 1.
    elbo, elbo_se : float
        Evidence lower bound and its standard error; -inf and NaN when a draw has weight zero.
    largest_weight : float
        The largest importance weight over the mean one; below 2 (1.05 from a k-hat of 1 on), the weights count as
        nearly equal.
    stationarity, stationarity_se : float
        Relative Fisher information in the metric `E[s s']^-1` of the law's score s, 0 at the target, and its standard
        error; NaN when not computed. Where the error is more than half the value, a few draws decide it, and it counts
        as noise.
    converged : bool
        Did the fit end by its stopping rule?
    warnings : list of str
        What else a user must know.
    n_undefined : int
        Draws, besides the n, at which the law's own density is undefined because a map folds.
    missing_evidence : str or None
        What an earlier law of the fit, or a look from outside, has shown of mass that the law lacks.
    kl_estimate : float
        KL(draws | target), nats: log evidence - ELBO. As blind as these to what no draw reached.
    pareto_k_threshold : float
        Largest k-hat that n draws can bear: min(1 - 1/log10 n, 0.7).
    bias_bound : float
        sqrt(1/ess_fraction - 1): no unweighted mean is off by more, in sd of the draws, provided that they reach
        all of the target; otherwise it says nothing.
    verdict : str
        The report in one line, with a remedy where one is needed.
    judgement : {"trust", "care", "distrust"}
        Which of the three verdicts it is.
    trustworthy : bool
        Is the verdict the third, with or without "for means and quantiles"?
    record : FitRecord or None
        What `to_html` shows beyond these; left out of comparisons.
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
    stationarity_se: float = float("nan")
    n_undefined: int = 0
    missing_evidence: str | None = None
    record: FitRecord | None = field(default=None, repr=False, compare=False)

    @property
    def kl_estimate(self) -> float:
        return self.log_evidence - self.elbo

    @property
    def pareto_k_threshold(self) -> float:
        return k_threshold(self.n)

    @property
    def bias_bound(self) -> float:
        return float(np.sqrt(max(1 / self.ess_fraction - 1, 0.0)))

    @property
    def judgement(self) -> Literal["trust", "care", "distrust"]:
        if self._fatal():
            return "distrust"
        return "care" if self._flaws() else "trust"

    @property
    def trustworthy(self) -> bool:
        return self.judgement == "trust"

    @property
    def verdict(self) -> str:
        if fatal := self._fatal():
            return _line("do not trust these draws", fatal + self._unfinished())
        if flaws := self._flaws():
            return _line("use with care", flaws)
        tails = self._heavy_tail()
        return (
            f"Verdict: trust these draws{' for means and quantiles' if tails else ''}. Where they look, the fitted "
            f"law matches the target: unweighted means are off by about {self.bias_bound:.2g} sd or less"
            f"{f'; {_TAILS} (k-hat {_number(self.pareto_k)})' if tails else ''}. {BLIND_SPOT}"
        )

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a page with this report and figures of the fit: one file that loads nothing from elsewhere.

        Parameters
        ----------
        path : path
            A file that is there is replaced, as a whole or not at all.

        Returns
        -------
        Path
            Of the page.

        Raises
        ------
        ArgumentError
            The path is that of a folder, or its folder is not there.
        WriteError
            The file can't be written.
        MissingDependencyError
            matplotlib is not installed.
        """
        from jkosampler.diagnostics.page import page, write_page

        return write_page(page(self, self._rows()), path)

    def __str__(self) -> str:
        title = f"Diagnosis of {self.n} draws in {self.dim} dimension{'s' if self.dim != 1 else ''}"
        rows = [f"  {name:<16}{value:>12}   {note}".rstrip() for name, value, note in self._rows()]
        notes = [f"  Warning: {text}" for text in self.warnings]
        return "\n".join([title, *rows, *notes, self.verdict])

    def _rows(self) -> list[tuple[str, str, str]]:
        se = _number(self.log_evidence_se) if np.isfinite(self.log_evidence_se) else "unknown"
        of_means = self._not_certified(k_matters=not self._nearly_equal()) or ", if they reach all of the target"
        return [
            ("Pareto k-hat", _number(self.pareto_k), f"good below {self.pareto_k_threshold:.2f}"),
            ("largest weight", _number(self.largest_weight), "times the mean weight"),
            ("effective draws", f"{self.ess:.0f}", f"{self.ess_fraction:.1%} of {self.n}"),
            ("log evidence", _number(self.log_evidence), f"+/- {se}{self._not_certified()}"),
            ("ELBO", _number(self.elbo), f"+/- {_number(self.elbo_se)}"),
            ("KL to the target", _number(self.kl_estimate), f"log evidence - ELBO{self._not_certified()}"),
            ("bias of means", _number(self.bias_bound), f"about, in sd, without reweighting{of_means}"),
            ("stationarity", _number(self.stationarity), self._stationarity_note()),
            ("converged", "yes" if self.converged else "no", ""),
        ]

    def _stationarity_note(self) -> str:
        se = "" if np.isnan(self.stationarity_se) else f"+/- {self.stationarity_se:.2g}, "
        noise = "noise: a few draws decide it, " if self._is_noise() else ""
        return f"{se}{noise}0 at the target, good below {STATIONARY_PER_DIM * self.dim:.2g}"

    def _not_certified(self, k_matters: bool = True) -> str:
        """What stands against the numbers that the weights give, as the end of a row."""
        doubts = {
            "k-hat": k_matters and self._heavy_tail(),
            "stationarity": self.stationarity > STATIONARY_PER_DIM * self.dim,
            "the warnings": self.missing_evidence is not None,
        }
        named = " and ".join(name for name, doubtful in doubts.items() if doubtful)
        return f", not certified: see {named}" if named else ""

    def _heavy_tail(self) -> bool:
        return not self.pareto_k < self.pareto_k_threshold

    def _nearly_equal(self) -> bool:
        return nearly_equal(self.largest_weight, self.pareto_k)

    def _is_noise(self) -> bool:
        return self.stationarity_se > 0.5 * self.stationarity

    def _is_far(self) -> bool:
        excused = self._is_noise() and self.ess_fraction >= _GOOD_FRACTION
        return self.stationarity > FAR_PER_DIM * self.dim and not excused

    def _fatal(self) -> list[_Problem]:
        """Reasons, with remedies, not to use the draws at all."""
        found: list[_Problem] = []
        if self._heavy_tail() and not self._nearly_equal():
            reason = f"the tail of the weights is too heavy for {self.n} draws (k-hat {_number(self.pareto_k)})"
            found.append((reason, _REFINE))
        if self.ess_fraction < _BAD_FRACTION:
            found.append((f"{self.n} of them are worth only {self.ess:.0f} of the target", _REFINE))
        if self._is_far():
            times = self.stationarity / (STATIONARY_PER_DIM * self.dim)
            reason = f"stationarity {_number(self.stationarity)} is {times:.2g} times its limit"
            found.append((f"{reason}, so that they may miss part of the target", _REFINE))
        if self.missing_evidence is not None:
            found.append(("they lack mass that was seen elsewhere, see the warnings", REFIT[:2]))
        if self.n_undefined > _BAD_FRACTION * (self.n + self.n_undefined):
            found.append(("the fitted law folds", REFIT))
        return found

    def _flaws(self) -> list[_Problem]:
        """Reasons, with remedies, to use the draws with care."""
        found: list[_Problem] = []
        if self.ess_fraction < _GOOD_FRACTION:
            reason = f"unweighted means may be off by about {self.bias_bound:.2g} sd"
            found.append((reason, (REWEIGHT, *_REFINE)))
        found += self._unfinished()
        if any(text != TAIL_WARNING for text in self.warnings):
            found.append(("see the warnings above", ()))
        return found

    def _unfinished(self) -> list[_Problem]:
        found: list[_Problem] = []
        if not self.converged:
            found.append(("the fit has not converged", (_MORE_STEPS,)))
        if self.stationarity > STATIONARY_PER_DIM * self.dim and not self._is_far():
            if self._is_noise():
                reason = f"a few draws decide the stationarity, {self._value_and_error()}"
                found.append((reason, (f"`sampler.diagnose(n={10 * self.n})`",)))
            else:
                found.append((f"the flow still moves (stationarity {_number(self.stationarity)})", (_MORE_STEPS,)))
        if self.n_undefined:
            found.append((f"the law's density is undefined at {self.n_undefined} more draws", REFIT))
        return found

    def _value_and_error(self) -> str:
        return f"{_number(self.stationarity)} +/- {self.stationarity_se:.2g}"


def nearly_equal(largest_weight: float, k_hat: float) -> bool:
    """Whether a high k-hat says nothing of the draws themselves, the largest weight being given over the mean one."""
    return largest_weight < (_NEARLY_EQUAL if k_hat < 1.0 else _NEARLY_EQUAL_FROM_ONE)


def k_threshold(n: int) -> float:
    """Largest k-hat that n draws can bear: min(1 - 1/log10 n, 0.7), and 0 for n <= 10."""
    return min(1 - 1 / max(np.log10(n), 1.0), 0.7)


def _line(judgement: str, problems: list[_Problem]) -> str:
    reasons = "; ".join(reason for reason, _ in problems)
    remedies = tuple(dict.fromkeys(remedy for _, several in problems for remedy in several))
    return f"Verdict: {judgement}: {reasons}.{f' Try {listed(remedies)}.' if remedies else ''} {BLIND_SPOT}"


def listed(remedies: tuple[str, ...]) -> str:
    """At least one remedy: "a, b or c"."""
    return ", ".join(remedies[:-1]) + (" or " if len(remedies) > 1 else "") + remedies[-1]


def _number(value: float) -> str:
    """Three decimals, or three significant digits for the very small and the very large."""
    if np.isnan(value):
        return "unknown"
    return f"{value:.3f}" if 1 <= abs(value) < 1e6 else f"{value:.3g}"
