"""The law of a density that a function gives on a box: where a density flow between walls starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jkosampler.errors import ArgumentError, StartError, describe_points
from jkosampler.laws.elementary import Law
from jkosampler.laws.foreign import ForeignLaw

if TYPE_CHECKING:
    from jkosampler.domains import Box

__all__ = ["DensityOnBox"]

_POINTS = 2**14
_RARE = 0.01  # share of a law inside the box below which its own draws are too rarely there
_MARGIN = 1.2  # of the largest density seen, for the bound by which draws are rejected
_SEED = 20231
_ROUNDING = 1e-9  # of the sides: a point that is not farther outside is on the wall


class DensityOnBox(ForeignLaw):
    """The law with density proportional to u on a box, and none outside; its mass is the integral of u.

    Its density does not vanish at the walls. It has a score nevertheless: a flow between walls lets no mass through.

    Parameters
    ----------
    density : callable
        u(x) >= 0, (n, d) -> (n,), differentiable by torch.
    box : Box
    law : Law, optional
        The law whose density it is, if there is one: draws are its own, those outside left out.

    Raises
    ------
    StartError
        u is negative or not finite at some points, or zero everywhere.
    """

    def __init__(self, density: Callable[[Tensor], Tensor], box: Box, *, law: Law | None = None) -> None:
        super().__init__(box.dim)
        self.density, self.box, self._law = density, box, law
        method = "gauss" if box.dim <= 2 else "sobol"
        points = box.quadrature(_POINTS, torch.Generator().manual_seed(_SEED), method)
        values = self._values(points.x).detach()
        total = float(points.weights @ values)
        if total <= 0.0:
            raise StartError("initial is zero everywhere in the domain: it must be a density with positive mass.")
        self.mass, self._log_total = total, math.log(total)
        self._bound = _MARGIN * float(values.max())
        self._draws_of_law = law is not None and total > _RARE * law.mass
        # a law's own edge inside the box is one, unlike the walls
        self.has_jump = law is not None and law.has_jump and bool((values == 0.0).any())
        self._points_seen, self._probabilities = points.x, points.weights * values / total

    def _closed_moments(self) -> tuple[Tensor, Tensor]:
        """By quadrature."""
        x, weights = self._points_seen, self._probabilities
        mean = weights @ x
        return mean, (x - mean).mT @ (weights[:, None] * (x - mean))

    def _values(self, x: Tensor) -> Tensor:
        """U (n,) at points of the box."""
        values = self.density(x)
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ArgumentError(f"initial must return a tensor of shape ({len(x)},), got {found}.")
        bad = ~(values.detach() >= 0.0) | values.detach().isinf()
        if bool(bad.any()):
            points, rows = x.detach().cpu().double().numpy(), bad.nonzero()[:, 0].cpu().numpy()
            raise StartError(
                f"initial must be a density, finite and not negative, but is not at {len(rows)} points: "
                f"{describe_points(points, rows)}.",
                points[rows[:10]],
                rows,
            )
        return values.to(x)

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws by rejection; all are made again where the bound turns out too low."""
        parts: list[Tensor] = []
        found = 0
        while self._law is not None and self._draws_of_law and found < n:
            x = self._law.sample((n,), generator=generator)
            parts.append(x[self.box.contains(x)])
            found += len(parts[-1])
        while found < n:
            x = self.box.sample(4 * (n - found) + 256, generator)
            values = self._values(x).detach()
            highest = float(values.max())
            if highest > self._bound:
                self._bound, parts, found = _MARGIN * highest, [], 0
                continue
            kept = x[torch.rand(len(x), generator=generator, dtype=torch.float64) * self._bound < values]
            parts.append(kept)
            found += len(kept)
        return torch.cat(parts)[:n].detach()

    def score(self, x: Tensor) -> Tensor:
        """Gradient (n, d) of `log_prob` at x (n, d), by differences where torch has none."""
        x = self._points(x).detach()
        with torch.inference_mode(False), torch.enable_grad():
            if self._values(self.box.nearest(x[:1]).requires_grad_(True)).requires_grad:
                return super().score(x)
        slope = self.box.differences(self.log_prob, x)
        return torch.where(self.log_prob(x).isneginf()[:, None], 0.0, slope)

    def _log_prob(self, x: Tensor) -> Tensor:
        lower, upper = self.box.lower.to(x), self.box.upper.to(x)
        x = torch.where(x.isfinite().all(-1, keepdim=True), x, lower)  # `log_prob` has its own answer there
        # a map that takes each wall into itself may leave a point of it just outside
        nearest = x + (self.box.nearest(x) - x).detach()
        inside = ((x - nearest).abs() <= _ROUNDING * (upper - lower)).all(-1)
        return torch.where(inside, self._values(nearest).log() - self._log_total, -math.inf)

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return f"law of a given density on {self.box!r}"
