"""Maps made of others: one in other affine coordinates, and several, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jkosampler.errors import MapInversionError
from jkosampler.maps.base import Map, Pushed, inversion_error

__all__ = ["Chain", "Conjugated"]


class Conjugated(Map):
    """`x -> m + L T(L^-1 (x - m))`: a map T run in the affine coordinates `z = L^-1 (x - m)`.

    Parameters
    ----------
    inner : Map
        T.
    centre : Tensor (d,)
        m.
    factor : Tensor (d, d)
        L, invertible.
    """

    centre: Tensor
    factor: Tensor

    def __init__(self, inner: Map, centre: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("centre", centre)
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        z, log_det = self.inner(self.to_inner(x), fraction)
        return self.to_outer(z), log_det

    def positions(self, x: Tensor) -> Tensor:
        return self.to_outer(self.inner.positions(self.to_inner(x)))

    def scaled(self, factor: float) -> Conjugated:
        return Conjugated(self.inner.scaled(factor), self.centre, self.factor)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        z, log_det, score = self.inner.push(self.to_inner(x), score @ self.factor)
        return Pushed(self.to_outer(z), log_det, torch.linalg.solve(self.factor.mT, score.mT).mT)

    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        try:
            z, log_det = self.inner.inverse(self.to_inner(y), fraction)
        except MapInversionError as error:
            rows = torch.as_tensor(error.indices)
            raise inversion_error(y, rows) from error
        return self.to_outer(z), log_det

    def to_inner(self, x: Tensor) -> Tensor:
        """z = L^-1 (x - m)."""
        return torch.linalg.solve(self.factor, (x - self.centre).mT).mT

    def to_outer(self, z: Tensor) -> Tensor:
        """x = m + L z."""
        return self.centre + z @ self.factor.mT


class Chain(Map):
    """`T_m o ... o T_1`; a fraction of it makes the first maps whole and the next in part.

    Parameters
    ----------
    steps : sequence of Map
        T_1, ..., T_m.
    shares : sequence of float
        The part of the time that each takes, of sum one.
    """

    def __init__(self, steps: Sequence[Map], shares: Sequence[float]) -> None:
        super().__init__()
        self.steps, self.shares = nn.ModuleList(steps), tuple(shares)

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        log_det = torch.zeros_like(x[:, 0])
        for step, part in self._parts(fraction):
            x, change = step(x, part)
            log_det = log_det + change
        return x, log_det

    def positions(self, x: Tensor) -> Tensor:
        for step, _ in self._parts(1.0):
            x = step.positions(x)
        return x

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        log_det = torch.zeros_like(x[:, 0])
        for step, _ in self._parts(1.0):
            x, change, score = step.push(x, score)
            log_det = log_det + change
        return Pushed(x, log_det, score)

    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        x, log_det = y, torch.zeros_like(y[:, 0])
        for step, part in reversed(self._parts(fraction)):
            try:
                x, change = step.inverse(x, part)
            except MapInversionError as error:
                raise inversion_error(y, torch.as_tensor(error.indices)) from error
            log_det = log_det + change
        return x, log_det

    def _parts(self, fraction: float) -> list[tuple[Map, float]]:
        """The maps to make, each with its own fraction."""
        parts, begin = [], 0.0
        for step, share in zip(self.steps, self.shares, strict=True):
            part = 1.0 if fraction == 1.0 else min(1.0, (fraction - begin) / share)
            if part > 0.0:
                assert isinstance(step, Map)
                parts.append((step, part))
            begin += share
        return parts
