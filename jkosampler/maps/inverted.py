"""The inverse of a straight map as a map of its own: for steps whose unknown is the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.errors import MapInversionError
from jkosampler.maps.base import Map, Pushed, checked_inverse, row_gradient
from jkosampler.maps.straight import StraightMap

__all__ = ["Inverted"]


class Inverted(Map):
    """`T = S^-1` for a map S along straight lines; halfway, particles are halfway along the same lines.

    Log densities are cheap here, `log rho'(x) = log rho(S(x)) + log det DS(x)`, and draws cost an inversion.

    Parameters
    ----------
    backward : StraightMap
        S.
    """

    def __init__(self, backward: StraightMap) -> None:
        super().__init__()
        self.backward = backward

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """`T(x)` and `log det DT(x)`; NaN where S has no inverse."""
        end, log_det = torch.full_like(x, torch.nan), torch.full_like(x[:, 0], torch.nan)
        rows = torch.arange(len(x), device=x.device)
        try:
            z, change = self.backward.inverse(x)
        except MapInversionError as error:
            lost = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            lost[torch.as_tensor(error.indices, device=x.device)] = True
            rows = (~lost).nonzero().squeeze(-1)
            z, change = self.backward.inverse(x[rows])
        if fraction != 1.0:
            z, back = self.backward(z, 1.0 - fraction)
            change = change + back
        end[rows], log_det[rows] = z, change
        return end, log_det

    @torch.no_grad()
    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        z, change = (y, torch.zeros_like(y[:, 0])) if fraction == 1.0 else self.backward.inverse(y, 1.0 - fraction)
        x, log_det = self.backward(z)
        return x, checked_inverse(y, torch.zeros_like(log_det, dtype=torch.bool), log_det + change)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        z, log_det = self(x)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            jacobian, back = self.backward.jacobian_and_log_det(leaf)
            slope = row_gradient(back, leaf)
        pushed = (jacobian.detach().mT @ score.unsqueeze(-1)).squeeze(-1) + slope
        return Pushed(z.detach(), log_det.detach(), pushed)
