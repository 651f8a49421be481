"""Radial laws on a ball, with densities proportional to (R^2 - |x - c|^2)_+^p: ball, parabola, Barenblatt profile.

|x - c|^2 / R^2 follows Beta(d/2, p + 1). `Barenblatt` is the source-type solution of d rho/dt = Lap rho^m
(equation 31 of arXiv 2311.06700), `Parabola` the start of its aggregation problem (section 4.3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.special import betaincinv, betaln
from torch import Tensor

from jkosampler._arguments import float_tensor, positive_number
from jkosampler._inputs import whole_number
from jkosampler.errors import ArgumentError
from jkosampler.laws.elementary import Law

__all__ = ["Ball", "Barenblatt", "Parabola"]


class _RadialPower(Law):
    """Density proportional to (1 - |x - center|^2 / radius^2)^power inside the ball, zero outside and on its edge."""

    def __init__(self, center: Tensor, radius: float, power: float) -> None:
        d = center.shape[0]
        super().__init__(d, device=center.device)
        self.center, self.radius, self._power = center, radius, power
        self._log_peak = _log_peak(d, radius, power)

    @property
    def mean(self) -> Tensor:
        """Mean (d,): the center."""
        return self.center

    @property
    def covariance(self) -> Tensor:
        """Covariance (d, d): R^2 / (d + 2p + 2) times the identity."""
        variance = self.radius**2 / (self.dim + 2.0 * self._power + 2.0)
        return variance * torch.eye(self.dim, dtype=self.dtype, device=self.device)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        x = self._draw(n, generator)
        # rounding can put a draw on the edge, where the density is zero; a few ulps of room keep it inside when it
        # is evaluated in another precision
        room = 4.0 * torch.finfo(self.dtype).eps
        while (rows := (self._square(x) > 1.0 - room).nonzero()[:, 0]).numel():
            x[rows] = self._draw(rows.numel(), generator)
        return x

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        level = torch.rand(n, 1, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        square = torch.from_numpy(betaincinv(0.5 * self.dim, self._power + 1.0, level.numpy()))
        z = torch.randn(n, self.dim, generator=generator, dtype=torch.float64, device=generator.device).cpu()
        offset = self.radius * square.sqrt() * z / z.norm(dim=1, keepdim=True)
        return (self.center + offset.to(self.device)).to(self.dtype)

    def _square(self, x: Tensor) -> Tensor:
        """|x - center|^2 / radius^2 (n,): below one exactly inside."""
        return ((x - self.center) / self.radius).square().sum(-1)

    def _log_prob(self, x: Tensor) -> Tensor:
        square = self._square(x)
        inside = square < 1.0
        value = self._log_peak + self._power * torch.log1p(-torch.where(inside, square, 0.0))
        return torch.where(inside, value, -math.inf)

    def score(self, x: Tensor) -> Tensor:
        """Gradient (n, d) of `log_prob` at x (n, d), in closed form: -2p (x - c) / (R^2 - |x - c|^2), zero outside."""
        x = self._points(x).detach()
        square = self._square(x)[:, None]
        slope = -2.0 * self._power / self.radius * ((x - self.center) / self.radius) / (1.0 - square)
        return torch.where(square >= 1.0, 0.0, slope)

    def _place(self) -> str:
        return f"in {self.dim} dimension{'s' if self.dim > 1 else ''}"


class Ball(_RadialPower):
    """Uniform law on a ball.

    Parameters
    ----------
    center : array_like (d,) or float
        A number stands for the same number in every coordinate.
    radius : float
        Positive.
    dim : int, optional
        d, where center is a number; 1 without it.

    Examples
    --------
    >>> from jkosampler.laws import Ball
    >>> Ball([1.0, 0.0], 2.0).dim, Ball(radius=2.0, dim=3).dim
    (2, 3)
    """

    has_jump = True

    def __init__(self, center: Any = 0.0, radius: float = 1.0, *, dim: int | None = None) -> None:
        point = torch.atleast_1d(float_tensor(center, "center"))
        d = point.shape[0] if dim is None else whole_number(dim, "dim", 1)
        if point.ndim != 1 or point.shape[0] not in (1, d):
            raise ArgumentError(f"center must be a number or have shape ({d},), got shape {tuple(point.shape)}.")
        super().__init__(point.expand(d).clone(), positive_number(radius, "radius"), 0.0)

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return f"uniform law on a ball {self._place()}"


class Parabola(_RadialPower):
    """The density `height (1 - |x|^2 / radius^2)_+`, of mass `mass`: by default 1 on the line, 3 pi / 8 in the plane.

    Parameters
    ----------
    dim : int
        d.
    height : float
        Density at the origin, positive: mass times exp(log_prob), which is normalised. `with_mass` changes it.
    radius : float
        Positive.
    """

    def __init__(self, dim: int, height: float = 0.75, radius: float = 1.0) -> None:
        center = torch.zeros(whole_number(dim, "dim", 1), dtype=torch.float64)
        super().__init__(center, positive_number(radius, "radius"), 1.0)
        log_mass = math.log(positive_number(height, "height")) - self._log_peak
        self.mass = positive_number(torch.tensor(log_mass, dtype=torch.float64).exp(), "the mass of height and radius")

    @property
    def height(self) -> float:
        """Density at the origin: the mass times that of the normalised law."""
        return math.exp(math.log(self.mass) + self._log_peak)

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return f"parabola of radius {self.radius:.4g} {self._place()}"


class Barenblatt(_RadialPower):
    """Barenblatt's profile of unit mass: the source-type solution of the porous medium equation d rho/dt = Lap rho^m.

    With al = d / (d (m - 1) + 2), be = (m - 1) al / (2 d m), p = 1 / (m - 1) and C from the unit mass, at age s::

        rho(x) = s^(-al) (C - be |x|^2 s^(-2 al / d))_+^p.

    Parameters
    ----------
    dim : int
        d.
    m : float
        Exponent of the equation, above 1.
    age : float
        Time s since all mass was at the origin, positive; flow time t is age + t.

    Attributes
    ----------
    radius : float
        Where the density ends, sqrt(C / be) s^(al / d).

    Notes
    -----
    For m >= 2 the score has infinite variance (p <= 1): its values near the edge are large, and rightly so.

    Examples
    --------
    >>> from jkosampler.laws import Barenblatt
    >>> f"{Barenblatt(dim=2, m=2, age=0.1).radius:.6f}"
    '1.004616'
    """

    def __init__(self, dim: int, m: float = 2.0, age: float = 1.0) -> None:
        d = whole_number(dim, "dim", 1)
        self.m, self.age = positive_number(m, "m"), positive_number(age, "age")
        if self.m <= 1.0:
            raise ArgumentError(
                f"m must be above 1, got {m!r}: only then has the profile an edge. "
                "For m = 1, the heat equation, it is Gaussian(numpy.zeros(d), 2 * age)."
            )
        center = torch.zeros(d, dtype=torch.float64)
        super().__init__(center, _barenblatt_radius(d, self.m, self.age), 1.0 / (self.m - 1.0))

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return f"Barenblatt profile of age {self.age:.4g}, m = {self.m:.4g}, {self._place()}"


def _log_peak(d: int, radius: float, power: float) -> float:
    """Log density at the center of the normalised law."""
    # the volume of (1 - |x|^2)_+^p is pi^(d/2) B(d/2, p + 1) / G(d/2); gammas of a large p would cancel
    log_volume = 0.5 * d * math.log(math.pi) + float(betaln(0.5 * d, power + 1.0)) - math.lgamma(0.5 * d)
    return -log_volume - d * math.log(radius)


def _barenblatt_radius(d: int, m: float, age: float) -> float:
    """Radius R with R^2 = C / be s^(2 al / d), where unit mass fixes C: the mass of (C - be |x|^2)_+^p is one."""
    power = 1.0 / (m - 1.0)
    spread = d * (m - 1.0) + 2.0  # d / al
    log_beta = math.log((m - 1.0) / (2.0 * m * spread))
    log_c = (_log_peak(d, 1.0, power) + 0.5 * d * log_beta) / (power + 0.5 * d)
    return math.exp(0.5 * (log_c - log_beta) + math.log(age) / spread)
