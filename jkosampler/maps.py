"""Invertible maps of particles: what one step of the flow does to positions, densities and scores.

`GradientMap` is `T(x) = x + grad phi(x)` with the exact `log det(I + hess phi)`; `ODEMap` is the neural ODE of
Lee, Wang, Li (arXiv 2311.06700, section 3): `dz/ds = grad phi(z, s)`, `dl/ds = div grad phi` on inner time [0, 1].
`Conjugated` runs a map in other affine coordinates. Shapes: positions (n, d), log determinants (n,), scores (n, d).

With `rho' = T# rho`: `log rho'(T(x)) = log rho(x) - log det DT(x)`, and the score `s = grad log rho` follows
`s'(T(x)) = DT(x)^-T (s(x) - grad log det DT(x))`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jkosampler.errors import ArgumentError, MapInversionError, describe_points
from jkosampler.fused import fused_transport
from jkosampler.potentials import ResNetPotential

__all__ = ["INTEGRATORS", "Conjugated", "GradientMap", "Map", "ODEMap", "Pushed", "StraightMap"]


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

    def positions(self, x: Tensor) -> Tensor:
        return x + self.displacement(x)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            shift, jacobian = self._parts(x)
            log_det = self.log_det(jacobian)
            gradient_of_log_det = _gradient(log_det, x)
        pushed = _solve(jacobian.detach().mT, score - gradient_of_log_det)
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
        return x, -_checked_inverse(y, residual.norm(dim=-1) > limit, log_det)

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

    def __init__(self, potential: ResNetPotential, *, tolerance: float = 1e-10) -> None:
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


# Butcher tableaus: the rows a_i of earlier stages, the weights b; c_i is the sum of a_i.
INTEGRATORS: dict[str, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": (((),), (1.0,)),
    "heun": (((), (1.0,)), (0.5, 0.5)),
    "rk4": (((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


class ODEMap(Map):
    """The flow of `dz/ds = grad phi(z, s)` over inner time [0, 1], with `dl/ds = tr hess phi` (equation 13).

    Positions, log determinant and action are integrated by the same stages, so that a training loss that sees the
    one pays for the other.

    Parameters
    ----------
    potential : ResNetPotential
        phi, with or without time input.
    integrator : {"rk4", "heun", "euler"}
        The scheme.
    inner_steps : int
        Steps N_tau of the scheme in a whole step.
    probes : Tensor (k, d), optional
        Directions of Hutchinson's estimate of the trace; None takes the exact trace.
    tolerance : float
        Largest error `|T(x) - y|` of the inverse, relative to `1 + |y|`.
    fused : bool
        Whether `transport` is differentiated by hand (module `fused`) where gradients are wanted and the trace is
        exact: the same values, in half the time of the plain formulas, which False keeps to. Once only: False also
        for derivatives of derivatives, and for the transforms of `torch.func`.
    """

    probes: Tensor | None

    def __init__(
        self,
        potential: ResNetPotential,
        *,
        integrator: str = "rk4",
        inner_steps: int = 1,
        probes: Tensor | None = None,
        tolerance: float = 1e-10,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if integrator not in INTEGRATORS:
            raise ArgumentError(f"integrator must be one of {sorted(INTEGRATORS)}, got {integrator!r}.")
        if inner_steps < 1:
            raise ArgumentError(f"inner_steps must be at least 1, got {inner_steps}.")
        self.potential = potential
        self.integrator, self.inner_steps, self.tolerance, self.fused = integrator, inner_steps, tolerance, fused
        # A network trained in float32 is given probes of the interface's precision, which torch does not mix.
        self.register_buffer("probes", None if probes is None else probes.to(potential.linear))

    def forward(self, x: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        z, log_det, _ = self.integrate(x, 0.0, fraction)
        return z, log_det

    def integrate(self, x: Tensor, start: float, end: float, refine: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Positions (n, d), log determinants (n,) and actions `int |v|^2 ds` (n,) from inner time start to end.

        `refine` multiplies the number of inner steps, for a check of the integration.
        """
        rows, weights = INTEGRATORS[self.integrator]
        n_steps = self.inner_steps * refine
        h = (end - start) / n_steps
        log_det = action = torch.zeros_like(x[:, 0])
        for step in range(n_steps):
            s = start + step * h
            velocities: list[Tensor] = []
            increment = torch.zeros_like(x)
            for row, weight in zip(rows, weights, strict=True):
                z = x + h * sum((a * v for a, v in zip(row, velocities, strict=True) if a), torch.zeros_like(x))
                v, divergence = self._velocity(z, s + sum(row) * h)
                velocities.append(v)
                increment = increment + weight * v
                log_det = log_det + (h * weight) * divergence
                action = action + (h * weight) * v.square().sum(-1)
            x = x + h * increment
        return x, log_det, action

    def transport(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        trained = x.requires_grad or any(parameter.requires_grad for parameter in self.potential.parameters())
        if self.fused and self.probes is None and self.potential.depth and trained and torch.is_grad_enabled():
            return fused_transport(self.potential, x, INTEGRATORS[self.integrator], self.inner_steps)
        return self.integrate(x, 0.0, 1.0)

    def initial_velocity(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._velocity(x, 0.0)

    def push(self, x: Tensor, score: Tensor) -> Pushed:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            y, log_det = self(x)
            rows = [_gradient(y[:, i], x, retain_graph=True) for i in range(x.shape[-1])]
            gradient_of_log_det = _gradient(log_det, x)
        jacobian = torch.stack(rows, dim=1)
        pushed = _solve(jacobian.mT, score - gradient_of_log_det)
        return Pushed(y.detach(), log_det.detach(), pushed)

    def inverse(self, y: Tensor, fraction: float = 1.0) -> tuple[Tensor, Tensor]:
        """Integrate backwards, then correct: the scheme's backward run is not the inverse of its forward run.

        `x <- x + B(y) - B(T(x))`, B the backward run, contracts by the integration error at every turn.
        """
        with torch.no_grad():
            limit = max(self.tolerance, 100.0 * torch.finfo(y.dtype).eps) * (1.0 + y.norm(dim=-1))
            target = self.integrate(y, fraction, 0.0)[0]
            x = target.clone()
            for _ in range(50):
                image, log_det = self(x, fraction)
                failed = ~((image - y).norm(dim=-1) <= limit)
                if not failed.any():
                    break
                x = torch.where(failed.unsqueeze(-1), x + target - self.integrate(image, fraction, 0.0)[0], x)
        return x, -_checked_inverse(y, failed, log_det)

    def _velocity(self, z: Tensor, s: float) -> tuple[Tensor, Tensor]:
        return self.potential.gradient_and_laplacian(z, s if self.potential.time_input else None, self.probes)


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


def cholesky_and_log_det(jacobian: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors and `log det` (n,) of symmetric matrices (n, d, d); NaN for those not positive definite."""
    factor, info = torch.linalg.cholesky_ex(jacobian)
    log_det = 2.0 * torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(-1)
    return factor, torch.where(info == 0, log_det, torch.nan)


def _solve(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Solutions (n, d); NaN where a matrix is singular, as a training that breaks down makes them."""
    solution, info = torch.linalg.solve_ex(matrices, vectors.unsqueeze(-1))
    return torch.where(info.unsqueeze(-1) == 0, solution.squeeze(-1), torch.nan)


def _gradient(values: Tensor, x: Tensor, *, retain_graph: bool = False) -> Tensor:
    """Row-wise gradient of values (n,) in x (n, d); zero where the values do not depend on x."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=retain_graph, materialize_grads=True)
    return gradient


def _checked_inverse(y: Tensor, failed: Tensor, log_det: Tensor) -> Tensor:
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
