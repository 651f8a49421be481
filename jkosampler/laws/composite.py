"""Laws made of laws: mixtures, and products of independent blocks of coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jkosampler._arguments import float_tensor
from jkosampler.errors import ArgumentError
from jkosampler.laws.elementary import Law
from jkosampler.laws.foreign import as_law, mixture_moments

__all__ = ["Mixture", "Product"]


class Mixture(Law):
    """Mixture of laws over the same space.

    Parameters
    ----------
    weights : array_like (k,)
        Positive; divided by their sum. They are the components' shares, whatever the masses of these; the mixture
        has mass 1 until `with_mass` gives it another.
    components : sequence of k laws or torch distributions

    Raises
    ------
    ArgumentError
        Numbers of weights and components differ, a weight is not positive, or dimensions differ.
    """

    def __init__(self, weights: Any, components: Sequence[Any]) -> None:
        weights = torch.atleast_1d(float_tensor(weights, "weights"))
        if not components or tuple(weights.shape) != (len(components),):
            raise ArgumentError(
                f"weights must have one number for each of the {len(components)} components, "
                f"got shape {tuple(weights.shape)}."
            )
        if not bool((weights > 0).all()):
            raise ArgumentError(f"weights must be positive, got {weights.tolist()}; leave empty components out.")
        laws = [as_law(component, name=f"components[{i}]") for i, component in enumerate(components)]
        if len({law.dim for law in laws}) > 1:
            raise ArgumentError(f"components must have one dimension, got {[law.dim for law in laws]}.")
        super().__init__(laws[0].dim, device=laws[0].device)
        self.weights = (weights / weights.sum()).to(self.device)
        self.components = [law.to(self.dtype, self.device) for law in laws]
        self.has_jump = any(law.has_jump for law in laws)

    @property
    def mean(self) -> Tensor:
        """Mean (d,)."""
        return self._moments()[0]

    @property
    def covariance(self) -> Tensor:
        """Covariance (d, d)."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        means = torch.stack([law.mean for law in self.components])
        return mixture_moments(self.weights, means, torch.stack([law.covariance for law in self.components]))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        weights = self.weights.to(generator.device)
        label = torch.multinomial(weights, n, replacement=True, generator=generator).to(self.device)
        x = torch.empty(n, self.dim, dtype=self.dtype, device=self.device)
        for k, law in enumerate(self.components):
            rows = (label == k).nonzero()[:, 0]
            x[rows] = law.sample((rows.shape[0],), generator=generator)
        return x

    def _log_prob(self, x: Tensor) -> Tensor:
        values = torch.stack([law.log_prob(x) for law in self.components], dim=1)
        return torch.logsumexp(values + self.weights.log(), dim=1)

    def smoothed(self) -> Law:
        """Mixture of the smoothed components."""
        if not self.has_jump:
            return self
        return Mixture(self.weights, [law.smoothed() for law in self.components]).to(self.dtype).with_mass(self.mass)

    def describe(self) -> str:
        """Say in a few words which law this is."""
        shown = zip(self.weights.tolist()[:4], self.components[:4], strict=True)
        parts = [f"{weight:.3g} {law.describe()}" for weight, law in shown]
        return "mixture of " + " + ".join(parts) + (" + .." if len(self.components) > 4 else "")


class Product(Law):
    """Independent laws side by side: the coordinates of the first, then of the second, and so on.

    Its mass is the product of theirs.

    Parameters
    ----------
    factors : sequence of laws or torch distributions

    Examples
    --------
    >>> from jkosampler.laws import Normal, Product, Uniform
    >>> Product([Normal(0.0, 1.0), Uniform(90.0, 110.0)]).dim
    2
    """

    def __init__(self, factors: Sequence[Any]) -> None:
        if not factors:
            raise ArgumentError("factors must hold at least one law.")
        laws = [as_law(factor, name=f"factors[{i}]") for i, factor in enumerate(factors)]
        super().__init__(sum(law.dim for law in laws), device=laws[0].device)
        self.factors = [law.to(self.dtype, self.device) for law in laws]
        self.has_jump = any(law.has_jump for law in laws)
        self.mass = math.prod(law.mass for law in laws)

    @property
    def mean(self) -> Tensor:
        """Mean (d,)."""
        return torch.cat([law.mean for law in self.factors])

    @property
    def covariance(self) -> Tensor:
        """Covariance (d, d)."""
        return torch.block_diag(*[law.covariance for law in self.factors])

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.cat([law.sample((n,), generator=generator) for law in self.factors], dim=1)

    def _log_prob(self, x: Tensor) -> Tensor:
        blocks = x.split([law.dim for law in self.factors], dim=1)
        values = [law.log_prob(block) for law, block in zip(self.factors, blocks, strict=True)]
        return torch.stack(values).sum(0)

    def smoothed(self) -> Law:
        """Product of the smoothed factors."""
        if not self.has_jump:
            return self
        return Product([law.smoothed() for law in self.factors]).to(self.dtype).with_mass(self.mass)

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return " x ".join(law.describe() for law in self.factors)
