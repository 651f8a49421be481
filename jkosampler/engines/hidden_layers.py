"""Hidden layers for fields: directions and frequencies of cosine units in which a step is then solved linearly.

On a line and in the plane, units of random frequencies in a ball, as large as their number resolves, span every smooth
field. In more dimensions no number does: there a greedy pursuit finds the frequencies of a given field one
after the other, most of them in few coordinates, and refines them together (variable projection of the last layer).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import qmc
from torch import Tensor

from jkosampler.domains import Domain
from jkosampler.engines.levenberg_marquardt import levenberg_marquardt
from jkosampler.fields import CosineField

__all__ = ["band_limited", "band_of", "pursued"]

_UNITS_PER_FREEDOM = 2.0  # units for each function that a box of that size and band has room for
_CANDIDATES, _CHUNK = 20_000, 1000
_STARTS, _ADDED = 40, 8  # candidates that are refined by ascent, and that one round adds at most
_ASCENT = 25
_POLISH = 15
_ACTIVE = 4  # coordinates that most candidates depend on, at most
_FULL = 0.1  # share of candidates that depend on all
_HALF_WAVES = 8  # over the box and in each coordinate, the highest frequency that is looked for
_EXACT = 1e-7  # relative misfit below which nothing is left to find
_RIDGE = 1e-10  # relative, in the linear least squares of nearly dependent units


def band_limited(domain: Domain, n_units: int, generator: torch.Generator) -> CosineField:
    """Units of evenly distributed frequencies: a constant, and n_units - 1 within the band that they resolve.

    A cube of side 2 has room for `2^d |B_W| / (2 pi)^d` functions of frequencies in the ball B_W of radius W.
    """
    d, band = domain.dim, band_of(n_units, domain.dim)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    level = qmc.Sobol(d + 1, seed=np.random.default_rng(seed)).random(1 << (n_units - 1).bit_length())[: n_units - 1]
    direction = torch.special.ndtri(torch.from_numpy(level[:, :d]).clamp(1e-9, 1.0 - 1e-9))
    direction = direction / direction.norm(dim=1, keepdim=True)
    radius = band * torch.from_numpy(level[:, d:]) ** (1.0 / d)
    phases = 2.0 * math.pi * torch.rand(n_units - 1, generator=generator, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    return CosineField(*domain.frame(), torch.cat([zero.expand(1, d), radius * direction]), torch.cat([zero, phases]))


def band_of(n_units: int, d: int) -> float:
    """The highest frequency that so many units resolve in a cube of side 2."""
    ball = math.exp(0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1.0))
    return math.pi * (n_units / (_UNITS_PER_FREEDOM * ball)) ** (1.0 / d)


def pursued(
    domain: Domain, x: Tensor, values: Tensor, fresh: Tensor, fresh_values: Tensor, *, n_units: int,
    generator: torch.Generator, frequencies: Tensor | None = None,
) -> tuple[CosineField, float]:  # fmt: skip
    """Units for a field of these values (n,) at x (n, d), and the relative misfit left at fresh points.

    A round screens thousands of sparse random frequencies by how much of the misfit each would explain, climbs from the
    best, adds those that fresh points confirm, and refines all by Levenberg and Marquardt's method. It starts from
    earlier `frequencies` (m, d), if there are any.
    """
    centre, scale = domain.frame(x.device)
    y, z = (x - centre) / scale, (fresh - centre) / scale
    w = x.new_zeros(0, domain.dim) if frequencies is None else frequencies
    best, least = w, math.inf
    while True:
        coefficients = _last_layer(y, values, w)
        residual = values - _design(y, w) @ coefficients
        left = fresh_values - _design(z, w) @ coefficients
        misfit = float(left.norm() / fresh_values.norm().clamp(min=1e-300))
        if misfit < least:
            best, least = w, misfit
        room = (n_units - 1) // 2 - len(w)
        if misfit < _EXACT or room < 1:
            break
        found = _climb(_screen(y, residual, generator), y, residual)
        found = _distinct(found, _explained(found, z, left))[: min(_ADDED, room)]
        if len(found) == 0:
            break
        w = _refine(y, values, torch.cat([w, found]))
    zero = x.new_zeros(1, domain.dim)
    phases = torch.cat([torch.zeros(1 + len(best)), torch.full((len(best),), -0.5 * math.pi)]).to(x)
    return CosineField(centre, scale, torch.cat([zero, best, best]), phases), least


def _candidates(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Frequencies (n, d), most of them in few coordinates."""
    active = torch.randint(1, min(d, _ACTIVE) + 1, (n,), generator=generator)
    active[torch.rand(n, generator=generator) < _FULL] = d
    chosen = torch.rand(n, d, generator=generator).argsort(1).argsort(1) < active[:, None]
    # a half wave over the box of side 2 has frequency pi / 2
    size = 0.5 * math.pi * _HALF_WAVES
    return chosen * size * (2.0 * torch.rand(n, d, generator=generator, dtype=torch.float64) - 1.0)


def _explained(w: Tensor, y: Tensor, residual: Tensor) -> Tensor:
    """Mean square of the residual (n,) that the sine and cosine of each frequency (k, d) would take away, (k,)."""
    angles = y @ w.mT
    cos, sin = angles.cos(), angles.sin()
    by_cos, by_sin = residual @ cos / len(y), residual @ sin / len(y)
    # a little more than the mean squares, so that the sine of a frequency near zero explains nothing
    cc, ss, cs = cos.square().mean(0) + 1e-4, sin.square().mean(0) + 1e-4, (cos * sin).mean(0)
    return (ss * by_cos**2 - 2.0 * cs * by_cos * by_sin + cc * by_sin**2) / (cc * ss - cs**2)


def _screen(y: Tensor, residual: Tensor, generator: torch.Generator) -> Tensor:
    """The best of many candidates; single precision is enough to rank them."""
    many = _candidates(_CANDIDATES, y.shape[1], generator).to(y)
    y32, residual32 = y.float(), residual.float()
    gains = torch.cat([_explained(w, y32, residual32) for w in many.float().split(_CHUNK)])
    return many[gains.topk(_STARTS).indices]


def _climb(w: Tensor, y: Tensor, residual: Tensor) -> Tensor:
    """Frequencies near w (k, d) that explain more; all climb together, none feels another."""
    w = w.clone().requires_grad_(True)
    scale = residual.square().mean()
    optimizer = torch.optim.LBFGS([w], max_iter=_ASCENT, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -(_explained(w, y, residual) / scale).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach()


def _distinct(w: Tensor, gains: Tensor) -> Tensor:
    """Of the frequencies (k, d) those that are not nearly the same as a better one, the best first."""
    kept: list[Tensor] = []
    for row in w[gains.argsort(descending=True)]:
        if all(float(min((row - other).norm(), (row + other).norm())) > 0.25 * math.pi for other in kept):
            kept.append(row)
    return torch.stack(kept)


def _design(y: Tensor, w: Tensor) -> Tensor:
    angles = y @ w.mT
    return torch.cat([torch.ones_like(y[:, :1]), angles.cos(), angles.sin()], 1)


def _last_layer(y: Tensor, values: Tensor, w: Tensor) -> Tensor:
    design = _design(y, w)
    gram = design.mT @ design / len(y)
    gram = gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    return torch.linalg.solve(gram, design.mT @ values / len(y))


class _Fit:
    """Frequencies as the parameters of a least-squares fit whose last layer is always solved for."""

    def __init__(self, y: Tensor, values: Tensor, parameters: Tensor) -> None:
        self.y, self.parameters = y, parameters
        self.w = parameters.reshape(-1, y.shape[1])
        self.design = _design(y, self.w)
        self.coefficients = _last_layer(y, values, self.w)
        self.residual = self.design @ self.coefficients - values
        self.value = 0.5 * float(self.residual.square().mean())

    def model(self) -> tuple[Tensor, Tensor]:
        """Gradient and Gauss-Newton matrix in the frequencies, the last layer following along (Kaufman's matrix)."""
        m, n = len(self.w), len(self.y)
        cos, sin = self.design[:, 1 : m + 1], self.design[:, m + 1 :]
        by_angle = cos * self.coefficients[m + 1 :] - sin * self.coefficients[1 : m + 1]
        jacobian = (by_angle[:, :, None] * self.y[:, None, :]).reshape(n, -1)
        gram = self.design.mT @ self.design
        gram = gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        cross = self.design.mT @ jacobian
        normal = jacobian.mT @ jacobian - cross.mT @ torch.linalg.solve(gram, cross)
        return jacobian.mT @ self.residual / n, normal / n


def _refine(y: Tensor, values: Tensor, w: Tensor) -> Tensor:
    exact = 0.5 * _EXACT**2 * float(values.square().mean())

    def at(parameters: Tensor) -> _Fit | None:
        fit = _Fit(y, values, parameters)
        return fit if math.isfinite(fit.value) else None

    def done(now: _Fit, seen: list[float]) -> bool:
        return now.value < exact or (len(seen) > 1 and seen[-1] > 0.999 * seen[-2])

    fit, _ = levenberg_marquardt(
        _Fit(y, values, w.reshape(-1)), at, lambda now: now.model(), done, max_iterations=_POLISH
    )
    return fit.w
