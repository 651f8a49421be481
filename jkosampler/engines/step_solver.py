"""How the Lagrangian engine solves one step, before it is judged: affine map, collocation, or a trained network."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from jkosampler.composed import Chain
from jkosampler.engines.affine import AffineSolution, set_affine, solve_affine
from jkosampler.engines.base import GradientFlow, State
from jkosampler.engines.collocation import draw_ridge_functions, solve_collocation, train_ridges
from jkosampler.engines.objectives import GRADIENTS, StepProblem
from jkosampler.engines.step_equation import n_functions
from jkosampler.engines.step_size import Control
from jkosampler.engines.training import TrainingResult, TrainingSettings, train
from jkosampler.maps import Conjugated, GradientMap, Map, ODEMap
from jkosampler.particles import Particles, calibrated_weights, fewest_calibrated
from jkosampler.potentials import ResNetPotential

if TYPE_CHECKING:
    from jkosampler.engines.lagrangian import Lagrangian

__all__ = ["Solution", "StepSolver", "trained_potential"]

_GRADIENT_MAP_LIMIT = 32  # the exact log det costs O(d^3) a particle: beyond, the trace of an ODE is cheaper
_HUTCHINSON_LIMIT = 512  # the exact trace costs O(m^2 d) a particle: beyond, probes are cheaper
_PASSES = 32  # mini-batches that a network's training points make at least
_NEGLIGIBLE_GAIN = 1e-6  # nats: an affine step that leaves less to gain needs no network
_SOME = 2000  # particles that decide whether the affine map suffices; points of a collocation, at least
_RIDGES_PER_DIMENSION, _MOST_RIDGES = 100, 500
_POINTS_PER_FUNCTION = 12
_TAIL_SHARE = 0.25  # of collocation points and ..
_TAIL_WEIGHT = 0.1  # .. their weight beside those of the law, while the law is far from the target
_GAMMA = 1.0 - 0.5**0.5  # of the second-order method: L-stable
_TRAINED_RIDGES, _RIDGES_LIMIT = 64, 16  # ridges that are trained, and dimensions in which their equations are cheap
_FEWEST_POINTS, _POINTS_PER_PARAMETER = 4, 8
_FIRST_ITERATIONS, _ITERATIONS = 60, 30  # with ridges drawn at random, and with those of the step before
_LEFT, _NEGLIGIBLE_MISFIT = 1e-3, 1e-5  # of the misfit at the start, and nats, that solved steps may leave
_UNRESOLVED = 0.1  # of the discrepancy: collocation that leaves more has not solved its step


class Solution(NamedTuple):
    """A solved step: its (last) problem, the map in that problem's coordinates, and how the map was found.

    A step of second order, or one that was cut in pieces, has `stages` before that: maps of x, and the part of the
    time that each takes.
    """

    problem: StepProblem
    step: Map
    training: TrainingResult
    method: str
    stages: tuple[tuple[Conjugated, float], ...] = ()

    def map(self) -> Map:
        """The whole step, as a map of x."""
        last = self.problem.frame.conjugate(self.step)
        if not self.stages:
            return last
        shares = [share for _, share in self.stages]
        return Chain([*(stage for stage, _ in self.stages), last], [*shares, 1.0 - sum(shares)])


class StepSolver:
    """Solves the step that a state's control asks for, with an engine's settings.

    A step of second order has two stages, each a JKO step of size `gamma tau`, gamma = 1 - 1/sqrt(2): the first one's
    displacement is extrapolated by (1 - gamma) / gamma, and the second starts from there. This is the singly diagonally
    implicit Runge-Kutta method of two stages, which damps stiff components as the JKO step does.
    """

    def __init__(self, engine: Lagrangian, state: State, control: Control) -> None:
        self.engine, self.state, self.control = engine, state, control
        self.flow: GradientFlow = state.flow
        self.pool = state.pool
        self.guess = state.warm_start

    def solve(self) -> Solution | None:
        """The solved step; None where its method has failed."""
        if self.flow.order == 1:
            return self._solve(self.control.tau)
        stages: list[tuple[Conjugated, float]] = []
        pieces = self.control.pieces
        tau, training = self.control.tau / pieces, TrainingResult(0.0, 0)
        for piece in range(pieces):
            for share in (1.0 - _GAMMA, _GAMMA):
                solution = self._solve(_GAMMA * tau)
                if solution is None:
                    return None
                training = TrainingResult(
                    solution.training.loss, training.n_iterations + solution.training.n_iterations
                )
                if piece == pieces - 1 and share == _GAMMA:
                    break
                self.guess = trained_potential(solution.step) or self.guess
                factor = (1.0 - _GAMMA) / _GAMMA if share != _GAMMA else 1.0
                stage = solution.problem.frame.conjugate(solution.step.scaled(factor))
                self.pool = self.pool.push(stage)
                if not bool(self.pool.log_rho.isfinite().all()):
                    return None  # the extrapolation folds: the step is too long for it
                stages.append((stage, share / pieces))
        return solution._replace(training=training, stages=tuple(stages))

    def _solve(self, tau: float) -> Solution | None:
        """One implicit step of the pool."""
        weights = self._weights(self.pool)
        frame = self.flow.metric.frame(self.pool, weights)
        # A fixed step is in flow time; an adaptive one in that of whitened coordinates.
        problem = StepProblem(self.flow.energy, frame, tau if self.control.exact else tau * frame.cost)
        inner = frame.to_inner(self.pool)
        affine = self._affine(problem, inner)
        if self.flow.order > 1 and self.flow.metric.moves:
            # to second order the metric is that at the end of the stage, which the affine map foresees
            ahead = self.pool.push(frame.conjugate(GradientMap(affine.potential(inner.x.dtype))))
            frame = self.flow.metric.frame(ahead, weights)
            problem, inner = problem._replace(frame=frame), frame.to_inner(self.pool)
            affine = self._affine(problem, inner)
        step = GradientMap(affine.potential(inner.x.dtype))
        if self.control.method == "collocation":
            return self._collocation(problem, affine)
        if self.control.method == "affine" or (self.control.exact and self._is_solved(problem, step, inner)):
            return Solution(problem, step, TrainingResult(float("nan"), 0), "affine")
        found = self._ridges(problem, affine, inner) if self.control.exact else None
        return found or self._network(problem, affine, inner)

    def _weights(self, particles: Particles) -> Tensor:
        """Weights with which the affine part of a step is exact for the laws that the energy keeps affine."""
        energy = self.flow.energy
        if not energy.has_internal:
            return calibrated_weights(particles)
        log_rho = particles.log_rho
        return calibrated_weights(particles, energy.pressure_per_mass(log_rho), energy.pressure_slope(log_rho))

    def _ridges(self, problem: StepProblem, affine: AffineSolution, inner: Particles) -> Solution | None:
        """A step solved by trained ridge functions; None where these are not asked for, or leave too much of it."""
        d, engine = inner.x.shape[1], self.engine
        if inner.score is None or engine.n_ridges == 0 or engine.map == "ode" or d > _RIDGES_LIMIT:
            return None
        width = min(engine.n_ridges or _TRAINED_RIDGES, len(inner) // (_FEWEST_POINTS * (d + 2)))
        if width == 0:
            return None
        generator = self.flow.generator
        potential = ResNetPotential(d, width=width, depth=1, generator=generator, device=inner.x.device)
        draw_ridge_functions(potential, generator, to_train=True)
        set_affine(potential, *_displacement(affine))
        tries = [(potential, _FIRST_ITERATIONS)]
        if engine.warm_start and _is_like(self.guess, potential):
            tries.insert(0, (deepcopy(self.guess), _ITERATIONS))
        n = max(_SOME, _POINTS_PER_PARAMETER * (n_functions(potential) + width * (d + 1)))
        order = torch.randperm(len(inner), generator=generator)[:n].to(inner.x.device)
        for guess, most in tries:
            found = train_ridges(problem, inner[order], guess, max_iterations=self.control.effort * most)
            if found is not None and found.after <= max(_LEFT * found.before, _NEGLIGIBLE_MISFIT):
                training = TrainingResult(found.after, found.n_iterations)
                return Solution(problem, GradientMap(guess.to(affine.shift)), training, "collocation")
        return None

    def _affine(self, problem: StepProblem, inner: Particles) -> AffineSolution:
        if not self.engine.affine:
            return AffineSolution.identity(inner.x)
        exact = self.control.exact
        some = _few(inner, _SOME if exact else 500)
        return solve_affine(problem, some, self._weights(some), max_iterations=200 if exact else 20)

    def _is_solved(self, problem: StepProblem, step: Map, inner: Particles) -> bool:
        """Whether the affine map alone solves the step: its Euler-Lagrange residual bounds what is left to gain."""
        some = _few(inner, _SOME)
        if some.score is None:
            return False
        pushed = step.push(some.x, some.score)
        # with the weights that the affine map was found with: others' centre is elsewhere, and pulls all along
        weights = self._weights(some) if self.flow.energy.has_interaction else None
        value, _, force = problem.field(pushed.x, weights)
        residual = problem.residual(some.x, pushed, some.log_rho - pushed.log_det, force)[value.isfinite()]
        return float(residual.square().sum(-1).mean()) / (2.0 * problem.stiffness) < _NEGLIGIBLE_GAIN

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
        found = solve_collocation(
            problem, problem.frame.to_inner(points), weights.to(points.x), potential, n_draws=n - n_tail
        )
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
        if engine.warm_start and _is_like(self.guess, potential):
            potential.load_state_dict(_hidden_layers(self.guess), strict=False)
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


def trained_potential(step: Map) -> ResNetPotential | None:
    """The potential of a map, where it has ridges or a network to start the next one from."""
    potential = getattr(step, "potential", None)
    return potential if isinstance(potential, ResNetPotential) and potential.depth else None


def _is_like(guess: ResNetPotential | None, potential: ResNetPotential) -> bool:
    """Whether two potentials have the same layers."""
    return guess is not None and all(
        getattr(guess, name) == getattr(potential, name) for name in ("dim", "width", "depth", "time_input")
    )


def _hidden_layers(potential: ResNetPotential) -> dict[str, Tensor]:
    return {name: value for name, value in potential.state_dict().items() if name.startswith(("weights", "biases"))}


def _reach(discrepancy: float) -> float:
    """Fraction of the learning rate for a law this near: the way left is at most sqrt(2 KL), Adam's steps are not less.

    (Talagrand's inequality, in whitened coordinates of a Gaussian.)
    """
    return min(1.0, max(0.05, (discrepancy / 0.02) ** 0.5))


def _few(particles: Particles, n: int) -> Particles:
    """So many of the particles, and enough to calibrate their weights."""
    return particles[: max(n, fewest_calibrated(particles.x.shape[1]))]


def _default_gradient(step: Map, inner: Particles) -> str:
    if inner.score is None:
        return "plain"
    return "control-variate" if isinstance(step, ODEMap) else "path"
