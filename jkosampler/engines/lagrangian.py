"""The Lagrangian engine: every implicit step is a learned map of particles.

Algorithms 1 and 2 of Lee, Wang, Li (arXiv 2311.06700). By default a step is solved in three parts: in the whitened
coordinates of the metric, its best affine map by L-BFGS; on top of that a ResNet potential, trained with the path
gradient; and a check of the result on particles that took no part. `Lagrangian.as_in_the_paper()` is the
algorithm as printed (with the corrections of `docs/design.md`).
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from torch import Tensor

from jkosampler.engines.affine import AffineSolution, set_affine, solve_affine
from jkosampler.engines.base import GradientFlow, State
from jkosampler.engines.objectives import GRADIENTS, StepProblem
from jkosampler.engines.step_size import Control
from jkosampler.engines.training import OPTIMIZERS, TrainingResult, TrainingSettings, train
from jkosampler.engines.trial import Trial, judge, stationarity_of
from jkosampler.errors import ArgumentError, TargetError
from jkosampler.maps import INTEGRATORS, GradientMap, Map, ODEMap
from jkosampler.particles import Particles, calibrated_weights
from jkosampler.potentials import ResNetPotential

__all__ = ["Lagrangian"]

logger = logging.getLogger(__name__)

_CHECK_PARTICLES = 2000
_GRADIENT_MAP_LIMIT = 32  # the exact log det costs O(d^3) a particle: beyond, the trace of an ODE is cheaper
_PASSES = 32  # mini-batches that a network's training points make at least
_NEGLIGIBLE_GAIN = 1e-6  # nats: an affine step that leaves less to gain needs no network
_HUTCHINSON_LIMIT = 512  # the exact trace costs O(m^2 d) a particle: beyond, probes are cheaper


class Lagrangian(BaseEstimator):
    """Steps as learned maps of particles.

    Parameters
    ----------
    width, depth : int
        Units and layers of the ResNet potential.
    learning_rate : float
        Largest learning rate of Adam; it warms up over a tenth of the iterations and decays to nothing.
    optimizer : {"adam", "lbfgs"}
        Adam on mini-batches, or L-BFGS on one fixed batch (with `gradient="control-variate"` or `"plain"`).
    batch_size : int
        Particles of a mini-batch.
    n_iterations : int, optional
        Iterations of a step; None: 200 where the step size is adaptive, 300 where it is fixed. Steps that fail
        or stall are given more.
    tolerance : float, optional
        Algorithm 2's stopping rule: end a step when the loss, on the same particles, changes by less than this
        fraction. None: make all iterations.
    resample_every : int, optional
        Draw the training particles anew after this many iterations (C of Algorithm 2); None: carry them along.
    inner_steps : int
        N_tau, steps of the ODE's integrator; for `map="ode"`.
    integrator : {"rk4", "heun", "euler"}
        For `map="ode"`.
    map : {"gradient", "ode"}, optional
        `x + grad phi` with its exact log determinant, or the neural ODE; None: by dimension.
    gradient : {"path", "control-variate", "plain"}, optional
        Estimate of the gradient, see `engines.objectives`; None: "path" for the gradient map, "control-variate"
        for the ODE, "plain" for a start whose density jumps.
    coverage : {"law", "spread"}, optional
        Where a network is trained: at draws of the law, or evenly from its centre to its tails
        (`Particles.draw_spread`); None: "law", and "spread" for the last adaptive steps, near the target.
    affine : bool
        Whether each step starts from its best affine map.
    warm_start : bool
        Whether a network starts from the hidden layers of the step before.
    threads : int, optional
        Threads of torch inside the fit; one is faster for small networks. None: leave as is.
    training_dtype : torch.dtype, optional
        Of the network while it is trained; None: float32. The law is always evaluated in the sampler's dtype.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: int = 2,
        learning_rate: float = 1e-2,
        optimizer: str = "adam",
        batch_size: int = 512,
        n_iterations: int | None = None,
        tolerance: float | None = None,
        resample_every: int | None = None,
        inner_steps: int = 1,
        integrator: str = "rk4",
        map: str | None = None,
        gradient: str | None = None,
        coverage: str | None = None,
        affine: bool = True,
        warm_start: bool = True,
        threads: int | None = 1,
        training_dtype: torch.dtype | None = None,
    ) -> None:
        self.width = width
        self.depth = depth
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.n_iterations = n_iterations
        self.tolerance = tolerance
        self.resample_every = resample_every
        self.inner_steps = inner_steps
        self.integrator = integrator
        self.map = map
        self.gradient = gradient
        self.coverage = coverage
        self.affine = affine
        self.warm_start = warm_start
        self.threads = threads
        self.training_dtype = training_dtype

    @classmethod
    def as_in_the_paper(cls, **changes: object) -> Lagrangian:
        """Algorithm 2 of the paper: RK4 neural ODE, plain gradient, Adam, fresh particles, no affine stage.

        The paper takes 10 000 iterations a step at learning rate 1e-5; any setting can be changed by name.
        """
        settings: dict[str, object] = {
            "depth": 3,
            "learning_rate": 1e-5,
            "batch_size": 1000,
            "n_iterations": 10_000,
            "resample_every": 100,
            "map": "ode",
            "gradient": "plain",
            "coverage": "law",
            "affine": False,
        }
        return cls(**(settings | changes))  # type: ignore[arg-type]

    def init(self, flow: GradientFlow) -> State:
        """Draw the particles and evaluate the energy where they start."""
        self._check_settings()
        pool = flow.start or Particles.draw(flow.law, flow.n_particles, flow.generator)
        control = flow.control.first()
        check = Particles.draw(flow.law, min(_CHECK_PARTICLES, flow.n_particles), flow.generator)
        flow.energy.check_start(check.x)
        potential, gradient = flow.energy.potential(check.x)
        values = potential + flow.energy.internal(check.log_rho)
        discrepancy, dissipation = stationarity_of(flow.energy, check, potential, gradient)
        return State(flow, control, pool, check, values, discrepancy=discrepancy, dissipation=dissipation)

    def _check_settings(self) -> None:
        choices = {
            "map": (None, "gradient", "ode"),
            "gradient": (None, *GRADIENTS),
            "coverage": (None, "law", "spread"),
            "optimizer": OPTIMIZERS,
            "integrator": tuple(INTEGRATORS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        if self.optimizer == "lbfgs" and self.gradient not in ("control-variate", "plain"):
            raise ArgumentError(
                "optimizer='lbfgs' needs the gradient of a fixed sample mean: give gradient='control-variate' with it."
            )

    def _covers_tails(self, control: Control) -> bool:
        return control.tails == "yes" if self.coverage is None else self.coverage == "spread"

    def _draw_training(self, flow: GradientFlow, control: Control) -> Particles:
        draw = Particles.draw_spread if self._covers_tails(control) else Particles.draw
        return draw(flow.law, max(flow.n_particles, _PASSES * self.batch_size), flow.generator)

    def step(self, state: State) -> tuple[State, Bunch | None]:
        """Solve a step, judge it on fresh particles, and retry as the step control says until one is accepted."""
        started, evaluations = time.perf_counter(), state.flow.energy.n_evaluations
        control: Control | None = state.control
        rejected = 0
        trouble: TargetError | None = None
        while control is not None:
            trial, trouble = self._try(state, control)
            if trial is not None and state.flow.control.accepts(control, trial.judgement):
                state = _advance(state, control, trial)
                info = trial.record(control.tau, state.times[-1])
                info.rejected = rejected
                info.wall_s = time.perf_counter() - started
                info.target_evaluations = state.flow.energy.n_evaluations - evaluations
                return state, info
            logger.info("step %d rejected at tau=%.3g", len(state.maps) + 1, control.tau)
            rejected += 1
            control = state.flow.control.after_reject(control, state.discrepancy)
        if trouble is not None:
            raise trouble
        reason = "no step lowers the energy on fresh particles any further"
        converged = state.flow.control.good_enough(state.discrepancy)
        return replace(state, stopped=reason, converged=converged), None

    def _try(self, state: State, control: Control) -> tuple[Trial | None, TargetError | None]:
        """A solved step as fresh particles see it, or the target's trouble on the way."""
        try:
            return self._solve(state, control), None
        except TargetError as error:
            logger.info("the target failed during step %d: %s", len(state.maps) + 1, error)
            return None, error

    def _solve(self, state: State, control: Control) -> Trial:
        flow = state.flow
        weights = calibrated_weights(state.pool)
        frame = flow.metric.frame(state.pool, weights)
        problem = StepProblem(flow.energy, frame, control.tau)
        inner = frame.to_inner(state.pool)
        affine = self._solve_affine(problem, inner, weights, control)
        step: Map = GradientMap(affine.potential(inner.x.dtype))
        training = TrainingResult(float("nan"), 0)
        if control.network and not (control.exact and _is_solved(problem, step, inner)):
            step = self._network_map(state, affine, inner)
            points = inner
            if not control.exact:
                # New points for every step: a network that fitted the last ones has nothing left to learn there.
                points = frame.to_inner(_push_all(self._draw_training(flow, control), state.maps))
            training = self._train(state, control, problem, step, points)
        return judge(state, problem, step.to(inner.x.dtype), training)

    def _solve_affine(
        self, problem: StepProblem, inner: Particles, weights: Tensor, control: Control
    ) -> AffineSolution:
        if not self.affine:
            return AffineSolution.identity(inner.x)
        if control.exact:
            return solve_affine(problem, inner, weights, max_iterations=200)
        d = inner.x.shape[1]
        some = inner[: max(500, 10 * (d * d + d))]
        return solve_affine(problem, some, calibrated_weights(some), max_iterations=20)

    def _network_map(self, state: State, affine: AffineSolution, inner: Particles) -> Map:
        """A map to train: the affine solution, and a network that is still zero."""
        d = inner.x.shape[1]
        ode = self._is_ode(d)
        potential = ResNetPotential(
            d,
            width=self.width,
            depth=self.depth,
            time_input=ode,
            generator=state.flow.generator,
            dtype=self.training_dtype or torch.float32,
            device=inner.x.device,
        )
        hidden = state.warm_start if self.warm_start else {}
        potential.load_state_dict(hidden, strict=False)
        if not ode:
            set_affine(potential, affine.matrix - torch.eye(d).to(inner.x), affine.shift)
            return GradientMap(potential)
        set_affine(potential, affine.exponent, affine.velocity)
        probes = torch.randn(16, d, generator=state.flow.generator).to(inner.x) if d > _HUTCHINSON_LIMIT else None
        return ODEMap(potential, integrator=self.integrator, inner_steps=self.inner_steps, probes=probes)

    def _train(
        self, state: State, control: Control, problem: StepProblem, step: Map, training: Particles
    ) -> TrainingResult:
        name = self.gradient or _default_gradient(step, training)
        settings = TrainingSettings(
            n_iterations=control.effort * (self.n_iterations or (300 if control.exact else 200)),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate * _reach(state.discrepancy),
            optimizer=self.optimizer,
            tolerance=self.tolerance,
            resample_every=self.resample_every,
        )
        dtype = next(step.parameters()).dtype

        def resample() -> Particles:
            drawn = self._draw_training(state.flow, control)
            return problem.frame.to_inner(_push_all(drawn, state.maps)).to(dtype)

        objective = GRADIENTS[name](problem)
        return train(step, objective, training.to(dtype), settings, state.flow.generator, resample)

    def _is_ode(self, dim: int) -> bool:
        return self.map == "ode" or (self.map is None and dim > _GRADIENT_MAP_LIMIT)


def _reach(discrepancy: float) -> float:
    """Fraction of the learning rate for a law this near: the way left is at most sqrt(2 KL), Adam's steps are not less.

    (Talagrand's inequality, in whitened coordinates of a Gaussian.)
    """
    return min(1.0, max(0.05, (discrepancy / 0.02) ** 0.5)) if discrepancy == discrepancy else 1.0


def _push_all(particles: Particles, maps: tuple[Map, ...]) -> Particles:
    for step in maps:
        particles = particles.push(step)
    return particles


def _advance(state: State, control: Control, trial: Trial) -> State:
    """The state after an accepted step."""
    step_control = state.flow.control
    then = step_control.after_accept(control, trial.judgement)
    converged = step_control.converged(control, trial.judgement)
    stopped = None
    if converged:
        stopped = "fresh particles can't tell the law from the target"
    elif step_control.stalled(then):
        converged = step_control.good_enough(trial.judgement.discrepancy)
        stopped = "further steps bring no progress that fresh particles can see"
    return replace(
        state,
        control=then,
        pool=state.pool.push(trial.step),
        check=trial.check,
        values=trial.values,
        maps=(*state.maps, trial.step),
        times=(*state.times, state.times[-1] + control.tau),
        discrepancy=trial.judgement.discrepancy,
        dissipation=trial.dissipation,
        converged=converged,
        stopped=stopped,
        warm_start=trial.hidden_layers() or state.warm_start,
    )


def _is_solved(problem: StepProblem, step: Map, inner: Particles) -> bool:
    """Whether the affine map alone solves the step: its Euler-Lagrange residual bounds what is left to gain."""
    if inner.score is None:
        return False
    some = inner[:_CHECK_PARTICLES]
    assert some.score is not None
    pushed = step.push(some.x, some.score)
    _, gradient = problem.potential(pushed.x)
    residual = problem.residual(some.x, pushed, some.log_rho - pushed.log_det, gradient)
    return float(residual.square().sum(-1).mean()) / (2.0 * problem.stiffness) < _NEGLIGIBLE_GAIN


def _default_gradient(step: Map, inner: Particles) -> str:
    if inner.score is None:
        return "plain"
    return "control-variate" if isinstance(step, ODEMap) else "path"
