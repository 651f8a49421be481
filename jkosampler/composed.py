"""Maps made of maps: one after the other, as the stages of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jkosampler.errors import MapInversionError
from jkosampler.maps import Map, Pushed, inversion_error

__all__ = ["Chain"]


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
