"""Which step to try next, whether to accept it, and when to stop.

`FixedSteps` solves every step at the size that the user gave: the law at time t is the JKO flow's. `AdaptiveSteps`
only wants the end: affine steps of growing size while they pay, then network steps, each judged on particles that
it was not trained on, until these can't tell the law from the target any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

__all__ = ["AdaptiveSteps", "Control", "FixedSteps", "Judgement", "StepControl"]

_RESOLUTION = 10.0  # a fit that can't get on has converged to its network's resolution within this many thresholds
_TAILS_FROM = 70.0  # so many thresholds from the target, the tails are worth their share of the training


@dataclass(frozen=True)
class Control:
    """What to try next: the step size tau, whether a network is trained, and how hard.

    `exact` asks for the step's minimiser to the accuracy of the particles; otherwise a step need only lead on.
    `tails` asks for training points that cover the law evenly out to its tails, and is "failed" once a step that did
    so was rejected. `effort` multiplies the iterations; `failures` counts rejections in a row, `stalled` steps in a
    row without progress, `best` is the smallest discrepancy so far.
    """

    tau: float
    network: bool
    exact: bool = False
    tails: Literal["no", "yes", "failed"] = "no"
    effort: int = 1
    failures: int = 0
    stalled: int = 0
    best: float = math.inf


class Judgement(NamedTuple):
    """A tried step on fresh particles: change of energy with its standard error, the movement's cost, discrepancy.

    `discrepancy` is half the variance of dE/drho over the particles. For a KL energy near its minimum that is the
    KL divergence itself, at a much smaller Monte Carlo error than the mean of the log weights has.
    """

    energy_change: float
    standard_error: float
    transport_cost: float
    discrepancy: float

    @property
    def finite(self) -> bool:
        """Whether the map is invertible and the energy finite at every fresh particle."""
        return math.isfinite(self.energy_change) and math.isfinite(self.discrepancy)


class StepControl(Protocol):
    """A policy for steps."""

    def first(self) -> Control:
        """What to try first."""
        ...

    def accepts(self, control: Control, seen: Judgement) -> bool:
        """Whether to keep the tried step."""
        ...

    def after_accept(self, control: Control, seen: Judgement) -> Control:
        """What to try after a step that was kept."""
        ...

    def after_reject(self, control: Control, discrepancy: float) -> Control | None:
        """What to try instead of a rejected step of a law of this discrepancy; None when that is the end."""
        ...

    def converged(self, control: Control, seen: Judgement) -> bool:
        """Whether the law is stationary as far as fresh particles can tell."""
        ...

    def stalled(self, control: Control) -> bool:
        """Whether further steps are not worth their cost."""
        ...

    def good_enough(self, discrepancy: float) -> bool:
        """Whether a fit that stalls there may call itself converged."""
        ...


@dataclass(frozen=True)
class FixedSteps:
    """Steps of one size; a rejected step is trained again, longer."""

    tau: float
    threshold: float
    retries: int = 2

    def first(self) -> Control:
        return Control(self.tau, network=True, exact=True)

    def accepts(self, control: Control, seen: Judgement) -> bool:
        """The step's inequality `E + d^2 / (2 tau) <= E_k`, up to the Monte Carlo error."""
        slack = 3.0 * seen.standard_error + 1e-9
        return seen.finite and seen.energy_change + seen.transport_cost / (2.0 * control.tau) <= slack

    def after_accept(self, control: Control, seen: Judgement) -> Control:
        return replace(control, effort=1, failures=0)

    def after_reject(self, control: Control, discrepancy: float) -> Control | None:
        if control.failures >= self.retries:
            return None
        return replace(control, failures=control.failures + 1, effort=2 * control.effort)

    def converged(self, control: Control, seen: Judgement) -> bool:
        return seen.discrepancy <= self.threshold

    def stalled(self, control: Control) -> bool:
        return False

    def good_enough(self, discrepancy: float) -> bool:
        return discrepancy <= _RESOLUTION * self.threshold


@dataclass(frozen=True)
class AdaptiveSteps:
    """Growing affine steps, then growing network steps, until the discrepancy is below a threshold.

    Networks learn at draws of the law first; when it is near the target, at points that reach out to its tails too.

    Step sizes are those of whitened coordinates, where one unit of flow time is the time of a Gaussian's relaxation.
    """

    threshold: float
    first_tau: float = 0.1
    network_tau: float = 1.0
    largest_tau: float = 10.0
    patience: int = 2

    def first(self) -> Control:
        return Control(self.first_tau, network=False)

    def accepts(self, control: Control, seen: Judgement) -> bool:
        """The energy must not rise beyond its Monte Carlo error, and either measure must show progress."""
        if not seen.finite or seen.energy_change > 2.0 * seen.standard_error:
            return False
        return seen.energy_change < -2.0 * seen.standard_error or seen.discrepancy < control.best

    def after_accept(self, control: Control, seen: Judgement) -> Control:
        best = min(control.best, seen.discrepancy)
        if not control.network:
            pays = seen.energy_change < -0.02 - 2.0 * seen.standard_error
            if pays or control.tau < self.network_tau:
                return replace(control, tau=min(3.0 * control.tau, self.largest_tau), failures=0, best=best)
            return self._with_tails(Control(self.network_tau, network=True, best=best), seen.discrepancy)
        tau = min(3.0 * control.tau, self.largest_tau)
        control = self._with_tails(control, seen.discrepancy)
        if seen.discrepancy < 0.9 * control.best:
            return replace(control, tau=tau, failures=0, stalled=0, best=best)
        return self._stalling(replace(control, tau=tau, failures=0, best=best))

    def after_reject(self, control: Control, discrepancy: float) -> Control | None:
        if not control.network:
            if control.failures < 2:
                return replace(control, tau=control.tau / 4.0, failures=control.failures + 1)
            return self._with_tails(Control(self.network_tau, network=True, best=control.best), discrepancy)
        if discrepancy <= self.threshold:
            return None  # a step that can't improve on a law within the threshold shows it to be stationary
        if control.tails == "yes":
            return replace(control, tails="failed")
        slower = self._stalling(replace(control, tau=control.tau / 2.0, failures=control.failures + 1))
        return None if self.stalled(slower) else slower

    def converged(self, control: Control, seen: Judgement) -> bool:
        """A small discrepancy after a long step: a short one would leave any law nearly as it was."""
        return seen.discrepancy <= self.threshold and control.tau >= 0.5 * self.largest_tau

    def stalled(self, control: Control) -> bool:
        return control.stalled >= self.patience

    def good_enough(self, discrepancy: float) -> bool:
        return discrepancy <= _RESOLUTION * self.threshold

    def _with_tails(self, control: Control, discrepancy: float) -> Control:
        near = discrepancy <= _TAILS_FROM * self.threshold
        return replace(control, tails="yes") if near and control.tails == "no" else control

    def _stalling(self, control: Control) -> Control:
        return replace(control, stalled=control.stalled + 1)
