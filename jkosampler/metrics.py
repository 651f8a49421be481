"""Metrics of the space of densities, as coordinates in which a step is a plain Wasserstein step.

A step minimises `E(rho) + d(rho, rho_k)^2 / (2 tau)`. For the Wasserstein metric the distance is the cost
`E |T(x) - x|^2` of the best map; for the Kalman-Wasserstein metric (equations 34-38 of arXiv 2311.06700, C frozen
at the start of the step) it is `E (T(x) - x)' C^-1 (T(x) - x)`. In the coordinates `z = L^-1 (x - m)` of a `Frame`
both are `cost * E |T(z) - z|^2`, and the velocity `v = C grad phi` of the Kalman metric comes out by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.maps import Conjugated, Map
from jkosampler.particles import Particles, weighted_moments

__all__ = ["Frame", "KalmanWasserstein", "Metric", "Wasserstein", "as_metric"]


class Frame(NamedTuple):
    """Coordinates `z = L^-1 (x - m)` of a step: centre m (d,), factor L (d, d), cost of a squared unit of z."""

    centre: Tensor
    factor: Tensor
    cost: float

    def to_inner(self, particles: Particles) -> Particles:
        """The particles in z; log densities stay those of x, since energies see the density of x."""
        z = torch.linalg.solve(self.factor, (particles.x - self.centre).mT).mT
        score = None if particles.score is None else particles.score @ self.factor
        return Particles(z, particles.log_rho, score)

    def to_outer(self, z: Tensor) -> Tensor:
        """x = m + L z."""
        return self.centre + z @ self.factor.mT

    def conjugate(self, inner: Map) -> Conjugated:
        """The map of x that a map of z is."""
        return Conjugated(inner, self.centre, self.factor)


class Metric:
    """A metric of the space of densities. A subclass gives `frame`.

    `moves` says whether the metric itself changes with the law.
    """

    name: str
    moves: bool = False

    def frame(self, particles: Particles, weights: Tensor) -> Frame:
        """The coordinates of a step that starts at these weighted particles."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Wasserstein(Metric):
    """The Wasserstein-2 metric; its frame only shifts and scales all axes alike."""

    name = "wasserstein"

    def frame(self, particles: Particles, weights: Tensor) -> Frame:
        mean, covariance = weighted_moments(particles.x, weights)
        variance = float(torch.diagonal(covariance).mean())
        identity = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        return Frame(mean, variance**0.5 * identity, variance)


class KalmanWasserstein(Metric):
    """The Kalman-Wasserstein metric: the covariance C of the law preconditions, so the flow is affine invariant.

    The frame's factor is the symmetric root of C; C needs more particles than dimensions.
    """

    name = "kalman"
    moves = True

    def frame(self, particles: Particles, weights: Tensor) -> Frame:
        n, d = particles.x.shape
        if n <= d:
            raise ArgumentError(
                f"n_particles={n} is too few for the covariance in d={d} dimensions: take at least {10 * d}."
            )
        mean, covariance = weighted_moments(particles.x, weights)
        deviation = torch.diagonal(covariance).sqrt()
        # Rounding lends a constant coordinate a tiny deviation, and eigh refuses the NaN that a zero one makes.
        if bool(((particles.x == particles.x[0]).all(0) | (deviation == 0.0)).any()):
            raise _singular()
        values, vectors = torch.linalg.eigh(covariance / torch.outer(deviation, deviation))
        if float(values[0]) <= 100.0 * torch.finfo(values.dtype).eps * float(values[-1]):
            raise _singular()
        root = deviation.unsqueeze(-1) * vectors * values.sqrt()
        return Frame(mean, _symmetric_part_of_polar(root), 1.0)


def _symmetric_part_of_polar(root: Tensor) -> Tensor:
    """The symmetric positive definite square root of `root root'`, from singular values for accuracy."""
    left, values, _ = torch.linalg.svd(root)
    return (left * values) @ left.mT


def _singular() -> ArgumentError:
    return ArgumentError(
        "initial: the covariance of the particles is singular, so the Kalman metric is not defined; "
        "start from a law that is spread in every direction, or use metric='wasserstein'."
    )


def as_metric(metric: object) -> Metric:
    """The metric of a name, or the metric itself."""
    names = {kind.name: kind for kind in (Wasserstein, KalmanWasserstein)}
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str) and metric in names:
        return names[metric]()
    raise ArgumentError(f"metric must be one of {[*sorted(names), 'l2']} or a Metric object, got {metric!r}.")
