"""How the Lagrangian engine solves one step, before it is judged: affine map, collocation, or a trained network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jkosampler.engines.affine import AffineSolution, set_affine, solve_affine
from jkosampler.engines.base import GradientFlow, State
from jkosampler.engines.collocation import draw_ridge_functions, n_functions, solve_collocation
from jkosampler.engines.objectives import GRADIENTS, StepProblem
from jkosampler.engines.step_size import Control
from jkosampler.engines.training import TrainingResult, TrainingSettings, train
from jkosampler.maps import GradientMap, Map, ODEMap
from jkosampler.particles import Particles, calibrated_weights, fewest_calibrated
from jkosampler.potentials import ResNetPotential

if TYPE_CHECKING:
    from jkosampler.engines.lagrangian import Lagrangian

__all__ = ["Solution", "StepSolver"]

_GRADIENT_MAP_LIMIT = 32  # the exact log det costs O(d^3) a particle: beyond, the trace of an ODE is cheaper
_HUTCHINSON_LIMIT = 512  # the exact trace costs O(m^2 d) a particle: beyond, probes are cheaper
_PASSES = 32  # mini-batches that a network's training points make at least
_NEGLIGIBLE_GAIN = 1e-6  # nats: an affine step that leaves less to gain needs no network
_SOME = 2000  # particles that decide whether the affine map suffices; points of a collocation, at least
_RIDGES_PER_DIMENSION, _MOST_RIDGES = 100, 500
_POINTS_PER_FUNCTION = 12
_TAIL_SHARE = 0.25  # of collocation points and ..
_TAIL_WEIGHT = 0.1  # .. their weight beside those of the law, while the law is far from the target
_UNRESOLVED = 0.1  # of the discrepancy: collocation that leaves more has not solved its step


class Solution(NamedTuple):
    """A solved step: the problem, the map in its coordinates, and how the map was found."""

    problem: StepProblem
    step: Map
    training: TrainingResult
    method: str


class StepSolver:
    """Solves the step that a state's control asks for, with an engine's settings."""

    def __init__(self, engine: Lagrangian, state: State, control: Control) -> None:
        self.engine, self.state, self.control = engine, state, control
        self.flow: GradientFlow = state.flow

    def solve(self) -> Solution | None:
        """The solved step; None where its method has failed."""
        weights = calibrated_weights(self.state.pool)
        frame = self.flow.metric.frame(self.state.pool, weights)
        # A fixed step is in flow time; an adaptive one in that of whitened coordinates.
        tau = self.control.tau if self.control.exact else self.control.tau * frame.cost
        problem = StepProblem(self.flow.energy, frame, tau)
        inner = frame.to_inner(self.state.pool)
        affine = self._affine(problem, inner, weights)
        step = GradientMap(affine.potential(inner.x.dtype))
        if self.control.method == "collocation":
            return self._collocation(problem, affine)
        if self.control.method == "affine" or (self.control.exact and _is_solved(problem, step, inner)):
            return Solution(problem, step, TrainingResult(float("nan"), 0), "affine")
        return self._network(problem, affine, inner)

    def _affine(self, problem: StepProblem, inner: Particles, weights: Tensor) -> AffineSolution:
        if not self.engine.affine:
            return AffineSolution.identity(inner.x)
        if self.control.exact:
            return solve_affine(problem, inner, weights, max_iterations=200)
        some = inner[: max(500, fewest_calibrated(inner.x.shape[1]))]
        return solve_affine(problem, some, calibrated_weights(some), max_iterations=20)

    def _collocation(self, problem: StepProblem, affine: AffineSolution) -> Solution | None:
        d, generator = len(affine.shift), self.flow.generator
        if self.engine.n_ridges == 0 or d > _GRADIENT_MAP_LIMIT:
            return None
        width = self.engine.n_ridges or min(_RIDGES_PER_DIMENSION * d, _MOST_RIDGES)
        potential = ResNetPotential(d, width=width, depth=1, generator=generator, device=affine.shift.device)
        draw_ridge_functions(potential, generator)
        set_affine(potential, *_displacement(affine))
        n = max(_SOME, _POINTS_PER_FUNCTION * n_functions(potential))
        n_tail = n if self._covers_tails() else int(_TAIL_SHARE * n)
        points = self._covering(n - n_tail, n_tail).without_score().push_all(self.state.maps)
        weights = torch.cat([torch.ones(n - n_tail), torch.full((n_tail,), _TAIL_WEIGHT)])
        found = solve_collocation(problem, problem.frame.to_inner(points), weights.to(points.x), potential)
        allowed = _UNRESOLVED * max(self.state.discrepancy, self.flow.control.threshold)
        if found is None or found.after > allowed:
            return None
        training = TrainingResult(found.after, found.n_iterations)
        return Solution(problem, GradientMap(potential.to(affine.shift)), training, "collocation")

    def _network(self, problem: StepProblem, affine: AffineSolution, inner: Particles) -> Solution:
        step = self._network_map(affine, inner)
        points = inner
        if not self.control.exact:
            # New points for every step: a network that fitted the last ones has nothing left to learn there.
            points = problem.frame.to_inner(self._training_points().push_all(self.state.maps))
        training = self._train(problem, step, points)
        return Solution(problem, step.to(inner.x.dtype), training, "network")

    def _network_map(self, affine: AffineSolution, inner: Particles) -> Map:
        """A map to train: the affine solution, and a network that is still zero."""
        engine, d = self.engine, inner.x.shape[1]
        ode = engine.map == "ode" or (engine.map is None and d > _GRADIENT_MAP_LIMIT)
        potential = ResNetPotential(
            d,
            width=engine.width,
            depth=engine.depth,
            time_input=ode,
            generator=self.flow.generator,
            dtype=engine.training_dtype or torch.float32,
            device=inner.x.device,
        )
        potential.load_state_dict(self.state.warm_start if engine.warm_start else {}, strict=False)
        if not ode:
            set_affine(potential, *_displacement(affine))
            return GradientMap(potential)
        set_affine(potential, affine.exponent, affine.velocity)
        probes = torch.randn(16, d, generator=self.flow.generator).to(inner.x) if d > _HUTCHINSON_LIMIT else None
        inner_steps = engine.inner_steps * self.control.effort
        return ODEMap(potential, integrator=engine.integrator, inner_steps=inner_steps, probes=probes)

    def _train(self, problem: StepProblem, step: Map, points: Particles) -> TrainingResult:
        engine, control = self.engine, self.control
        settings = TrainingSettings(
            n_iterations=control.effort * (engine.n_iterations or (300 if control.exact else 200)),
            batch_size=engine.batch_size,
            learning_rate=engine.learning_rate * _reach(self.state.discrepancy),
            optimizer=engine.optimizer,
            tolerance=engine.tolerance,
            resample_every=engine.resample_every,
        )
        dtype = next(step.parameters()).dtype

        def resample() -> Particles:
            return problem.frame.to_inner(self._training_points().push_all(self.state.maps)).to(dtype)

        objective = GRADIENTS[engine.gradient or _default_gradient(step, points)](problem)
        return train(step, objective, points.to(dtype), settings, self.flow.generator, resample)

    def _covers_tails(self) -> bool:
        coverage = self.engine.coverage
        return self.control.tails == "yes" if coverage is None else coverage == "spread"

    def _training_points(self) -> Particles:
        n = max(self.flow.n_particles, _PASSES * self.engine.batch_size)
        return self._covering(0, n) if self._covers_tails() else self._covering(n, 0)

    def _covering(self, n_draws: int, n_spread: int) -> Particles:
        """Draws of the initial law, and points spread evenly out to its tails."""
        law, generator = self.flow.law, self.flow.generator
        if n_spread == 0:
            return Particles.draw(law, n_draws, generator)
        spread = Particles.draw_spread(law, n_spread, generator)
        return Particles.draw(law, n_draws, generator).joined(spread) if n_draws else spread


def _displacement(affine: AffineSolution) -> tuple[Tensor, Tensor]:
    """Quadratic and linear term of the potential whose gradient map is the affine one."""
    return affine.matrix - torch.eye(len(affine.shift)).to(affine.shift), affine.shift


def _reach(discrepancy: float) -> float:
    """Fraction of the learning rate for a law this near: the way left is at most sqrt(2 KL), Adam's steps are not less.

    (Talagrand's inequality, in whitened coordinates of a Gaussian.)
    """
    return min(1.0, max(0.05, (discrepancy / 0.02) ** 0.5))


def _is_solved(problem: StepProblem, step: Map, inner: Particles) -> bool:
    """Whether the affine map alone solves the step: its Euler-Lagrange residual bounds what is left to gain."""
    if inner.score is None:
        return False
    some = inner[:_SOME]
    assert some.score is not None
    pushed = step.push(some.x, some.score)
    value, gradient = problem.potential(pushed.x)
    residual = problem.residual(some.x, pushed, some.log_rho - pushed.log_det, gradient)[value.isfinite()]
    return float(residual.square().sum(-1).mean()) / (2.0 * problem.stiffness) < _NEGLIGIBLE_GAIN


def _default_gradient(step: Map, inner: Particles) -> str:
    if inner.score is None:
        return "plain"
    return "control-variate" if isinstance(step, ODEMap) else "path"
