"""The loop of a fit: steps until all are made, the law is stationary, or a budget is used up."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch

from jkosampler._arguments import warn_user
from jkosampler._distributed import Team, team
from jkosampler._result import FitResult, spare_generator
from jkosampler._saved_fit import Checkpoint
from jkosampler._setup import Setup
from jkosampler._setup_fields import FieldSetup
from jkosampler._surroundings import torch_scope
from jkosampler.diagnostics import evidence
from jkosampler.energies import EnergyEvaluator, FunctionalEvaluator
from jkosampler.engines import Lagrangian
from jkosampler.errors import JKOSamplerError

__all__ = ["Budget", "begun", "led", "run", "run_by_all"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


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


def run(
    fitted: FitResult, n_steps: int | None, budget: Budget, *, exact: bool, resumed: bool = False
) -> Iterator[FitResult]:
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
    resumed : bool
        Whether the steps that `fitted` has made are among the `n_steps`.

    Warns
    -----
    ConvergenceWarning
        When the fit ends early, or has not converged.
    """
    made, stopped = (fitted.state.n_steps, fitted.state.stopped) if resumed else (0, None)
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


def begun(
    setup: Setup | FieldSetup,
    generator: torch.Generator,
    budget: Budget,
    *,
    scouted: bool,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """A fit of no steps, where this process or rank 0 has drawn its particles, after a look for modes if it is due.

    Or else the fit that a checkpoint holds, and what that has spent.
    """

    def begin() -> tuple[Any, str | None, Any, Any]:
        saved = None if checkpoint is None else checkpoint.read(setup, generator)
        if saved is not None:
            return saved.setup.problem, saved.setup.note, saved.state, saved[2:6]
        chosen = setup.scouted(spare_generator(generator)) if scouted and isinstance(setup, Setup) else setup
        state = chosen.begin()
        if chosen.note:
            logger.warning(chosen.note)
        return chosen.problem, chosen.note, state, None

    with torch_scope(setup.engine.threads), budget.spending(setup.problem.energy):
        problem, note, state, earlier = led("fit", setup, begin, generators=[generator])
    setup = replace(setup, problem=problem, note=note)
    if earlier is None:
        return FitResult(setup, generator, state)
    history, stop_reason, budget.seconds, budget.evaluations = earlier
    return FitResult(setup, generator, state, history, stop_reason)


def run_by_all(
    fitted: FitResult, n_steps: int | None, budget: Budget, *, exact: bool, resumed: bool = False
) -> Iterator[FitResult]:
    """`run`, which rank 0 goes through where there are several processes; all see the same results.

    There the report behind the fitted attributes is made at once, by all: who asks for one later need not ask for it
    on every rank.
    """
    results = run(fitted, n_steps, budget, exact=exact, resumed=resumed)
    together = _team_for(fitted.setup)
    if together is None:
        yield from results
        return
    here: FitResult | None = None

    def advance() -> tuple[Any, Bunch | None, str] | None:
        nonlocal here
        here = next(results, None)
        if here is None:
            return None
        return here.state, here.history[-1] if here.history else None, here.stop_reason

    while True:
        # what the ranks know already of a law is not sent again
        news = led("a step", fitted.setup, advance, known=fitted.state.maps, generators=[fitted.generator])
        if news is None:
            break
        if here is None or not together.leads:
            here = _told(fitted, *news)
        fitted = here
        yield fitted

    def report() -> Any:
        try:
            return fitted.final_report
        except JKOSamplerError:
            return None  # who asks for it meets the error

    found = led("the final report", fitted.setup, report)
    if found is not None:
        vars(fitted)["final_report"] = found


def _told(fitted: FitResult, state: Any, record: Bunch | None, stop_reason: str) -> FitResult:
    """The fit as rank 0 has gone on with it."""
    if record is not None and state.n_steps > fitted.state.n_steps:
        fitted = fitted.after(state, record)
    return fitted.ended(state, stop_reason)


def led(
    what: str,
    setup: Setup | FieldSetup,
    compute: Callable[[], T],
    *,
    known: Sequence[Any] = (),
    generators: Sequence[torch.Generator] = (),
) -> T:
    """What `compute` returns, on rank 0 where there are several processes; see `Team.led`."""
    together = _team_for(setup)
    if together is None:
        return compute()
    assert isinstance(setup, Setup)
    # what users have made, their functions above all, is on every rank, and need not be fit to be sent
    own = [thing for part in (setup, setup.problem) for thing in vars(part).values() if not isinstance(thing, _PLAIN)]
    energy = setup.problem.energy
    return together.led(what, energy.evaluators, compute, known=[*own, *known], generators=generators)


_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


def _team_for(setup: Setup | FieldSetup) -> Team | None:
    """The processes that share a fit: where no target is, there is nothing to share, and each makes it all."""
    if not isinstance(setup, Setup) or setup.target is None or not isinstance(setup.engine, Lagrangian):
        return None
    return team()
