"""A W2 step whose unknown is a network for the density: the saddle point of the step's functional.

(3.8) of Park, Kim, Son, Hwang (arXiv 2109.14851), `min_u max_psi F(u) + W2^2(u, rho) / (2 tau)` with u a positive
network over its integral, and the distance by a pair of potentials (`transport_pair`). An error of psi counts 1 / tau
times in dF/du, so that descent in u and psi by turns has to be very slow or very small steps: Newton's method takes
both together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from jkosampler.domains import Quadrature
from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.transport_pair import TransportPair
from jkosampler.errors import FitError
from jkosampler.tangent import Tangent, gram

__all__ = ["DensityStep", "PositiveNetwork", "Saddle", "run_away"]

# of the largest curvature, at first, in each further iteration, and at last: with less at first, parameters move far in
# directions that cancel to first order
_DAMPING, _LESS_DAMPING, _LEAST_DAMPING = 1e-5, 0.3, 1e-8
_THIN = 1e-3  # share of evenly spread mass in the curvatures: holds what nothing determines where there is no mass
_LARGEST_CHANGE = 0.5  # of log u, root mean square, in an iteration
_LARGEST_MOVE = 0.1  # of a displacement, root mean square, in an iteration, as a share of the box
_FAR = 3.0  # times the box: a displacement that leads there is none


class PositiveNetwork(nn.Module):
    """The softplus of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        single = x.dim() == 1
        u = nn.functional.softplus(self.network(x[None] if single else x))
        return u[0] if single else u


@dataclass(frozen=True)
class Saddle:
    """The step's unknowns: the density's network, not normalised, and the pair."""

    density: Tangent
    pair: TransportPair


@dataclass(frozen=True)
class Slopes:
    """Derivatives of a step's functional at a saddle.

    Weights p (n,) of the new density at the points, of sum one; log u (n,), normalised; what is left of the condition
    `dF/du + (|x|^2 / 2 - psi) / tau = const` (n,); and where rho is led by psi-bar (n, d).
    """

    p: Tensor
    log_u: Tensor
    left: Tensor
    ahead: Tensor


class DensityStep:
    """One step from weights rho (n,), of sum one, at quadrature points.

    Parameters
    ----------
    energy : EnergyEvaluator
    tau : float
    points : Quadrature
    rho : Tensor (n,)
    """

    def __init__(self, energy: EnergyEvaluator, tau: float, points: Quadrature, rho: Tensor) -> None:
        self.energy, self.tau, self.rho = energy, tau, rho
        self.x, self.weights = points
        self.even = self.weights / self.weights.sum()
        self._field = None if energy.has_interaction else energy.field(self.x)

    def slopes(self, now: Saddle) -> Slopes:
        """See `Slopes`."""
        u = now.density(self.x)
        total = self.weights @ u
        p, log_u = self.weights * u / total, (u / total).clamp(min=torch.finfo(u.dtype).tiny).log()
        field = self.energy.field(self.x, p) if self._field is None else self._field
        variation = torch.where(p > 0.0, self.energy.internal_variation(log_u) + field.variation, 0.0)
        left = variation + now.pair.displacement_potential(self.x) / self.tau
        return Slopes(p, log_u, left - p @ left, now.pair.conjugate.gradient(self.x))

    def newton(self, now: Saddle, iteration: int) -> tuple[Saddle, float]:
        """The unknowns after an iteration (0, 1, ..), and how much log u has changed, root mean square under u.

        Raises
        ------
        FitError
            The unknowns have run away.
        """
        pair = now.pair.with_trained_conjugate(self.x, self.rho, _THIN * self.even)
        now = replace(now, pair=pair)
        at, psi = self.slopes(now), pair.psi
        if not float(at.ahead.abs().max()) < _FAR * float(self.x.abs().max()):
            raise run_away(pair)
        relative = now.density.jacobian(self.x) / now.density(self.x).unsqueeze(-1)
        relative = relative - at.p @ relative
        values, bends = psi.jacobian(self.x), psi.gradient_jacobian(at.ahead)
        slope_u = (at.p * at.left) @ relative
        slope_psi = at.p @ values - self.rho @ psi.jacobian(at.ahead)
        stiffness = self.energy.pressure_slope(at.log_u)
        stiffness = at.p * stiffness + _THIN * self.even * (at.p @ stiffness)
        curvature_u = gram(relative, stiffness)
        curvature_psi = self.tau * gram(bends, self.rho + _THIN * self.even)
        # the unknowns are those of u and those of psi over tau; the functional is concave in the latter
        coupling = (at.p.unsqueeze(-1) * values).mT @ relative
        n = len(slope_u)
        matrix = torch.zeros(n + len(slope_psi), n + len(slope_psi), dtype=coupling.dtype, device=coupling.device)
        matrix[:n, :n], matrix[n:, n:] = curvature_u, curvature_psi
        matrix[:n, n:], matrix[n:, :n] = -coupling.mT, coupling
        damping = max(_DAMPING * _LESS_DAMPING**iteration, _LEAST_DAMPING)
        for block, curvature in ((slice(0, n), curvature_u), (slice(n, None), curvature_psi)):
            matrix[block, block].diagonal().add_(damping * curvature.diagonal().max())
        step = -torch.linalg.solve(matrix, torch.cat([slope_u, slope_psi]))
        moves = (relative @ step[:n]).square()
        size, everywhere = (float((weights @ moves).sqrt()) for weights in (at.p, at.p + _THIN * self.even))
        if not everywhere < float("inf"):
            raise run_away(pair)
        moved = float(((self.rho + _THIN * self.even) @ (bends @ step[n:]).square().sum(-1)).sqrt()) * self.tau
        most = _LARGEST_MOVE * float((self.x.amax(0) - self.x.amin(0)).mean())
        step = step * min(1.0, _LARGEST_CHANGE / max(everywhere, 1e-300), most / max(moved, 1e-300))
        psi = psi.moved(self.tau * step[n:])
        if pair.pair == "joint":
            psi = psi.moved(-self._cycle_step(pair, at.ahead, bends))
        return Saddle(now.density.moved(step[:n]), replace(pair, psi=psi)), size

    def _cycle_step(self, pair: TransportPair, ahead: Tensor, bends: Tensor) -> Tensor:
        """What `lam R` asks of psi, as (2.12) is printed."""
        missed = pair.psi.gradient(ahead) - self.x
        slope = 2.0 * pair.lam * torch.einsum("n,nd,ndp->p", self.rho, missed, bends)
        curvature = (1.0 + 2.0 * pair.lam) * gram(bends, self.rho)
        curvature.diagonal().add_(_LEAST_DAMPING * curvature.diagonal().max())
        return torch.linalg.solve(curvature, slope)

    def adam(self, now: Saddle, n_iterations: int, learning_rate: float) -> Saddle:
        """The unknowns after iterations of Adam in all three networks at once.

        Raises
        ------
        FitError
            The unknowns have run away.
        """
        unknowns = [now.density.theta, now.pair.psi.theta, now.pair.conjugate.theta]
        parameters = [theta.clone() for theta in unknowns]
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        for _ in range(n_iterations):
            at = self.slopes(now)
            density, psi, conjugate = now.density, now.pair.psi, now.pair.conjugate
            u = density(self.x)
            parameters[0].grad = density.pulled(self.x, at.p * at.left / u)
            parameters[1].grad = psi.pulled(self.x, at.p) - psi.pulled(at.ahead, self.rho)
            if now.pair.pair == "joint":
                missed = psi.gradient(at.ahead) - self.x
                cycle = 2.0 * now.pair.lam * self.rho.unsqueeze(-1) * missed
                parameters[1].grad += psi.pulled_gradient(at.ahead, cycle)
            slope = self.rho.unsqueeze(-1) * now.pair.conjugate_slope(at.ahead, self.x)
            parameters[2].grad = conjugate.pulled_gradient(self.x, slope)
            optimizer.step()
            density, psi, conjugate = (
                Tangent(tangent.network, theta.clone())
                for tangent, theta in zip((density, psi, conjugate), parameters, strict=True)
            )
            now = Saddle(density, replace(now.pair, psi=psi, conjugate=conjugate))
        if not all(bool(theta.isfinite().all()) for theta in parameters):
            raise run_away(now.pair)
        return now


def run_away(pair: TransportPair) -> FitError:
    """The error that says so, and what may be the reason."""
    reason = (
        f"with pair='joint' and lam={pair.lam:g} they run away from each other, as they must for small lam (1/2 and "
        "less in short steps); take the default pair='max-min', or a larger lam"
        if pair.pair == "joint"
        else "take a smaller step_size, or leave representation out, above all where the density vanishes in a part of "
        "the box"
    )
    return FitError(f"the potentials of a step have run away: {reason}.")
