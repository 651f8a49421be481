"""Particles of a law: where they are, the log density there, and its gradient, carried along by maps.

The exact law satisfies `E[s] = 0` and `E[s x'] = -I` for its score s (whenever its density vanishes at the edge
of its support). `calibrated_weights` gives the sample these two identities, which makes means, covariances and
affine steps exact for Gaussian laws at any sample size, and less noisy for all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import chi
from torch import Tensor

from jkosampler.laws import Law
from jkosampler.maps import Map

__all__ = [
    "CALIBRATED_DIMENSIONS",
    "Particles",
    "calibrated_weights",
    "enough_for_moments",
    "gaussian_moments",
    "weighted_moments",
]

CALIBRATED_DIMENSIONS = 20  # solving for the weights costs O(n d^4)
_REGRESSED_PER_DIMENSION = 50
_EXACT = 1e-6  # misfit, in standard deviations, of a regression that is exact but for rounding
_CHUNK = 4096  # rows that a map moves at a time: bounds the memory of Hessians and keeps them in the cache


@dataclass(frozen=True)
class Particles:
    """Positions x (n, d), log densities log_rho (n,) and scores (n, d) of n draws of a law.

    The score is None for a law whose density jumps: the identities behind it fail there.
    """

    x: Tensor
    log_rho: Tensor
    score: Tensor | None

    @classmethod
    def draw(cls, law: Law, n: int, generator: torch.Generator) -> Particles:
        """n independent draws of a law."""
        x = law.sample((n,), generator=generator)
        return cls(x, law.log_prob(x), None if law.has_jump else law.score(x))

    @classmethod
    def draw_spread(cls, law: Law, n: int, generator: torch.Generator) -> Particles:
        """n points that cover the law evenly from its centre out to its tails; densities and scores are the law's.

        Directions are those of draws, and whitened radii uniform over the range where a Gaussian of this dimension
        has all but 1e-6 of its mass on either side. The equations of a step hold at every point, so a map that is
        trained on these is as accurate in the tails as in the bulk. Plain draws where the law has an edge.
        """
        x = law.sample((n,), generator=generator)
        mean, covariance = weighted_moments(x, torch.full_like(x[:, 0], 1.0 / n))
        factor, info = torch.linalg.cholesky_ex(covariance)
        if law.has_jump or int(info):
            return cls.draw(law, n, generator)
        z = torch.linalg.solve_triangular(factor, (x - mean).mT, upper=False).mT
        low, high = chi.ppf([1e-6, 1.0 - 1e-6], x.shape[1])
        radius = low + (high - low) * torch.rand(n, 1, generator=generator, dtype=torch.float64).to(x)
        x = mean + (z * (radius / z.norm(dim=1, keepdim=True))) @ factor.mT
        log_rho = law.log_prob(x)
        return cls(x, log_rho, law.score(x)) if bool(log_rho.isfinite().all()) else cls.draw(law, n, generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor | slice) -> Particles:
        return Particles(self.x[rows], self.log_rho[rows], None if self.score is None else self.score[rows])

    def without_score(self) -> Particles:
        """The same particles, cheaper to push."""
        return Particles(self.x, self.log_rho, None)

    def joined(self, other: Particles) -> Particles:
        """These particles and others."""
        together = None if self.score is None or other.score is None else torch.cat([self.score, other.score])
        return Particles(torch.cat([self.x, other.x]), torch.cat([self.log_rho, other.log_rho]), together)

    def push_all(self, steps: Sequence[Map]) -> Particles:
        """The same particles after several maps."""
        particles = self
        for step in steps:
            particles = particles.push(step)
        return particles

    def to(self, dtype: torch.dtype) -> Particles:
        """The same particles in another precision."""
        return Particles(self.x.to(dtype), self.log_rho.to(dtype), None if self.score is None else self.score.to(dtype))

    def push(self, step: Map) -> Particles:
        """The same particles after a map."""
        parts = [self._push(step, slice(i, i + _CHUNK)) for i in range(0, len(self), _CHUNK)]
        scores = [part.score for part in parts if part.score is not None]
        return Particles(
            torch.cat([part.x for part in parts]),
            torch.cat([part.log_rho for part in parts]),
            torch.cat(scores) if scores else None,
        )

    def _push(self, step: Map, rows: slice) -> Particles:
        part = self[rows]
        if part.score is None:
            with torch.no_grad():
                x, log_det = step(part.x)
            return Particles(x, part.log_rho - log_det, None)
        x, log_det, score = step.push(part.x, part.score)
        return Particles(x, part.log_rho - log_det, score)


def calibrated_weights(
    particles: Particles, pressure_per_mass: Tensor | None = None, pressure_slope: Tensor | None = None
) -> Tensor:
    """Positive weights (n,) of sum one, nearest to equal in entropy, that give the law's identities to a sample.

    They are `sum w P' s = 0` and `sum w (P' s x' + P/rho I) = 0`.

    Both hold for every pressure P(rho), which is given by `P / rho` (n,) and `P'` (n,); None: P = rho. With
    that of the step's energy its affine part is exact where the law and its neighbours in the flow are affine images
    of each other: Gaussians under the entropy, Barenblatt profiles under a power.

    Equal weights where the identities can't be met: no score, too few particles for d (d + 1) conditions, or a
    sample that contradicts them.
    """
    n, d = particles.x.shape
    equal = torch.full_like(particles.log_rho, 1.0 / n)
    if particles.score is None or n < _fewest_calibrated(d) or d > CALIBRATED_DIMENSIONS:
        return equal
    # Standardised coordinates make all conditions of order one.
    deviation, centre = torch.std_mean(particles.x, dim=0)
    x, force = (particles.x - centre) / deviation, particles.score * deviation
    isotropic = torch.eye(d, dtype=x.dtype, device=x.device).expand(n, d, d)
    if pressure_per_mass is not None and pressure_slope is not None:
        scale = pressure_per_mass.mean()
        force = force * (pressure_slope / scale).unsqueeze(-1)
        isotropic = isotropic * (pressure_per_mass / scale).reshape(-1, 1, 1)
    conditions = torch.cat([force, (force.unsqueeze(2) * x.unsqueeze(1) + isotropic).flatten(1)], dim=1)
    weights = _maximum_entropy(conditions.cpu().numpy().astype(np.float64))
    return equal if weights is None else torch.as_tensor(weights, dtype=x.dtype, device=x.device)


def _fewest_calibrated(dim: int) -> int:
    """So many particles carry d (d + 1) conditions on their weights without strain."""
    return 20 * (dim * dim + dim)


def enough_for_moments(dim: int) -> int:
    """So many particles give the affine part of a step, by calibrated weights or, in many dimensions, regression."""
    return _fewest_calibrated(dim) if dim <= CALIBRATED_DIMENSIONS else _REGRESSED_PER_DIMENSION * dim


def gaussian_moments(particles: Particles) -> tuple[Tensor, Tensor] | None:
    """Mean (d,) and covariance (d, d) of the law itself where it is Gaussian, from any sample of n > d; else None.

    Its score is `s = -S^-1 (x - m)`, so the regression of x on s has no residual.
    """
    x, score = particles.x, particles.score
    if score is None or len(x) <= x.shape[1] + 1:
        return None
    ones = torch.ones_like(score[:, :1])
    found = torch.linalg.lstsq(torch.cat([score, ones], dim=1), x).solution
    misfit = (torch.cat([score, ones], dim=1) @ found - x).square().mean(0).sqrt() / x.std(0)
    covariance = -0.5 * (found[:-1] + found[:-1].mT)
    if not float(misfit.max()) < _EXACT or int(torch.linalg.cholesky_ex(covariance).info):
        return None
    return found[-1], covariance


def weighted_moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of particles x (n, d)."""
    mean = weights @ x
    centred = x - mean
    return mean, (centred * weights.unsqueeze(-1)).mT @ centred


def _maximum_entropy(conditions: np.ndarray) -> np.ndarray | None:
    """Weights proportional to exp(c_j . lambda) with weighted mean of the conditions (n, k) zero; None if none."""
    if not np.isfinite(conditions).all():
        return None

    def tilted(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        exponent = conditions @ multipliers
        top = exponent.max()
        weights = np.exp(exponent - top)
        return top + np.log(weights.mean()), weights / weights.sum()

    def hessian(multipliers: np.ndarray) -> np.ndarray:
        weights = tilted(multipliers)[1]
        mean = weights @ conditions
        return (conditions * weights[:, None]).T @ conditions - np.outer(mean, mean)

    result = minimize(
        lambda multipliers: tilted(multipliers)[0],
        np.zeros(conditions.shape[1]),
        jac=lambda multipliers: tilted(multipliers)[1] @ conditions,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-9, "maxiter": 100},
    )
    weights = tilted(result.x)[1]
    met = np.abs(weights @ conditions).max() < 1e-6 and 1.0 / np.square(weights).sum() > 0.2 * len(weights)
    return weights if met else None
