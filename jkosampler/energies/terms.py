"""The terms of an energy: what they are, not yet how a flow evaluates them.

Along particles an internal energy is the mean of `U(rho) / rho`, and a step only needs three functions of it: that
one, `P(rho) / rho = U' - U / rho` with the pressure P, and `P'(rho) = rho U''`, the factor in
`grad U'(rho) = rho U''(rho) grad log rho`. All take the log density, since densities underflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jkosampler._arguments import positive_number
from jkosampler.errors import ArgumentError
from jkosampler.targets import Target, as_target

__all__ = ["KL", "Energy", "Entropy", "Internal", "InternalEnergy", "Potential", "Power"]

_SMALLEST_LOG = -690.0  # exp of it is still a normal float64, so that U(rho) / rho is a quotient and not 0 / 0


class Energy:
    """A sum of scaled terms; `2.0 * Entropy() + Potential(V)` builds one."""

    def terms(self) -> list[tuple[float, Energy]]:
        """The elementary terms with their coefficients."""
        return [(1.0, self)]

    def __add__(self, other: Energy) -> Energy:
        if not isinstance(other, Energy):
            return NotImplemented
        return _Sum(self.terms() + other.terms())

    def __mul__(self, factor: float) -> Energy:
        return _Sum([(float(factor) * coefficient, term) for coefficient, term in self.terms()])

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Sum(Energy):
    def __init__(self, terms: list[tuple[float, Energy]]) -> None:
        self._terms = terms

    def terms(self) -> list[tuple[float, Energy]]:
        return self._terms

    def __repr__(self) -> str:
        return " + ".join(f"{coefficient:g} * {term!r}" for coefficient, term in self._terms)


class InternalEnergy(Energy):
    """`int U(rho)`; a subclass gives the functions of the density that a step needs."""

    def per_mass(self, log_rho: Tensor) -> Tensor:
        """`U(rho) / rho`, (n,) from log densities (n,); differentiable by torch."""
        raise NotImplementedError

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        """`P(rho) / rho = U'(rho) - U(rho) / rho`, (n,): how fast `U/rho` rises with log rho."""
        raise NotImplementedError

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        """`P'(rho) = rho U''(rho)`, (n,): `grad U'(rho)` is this times the score."""
        raise NotImplementedError


class Entropy(InternalEnergy):
    """`int rho log rho`; its Wasserstein flow is the heat equation."""

    def per_mass(self, log_rho: Tensor) -> Tensor:
        return log_rho

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        return torch.ones_like(log_rho)

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        return torch.ones_like(log_rho)


class Power(InternalEnergy):
    """`1 / (m - 1) int rho^m`; its Wasserstein flow is the porous medium equation `d rho/dt = Laplace rho^m`.

    Parameters
    ----------
    m : float
        Exponent, positive and not one; below one, fast diffusion.
    """

    def __init__(self, m: float = 2.0) -> None:
        self.m = positive_number(m, "m")
        if self.m == 1.0:
            raise ArgumentError(f"m must be positive and not 1, got {m!r}; the limit m = 1 is energies.Entropy().")

    def per_mass(self, log_rho: Tensor) -> Tensor:
        return self.pressure_per_mass(log_rho) / (self.m - 1.0)

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        return torch.exp((self.m - 1.0) * log_rho)

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        return self.m * self.pressure_per_mass(log_rho)

    def __repr__(self) -> str:
        return f"Power(m={self.m:g})"


class Internal(InternalEnergy):
    """`int U(rho)` for a function U of the density; its derivatives are made by torch.

    Parameters
    ----------
    U : callable
        U(rho), (n,) -> (n,), twice differentiable by torch for rho > 0, with U(0) = 0.
    """

    def __init__(self, U: Callable[[Tensor], Tensor]) -> None:
        if not callable(U):
            raise ArgumentError(f"U must be a callable (n,) -> (n,) of the density, got {type(U).__name__}.")
        self.U = U

    def per_mass(self, log_rho: Tensor) -> Tensor:
        rho = log_rho.double().clamp(min=_SMALLEST_LOG).exp()
        return (self._checked(self.U(rho), log_rho) / rho).to(log_rho)

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        rho, value, slope, _ = self._derivatives(log_rho)
        return (slope - value / rho).to(log_rho)

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        rho, _, _, curvature = self._derivatives(log_rho)
        return (rho * curvature).to(log_rho)

    def _derivatives(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rho, U, U' and U'' (n,)."""
        with torch.inference_mode(False), torch.enable_grad():
            rho = log_rho.detach().double().clamp(min=_SMALLEST_LOG).exp().requires_grad_(True)
            value = self._checked(self.U(rho), log_rho)
            if not value.requires_grad:
                raise ArgumentError("energy: U of Internal(U) must be made of torch operations on rho.")
            (slope,) = torch.autograd.grad(value.sum(), rho, create_graph=True)
            curvature = torch.zeros_like(rho)
            if slope.requires_grad:
                (curvature,) = torch.autograd.grad(slope.sum(), rho, materialize_grads=True)
        return rho.detach(), value.detach(), slope.detach(), curvature.detach()

    def _checked(self, value: Any, log_rho: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != log_rho.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(
                f"energy: U of Internal(U) must return a tensor of shape {tuple(log_rho.shape)}, got {found}."
            )
        return value


class Potential(Energy):
    """`int V rho` for a potential V.

    Parameters
    ----------
    potential : callable
        V(x), (n, d) -> (n,), differentiable by torch; +inf marks where no mass may be.
    """

    def __init__(self, potential: Callable[[Tensor], Tensor]) -> None:
        if not callable(potential):
            raise ArgumentError(f"potential must be a callable (n, d) -> (n,), got {type(potential).__name__}.")
        self.potential = potential

    def target(self, dim: int) -> Target:
        """exp(-V) as a target over R^d."""
        return Target(lambda x: -self.potential(x), dim)


class KL(Energy):
    """`int rho log rho - int rho log gamma`, the relative entropy to `gamma / Z` less `log Z`.

    Parameters
    ----------
    log_target : callable or Target
        log gamma(x), (n, d) -> (n,), differentiable by torch, unnormalised.
    """

    def __init__(self, log_target: Any) -> None:
        if not callable(log_target) and not hasattr(log_target, "log_prob"):
            raise ArgumentError(f"log_target must be a callable (n, d) -> (n,), got {type(log_target).__name__}.")
        self.log_target = log_target

    def target(self, dim: int | None = None) -> Target:
        """The target gamma over R^d."""
        return as_target(self.log_target, dim)

    def terms(self) -> list[tuple[float, Energy]]:
        return [(1.0, Entropy()), (1.0, self)]
