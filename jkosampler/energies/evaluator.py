"""Energies ready for computing: checked, counted, in one dtype on one device, for a law of any mass."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkosampler.energies.interaction import Interaction
from jkosampler.energies.terms import KL, Energy, Entropy, InternalEnergy, Potential
from jkosampler.errors import ArgumentError
from jkosampler.targets import BlackBoxEvaluator, TargetEvaluator

__all__ = ["EnergyEvaluator", "Field"]


class Field(NamedTuple):
    """Potential and interaction at points: energy per mass (n,), its variation (n,) and the gradient of that (n, d).

    The energy per mass is `V + W * rho / 2`, the variation `V + W * rho`; without interaction both are V. They are
    +inf, with a zero gradient, where no mass may be.
    """

    energy: Tensor
    variation: Tensor
    gradient: Tensor


def nothing_used() -> float:
    """The share that is used of a budget without limits."""
    return 0.0


class EnergyEvaluator:
    """Evaluates an energy for laws of a given mass; all energies are per unit of mass.

    Parameters
    ----------
    energy : Energy
        What to evaluate.
    dim : int
        Dimension d of the points.
    dtype, device
        Of the points that potentials and targets receive.
    mass : float
        Total mass of the law. Log densities are those of the normalised law; what depends on the density sees the
        whole mass.

    Attributes
    ----------
    budget_used : callable
        The share of the budget that is used, 1 and more where nothing is left, for loops that would be too long.
    """

    def __init__(
        self, energy: Energy, *, dim: int, dtype: torch.dtype, device: torch.device | str, mass: float = 1.0
    ) -> None:
        self.mass, self._log_mass = mass, math.log(mass)
        self.budget_used: Callable[[], float] = nothing_used
        self._internals: list[tuple[float, InternalEnergy]] = []
        self._potentials: list[tuple[float, TargetEvaluator]] = []
        self._interactions: list[tuple[float, Interaction]] = []
        for coefficient, term in energy.terms():
            if isinstance(term, InternalEnergy):
                self._internals.append((coefficient, term))
            elif isinstance(term, Potential | KL):
                target = term.target(dim)
                kind = TargetEvaluator if target.differentiable else BlackBoxEvaluator
                self._potentials.append((coefficient, kind(target, dtype, device)))
            elif isinstance(term, Interaction):
                self._interactions.append((coefficient * mass, term))
            else:
                raise ArgumentError(f"energy: the term {term!r} can't be computed by the Lagrangian engine.")

    @property
    def evaluators(self) -> list[TargetEvaluator]:
        """Of its targets and potentials."""
        return [evaluator for _, evaluator in self._potentials]

    @property
    def n_evaluations(self) -> int:
        """Points at which targets and potentials were evaluated so far."""
        return sum(evaluator.n_evaluations for _, evaluator in self._potentials)

    @property
    def n_calls(self) -> int:
        """Batched calls of targets and potentials so far."""
        return sum(evaluator.n_calls for _, evaluator in self._potentials)

    def remember(self, other: EnergyEvaluator) -> None:
        """Count on, and know what is known, where another evaluator of the same energy has come to."""
        for mine, theirs in zip(self.evaluators, other.evaluators, strict=True):
            mine.remember(theirs)

    @property
    def is_relative_entropy(self) -> bool:
        """Whether the energy is a KL divergence up to a constant, so that exp(-energy) are importance weights."""
        internal = [(coefficient, type(term)) for coefficient, term in self._internals]
        return internal == [(1.0, Entropy)] and bool(self._potentials) and not self._interactions

    @property
    def black_box(self) -> BlackBoxEvaluator | None:
        """The target without gradient, if there is one."""
        found = [evaluator for _, evaluator in self._potentials if isinstance(evaluator, BlackBoxEvaluator)]
        if len(found) > 1:
            raise ArgumentError("energy: only one of its targets may be without gradient.")
        return found[0] if found else None

    @property
    def has_interaction(self) -> bool:
        """Whether points feel each other."""
        return bool(self._interactions)

    @property
    def has_internal(self) -> bool:
        """Whether the energy depends on the density itself."""
        return bool(self._internals)

    def with_potential(self, evaluator: Any) -> EnergyEvaluator:
        """The same energy with another potential, V less the log density of this evaluator."""
        other = copy(self)
        other._potentials = [(1.0, evaluator)]
        return other

    def with_black_box(self, evaluator: TargetEvaluator) -> EnergyEvaluator:
        """The same energy with this evaluator in the place of the target without gradient."""
        other, black_box = copy(self), self.black_box
        other._potentials = [(c, evaluator if known is black_box else known) for c, known in self._potentials]
        return other

    def check_start(self, x: Tensor) -> None:
        """Probe the targets and kernels at the starting particles; see `TargetEvaluator.probe`.

        Raises
        ------
        TargetError, StartError
            When a target misbehaves, or no particle starts where it has mass.
        """
        for _, evaluator in self._potentials:
            evaluator.probe(x)
            evaluator.check_start(x)
        for _, interaction in self._interactions:
            interaction.check(x)

    def potential(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """V (n,) and grad V (n, d); +inf with a zero gradient where no mass may be."""
        value, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for coefficient, evaluator in self._potentials:
            log_density, slope = evaluator.value_and_grad(x)
            value, gradient = value - coefficient * log_density, gradient - coefficient * slope
        return value, gradient

    def field(self, x: Tensor, weights: Tensor | None = None, crowd: Tensor | None = None) -> Field:
        """Potential and interaction at x (n, d).

        The law is made up of a crowd (m, d) of weights (m,), of sum one; None: of x itself, None: equal weights.
        """
        value, gradient = self.potential(x)
        if not self._interactions:
            return Field(value, value, gradient)
        many = x if crowd is None else crowd
        weights = torch.full_like(many[:, 0], 1.0 / len(many)) if weights is None else weights.to(many)
        felt = torch.zeros_like(value)
        for strength, interaction in self._interactions:
            pull, slope = interaction.among(x, weights) if crowd is None else interaction.of(crowd, weights, x)
            felt, gradient = felt + strength * pull, gradient + strength * slope
        gradient = torch.where(value.isfinite().unsqueeze(-1), gradient, 0.0)
        return Field(value + 0.5 * felt, value + felt, gradient)

    def internal(self, log_rho: Tensor) -> Tensor:
        """`U(rho) / rho`, (n,)."""
        return self._sum("per_mass", log_rho)

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        """`U'(rho) - U(rho) / rho`, (n,)."""
        return self._sum("pressure_per_mass", log_rho)

    def internal_variation(self, log_rho: Tensor) -> Tensor:
        """`U'(rho)`, (n,): what the internal energy adds to dE/drho."""
        return self.internal(log_rho) + self.pressure_per_mass(log_rho)

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        """`rho U''(rho)`, (n,)."""
        return self._sum("pressure_slope", log_rho)

    def _sum(self, function: str, log_rho: Tensor) -> Tensor:
        total = torch.zeros_like(log_rho)
        for coefficient, term in self._internals:
            total = total + coefficient * getattr(term, function)(log_rho + self._log_mass)
        return total
