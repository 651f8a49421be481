"""Energies of fields, `F(u) = int phi(x, u, grad u) dx`, for L2 gradient flows.

Section 3.1 of Park, Kim, Son, Hwang (arXiv 2109.14851). The L2 flow of F is
`u_t = div(d phi / d grad u) - d phi / d u`, with no flux through the boundary.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from jkosampler._arguments import positive_number
from jkosampler.energies.terms import Energy
from jkosampler.errors import ArgumentError

__all__ = ["AllenCahn", "Dirichlet", "L2Functional"]


class L2Functional(Energy):
    """`int phi(x, u, grad u) dx` for a function phi of the user.

    Parameters
    ----------
    phi : callable
        phi(x, u, grad_u), (n, d), (n,), (n, d) -> (n,), twice differentiable in u and grad_u by torch.

    Examples
    --------
    >>> from jkosampler.energies import L2Functional
    >>> decay = L2Functional(lambda x, u, grad_u: 0.5 * u**2)  # u_t = -u
    """

    def __init__(self, phi: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        if not callable(phi):
            raise ArgumentError(f"phi must be a callable (x, u, grad_u) -> (n,), got {type(phi).__name__}.")
        self.phi = phi


class Dirichlet(L2Functional):
    """`kappa / 2 int |grad u|^2`; its L2 flow is the heat equation `u_t = kappa Lap u`."""

    def __init__(self, kappa: float = 1.0) -> None:
        self.kappa = positive_number(kappa, "kappa")
        super().__init__(lambda x, u, grad_u: 0.5 * self.kappa * grad_u.square().sum(-1))

    def __repr__(self) -> str:
        return f"Dirichlet(kappa={self.kappa:g})"


class AllenCahn(L2Functional):
    """`int |grad u|^2 / 2 + (u^2 - 1)^2 / (4 epsilon^2)`; its L2 flow is `u_t = Lap u - (u^3 - u) / epsilon^2`."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = positive_number(epsilon, "epsilon")
        super().__init__(
            lambda x, u, grad_u: 0.5 * grad_u.square().sum(-1) + (u.square() - 1.0).square() / (4.0 * self.epsilon**2)
        )

    def __repr__(self) -> str:
        return f"AllenCahn(epsilon={self.epsilon:g})"
