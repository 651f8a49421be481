"""Where a field lives: boxes, balls, and any bounded region that a function describes; points to integrate over them.

A field `u(x)` of the minimizing-movement engine is integrated over its domain by points and weights. No domain knows
its boundary: the condition there, no flux, comes by itself from minimising without one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from jkosampler._arguments import float_tensor, positive_number
from jkosampler._cut_cells import cut_cell_rule
from jkosampler._inputs import whole_number
from jkosampler.errors import ArgumentError

__all__ = ["QUADRATURES", "Ball", "Box", "Domain", "LShape", "Quadrature", "Region"]

QUADRATURES = ("gauss", "sobol", "monte-carlo")
_DIFFERENCE = 1e-5  # of the sides
_NODES = 256  # of Gauss and Legendre's rule at most, in a panel of an axis
_VOLUME_POINTS = 2**17
_VOLUME_SEED = 20231
_TRIES = 40  # batches of points after which a region counts as empty


class Quadrature(NamedTuple):
    """Points (n, d) and positive weights (n,), whose sum is the domain's volume."""

    x: Tensor
    weights: Tensor

    def mean(self, values: Tensor) -> float:
        """Average over the domain of values (n,) at the points."""
        return float(self.weights @ values / self.weights.sum())


class Domain(ABC):
    """A bounded part of R^d, inside the box from `lower` (d,) to `upper` (d,)."""

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self.lower, self.upper = lower, upper

    @property
    def dim(self) -> int:
        """d."""
        return len(self.lower)

    def frame(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Centre and half sides (d,) of the bounding box: coordinates in which it is the cube [-1, 1]^d."""
        return ((self.lower + self.upper) / 2.0).to(device), ((self.upper - self.lower) / 2.0).to(device)

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest points (n, d) of the bounding box."""
        return torch.minimum(torch.maximum(x, self.lower.to(x)), self.upper.to(x))

    def differences(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The gradient (n, d) of a function (n, d) -> (n,), by central differences that stay in the bounding box."""
        columns = []
        for h in torch.diag(_DIFFERENCE * (self.upper - self.lower).to(x)):
            above, below = self.nearest(x + h), self.nearest(x - h)
            columns.append((function(above) - function(below)) / (above - below).sum(1))
        return torch.stack(columns, 1).detach()

    @property
    @abstractmethod
    def volume(self) -> float:
        """Volume of the domain."""

    @abstractmethod
    def contains(self, x: Tensor) -> Tensor:
        """Whether each of the points (n, d) is inside, bool (n,)."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n independent points (n, d), evenly distributed."""
        return self._fill(n, lambda many: torch.rand(many, self.dim, generator=generator, dtype=torch.float64))

    def quadrature(self, n: int, generator: torch.Generator, method: str = "sobol") -> Quadrature:
        """Points and weights to integrate by.

        Parameters
        ----------
        n : int
            So many points; about so many for "gauss", more where the boundary is long.
        generator : torch.Generator
            Scrambles Sobol's sequence, or draws the points; unused by "gauss".
        method : {"sobol", "monte-carlo", "gauss"}
            "gauss" is the tensor product of Gauss and Legendre's rule in a box; in other regions of the plane
            it is that in cells, and along lines in those that the boundary cuts.
        """
        n = whole_number(n, "n", 1)
        if method not in QUADRATURES:
            raise ArgumentError(f"quadrature must be one of {QUADRATURES}, got {method!r}.")
        if method == "gauss":
            return self._gauss(n)
        if method == "monte-carlo":
            x = self.sample(n, generator)
        else:
            seed = int(torch.randint(2**31, (1,), generator=generator))
            sequence = qmc.Sobol(self.dim, seed=np.random.default_rng(seed))
            x = self._fill(n, lambda many: torch.from_numpy(_next_of(sequence, many)))
        return Quadrature(x, torch.full((n,), self.volume / n, dtype=torch.float64))

    @abstractmethod
    def _gauss(self, n: int) -> Quadrature: ...

    def _fill(self, n: int, unit: Callable[[int], Tensor]) -> Tensor:
        """The first n points inside of those that `unit` makes in the unit cube."""
        parts: list[Tensor] = []
        found = 0
        for _ in range(_TRIES):
            x = self.lower + unit(max(2 * (n - found), n // 4 + 64)) * (self.upper - self.lower)
            parts.append(x[self.contains(x)])
            found += len(parts[-1])
            if found >= n:
                return torch.cat(parts)[:n]
        raise ArgumentError(
            f"domain: only {found} of {_TRIES} x {2 * n} points of the bounding box are inside the domain; give a box "
            "that fits it more closely."
        )


class Box(Domain):
    """An axis-parallel box.

    Parameters
    ----------
    lower, upper : float or array_like (d,)
        Corners; a number stands for the same number in every coordinate.
    dim : int, optional
        d, where both are numbers; 1 without it.

    Examples
    --------
    >>> from jkosampler.domains import Box
    >>> Box(-2, 2, dim=2).volume
    16.0
    """

    def __init__(self, lower: Any, upper: Any, *, dim: int | None = None) -> None:
        low, high = (torch.atleast_1d(float_tensor(v, n)) for v, n in ((lower, "lower"), (upper, "upper")))
        d = max(len(low), len(high)) if dim is None else whole_number(dim, "dim", 1)
        for corner, name in ((low, "lower"), (high, "upper")):
            if not corner.numel() or corner.ndim != 1 or len(corner) not in (1, d):
                raise ArgumentError(f"{name} must be a number or have shape ({d},), got shape {tuple(corner.shape)}.")
        low, high = low.cpu().expand(d).clone(), high.cpu().expand(d).clone()
        if not bool((low < high).all()):
            raise ArgumentError(f"lower must be below upper in every coordinate, got {low.tolist()}, {high.tolist()}.")
        super().__init__(low, high)

    @property
    def volume(self) -> float:
        """Product of the sides."""
        return float((self.upper - self.lower).prod())

    def contains(self, x: Tensor) -> Tensor:
        """Whether each of the points (n, d) is inside."""
        return ((x >= self.lower.to(x)) & (x <= self.upper.to(x))).all(-1)

    def _gauss(self, n: int) -> Quadrature:
        per_axis = max(1, math.ceil(n ** (1.0 / self.dim) - 1e-9))
        panels = math.ceil(per_axis / _NODES)  # many nodes are dear to find, and no better than some in each panel
        nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(math.ceil(per_axis / panels)))
        unit = ((torch.arange(panels)[:, None] + (nodes + 1.0) / 2.0) / panels).flatten()
        shares = (weights / (2.0 * panels)).repeat(panels)
        side = self.upper - self.lower
        x = torch.cartesian_prod(*[low + s * unit for low, s in zip(self.lower, side, strict=True)])
        weight = torch.cartesian_prod(*[s * shares for s in side]).reshape(-1, self.dim).prod(-1)
        x = x.reshape(-1, self.dim)
        return Quadrature(x, weight)

    def __repr__(self) -> str:
        return f"Box({self.lower.tolist()}, {self.upper.tolist()})"


class Region(Domain):
    """The points of a box where a function is true.

    Parameters
    ----------
    inside : callable
        (n, d) -> bool (n,), in torch operations.
    box : Box
        Contains the region, and fits it well: points are thrown into the box.
    volume : float, optional
        Where it is known; None: estimated by 131 072 Sobol points.

    Examples
    --------
    >>> from jkosampler.domains import Box, Region
    >>> ring = Region(lambda x: (x.norm(dim=-1) > 0.5) & (x.norm(dim=-1) < 1.0), Box(-1, 1, dim=2))
    >>> f"{ring.volume:.2f}"
    '2.36'
    """

    def __init__(self, inside: Callable[[Tensor], Tensor], box: Box, *, volume: float | None = None) -> None:
        if not callable(inside):
            raise ArgumentError(f"inside must be a callable (n, d) -> bool (n,), got {type(inside).__name__}.")
        if not isinstance(box, Box):
            raise ArgumentError(f"box must be a domains.Box, got {type(box).__name__}.")
        super().__init__(box.lower, box.upper)
        self.inside, self.box = inside, box
        self._given_volume = None if volume is None else positive_number(volume, "volume")

    @cached_property
    def volume(self) -> float:
        """The given volume, or an estimate."""
        if self._given_volume is not None:
            return self._given_volume
        sequence = qmc.Sobol(self.dim, seed=np.random.default_rng(_VOLUME_SEED))
        x = self.lower + torch.from_numpy(_next_of(sequence, _VOLUME_POINTS)) * (self.upper - self.lower)
        share = float(self.contains(x).double().mean())
        if share == 0.0:
            raise ArgumentError(f"domain: none of {_VOLUME_POINTS} points of the bounding box is inside the region.")
        return share * self.box.volume

    def contains(self, x: Tensor) -> Tensor:
        """Whether each of the points (n, d) is inside."""
        inside = self.inside(x)
        if not isinstance(inside, Tensor) or inside.shape != x.shape[:1] or inside.dtype != torch.bool:
            found = f"{inside.dtype} {tuple(inside.shape)}" if isinstance(inside, Tensor) else type(inside).__name__
            raise ArgumentError(f"inside must return a bool tensor of shape ({len(x)},), got {found}.")
        return inside & self.box.contains(x)

    def _gauss(self, n: int) -> Quadrature:
        if self.dim != 2:
            raise ArgumentError(f"quadrature='gauss' is for boxes and for regions of the plane, not in d={self.dim}.")
        per_axis = math.ceil((n * self.box.volume / self.volume) ** 0.5)
        return Quadrature(*cut_cell_rule(self.contains, self.lower, self.upper, per_axis))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.box!r})"


class Ball(Region):
    """A disc, or a ball in R^d.

    Parameters
    ----------
    center : float or array_like (d,)
    radius : float
    dim : int, optional
        d, where center is a number; 1 without it.
    """

    def __init__(self, center: Any = 0.0, radius: float = 1.0, *, dim: int | None = None) -> None:
        point, r = torch.atleast_1d(float_tensor(center, "center")).cpu(), positive_number(radius, "radius")
        if point.ndim != 1 or len(point) not in (1, dim or len(point)):
            raise ArgumentError(f"center must be a number or have shape ({dim or 'd'},), got {tuple(point.shape)}.")
        box = Box(point - r, point + r, dim=dim)
        self.center, self.radius, d = (box.lower + box.upper) / 2.0, r, box.dim
        volume = math.exp(0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1.0)) * r**d
        super().__init__(lambda x: (x - self.center.to(x)).norm(dim=-1) <= r, box, volume=volume)


class LShape(Region):
    """The square [-side, side]^2 without its quadrant x_1 > 0 > x_2: a domain with a re-entrant corner."""

    def __init__(self, side: float = 1.0) -> None:
        s = positive_number(side, "side")
        super().__init__(lambda x: ~((x[:, 0] > 0.0) & (x[:, 1] < 0.0)), Box(-s, s, dim=2), volume=3.0 * s**2)


def _next_of(sequence: qmc.Sobol, n: int) -> np.ndarray:
    """The next n points; Sobol's sequence is balanced in powers of two, which scipy warns about otherwise."""
    many = 1 << (n - 1).bit_length()
    return sequence.random(many)
