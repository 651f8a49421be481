"""Maps `T(x) = x + u(x)` whose displacement need not be a gradient: steps of a flow with a mobility.

The displacement is a sum of ridge functions, an affine map and, where it rotates, a part that no potential has:

    u(x) = sum_j (c_j w_j + e_j) tanh(w_j'x + b_j) + (S + K) x + l,        S symmetric, K skew.

With e = 0 and K = 0 it is the gradient of a potential of depth 1 (`potentials`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jkosampler.maps.straight import StraightMap

__all__ = ["DisplacementMap", "RidgeField"]


class RidgeField(nn.Module):
    """The displacement u, with its derivatives in x and in its own parameters.

    Parameters
    ----------
    dim, width : int
        d, and the number m of ridge functions.
    """

    def __init__(self, dim: int, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.dim, self.width = dim, width

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=torch.float64, device=device))

        self.output, self.weight, self.bias = zeros(width), zeros(width, dim), zeros(width)
        self.linear, self.symmetric = zeros(dim), zeros(dim * (dim + 1) // 2)
        self.extra, self.skew = zeros(width, dim), zeros(dim * (dim - 1) // 2)

    @property
    def n_gradient(self) -> int:
        """Parameters, from the first on, that keep the displacement a gradient."""
        return self.width * (self.dim + 2) + self.dim + self.dim * (self.dim + 1) // 2

    def matrix(self) -> Tensor:
        """S + K (d, d)."""
        d, device = self.dim, self.linear.device
        i, j = torch.triu_indices(d, d, device=device)
        p, q = torch.triu_indices(d, d, 1, device=device)
        upper = torch.zeros(d, d, dtype=self.linear.dtype, device=device).index_put((i, j), self.symmetric)
        skew = torch.zeros_like(upper).index_put((p, q), self.skew)
        return 0.5 * (upper + upper.mT) + skew - skew.mT

    def forward(self, x: Tensor) -> Tensor:
        """u (n, d) at x (n, d)."""
        return self._wave(x) @ self._directions() + x @ self.matrix().mT + self.linear

    def with_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (n, d) and Du (n, d, d)."""
        wave, directions = self._wave(x), self._directions()
        outer = directions.unsqueeze(2) * self.weight.unsqueeze(1)
        jacobian = ((1.0 - wave.square()) @ outer.flatten(1)).unflatten(1, (self.dim, self.dim)) + self.matrix()
        return wave @ directions + x @ self.matrix().mT + self.linear, jacobian

    @torch.no_grad()
    def parameter_jacobian(self, x: Tensor, *, gradient_only: bool) -> Tensor:
        """du / dtheta (n, d, p), in the order of `parameters()`."""
        n, d, wave = len(x), self.dim, self._wave(x)
        unit = torch.eye(d).to(x)
        bias = (1.0 - wave.square()).unsqueeze(1) * self._directions().mT  # (n, d, m)
        weight = bias.unsqueeze(3) * x[:, None, None, :] + torch.einsum("ik,nm->nimk", unit, self.output * wave)
        i, j = torch.triu_indices(d, d, device=x.device)
        symmetric = 0.5 * (unit[:, i] * x[:, None, j] + unit[:, j] * x[:, None, i])
        columns = [wave.unsqueeze(1) * self.weight.mT, weight.flatten(2), bias, unit.expand(n, d, d), symmetric]
        if not gradient_only:
            p, q = torch.triu_indices(d, d, 1, device=x.device)
            extra = torch.einsum("ik,nm->nimk", unit, wave)
            columns += [extra.flatten(2), unit[:, p] * x[:, None, q] - unit[:, q] * x[:, None, p]]
        return torch.cat(columns, dim=2)

    @torch.no_grad()
    def trace_jacobian(self, x: Tensor, matrices: Tensor, *, gradient_only: bool) -> Tensor:
        """d tr(B Du) / dtheta (n, p) for matrices B (n, d, d); with B = (I + Du)^-1 that of log det(I + Du)."""
        d, wave, directions = self.dim, self._wave(x), self._directions()
        slope = 1.0 - wave.square()
        left = self.weight @ matrices  # (n, m, d), w' B
        right = (matrices @ directions.mT).mT  # (n, m, d), B (c w + e)
        along = -2.0 * wave * slope * (left * directions).sum(-1)
        weight = along.unsqueeze(2) * x.unsqueeze(1) + slope.unsqueeze(2) * (self.output.unsqueeze(1) * left + right)
        i, j = torch.triu_indices(d, d, device=x.device)
        symmetric = 0.5 * (matrices[:, i, j] + matrices[:, j, i])
        columns = [slope * (left * self.weight).sum(-1), weight.flatten(1), along, torch.zeros_like(x), symmetric]
        if not gradient_only:
            p, q = torch.triu_indices(d, d, 1, device=x.device)
            columns += [(slope.unsqueeze(2) * left).flatten(1), matrices[:, q, p] - matrices[:, p, q]]
        return torch.cat(columns, dim=1)

    def get(self) -> Tensor:
        """All parameters as a vector (p,)."""
        return torch.cat([parameter.detach().flatten() for parameter in self._ordered()])

    @torch.no_grad()
    def set(self, values: Tensor) -> None:
        """Set the first parameters to a vector; those beyond it stay."""
        begin = 0
        for parameter in self._ordered():
            end = begin + parameter.numel()
            if end > len(values):
                break
            parameter.copy_(values[begin:end].reshape(parameter.shape))
            begin = end

    def _ordered(self) -> list[nn.Parameter]:
        return [self.output, self.weight, self.bias, self.linear, self.symmetric, self.extra, self.skew]

    def _wave(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.addmm(self.bias, x, self.weight.mT))

    def _directions(self) -> Tensor:
        return self.output.unsqueeze(1) * self.weight + self.extra


class DisplacementMap(StraightMap):
    """`T(x) = x + u(x)`, taken to keep its orientation: NaN as log determinant where `det DT <= 0`.

    Parameters
    ----------
    field : RidgeField
        u.
    tolerance : float
        Largest error `|T(x) - y|` of the inverse, relative to `1 + |y|`.
    """

    def __init__(self, field: RidgeField, *, tolerance: float = 1e-10) -> None:
        super().__init__(tolerance)
        self.field = field

    def displacement(self, x: Tensor) -> Tensor:
        return self.field(x)

    def log_det(self, jacobian: Tensor) -> Tensor:
        sign, log_det = torch.linalg.slogdet(jacobian)
        return torch.where(sign > 0.0, log_det, torch.nan)

    def _affine_part(self) -> tuple[Tensor, Tensor]:
        return self.field.matrix(), self.field.linear

    def _displacement_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.field.with_jacobian(x)
