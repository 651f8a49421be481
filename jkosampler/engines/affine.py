"""The affine stage: the best affine map of a step, `T(z) = e^Q z + b` with Q symmetric.

Gaussian flows are solved by it alone, exactly; for others it brings location and scale to where a network has
only the shape left to learn. The exponential keeps the map increasing however far the step goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from jkosampler.engines.objectives import StepProblem
from jkosampler.errors import TargetCallError, TargetGradientError, TargetValueError
from jkosampler.particles import CALIBRATED_DIMENSIONS, Particles, gaussian_moments, weighted_moments
from jkosampler.potentials import ResNetPotential

__all__ = ["AffineSolution", "set_affine", "solve_affine"]

# Beside these, L-BFGS remembers enough updates (`maxcor`) to be BFGS in low dimension: with the usual ten it takes
# hundreds of iterations where the target's Hessian has a condition of 1e5 in whitened coordinates.
_LINE_SEARCH = {"maxls": 30, "ftol": 1e-13, "gtol": 1e-9}


class AffineSolution(NamedTuple):
    """`T(z) = e^Q z + b`: Q (d, d) symmetric, b (d,), and the objective's decrease that the sample promises."""

    exponent: Tensor
    shift: Tensor
    decrease: float

    @property
    def matrix(self) -> Tensor:
        """e^Q."""
        return torch.linalg.matrix_exp(self.exponent)

    @property
    def displacement(self) -> tuple[Tensor, Tensor]:
        """Matrix and shift of T - I: the quadratic and linear term of the potential whose gradient map is T."""
        return self.matrix - torch.eye(len(self.shift)).to(self.shift), self.shift

    @property
    def velocity(self) -> Tensor:
        """The a (d,) for which the flow of `dz/ds = Q z + a` ends at T: `a = (int_0^1 e^{sQ} ds)^-1 b`."""
        rates, axes = torch.linalg.eigh(self.exponent)
        mean_growth = torch.where(rates.abs() < 1e-8, 1.0 + 0.5 * rates, torch.expm1(rates) / rates)
        return axes @ ((axes.mT @ self.shift) / mean_growth)

    @classmethod
    def identity(cls, like: Tensor) -> AffineSolution:
        """No motion of particles (n, d)."""
        shift = torch.zeros_like(like[0])
        return cls(torch.diag(shift), shift, 0.0)


def solve_affine(problem: StepProblem, particles: Particles, weights: Tensor, *, max_iterations: int) -> AffineSolution:
    """Minimise the step's objective over affine maps on weighted particles in the step's coordinates.

    L-BFGS from the identity or from the closed form for Gaussians, whichever is better. In many dimensions, where
    weights are not calibrated and the map has more parameters than a sample can settle, the closed form alone, with
    moments by regression, if it is better than the identity.

    Raises
    ------
    TargetError
        The target fails at the particles themselves; where it only fails further away, the search backs off.
    """
    value, _, gradient = problem.field(particles.x, weights)
    inside = value != torch.inf
    if not bool(inside.all()):  # where no mass may be there is no slope to follow; the rest shows the way
        particles, weights, gradient = particles[inside], weights[inside] / weights[inside].sum(), gradient[inside]
    objective = _AffineObjective(problem, particles, weights)
    objective(objective.best_at)
    guess = _gaussian_step(problem, particles, weights, gradient) if np.isfinite(objective.first) else None
    if guess is not None:
        objective(objective.pack(*guess))
    if guess is None or objective.decrease <= 0.0 or objective.dim <= CALIBRATED_DIMENSIONS:
        minimize(
            objective,
            objective.best_at,
            jac=True,
            method="L-BFGS-B",
            options=_LINE_SEARCH | {"maxiter": max_iterations, "maxcor": min(2 * objective.n_parameters, 100)},
        )
    # Not scipy's result: it is the last point tried, not the best, after a line search that failed at a wall.
    exponent, shift = objective.unpack(torch.as_tensor(objective.best_at).to(particles.x))
    return AffineSolution(exponent, shift, objective.decrease)


def _gaussian_step(
    problem: StepProblem, particles: Particles, weights: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Q and b of the exact step of a Gaussian of these moments in the mean quadratic potential: a guess.

    Stein's identity `E[grad V s'] = -E[hess V]` gives the mean Hessian H. With k the stiffness, p the pressure and S
    the covariance, the step's matrix solves `(k + H) K = k + p (S K)^-1`, a Riccati equation for K^-1. In many
    dimensions, where weights are not calibrated, the moments of a Gaussian law come from its score, and H from the
    regression of grad V on x, both exact for a quadratic V.
    """
    pressure = float(weights @ problem.energy.pressure_per_mass(particles.log_rho))
    if particles.score is None or not pressure > 0.0:
        return None
    gradient, z, score = (y.double() for y in (gradient, particles.x, particles.score))
    weights, k = weights.double(), problem.stiffness
    mean, covariance = weighted_moments(z, weights)
    slope = weights @ gradient
    hessian = -(gradient * weights.unsqueeze(-1)).mT @ score
    known = gaussian_moments(particles) if len(mean) > CALIBRATED_DIMENSIONS else None
    if known is not None and bool(gradient.isfinite().all()):
        hessian = torch.linalg.solve(covariance, (z - mean).mT @ ((gradient - slope) * weights.unsqueeze(-1))).mT
        slope = slope + hessian @ (known[0].double() - mean)
        mean, covariance = (moment.double() for moment in known)
    if not float(hessian.abs().max()) < 1e12 * k:  # NaN, or beyond what rounding leaves of the rest
        return None
    root = _of_symmetric(lambda s: s.clamp(min=1e-12).rsqrt(), covariance)
    steepness = root @ _of_symmetric(lambda h: 1.0 + h.clamp(min=0.0) / k, hessian) @ root
    ratio = 4.0 * pressure / k
    inverse = _of_symmetric(lambda n: ((1.0 + ratio * n.abs()).sqrt() + 1.0) / (2.0 * n.abs()), steepness)
    matrix = root @ inverse @ root
    moved = mean - _of_symmetric(lambda h: 1.0 / (k + h.clamp(min=0.0)), hessian) @ slope
    return _of_symmetric(lambda m: m.clamp(min=1e-12).log(), matrix), moved - matrix @ mean


def _of_symmetric(function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    values, axes = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    return (axes * function(values)) @ axes.mT


def set_affine(potential: ResNetPotential, quadratic: Tensor, linear: Tensor) -> None:
    """Set the quadratic (d, d) and linear (d,) terms in x of a potential; those in the inner time stay zero."""
    d = potential.dim
    with torch.no_grad():
        potential.quadratic[:d, :d] = quadratic
        potential.linear[:d] = linear


class _AffineObjective:
    """Value and gradient of J in the lower triangle of Q and b, as numpy sees them."""

    def __init__(self, problem: StepProblem, particles: Particles, weights: Tensor) -> None:
        self.problem, self.particles, self.weights = problem, particles, weights
        self.dim = particles.x.shape[1]
        self.triangle = torch.tril_indices(self.dim, self.dim, device=particles.x.device)
        self.n_parameters = self.triangle.shape[1] + self.dim
        self.first = self.best = np.inf
        self.best_at = np.zeros(self.n_parameters)

    @property
    def decrease(self) -> float:
        """From the identity to the best map found; zero where the energy is infinite at the start."""
        return self.first - self.best if np.isfinite(self.first) else 0.0

    def pack(self, exponent: Tensor, shift: Tensor) -> np.ndarray:
        """The parameters of Q and b."""
        lower = 2.0 * exponent - torch.diag(exponent.diagonal())
        return torch.cat([lower[self.triangle[0], self.triangle[1]], shift]).double().cpu().numpy()

    def unpack(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Q and b."""
        lower = torch.zeros(self.dim, self.dim).to(parameters)
        lower = lower.index_put((self.triangle[0], self.triangle[1]), parameters[: -self.dim])
        return 0.5 * (lower + lower.mT), parameters[-self.dim :]

    def __call__(self, values: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.enable_grad():
            parameters = torch.as_tensor(values).to(self.particles.x).requires_grad_(True)
            exponent, shift = self.unpack(parameters)
            z = self.particles.x
            moved = z @ torch.linalg.matrix_exp(exponent) + shift
            try:
                potential, _, slope = self.problem.field(moved, self.weights)
            except (TargetCallError, TargetValueError, TargetGradientError):
                if np.isinf(self.first):
                    raise
                return self._wall(), np.zeros(self.n_parameters)
            rest = self.problem.energy.internal(self.particles.log_rho - exponent.trace())
            rest = rest + 0.5 * self.problem.stiffness * (moved - z).square().sum(-1)
            surrogate = self.weights @ ((moved * slope).sum(-1) + rest)
            (gradient,) = torch.autograd.grad(surrogate, parameters)
        value = float(self.weights @ (potential + rest.detach()))
        if not np.isfinite(value) or not bool(gradient.isfinite().all()):
            return self._wall(), np.zeros(self.n_parameters)
        if np.isinf(self.first):
            self.first = value
        if value < self.best:
            self.best, self.best_at = value, values.copy()
        return value, gradient.double().cpu().numpy()

    def _wall(self) -> float:
        """A finite value above the best, which sends the line search back from where the energy is infinite."""
        return self.best + abs(self.best) + 1.0 if np.isfinite(self.best) else 1e300
