"""Maps along straight lines, `T(x) = x + u(x)`, with their exact log determinants, and those with u a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.maps.base import (
    Map,
    Pushed,
    checked_inverse,
    cholesky_and_log_det,
    row_gradient,
    solve,
)
from jkosampler.potentials import ResNetPotential
from jkosampler.walled_potential import WalledPotential

__all__ = ["AffineMap", "GradientMap", "StraightMap"]


class StraightMap(Map):
    """`T(x) = x + u(x)`: particles move along straight lines, `x + fraction u(x)` in between."""

    def __init__(self, tolerance: float) -> None:
        super().__init__()
        self.tolerance = tolerance

    def displacement(self, x: Tensor) -> Tensor:
        """u (n, d)."""
        raise NotImplementedError

    def log_det(self, jacobian: Tensor) -> Tensor:
        """`log det` (n,) of Jacobians (n, d, d) of the map; NaN where it folds."""
        raise NotImplementedError

    def _displacement_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (n, d) and Du (n, d, d)."""
        raise NotImplementedError

    def _affine_part(self) -> tuple[Tensor, Tensor]:
        """The matrix (d, d) and the shift (d,) of the affine part of u."""
        raise NotImplementedError

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        shift, jacobian = self._parts(x, fraction)
        return x + shift, self.log_det(jacobian)

    def jacobian_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The Jacobian (n, d, d) of the map and its log determinant (n,)."""
        jacobian = self._parts(x)[1]
        return jacobian, self.log_det(jacobian)

    def positions(self, x: Tensor) -> Tensor:
        return x + self.displacement(x)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            shift, jacobian = self._parts(x)
            log_det = self.log_det(jacobian)
            gradient_of_log_det = row_gradient(log_det, x)
        pushed = solve(jacobian.detach().mT, score - gradient_of_log_det)
        return Pushed((x + shift).detach(), log_det.detach(), pushed)

    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """Newton's method with a step that halves until the residual falls."""
        with torch.no_grad():
            x = self._affine_inverse(y, fraction)
            residual = y - x - fraction * self.displacement(x)
            limit = self._limit(y)
            for _ in range(100):
                open_ = (residual.norm(dim=-1) > limit).nonzero().squeeze(-1)
                if not len(open_):
                    break
                self._newton(x, residual, y, open_, fraction)
            log_det = self.log_det(self._parts(x, fraction)[1])
        return x, -checked_inverse(y, residual.norm(dim=-1) > limit, log_det)

    def _limit(self, y: Tensor) -> Tensor:
        eps = torch.finfo(y.dtype).eps
        return max(self.tolerance, 100.0 * eps) * (1.0 + y.norm(dim=-1))

    def _newton(self, x: Tensor, residual: Tensor, y: Tensor, rows: Tensor, fraction: float) -> None:
        """One damped Newton step for the given rows, in place."""
        start, before = x[rows], residual[rows].norm(dim=-1)
        jacobian = self._parts(start, fraction)[1]
        newton, singular = torch.linalg.solve_ex(jacobian, residual[rows].unsqueeze(-1))
        step = torch.where((singular != 0).unsqueeze(-1), residual[rows], newton.squeeze(-1))
        todo, size = torch.arange(len(rows), device=x.device), 1.0
        for _ in range(30):
            trial = start[todo] + size * step[todo]
            remaining = y[rows[todo]] - trial - fraction * self.displacement(trial)
            x[rows[todo]], residual[rows[todo]] = trial, remaining
            todo = todo[remaining.norm(dim=-1) > (1.0 - 1e-4 * size) * before[todo]]
            if not len(todo):
                break
            size *= 0.5

    def _affine_inverse(self, y: Tensor, fraction: float) -> Tensor:
        """The inverse without ridges and networks, to start from; y itself where the rest is singular."""
        linear, shift = self._affine_part()
        matrix = torch.eye(y.shape[-1]).to(y) + fraction * linear
        x, singular = torch.linalg.solve_ex(matrix, (y - fraction * shift).mT)
        return x.mT.clone() if not int(singular) else y.clone()

    def _parts(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """The displacement (n, d) and the Jacobian of the map (n, d, d)."""
        shift, jacobian = self._displacement_and_jacobian(x)
        identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        return fraction * shift, identity + fraction * jacobian


class GradientMap(StraightMap):
    """`T(x) = x + grad phi(x)`: the form of every optimal map of a Wasserstein step, with its exact log det.

    The map is taken to be increasing (`I + hess phi` positive definite), as an optimal map is; where it isn't,
    `forward` returns NaN as log determinant.

    Parameters
    ----------
    potential : ResNetPotential
        phi, without time input.
    tolerance : float
        Largest error `|T(x) - y|` of the inverse, relative to `1 + |y|`.
    """

    def __init__(self, potential: ResNetPotential | WalledPotential, *, tolerance: float = 1e-10) -> None:
        super().__init__(tolerance)
        if potential.time_input:
            raise ArgumentError("GradientMap takes a potential without time input; give a time to ODEMap instead.")
        self.potential = potential

    def displacement(self, x: Tensor) -> Tensor:
        return self.potential.gradient(x)

    def log_det(self, jacobian: Tensor) -> Tensor:
        return cholesky_and_log_det(jacobian)[1]

    def transport(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient, jacobian = self._parts(x)
        return x + gradient, self.log_det(jacobian), gradient.square().sum(-1)

    def initial_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.potential.gradient_and_laplacian(x)

    def scaled(self, factor: float) -> GradientMap:
        return GradientMap(self.potential.scaled(factor), tolerance=self.tolerance)

    def _affine_part(self) -> tuple[Tensor, Tensor]:
        return self.potential.quadratic_form(), self.potential.linear

    def _displacement_and_jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.potential.gradient_and_hessian(x)


class AffineMap(Map):
    """`T(x) = x + A x + b` with A symmetric: the gradient map of a quadratic potential, whose Jacobian is one for all.

    Parameters
    ----------
    linear : Tensor (d, d)
        A.
    shift : Tensor (d,)
        b.
    """

    linear: Tensor
    shift: Tensor

    def __init__(self, linear: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("linear", linear)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        return x + fraction * self._displacement(x), self._factor_and_log_det(fraction)[1].expand(len(x))

    def positions(self, x: Tensor) -> Tensor:
        return x + self._displacement(x)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        factor, log_det = self._factor_and_log_det(1.0)
        pushed = torch.cholesky_solve(score.mT, factor).mT
        return Pushed(self.positions(x), log_det.expand(len(x)), pushed)

    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        factor, log_det = self._factor_and_log_det(fraction)
        x = torch.cholesky_solve((y - fraction * self.shift).mT, factor).mT
        return x, -checked_inverse(y, ~x.isfinite().all(1), log_det.expand(len(y)))

    def transport(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        moved, log_det = self(x)
        return moved, log_det, self._displacement(x).square().sum(-1)

    def initial_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._displacement(x), self.linear.trace().expand(len(x))

    def scaled(self, factor: float) -> AffineMap:
        return AffineMap(factor * self.linear, factor * self.shift)

    def _displacement(self, x: Tensor) -> Tensor:
        return torch.addmm(self.shift, x, self.linear)

    def _factor_and_log_det(self, fraction: float) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of the Jacobian, and its log determinant (); NaN where it is not positive definite."""
        jacobian = torch.eye(len(self.shift)).to(self.shift) + fraction * self.linear
        return cholesky_and_log_det(jacobian)
