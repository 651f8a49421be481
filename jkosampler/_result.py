"""What a fit has found so far, and the sampler's fitted attributes, which read it.

A `FitResult` is made anew for each accepted step, and the sampler holds exactly one: whatever interrupts a fit, the
attributes belong to the same law.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch

from jkosampler._inputs import whole_number
from jkosampler._probes import look_outside
from jkosampler._readable import with_settings
from jkosampler._setup import Setup
from jkosampler._setup_fields import FieldSetup
from jkosampler._surroundings import torch_scope
from jkosampler._user_space import UserFlow
from jkosampler.diagnostics import FitRecord, Report, estimate_stationarity, report_from_log_weights
from jkosampler.diagnostics.from_weights import FEWEST_DRAWS
from jkosampler.engines import FieldState
from jkosampler.errors import FitError, NotFittedError, UnavailableError
from jkosampler.flow import FittedDensities, FittedFlow

__all__ = ["FitResult", "FittedAttributes", "spare_generator"]

_FINAL_DRAWS = 4000  # behind log_evidence_, pareto_k_ and ess_
_MOST_KEPT = 10_000  # of the draws of a report, for its figures


class FitResult:
    """A fit after some steps.

    Parameters
    ----------
    setup : Setup
        What is fitted.
    generator : torch.Generator
        The sampler's own random stream.
    state : State or FieldState
        The engine's state.
    history : sequence of Bunch
        Records of the steps.
    stop_reason : str
        Why the fit is where it is.
    """

    def __init__(
        self,
        setup: Setup | FieldSetup,
        generator: torch.Generator,
        state: Any,
        history: Sequence[Bunch] = (),
        stop_reason: str = "interrupted",
    ) -> None:
        self.setup, self.generator, self.state = setup, generator, state
        self.history, self.stop_reason = list(history), stop_reason
        self.flow = setup.solution(state)
        self.seen = UserFlow(self.flow, setup.space)
        self.spare_seed = spare_generator(generator).initial_seed()

    def after(self, state: Any, record: Bunch) -> FitResult:
        """The fit after one more step."""
        return FitResult(self.setup, self.generator, state, [*self.history, record])

    @property
    def n_columns(self) -> int:
        """Columns of the user's points: d, but for constrained parameters."""
        return self.setup.dim if self.setup.space is None else self.setup.space.n_columns

    @property
    def names(self) -> list[str] | None:
        """Of the user's columns, where they have names."""
        return self.setup.names if self.setup.space is None else self.setup.space.column_names

    def ended(self, state: Any, stop_reason: str) -> FitResult:
        """The same law at the end of a fit; what was computed of it stays."""
        last = copy(self)
        last.state, last.stop_reason = state, stop_reason
        return last

    @cached_property
    def final_report(self) -> Report | None:
        """The report behind the fitted attributes, for a `log_target`."""
        return None if self.setup.target is None else self.spare_report(_FINAL_DRAWS)

    def spare_report(self, n: int) -> Report:
        """A report of n draws that leave the sampler's stream alone."""
        return self.report(n, torch.Generator().manual_seed(self.spare_seed), probes=False)

    def report(self, n: int, generator: torch.Generator, *, probes: bool = True) -> Report:
        """The law against the target at n fresh draws, but for those where a map folds, and a look from outside.

        Raises
        ------
        ArgumentError
            n is not a whole number, or too small to judge.
        FitError
            The law has a density at too few of its own draws.
        """
        n = whole_number(n, "n", FEWEST_DRAWS)
        assert isinstance(self.setup, Setup)
        assert isinstance(self.flow, FittedFlow | FittedDensities)
        energy, dim = self.setup.problem.energy, self.setup.dim
        with torch_scope(self.setup.engine.threads):
            particles = self.flow.particles(n, generator)
            particles = particles[particles.log_rho.isfinite() & particles.x.isfinite().all(1)]
            if len(particles) < FEWEST_DRAWS:
                raise FitError(
                    f"the maps of the fit fold at {n - len(particles)} of {n} draws, where the law has no density: "
                    "fit again with a smaller step_size or more n_particles."
                )
            potential, gradient = energy.potential(particles.x)
            missing = self.state.missing_evidence
            if probes and missing is None:
                missing = look_outside(self.setup, self.flow, particles, -potential, generator)
            log_weights = (-potential - particles.log_rho).cpu().double().numpy()
            residual = None
            if particles.score is not None and len(particles) > dim:
                score = particles.score.cpu().double().numpy()
                relative = score + gradient.cpu().double().numpy()
                # The covariance of a Gaussian, and less (Cramer, Rao) where parts of the law are narrower than the law
                # itself: there the whole covariance would make forces of no consequence look large.
                width = np.linalg.pinv(score.T @ score / len(score), hermitian=True)
                residual = estimate_stationarity(relative, 0.5 * (width + width.T))
            kept = self.seen.shown(particles.x[:_MOST_KEPT]).double().numpy(force=True)
        report = report_from_log_weights(
            log_weights,
            stationarity=residual,
            converged=self.state.converged,
            dim=dim,
            n_undefined=n - len(particles),
            missing_evidence=missing,
        )
        return replace(report, record=FitRecord(kept, self.names, log_weights, self.history, facts=self._facts()))

    def _facts(self) -> dict[str, str]:
        """How the fit went, for who reads about it."""
        energy, seconds = self.setup.problem.energy, sum(record.wall_s for record in self.history)
        found = {
            "steps": str(self.state.n_steps),
            "ended because": self.stop_reason,
            "time of the steps": f"{seconds:.3g} s",
            "target": f"{energy.n_evaluations} evaluations in {energy.n_calls} calls",
        }
        return found if self.setup.note is None else found | {"start": self.setup.note}


class FittedAttributes:
    """The attributes of a fitted sampler; before `fit` there are none of them."""

    _result: FitResult

    @property
    def _fitted(self) -> FitResult:
        """The fit so far; raises NotFittedError where there is none."""
        if not self.__sklearn_is_fitted__():
            raise NotFittedError("this JKOSampler is not fitted: call fit() first, and mend what it raises.")
        return self._result

    def __sklearn_is_fitted__(self) -> bool:
        return "_result" in vars(self)

    @property
    def n_features_in_(self) -> int:
        """d; of constrained parameters, their columns."""
        return self._fitted.n_columns

    @property
    def n_steps_(self) -> int:
        """Steps made."""
        return self._fitted.state.n_steps

    @property
    def times_(self) -> np.ndarray:
        """Flow times of the laws."""
        return np.array(self._fitted.state.times)

    @property
    def history_(self) -> list[Bunch]:
        """One record a step."""
        return self._fitted.history

    @property
    def particles_(self) -> np.ndarray:
        """The particles of the last law, (n_particles, d); a field has none."""
        if isinstance(self._fitted.state, FieldState):
            raise UnavailableError("the flow of a field has no particles: field(x, t) is u.")
        return self._fitted.seen.shown(self._fitted.state.pool.x).double().numpy(force=True).copy()

    @property
    def converged_(self) -> bool:
        """Whether the law is stationary."""
        return self._fitted.state.converged

    @property
    def stop_reason_(self) -> str:
        """Why the fit ended."""
        return self._fitted.stop_reason

    @property
    def start_note_(self) -> str | None:
        """What was done to the initial law."""
        return self._fitted.setup.note

    @property
    def n_target_evaluations_(self) -> int:
        """Evaluated points."""
        return self._fitted.setup.problem.energy.n_evaluations

    @property
    def n_target_calls_(self) -> int:
        """Batched calls."""
        return self._fitted.setup.problem.energy.n_calls

    @property
    def log_evidence_(self) -> float:
        """Log of the target's normalising constant."""
        return self._of_final_report("log_evidence")

    @property
    def log_evidence_se_(self) -> float:
        """Its standard error."""
        return self._of_final_report("log_evidence_se")

    @property
    def pareto_k_(self) -> float:
        """Tail shape of the importance weights."""
        return self._of_final_report("pareto_k")

    @property
    def ess_(self) -> float:
        """Effective draws among those that were weighted."""
        return self._of_final_report("ess")

    @property
    def report_(self) -> Report | None:
        """The report behind these four."""
        report = self._fitted.final_report
        return None if report is None else with_settings(report, self)

    def _of_final_report(self, name: str) -> float:
        report = self._fitted.final_report
        return float("nan") if report is None else float(getattr(report, name))


def spare_generator(generator: torch.Generator) -> torch.Generator:
    """Another stream, from a copy of this one, which itself stays where it is."""
    fork = torch.Generator(device=generator.device)
    fork.set_state(generator.get_state())
    seed = int(torch.randint(2**62, (1,), generator=fork, device=generator.device))
    return torch.Generator().manual_seed(seed)
