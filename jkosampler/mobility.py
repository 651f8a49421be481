"""Mobilities M(rho) of flows `d rho/dt = div(M(rho) grad dE/drho)`, whose action is `int rho^2 / M(rho) |v|^2`.

Equation (24) of Lee, Wang, Li (arXiv 2311.06700). The resistance `rho / M(rho)` is needed along the whole path of a
step. Where M vanishes at a largest density, as `rho (1 - rho)` does at one, it is infinite there and negative beyond: a
path must not come near, and a `Mobility` says where that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from jkosampler.errors import ArgumentError, TargetCallError

__all__ = ["Exclusion", "FunctionMobility", "Mobility", "as_mobility"]


class Mobility:
    """M(rho). A subclass gives `per_density`, and `limit` where there is one.

    Attributes
    ----------
    limit : float
        Density below which every law must stay; infinite by default.
    """

    name: str
    limit: float = math.inf

    def per_density(self, rho: Tensor) -> Tensor:
        """`M(rho) / rho`, (n,) of densities (n,); differentiable by torch, positive below the limit."""
        raise NotImplementedError

    def check(self, rho: Tensor) -> None:
        """Refuse densities (n,) that a law may not have.

        Raises
        ------
        ArgumentError
            A density reaches the limit, or has a mobility that is not positive and finite.
        """
        highest = float(rho.max())
        if highest >= self.limit:
            raise ArgumentError(
                f"initial: its density reaches {highest:.4g}, and mobility={self!r} allows only densities below "
                f"{self.limit:g}; start from a wider law, or from one of less mass (Law.with_mass)."
            )
        value = self.per_density(rho)
        bad = ~((value > 0.0) & value.isfinite())
        if bool(bad.any()):
            raise ArgumentError(
                f"mobility must be positive and finite at the densities of the start, but M(rho) / rho is "
                f"{float(value[bad][0]):.4g} at rho = {float(rho[bad][0]):.4g}."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Exclusion(Mobility):
    """`M(rho) = rho (1 - rho)`: no two particles in one place, densities stay below one."""

    name = "exclusion"
    limit = 1.0

    def per_density(self, rho: Tensor) -> Tensor:
        return 1.0 - rho


class FunctionMobility(Mobility):
    """A mobility given by a function.

    Parameters
    ----------
    function : callable
        M(rho), (n,) -> (n,), made of torch operations, positive for the densities of the flow.
    limit : float
        Density at which M vanishes again, if it does.
    """

    name = "function"

    def __init__(self, function: Callable[[Tensor], Tensor], limit: float = math.inf) -> None:
        self.function, self.limit = function, limit

    def per_density(self, rho: Tensor) -> Tensor:
        try:
            value = self.function(rho)
        except Exception as error:
            raise TargetCallError(
                f"mobility raised {type(error).__name__} for densities of shape {tuple(rho.shape)}: {error}"
            ) from error
        if not isinstance(value, Tensor) or value.shape != rho.shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ArgumentError(f"mobility must return a tensor of shape {tuple(rho.shape)}, got {found}.")
        return value / rho

    def __repr__(self) -> str:
        return f"FunctionMobility({getattr(self.function, '__name__', type(self.function).__name__)})"


def as_mobility(mobility: Any) -> Mobility | None:
    """The mobility of a name or function, or the mobility itself; None is the linear one, M(rho) = rho."""
    if mobility is None or isinstance(mobility, Mobility):
        return mobility
    if isinstance(mobility, str) and mobility == Exclusion.name:
        return Exclusion()
    if callable(mobility):
        return FunctionMobility(mobility)
    raise ArgumentError(
        f"mobility must be None, 'exclusion', a callable rho -> M(rho) or a Mobility object, got {mobility!r}."
    )
