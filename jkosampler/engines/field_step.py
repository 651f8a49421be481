"""One step of an L2 flow: `argmin F(u) + |u - v|^2 / (2 tau)` over the last layer of a network (variable projection).

Equation (3.7) of Park, Kim, Son, Hwang (arXiv 2109.14851). Given the hidden layer, the step is a convex problem in the
last one as soon as tau is small enough for the step to be one, quadratic for the heat equation. In coordinates in which
the second derivative of the objective is the identity (`Basis`) its units are as good as orthogonal, however nearly
dependent they were, and L-BFGS needs one iteration for a quadratic problem and some ten for others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from jkosampler.domains import Quadrature
from jkosampler.energies import FunctionalEvaluator
from jkosampler.errors import FitError, TargetError
from jkosampler.fields import CosineField, ScalarField

__all__ = ["Basis", "SolvedStep", "solve_step"]

_DEPENDENT = 1e-13  # of the largest eigenvalue of the objective's matrix: directions below are rounding errors
_ITERATIONS = 200
_STALE = 30  # iterations of L-BFGS above which the next step deserves coordinates of its own
_SOLVED = 1e-9  # gradient, in units of the first one
_ROUNDING = 1e-14  # of the objective: no smaller gain can be told from rounding


class Basis:
    """The units of a hidden layer on the points of a quadrature, in coordinates fit for a step of size tau.

    With the matrix `H = int psi psi' (1 / tau + phi_uu) + grad psi phi_pp grad psi'` of the units psi at some field and
    its eigenvalues and vectors `H = Q D Q'`, the new units are `D^(-1/2) Q' psi`, where D is not negligible.
    """

    def __init__(
        self, layer: CosineField, points: Quadrature, tau: float, energy: FunctionalEvaluator, at: ScalarField
    ) -> None:
        self.layer, self.points, self.tau = layer, points, tau
        x, weights = points
        angles = layer.angles(x)
        values, slopes = angles.cos(), -angles.sin()
        by_u, by_gradient = energy.curvature(x, *at.with_gradient(x))
        self.stiffness = float(weights @ by_gradient.diagonal(dim1=1, dim2=2).mean(1) / weights.sum())
        root = (weights * (1.0 / tau + by_u.clamp(min=0.0))).sqrt()
        weighted = root[:, None] * values
        matrix = weighted.mT @ weighted
        for factor in _roots(weights[:, None, None] * by_gradient):
            weighted = slopes * (factor @ layer.slopes.mT)
            matrix += weighted.mT @ weighted
        eigenvalues, vectors = torch.linalg.eigh(matrix)
        if not bool(eigenvalues[-1] > 0.0):  # nor NaN
            raise FitError("the energy's second derivatives are not finite: its step has no matrix.")
        kept = eigenvalues > _DEPENDENT * eigenvalues[-1]
        self._to_units = vectors[:, kept] / eigenvalues[kept].sqrt()
        self._values = values @ self._to_units
        self._slopes = [(slopes * slope) @ self._to_units for slope in layer.slopes.unbind(1)]

    def evaluate(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """u (n,) and grad u (n, d) at the points, from coordinates c (r,)."""
        return self._values @ c, torch.stack([slope @ c for slope in self._slopes], 1)

    def adjoint(self, by_u: Tensor, by_gradient: Tensor) -> Tensor:
        """The derivative (r,) in c of a functional from its densities in u (n,) and grad u (n, d)."""
        weights = self.points.weights
        total = self._values.mT @ (weights * by_u)
        for slope, column in zip(self._slopes, by_gradient.unbind(1), strict=True):
            total = total + slope.mT @ (weights * column)
        return total

    def field(self, c: Tensor) -> CosineField:
        """The network of coordinates c."""
        return self.layer.with_coefficients(self._to_units @ c)


def _roots(matrices: Tensor) -> list[Tensor]:
    """Factors (n, d) whose outer products add up to the positive parts of symmetric matrices (n, d, d)."""
    if not bool((matrices - torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))).any()):
        return [_single(matrices, i) for i in range(matrices.shape[1]) if bool(matrices[:, i, i].any())]
    eigenvalues, vectors = torch.linalg.eigh(matrices)
    scaled = vectors * eigenvalues.clamp(min=0.0).sqrt()[:, None, :]
    return list(scaled.unbind(2))


def _single(matrices: Tensor, i: int) -> Tensor:
    factor = torch.zeros_like(matrices[:, 0])
    factor[:, i] = matrices[:, i, i].clamp(min=0.0).sqrt()
    return factor


@dataclass
class _Problem:
    """The objective in coordinates c = start + scale e, as a change from the start and in units of scale^2."""

    basis: Basis
    energy: FunctionalEvaluator
    before: Tensor
    start: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        self.u, self.gradient = self.basis.evaluate(self.start)
        self.reference = self.energy.value(self.basis.points.x, self.u, self.gradient)
        self.first = self.u - self.before

    def slope(self, e: Tensor) -> tuple[float, Tensor]:
        """Objective and its derivative in e."""
        x, weights = self.basis.points
        u, gradient = self.basis.evaluate(self.start + self.scale * e)
        phi, by_u, by_gradient = self.energy.integrand(x, u, gradient)
        moved = u - self.before
        distance = (moved - self.first) * (moved + self.first) / (2.0 * self.basis.tau)
        value = float(weights @ (phi - self.reference + distance)) / self.scale**2
        return value, self.basis.adjoint(by_u + moved / self.basis.tau, by_gradient) / self.scale


class SolvedStep(NamedTuple):
    """The minimiser's coordinates (r,), its values (n,) at the points, its energy, d^2, and L-BFGS's work.

    `slow` says that the work was much: the coordinates suit the energy no longer.
    """

    coordinates: Tensor
    u: Tensor
    energy: float
    transport_cost: float
    n_iterations: int

    @property
    def slow(self) -> bool:
        return self.n_iterations > _STALE


def solve_step(basis: Basis, energy: FunctionalEvaluator, before: Tensor, start: Tensor | None) -> SolvedStep:
    """Minimise the step's objective.

    Parameters
    ----------
    before : Tensor (n,)
        The field before the step, at the points.
    start : Tensor (r,), optional
        Coordinates to start from; None: the projection of `before`.

    Raises
    ------
    FitError
        The objective is not finite, or has no minimum.
    """
    x, weights = basis.points
    if start is None:
        start = basis.adjoint(before / basis.tau, torch.zeros_like(x))
    problem = _Problem(basis, energy, before, start)
    _, first = problem.slope(torch.zeros_like(start))
    size = float(weights @ problem.reference.abs() + weights @ problem.first.square() / (2.0 * basis.tau))
    count, e = 1, torch.zeros_like(start)
    if float(first.norm()) ** 2 > _ROUNDING * max(size, 1e-300):
        problem.scale = float(first.abs().sum())  # torch's first step is one over the gradient's sum: Newton's own
        e.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [e], max_iter=_ITERATIONS, max_eval=2 * _ITERATIONS, history_size=30, tolerance_grad=_SOLVED,
            tolerance_change=1e-13, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            nonlocal count
            count += 1
            value, e.grad = problem.slope(e.detach())
            return torch.tensor(value, dtype=torch.float64)

        try:
            optimizer.step(closure)
        except TargetError as error:
            raise FitError(
                f"a step has no minimum that the fit can find: take a smaller step_size. ({error})"
            ) from error
        e = e.detach()
    c = start + problem.scale * e
    u, gradient = basis.evaluate(c)
    found = float(weights @ energy.value(x, u, gradient))
    cost = float(weights @ (u - before).square())
    if not math.isfinite(found + cost):
        raise FitError("the objective of a step is not finite: take a smaller step_size, or look at the energy.")
    return SolvedStep(c, u, found, cost, count)
