"""Steps for costly targets: explicit in the potential, implicit in the entropy.

A forward-backward step knows the potential only where it begins. Instead of going along the gradient there, which is
stable for short steps only, an emulator is fitted to values and gradients at all these points and the implicit step
made in it: the potential is evaluated once at each particle and step, and what the emulator gets wrong is seen by the
held-out particles, which are judged by the potential itself. The affine stage, which has a long way to go where an
emulator knows only the beginning, stays implicit, on few particles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.affine import set_affine
from jkosampler.engines.base import State
from jkosampler.engines.collocation import draw_ridge_functions
from jkosampler.engines.step_solver import covering
from jkosampler.particles import weighted_moments
from jkosampler.potentials import ResNetPotential, log_two_cosh

__all__ = ["LARGEST_DIMENSION", "Emulator", "emulated"]

LARGEST_DIMENSION = 20  # the quadratic terms alone are too many for the equations of more

_RIDGES_PER_DIMENSION, _MOST_RIDGES = 100, 500
_DATA_PER_FUNCTION = 4  # values and derivatives: fewer leave the emulator too much freedom
_TAIL_SHARE = 0.25  # of points out to the tails, where maps are made too, beside the pool
_HIGH = 10.0  # nats above the lowest point, and as many a dimension, from which on a point counts less and less
_RIDGE = 1e-9  # relative, of the normal equations
_CHUNK = 500  # points whose equations are written down at a time


class Emulator:
    """A potential with the values (n,) and gradients (n, d) of another at points x (n, d), by least squares.

    Ridge functions of random directions, linear and quadratic terms, in the whitened coordinates of the points.
    """

    n_evaluations = n_calls = 0  # of the target

    def __init__(self, x: Tensor, value: Tensor, gradient: Tensor, generator: torch.Generator) -> None:
        n, d = x.shape
        weights = 1.0 / (1.0 + ((value - value.min()) / (_HIGH * (1 + d))).square())
        self.centre, covariance = weighted_moments(x, weights / weights.sum())
        self.factor = torch.linalg.cholesky(covariance)
        affordable = n * (d + 1) // _DATA_PER_FUNCTION - d * (d + 3) // 2
        width = max(1, min(_RIDGES_PER_DIMENSION * d, _MOST_RIDGES, affordable))
        self.potential = ResNetPotential(d, width=width, depth=1, generator=generator, device=x.device)
        draw_ridge_functions(self.potential, generator)
        z = self._whitened(x)
        self.constant = float(value @ weights / weights.sum())
        normal, right = self._normal_equations(z, value - self.constant, gradient @ self.factor, weights)
        scale = normal.diagonal().sqrt().clamp(min=1e-12)
        normal, right = normal / torch.outer(scale, scale), right / scale
        # quadratic potentials have an exact fit, which the regularised one of nearly dependent ridges would miss
        found = torch.zeros_like(right)
        found[width:] = torch.linalg.solve(normal[width:, width:], right[width:])
        left = right - normal @ found
        normal.diagonal().add_(_RIDGE * len(normal))
        found = (found + torch.linalg.solve(normal, left)) / scale
        output, linear, quadratic, constant = found.split([width, d, d * (d + 1) // 2, 1])
        self.constant += float(constant)
        i, j = torch.triu_indices(d, d)
        matrix = torch.zeros(d, d).to(found)
        matrix[i, j] = matrix[j, i] = quadratic
        with torch.no_grad():
            self.potential.output.copy_(output)
        set_affine(self.potential, matrix, linear)

    @torch.no_grad()
    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As a target: the log density (n,), minus the potential, and its gradient (n, d)."""
        z = self._whitened(x)
        gradient = torch.linalg.solve_triangular(self.factor, self.potential.gradient(z), upper=False, left=False)
        return -self.potential.value(z) - self.constant, -gradient

    def _normal_equations(self, z: Tensor, value: Tensor, gradient: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Of all functions and a constant, for values and gradients: (p, p) and (p,)."""
        normal, right = torch.zeros(0), torch.zeros(0)
        for some in torch.arange(len(z), device=z.device).split(_CHUNK):
            values, slopes = _values(self.potential, z[some]), _gradients(self.potential, z[some])
            rows = torch.cat([values.unsqueeze(1), slopes], dim=1)
            constant = torch.zeros_like(rows[..., :1])
            constant[:, 0] = 1.0
            root = weights[some].sqrt()
            rows = (root.view(-1, 1, 1) * torch.cat([rows, constant], dim=2)).flatten(0, 1)
            data = (root.unsqueeze(1) * torch.cat([value[some].unsqueeze(1), gradient[some]], dim=1)).flatten()
            normal = rows.mT @ rows if len(right) == 0 else normal.addmm_(rows.mT, rows)
            right = rows.mT @ data if len(right) == 0 else right + rows.mT @ data
        return normal, right

    def _whitened(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, (x - self.centre).mT, upper=False).mT


def emulated(state: State) -> EnergyEvaluator:
    """The energy with an emulator of its potential, from one evaluation at each particle of the pool, and some far."""
    flow = state.flow
    far = covering(flow, 0, int(_TAIL_SHARE * len(state.pool))).without_score().push_all(state.maps)
    x = torch.cat([state.pool.x, far.x])
    value, gradient = flow.energy.potential(x)
    usable = value.isfinite()
    return flow.energy.with_potential(Emulator(x[usable], value[usable], gradient[usable], flow.generator))


@torch.no_grad()
def _values(potential: ResNetPotential, z: Tensor) -> Tensor:
    """Every function of a potential of depth 1 at z (n, d), (n, p)."""
    i, j = torch.triu_indices(potential.dim, potential.dim)
    ridges = log_two_cosh(torch.addmm(potential.biases[0], z, potential.weights[0].mT))
    return torch.cat([ridges, z, z[:, i] * z[:, j] * torch.where(i == j, 0.5, 1.0).to(z)], dim=1)


@torch.no_grad()
def _gradients(potential: ResNetPotential, z: Tensor) -> Tensor:
    """Their gradients, (n, d, p)."""
    n, d = z.shape
    w = potential.weights[0]
    ridges = torch.tanh(torch.addmm(potential.biases[0], z, w.mT)).unsqueeze(1) * w.mT
    linear = torch.eye(d).to(z).expand(n, d, d)
    i, j = torch.triu_indices(d, d)
    unit = torch.eye(d).to(z)
    quadratic = (z[:, i].unsqueeze(1) * unit[:, j] + z[:, j].unsqueeze(1) * unit[:, i]) * torch.where(
        i == j, 0.5, 1.0
    ).to(z)
    return torch.cat([ridges, linear, quadratic], dim=2)
