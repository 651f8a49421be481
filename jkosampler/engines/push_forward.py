"""Wasserstein steps whose unknown is the convex potential of the way back; densities are exact push-forwards.

The consistent form of the paper's W2 step (arXiv 2109.14851, section 3.2): instead of a network for the new density, a
pair of potentials for the distance and a penalty that holds them together, one potential psi, and the new density by
the change of variables under its gradient.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace

import torch

from jkosampler.engines.backward_equation import BackwardEquation, way_back
from jkosampler.engines.base import GradientFlow, State
from jkosampler.engines.collocation import train_ridges
from jkosampler.engines.lagrangian import Lagrangian
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_size import Control
from jkosampler.engines.step_solver import Solution, covering, unit
from jkosampler.engines.training import TrainingResult
from jkosampler.maps import GradientMap, Inverted
from jkosampler.metrics import Frame
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential, draw_ridges

__all__ = ["PushForward"]

logger = logging.getLogger(__name__)

_RIDGES = 64
_RIDGE_SLOPES, _KINKS, _KINKS_BETWEEN_WALLS = (0.3, 5.0), 2.5, 1.2  # before they are trained
_POINTS, _PER_PARAMETER = 1500, 5  # draws to solve a step on
_FAR_SHARE, _FAR_WEIGHT = 0.25, 4e-3  # of points out to the tails, beside the draws: how many, and what each weighs
_NOTHING = 18.0  # log of how much lower a density may be than the highest, to count
_FIRST_ITERATIONS, _ITERATIONS = 120, 30  # with ridges drawn at random, and with those of the step before
_SOLVED, _CONTENT = 3e-8, 100.0  # squared nats of misfit that end the training; as many times that need no second try


class PushForward(Lagrangian):
    """The Lagrangian engine with `BackwardEquation` in place of its own; see `engines.MinimizingMovement`.

    Parameters
    ----------
    n_ridges : int
        Ridge functions of the potential, all of them trained.
    threads : int, optional
        Threads of torch inside the fit.
    """

    n_outposts = 2000

    def __init__(self, *, n_ridges: int = _RIDGES, threads: int | None = 1) -> None:
        super().__init__(threads=threads)
        self.n_ridges: int = n_ridges

    def init(self, flow: GradientFlow) -> State:
        state = super().init(flow)
        return replace(state, far=_far_points(flow, int(_FAR_SHARE * min(self._n_draws(state), len(state.pool)))))

    def _n_draws(self, state: State) -> int:
        """Draws that determine the potential of a step."""
        d = state.pool.x.shape[1]
        n_parameters = self.n_ridges * (d + 2) + d + d * (d + 1) // 2
        return max(_POINTS, _PER_PARAMETER * n_parameters)

    def _solve(self, state: State, control: Control) -> Solution | None:
        flow, pool = state.flow, state.pool
        assert state.far is not None
        problem = StepProblem(flow.energy, _frame(flow, pool), control.tau, walls=flow.walls)
        chosen = torch.randperm(len(pool), generator=flow.generator)[: self._n_draws(state)]
        draws, far = pool[chosen.to(pool.x.device)], state.far[state.far.log_rho.isfinite()]
        n_draws, points = len(draws), draws.joined(far)
        weights = torch.cat([torch.ones_like(draws.log_rho), torch.full_like(far.log_rho, _FAR_WEIGHT)])
        inner, enough = problem.frame.to_inner(points), _SOLVED * unit(problem, pool.log_rho) ** 2
        best: Solution | None = None
        for guess, iterations in self._guesses(state):
            equation = BackwardEquation(problem, inner, weights, guess, n_draws=n_draws)
            found = train_ridges(equation, max_iterations=control.effort * iterations, enough=enough)
            if found is not None and (best is None or found.after < best.training.loss):
                step = Inverted(GradientMap(way_back(problem, guess.to(pool.x))))
                training = TrainingResult(found.after, found.n_iterations)
                best = Solution(problem, step, training, "push-forward", solved=found.after <= _CONTENT * enough)
                if best.solved:
                    break
        if best is not None and not best.solved:
            left = f"{best.training.loss:.2g} squared nats"
            logger.warning("step %d is not solved well: %s are left of its equation", len(state.maps) + 1, left)
        return best

    def _guesses(self, state: State) -> list[tuple[ResNetPotential, int]]:
        """Potentials to start from, and iterations for each."""
        flow, d = state.flow, state.pool.x.shape[1]
        fresh = ResNetPotential(d, width=self.n_ridges, depth=1, generator=flow.generator, device=state.pool.x.device)
        slopes, kinks = _RIDGE_SLOPES, _KINKS if flow.walls is None else _KINKS_BETWEEN_WALLS
        draw_ridges(fresh.weights[0], fresh.biases[0], slopes, kinks, flow.generator)
        guesses = [(fresh, _FIRST_ITERATIONS)]
        if isinstance(state.warm_start, ResNetPotential):
            guesses.insert(0, (deepcopy(state.warm_start).double(), _ITERATIONS))
        return guesses


def _far_points(flow: GradientFlow, n: int) -> Particles:
    """Points of the initial law out to its tails, or all over the box between walls where the law is not negligible."""
    if flow.walls is None:
        return covering(flow, 0, n)
    x = flow.walls.sample(n, flow.generator).to(flow.law.mean)
    log_rho = flow.law.log_prob(x)
    x = x[log_rho > float(flow.law.log_prob(flow.law.sample(n, flow.generator)).max()) - _NOTHING]
    return Particles(x, flow.law.log_prob(x), flow.law.score(x))


def _frame(flow: GradientFlow, pool: Particles) -> Frame:
    """The coordinates of a step: the metric's, or between walls those in which the box is of the size of a cube."""
    if flow.walls is None:
        return flow.metric.frame(pool, torch.full_like(pool.log_rho, 1.0 / len(pool)))
    centre, half = flow.walls.frame(pool.x.device)
    scale = float(half.mean())
    return Frame(centre.to(pool.x), scale * torch.eye(len(half)).to(pool.x), scale**2)
