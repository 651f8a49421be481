"""Least action along straight paths: the objective of a step with a mobility, and its damped Gauss-Newton method.

Equation (24) of Lee, Wang, Li (arXiv 2311.06700) with its missing energy: over maps `T(z) = z + u(z)` of particles,

    J(T) = E[ int_0^1 R(rho_s) ds  k |u|^2 / 2 + (V + W * rho' / 2 + U(rho') / rho')(T) ],    R(rho) = rho / M(rho),

with rho_s the density on the straight path, `rho_k / det(I + s Du)`, by Simpson's rule in s. The minimiser moves along
`(M / rho) grad phi`, which is no gradient in general: a gradient is tried first, and the rest of the field
(`displacement`) joins in where that leaves part of the motion out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from jkosampler.engines.density_barrier import DensityBarrier
from jkosampler.engines.levenberg_marquardt import levenberg_marquardt
from jkosampler.engines.objectives import StepProblem
from jkosampler.errors import TargetError
from jkosampler.maps import RidgeField
from jkosampler.mobility import Mobility
from jkosampler.particles import Particles

__all__ = ["ActionResult", "least_action", "path_resistance"]

_PROMISED = 1e-4  # damping in the promise of a field that rotates
_LITTLE, _NEGLIGIBLE = 1e-4, 1e-6  # of the decrease so far, and of the range of dE/drho: less ends the iterations
_ROTATION = 1e-3  # of the decrease, that a field which is no gradient must promise beyond it
_PROBE = 1e-4  # of a whitened unit, for the derivative of the field along random directions


class ActionResult(NamedTuple):
    """How much lower the objective is than without motion, and the iterations made."""

    decrease: float
    n_iterations: int


def path_resistance(mobility: Mobility, log_rho: Tensor, halfway: Tensor, end: Tensor) -> Tensor:
    """`int_0^1 rho_s / M(rho_s) ds` (n,), by log densities at the start, log determinants halfway and at the end."""
    parts = ((0.0 * end, 1.0 / 6.0), (halfway, 4.0 / 6.0), (end, 1.0 / 6.0))
    return sum(
        (share / mobility.per_density(torch.exp(log_rho - log_det)) for log_det, share in parts), torch.zeros_like(end)
    )


def least_action(
    problem: StepProblem,
    points: Particles,
    weights: Tensor,
    field: RidgeField,
    *,
    max_iterations: int,
    span: float,
    barrier: DensityBarrier | None = None,
) -> ActionResult | None:
    """Solve a step for all parameters of a field, in place, on weighted points of the law (weights of sum one).

    `span` is what dE/drho differs by over the points. Starts from the field as it is, or from less motion where that
    leaves the densities that the mobility allows, here or at the particles of the barrier; None where no motion does
    so too.
    """
    action = _Action(problem, points, weights, field, barrier)
    guess = field.get()
    rest = action.at(torch.zeros_like(guess))
    start = action.feasible(guess)
    if rest is None or start is None:
        return None
    settings = rest.value, _NEGLIGIBLE * span, max_iterations
    end, n_iterations = _minimise(action, start, *settings, gradient_only=True)
    if field.dim > 1 and action.promise(end) > _ROTATION * (rest.value - end.value):
        end, more = _minimise(action, end, *settings, gradient_only=False)
        n_iterations += more
    field.set(end.parameters)
    return ActionResult(rest.value - end.value, n_iterations)


class _Point(NamedTuple):
    """The objective at some parameters, and what its derivative is made of: (n,) and (n, d) where not said."""

    parameters: Tensor  # (p,)
    value: float
    displacement: Tensor
    force: Tensor  # gradient of the energy per mass in T
    resistance: Tensor
    log_det: tuple[Tensor, Tensor]  # halfway and at the end
    inverse: tuple[Tensor, Tensor]  # (n, d, d), (I + Du / 2)^-1 / 2 and (I + Du)^-1


class _Action:
    """J and its derivatives."""

    def __init__(
        self,
        problem: StepProblem,
        points: Particles,
        weights: Tensor,
        field: RidgeField,
        barrier: DensityBarrier | None = None,
    ) -> None:
        assert problem.mobility is not None
        self.problem, self.field, self.weights = problem, field, weights.double()
        self.mobility, self.barrier = problem.mobility, barrier
        self.z = points.x.double()
        self.log_mass = math.log(problem.energy.mass)
        self.log_rho = points.log_rho.double()
        self.score = None if points.score is None else points.score.double()

    def feasible(self, parameters: Tensor) -> _Point | None:
        """The point of these parameters, or with less and less of the motion until it is allowed."""
        for _ in range(40):
            found = self.at(parameters)
            if found is not None:
                return found
            self.field.set(parameters)
            with torch.no_grad():
                for part in (
                    self.field.output,
                    self.field.extra,
                    self.field.linear,
                    self.field.symmetric,
                    self.field.skew,
                ):
                    part.mul_(0.7)
            parameters = self.field.get()
        return None

    def at(self, parameters: Tensor) -> _Point | None:
        """None where a point folds, or comes to a density that is not allowed."""
        field, identity = self.field, torch.eye(self.z.shape[1]).to(self.z)
        field.set(parameters)
        with torch.no_grad():
            displacement, jacobian = field.with_jacobian(self.z)
            log_det, inverse = [], []
            for s in (0.5, 1.0):
                matrix = identity + s * jacobian
                sign, size = torch.linalg.slogdet(matrix)
                if not bool(((sign > 0.0) & size.isfinite()).all()) or not self._allowed(self.log_rho - size):
                    return None
                log_det.append(size)
                inverse.append(s * torch.linalg.inv(matrix))
            resistance = self._resistance(log_det[0], log_det[1])
            rest = self._of_density(displacement, log_det[0], log_det[1])
        pressure = 0.0 if self.barrier is None else self.barrier.value(field)
        if pressure is None or not bool((resistance > 0.0).all()):
            return None
        try:
            seen = self.problem.field(self.z + displacement, self.weights)
        except TargetError:
            return None
        value = float(self.weights @ (seen.energy + rest + self._control(displacement, jacobian))) + pressure
        if not math.isfinite(value):
            return None
        return _Point(
            parameters,
            value,
            displacement,
            seen.gradient,
            resistance,
            (log_det[0], log_det[1]),
            (inverse[0], inverse[1]),
        )

    def derivatives(self, now: _Point, *, gradient_only: bool) -> tuple[Tensor, Tensor]:
        """Gradient (p,) and Gauss-Newton matrix (p, p) of J."""
        field, k, w = self.field, self.problem.stiffness, self.weights
        field.set(now.parameters)
        moved = field.parameter_jacobian(self.z, gradient_only=gradient_only)
        pull = now.force + k * now.resistance.unsqueeze(-1) * now.displacement
        volumes, slopes, curvatures = [], [], []
        for slope, curvature, inverse in zip(*self._slopes(now), now.inverse, strict=True):
            volumes.append(field.trace_jacobian(self.z, inverse, gradient_only=gradient_only))
            slopes.append(slope)
            curvatures.append(curvature)
        if self.score is not None and self.problem.energy.has_internal:
            pull = pull + self.problem.energy.pressure_slope(self.log_rho).unsqueeze(-1) * self.score
            identity = torch.eye(self.z.shape[1]).to(self.z).expand(len(self.z), -1, -1)
            volumes.append(field.trace_jacobian(self.z, identity, gradient_only=gradient_only))
            slopes.append(self.problem.energy.pressure_per_mass(self.log_rho))
            curvatures.append(torch.zeros_like(w))
        gradient = torch.einsum("n,nd,ndp->p", w, pull, moved)
        rows = [((w * k * now.resistance).sqrt()[:, None, None] * moved).flatten(0, 1)]
        for volume, slope, curvature in zip(volumes, slopes, curvatures, strict=True):
            gradient = gradient + (w * slope) @ volume
            rows.append((w * curvature.clamp(min=0.0)).sqrt().unsqueeze(1) * volume)
        if self.problem.energy.has_internal:
            rows.append(self._bends(now, gradient_only=gradient_only))
        if self.barrier is not None:
            more, pressed = self.barrier.derivatives(field, gradient_only=gradient_only)
            gradient = gradient + more
            rows.append(pressed)
        stacked = torch.cat(rows)
        return gradient, stacked.mT @ stacked

    def promise(self, now: _Point) -> float:
        """The decrease that a step of all parameters would bring if J were what its Gauss-Newton matrix says."""
        gradient, normal = self.derivatives(now, gradient_only=False)
        scale = normal.diagonal().clone()
        scale.clamp_(min=1e-12 * float(scale.max()))
        return 0.5 * float(gradient @ torch.linalg.solve(normal + torch.diag(_PROMISED * scale), gradient))

    def _allowed(self, log_rho: Tensor) -> bool:
        return float(log_rho.max()) + self.log_mass < math.log(self.mobility.limit)

    def _resistance(self, halfway: Tensor, end: Tensor) -> Tensor:
        return path_resistance(self.mobility, self.log_rho + self.log_mass, halfway, end)

    def _of_density(self, displacement: Tensor, halfway: Tensor, end: Tensor) -> Tensor:
        """Action and internal energy (n,)."""
        total = 0.5 * self.problem.stiffness * displacement.square().sum(1) * self._resistance(halfway, end)
        total = total + self.problem.energy.internal(self.log_rho - end)
        return total

    def _control(self, displacement: Tensor, jacobian: Tensor) -> Tensor | float:
        """The score control variate (n,) of the internal energy, of mean zero."""
        energy = self.problem.energy
        if self.score is None or not energy.has_internal:
            return 0.0
        divergence = jacobian.diagonal(dim1=1, dim2=2).sum(1)
        along = (displacement * self.score).sum(1)
        return energy.pressure_per_mass(self.log_rho) * divergence + energy.pressure_slope(self.log_rho) * along

    def _slopes(self, now: _Point) -> tuple[list[Tensor], list[Tensor]]:
        """First and second derivatives of what depends on the log determinants, halfway and at the end."""
        with torch.enable_grad():
            halfway, end = (part.clone().requires_grad_(True) for part in now.log_det)
            total = self._of_density(now.displacement, halfway, end).sum()
            first = torch.autograd.grad(total, (halfway, end), create_graph=True, materialize_grads=True)
            second = [
                torch.autograd.grad(slope.sum(), part, retain_graph=True, materialize_grads=True)[0]
                if slope.requires_grad
                else torch.zeros_like(slope)
                for slope, part in zip(first, (halfway, end), strict=True)
            ]
        return [slope.detach() for slope in first], second

    def _bends(self, now: _Point, *, gradient_only: bool) -> Tensor:
        """Rows whose squares are the internal energy's resistance to bending, `P / rho |D du DT^-1|^2`, by probes."""
        probe = torch.randn(self.z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(self.z)
        ahead, behind = (
            self.field.parameter_jacobian(self.z + sign * _PROBE * probe, gradient_only=gradient_only)
            for sign in (1.0, -1.0)
        )
        bent = now.inverse[1] @ ((ahead - behind) / (2.0 * _PROBE))
        pressure = self.problem.energy.pressure_per_mass(self.log_rho - now.log_det[1]).clamp(min=0.0)
        return ((self.weights * pressure).sqrt()[:, None, None] * bent).flatten(0, 1)


def _minimise(
    action: _Action, start: _Point, at_rest: float, negligible: float, max_iterations: int, *, gradient_only: bool
) -> tuple[_Point, int]:
    """Iterations until they bring little beside what moving brings, and how many were tried."""

    def done(_: _Point, values: list[float]) -> bool:
        little = max(negligible, _LITTLE * abs(at_rest - values[-1]))
        return len(values) > 2 and values[-3] - values[-1] <= 2.0 * little

    def model(now: _Point) -> tuple[Tensor, Tensor]:
        return action.derivatives(now, gradient_only=gradient_only)

    return levenberg_marquardt(start, action.at, model, done, max_iterations=max_iterations)
