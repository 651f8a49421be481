"""Aggregation with the mobility rho (1 - rho) and W = |z|^2 (section 4.3), against the entropy solution.

Before the shock that is known along characteristics; the energies are those of Godunov's method.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import reference_pde as pde
from common.measures import Measure, fitted, fresh_particles

from jkosampler import JKOSampler, energies, laws

__all__ = ["aggregation"]

STEP, DRAWS, ENERGY_TIMES = 0.02, 20_000, (0.2, 0.5, 1.0)


def aggregation(seed: int, quick: bool, d: int) -> Iterator[Measure]:
    """Density before the shock, energies after it, the bound rho < 1 at all times, and the steady ball."""
    sampler, seconds = fitted(
        energy=energies.Interaction(lambda z: z.square().sum(-1)),
        mobility="exclusion",
        initial=laws.Parabola(d),
        step_size=STEP,
        n_steps=10 if quick else 100,
        random_state=seed,
    )
    yield from measures(sampler, seed, d, seconds)


def measures(sampler: JKOSampler, seed: int, d: int, seconds: float) -> Iterator[Measure]:
    """What fresh particles of a fit say, as far as it went."""
    mass, highest = pde.aggregation_mass(d), 0.0
    for t, x, log_density in fresh_particles(sampler, DRAWS, 1000 + seed):
        distance, rho = np.linalg.norm(x, axis=1), mass * np.exp(log_density)
        highest = max(highest, float(rho.max()))
        second = float(np.mean(distance**2))
        if round(t, 9) == 0.1:
            error = _relative_l1(rho, pde.aggregation_density(distance, t, d))
            yield Measure("relative L1 error of the density, t = 0.1", error, 0.03, seconds=seconds)
        if round(t, 9) in ENERGY_TIMES:
            exact = _exact_energies(d)[ENERGY_TIMES.index(round(t, 9))]
            error = abs(mass**2 * second / exact - 1.0)
            yield Measure(f"relative error of the energy, t = {t:.3g}", error, 0.03, seconds=seconds)
    yield Measure(f"largest density, t <= {t:.3g}", highest, 1.0, seconds=seconds)
    if round(t, 9) == 2.0:
        # in the ball |x|^2 / R^2 is Beta(d / 2, 1): its mean, and the quantile that few draws exceed
        radii = np.sqrt((1.0 + 2.0 / d) * second), np.quantile(distance, 0.999) / 0.999 ** (1.0 / d)
        for way, radius in zip(("the second moment", "the ball of 99.9 % of the mass"), radii, strict=True):
            error = abs(float(radius) / pde.steady_radius(d) - 1.0)
            yield Measure(f"radius by {way} against the steady ball, t = 2", error, 0.03, seconds=seconds)


def _relative_l1(found: np.ndarray, exact: np.ndarray) -> float:
    """`int |found - exact| / mass` from both densities at draws of the first, and the mass that these never reach."""
    ratio = exact / found
    return float(np.mean(np.abs(1.0 - ratio)) + abs(1.0 - np.mean(ratio)))


@cache
def _exact_energies(d: int) -> np.ndarray:
    return pde.aggregation_entropy_solution(d, ENERGY_TIMES).energies
