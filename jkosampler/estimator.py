"""`JKOSampler`: the door to all engines, a scikit-learn-style estimator.

The fit itself is the engine's (`engines`), the fitted law is the flow's (`flow`), checks of arguments are in `_setup`,
the loop over steps in `_run`, fitted attributes in `_result`; what is here turns parameters into calls of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from tqdm.auto import tqdm

from jkosampler._ask_tell import AskTell
from jkosampler._inputs import whole_number
from jkosampler._questions import Questions
from jkosampler._readable import with_settings
from jkosampler._run import Budget, begun, led, run_by_all
from jkosampler._saved_fit import Checkpoint, loaded_fit, write_fit
from jkosampler._setup import check_that_it_ends
from jkosampler._setup_by_all import checked_by_all, is_silent
from jkosampler._surroundings import torch_scope
from jkosampler._whole_files import file_to_be
from jkosampler.diagnostics import Report
from jkosampler.errors import ArgumentError

__all__ = ["JKOSampler"]

_ENOUGH_TO_SCOUT = 500_000  # evaluations in the budget


class JKOSampler(Questions, AskTell, BaseEstimator):
    """Sample a density, or solve a PDE, by the JKO steps of a gradient flow.

    `fit` computes the flow `d rho/dt = div(M(rho) grad dE/drho)` step by step; `sample` draws independent points
    of the fitted law, `log_density` evaluates it, `diagnose` says whether it can be trusted.

    Parameters
    ----------
    log_target : callable or Target, optional
        Unnormalised log density, torch tensor (n, d) -> (n,), differentiable; or a `Target`. The energy is then
        its Kullback-Leibler divergence. Of a `Target` with `support`, whatever goes in and comes out is in the user's
        parameters, `X` and draws and densities; the flow itself moves unconstrained coordinates.
    metric : {"kalman", "wasserstein", "l2"} or Metric, optional
        None: "kalman" for a `log_target`, "wasserstein" for an `energy` of densities, "l2" for one of fields.
    mobility : "exclusion", callable or Mobility, optional
        M(rho) of the flow; None: rho itself. "exclusion" is rho (1 - rho), and a callable takes densities (n,). Needs
        fixed steps of order 1.
    dim : int, optional
        d; may be left out when the target or the initial law knows it.
    energy : Energy, optional
        An energy instead of `log_target`.
    initial : Law, torch Distribution or callable, optional
        For an L2 flow, the field u(x) at t = 0, (n, d) -> (n,); on a box, such a density. Else the law of the particles
        at t = 0; None: the target's prior, else N(0, I). Where its density jumps and `step_size` is None, a smooth law
        takes its place, and a mixture on the target's modes where these are separated: `start_note_` and the logger
        "jkosampler" say so, and
        `logging.getLogger("jkosampler").setLevel(logging.ERROR)` silences that. For a target with constraints it is a
        law of the d unconstrained coordinates z; None: the Gaussian with the mean and covariance that z has under the
        prior, or N(0, I) where there is none or constraints cut it off.
    domain : Domain, optional
        Where the field of an L2 flow lives; or a `domains.Box` with an `initial` density on it, for a flow of densities
        between walls. None: R^d.
    engine : Engine or {"lagrangian", "minimizing-movement"}, optional
        None: `engines.MinimizingMovement()` for L2 flows and on a domain, else `engines.Lagrangian()`.
    step_size : float, optional
        Flow time tau of every step, which is then solved as the JKO step of that size. None: adaptive, when only
        the end of the flow matters.
    n_steps : int, optional
        With `step_size`: exactly so many steps. Without: at most so many; fewer when the law is stationary
        before. None: until the law is stationary as far as fresh particles can tell.
    max_time : float, optional
        Budget in seconds spent in the fit. It ends the solution of a step, which is part of the fit if it has brought
        something all the same.
    max_target_evaluations : int, optional
        Budget in points that the fit evaluates, of the same kind. `max_time` and this control what a fit costs. An
        adaptive fit of a `log_target` looks for separated modes first, for half of the budget at most: that takes a
        hundred thousand evaluations or two in ten dimensions, and more where it finds some. With a budget of less than
        500 000, or in single precision, it does not.
    n_particles : int, optional
        Particles that the fit carries; None: 16 000, more in high dimension. Not a number of evaluations: a step
        evaluates the target at them, and at others, as often as it needs.
    order : {1, 2}
        Order of fixed steps in time: 1, the JKO step, or 2, which costs two of them and is as accurate as many; see
        `docs/design.md`.
    random_state : int, numpy Generator or RandomState, torch Generator, optional
        Source of all randomness; global random states are never touched.
    device : torch.device or str, optional
        None: the CPU.
    dtype : {torch.float64, torch.float32} or their names, optional
        Of the points that the target receives and of the law; None: float64. Arrays of numpy are float64 anyway.
    progress : bool
        Show a progress bar.
    checkpoint : path, optional
        A file that the fit is written to, whole, when it begins, after every step and at its end.
    resume : bool
        Whether to go on from the checkpoint that is at the path already, with the bits that the fit would have had
        without a break: it has to be of the same parameters and target. Only `n_steps`, `device` and the budgets may
        be others; these are for the whole fit, with what it has spent. False: begin anew, and replace it.

    Attributes
    ----------
    n_steps_ : int
        Steps made.
    times_ : ndarray (`n_steps_` + 1,)
        Flow times of the laws, from 0.
    history_ : list of Bunch
        One record a step: time, step_size, energy, transport_cost, loss, n_iterations, wall_s, target_evaluations,
        residual, slack and more. `residual` is that of the step's first-order identities; for fields, that of its
        equation at fresh points, relative to its right side, and `unresolved` what it may mean for u. `slack` is
        E(rho) - E(rho') - d^2 / (2 tau) on fresh particles or points, with `slack_se`; a step that `descends` has one
        that is not significantly negative. `solved` (densities): whether the solver met its own tolerance.
    particles_ : ndarray (n_particles, d)
        The particles of the last law.
    converged_ : bool
        Whether the fit ended because the law is stationary.
    stop_reason_ : str
        Why the fit ended; "interrupted" where it did not.
    start_note_ : str or None
        What was done to the initial law so that particles can carry it.
    report_ : Report or None
        What the next four are taken from.
    log_evidence_, log_evidence_se_, pareto_k_, ess_ : float
        From 4000 draws of the last law, which are made, and the target evaluated there, when one of these is first
        asked for; NaN for an `energy`.
    n_target_evaluations_, n_target_calls_ : int
        Points evaluated so far, and the batched calls in which they came; `diagnose` and the like count too.
    n_features_in_ : int
        d; of constrained parameters, their columns.
    """

    def __init__(
        self,
        log_target: Any = None,
        metric: Any = None,
        mobility: Any = None,
        *,
        dim: int | None = None,
        energy: Any = None,
        initial: Any = None,
        domain: Any = None,
        engine: Any = None,
        step_size: float | None = None,
        n_steps: int | None = None,
        max_time: float | None = None,
        max_target_evaluations: int | None = None,
        n_particles: int | None = None,
        order: int = 1,
        random_state: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        progress: bool = True,
        checkpoint: Any = None,
        resume: bool = True,
    ) -> None:
        self.log_target = log_target
        self.metric = metric
        self.mobility = mobility
        self.dim = dim
        self.energy = energy
        self.initial = initial
        self.domain = domain
        self.engine = engine
        self.step_size = step_size
        self.n_steps = n_steps
        self.max_time = max_time
        self.max_target_evaluations = max_target_evaluations
        self.n_particles = n_particles
        self.order = order
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.progress = progress
        self.checkpoint = checkpoint
        self.resume = resume

    def fit(self, X: Any = None, y: Any = None) -> JKOSampler:
        """Compute the flow.

        Results of an earlier fit are gone as soon as this one begins. An interrupt (Ctrl-C) once the particles have
        started leaves a fitted sampler with the steps made so far, perhaps none: it can be asked anything, and
        `extend(None)` goes on. An error in the midst of the fit does the same.

        Parameters
        ----------
        X : array (n, d), optional
            Starting particles, n > d; their density is `initial`'s, or that of a Gaussian mixture fitted to them.
            They are not data: data belong into `log_target`.
        y : ignored

        Returns
        -------
        JKOSampler
            The fitted sampler.

        Raises
        ------
        ArgumentError
            A parameter can't be used; the message names it.
        TargetError, StartError
            The target misbehaves, or has no mass at the start.

        Warns
        -----
        ConvergenceWarning
            (scikit-learn's) The fit ended before it converged, or before all `n_steps` of a given `step_size`.
        """
        budget, checkpoint = self._start(X)
        self._run_with_progress(self.n_steps, budget, checkpoint, exact=self.step_size is not None, resumed=True)
        return self

    def steps(self, X: Any = None) -> Iterator[Bunch]:
        """Fit step by step: yields the record of each accepted step; results are there between any two.

        Budgets do not count what is done between the steps.
        """
        budget, checkpoint = self._start(X)
        return self._run(self.n_steps, budget, checkpoint, exact=self.step_size is not None, resumed=True)

    def extend(self, n_steps: int | None = None) -> JKOSampler:
        """Go on with the fit, also where it had stopped by itself, with `max_time` and other budgets afresh.

        Parameters
        ----------
        n_steps : int, optional
            Steps to make; None: go on until the fit stops by itself, one step at least.
        """
        setup = self._fitted.setup
        if n_steps is not None:
            n_steps = whole_number(n_steps, "n_steps", 1)
        check_that_it_ends(self, setup.functional, n_steps)
        budget = Budget(self.max_time, self.max_target_evaluations)
        self._run_with_progress(n_steps, budget, self._open_checkpoint(), exact=True)
        return self

    def diagnose(self, n: int = 4000) -> Report:
        """Compare the law with the target on n fresh draws, and say in words whether to trust it.

        `diagnose().to_html("report.html")` writes a page about it, with figures.

        Raises
        ------
        ArgumentError
            The sampler has no `log_target` to compare with, or n is less than 25.
        FitError
            The maps of the flow fold at so many draws that too few are left.
        """
        fitted = self._fitted
        if fitted.setup.target is None:
            raise ArgumentError("diagnose compares with a log_target; this sampler has none, look at history_.")
        generator = fitted.generator
        report = led("diagnose", fitted.setup, lambda: fitted.report(n, generator), generators=[generator])
        return with_settings(report, self)

    def to_arviz(self, draws: int = 1000, chains: int = 4, *, random_state: Any = None) -> Any:
        """Independent draws split into chains, as ArviZ keeps them: InferenceData (0.x) or DataTree (1.x).

        Groups: `posterior`; `sample_stats` with lp (log target), log_q and log_weight; `observed_data`,
        `constant_data`, `log_likelihood` and `prior` where the target knows them; `step_history`.
        """
        from jkosampler._export import arviz_groups
        from jkosampler.arviz_io import to_arviz

        fitted, generator = self._fitted, self._stream(random_state)
        with torch_scope():
            groups = led(
                "to_arviz", fitted.setup, lambda: arviz_groups(fitted, draws, chains, generator), generators=[generator]
            )
        return to_arviz(**groups)

    def save(self, path: Any) -> None:
        """Write the fitted sampler to a file: all but what Python functions are in its parameters.

        Raises
        ------
        ArgumentError
            The path can't be that of a file.
        CheckpointError
            The file can't be written.
        """
        write_fit(file_to_be(path, "path"), self, self._fitted)

    @classmethod
    def load(cls, path: Any, log_target: Any = None, initial: Any = None, **parameters: Any) -> JKOSampler:
        """A fitted sampler from a file that `save`, or a checkpoint, has written; nothing in it is executed.

        Functions, targets of other packages and torch distributions are not in the file. `sample` and `log_density`
        need no `log_target`; where something is missing, a question that needs it says so.

        Parameters
        ----------
        path : path
        log_target, initial, **parameters
            Parameters of the sampler that are given anew.

        Raises
        ------
        ArgumentError
            A parameter can't be used.
        CheckpointError
            The file is not there, damaged, or none of this package's; or `log_target` is not the one of the fit.
        """
        unknown = sorted(set(parameters) - set(cls._get_param_names()))
        if unknown:
            raise ArgumentError(f"{unknown[0]!r} is no parameter of JKOSampler.")
        with torch_scope():
            given = {"log_target": log_target, "initial": initial} | parameters
            sampler, fitted = loaded_fit(file_to_be(path, "path"), given, cls)
        sampler._result = fitted
        return sampler

    def _start(self, X: Any) -> tuple[Budget, Checkpoint | None]:
        """Check the parameters, draw the particles, and leave a sampler of zero steps, or of a checkpoint's."""
        self.__dict__.pop("_result", None)
        setup, generator = checked_by_all(self, X)
        budget = Budget(self.max_time, self.max_target_evaluations)
        scouted = (self.max_target_evaluations or math.inf) >= _ENOUGH_TO_SCOUT
        checkpoint = self._open_checkpoint()
        try:
            self._result = begun(setup, generator, budget, scouted=scouted, checkpoint=checkpoint)
            if checkpoint is not None:
                checkpoint.write(self._result, budget)
        except BaseException:
            if checkpoint is not None:
                checkpoint.close()
            raise
        return budget, checkpoint

    def _open_checkpoint(self) -> Checkpoint | None:
        """The file that the fit is written to, by one process where there are several."""
        return None if self.checkpoint is None or is_silent() else Checkpoint(self)

    def _run_with_progress(
        self, n_steps: int | None, budget: Budget, checkpoint: Checkpoint | None, *, exact: bool, resumed: bool = False
    ) -> None:
        made = self._result.state.n_steps if resumed else 0
        silent = not self.progress or is_silent()
        with tqdm(total=n_steps, initial=made, disable=silent, desc="JKO steps", unit="step") as bar:
            for record in self._run(n_steps, budget, checkpoint, exact=exact, resumed=resumed):
                shown = {"energy": f"{record.energy:.5g}", "tau": f"{record.step_size:.3g}"}
                bar.set_postfix(shown if np.isnan(record.ess) else shown | {"ess": f"{record.ess:.1%}"})
                bar.update()

    def _run(
        self, n_steps: int | None, budget: Budget, checkpoint: Checkpoint | None, *, exact: bool, resumed: bool = False
    ) -> Iterator[Bunch]:
        try:
            for result in run_by_all(self._fitted, n_steps, budget, exact=exact, resumed=resumed):
                is_step = result.state.n_steps != self._fitted.state.n_steps
                self._result = result
                if checkpoint is not None:
                    checkpoint.write(result, budget)
                if is_step:
                    yield result.history[-1]
        finally:
            if checkpoint is not None:
                checkpoint.close()
