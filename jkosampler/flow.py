"""The fitted flow: a start and the maps of the steps, which push draws forward and pull points back.

`x_0 ~ rho_0`, `x_k = T_k(x_{k-1})`; `log rho_k(x) = log rho_0(x_0) - sum_j log det DT_j` along the path that ends at x
(equations 17 to 19 of arXiv 2311.06700). A time between two steps means the displacement inside the step:
`x + s grad phi(x)`, or inner time s for an ODE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from jkosampler._inputs import step_at
from jkosampler.errors import MapInversionError, UnavailableError
from jkosampler.laws import Law
from jkosampler.maps import Map, inversion_error
from jkosampler.particles import Particles

__all__ = ["FittedDensities", "FittedFlow"]

_CHUNK = 16384  # points that are moved at a time: bounds the memory, whatever n


class FittedFlow:
    """The laws `rho_t`, t in [0, times[-1]], of a fitted gradient flow.

    Parameters
    ----------
    law : Law
        The law at t = 0, as the user gave it.
    start : Law
        What the particles carried instead: `law` itself, or its smooth stand-in.
    maps : sequence of K maps
        The steps.
    times : sequence of K + 1 floats
        Flow times of the laws between them, from 0.
    """

    def __init__(self, law: Law, start: Law, maps: Sequence[Map], times: Sequence[float]) -> None:
        self.law, self.start = law, start
        self.maps, self.times = tuple(maps), tuple(times)

    def sample(self, n: int, *, t: float | None, generator: torch.Generator) -> Tensor:
        """n independent draws (n, d) of rho_t."""
        law, path = self._path(t)
        with torch.no_grad():
            parts = []
            for x in law.sample((n,), generator=generator).split(_CHUNK):
                for step, fraction in path:
                    x = step.positions(x) if fraction == 1.0 else step(x, fraction)[0]
                parts.append(x)
        return torch.cat(parts)

    def sample_with_log_density(self, n: int, *, t: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The draws (n, d) of `sample` with the log density (n,) of rho_t at each; NaN where a map folds."""
        law, path = self._path(t)
        draws, log_densities = [], []
        with torch.no_grad():
            for x in law.sample((n,), generator=generator).split(_CHUNK):
                log_rho = law.log_prob(x)
                for step, fraction in path:
                    x, log_det = step(x, fraction)
                    log_rho = log_rho - log_det
                draws.append(x)
                log_densities.append(log_rho)
        return torch.cat(draws), torch.cat(log_densities)

    def log_density(self, x: Tensor, *, t: float | None) -> Tensor:
        """Normalised log density (n,) of rho_t at x (n, d).

        Raises
        ------
        MapInversionError
            At points where a map can't be inverted.
        """
        parts = []
        for i, part in enumerate(x.split(_CHUNK)):
            try:
                parts.append(self._log_density(part, t))
            except MapInversionError as error:
                # the map saw one chunk, pulled back through later steps: name the caller's own points
                raise inversion_error(x, i * _CHUNK + torch.as_tensor(error.indices)) from error
        return torch.cat(parts)

    def log_density_where_defined(self, x: Tensor) -> Tensor:
        """Log density (n,) of the last law at x (n, d); -inf where a map can't be inverted."""
        log_density = torch.full_like(x[:, 0], -torch.inf)
        rows = torch.arange(len(x), device=x.device)
        for _ in range(len(self.maps) + 1):  # each map may refuse some
            try:
                log_density[rows] = self.log_density(x[rows], t=None)
                break
            except MapInversionError as error:
                kept = torch.ones(len(rows), dtype=torch.bool, device=x.device)
                kept[torch.as_tensor(error.indices, device=x.device)] = False
                rows = rows[kept]
        return log_density

    def field(self, x: Tensor, *, t: float | None) -> NoReturn:
        """Raise: the law is no field."""
        raise _no_field()

    def particles(self, n: int, generator: torch.Generator) -> Particles:
        """n independent draws of the last law with their log densities and scores."""
        particles = Particles.draw(self.start if self.maps else self.law, n, generator)
        return particles.push_all(self.maps)

    def _log_density(self, x: Tensor, t: float | None) -> Tensor:
        law, path = self._path(t)
        total = torch.zeros_like(x[:, 0])
        for step, fraction in reversed(path):
            x, log_det = step.inverse(x, fraction)
            total = total + log_det
        return law.log_prob(x) + total

    def _path(self, t: float | None) -> tuple[Law, list[tuple[Map, float]]]:
        """The law to start from and the maps to time t, each with the fraction of it to make."""
        k, fraction = step_at(self.times, t)
        if k == 0:
            return self.law, []
        whole = [(step, 1.0) for step in self.maps[: k - 1]]
        return self.start, [*whole, (self.maps[k - 1], fraction)]


class FittedDensities:
    """The laws `rho_t` of a flow whose densities are networks; between two steps the densities are mixed.

    Parameters
    ----------
    laws : sequence of K + 1 laws
        From the initial one on.
    times : sequence of K + 1 floats
        Their flow times, from 0.
    """

    def __init__(self, laws: Sequence[Law], times: Sequence[float]) -> None:
        self.laws, self.times = tuple(laws), tuple(times)

    def sample(self, n: int, *, t: float | None, generator: torch.Generator) -> Tensor:
        """n independent draws (n, d) of rho_t."""
        before, after, fraction = self._at(t)
        draws = after.sample((n,), generator=generator)
        if fraction < 1.0:
            chosen = torch.rand(n, 1, generator=generator, dtype=torch.float64) < fraction
            draws = torch.where(chosen.to(draws.device), draws, before.sample((n,), generator=generator))
        return draws

    def sample_with_log_density(self, n: int, *, t: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The draws (n, d) of `sample` with the log density (n,) of rho_t at each."""
        draws = self.sample(n, t=t, generator=generator)
        return draws, self.log_density(draws, t=t)

    def log_density(self, x: Tensor, *, t: float | None) -> Tensor:
        """Normalised log density (n,) of rho_t at x (n, d); -inf outside the box."""
        before, after, fraction = self._at(t)
        parts = []
        with torch.no_grad():
            for part in x.split(_CHUNK):
                log_rho = after.log_prob(part)
                if fraction < 1.0:
                    log_rho = torch.logaddexp(
                        before.log_prob(part) + math.log1p(-fraction), log_rho + math.log(fraction)
                    )
                parts.append(log_rho)
        return torch.cat(parts)

    def log_density_where_defined(self, x: Tensor) -> Tensor:
        """Log density (n,) of the last law at x (n, d)."""
        return self.log_density(x, t=None)

    def field(self, x: Tensor, *, t: float | None) -> NoReturn:
        """Raise: the law is no field."""
        raise _no_field()

    def particles(self, n: int, generator: torch.Generator) -> Particles:
        """n independent draws of the last law with their log densities and scores."""
        return Particles.draw(self.laws[-1], n, generator)

    def _at(self, t: float | None) -> tuple[Law, Law, float]:
        """The laws before and after time t, and the share of the latter."""
        k, fraction = step_at(self.times, t)
        return self.laws[max(k - 1, 0)], self.laws[k], fraction if k else 1.0


def _no_field() -> UnavailableError:
    return UnavailableError(
        "this flow is one of densities, not of a field: density(x, t) is u, sample(n, t) draws from it."
    )
