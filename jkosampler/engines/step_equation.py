"""The Euler-Lagrange equation of a step, integrated once: its error at points, and the derivative of that.

In the coordinates z of a step the exact map `T(z) = z + grad phi(z)` makes

    F(z) = [V + W * rho' + U'(rho')](T(z)) + k (phi + |grad phi|^2 / 2)(z),        k = cost / tau,

the same everywhere: its gradient is `DT' r`, with r the residual of the step's Euler-Lagrange equation. `F` holds no
sampling noise and needs no score, and least squares for it are those of a pointwise equation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import chi
from torch import Tensor

from jkosampler.energies import Field
from jkosampler.engines.affine import set_affine
from jkosampler.engines.objectives import StepProblem
from jkosampler.errors import TargetError
from jkosampler.maps import cholesky_and_log_det
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential, log_two_cosh

__all__ = ["Linearised", "StepEquation", "n_functions"]

_FAR_POINTS, _FAR = 2000, (1.0, 5.0)  # where far bends are priced, in radii of the points
_TAIL_FROM = 0.865  # share of a Gaussian within the radius where defended tails begin; 2 in two dimensions
_STRETCHING = 3e-2  # nats, by their weight, that squared deviations of the log determinant cost at far points, ..
_BEYOND = 1.4  # .. which are so much farther out than those where trained ridges meet their equation

_MOST_LOST = 0.02  # weight of points at which F is infinite at the start, that an equation can do without


def n_functions(potential: ResNetPotential) -> int:
    """Ridge, linear and quadratic functions of a potential of depth 1: the unknowns of its outer layer."""
    return potential.width + potential.dim + potential.dim * (potential.dim + 1) // 2


class Linearised(NamedTuple):
    """F at some parameters: its misfit (nats), that and the price of far bends, and what the derivative is made of."""

    parameters: Tensor
    z: Tensor  # (n, d), the points
    residual: Tensor  # (n,), F less its weighted mean
    misfit: float  # half the weighted variance of F
    value: float
    force: Tensor  # (n, d), grad (V + W * rho')(T) + k grad phi
    inverse: Tensor  # (n, d, d), DT^-1
    slope: Tensor  # (n, 1), P'(rho')
    far_log_det: Tensor  # (k,), at the far points where stretching has a price
    far_inverse: Tensor  # (k, d, d)


class StepEquation:
    """F and its derivative in the parameters of a potential of depth 1, for points (n, d) with positive weights (n,).

    The parameters are the outer layer, the linear and quadratic terms and, where `hidden`, weights and biases of the
    ridge functions. The first `n_draws` points are draws of the law, which is what an interaction feels; its own change
    with the map is left out of the derivative.
    """

    def __init__(
        self,
        problem: StepProblem,
        points: Particles,
        weights: Tensor,
        potential: ResNetPotential,
        *,
        hidden: bool = False,
        n_draws: int | None = None,
    ) -> None:
        self.problem, self.potential, self.hidden = problem, potential, hidden
        self.z, self.log_rho, self.weights = points.x.double(), points.log_rho.double(), weights.double()
        self.draws = slice(0, len(points) if n_draws is None else n_draws)
        d, m = potential.dim, potential.width
        self.triangle = torch.triu_indices(d, d, device=points.x.device)
        self.sizes = [m, d, self.triangle.shape[1], *([m * d, m] if hidden else [])]
        if not hidden:
            self.far, self.far_bends = self._far_bends()
        self.price = 1.0
        self.tilt = torch.zeros_like(self.log_rho)
        self.beyond, self.beyond_weights = self.z[:0], self.weights[:0]
        if hidden and self.draws.stop < len(points):
            far = self.z[self.draws.stop :]
            self.beyond = far.mean(dim=0) + _BEYOND * (far - far.mean(dim=0))
            self.beyond_weights = _STRETCHING * self.weights[self.draws.stop :] / self.weights.sum()

    def start(self) -> Linearised | None:
        """At the potential as it is, on the points where F is finite; None where too many are lost, or far folds.

        Points that are no draws are left out where the target fails at one of them.
        """
        parameters = self.parameters()
        try:
            variation, force, factor, slope = self._variation(parameters)
        except TargetError:
            if self.draws.stop == len(self.z):
                raise
            self._keep(self.draws)
            variation, force, factor, slope = self._variation(parameters)
        usable = variation.isfinite()
        if float(self.weights[usable].sum()) < (1.0 - _MOST_LOST) * float(self.weights.sum()):
            return None
        self.draws = slice(0, int(usable[self.draws].sum()))
        self._keep(usable)
        self.weights = self.weights / self.weights.sum()
        found = self._linearised(parameters, variation[usable], force[usable], factor[usable], slope[usable])
        return found if math.isfinite(found.value) else None

    def _keep(self, rows: Tensor | slice) -> None:
        """Leave all other points out."""
        self.z, self.log_rho, self.tilt, self.weights = (
            values[rows] for values in (self.z, self.log_rho, self.tilt, self.weights)
        )

    def parameters(self) -> Tensor:
        """Those of the potential as it is (p,)."""
        potential = self.potential
        quadratic = potential.quadratic_form()[self.triangle[0], self.triangle[1]]
        parts = [potential.output, potential.linear, quadratic]
        if self.hidden:
            parts += [potential.weights[0].flatten(), potential.biases[0]]
        return torch.cat(parts).detach().double()

    def set(self, parameters: Tensor) -> None:
        """Give the potential these parameters."""
        output, linear, quadratic, *ridges = parameters.split(self.sizes)
        upper = torch.zeros(len(linear), len(linear)).to(parameters)
        upper[self.triangle[0], self.triangle[1]] = quadratic
        with torch.no_grad():
            self.potential.output.copy_(output)
            for own, new in zip((self.potential.weights[0], self.potential.biases[0]), ridges, strict=False):
                own.copy_(new.reshape(own.shape))
        set_affine(self.potential, torch.triu(upper) + torch.triu(upper, 1).mT, linear)

    def at(self, parameters: Tensor) -> Linearised | None:
        """None where F is not finite at some point, or the map folds far out."""
        try:
            parts = self._variation(parameters)
        except TargetError:
            return None
        if not bool(parts[0].isfinite().all()):
            return None
        found = self._linearised(parameters, *parts)
        return found if math.isfinite(found.value) else None

    def derivative(self, now: Linearised) -> Tensor:
        """The derivative of the residual (n, p)."""
        self.set(now.parameters)
        columns = self._derivative_at(now.z, now.force, now.inverse, now.slope, self.problem.stiffness)
        return columns.sub_(self.weights @ columns)

    def _linearised(
        self, parameters: Tensor, variation: Tensor, force: Tensor, factor: Tensor, slope: Tensor
    ) -> Linearised:
        residual, misfit = self._misfit(variation - self.tilt)
        inverse = torch.cholesky_inverse(factor)
        with torch.no_grad():
            far_factor, far_log_det = self._jacobian(self.potential.hessian(self.beyond))
        far_inverse = torch.cholesky_inverse(far_factor)
        return self.priced(
            Linearised(parameters, self.z, residual, misfit, 0.0, force, inverse, slope, far_log_det, far_inverse)
        )

    def _jacobian(self, hessian: Tensor) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of DT and its log determinant, NaN where it folds."""
        return cholesky_and_log_det(torch.eye(self.potential.dim).to(hessian) + hessian)

    def _misfit(self, variation: Tensor) -> tuple[Tensor, float]:
        """What is left of F (n,) beside a constant, and half its weighted variance."""
        residual = variation - self.weights @ variation
        return residual, 0.5 * float(self.weights @ residual.square())

    def misfit_of_draws(self, now: Linearised) -> float:
        """The misfit at the draws of the law alone."""
        weights, residual = self.weights[self.draws], now.residual[self.draws]
        weights = weights / weights.sum()
        return 0.5 * float(weights @ (residual - weights @ residual).square())

    def defended(self, now: Linearised) -> Linearised:
        """The same for an equation with heavier tails: importance weights then fall where the errors grow.

        F is to exceed its constant, and with it the log density that of the target, by as much as the equation is
        in error, times the squared distance into the tails.
        """
        radius = self.z.norm(dim=1) - chi.ppf(_TAIL_FROM, self.potential.dim)
        self.tilt = math.sqrt(2.0 * now.misfit) * radius.clamp(min=0.0).square()
        residual, misfit = self._misfit(now.residual - self.tilt)
        return now._replace(residual=residual, misfit=misfit)

    def priced(self, now: Linearised) -> Linearised:
        """The same with the objective of the present price of far bends or stretching."""
        if self.hidden:
            return now._replace(
                value=now.misfit + 0.5 * float(self.beyond_weights @ _centred(now.far_log_det).square())
            )
        price = 0.5 * self.price * float((self.far_bends @ now.parameters).square().sum())
        return now._replace(value=now.misfit + price)

    def far_stretching(self, now: Linearised) -> tuple[Tensor, Tensor]:
        """How the log determinant varies over the far points (k,), weighted and priced, and its derivative (k, p)."""
        none, one = torch.zeros_like(self.beyond), torch.ones_like(self.beyond[:, :1])
        self.set(now.parameters)
        rows = -self._derivative_at(self.beyond, none, now.far_inverse, one, 0.0)
        root = self.beyond_weights.sqrt()
        return root * _centred(now.far_log_det), root.unsqueeze(1) * _centred(rows)

    @torch.no_grad()
    def folds_beyond(self, now: Linearised) -> bool:
        """Whether the map folds at a far point."""
        self.set(now.parameters)
        return not bool(self._jacobian(self.potential.hessian(self.far))[1].isfinite().all())

    @torch.no_grad()
    def _far_bends(self) -> tuple[Tensor, Tensor]:
        """Points beyond those of the equation (k, d), and second derivatives of the functions there, each in one
        direction, over the root of k (k, p).
        """
        potential, generator = self.potential, torch.Generator().manual_seed(0)
        d, n = potential.dim, _FAR_POINTS
        normal = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
        position, direction = (normal / normal.norm(dim=-1, keepdim=True)).to(self.z)
        near, end = _FAR
        radius = self.z.norm(dim=1).max() * (near + (end - near) * torch.rand(n, 1, generator=generator).to(self.z))
        w = potential.weights[0]
        far = radius * position
        a = torch.addmm(potential.biases[0], far, w.mT)
        ridge = (1.0 - torch.tanh(a).square()) * (direction @ w.mT).square()
        rest = torch.zeros(n, sum(self.sizes[1:])).to(ridge)
        return far, torch.cat([ridge, rest], dim=1) / math.sqrt(n)

    @torch.no_grad()
    def _variation(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F (n,), NaN where the map folds; the force, the Cholesky factor of DT and P'."""
        self.set(parameters)
        potential, energy, k = self.potential, self.problem.energy, self.problem.stiffness
        gradient, hessian = potential.gradient_and_hessian(self.z)
        factor, log_det = self._jacobian(hessian)
        moved = self.z + gradient
        field = self._field(moved)
        log_rho = self.log_rho - log_det
        variation = field.variation + energy.internal_variation(log_rho)
        variation = variation + k * (potential.value(self.z) + 0.5 * gradient.square().sum(-1))
        return variation, field.gradient + k * gradient, factor, energy.pressure_slope(log_rho).unsqueeze(-1)

    def _field(self, moved: Tensor) -> Field:
        """Potential and interaction at the moved points; a draw does not feel itself."""
        if not self.problem.energy.has_interaction:
            return self.problem.field(moved)
        draws, weights = moved[self.draws], self.weights[self.draws] / self.weights[self.draws].sum()
        own = self.problem.field(draws, weights)
        if len(draws) == len(moved):
            return own
        others = self.problem.field(moved[self.draws.stop :], weights, draws)
        return Field(*(torch.cat(parts) for parts in zip(own, others, strict=True)))

    @torch.no_grad()
    def _derivative_at(self, z: Tensor, force: Tensor, inverse: Tensor, slope: Tensor, k: float) -> Tensor:
        """`(force . grad + k - P' tr(DT^-1 hess)) psi` at points (n, d), psi: that of phi in each parameter."""
        w, b = self.potential.weights[0], self.potential.biases[0]
        a = torch.addmm(b, z, w.mT)
        tanh = torch.tanh(a)
        bent = 1.0 - tanh.square()
        rows = (inverse @ w.mT).mT  # (n, m, d), DT^-1 w
        bend = slope * (rows * w).sum(-1)  # P' w' DT^-1 w
        along = force @ w.mT
        ridge = along * tanh + k * log_two_cosh(a) - bent * bend
        linear = force + k * z
        i, j = self.triangle
        zi, zj = z[:, i], z[:, j]
        quadratic = force[:, i] * zj + force[:, j] * zi + k * zi * zj - 2.0 * slope * inverse[:, i, j]
        # the diagonal carries the factor 1/2 of z'Az/2
        quadratic = quadratic * torch.where(i == j, 0.5, 1.0).to(quadratic)
        if not self.hidden:
            return torch.cat([ridge, linear, quadratic], dim=1)
        c = self.potential.output
        bias = c * (along * bent + k * tanh + 2.0 * tanh * bent * bend)
        weight = bias.unsqueeze(-1) * z.unsqueeze(1) + (c * tanh).unsqueeze(-1) * force.unsqueeze(1)
        weight -= (2.0 * c * bent * slope).unsqueeze(-1) * rows
        return torch.cat([ridge, linear, quadratic, weight.flatten(1), bias], dim=1)


def _centred(values: Tensor) -> Tensor:
    """Less their mean, if there are any."""
    return values - values.mean(dim=0) if len(values) else values
