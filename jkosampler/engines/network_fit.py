"""Fit all parameters of a network to given values or gradients, by Levenberg and Marquardt's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from jkosampler.engines.levenberg_marquardt import levenberg_marquardt
from jkosampler.tangent import Tangent

__all__ = ["Tried", "fit_gradients", "fit_values"]

_LITTLE, _PATIENCE = 0.9, 10  # share of the misfit that so many iterations must not leave


def fit_values(
    network: Tangent, x: Tensor, values: Tensor, weights: Tensor, *, max_iterations: int, enough: float
) -> Tangent:
    """The network at parameters at which it has values near those given, (n,) at x (n, d), by weighted squares.

    Ends early when the mean square of what it misses, relative to that of the values, is small enough.
    """
    return _fit(network, values, weights, lambda at: at(x), lambda at: at.jacobian(x), max_iterations, enough)


def fit_gradients(
    network: Tangent, x: Tensor, slopes: Tensor, weights: Tensor, *, max_iterations: int, enough: float
) -> Tangent:
    """The same for gradients (n, d) in x."""
    return _fit(
        network, slopes, weights, lambda at: at.gradient(x), lambda at: at.gradient_jacobian(x), max_iterations, enough
    )


@dataclass(frozen=True)
class Tried:
    """A network as an iterate of `levenberg_marquardt`."""

    network: Tangent
    value: float

    @property
    def parameters(self) -> Tensor:
        """Its theta (p,)."""
        return self.network.theta


@dataclass(frozen=True)
class _Fit(Tried):
    """With what it misses, times the square roots of the weights (n * ..,)."""

    missing: Tensor


def _fit(
    network: Tangent,
    wanted: Tensor,
    weights: Tensor,
    values: Callable[[Tangent], Tensor],
    jacobian: Callable[[Tangent], Tensor],
    max_iterations: int,
    enough: float,
) -> Tangent:
    root = weights.sqrt().view(-1, *[1] * (wanted.dim() - 1))
    enough *= 0.5 * float((root * wanted).square().sum())

    def at(theta: Tensor) -> _Fit | None:
        moved = Tangent(network.network, theta)
        missing = (root * (values(moved) - wanted)).flatten()
        return _Fit(moved, 0.5 * float(missing @ missing), missing) if bool(missing.isfinite().all()) else None

    def model(now: _Fit) -> tuple[Tensor, Tensor]:
        rows = (root.unsqueeze(-1) * jacobian(now.network)).flatten(0, -2)
        return rows.mT @ now.missing, rows.mT @ rows

    def done(now: _Fit, seen: list[float]) -> bool:
        return now.value <= enough or (len(seen) > _PATIENCE and seen[-1] > _LITTLE * seen[-1 - _PATIENCE])

    start = at(network.theta)
    assert start is not None
    return levenberg_marquardt(start, at, model, done, max_iterations=max_iterations)[0].network
