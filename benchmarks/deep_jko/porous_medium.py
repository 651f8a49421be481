"""Porous medium equation from Barenblatt's profile (section 4.2): each step against the exact JKO step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import reference_pde as pde
from common.measures import Measure, fitted, fresh_particles, relative_l2

from jkosampler import JKOSampler, energies, laws

__all__ = ["SETTINGS", "Setting", "fit", "second_order", "steps"]

DRAWS = 5000


class Setting(NamedTuple):
    """Dimension, exponent, age of the start, step size, number of steps, and the largest density error."""

    d: int
    m: float
    age: float
    tau: float
    n_steps: int
    density_error: float


SETTINGS = {
    "porous-2d": Setting(2, 2.0, 1e-3, 1e-3, 120, 0.02),
    "porous-6d": Setting(6, 2.0, 1e-3, 5e-4, 10, 0.04),
    "porous-10d": Setting(10, 2.0, 1e-3, 5e-4, 7, 0.04),
    "porous-m3": Setting(2, 3.0, 0.02, 0.01, 10, 0.02),
}
SLOW_START = Setting(2, 2.0, 1e-2, 1e-3, 10, 0.02)


def fit(s: Setting, seed: int, order: int = 1) -> tuple[JKOSampler, float]:
    """The fitted flow of a setting, and its CPU seconds."""
    return fitted(
        energy=energies.Power(m=s.m),
        initial=laws.Barenblatt(dim=s.d, m=s.m, age=s.age),
        step_size=s.tau,
        n_steps=s.n_steps,
        order=order,
        random_state=seed,
    )


def steps(seed: int, quick: bool, name: str) -> Iterator[Measure]:
    """The worst step of a flow of first order, by its radius and by its density at fresh particles."""
    s = SETTINGS[name]
    if quick:
        s = s._replace(n_steps=min(s.n_steps, 4))
    sampler, seconds = fit(s, seed)
    ages = [s.age]
    for _ in range(s.n_steps):
        ages.append(pde.barenblatt_step(ages[-1], s.tau, s.d, s.m)[1])
    errors = np.array(_errors(sampler, s, seed, ages)).max(axis=0)
    yield Measure("radius by the second moment, relative error of the worst step", errors[0], 0.005, seconds=seconds)
    yield Measure("relative L2 error of the density, worst step", errors[1], s.density_error, seconds=seconds)


def second_order(seed: int, quick: bool) -> Iterator[Measure]:
    """How many times nearer to the PDE the scheme of second order is, where the first step is short for the age."""
    s = SLOW_START
    ages = [s.age + k * s.tau for k in range(s.n_steps + 1)]
    (first, of_first), (second, of_second) = (fit(s, seed, order) for order in (1, 2))
    errors = [np.array(_errors(sampler, s, seed, ages))[-1] for sampler in (first, second)]
    note, seconds = "CPU seconds {:.1f} and {:.1f}; errors {:.1e} and {:.1e}", of_first + of_second
    for i, what in enumerate(("radius", "density")):
        values = [float(error[i]) for error in errors]
        text = note.format(of_first, of_second, *values)
        what = f"error of the {what} against the PDE, t = 0.01: order 1 over order 2"
        yield Measure(what, values[0] / values[1], 5.0, at_least=True, seconds=seconds, note=text)


def _errors(sampler: JKOSampler, s: Setting, seed: int, ages: list[float]) -> list[tuple[float, float]]:
    """Relative errors of radius and density at each time but the first, where they hold the profiles of these ages.

    The radius is that of a Barenblatt profile with the particles' E|x|^2, less the sampling error of the start.
    """
    errors, before = [], float("nan")
    for k, (_, x, log_density) in enumerate(fresh_particles(sampler, DRAWS, 1000 + seed)):
        distance = np.linalg.norm(x, axis=1)
        spread = np.sqrt(np.mean(distance**2)) / pde.barenblatt_radius(ages[k], s.d, s.m)
        if k == 0:
            before = spread
            continue
        exact = pde.barenblatt_density(distance, ages[k], s.d, s.m)
        errors.append((abs(float(spread / before) - 1.0), relative_l2(np.exp(log_density), exact)))
    return errors
