"""How the Lagrangian engine solves one step, before it is judged: affine map, collocation, or a trained network."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from jkosampler.engines.affine import AffineSolution, set_affine, solve_affine
from jkosampler.engines.base import GradientFlow, State
from jkosampler.engines.collocation import draw_ridge_functions, solve_collocation, train_ridges
from jkosampler.engines.density_barrier import DensityBarrier
from jkosampler.engines.mobility_step import solve_with_mobility
from jkosampler.engines.network_step import (
    GRADIENT_MAP_LIMIT,
    default_gradient,
    is_like,
    map_kind,
    network_map,
    training_settings,
)
from jkosampler.engines.objectives import GRADIENTS, StepProblem
from jkosampler.engines.step_equation import StepEquation, n_functions
from jkosampler.engines.step_size import Control
from jkosampler.engines.training import TrainingResult, TrainingSettings, train
from jkosampler.maps import AffineMap, Chain, Conjugated, DisplacementMap, GradientMap, Inverted, Map
from jkosampler.particles import Particles, calibrated_weights, enough_for_moments
from jkosampler.potentials import ResNetPotential
from jkosampler.walled_potential import WalledPotential

if TYPE_CHECKING:
    from jkosampler.engines.lagrangian import Lagrangian

__all__ = ["Solution", "StepSolver", "covering", "trained_part", "unit"]

_NEGLIGIBLE_GAIN = 1e-6  # nats, or their like: an affine step that leaves less to gain needs no more
_FEW, _FEW_PER_DIMENSION = 100, 20  # particles for an affine map of a costly target
_SOME = 2000  # particles that decide whether the affine map suffices; points of a collocation, at least
_RIDGES_PER_DIMENSION, _MOST_RIDGES = 100, 500
_POINTS_PER_FUNCTION = 12
_TAIL_SHARE = 0.25  # of collocation points and ..
_TAIL_SHARE_OF_NETWORKS = 0.1  # of training points: without them a few draws have no density to speak of
_TAIL_WEIGHT = 0.1  # .. their weight beside those of the law, while the law is far from the target
_GAMMA = 1.0 - 0.5**0.5  # of the second-order method: L-stable
_TRAINED_RIDGES, _RIDGES_LIMIT = 64, 16  # ridges that are trained, and dimensions in which their equations are cheap
_LEAST_PER_PARAMETER, _POINTS, _PER_PARAMETER = 4, 1500, 5  # draws for them: what they need, and what they get
_FIRST_ITERATIONS, _ITERATIONS = 120, 15  # with ridges drawn at random, and with those of the step before
_TRIES = 2  # of ridges in a step
_LEFT, _NEGLIGIBLE_MISFIT = 1e-2, 1e-5  # of the misfit at the start, and squared nats, that solved steps may leave
_SOLVED = 3e-7  # squared nats of misfit that end the training
_FAR_SHARE, _FAR_WEIGHT = 0.25, 4e-3  # of points out to the tails, beside the draws: how many, and what each weighs
_UNRESOLVED = 0.1  # of the discrepancy: collocation that leaves more has not solved its step,
_UNRESOLVED_BY_EMULATORS = 0.5  # of whose kinks far out more is left


class Solution(NamedTuple):
    """A solved step: its (last) problem, the map in that problem's coordinates, and how the map was found.

    A step of second order, or one that was cut in pieces, has `stages` before that: maps of x, and the part of the
    time that each takes. The inequality of the step holds for its energy with the `barrier`, up to what is
    `negligible`. `solved` is whether the method is content with what it leaves.
    """

    problem: StepProblem
    step: Map
    training: TrainingResult
    method: str
    stages: tuple[tuple[Conjugated, float], ...] = ()
    barrier: DensityBarrier | None = None
    negligible: float = 0.0
    solved: bool = True

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
        if state.emulated is not None:
            self.flow = replace(state.flow, energy=state.emulated)
        self.pool = state.pool
        self.guess = state.warm_start
        self.stages: list[Conjugated] = []

    def solve(self) -> Solution | None:
        """The solved step; None where its method has failed."""
        if self.flow.order == 1:
            return self._solve(self.control.tau)
        pieces = self.control.pieces
        shares = [1.0 - _GAMMA, _GAMMA] * pieces
        parts: list[float] = []
        n_iterations = 0
        while (solution := self._solve(_GAMMA * self.control.tau / pieces)) is not None:
            n_iterations += solution.training.n_iterations
            if len(parts) + 1 == len(shares):
                stages = tuple(zip(self.stages, parts, strict=True))
                return solution._replace(training=solution.training._replace(n_iterations=n_iterations), stages=stages)
            share = shares[len(parts)]
            stage = solution.problem.frame.conjugate(solution.step.scaled(share / _GAMMA))
            self.guess = trained_part(solution.step) or self.guess
            self.pool = self.pool.push(stage)
            if not bool(self.pool.log_rho.isfinite().all()):
                return None  # the extrapolation folds: the step is too long for it
            self.stages.append(stage)
            parts.append(share / pieces)
        return None

    def _solve(self, tau: float) -> Solution | None:
        """One implicit step of the pool."""
        if self.flow.mobility is not None:
            return self._with_mobility(tau)
        weights = self._weights(self.pool)
        frame = self.flow.metric.frame(self.pool, weights)
        # A fixed step is in flow time; an adaptive one in that of whitened coordinates.
        problem = StepProblem(self.flow.energy, frame, tau if self.control.exact else tau * frame.cost)
        inner = frame.to_inner(self.pool)
        kind = map_kind(self.engine, inner.x.shape[1], exact=self.control.exact)
        if self.control.method == "network" and kind == "coupling":  # whose layers have affine parts
            return self._network(problem, AffineSolution.identity(inner.x), inner)
        affine = self._affine(problem, inner)
        if self.flow.order > 1 and self.flow.metric.moves:
            # to second order the metric is that at the end of the stage, which the affine map foresees
            ahead = self.pool.push(frame.conjugate(AffineMap(*affine.displacement)))
            frame = self.flow.metric.frame(ahead, weights)
            problem, inner = problem._replace(frame=frame), frame.to_inner(self.pool)
            affine = self._affine(problem, inner)
        step = AffineMap(*affine.displacement)
        if self.control.method == "collocation":
            return self._collocation(problem, affine)
        some = self._some(inner)
        if self.control.method == "affine" or (self.control.exact and self._is_solved(problem, step, some)):
            return Solution(problem, step, TrainingResult(float("nan"), 0), "affine")
        # the last try of order one is a network's, which folds less far out where ridges are too steep
        ridges = (
            self._ridges(problem, affine, inner)
            if self.control.exact and (self.flow.order > 1 or self.control.failures < _TRIES)
            else None
        )
        if ridges is not None and ridges.solved:
            return ridges
        network = self._network(problem, affine, inner)
        if ridges is None:
            return network
        return min(ridges, network, key=lambda found: self._left(problem, found.step, some))

    def _is_solved(self, problem: StepProblem, step: Map, some: Particles) -> bool:
        """Whether the affine map alone solves the step."""
        with torch.no_grad():
            moved = 0.5 * problem.stiffness * float((step(some.x)[0] - some.x).square().sum(-1).mean())
        return self._left(problem, step, some) < _NEGLIGIBLE_GAIN * (unit(problem, some.log_rho) or moved)

    def _left(self, problem: StepProblem, step: Map, some: Particles) -> float:
        """What a better map could gain at most, by the Euler-Lagrange residual; infinite where nothing is known."""
        if some.score is None:
            return math.inf
        pushed = step.push(some.x, some.score)
        log_rho = some.log_rho - pushed.log_det
        weights = self._weights(some) if problem.energy.has_interaction else torch.full_like(log_rho, 1.0 / len(some))
        value, _, force = problem.field(pushed.x, weights)
        inside = value != math.inf
        weights = weights[inside] / weights[inside].sum()
        residual = problem.residual(some.x, pushed, log_rho, force)[inside]
        left = float(weights @ residual.square().sum(-1)) / (2.0 * problem.stiffness)
        return left if bool(inside.any()) and math.isfinite(left) else math.inf

    def _with_mobility(self, tau: float) -> Solution | None:
        frame = self.flow.metric.frame(self.pool, torch.full_like(self.pool.log_rho, 1.0 / len(self.pool)))
        problem = StepProblem(self.flow.energy, frame, tau, self.flow.mobility)
        found = solve_with_mobility(
            problem,
            frame.to_inner(self.pool),
            self.guess if self.engine.warm_start else None,
            n_ridges=self.engine.n_ridges or _TRAINED_RIDGES,
            effort=self.control.effort,
            generator=self.flow.generator,
        )
        if found is None:
            return None
        step, training, barrier, negligible = found
        return Solution(problem, step, training, "mobility", barrier=barrier, negligible=negligible)

    def _weights(self, particles: Particles) -> Tensor:
        """Weights with which the affine part of a step is exact for the laws that the energy keeps affine."""
        energy = self.flow.energy
        if not energy.has_internal:
            return calibrated_weights(particles)
        log_rho = particles.log_rho
        return calibrated_weights(particles, energy.pressure_per_mass(log_rho), energy.pressure_slope(log_rho))

    def _ridges(self, problem: StepProblem, affine: AffineSolution, inner: Particles) -> Solution | None:
        """A step by trained ridge functions; None where these are not asked for, or fold. `solved` by their misfit."""
        d, engine = inner.x.shape[1], self.engine
        if inner.score is None or engine.n_ridges == 0 or engine.map == "ode" or d > _RIDGES_LIMIT:
            return None
        width = min(engine.n_ridges or _TRAINED_RIDGES, len(inner) // (_LEAST_PER_PARAMETER * (d + 2)))
        if width == 0:
            return None
        generator = self.flow.generator
        potential = ResNetPotential(d, width=width, depth=1, generator=generator, device=inner.x.device)
        draw_ridge_functions(potential, generator, to_train=True)
        set_affine(potential, *affine.displacement)
        tries = [(potential, _FIRST_ITERATIONS)]
        if engine.warm_start and is_like(self.guess, potential):
            tries.insert(0, (deepcopy(self.guess).double(), _ITERATIONS))
        n = max(_POINTS, _PER_PARAMETER * (n_functions(potential) + width * (d + 1)))
        draws = inner[torch.randperm(len(inner), generator=generator)[:n].to(inner.x.device)].without_score()
        far = problem.frame.to_inner(
            covering(self.flow, 0, int(_FAR_SHARE * len(draws))).without_score().push_all(self._path)
        )
        weights = torch.cat([torch.full_like(draws.log_rho, 1.0), torch.full_like(far.log_rho, _FAR_WEIGHT)])
        points, square = draws.joined(far), unit(problem, draws.log_rho) ** 2
        enough, negligible = _SOLVED * square, _NEGLIGIBLE_MISFIT * square
        best: Solution | None = None
        for guess, most in tries:
            iterations = self.control.effort * most
            equation = StepEquation(problem, points, weights, guess, hidden=True, n_draws=len(draws))
            found = train_ridges(equation, max_iterations=iterations, enough=enough)
            if found is None or (best is not None and found.after >= best.training.loss):
                continue
            step = GradientMap(guess.to(affine.shift))
            if not bool(inner.without_score().push(step).log_rho.isfinite().all()):
                continue
            solved = found.after <= max(_LEFT * found.before, negligible)
            training = TrainingResult(found.after, found.n_iterations)
            best = Solution(problem, step, training, "collocation", solved=solved)
            if solved:
                break
        return best

    def _affine(self, problem: StepProblem, inner: Particles) -> AffineSolution:
        if not self.engine.affine:
            return AffineSolution.identity(inner.x)
        some, exact = self._some(inner), self.control.exact
        return solve_affine(problem, some, self._weights(some), max_iterations=200 if exact else 20)

    def _some(self, inner: Particles) -> Particles:
        """Particles that an affine map is solved on: calibrated weights make few of them as good as many."""
        d = inner.x.shape[1]
        if self.engine.potential == "explicit":
            return inner[: min(_FEW + _FEW_PER_DIMENSION * d, enough_for_moments(d))]
        few = not self.control.exact or self.flow.energy.has_interaction  # whose cost grows with their square
        return inner[: max(500 if few else _SOME, enough_for_moments(d))]

    def _collocation(self, problem: StepProblem, affine: AffineSolution) -> Solution | None:
        d, generator = len(affine.shift), self.flow.generator
        if self.engine.n_ridges == 0 or d > GRADIENT_MAP_LIMIT:
            return None
        width = self.engine.n_ridges or min(_RIDGES_PER_DIMENSION * d, _MOST_RIDGES)
        potential = ResNetPotential(d, width=width, depth=1, generator=generator, device=affine.shift.device)
        draw_ridge_functions(potential, generator)
        set_affine(potential, *affine.displacement)
        n = max(_SOME, _POINTS_PER_FUNCTION * n_functions(potential))
        n_tail = n if self.control.tails or self.engine.coverage == "spread" else int(_TAIL_SHARE * n)
        points = covering(self.flow, n - n_tail, n_tail).without_score().push_all(self._path)
        weights = torch.cat([torch.ones(n - n_tail), torch.full((n_tail,), _TAIL_WEIGHT)])
        found = solve_collocation(
            problem, problem.frame.to_inner(points), weights.to(points.x), potential, n_draws=n - n_tail
        )
        share = _UNRESOLVED if self.state.flow.energy.black_box is None else _UNRESOLVED_BY_EMULATORS
        allowed = share * max(self.state.discrepancy, self.flow.control.threshold)
        if found is None or found.after > allowed:
            return None
        training = TrainingResult(found.after, found.n_iterations)
        return Solution(problem, GradientMap(potential.to(affine.shift)), training, "collocation")

    def _network(self, problem: StepProblem, affine: AffineSolution, inner: Particles) -> Solution:
        engine, generator = self.engine, self.flow.generator
        dtype = engine.training_dtype or torch.float32
        kind = map_kind(engine, len(affine.shift), exact=self.control.exact)
        step = network_map(engine, affine, self.guess, generator, kind=kind, dtype=dtype, effort=self.control.effort)
        settings = training_settings(engine, self.control, kind, len(affine.shift), self.state.discrepancy)

        def fresh() -> Particles:
            return problem.frame.to_inner(self._training_points(settings).push_all(self._path)).to(dtype)

        # New points for every adaptive step: a network that fitted the last ones has nothing left to learn there.
        points = inner.to(dtype) if self.control.exact else fresh()
        objective = GRADIENTS[engine.gradient or default_gradient(step, points)](problem)
        training = train(step, objective, points, settings, generator, fresh)
        return Solution(problem, step.to(inner.x.dtype), training, "network")

    @property
    def _path(self) -> list[Map]:
        """The maps from the initial law to the pool."""
        return [*self.state.maps, *self.stages]

    def _training_points(self, settings: TrainingSettings) -> Particles:
        n = max(self.flow.n_particles, min(settings.block, settings.n_iterations) * settings.batch_size)
        n_spread = int({None: _TAIL_SHARE_OF_NETWORKS, "law": 0.0, "spread": 1.0}[self.engine.coverage] * n)
        return covering(self.flow, n - n_spread, n_spread)


def covering(flow: GradientFlow, n_draws: int, n_spread: int) -> Particles:
    """Draws of the initial law, and points spread evenly out to its tails."""
    if n_spread == 0:
        return Particles.draw(flow.law, n_draws, flow.generator)
    spread = Particles.draw_spread(flow.law, n_spread, flow.generator)
    return Particles.draw(flow.law, n_draws, flow.generator).joined(spread) if n_draws else spread


def trained_part(step: Map) -> nn.Module | None:
    """What the next step may start from: a field, or a potential with ridges or a network."""
    if isinstance(step, DisplacementMap):
        return step.field
    potential = getattr(step.backward if isinstance(step, Inverted) else step, "potential", None)
    potential = potential.inner if isinstance(potential, WalledPotential) else potential
    return potential if isinstance(potential, ResNetPotential) and potential.depth else None


def unit(problem: StepProblem, log_rho: Tensor) -> float:
    """The energy of thermal motion, the mean of P / rho: one nat where the internal energy is the entropy."""
    return float(problem.energy.pressure_per_mass(log_rho).mean())
