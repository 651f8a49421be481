"""Energies of fields ready for computing: checked and counted, with derivatives made by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jkosampler.energies.evaluator import nothing_used
from jkosampler.energies.functionals import L2Functional
from jkosampler.energies.terms import Energy
from jkosampler.errors import (
    ArgumentError,
    TargetCallError,
    TargetGradientError,
    TargetShapeError,
    TargetValueError,
    describe_points,
)

__all__ = ["FunctionalEvaluator", "Integrand"]


class Integrand(NamedTuple):
    """phi (n,) at points, its derivative in u (n,) and in grad u (n, d)."""

    value: Tensor
    by_u: Tensor
    by_gradient: Tensor


class FunctionalEvaluator:
    """Evaluates the integrand of an energy of fields.

    Parameters
    ----------
    energy : Energy
        A sum of `L2Functional` terms.

    Raises
    ------
    ArgumentError
        Another kind of term is in the sum.
    """

    def __init__(self, energy: Energy) -> None:
        self._terms: list[tuple[float, L2Functional]] = []
        self.n_evaluations = self.n_calls = 0
        self.budget_used: Callable[[], float] = nothing_used
        for coefficient, term in energy.terms():
            if not isinstance(term, L2Functional):
                raise ArgumentError(
                    f"energy: the term {term!r} is one of densities, whose flows are in the Wasserstein metric; with "
                    "metric='l2' take Dirichlet, AllenCahn or L2Functional."
                )
            self._terms.append((coefficient, term))

    def remember(self, other: FunctionalEvaluator) -> None:
        """Count on where another evaluator of the same energy has come to."""
        self.n_evaluations, self.n_calls = other.n_evaluations, other.n_calls

    def check(self, x: Tensor, u: Tensor, gradient: Tensor) -> None:
        """Call each phi with two batch sizes, and look at its values and derivatives.

        Raises
        ------
        TargetError
            A phi raises, returns another shape, is not differentiable, or is not finite.
        """
        few = max(1, len(x) // 2)
        whole, part = self.integrand(x, u, gradient), self.integrand(x[:few], u[:few], gradient[:few])
        self.curvature(x[:few], u[:few], gradient[:few])
        # somewhere else: a field may start where phi is stationary
        du, dp = 0.1 * (1.0 + u.abs()), 0.1 * (1.0 + gradient.abs())
        there = self.integrand(x, u + du, gradient + dp)
        flat = bool((there.by_u == 0.0).all()) and bool((there.by_gradient == 0.0).all())
        if flat and not torch.allclose(there.value, self.value(x, u + 2.0 * du, gradient + 2.0 * dp)):
            raise TargetGradientError("phi of the energy must be made of torch operations on u and grad_u.")
        if not torch.allclose(whole.value[:few], part.value, rtol=1e-6, atol=1e-9 * float(whole.value.abs().max())):
            raise TargetCallError("phi of the energy must treat points alike, whatever else is in the batch.")

    def value(self, x: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
        """Phi (n,)."""
        self._count(x)
        with torch.no_grad():
            return self._phi(x, u, gradient)

    def differentiable(self, x: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
        """Phi (n,), with the graph of u and its gradient."""
        self._count(x)
        return self._phi(x, u, gradient)

    def integrand(self, x: Tensor, u: Tensor, gradient: Tensor) -> Integrand:
        """Phi with its first derivatives."""
        self._count(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf, slope = u.detach().requires_grad_(True), gradient.detach().requires_grad_(True)
            value = self._phi(x.detach(), leaf, slope)
            by_u, by_gradient = _derivatives(value, leaf, slope)
        found = Integrand(value.detach(), by_u, by_gradient)
        _finite(found.by_u + found.by_gradient.sum(-1), x, "derivative")
        return found

    def curvature(self, x: Tensor, u: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Second derivatives of phi: in u (n,), and in grad u (n, d, d); zero where phi has none, as at a kink."""
        self._count(x)
        with torch.inference_mode(False), torch.enable_grad():
            leaf, slope = u.detach().requires_grad_(True), gradient.detach().requires_grad_(True)
            value = self._phi(x.detach(), leaf, slope)
            by_u, by_gradient = _derivatives(value, leaf, slope, keep=True)
            uu = _derivatives(by_u, leaf, slope, keep=True)[0]
            rows = [_derivatives(by_gradient[:, i], leaf, slope, keep=True)[1] for i in range(gradient.shape[1])]
        by_both = torch.stack(rows, 1).detach()
        return torch.nan_to_num(uu.detach(), 0.0, 0.0, 0.0), torch.nan_to_num(by_both, 0.0, 0.0, 0.0)

    def equation(self, x: Tensor, u: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:
        """The right side of the flow, `div(d phi / d grad u) - d phi / d u`, (n,), from u and its derivatives.

        NaN where phi has no second derivatives.
        """
        self._count(x)
        with torch.inference_mode(False), torch.enable_grad():
            place, leaf, slope = (value.detach().requires_grad_(True) for value in (x, u, gradient))
            value = self._phi(place, leaf, slope)
            by_u, by_gradient = _derivatives(value, leaf, slope, keep=True)
            total = -by_u.detach()
            for i in range(x.shape[1]) if by_gradient.requires_grad else ():
                by_x, by_value, by_slope = torch.autograd.grad(
                    by_gradient[:, i].sum(), (place, leaf, slope), retain_graph=True, materialize_grads=True,
                    allow_unused=True,
                )  # fmt: skip
                total = total + by_x[:, i] + by_value * gradient[:, i] + (by_slope * hessian[:, i]).sum(-1)
        return total.detach()

    def _count(self, x: Tensor) -> None:
        self.n_evaluations += len(x)
        self.n_calls += 1

    def _phi(self, x: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
        total = torch.zeros_like(u)
        for coefficient, term in self._terms:
            try:
                value = term.phi(x, u, gradient)
            except Exception as error:
                raise TargetCallError(f"phi of the energy {term!r} fails: {error!r}.") from error
            total = total + coefficient * _checked(value, u, term)
        _finite(total.detach(), x, "value")
        return total


def _checked(value: Any, u: Tensor, term: L2Functional) -> Tensor:
    if not isinstance(value, Tensor) or value.shape != u.shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TargetShapeError(
            f"phi of the energy {term!r} must return a tensor of shape {tuple(u.shape)}, got {found}."
        )
    return value


def _derivatives(value: Tensor, u: Tensor, gradient: Tensor, *, keep: bool = False) -> tuple[Tensor, Tensor]:
    """Derivatives of a sum over points in u and grad u; zero where it depends on neither."""
    if not value.requires_grad:
        return torch.zeros_like(u), torch.zeros_like(gradient)
    by_u, by_gradient = torch.autograd.grad(
        value.sum(), (u, gradient), allow_unused=True, materialize_grads=True, create_graph=keep
    )
    return by_u, by_gradient


def _finite(values: Tensor, x: Tensor, what: str) -> None:
    bad = ~values.isfinite()
    if bool(bad.any()):
        rows = bad.nonzero()[:, 0].cpu().numpy()
        points = x.detach().cpu().double().numpy()
        kind = TargetValueError if what == "value" else TargetGradientError
        raise kind(
            f"phi of the energy: its {what} is not finite at {len(rows)} points: {describe_points(points, rows)}.",
            points[rows[:10]],
            rows,
        )
