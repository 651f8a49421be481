"""The loop of a fit: steps until all are made, the law is stationary, or a budget is used up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch

from jkosampler._arguments import warn_user
from jkosampler._inputs import torch_scope
from jkosampler._result import FitResult
from jkosampler.diagnostics import evidence
from jkosampler.energies import EnergyEvaluator, FunctionalEvaluator

__all__ = ["Budget", "run"]

logger = logging.getLogger(__name__)


@dataclass
class Budget:
    """What a fit may spend, None for no limit, and what it has spent: seconds, and evaluated points.

    Only what the fit itself spends counts, not what is done between its steps.
    """

    max_time: float | None
    max_target_evaluations: int | None
    seconds: float = 0.0
    evaluations: int = 0

    @contextmanager
    def spending(self, energy: EnergyEvaluator | FunctionalEvaluator) -> Iterator[None]:
        """Count what is done inside, which can see how much of the budget is used while it goes on."""
        began, before = time.perf_counter(), energy.n_evaluations

        def share_used() -> float:
            seconds = self.seconds + time.perf_counter() - began
            evaluations = self.evaluations + energy.n_evaluations - before
            return max(seconds / (self.max_time or math.inf), evaluations / (self.max_target_evaluations or math.inf))

        outside, energy.budget_used = energy.budget_used, share_used
        try:
            yield
        finally:
            energy.budget_used = outside
            self.seconds += time.perf_counter() - began
            self.evaluations += energy.n_evaluations - before

    def used_up(self) -> str | None:
        """Which budget is used up, in words; None while neither is."""
        if self.max_time is not None and self.seconds > self.max_time:
            return f"max_time={self.max_time} s was used up"
        if self.max_target_evaluations is not None and self.evaluations >= self.max_target_evaluations:
            return f"max_target_evaluations={self.max_target_evaluations} was used up"
        return None


def run(fitted: FitResult, n_steps: int | None, budget: Budget, *, exact: bool) -> Iterator[FitResult]:
    """The fit after each accepted step, and once more at its end, with the reason.

    Parameters
    ----------
    fitted : FitResult
        Where to go on.
    n_steps : int, optional
        Steps to make at most.
    budget : Budget
        What may be spent.
    exact : bool
        Whether all `n_steps`, if there are any, are due, even though the law is stationary before.

    Warns
    -----
    ConvergenceWarning
        When the fit ends early, or has not converged.
    """
    made, stopped = 0, None
    exact = exact and n_steps is not None
    while (reason := _reason_to_stop(made, n_steps, None if exact else stopped, budget)) is None:
        state, record = _step(fitted, budget)
        stopped = state.stopped
        if record is None:
            fitted = fitted.ended(state, budget.used_up() or stopped or "the engine found no step")
            break
        target, note = fitted.setup.target, fitted.setup.note
        record.ess = evidence(-state.values.cpu().numpy()).ess_fraction if target else float("nan")
        record.note = note if not fitted.history else None
        fitted = fitted.after(state, record)
        made += 1
        yield fitted
    if reason is not None:
        fitted = fitted.ended(fitted.state, reason)
    yield fitted
    _warn_of_the_end(fitted, made, n_steps)


def _step(fitted: FitResult, budget: Budget) -> tuple[Any, Bunch | None]:
    """One step of the engine, with a word for those who interrupt it."""
    setup = fitted.setup
    try:
        with torch_scope(setup.engine.threads), budget.spending(setup.problem.energy):
            return setup.engine.step(fitted.state)
    except KeyboardInterrupt:
        made = len(fitted.history)
        logger.info("interrupted after %d steps; the sampler can be used as it is, extend(None) goes on", made)
        raise


def _reason_to_stop(made: int, n_steps: int | None, stopped: str | None, budget: Budget) -> str | None:
    if stopped is not None:
        return stopped
    if n_steps is not None and made >= n_steps:
        return {0: "no step was asked for", 1: "the one step was made"}.get(n_steps, f"all {n_steps} steps were made")
    return budget.used_up()


def _warn_of_the_end(fitted: FitResult, made: int, n_steps: int | None) -> None:
    """Say that a fit ended early, or without having converged."""
    fewer = n_steps is not None and made < n_steps
    all_made = n_steps is not None and not fewer
    if all_made or (fitted.state.converged and (fitted.setup.adaptive or not fewer)):
        return
    steps = "1 step" if made == 1 else f"{made} steps"
    what = f"only {made} of {n_steps} steps were made" if fewer else f"the fit has not converged in {steps}"
    advice = "diagnose()" if fitted.setup.target else "history_"
    warn_user(f"{what} (stop_reason_: {fitted.stop_reason}); look at {advice}.", ConvergenceWarning)
