"""Laws of particles over R^d: the base class, and the elementary laws Gaussian, Normal and Uniform.

A law follows `torch.distributions` (`sample((n,))`, `log_prob(x)`) and adds what a flow needs of its start:
moments, the score, and whether the density jumps at its edge. Where it does, the identity
E[div v + v . score] = 0, on which the control variate of the entropy rests, fails.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from jkosampler._arguments import cholesky_factor, draw_size, float_tensor, generator_or_fresh, positive_number
from jkosampler.errors import ArgumentError

__all__ = ["Gaussian", "Law", "Normal", "Uniform"]


class Law(ABC):
    """A probability law with a density over R^d; float64 on the CPU until `to` says otherwise.

    A new law defines `_sample`, `_log_prob`, `mean` and `covariance`; everything else follows.

    Attributes
    ----------
    dim : int
        d.
    dtype, device
        Of the draws; points are converted to them.
    mass : float
        Total mass: 1 for a probability law, any other by `with_mass`. `log_prob` is always the normalised one.
    has_jump : bool
        True for a density that doesn't vanish continuously at its edge, such as a uniform box.
    """

    mass: float = 1.0
    has_jump: bool = False

    def __init__(self, dim: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        self.dim = int(dim)
        self.dtype = dtype
        self.device = torch.device(device)

    def sample(self, sample_shape: Any, generator: torch.Generator | None = None) -> Tensor:
        """Draw independent points.

        Parameters
        ----------
        sample_shape : int or (int,)
            The number n of points.
        generator : torch.Generator, optional
            Makes the draws reproducible; torch's global generator is never touched.

        Returns
        -------
        Tensor (n, d)
        """
        n, generator = draw_size(sample_shape), generator_or_fresh(generator)
        if n == 0:
            return torch.empty(0, self.dim, dtype=self.dtype, device=self.device)
        return self._sample(n, generator).to(dtype=self.dtype, device=self.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density (n,) at x (n, d); -inf outside the support, NaN only where x is."""
        x = self._points(x)
        value = torch.where(x.isinf().any(-1), -math.inf, self._log_prob(x))
        return torch.where(x.isnan().any(-1), math.nan, value)

    def score(self, x: Tensor) -> Tensor:
        """Gradient (n, d) of `log_prob` at x (n, d); zero where the density is zero."""
        with torch.inference_mode(False), torch.enable_grad():
            x = self._points(x).detach().clone().requires_grad_(True)
            value = self.log_prob(x)
            if not value.requires_grad:
                raise ArgumentError(f"log_prob of the {self.describe()} must be differentiable by torch, but is not.")
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return torch.where(value.detach().isneginf()[:, None], torch.zeros_like(gradient), gradient)

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean (d,)."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariance (d, d)."""

    @abstractmethod
    def _sample(self, n: int, generator: torch.Generator) -> Tensor: ...

    @abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor: ...

    def smoothed(self) -> Law:
        """Return a law without a jump, of the same mass, mean and covariance: the law itself where it has none."""
        if not self.has_jump:
            return self
        return Gaussian(self.mean, self.covariance).to(self.dtype, self.device).with_mass(self.mass)

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return f"{type(self).__name__} law in {self.dim} dimension{'s' if self.dim > 1 else ''}"

    def with_mass(self, mass: float) -> Self:
        """Return a copy of the law with another total mass; its draws and its normalised density stay.

        `as_law(distribution).with_mass(2.0)` is a torch distribution of mass 2.

        Raises
        ------
        ArgumentError
            The mass is not positive and finite.
        """
        scaled = copy.copy(self)
        scaled.mass = positive_number(mass, "mass")
        return scaled

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Self:
        """Return a copy of the law on another dtype or device (None: unchanged)."""
        dtype, device = dtype or self.dtype, torch.device(device or self.device)
        moved = copy.copy(self)
        for name, value in vars(self).items():
            setattr(moved, name, _moved(value, dtype, device))
        moved.dtype, moved.device = dtype, device
        return moved

    def __repr__(self) -> str:
        return self.describe() + ("" if math.isclose(self.mass, 1.0) else f" of mass {self.mass:.4g}")

    def _points(self, x: Tensor) -> Tensor:
        x = torch.as_tensor(x, dtype=self.dtype, device=self.device)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ArgumentError(f"x must have shape (n, {self.dim}) for {self.describe()}, got {tuple(x.shape)}.")
        return x


class Gaussian(Law):
    """Gaussian law N(mean, covariance).

    Parameters
    ----------
    mean : array_like (d,) or float
        A number stands for the same number in every coordinate.
    covariance : array_like (d, d), (d,) or float, optional
        Covariance matrix, variances of independent coordinates, or one variance for all.
    scale : array_like (d,) or float, optional
        Standard deviations, instead of `covariance`.

    Raises
    ------
    ArgumentError
        Not exactly one of `covariance` and `scale`, sizes that don't match, or no positive definite matrix.
    """

    def __init__(self, mean: Any, covariance: Any = None, *, scale: Any = None) -> None:
        if (covariance is None) == (scale is None):
            raise ArgumentError("Give exactly one of covariance (d, d) and scale (standard deviations).")
        mean = torch.atleast_1d(float_tensor(mean, "mean"))
        if scale is None:
            covariance = float_tensor(covariance, "covariance")
        else:
            covariance = float_tensor(scale, "scale").square()
        d = max(mean.shape[0], covariance.shape[0] if covariance.ndim else 1)
        if mean.ndim != 1 or mean.shape[0] not in (1, d) or tuple(covariance.shape) not in ((), (d,), (d, d)):
            raise ArgumentError(
                f"mean must have shape (d,) and covariance (d, d), (d,) or (), "
                f"got {tuple(mean.shape)} and {tuple(covariance.shape)}."
            )
        if covariance.ndim < 2:
            covariance = torch.diag(covariance.expand(d))
        super().__init__(d, device=covariance.device)
        self._mean = mean.to(covariance.device).expand(d).clone()
        self._covariance = covariance
        self._factor = cholesky_factor(covariance, "covariance")

    @property
    def mean(self) -> Tensor:
        """Mean (d,)."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Covariance (d, d)."""
        return self._covariance

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(n, self.dim, generator=generator, dtype=self.dtype, device=generator.device)
        return self._mean + z.to(self.device) @ self._factor.T

    def _log_prob(self, x: Tensor) -> Tensor:
        z = torch.linalg.solve_triangular(self._factor, (x - self._mean).T, upper=False)
        square = z.square().sum(0)
        # inf - inf in the triangular solve of a far point is not an unknown density but a vanishing one
        square = torch.where(square.isnan(), math.inf, square)
        return -0.5 * (square + self.dim * math.log(2 * math.pi)) - self._factor.diagonal().log().sum()

    def score(self, x: Tensor) -> Tensor:
        """Gradient (n, d) of `log_prob` at x (n, d), in closed form."""
        x = self._points(x).detach()
        return -torch.cholesky_solve((x - self._mean).T, self._factor).T

    def describe(self) -> str:
        """Say in a few words which law this is."""
        if self.dim == 1:
            return f"N({float(self._mean[0]):.4g}, {float(self._factor[0, 0]):.4g}^2)"
        return f"Gaussian in {self.dim} dimensions"


class Normal(Gaussian):
    """Gaussian law on the line, N(loc, scale^2).

    Parameters
    ----------
    loc, scale : float
        Mean and standard deviation.
    """

    def __init__(self, loc: float, scale: float) -> None:
        centre, width = float_tensor(loc, "loc"), float_tensor(scale, "scale")
        if centre.numel() != 1 or width.numel() != 1 or float(width) <= 0.0:
            raise ArgumentError(
                "Normal(loc, scale) takes two numbers, scale > 0; Gaussian(mean, scale=...) is d-dimensional."
            )
        super().__init__(centre.reshape(1), scale=width.reshape(1))


class Uniform(Law):
    """Uniform law on an interval, or on the box of one interval for each coordinate.

    Parameters
    ----------
    low, high : array_like (d,) or float
        Ends of the intervals, low < high.
    """

    has_jump = True

    def __init__(self, low: Any, high: Any) -> None:
        low, high = torch.atleast_1d(float_tensor(low, "low")), torch.atleast_1d(float_tensor(high, "high"))
        d = max(low.shape[0], high.shape[0])
        if low.ndim != 1 or high.ndim != 1 or {low.shape[0], high.shape[0]} - {1, d}:
            raise ArgumentError(f"low and high must have shape (d,), got {tuple(low.shape)} and {tuple(high.shape)}.")
        super().__init__(d, device=low.device)
        self.low, self.high = low.expand(d).clone(), high.to(low.device).expand(d).clone()
        if not bool((self.low < self.high).all()):
            raise ArgumentError(f"low must be below high in every coordinate, got {low.tolist()} and {high.tolist()}.")

    @property
    def mean(self) -> Tensor:
        """Mean (d,)."""
        return (self.low + self.high) / 2

    @property
    def covariance(self) -> Tensor:
        """Covariance (d, d)."""
        return torch.diag((self.high - self.low).square() / 12)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        z = torch.rand(n, self.dim, generator=generator, dtype=self.dtype, device=generator.device)
        return self.low + (self.high - self.low) * z.to(self.device)

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = (x >= self.low) & (x <= self.high)
        # 0 * x ties the constant to x, so that a target with this prior alone has a gradient, zero
        flat = torch.where(inside, 0.0 * x, -math.inf).sum(-1)
        return flat - (self.high - self.low).log().sum()

    def describe(self) -> str:
        """Say in a few words which law this is."""
        if self.dim == 1:
            return f"U({float(self.low[0]):.4g}, {float(self.high[0]):.4g})"
        return f"uniform law on a box in {self.dim} dimensions"


def _moved(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Convert the floating tensors and the laws in an attribute."""
    if isinstance(value, Tensor):
        return value.to(dtype=dtype if value.is_floating_point() else None, device=device)
    if isinstance(value, Law):
        return value.to(dtype, device)
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, dtype, device) for item in value)
    return value
