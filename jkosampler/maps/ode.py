"""The neural ODE of Lee, Wang, Li (arXiv 2311.06700, section 3) as a map.

`dz/ds = grad phi(z, s)` and `dl/ds = div grad phi` on inner time [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.maps.base import Map, Pushed, checked_inverse, row_gradient, solve
from jkosampler.maps.fused import fused_transport
from jkosampler.potentials import ResNetPotential

__all__ = ["INTEGRATORS", "ODEMap"]

# Butcher tableaus: the rows a_i of earlier stages, the weights b; c_i is the sum of a_i.
INTEGRATORS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": (((),), (1.0,)),
    "heun": (((), (1.0,)), (0.5, 0.5)),
    "rk4": (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class ODEMap(Map):
    """The flow of `dz/ds = grad phi(z, s)` over inner time [0, 1], with `dl/ds = tr hess phi` (equation 13).

    Positions, log determinant and action are integrated by the same stages, so that a training loss that sees the
    one pays for the other.

    Parameters
    ----------
    potential : ResNetPotential
        phi, with or without time input.
    integrator : {"rk4", "heun", "euler"}
        The scheme.
    inner_steps : int
        Steps N_tau of the scheme in a whole step.
    probes : Tensor (k, d), optional
        Directions of Hutchinson's estimate of the trace; None takes the exact trace.
    tolerance : float
        Largest error `|T(x) - y|` of the inverse, relative to `1 + |y|`.
    fused : bool
        Whether `transport` is differentiated by hand (module `fused`) where gradients are wanted and the trace is
        exact: the same values, in half the time of the plain formulas, which False keeps to. Once only: False also
        for derivatives of derivatives, and for the transforms of `torch.func`.
    """

    probes: Tensor | None

    def __init__(
        self,
        potential: ResNetPotential,
        *,
        integrator: str = "rk4",
        inner_steps: int = 1,
        probes: Tensor | None = None,
        tolerance: float = 1e-10,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if integrator not in INTEGRATORS:
            raise ArgumentError(f"integrator must be one of {sorted(INTEGRATORS)}, got {integrator!r}.")
        if inner_steps < 1:
            raise ArgumentError(f"inner_steps must be at least 1, got {inner_steps}.")
        self.potential = potential
        self.integrator, self.inner_steps, self.tolerance, self.fused = integrator, inner_steps, tolerance, fused
        # A network trained in float32 is given probes of the interface's precision, which torch does not mix.
        self.register_buffer("probes", None if probes is None else probes.to(potential.linear))

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        z, log_det, _ = self.integrate(x, 0.0, fraction)
        return z, log_det

    def integrate(self, x: Tensor, start: float, end: float, refine: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (n, d), log determinants (n,) and actions `int |v|^2 ds` (n,) from inner time start to end.

        `refine` multiplies the number of inner steps, for a check of the integration.
        """
        rows, weights = INTEGRATORS[self.integrator]
        n_steps = self.inner_steps * refine
        h = (end - start) / n_steps
        log_det = action = torch.zeros_like(x[:, 0])
        for step in range(n_steps):
            s = start + step * h
            velocities: list[Tensor] = []
            increment = torch.zeros_like(x)
            for row, weight in zip(rows, weights, strict=True):
                z = x + h * sum((a * v for a, v in zip(row, velocities, strict=True) if a), torch.zeros_like(x))
                v, divergence = self._velocity(z, s + sum(row) * h)
                velocities.append(v)
                increment = increment + weight * v
                log_det = log_det + (h * weight) * divergence
                action = action + (h * weight) * v.square().sum(-1)
            x = x + h * increment
        return x, log_det, action

    def transport(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trained = x.requires_grad or any(parameter.requires_grad for parameter in self.potential.parameters())
        if self.fused and self.probes is None and self.potential.depth and trained and torch.is_grad_enabled():
            return fused_transport(self.potential, x, INTEGRATORS[self.integrator], self.inner_steps)
        return self.integrate(x, 0.0, 1.0)

    def initial_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._velocity(x, 0.0)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            y, log_det = self(x)
            rows = [row_gradient(y[:, i], x, retain_graph=True) for i in range(x.shape[-1])]
            gradient_of_log_det = row_gradient(log_det, x)
        jacobian = torch.stack(rows, dim=1)
        pushed = solve(jacobian.mT, score - gradient_of_log_det)
        return Pushed(y.detach(), log_det.detach(), pushed)

    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """Integrate backwards, then correct: the scheme's backward run is not the inverse of its forward run.

        `x <- x + B(y) - B(T(x))`, B the backward run, contracts by the integration error at every turn.
        """
        with torch.no_grad():
            limit = max(self.tolerance, 100.0 * torch.finfo(y.dtype).eps) * (1.0 + y.norm(dim=-1))
            target = self.integrate(y, fraction, 0.0)[0]
            x = target.clone()
            for _ in range(50):
                image, log_det = self(x, fraction)
                failed = ~((image - y).norm(dim=-1) <= limit)
                if not failed.any():
                    break
                x = torch.where(failed.unsqueeze(-1), x + target - self.integrate(image, fraction, 0.0)[0], x)
        return x, -checked_inverse(y, failed, log_det)

    def _velocity(self, z: Tensor, s: float) -> tuple[Tensor, Tensor]:
        return self.potential.gradient_and_laplacian(z, s if self.potential.time_input else None, self.probes)
