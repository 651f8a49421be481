"""The Lagrangian engine: every implicit step is a learned map of particles.

Algorithms 1 and 2 of Lee, Wang, Li (arXiv 2311.06700). By default a step is solved in three parts: in the whitened
coordinates of the metric, its best affine map by L-BFGS; on top of that, ridge functions by least squares for the
step's equation, or else a network trained with the path gradient, a ResNet potential in fixed steps and a coupling map
in adaptive ones (`step_solver`); and a check of the result on particles that took no part (`trial`). Flows with a
mobility have a solver of their own (`mobility_step`).
`Lagrangian.as_in_the_paper()` is the algorithm as printed, corrected as in `docs/design.md`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch

from jkosampler._inputs import whole_number
from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.base import GradientFlow, State
from jkosampler.engines.emulator import LARGEST_DIMENSION, emulated
from jkosampler.engines.network_step import map_kind
from jkosampler.engines.objectives import GRADIENTS
from jkosampler.engines.output_emulator import emulated_outputs, n_held_out
from jkosampler.engines.step_size import AdaptiveSteps, Control
from jkosampler.engines.step_solver import Solution, StepSolver
from jkosampler.engines.training import OPTIMIZERS
from jkosampler.engines.trial import Trial, claim, escaped, judge, stationarity_of
from jkosampler.errors import ArgumentError, FitError, TargetError
from jkosampler.maps import INTEGRATORS
from jkosampler.particles import Particles

__all__ = ["Lagrangian"]

logger = logging.getLogger(__name__)

_CHECK_PARTICLES = 2000


class Lagrangian(BaseEstimator):
    """Steps as learned maps of particles.

    Parameters
    ----------
    width : int, optional
        Units of each hidden layer; None: 64 of the ResNet potential, 32 of a coupling map.
    depth : int
        Layers of the ResNet potential.
    learning_rate : float
        Largest learning rate of Adam; it warms up over a tenth of the iterations and decays to nothing.
    optimizer : {"adam", "lbfgs"}
        Adam on mini-batches, or L-BFGS on one fixed batch (with `gradient="control-variate"` or `"plain"`).
    batch_size : int, optional
        Particles of a mini-batch; None: 512, and 256 for a coupling map.
    n_iterations : int, optional
        Iterations of a step; None: 500 a dimension of a coupling map, at most 2000, else 300 where the step size is
        fixed and 200 where it is adaptive. Fixed steps that fail are given more; a budget of the fit that would not
        suffice makes them fewer.
    tolerance : float, optional
        Algorithm 2's stopping rule: end a step when the loss, on the same particles, changes by less than this
        fraction. None: make all iterations.
    resample_every : int, optional
        Draw the training particles anew after this many iterations (C of Algorithm 2); None: carry them along, but
        200 for a coupling map.
    inner_steps : int
        N_tau, steps of the ODE's integrator; for `map="ode"`.
    integrator : {"rk4", "heun", "euler"}
        For `map="ode"`.
    map : {"gradient", "ode", "coupling"}, optional
        `x + grad phi` with its exact log determinant, the neural ODE, or affine couplings (`maps.CouplingMap`), which
        have no potential: they end where the law does not change any more, but a fixed step's minimiser they only
        approximate. None: couplings for adaptive steps in two and more dimensions, else by dimension.
    gradient : {"path", "control-variate", "plain"}, optional
        Estimate of the gradient, see `engines.objectives`; None: "path" for the gradient map, "control-variate"
        for the ODE, "plain" for a start whose density jumps.
    coverage : {"law", "spread"}, optional
        Where a network is trained: at draws of the law, or evenly from its centre to its tails
        (`Particles.draw_spread`); None: the law, in adaptive steps a tenth spread.
    potential : {"implicit", "explicit"}
        "explicit" is for costly targets, in adaptive steps: a step evaluates the potential and its gradient once at
        each particle, where the step begins, and is made in an emulator of these (`engines.emulator`); the entropy
        stays implicit. Affine steps take fewer particles. Separated modes are not looked for then. At most 20
        dimensions.
    n_ridges : int, optional
        Ridge functions of a step that is solved by least squares; None: 64 in fixed steps, where they are trained, and
        100 a dimension, at most 500, in adaptive ones, where they are random; 0: train networks instead.
    affine : bool
        Whether each step starts from its best affine map.
    warm_start : bool
        Whether a network starts from the hidden layers of the step before.
    threads : int, optional
        Threads of torch inside the fit; one is faster for small networks. None: leave as is.
    training_dtype : torch.dtype, optional
        Of the network while it is trained; None: float32. The law is always evaluated in the sampler's dtype.
    """

    n_outposts = 10_000  # held-out particles at which a map must not fold

    def __init__(
        self,
        *,
        width: int | None = None,
        depth: int = 2,
        learning_rate: float = 1e-2,
        optimizer: str = "adam",
        batch_size: int | None = None,
        n_iterations: int | None = None,
        tolerance: float | None = None,
        resample_every: int | None = None,
        inner_steps: int = 1,
        integrator: str = "rk4",
        map: str | None = None,
        gradient: str | None = None,
        coverage: str | None = None,
        potential: str = "implicit",
        n_ridges: int | None = None,
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
        self.potential = potential
        self.n_ridges = n_ridges
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
        if flow.order > 1 and map_kind(self, flow.law.dim, exact=True) != "gradient":
            raise ArgumentError(
                f"order={flow.order}: a step of second order goes on along straight lines, which only the gradient map "
                "has; give engine=engines.Lagrangian(map='gradient')."
            )
        if self.potential == "explicit" and not isinstance(flow.control, AdaptiveSteps):
            raise ArgumentError("potential='explicit' is for adaptive steps: leave step_size out.")
        if self.potential == "explicit" and flow.law.dim > LARGEST_DIMENSION:
            raise ArgumentError(
                f"potential='explicit' is for at most {LARGEST_DIMENSION} dimensions, got {flow.law.dim}: leave it out."
            )
        if self.map == "coupling" and flow.law.dim == 1:
            raise ArgumentError("map='coupling' moves coordinates by what others say; in one dimension leave map out.")
        pool = flow.start or Particles.draw(flow.law, flow.n_particles, flow.generator)
        n_check = _CHECK_PARTICLES if self.potential == "implicit" else min(_CHECK_PARTICLES, len(pool))
        if flow.energy.black_box is not None:
            n_check = min(_CHECK_PARTICLES, n_held_out(flow.law.dim))
        check = Particles.draw(flow.law, n_check, flow.generator)
        outposts = Particles.draw(flow.law, self.n_outposts, flow.generator).without_score()
        if flow.mobility is not None:
            pool = pool[pool.log_rho.argsort()]  # the thinnest first
            if not flow.energy.has_internal:  # nothing else asks for scores, which shocks make infinite
                pool, check = pool.without_score(), check.without_score()
            for particles in (pool, check, outposts):
                flow.mobility.check(flow.energy.mass * particles.log_rho.exp())
        flow.energy.check_start(check.x)
        field = flow.energy.field(check.x)
        values = field.energy + flow.energy.internal(check.log_rho)
        discrepancy, dissipation = stationarity_of(flow.energy, check, field, values.isfinite())
        seen = claim(flow.energy, values)
        return State(
            flow,
            flow.control.first(),
            pool,
            check,
            values,
            outposts,
            discrepancy=discrepancy,
            dissipation=dissipation,
            claims=() if seen is None else (seen,),
        )

    def _check_settings(self) -> None:
        choices = {
            "map": (None, "gradient", "ode", "coupling"),
            "gradient": (None, *GRADIENTS),
            "coverage": (None, "law", "spread"),
            "potential": ("implicit", "explicit"),
            "optimizer": OPTIMIZERS,
            "integrator": tuple(INTEGRATORS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        least = {
            "width": 1, "depth": 0, "batch_size": 1, "n_iterations": 1, "resample_every": 1, "inner_steps": 1,
            "n_ridges": 0, "threads": 1,
        }  # fmt: skip
        for name, bound in least.items():
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, bound)
        for name in ("learning_rate", "tolerance"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0.0 < value < float("inf")):
                raise ArgumentError(f"{name} must be positive and finite, got {value!r}.")
        if self.optimizer == "lbfgs" and self.gradient not in ("control-variate", "plain"):
            raise ArgumentError(
                "optimizer='lbfgs' needs the gradient of a fixed sample mean: give gradient='control-variate' with it."
            )

    def step(self, state: State) -> tuple[State, Bunch | None]:
        """Solve a step, judge it on held-out particles, and retry as the step control says until one is accepted."""
        started, evaluations = time.perf_counter(), state.flow.energy.n_evaluations
        control: Control | None = state.control
        rejected = 0
        trouble: TargetError | FitError | None = None
        while control is not None:
            if state.emulated is None:
                state = replace(state, emulated=self._emulated(state, control, again=rejected > 0))
            trial, trouble = self._try(state, control)
            if trial is not None and state.flow.control.accepts(control, trial.judgement):
                state = _advance(state, control, trial)
                info = trial.record(state.times[-1], state.flow.energy.mass)
                info.rejected = rejected
                info.wall_s = time.perf_counter() - started
                info.target_evaluations = state.flow.energy.n_evaluations - evaluations
                return state, info
            logger.info("step %d by %s rejected at tau=%.3g", len(state.maps) + 1, control.method, control.tau)
            rejected += 1
            if state.flow.energy.black_box is not None:
                state = replace(state, emulated=None)  # it has learnt from where it led astray
            if state.flow.energy.budget_used() >= 1.0:
                return replace(state, emulated=None), None  # what a step cut short has not brought is left out
            control = state.flow.control.after_reject(control, state.discrepancy)
        if trouble is not None and not (state.maps and state.flow.energy.black_box is not None):
            raise trouble  # an emulator that leads nowhere is no fault of the target's
        reason = "no step lowers the energy on held-out particles any further"
        converged = state.flow.control.good_enough(state.discrepancy)
        return replace(state, stopped=reason, converged=converged, emulated=None), None

    def _emulated(self, state: State, control: Control, *, again: bool) -> EnergyEvaluator | None:
        """The energy that the step is made in, where it is not the true one."""
        if state.flow.energy.black_box is not None:
            return emulated_outputs(state, control.method, again=again)
        return emulated(state) if self.potential == "explicit" and control.method != "affine" else None

    def _solve(self, state: State, control: Control) -> Solution | None:
        """A solved step, None where its method has failed."""
        return StepSolver(self, state, control).solve()

    def _try(self, state: State, control: Control) -> tuple[Trial | None, TargetError | FitError | None]:
        """A solved step as held-out particles see it, or what went wrong on the way."""
        try:
            found = self._solve(state, control)
            if found is None:
                return None, None
            return judge(state, found), None
        except TargetError as error:
            logger.info("the target failed during step %d: %s", len(state.maps) + 1, error)
            return None, error
        except (ArgumentError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            if not state.maps:
                raise
            logger.info("step %d broke down: %s", len(state.maps) + 1, error)
            return None, escaped(state, error)


def _advance(state: State, control: Control, trial: Trial) -> State:
    """The state after an accepted step."""
    step_control = state.flow.control
    then = step_control.after_accept(control, trial.judgement)
    converged = step_control.converged(control, trial.judgement)
    stopped = None
    if converged:
        stopped = "held-out particles can't tell the law from the target"
    elif step_control.stalled(then):
        converged = step_control.good_enough(trial.judgement.discrepancy)
        stopped = "further steps bring no progress that held-out particles can see"
    return replace(
        state,
        control=then,
        pool=state.pool.push(trial.step),
        check=trial.check,
        values=trial.values,
        outposts=trial.outposts,
        far=None if state.far is None else state.far.push(trial.step),
        maps=(*state.maps, trial.step),
        times=(*state.times, state.times[-1] + trial.tau),
        discrepancy=trial.judgement.discrepancy,
        dissipation=trial.dissipation,
        converged=converged,
        stopped=stopped,
        claims=state.claims if trial.claim is None else (*state.claims, trial.claim),
        missing_evidence=trial.missing_evidence,
        warm_start=trial.warm_start or state.warm_start,
        emulated=None,
    )
