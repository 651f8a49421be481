"""A step by least squares: the Euler-Lagrange equation, integrated once, at collocation points.

In the coordinates z of a step the exact map `T(z) = z + grad phi(z)` makes

    F(z) = [V + U'(rho')](T(z)) + k (phi + |grad phi|^2 / 2)(z),        k = cost / tau,

the same everywhere: its gradient is `DT' r`, with r the residual of the step's Euler-Lagrange equation. `F` holds no
sampling noise and needs no score. To first order it is linear in phi, `F_0 + (grad V . grad - P' Laplace + k) phi`:
near the target a step is a linear elliptic equation, which Gauss-Newton solves in a few sweeps for phi in the span of
linear, quadratic and random ridge functions. Far from it, where mass must part, these can't follow, and maps are
trained (`training`) instead.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import chi
from torch import Tensor

from jkosampler.engines.affine import set_affine
from jkosampler.engines.objectives import StepProblem
from jkosampler.errors import TargetError
from jkosampler.maps import cholesky_and_log_det
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential, log_two_cosh

__all__ = ["CollocationResult", "draw_ridge_functions", "n_functions", "solve_collocation"]

_SLOPES = (0.3, 1.5)  # of the ridge functions, per whitened unit
_KINKS = 4.0  # whitened distance from the centre within which they bend
_RIDGE = 1e-8  # of the normalised normal equations: beyond it, coefficients grow without a better fit
_FAR_POINTS, _FAR = 2000, (1.0, 5.0)  # and where they are, in radii of the points
_PRICES = (1e-5, 1e-4, 1e-3)  # nats that a second derivative of one costs there, raised while the map folds there
_TAIL_FROM = 0.865  # share of a Gaussian within the radius where defended tails begin; 2 in two dimensions
_SHORTEST = 1e-3  # fraction of a Gauss-Newton step
_WORTHWHILE = 0.8  # fraction of the misfit that a Gauss-Newton step may leave and still be made


class CollocationResult(NamedTuple):
    """Half the variance of F over the points (nats), with the affine map alone and at the end; sweeps made."""

    before: float
    after: float
    n_iterations: int


def draw_ridge_functions(potential: ResNetPotential, generator: torch.Generator) -> None:
    """Draw the hidden layer of a potential of depth 1: all directions, a range of slopes, kinks all over the law."""
    like = potential.weights[0]
    normal = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    uniform = torch.rand(2, len(like), generator=generator, dtype=torch.float64)
    low, high = (math.log(slope) for slope in _SLOPES)
    slopes = torch.exp(low + (high - low) * uniform[0])
    with torch.no_grad():
        like.copy_(slopes.unsqueeze(-1) * normal / normal.norm(dim=1, keepdim=True))
        potential.biases[0].copy_(slopes * _KINKS * (2.0 * uniform[1] - 1.0))


def n_functions(potential: ResNetPotential) -> int:
    """Ridge, linear and quadratic functions of a potential of depth 1: the unknowns of a step."""
    return potential.width + potential.dim + potential.dim * (potential.dim + 1) // 2


def solve_collocation(
    problem: StepProblem, points: Particles, weights: Tensor, potential: ResNetPotential, *, max_iterations: int = 8
) -> CollocationResult | None:
    """Solve a step for the outer layer, linear and quadratic terms of a potential of depth 1, in place.

    Starts from the potential as it is. The points carry positive weights (n,); those where F is infinite at the start
    are left out. None where these are more than a few.
    """
    equation = _Equation(problem, points, weights, potential)
    start = equation.start()
    if start is None:
        return None
    total = 0
    for price in _PRICES:
        equation.price = price
        end, n_sweeps = _gauss_newton(equation, start, max_iterations)
        total += n_sweeps
        if not equation.folds_beyond(end):
            break
    defended, n_sweeps = _gauss_newton(equation, equation.defended(end), max_iterations)
    equation.set(end.parameters if equation.folds_beyond(defended) else defended.parameters)
    return CollocationResult(start.misfit, end.misfit, total + n_sweeps)


def _gauss_newton(equation: _Equation, start: _Linearised, max_iterations: int) -> tuple[_Linearised, int]:
    """Sweeps until they bring little, and how many."""
    now = equation.priced(start)
    for sweep in range(max_iterations):
        step, promised = equation.gauss_newton_step(now)
        better = _line_search(equation, now, step) if promised < _WORTHWHILE * now.objective else None
        if better is None:
            return now, sweep
        now = better
    return now, max_iterations


def _line_search(equation: _Equation, now: _Linearised, step: Tensor) -> _Linearised | None:
    """The first point on the way of a Gauss-Newton step, halved again and again, that pays."""
    size = 1.0
    while size > _SHORTEST:
        tried = equation.at(now.parameters + size * step)
        if tried is not None and tried.objective < (1.0 - 0.1 * size) * now.objective:
            return tried
        size *= 0.5
    return None


class _Linearised(NamedTuple):
    """F at some parameters: its misfit (nats), that and the price of far bends, and what the derivative is made of."""

    parameters: Tensor
    residual: Tensor  # (n,), F less its weighted mean
    misfit: float  # half the weighted variance of F
    objective: float
    force: Tensor  # (n, d), grad V(T) + k grad phi
    inverse: Tensor  # (n, d, d), DT^-1
    slope: Tensor  # (n, 1), P'(rho')


class _Equation:
    """F and its derivative in the coefficients of ridge, linear and quadratic functions."""

    def __init__(self, problem: StepProblem, points: Particles, weights: Tensor, potential: ResNetPotential) -> None:
        self.problem, self.potential = problem, potential
        self.z, self.log_rho, self.weights = points.x.double(), points.log_rho.double(), weights.double()
        d = potential.dim
        self.triangle = torch.triu_indices(d, d, device=points.x.device)
        self.sizes = [potential.width, d, self.triangle.shape[1]]
        self.far, self.far_bends = self._far_bends()
        self.price = 1.0
        self.tilt = torch.zeros_like(self.log_rho)

    def start(self) -> _Linearised | None:
        """At the potential as it is, on the points where F is finite."""
        quadratic = self.potential.quadratic_form()[self.triangle[0], self.triangle[1]]
        parameters = torch.cat([self.potential.output, self.potential.linear, quadratic]).detach().double()
        variation, force, factor, slope = self._variation(parameters)
        usable = variation.isfinite()
        if float(self.weights[usable].sum()) < 0.98 * float(self.weights.sum()):
            return None
        self.z, self.log_rho, self.tilt = self.z[usable], self.log_rho[usable], self.tilt[usable]
        self.weights = self.weights[usable] / self.weights[usable].sum()
        return self._linearised(parameters, variation[usable], force[usable], factor[usable], slope[usable])

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

    def set(self, parameters: Tensor) -> None:
        """Give the potential these coefficients."""
        output, linear, quadratic = parameters.split(self.sizes)
        upper = torch.zeros(len(linear), len(linear)).to(parameters)
        upper[self.triangle[0], self.triangle[1]] = quadratic
        with torch.no_grad():
            self.potential.output.copy_(output)
        set_affine(self.potential, torch.triu(upper) + torch.triu(upper, 1).mT, linear)

    def at(self, parameters: Tensor) -> _Linearised | None:
        """None where F is not finite at some point."""
        try:
            variation, force, factor, slope = self._variation(parameters)
        except TargetError:
            return None
        return self._linearised(parameters, variation, force, factor, slope) if variation.isfinite().all() else None

    def _linearised(
        self, parameters: Tensor, variation: Tensor, force: Tensor, factor: Tensor, slope: Tensor
    ) -> _Linearised:
        residual, misfit = self._misfit(variation - self.tilt)
        return self.priced(_Linearised(parameters, residual, misfit, 0.0, force, torch.cholesky_inverse(factor), slope))

    def _misfit(self, variation: Tensor) -> tuple[Tensor, float]:
        """What is left of F (n,) beside a constant, and half its weighted variance."""
        residual = variation - self.weights @ variation
        return residual, 0.5 * float(self.weights @ residual.square())

    def defended(self, now: _Linearised) -> _Linearised:
        """The same for an equation with heavier tails: importance weights then fall where the errors grow.

        F is to exceed its constant, and with it the log density that of the target, by as much as the equation is
        in error, times the squared distance into the tails.
        """
        radius = self.z.norm(dim=1) - chi.ppf(_TAIL_FROM, self.potential.dim)
        self.tilt = math.sqrt(2.0 * now.misfit) * radius.clamp(min=0.0).square()
        residual, misfit = self._misfit(now.residual - self.tilt)
        return now._replace(residual=residual, misfit=misfit)

    def priced(self, now: _Linearised) -> _Linearised:
        """The same with the objective of the present price."""
        price = 0.5 * self.price * float((self.far_bends @ now.parameters).square().sum())
        return now._replace(objective=now.misfit + price)

    @torch.no_grad()
    def folds_beyond(self, now: _Linearised) -> bool:
        """Whether the map folds at a far point."""
        self.set(now.parameters)
        hessian = self.potential.hessian(self.far)
        log_det = cholesky_and_log_det(torch.eye(self.potential.dim).to(hessian) + hessian)[1]
        return not bool(log_det.isfinite().all())

    def gauss_newton_step(self, now: _Linearised) -> tuple[Tensor, float]:
        """The change of the coefficients that removes the objective to first order, and what it leaves (nats)."""
        derivative = self._derivative(now)
        root = self.weights.sqrt().unsqueeze(-1)
        derivative = root * (derivative - self.weights @ derivative)
        scale = derivative.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
        derivative = derivative / scale
        bends = math.sqrt(self.price) * self.far_bends
        derivative = torch.cat([derivative, bends / scale])
        residual = torch.cat([root.squeeze(-1) * now.residual, bends @ now.parameters])
        normal = derivative.mT @ derivative
        normal.diagonal().add_(_RIDGE)
        step = -torch.linalg.solve(normal, derivative.mT @ residual)
        return step / scale, 0.5 * float((residual + derivative @ step).square().sum())

    @torch.no_grad()
    def _variation(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F (n,), NaN where the map folds; the force, the Cholesky factor of DT and P'."""
        self.set(parameters)
        potential, energy, k = self.potential, self.problem.energy, self.problem.stiffness
        gradient, hessian = potential.gradient_and_hessian(self.z)
        factor, log_det = cholesky_and_log_det(torch.eye(potential.dim).to(self.z) + hessian)
        value, slope = self.problem.potential(self.z + gradient)
        log_rho = self.log_rho - log_det
        variation = value + energy.internal(log_rho) + energy.pressure_per_mass(log_rho)
        variation = variation + k * (potential.value(self.z) + 0.5 * gradient.square().sum(-1))
        return variation, slope + k * gradient, factor, energy.pressure_slope(log_rho).unsqueeze(-1)

    @torch.no_grad()
    def _derivative(self, now: _Linearised) -> Tensor:
        """`(force . grad + k - P' tr(DT^-1 hess)) psi` at every point for every function psi, (n, p)."""
        w, b, k = self.potential.weights[0], self.potential.biases[0], self.problem.stiffness
        a = torch.addmm(b, self.z, w.mT)
        tanh = torch.tanh(a)
        squares = (w.unsqueeze(2) * w.unsqueeze(1)).flatten(1)
        bend = now.inverse.flatten(1) @ squares.mT  # w' DT^-1 w
        ridge = (now.force @ w.mT) * tanh + k * log_two_cosh(a) - now.slope * (1.0 - tanh.square()) * bend
        linear = now.force + k * self.z
        i, j = self.triangle
        zi, zj = self.z[:, i], self.z[:, j]
        quadratic = now.force[:, i] * zj + now.force[:, j] * zi + k * zi * zj - 2.0 * now.slope * now.inverse[:, i, j]
        # the diagonal carries the factor 1/2 of z'Az/2
        quadratic = quadratic * torch.where(i == j, 0.5, 1.0).to(quadratic)
        return torch.cat([ridge, linear, quadratic], dim=1)
