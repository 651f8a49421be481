"""The affine stage: the best affine map of a step, `T(z) = e^Q z + b` with Q symmetric.

Gaussian flows are solved by it alone, exactly; for others it brings location and scale to where a network has
only the shape left to learn. The exponential keeps the map increasing however far the step goes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from jkosampler.engines.objectives import StepProblem
from jkosampler.errors import TargetValueError
from jkosampler.particles import Particles

__all__ = ["AffineSolution", "solve_affine"]


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
    """Minimise the step's objective over affine maps with L-BFGS on weighted particles in the step's coordinates."""
    objective = _AffineObjective(problem, particles, weights)
    start = np.zeros(objective.n_parameters)
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "maxls": 30, "ftol": 1e-13, "gtol": 1e-9},
    )
    best = result.x if result.fun <= objective.first else start
    exponent, shift = objective.unpack(torch.as_tensor(best).to(particles.x))
    return AffineSolution(exponent, shift, objective.first - min(float(result.fun), objective.first))


class _AffineObjective:
    """Value and gradient of J in the lower triangle of Q and b, as numpy sees them."""

    def __init__(self, problem: StepProblem, particles: Particles, weights: Tensor) -> None:
        self.problem, self.particles, self.weights = problem, particles, weights
        self.dim = particles.x.shape[1]
        self.triangle = torch.tril_indices(self.dim, self.dim, device=particles.x.device)
        self.n_parameters = self.triangle.shape[1] + self.dim
        self.first = self.best = np.inf

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
                potential, slope = self.problem.potential(moved)
            except TargetValueError:
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
        self.best = min(self.best, value)
        return value, gradient.double().cpu().numpy()

    def _wall(self) -> float:
        """A finite value above the best, which sends the line search back from where the energy is infinite."""
        return self.best + abs(self.best) + 1.0 if np.isfinite(self.best) else 1e300
