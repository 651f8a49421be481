"""Potentials on a box whose gradient has no component through the walls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jkosampler.potentials import ResNetPotential

__all__ = ["WalledPotential"]


class WalledPotential(nn.Module):
    """`phi(x) = inner(c(x))` with `c_i = cos(pi (x_i - lower_i) / (upper_i - lower_i))`, which is level at the walls.

    x -> c is one to one on the box, and a phi that stays smooth when reflected at the walls is a smooth function of c.
    `x + grad phi` takes each wall into itself.

    Parameters
    ----------
    inner : ResNetPotential
        A potential on the cube [-1, 1]^d, without time input.
    lower, upper : Tensor (d,)
        Corners of the box.
    """

    time_input = False
    lower: Tensor
    rate: Tensor

    def __init__(self, inner: ResNetPotential, lower: Tensor, upper: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("lower", lower)
        self.register_buffer("rate", math.pi / (upper - lower))

    @property
    def dim(self) -> int:
        """d."""
        return self.inner.dim

    def coordinates(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c (n, d) and its first two derivatives, each in its own coordinate."""
        angle = (x - self.lower.to(x)) * self.rate.to(x)
        cos, sin = angle.cos(), angle.sin()
        return cos, -self.rate.to(x) * sin, -self.rate.to(x).square() * cos

    def value(self, x: Tensor) -> Tensor:
        """Phi (n,)."""
        return self.inner.value(self.coordinates(x)[0])

    def gradient(self, x: Tensor) -> Tensor:
        """Grad phi (n, d)."""
        c, slope, _ = self.coordinates(x)
        return slope * self.inner.gradient(c)

    def hessian(self, x: Tensor) -> Tensor:
        """Second derivatives (n, d, d)."""
        return self.gradient_and_hessian(x)[1]

    def gradient_and_hessian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one sweep."""
        c, slope, bend = self.coordinates(x)
        gradient, hessian = self.inner.gradient_and_hessian(c)
        hessian = slope.unsqueeze(-1) * hessian * slope.unsqueeze(-2) + torch.diag_embed(bend * gradient)
        return slope * gradient, hessian

    def gradient_and_laplacian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Grad phi and the trace of the Hessian (n,)."""
        gradient, hessian = self.gradient_and_hessian(x)
        return gradient, hessian.diagonal(dim1=-2, dim2=-1).sum(-1)

    def quadratic_form(self) -> Tensor:
        """The affine part of the gradient, which there is none of."""
        return torch.zeros(self.dim, self.dim).to(self.lower)

    @property
    def linear(self) -> Tensor:
        """The constant part of the gradient, zero."""
        return torch.zeros_like(self.lower)

    def scaled(self, factor: float) -> WalledPotential:
        """The potential times a number."""
        return WalledPotential(self.inner.scaled(factor), self.lower, self.lower + math.pi / self.rate)
