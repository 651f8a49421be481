"""Which step to try next, how, whether to accept it, and when to stop.

`FixedSteps` solves every step at the size that the user gave: the law at time t is the JKO flow's. `AdaptiveSteps`
only wants the end: affine steps of growing size while they pay, then steps by collocation where these work and by
trained networks where not, each judged on particles that it was not solved on, until these can't tell the law from the
target any more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

__all__ = ["AdaptiveSteps", "Control", "FixedSteps", "Judgement", "StepControl"]

_RESOLUTION = 10.0  # a fit that can't get on has converged to its maps' resolution within this many thresholds
_TAILS_FROM = 70.0  # so many thresholds from the target, the tails are worth their share of the points
_FAIR_SHARE = 0.5  # of the discrepancy: a collocation step that leaves more has met the limit of its functions
_TRY_AGAIN = 0.25  # of the discrepancy at which collocation failed: nearer than that it may work
_NEGLIGIBLE = 1e-4  # of the threshold: no use of a law can tell what is left
_EXACT = 1e-2  # of the threshold: what affine steps leave only of a Gaussian
_LONG = 50.0  # a step: one that leaves a law as it was shows it to be stationary
_FAITHFUL = 1e-2  # nats: a larger change of the energy under finer integration means that the density is wrong


@dataclass(frozen=True)
class Control:
    """What to try next: the step size tau, how to solve the step, and how hard to try.

    `method` is the best affine map alone, collocation (`engines.collocation`), or a trained network. `exact` asks for
    the step's minimiser to the accuracy of the particles; otherwise a step need only lead on. `tails` asks
    collocation for points that cover the law evenly out to its tails.
    `effort` multiplies iterations and inner steps; a step of second order is made in `pieces`; `failures` counts
    rejections in a row, `stalled` steps in a row without progress, `best` is the smallest discrepancy so far, and
    collocation is tried below `collocation_below`. `n_affine` counts affine steps.
    """

    tau: float
    method: Literal["affine", "collocation", "network"]
    exact: bool = False
    tails: bool = False
    effort: int = 1
    pieces: int = 1
    failures: int = 0
    stalled: int = 0
    best: float = math.inf
    collocation_below: float = math.inf
    n_affine: int = 0


class Judgement(NamedTuple):
    """A tried step on held-out particles.

    Change of the energy with its standard error, cost of the movement, `discrepancy`, and what spoils a step:

    * `integration_error` (nats), the change of the energy when an ODE is integrated more finely;
    * `lost_mass`, whether an earlier law's importance weights show mass that this law lacks;
    * `left_support`, whether significantly more particles than before lie where the energy is infinite.

    The energy may rise by the `relief`, what a barrier fell by (the standard error is that of both), and a little.

    The discrepancy is half the variance of dE/drho over the particles. For a KL energy near its minimum that is the
    KL divergence itself, at a much smaller Monte Carlo error than the mean of the log weights has.
    """

    energy_change: float
    standard_error: float
    transport_cost: float
    discrepancy: float
    integration_error: float = 0.0
    lost_mass: bool = False
    left_support: bool = False
    relief: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether the map is invertible, its density its own, and the energy finite where it was."""
        finite = math.isfinite(self.energy_change) and math.isfinite(self.discrepancy)
        return finite and not self.left_support and abs(self.integration_error) <= _FAITHFUL


class StepControl(Protocol):
    """A policy for steps; `threshold` (nats) is the discrepancy below which a law counts as stationary."""

    @property
    def threshold(self) -> float: ...

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
        """Whether the law is stationary as far as held-out particles can tell."""
        ...

    def stalled(self, control: Control) -> bool:
        """Whether further steps are not worth their cost."""
        ...

    def good_enough(self, discrepancy: float) -> bool:
        """Whether a fit that stalls there may call itself converged."""
        ...


@dataclass(frozen=True)
class FixedSteps:
    """Steps of one size; a rejected step is trained again, longer, and one of second order made in twice the pieces."""

    tau: float
    threshold: float
    order: int = 1
    retries: int = 2
    halvings: int = 5

    def first(self) -> Control:
        return Control(self.tau, "network", exact=True)

    def accepts(self, control: Control, seen: Judgement) -> bool:
        """The step's inequality `E + d^2 / (2 tau) <= E_k`, up to the Monte Carlo error; of order 2, `E <= E_k`."""
        slack = 3.0 * seen.standard_error + seen.relief + 1e-9
        if self.order == 1:
            slack -= seen.transport_cost / (2.0 * control.tau)
        return seen.sound and seen.energy_change <= slack

    def after_accept(self, control: Control, seen: Judgement) -> Control:
        return replace(control, effort=1, pieces=1, failures=0)

    def after_reject(self, control: Control, discrepancy: float) -> Control | None:
        if control.failures >= (self.retries if self.order == 1 else self.halvings):
            return None
        if self.order == 1:
            return replace(control, failures=control.failures + 1, effort=2 * control.effort)
        return replace(control, failures=control.failures + 1, pieces=2 * control.pieces)

    def converged(self, control: Control, seen: Judgement) -> bool:
        return seen.discrepancy <= self.threshold

    def stalled(self, control: Control) -> bool:
        return False

    def good_enough(self, discrepancy: float) -> bool:
        return discrepancy <= _RESOLUTION * self.threshold


@dataclass(frozen=True)
class AdaptiveSteps:
    """Growing affine steps, then growing steps of other maps, until the discrepancy is below a threshold.

    Step sizes are those of whitened coordinates, where one unit of flow time is the time of a Gaussian's relaxation.
    Networks take steps so long that the way there costs nothing, unless these fail. Collocation is tried where the
    discrepancy is below `collocation_below` (nats), and again after a failure, with a shorter step and as often as
    `collocation_retries` says (once at most within the threshold), where an emulator has learnt from it. Rejected steps
    of networks are made shorter by the factor `shorter_network`, down to `shortest_network`.
    """

    threshold: float
    collocation_below: float = math.inf
    first_tau: float = 0.1
    second_tau: float = 1.0
    largest_affine_tau: float = 10.0
    largest_tau: float = 1e6
    patience: int = 2
    retries: int = 3
    network_retries: int = 2
    shorter_network: float = 1e-3
    shortest_network: float = 0.0
    collocation_retries: int = 0
    most_affine: int = 40

    def first(self) -> Control:
        return Control(self.first_tau, "affine", collocation_below=self.collocation_below)

    def accepts(self, control: Control, seen: Judgement) -> bool:
        """The energy must not rise beyond its Monte Carlo error, and either measure must show progress.

        An affine step must not lose mass that the law before it had.
        """
        if not seen.sound or seen.energy_change > 2.0 * seen.standard_error:
            return False
        if control.method == "affine" and seen.lost_mass:
            return False
        return seen.energy_change < -2.0 * seen.standard_error or seen.discrepancy < control.best

    def after_accept(self, control: Control, seen: Judgement) -> Control:
        if control.method == "affine":
            return self._after_affine(control, seen)
        if control.method == "collocation" and seen.discrepancy > _FAIR_SHARE * control.best:
            control = replace(control, collocation_below=_TRY_AGAIN * seen.discrepancy)
        tau = min(10.0 * control.tau, self.largest_tau)
        progress = seen.discrepancy < 0.9 * control.best or self._pays(seen)
        stalled = 0 if progress else control.stalled + 1
        best = min(control.best, seen.discrepancy)
        return self._chosen(replace(control, tau=tau, failures=0, best=best, stalled=stalled), seen.discrepancy)

    def _after_affine(self, control: Control, seen: Judgement) -> Control:
        control = replace(control, failures=0, best=min(control.best, seen.discrepancy), n_affine=control.n_affine + 1)
        if control.n_affine < self.most_affine and (self._pays(seen) or control.tau < self.second_tau):
            return replace(control, tau=min(3.0 * control.tau, self.largest_affine_tau))
        return self._after_the_affine_stage(control, seen.discrepancy)

    def after_reject(self, control: Control, discrepancy: float) -> Control | None:
        if control.method == "affine":
            if control.failures < self.retries:
                return replace(control, tau=control.tau / 4.0, failures=control.failures + 1)
            return self._after_the_affine_stage(control, discrepancy)
        within = discrepancy <= self.threshold
        again = min(self.collocation_retries, 1) if within else self.collocation_retries
        if control.method == "collocation" and control.failures < again:
            tau = max(min(control.tau, _LONG) / 10.0, self.second_tau)
            return replace(control, tau=tau, failures=control.failures + 1)
        if within:
            return None  # a step that can't improve on a law within the threshold shows it to be stationary
        if control.method == "collocation":
            control = replace(control, failures=0, tau=self.largest_tau, collocation_below=_TRY_AGAIN * discrepancy)
            return self._chosen(control, discrepancy)
        if control.failures >= self.network_retries or self.good_enough(discrepancy):
            return None  # what is left is within the resolution of the maps, at every size of the step
        return replace(
            control, tau=max(control.tau * self.shorter_network, self.shortest_network), failures=control.failures + 1
        )

    def converged(self, control: Control, seen: Judgement) -> bool:
        """A small discrepancy after a long step (a short one leaves any law nearly as it was) and no cheap progress."""
        cheap = control.method == "collocation" and seen.discrepancy <= _FAIR_SHARE * control.best
        if cheap and seen.discrepancy > _NEGLIGIBLE * self.threshold:
            return False
        if control.method == "affine":  # other maps come cheap where an affine one is not the whole answer
            return seen.discrepancy <= _EXACT * self.threshold and control.tau >= 0.5 * self.largest_affine_tau
        return seen.discrepancy <= self.threshold and control.tau >= _LONG

    def stalled(self, control: Control) -> bool:
        return control.stalled >= self.patience

    def good_enough(self, discrepancy: float) -> bool:
        return discrepancy <= _RESOLUTION * self.threshold

    def _pays(self, seen: Judgement) -> bool:
        return seen.energy_change < -0.02 - 2.0 * seen.standard_error

    def _after_the_affine_stage(self, control: Control, discrepancy: float) -> Control:
        control = self._chosen(replace(control, failures=0), discrepancy)
        return replace(control, tau=self.second_tau if control.method == "collocation" else self.largest_tau)

    def _chosen(self, control: Control, discrepancy: float) -> Control:
        """The control with the method and the points for a law of this discrepancy."""
        near = discrepancy <= _TAILS_FROM * self.threshold
        collocation = discrepancy < control.collocation_below or discrepancy <= self.threshold
        return replace(
            control,
            method="collocation" if collocation else "network",
            tails=near,
        )
