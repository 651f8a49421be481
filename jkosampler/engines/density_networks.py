"""W2 flows as the paper has them: a network for the density, normalised, and a pair of potentials for the distance.

Section 3.2 of Park, Kim, Son, Hwang (arXiv 2109.14851). A step's unknowns are solved for together (`density_step`), or
trained by Adam.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from torch import Tensor

from jkosampler.domains import Quadrature
from jkosampler.engines.base import GradientFlow
from jkosampler.engines.density_step import DensityStep, PositiveNetwork, Saddle, run_away
from jkosampler.engines.network_fit import fit_values
from jkosampler.engines.step_size import FixedSteps
from jkosampler.engines.transport_pair import TransportPair
from jkosampler.errors import ArgumentError
from jkosampler.fields import NetworkField
from jkosampler.laws import DensityOnBox
from jkosampler.particles import Particles
from jkosampler.tangent import Tangent

__all__ = ["DensityNetworks", "DensityState"]

logger = logging.getLogger(__name__)

_WIDTH, _WIDTH_IN_MANY_DIMENSIONS = 24, 32
_CONVEX_WIDTH, _CONVEX_DEPTH = 16, 2
_POINTS = {1: 512, 2: 32**2}
_POINTS_IN_MANY_DIMENSIONS = 4096
_CHECK_POINTS = 4096
_START_ITERATIONS = 150  # to fit the initial density
_FITTED = 1e-9  # mean square of what that misses
_ITERATIONS = 40
_ENOUGH = 1e-4  # change of log u that ends a step
_NOTHING_LEFT = 3.0  # residual or cycle of a step that is none
_SOLVED, _LEFT = 1e-3, 0.1  # change of log u that a solved step may end with; share of pull or displacement left


@dataclass(frozen=True)
class DensityState:
    """The flow after some steps: all its laws, and the last unknowns, None before the first step.

    `pool` are draws of the last law, with the energy `values` (n,) at each; `check` are points that take no part in
    solving.
    """

    flow: GradientFlow
    laws: tuple[DensityOnBox, ...]
    check: Quadrature
    pool: Particles
    values: Tensor
    times: tuple[float, ...] = (0.0,)
    saddle: Saddle | None = None
    stopped: str | None = None
    converged: bool = False
    missing_evidence: str | None = None

    @property
    def n_steps(self) -> int:
        """Steps made."""
        return len(self.times) - 1


class DensityNetworks(BaseEstimator):
    """The engine behind `MinimizingMovement(representation="networks")`; see there for the parameters.

    A step is solved by Newton's method, or by so many iterations of Adam.
    """

    def __init__(
        self,
        *,
        width: int | None = None,
        depth: int = 2,
        activation: str = "tanh",
        convex_width: int = _CONVEX_WIDTH,
        lam: float = 1.0,
        pair: str = "max-min",
        adam_iterations: int | None = None,
        learning_rate: float = 1e-3,
        n_quadrature: int | None = None,
        quadrature: str | None = None,
        threads: int | None = 1,
    ) -> None:
        self.width = width
        self.depth = depth
        self.activation = activation
        self.convex_width = convex_width
        self.lam = lam
        self.pair = pair
        self.adam_iterations = adam_iterations
        self.learning_rate = learning_rate
        self.n_quadrature = n_quadrature
        self.quadrature = quadrature
        self.threads = threads

    def init(self, flow: GradientFlow) -> DensityState:
        """Draw the points to check by, and evaluate the energy at draws of the initial law."""
        if flow.walls is None or not isinstance(flow.law, DensityOnBox):
            raise ArgumentError(
                "domain: representation='networks' integrates over a box; give domain=domains.Box(..), or leave "
                "representation out."
            )
        if flow.law.dtype != torch.float64:
            raise ArgumentError("dtype: representation='networks' computes in float64; leave dtype out.")
        check = flow.walls.quadrature(_CHECK_POINTS, flow.generator)
        pool = Particles.draw(flow.law, flow.n_particles, flow.generator)
        flow.energy.check_start(pool.x)
        return DensityState(flow, (flow.law,), check, pool, _energies(flow, pool))

    def step(self, state: DensityState) -> tuple[DensityState, Bunch]:
        """One step and its record."""
        began, flow = time.perf_counter(), state.flow
        assert flow.walls is not None
        assert isinstance(flow.control, FixedSteps)
        evaluations, tau = flow.energy.n_evaluations, flow.control.tau
        points = self._points(state)
        before = state.laws[-1].log_prob(points.x).exp()
        start = self._start(state, points, before) if state.saddle is None else state.saddle
        step = DensityStep(flow.energy, tau, points, points.weights * before / (points.weights @ before))
        saddle, change, n_iterations = self._solved(step, start)
        law = DensityOnBox(saddle.density, flow.walls)
        pool = Particles.draw(law, flow.n_particles, flow.generator)
        now = state.times[-1] + tau
        record = _seen(state, law, saddle, tau)
        if not max(record.cycle, record.residual) < (_NOTHING_LEFT if self.adam_iterations is None else float("inf")):
            raise run_away(saddle.pair)
        record.update(
            time=now, step_size=tau, stage="networks", n_iterations=n_iterations, change=change,
            solved=change <= _SOLVED and max(record.cycle, record.residual) <= _LEFT, width=self._width(flow.law.dim),
        )  # fmt: skip
        if not record.solved:
            left = f"{record.residual:.2g} of its equation is left, {record.cycle:.2g} of the displacement"
            logger.warning("step %d is not solved: %s", state.n_steps + 1, left)
        state = replace(
            state, laws=(*state.laws, law), times=(*state.times, now), pool=pool, values=_energies(flow, pool),
            saddle=saddle,
        )  # fmt: skip
        record.wall_s = time.perf_counter() - began
        record.target_evaluations = flow.energy.n_evaluations - evaluations
        return state, record

    def _points(self, state: DensityState) -> Quadrature:
        """Points to solve a step on."""
        walls, d = state.flow.walls, state.flow.law.dim
        assert walls is not None
        method = self.quadrature or ("gauss" if d <= 2 else "sobol")
        n = self.n_quadrature or _POINTS.get(d, _POINTS_IN_MANY_DIMENSIONS)
        x, weights = walls.quadrature(n, state.flow.generator, method)
        return Quadrature(x.to(state.pool.x), weights.to(state.pool.x))

    def _width(self, d: int) -> int:
        return self.width or (_WIDTH if d <= 2 else _WIDTH_IN_MANY_DIMENSIONS)

    def _start(self, state: DensityState, points: Quadrature, u: Tensor) -> Saddle:
        """A network fitted to the initial density, u (n,) at the points, and potentials of no displacement."""
        flow, (x, weights) = state.flow, points
        assert flow.walls is not None
        frame = flow.walls.frame(x.device)
        width = self._width(flow.law.dim)
        network = PositiveNetwork(
            NetworkField(*frame, width=width, depth=self.depth, activation=self.activation, generator=flow.generator)
        )
        highest = u.max()
        density = fit_values(
            Tangent(network), x, u / highest, weights / weights.sum(), max_iterations=_START_ITERATIONS,
            enough=_FITTED,
        )  # fmt: skip
        missed = (density(x) - u / highest).detach()
        error = float((weights @ missed.square()).sqrt() / (weights @ (u / highest).square()).sqrt())
        logger.info("the network for the density misses %.2g of the initial one", error)
        pair = TransportPair.identity(
            flow.walls, flow.generator, width=self.convex_width, depth=_CONVEX_DEPTH, lam=self.lam, pair=self.pair,
            device=x.device,
        )  # fmt: skip
        return Saddle(density, pair)

    def _solved(self, step: DensityStep, saddle: Saddle) -> tuple[Saddle, float, int]:
        """The step's saddle point, the last change of log u, and the number of iterations."""
        if self.adam_iterations is not None:
            before = step.slopes(saddle).log_u
            saddle = step.adam(saddle, self.adam_iterations, self.learning_rate)
            after = step.slopes(saddle)
            return saddle, float((after.p @ (after.log_u - before).square()).sqrt()), self.adam_iterations
        change, n_iterations = float("inf"), 0
        while change > _ENOUGH and n_iterations < _ITERATIONS:
            saddle, change = step.newton(saddle, n_iterations)
            n_iterations += 1
        return saddle, change, n_iterations


def _energies(flow: GradientFlow, pool: Particles) -> Tensor:
    return flow.energy.field(pool.x).energy + flow.energy.internal(pool.log_rho)


def _seen(state: DensityState, law: DensityOnBox, saddle: Saddle, tau: float) -> Bunch:
    """The energy inequality and the condition of the step at points that took no part, for a law of this mass."""
    energy, (x, weights), before = state.flow.energy, state.check, state.laws[-1]
    x, weights = x.to(state.pool.x), weights.to(state.pool.x)
    mass, densities, energies, fields = energy.mass, [], [], []
    for which in (before, law):
        log_u = which.log_prob(x)
        u = log_u.exp()
        field = energy.field(x, weights * u / (weights @ u))
        densities.append(u)
        energies.append(torch.where(u > 0.0, u * (energy.internal(log_u) + field.energy), 0.0))
        fields.append(energy.internal_variation(log_u) + field.variation)
    rho, u = densities
    moved = u * saddle.pair.back_cost(x) + rho * saddle.pair.forth_cost(x)
    cost = float(weights @ moved)
    gain = energies[0] - energies[1] - moved / (2.0 * tau)
    excess = rho - u  # whose integral is zero: most of the gain's variance goes with it
    gain = gain - (gain @ excess) / (excess @ excess).clamp(min=1e-300) * excess
    volume = float(weights.sum())
    slack, slack_se = float(weights @ gain), volume * float(gain.std()) / len(x) ** 0.5
    p = weights * u / (weights @ u)
    pull = saddle.pair.displacement_potential(x) / tau
    left = torch.where(u > 0.0, fields[1] + pull, 0.0)
    left, pull = left - p @ left, pull - p @ pull
    now = float(weights @ energies[1])
    return Bunch(
        energy=mass * now,
        transport_cost=mass * cost,
        loss=mass * (now + cost / (2.0 * tau)),
        slack=mass * slack,
        slack_se=mass * slack_se,
        descends=slack >= -3.0 * slack_se,
        residual=float((p @ left.square()).sqrt() / (p @ pull.square()).sqrt().clamp(min=1e-300)),
        cycle=(saddle.pair.cycle(x, weights * rho / (weights @ rho)) / max(cost, 1e-300)) ** 0.5,
    )
