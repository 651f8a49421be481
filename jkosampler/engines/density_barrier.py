"""A barrier that keeps the densities of a step below the limit of its mobility, at many particles.

    B(T) = c E[ b(r(z)) ],    r = (1 - rho(T(z)) / limit) / (2 margin),    b(r) = r - 1 - log r  where r < 1, else 0.

It begins at twice the margin from the limit and has no end there, so that a solution stays about a margin away. It asks
for nothing but determinants, and so it can watch many more particles than feel the interactions, which are dear.
Without a limit it only watches that none folds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jkosampler.maps import RidgeField
from jkosampler.particles import Particles

__all__ = ["DensityBarrier"]


class DensityBarrier:
    """The barrier on particles of equal weight, and its derivatives in the parameters of a field.

    Parameters
    ----------
    particles : Particles
        Where the densities are watched.
    log_limit : float
        Log of the largest probability density: that of the mobility over the mass; infinite where it has none.
    margin : float
        Distance from the limit that is kept, as a fraction of it.
    size : float
        c (nats, or the energy's unit).
    """

    def __init__(self, particles: Particles, *, log_limit: float, margin: float, size: float) -> None:
        self.z, self.log_rho = particles.x.double(), particles.log_rho.double()
        self.log_limit, self.margin, self.size = log_limit, margin, size

    @torch.no_grad()
    def value(self, field: RidgeField) -> float | None:
        """B; None where a particle folds or comes to the limit."""
        _, jacobian = field.with_jacobian(self.z)
        density = self._densities(jacobian)
        if not bool((density < 1.0).all()):
            return None
        return float(self._of(density).mean())

    def at(self, log_rho: Tensor) -> Tensor:
        """c b (n,) at particles of these log densities, infinite at the limit."""
        return self._of(torch.exp(log_rho - self.log_limit))

    def _of(self, density: Tensor) -> Tensor:
        """c b (n,) of densities over their limit."""
        room = ((1.0 - density) / (2.0 * self.margin)).clamp(0.0, 1.0)
        return self.size * (room - 1.0 - room.log())

    @torch.no_grad()
    def derivatives(self, field: RidgeField, *, gradient_only: bool) -> tuple[Tensor, Tensor]:
        """Gradient of B (p,), and rows (k, p) whose squares are its Gauss-Newton matrix."""
        _, jacobian = field.with_jacobian(self.z)
        density = self._densities(jacobian)
        near = density > 1.0 - 2.0 * self.margin
        identity = torch.eye(self.z.shape[1]).to(self.z)
        volume = field.trace_jacobian(
            self.z[near], torch.linalg.inv(identity + jacobian[near]), gradient_only=gradient_only
        )
        # room r rises with the log determinant at the rate q
        q = density[near] / (2.0 * self.margin)
        room = (1.0 - density[near]) / (2.0 * self.margin)
        slope = (1.0 - 1.0 / room) * q
        curvature = (q / room).square() - slope
        share = self.size / len(self.z)
        return share * (slope @ volume), (share * curvature).sqrt().unsqueeze(1) * volume

    def _densities(self, jacobian: Tensor) -> Tensor:
        """Densities after the step over their limit, (n,); infinite where the field folds."""
        sign, log_det = torch.linalg.slogdet(torch.eye(jacobian.shape[-1]).to(jacobian) + jacobian)
        return torch.where(sign > 0.0, torch.exp(self.log_rho - log_det - self.log_limit), math.inf)
