"""Maps by affine coupling: every layer scales and shifts some coordinates by what the others say.

Dinh, Sohl-Dickstein, Bengio, "Density estimation using real NVP" (2017). With `a` the coordinates that a layer keeps
and `b` those it moves,

    y_a = x_a,        y_b = e^{s(x_a)} x_b + t(x_a),        log det Dy = sum s(x_a),

and `(s, t)` a network with two hidden layers beside a linear term, so that a scale that is exponential in another
coordinate, as a funnel's, is there at once; only scales beyond e^10 are bent. Such maps have no potential, but a log
determinant, an inverse and scores at the price of a network evaluation in any dimension, where those of `GradientMap`
cost O(d^3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from jkosampler.maps.base import Map, Pushed

__all__ = ["CouplingMap", "fewest_layers"]

_LARGEST = 10.0  # log of a scale: beyond it is bent, so that no point of the tails overflows


class CouplingMap(Map):
    """A composition of affine coupling layers; the identity at first.

    Inside the step each layer is `x + fraction (y - x)`.

    Parameters
    ----------
    dim, n_layers, width : int
        d, at least 2; the number of layers, and units of each hidden layer of their networks.
    generator : torch.Generator
        Draws which coordinates a layer keeps, half of them in turn, and its hidden weights.
    """

    def __init__(
        self,
        dim: int,
        n_layers: int,
        width: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.ModuleList(
            _Coupling(kept.nonzero().squeeze(1), (~kept).nonzero().squeeze(1), width, generator)
            for kept in _halves(dim, n_layers, generator)
        )
        self.to(dtype=dtype or torch.float64, device=device)

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        log_det = torch.zeros_like(x[:, 0])
        for layer in self.layers:
            x, change = layer(x, fraction)
            log_det = log_det + change
        return x, log_det

    def positions(self, x: Tensor) -> Tensor:
        return self(x)[0]

    @torch.no_grad()
    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        log_det = torch.zeros_like(y[:, 0])
        for layer in reversed(self._couplings()):
            y, change = layer.inverse(y, fraction)
            log_det = log_det + change
        return y, log_det

    def transport(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With the cost `|T(x) - x|^2` of the straight way, the least of all."""
        y, log_det = self(x)
        return y, log_det, (y - x).square().sum(1)

    def initial_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All layers set out at once: the sum of their displacements."""
        velocity, divergence = torch.zeros_like(x), torch.zeros_like(x[:, 0])
        for layer in self._couplings():
            y, scale = layer.displaced(x)
            velocity, divergence = velocity + y - x, divergence + torch.expm1(scale).sum(1)
        return velocity, divergence

    @torch.no_grad()
    def push(self, x: Tensor, score: Tensor) -> Pushed:
        log_det = torch.zeros_like(x[:, 0])
        for layer in self._couplings():
            x, change, score = layer.push(x, score)
            log_det = log_det + change
        return Pushed(x, log_det, score)

    def _couplings(self) -> list[_Coupling]:
        return [layer for layer in self.layers if isinstance(layer, _Coupling)]


def _halves(dim: int, n_layers: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Masks (d,) of the coordinates that each layer keeps: by the bits of randomly dealt numbers, and the complement.

    So any two coordinates are parted after 2 log2(d) layers at most, and each can depend on the other.
    """
    n_bits = fewest_layers(dim) // 2
    for i in range(n_layers):
        if i % (2 * n_bits) == 0:
            numbers = torch.randperm(dim, generator=generator)
        kept = (numbers >> (i // 2 % n_bits)) % 2 == 1
        yield kept if i % 2 == 0 else ~kept


def fewest_layers(dim: int) -> int:
    """So many layers let every coordinate depend on every other."""
    return 2 * (dim - 1).bit_length()


class _Coupling(nn.Module):
    """One layer. `kept` and `moved` are the coordinates."""

    kept: Tensor
    moved: Tensor

    def __init__(self, kept: Tensor, moved: Tensor, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("kept", kept)
        self.register_buffer("moved", moved)
        a, b = len(kept), len(moved)

        def hidden(n_in: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(n_in, width, generator=generator, dtype=torch.float64) / n_in**0.5)

        self.first, self.second = hidden(a), hidden(width)
        self.first_bias = nn.Parameter(torch.randn(width, generator=generator, dtype=torch.float64))
        self.second_bias = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.last = nn.Parameter(torch.zeros(width, 2 * b, dtype=torch.float64))
        self.linear = nn.Parameter(torch.zeros(a, 2 * b, dtype=torch.float64))
        self.constant = nn.Parameter(torch.zeros(2 * b, dtype=torch.float64))

    def forward(self, x: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        y, scale = self.displaced(x, fraction)
        return y, scale.sum(1)

    def displaced(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """y (n, d), and s (n, b)."""
        scale, shift = self._scale_and_shift(x[:, self.kept], fraction)
        return x.index_copy(1, self.moved, x[:, self.moved] * scale.exp() + shift), scale

    def inverse(self, y: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        scale, shift = self._scale_and_shift(y[:, self.kept], fraction)
        x = y.index_copy(1, self.moved, (y[:, self.moved] - shift) * (-scale).exp())
        return x, -scale.sum(1)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        """The score by hand: one backward pass through the network."""
        kept, moved = x[:, self.kept], x[:, self.moved]
        before = torch.addmm(self.first_bias, kept, self.first)
        gate = before.sigmoid()
        hidden = before * gate
        before2 = torch.addmm(self.second_bias, hidden, self.second)
        gate2 = before2.sigmoid()
        raw, shift = (torch.addmm(self.constant, before2 * gate2, self.last) + kept @ self.linear).chunk(2, dim=1)
        bend = torch.tanh(raw / _LARGEST)
        scale = _LARGEST * bend
        shrink = (-scale).exp()
        after = score[:, self.moved] * shrink
        # log rho'(y) = log rho(x) - sum s with x_b = (y_b - t) e^-s, so that s and t carry these slopes in y_a
        slope = torch.cat([-(1.0 + score[:, self.moved] * moved) * (1.0 - bend.square()), -after], dim=1)
        back = (slope @ self.last.mT) * (gate2 * (1.0 + before2 * (1.0 - gate2)))
        back = (back @ self.second.mT) * (gate * (1.0 + before * (1.0 - gate)))
        at_kept = score[:, self.kept] + back @ self.first.mT + slope @ self.linear.mT
        y = x.index_copy(1, self.moved, moved / shrink + shift)
        score = torch.empty_like(score).index_copy(1, self.moved, after).index_copy(1, self.kept, at_kept)
        return Pushed(y, scale.sum(1), score)

    def _scale_and_shift(self, kept: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        hidden = silu(torch.addmm(self.first_bias, kept, self.first))
        hidden = silu(torch.addmm(self.second_bias, hidden, self.second))
        scale, shift = (torch.addmm(self.constant, hidden, self.last) + kept @ self.linear).chunk(2, dim=1)
        scale = _LARGEST * torch.tanh(scale / _LARGEST)
        return (scale, shift) if fraction == 1.0 else (torch.log1p(fraction * torch.expm1(scale)), fraction * shift)
