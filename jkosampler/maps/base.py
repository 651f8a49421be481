"""What a map of particles is: positions, log determinants and scores, forward and backward.

Shapes: positions (n, d), log determinants (n,), scores (n, d). With `rho' = T# rho`:
`log rho'(T(x)) = log rho(x) - log det DT(x)`, and the score `s = grad log rho` follows
`s'(T(x)) = DT(x)^-T (s(x) - grad log det DT(x))`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jkosampler.errors import MapInversionError, describe_points

__all__ = ["Map", "Pushed", "checked_inverse", "cholesky_and_log_det", "inversion_error", "row_gradient", "solve"]


class Pushed(NamedTuple):
    """What a map makes of particles: positions (n, d), `log det DT` (n,) and scores (n, d)."""

    x: Tensor
    log_det: Tensor
    score: Tensor


class Map(nn.Module):
    """An invertible map T of R^d.

    `fraction` in [0, 1] is the part of the step that is made: 0 is the identity, 1 the whole step.
    """

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """`T(x)` (n, d) and `log det DT(x)` (n,); NaN where the map folds."""
        raise NotImplementedError

    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """`x = T^-1(y)` (n, d) and `log det D(T^-1)(y)` (n,).

        Raises
        ------
        MapInversionError
            Where no inverse is found or the map folds; the error carries the points.
        """
        raise NotImplementedError

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        """Positions, log determinants and scores after the map; detached."""
        raise NotImplementedError

    def transport(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`T(x)` (n, d), `log det DT` (n,) and the action `int_0^1 |v|^2 ds` (n,) of each path."""
        raise NotImplementedError

    def positions(self, x: Tensor) -> Tensor:
        """`T(x)` alone, cheaper than with its log determinant."""
        return self(x)[0]

    def initial_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The field v with which particles set out (n, d) and its divergence (n,)."""
        raise NotImplementedError

    def scaled(self, factor: float) -> Map:
        """`x + factor (T(x) - x)`, for maps that move particles along straight lines."""
        raise NotImplementedError


def cholesky_and_log_det(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors and `log det` (n,) of symmetric matrices (n, d, d); NaN for those not positive definite."""
    factor, info = torch.linalg.cholesky_ex(jacobian)
    log_det = 2.0 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    return factor, torch.where(info == 0, log_det, torch.nan)


def solve(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Solutions (n, d); NaN where a matrix is singular, as a training that breaks down makes them."""
    solution, info = torch.linalg.solve_ex(matrices, vectors.unsqueeze(-1))
    return torch.where(info.unsqueeze(-1) == 0, solution.squeeze(-1), torch.nan)


def row_gradient(values: Tensor, x: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Row-wise gradient of values (n,) in x (n, d); zero where the values do not depend on x."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=retain_graph, materialize_grads=True)
    return gradient


def checked_inverse(y: Tensor, failed: Tensor, log_det: Tensor) -> Tensor:
    """The log determinants (n,) of an inverse at y (n, d); MapInversionError where it failed at some rows."""
    rows = (failed | ~torch.isfinite(log_det)).nonzero().squeeze(-1)
    if len(rows):
        raise inversion_error(y, rows)
    return log_det


def inversion_error(y: Tensor, rows: Tensor) -> MapInversionError:
    """An error that names the rows (k,) of points y (n, d) that have no inverse."""
    points, indices = y.detach().cpu().numpy(), rows.cpu().numpy()
    return MapInversionError(
        f"a map of the flow can't be inverted at {len(rows)} of {len(y)} points, since it folds there: "
        f"{describe_points(points, indices)}. Such points lie far from all particles or where the step was too "
        "long: fit with a smaller step_size or more n_particles.",
        points[indices[:10]],
        indices,
    )
