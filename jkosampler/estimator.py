"""`JKOSampler`: the door to all engines, a scikit-learn-style estimator.

The fit itself is the engine's (`engines`), the fitted law is the flow's (`flow`), checks of arguments are in
`_setup`; what is here turns parameters into these, and their results into fitted attributes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from torch import Tensor
from tqdm.auto import tqdm

from jkosampler._setup import Setup, as_points, like_caller, random_generator, torch_threads
from jkosampler.diagnostics import Report, evidence, report_from_log_weights
from jkosampler.diagnostics.stationarity import stationarity
from jkosampler.engines import State
from jkosampler.errors import ArgumentError, NotFittedError
from jkosampler.flow import FittedFlow
from jkosampler.particles import Particles

__all__ = ["JKOSampler"]

logger = logging.getLogger(__name__)

_FINAL_DRAWS = 4000  # behind log_evidence_, pareto_k_ and ess_


class JKOSampler(BaseEstimator):
    """Sample a density, or solve a PDE, by the JKO steps of a gradient flow.

    `fit` computes the flow `d rho/dt = div(M(rho) grad dE/drho)` step by step; `sample` draws independent points
    of the fitted law, `log_density` evaluates it, `diagnose` says whether it can be trusted.

    Parameters
    ----------
    log_target : callable or Target, optional
        Unnormalised log density, torch tensor (n, d) -> (n,), differentiable; or a `Target`. The energy is then
        its Kullback-Leibler divergence.
    metric : {"kalman", "wasserstein"} or Metric, optional
        None: "kalman" for a `log_target`, "wasserstein" for an `energy`.
    mobility : optional
        None, for M(rho) = rho; other mobilities are not in this version.
    dim : int, optional
        d; may be left out when the target or the initial law knows it.
    energy : Energy, optional
        An energy instead of `log_target`.
    initial : Law or torch Distribution, optional
        Law of the particles at t = 0; None: the target's prior, else N(0, I).
    domain : optional
        None, for R^d; other domains are not in this version.
    engine : Engine or {"lagrangian"}, optional
        None: `engines.Lagrangian()`.
    step_size : float, optional
        Flow time tau of every step, which is then solved as the JKO step of that size. None: adaptive, when only
        the end of the flow matters.
    n_steps : int, optional
        None: until the law is stationary as far as fresh particles can tell.
    max_time : float, optional
        Budget in seconds; the fit ends after the step that exceeds it.
    max_target_evaluations : int, optional
        Budget in evaluated points; the fit ends after the step that exceeds it.
    n_particles : int, optional
        Particles that the fit carries; None: 16 000, more in high dimension.
    order : int
        Order in time; 1, the JKO step, in this version.
    random_state : int, numpy Generator or torch Generator, optional
        Source of all randomness; global random states are never touched.
    device : torch.device or str, optional
        None: the CPU.
    dtype : torch.dtype, optional
        Of the points that the target receives and of the law; None: float64.
    progress : bool
        Show a progress bar.
    checkpoint : optional
        None; checkpoints are not in this version.
    resume : bool
        Of a checkpoint.

    Attributes
    ----------
    n_steps_ : int
        Steps made.
    times_ : ndarray (`n_steps_` + 1,)
        Flow times of the laws, from 0.
    history_ : list of Bunch
        One record a step: time, step_size, energy, transport_cost, loss, n_iterations, wall_s, target_evaluations,
        residual (of the step's first-order identities) and more.
    particles_ : ndarray (n_particles, d)
        The particles of the last law.
    converged_ : bool
        Whether the fit ended because the law is stationary.
    stop_reason_ : str
        Why the fit ended.
    start_note_ : str or None
        What was done to the initial law so that particles can carry it.
    log_evidence_, log_evidence_se_, pareto_k_, ess_ : float
        From fresh draws at the end of the fit, for a `log_target`.
    n_target_evaluations_, n_target_calls_ : int
        Evaluated points, and the batched calls in which they came.
    n_features_in_ : int
        d.
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

        Parameters
        ----------
        X : array (n, d), optional
            Starting particles; their density is `initial`'s, or that of a Gaussian mixture fitted to them.
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
        """
        self._start(X)
        self._run_with_progress(self.n_steps)
        return self

    def steps(self, X: Any = None) -> Iterator[Bunch]:
        """Fit step by step: yields the record of each accepted step; results are there between any two."""
        self._start(X)
        yield from self._run(self.n_steps)

    def extend(self, n_steps: int) -> JKOSampler:
        """Go on with the fit for more steps, also where it had stopped by itself."""
        self._fitted()
        if not isinstance(n_steps, int | np.integer) or n_steps < 1:
            raise ArgumentError(f"n_steps must be a positive whole number, got {n_steps!r}.")
        self._run_with_progress(int(n_steps))
        return self

    def sample(
        self,
        n: int = 1000,
        t: float | None = None,
        *,
        method: str = "flow",
        random_state: Any = None,
        as_tensor: bool = False,
    ) -> Any:
        """Independent, unweighted draws (n, d) of the law at flow time t (None: the last).

        With `random_state=None` the sampler's own random stream goes on.
        """
        flow = self._fitted().flow
        if method != "flow":
            raise ArgumentError(f"method must be 'flow' in this version, got {method!r}.")
        if not isinstance(n, int | np.integer) or n < 0:
            raise ArgumentError(f"n must be a whole number of draws, got {n!r}.")
        generator = self._generator if random_state is None else random_generator(random_state)
        draws = flow.sample(int(n), t=t, generator=generator)
        return draws if as_tensor else draws.cpu().numpy()

    def log_density(self, x: Any, t: float | None = None) -> Any:
        """Log density (n,) of the law at flow time t (None: the last), at x (n, d), normalised to one.

        Raises
        ------
        MapInversionError
            At points where a map of the flow can't be inverted.
        """
        setup = self._fitted()
        points = as_points(x, setup.dim, setup.dtype, setup.device)
        return like_caller(setup.flow.log_density(points, t=t), x)

    def density(self, x: Any, t: float | None = None) -> Any:
        """Density (n,) of the law at flow time t, at x (n, d): its mass times exp(log_density)."""
        log_density = self.log_density(x, t)
        exp = torch.exp if isinstance(log_density, Tensor) else np.exp
        return self._setup.law.mass * exp(log_density)

    def score_samples(self, X: Any) -> Any:
        """`log_density(X)`, under scikit-learn's name."""
        return self.log_density(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the fitted law at X (n, d)."""
        return float(self.log_density(X).mean())

    def diagnose(self, n: int = 4000) -> Report:
        """Compare the law with the target on n fresh draws, and say in words whether to trust it.

        Raises
        ------
        ArgumentError
            The sampler has no `log_target` to compare with.
        """
        setup = self._fitted()
        if setup.target is None:
            raise ArgumentError("diagnose compares with a log_target; this sampler has none, look at history_.")
        particles, log_weights, log_p_gradient = self._weighted(n)
        residual = None
        if particles.score is not None and n > setup.dim:
            relative = (particles.score - log_p_gradient).cpu().numpy()
            residual = stationarity(relative, np.cov(particles.x.cpu().numpy().T).reshape(setup.dim, setup.dim))
        return report_from_log_weights(log_weights, stationarity=residual, converged=self.converged_, dim=setup.dim)

    def to_arviz(self, draws: int = 1000, chains: int = 4, *, random_state: Any = None) -> Any:
        """Independent draws split into chains, as ArviZ keeps them: InferenceData (0.x) or DataTree (1.x).

        Groups: `posterior`; `sample_stats` with lp (log target), log_q and log_weight; `observed_data`,
        `constant_data`, `log_likelihood` and `prior` where the target knows them; `step_history`.
        """
        from jkosampler._export import arviz_groups
        from jkosampler.arviz_io import to_arviz

        setup = self._fitted()
        generator = self._generator if random_state is None else random_generator(random_state)
        return to_arviz(**arviz_groups(setup, self.history_, draws, chains, generator))

    def _fitted(self) -> Setup:
        if not hasattr(self, "n_steps_"):
            raise NotFittedError("this JKOSampler is not fitted yet: call fit() first.")
        return self._setup

    def _start(self, X: Any) -> None:
        """Check the parameters, draw the particles, and leave a sampler of zero steps."""
        self._generator = random_generator(self.random_state)
        self._setup = Setup.of(self, X, self._generator)
        if self._setup.note:
            logger.warning(self._setup.note)
        self._began = time.perf_counter()
        self.history_: list[Bunch] = []
        with torch_threads(self._setup.engine.threads):
            self._publish(self._setup.engine.init(self._setup.problem))

    def _run_with_progress(self, n_steps: int | None) -> None:
        with tqdm(total=n_steps, disable=not self.progress, desc="JKO steps", unit="step") as bar:
            for record in self._run(n_steps):
                bar.set_postfix(energy=f"{record.energy:.5g}", tau=f"{record.step_size:.3g}", ess=f"{record.ess:.1%}")
                bar.update()

    def _run(self, n_steps: int | None) -> Iterator[Bunch]:
        engine, made = self._setup.engine, 0
        while not self._finished(made, n_steps):
            with torch_threads(engine.threads):
                state, record = engine.step(self._state)
            self._publish(state)
            if record is None:
                break
            record.ess = evidence(-state.values.cpu().numpy()).ess_fraction if self._setup.target else float("nan")
            record.note = self._setup.note if not self.history_ else None
            self.history_.append(record)
            made += 1
            yield record
        if self._setup.target is not None:
            self._evaluate()

    def _finished(self, made: int, n_steps: int | None) -> bool:
        if n_steps is not None:
            self.stop_reason_ = f"all {n_steps} steps were made"
            if made >= n_steps:
                return True
        elif self._state.stopped:
            return True
        if self.max_time is not None and time.perf_counter() - self._began > self.max_time:
            self.stop_reason_ = f"max_time={self.max_time} s was used up"
            return True
        spent = self._setup.problem.energy.n_evaluations
        if self.max_target_evaluations is not None and spent >= self.max_target_evaluations:
            self.stop_reason_ = f"max_target_evaluations={self.max_target_evaluations} was used up"
            return True
        return False

    def _publish(self, state: State) -> None:
        """Make a state's results the sampler's."""
        self._state = state
        self._setup.flow = FittedFlow(self._setup.law, self._setup.problem.law, state.maps, state.times)
        self.n_steps_ = len(state.maps)
        self.times_ = np.array(state.times)
        self.particles_ = state.pool.x.cpu().numpy()
        self.converged_ = state.converged
        self.stop_reason_ = state.stopped or "interrupted"
        self.start_note_ = self._setup.note
        self.n_features_in_ = self._setup.dim
        self._count()

    def _count(self) -> None:
        self.n_target_evaluations_ = self._setup.problem.energy.n_evaluations
        self.n_target_calls_ = self._setup.problem.energy.n_calls

    def _weighted(self, n: int) -> tuple[Particles, np.ndarray, Tensor]:
        """n fresh particles, their log weights (n,) and the gradient of the log target (n, d)."""
        setup = self._setup
        with torch_threads(setup.engine.threads):
            particles = setup.flow.particles(n, self._generator)
            potential, gradient = setup.problem.energy.potential(particles.x)
        self._count()
        return particles, (-potential - particles.log_rho).cpu().numpy(), -gradient

    def _evaluate(self) -> None:
        """Evidence, ESS and k-hat of the last law."""
        _, log_weights, _ = self._weighted(_FINAL_DRAWS)
        report = report_from_log_weights(log_weights, stationarity=None, converged=self.converged_, dim=self._setup.dim)
        self.log_evidence_, self.log_evidence_se_ = report.log_evidence, report.log_evidence_se
        self.pareto_k_, self.ess_ = report.pareto_k, report.ess
