"""L2 flows between steps: what is to be computed, the state, and a step as fresh points see it.

The step's theorem (3.6 of Park, Kim, Son, Hwang, arXiv 2109.14851) asks for `F(u') + d^2 / (2 tau) <= F(u)`: `slack` in
the history is what it holds by.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from sklearn.utils import Bunch
from torch import Tensor

from jkosampler.domains import Domain, Quadrature
from jkosampler.energies import FunctionalEvaluator
from jkosampler.engines.field_step import Basis
from jkosampler.fields import CosineField, NetworkField, ScalarField, SmoothField

__all__ = ["FieldFlow", "FieldState", "Seen", "judged"]

_STATIONARY = 1e-9  # of u: a step that has to change less has no residual to speak of
_ROUNDING = 1e-10  # of the terms of which the slack is a difference


@dataclass(frozen=True)
class FieldFlow:
    """An L2 flow to compute: energy, domain, start, step size and order, and where randomness comes from."""

    energy: FunctionalEvaluator
    domain: Domain
    initial: ScalarField
    step_size: float
    order: int
    generator: torch.Generator
    device: torch.device

    def quadrature(self, n: int, method: str = "sobol") -> Quadrature:
        """New points to integrate by, on the flow's device."""
        points = self.domain.quadrature(n, self.generator, method)
        return Quadrature(points.x.to(self.device), points.weights.to(self.device))


@dataclass(frozen=True)
class Seen:
    """A field at the check points: values (n,), gradients (n, d) and the energy's integrand (n,)."""

    u: Tensor
    gradient: Tensor
    phi: Tensor


@dataclass(frozen=True)
class FieldState:
    """The flow after some steps: all its fields, and the last one at points that take no part in solving.

    With variable projection, `layer` is the hidden layer, `basis` its units on the quadrature's points, where the last
    field has the values `u` (n,) and the `coordinates` (r,); wider layers of the sizes `layers_left` may still be
    tried. With Adam, `network` is the last network.
    """

    flow: FieldFlow
    fields: tuple[ScalarField, ...]
    check: Quadrature
    seen: Seen
    times: tuple[float, ...] = (0.0,)
    layer: CosineField | None = None
    basis: Basis | None = None
    u: Tensor | None = None
    coordinates: Tensor | None = None
    layers_left: tuple[int, ...] = ()
    network: NetworkField | None = None
    stopped: str | None = None
    converged: bool = False

    @property
    def n_steps(self) -> int:
        """Steps made."""
        return len(self.times) - 1


def judged(
    state: FieldState, after: SmoothField, before: Tensor, tau: float, damping: float = 0.0
) -> tuple[FieldState, Bunch]:
    """The state after a step, with what fresh points say of it; the last stage led from `before` (n,) there in tau.

    What is left of the equation oscillates faster than the network resolves, and a step damps it at this rate.
    """
    flow, (x, weights), seen = state.flow, state.check, state.seen
    u, gradient = after.with_gradient(x)
    right = flow.energy.equation(x, u, gradient, after.hessian(x))
    phi = flow.energy.value(x, u, gradient)
    defined = right.isfinite()  # but where phi has a kink
    missing = (weights @ torch.where(defined, (u - before) / tau - right, 0.0).square()) ** 0.5
    right = torch.where(defined, right, 0.0)
    size = (weights @ u.square()).sqrt()
    scale = torch.maximum((weights @ right.square()).sqrt(), _STATIONARY * size / tau).clamp(min=1e-300)
    gain = seen.phi - phi - (u - seen.u).square() / (2.0 * flow.step_size)
    slack, slack_se = float(weights @ gain), flow.domain.volume * float(gain.std()) / len(x) ** 0.5
    rounding = _ROUNDING * float(weights @ (phi.abs() + u.square() / (2.0 * tau)))
    now = state.times[-1] + flow.step_size
    record = Bunch(
        time=now,
        step_size=flow.step_size,
        residual=float(missing / scale),
        unresolved=float(tau * missing / size.clamp(min=1e-300)) / (1.0 + tau * damping),
        slack=slack,
        slack_se=slack_se,
        descends=slack >= -3.0 * slack_se - rounding,
    )
    fields = (*state.fields, after)
    return replace(state, fields=fields, seen=Seen(u, gradient, phi), times=(*state.times, now)), record
