"""Energies `E(rho)` whose gradient flow is computed; they add and scale.

Equation (2) of Lee, Wang, Li (arXiv 2311.06700): `E = int U(rho) + int V rho`. Along particles an energy is the
mean of `U(rho)/rho + V(x)`, and a step only needs three things of it: V and its gradient, `U(rho)/rho`, and
`rho U''(rho)`, the factor in `grad U'(rho) = rho U''(rho) grad log rho`.

`KL(log_target)` is `Entropy() + Potential(-log_target)`: the relative entropy up to the log evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.targets import Target, TargetEvaluator, as_target

__all__ = ["KL", "Energy", "EnergyEvaluator", "Entropy", "Internal", "Potential"]


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


class Internal(Energy):
    """`int U(rho)`; a subclass gives the two functions of the density that a step needs."""

    def per_mass(self, log_rho: Tensor) -> Tensor:
        """`U(rho) / rho`, (n,) from log densities (n,)."""
        raise NotImplementedError

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        """`P(rho) / rho = U'(rho) - U(rho) / rho`, (n,): how fast `U/rho` rises with log rho."""
        raise NotImplementedError

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        """`P'(rho) = rho U''(rho)`, (n,): `grad U'(rho)` is this times the score."""
        raise NotImplementedError


class Entropy(Internal):
    """`int rho log rho`; its Wasserstein flow is the heat equation."""

    def per_mass(self, log_rho: Tensor) -> Tensor:
        return log_rho

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        return torch.ones_like(log_rho)

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        return torch.ones_like(log_rho)


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


class EnergyEvaluator:
    """An energy ready for computing: checked and counted evaluations in one dtype on one device.

    Parameters
    ----------
    energy : Energy
        What to evaluate.
    dim : int
        Dimension d of the points.
    dtype, device
        Of the points that potentials and targets receive.
    """

    def __init__(self, energy: Energy, *, dim: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self._internals: list[tuple[float, Internal]] = []
        self._potentials: list[tuple[float, TargetEvaluator]] = []
        for coefficient, term in energy.terms():
            if isinstance(term, Internal):
                self._internals.append((coefficient, term))
            elif isinstance(term, Potential | KL):
                self._potentials.append((coefficient, TargetEvaluator(term.target(dim), dtype, device)))
            else:
                raise ArgumentError(f"energy: the term {term!r} can't be computed by the Lagrangian engine.")

    @property
    def n_evaluations(self) -> int:
        """Points at which targets and potentials were evaluated so far."""
        return sum(evaluator.n_evaluations for _, evaluator in self._potentials)

    @property
    def is_relative_entropy(self) -> bool:
        """Whether the energy is a KL divergence up to a constant, so that exp(-energy) are importance weights."""
        internal = [(coefficient, type(term)) for coefficient, term in self._internals]
        return internal == [(1.0, Entropy)] and bool(self._potentials)

    @property
    def n_calls(self) -> int:
        """Batched calls of targets and potentials so far."""
        return sum(evaluator.n_calls for _, evaluator in self._potentials)

    def check_start(self, x: Tensor) -> None:
        """Probe the targets at the starting particles; see `TargetEvaluator.probe`.

        Raises
        ------
        TargetError, StartError
            When a target misbehaves, or no particle starts where it has mass.
        """
        for _, evaluator in self._potentials:
            evaluator.probe(x)
            evaluator.check_start(x)

    def potential(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """V (n,) and grad V (n, d); +inf with a zero gradient where no mass may be."""
        value, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for coefficient, evaluator in self._potentials:
            log_density, slope = evaluator.value_and_grad(x)
            value, gradient = value - coefficient * log_density, gradient - coefficient * slope
        return value, gradient

    def internal(self, log_rho: Tensor) -> Tensor:
        """`U(rho) / rho`, (n,)."""
        return sum((c * term.per_mass(log_rho) for c, term in self._internals), torch.zeros_like(log_rho))

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        """`U'(rho) - U(rho) / rho`, (n,)."""
        return sum((c * term.pressure_per_mass(log_rho) for c, term in self._internals), torch.zeros_like(log_rho))

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        """`rho U''(rho)`, (n,)."""
        return sum((c * term.pressure_slope(log_rho) for c, term in self._internals), torch.zeros_like(log_rho))
