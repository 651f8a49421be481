"""The objective of a step, and three estimates of its gradient in the parameters of the map.

In the coordinates z of a `Frame` a step minimises, over maps T of particles z ~ rho_k,

    J(T) = E[ V(T) + U(rho') / rho' + cost |T - z|^2 / (2 tau) ],     rho' = T# rho_k

(equations 4 and 15 of arXiv 2311.06700, halved and divided by tau). The estimates differ in their noise:

* `Plain` differentiates the sample mean of J, log determinant included, as the paper does.
* `ControlVariate` adds the field `P/rho div v + P' v.s`, whose mean is zero for every v, to cancel the leading
  noise of the log determinant.
* `PathGradient` takes the mean of `r . dT`, where `r = cost (T - z) / tau + grad(V + U'(rho'))(T)` is the
  residual of the step's Euler-Lagrange equation: at the exact step r vanishes at every particle, and with it all noise.

The last two need the score s of rho_k, so a law whose density vanishes at its edge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from jkosampler.domains import Box
from jkosampler.energies import EnergyEvaluator, Field
from jkosampler.errors import ArgumentError
from jkosampler.maps import Map, Pushed
from jkosampler.metrics import Frame
from jkosampler.mobility import Mobility
from jkosampler.particles import Particles

__all__ = ["GRADIENTS", "ControlVariate", "Objective", "PathGradient", "Plain", "StepProblem"]


class StepProblem(NamedTuple):
    """One step to solve: the energy, the coordinates, the step size tau in flow time, a mobility if not linear, and
    walls (a box of x) that no mass passes.
    """

    energy: EnergyEvaluator
    frame: Frame
    tau: float
    mobility: Mobility | None = None
    walls: Box | None = None

    @property
    def stiffness(self) -> float:
        """cost / tau: the weight of |T - z|^2 / 2."""
        return self.frame.cost / self.tau

    def field(self, z: Tensor, weights: Tensor | None = None, crowd: Tensor | None = None) -> Field:
        """Potential and interaction at z (n, d), with the gradient in z, in the dtype of z.

        Targets see the interface's dtype. The law is made up of the crowd (m, d) with its weights (m,), or of z itself.
        NaN, without a call of the target, where a training that broke down has lost the points: that is not its fault.
        """
        if not bool(z.isfinite().all()):
            lost = torch.full_like(z[:, 0].detach(), torch.nan)
            return Field(lost, lost, torch.full_like(z.detach(), torch.nan))
        others = None if crowd is None else self._outer(crowd)
        energy, variation, gradient = self.energy.field(self._outer(z), weights, others)
        return Field(energy.to(z), variation.to(z), (gradient @ self.frame.factor).to(z))

    def _outer(self, z: Tensor) -> Tensor:
        return self.frame.to_outer(z.detach().to(self.frame.factor))

    def residual(self, z: Tensor, pushed: Pushed, log_rho: Tensor, force: Tensor) -> Tensor:
        """Euler-Lagrange residual r (n, d) of particles z moved to `pushed`, from log densities and forces there."""
        pressure = self.energy.pressure_slope(log_rho).unsqueeze(-1) * pushed.score
        return self.stiffness * (pushed.x - z) + force + pressure


class Objective(ABC):
    """An estimate of J and of its gradient."""

    def __init__(self, problem: StepProblem) -> None:
        self.problem = problem

    @abstractmethod
    def __call__(self, step: Map, batch: Particles) -> tuple[Tensor, Tensor]:
        """A scalar to differentiate in the parameters of the map, and the sample mean of J."""

    def _score(self, batch: Particles) -> Tensor:
        if batch.score is None:
            raise ArgumentError(
                "gradient: this estimate needs a start whose density has no jump; take gradient='plain' or a smooth "
                "initial law."
            )
        return batch.score


class Plain(Objective):
    """The gradient of the sample mean of J."""

    def __call__(self, step: Map, batch: Particles) -> tuple[Tensor, Tensor]:
        loss = _mean_inside(self._per_particle(step, batch))
        return loss, loss.detach()

    def _per_particle(self, step: Map, batch: Particles) -> Tensor:
        moved, log_det, action = step.transport(batch.x)
        field = self.problem.field(moved)
        potential = field.energy + ((moved - moved.detach()) * field.gradient).sum(-1)  # with its slope at hand
        internal = self.problem.energy.internal(batch.log_rho - log_det)
        return potential + internal + 0.5 * self.problem.stiffness * action


class ControlVariate(Plain):
    """`Plain` and the score control variate."""

    def __call__(self, step: Map, batch: Particles) -> tuple[Tensor, Tensor]:
        score = self._score(batch)
        velocity, divergence = step.initial_velocity(batch.x)
        energy = self.problem.energy
        control = energy.pressure_per_mass(batch.log_rho) * divergence
        control = control + energy.pressure_slope(batch.log_rho) * (velocity * score).sum(-1)
        loss = _mean_inside(self._per_particle(step, batch) + control)
        return loss, loss.detach()


class PathGradient(Objective):
    """The Euler-Lagrange residual against the change of the map."""

    def __call__(self, step: Map, batch: Particles) -> tuple[Tensor, Tensor]:
        pushed = step.push(batch.x, self._score(batch))
        log_rho = batch.log_rho - pushed.log_det
        value, _, force = self.problem.field(pushed.x)
        residual = self.problem.residual(batch.x, pushed, log_rho, force)
        cost = 0.5 * self.problem.stiffness * (pushed.x - batch.x).square().sum(-1)
        objective = _mean_inside(value + self.problem.energy.internal(log_rho) + cost)
        inside = (value != torch.inf).unsqueeze(-1)
        return (step.positions(batch.x) * torch.where(inside, residual, 0.0)).sum(-1).mean(), objective


def _mean_inside(values: Tensor) -> Tensor:
    """The mean over particles of finite energy; those where no mass may be have no slope to follow."""
    return values[values.detach() != torch.inf].mean()


GRADIENTS: dict[str, type[Objective]] = {
    "path": PathGradient,
    "control-variate": ControlVariate,
    "plain": Plain,
}
