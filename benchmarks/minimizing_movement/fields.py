"""L2 flows (section 4.1, and the motivating example of section 4): against exact solutions, on fresh points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import reference_fields as ref
import torch
from common.measures import Measure, fitted, relative_l2

from jkosampler import JKOSampler, domains, energies, engines

__all__ = ["EXPERIMENTS", "adam_in_the_time_of"]

TAU, N_STEPS = 0.005, 40
POINTS = 20_000
PAPER = {"heat-2d": 3.15e-3, "heat-8d": 3.67e-2, "torus": 3.76e-2, "four-points": 6.69e-2}


def in_torch(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A field of numpy for the sampler, whose gradient is made of differences."""
    return lambda x: torch.from_numpy(function(x.detach().numpy()))


def fresh_points(domain: domains.Domain, seed: int) -> np.ndarray:
    return domain.quadrature(POINTS, torch.Generator().manual_seed(1000 + seed), "monte-carlo").x.numpy()


def descent(sampler: JKOSampler, seconds: float) -> Iterator[Measure]:
    """Whether each step satisfies the theorem's hypothesis on fresh points, and the energy falls."""
    records = sampler.history_
    worst = min(record.slack / max(record.slack_se, 1e-300) for record in records)
    rises = sum(after.energy > before.energy for before, after in pairwise(records))
    failures = rises + sum(not record.descends for record in records)
    note = f"F(u) - F(u') - d^2/(2 tau) is at least {worst:.3g} standard errors"
    yield Measure("steps that do not descend", failures, required=0, seconds=seconds, note=note)


def motivating(seed: int, quick: bool) -> Iterator[Measure]:
    """F = kappa / 2 int u^2 on a line: the residual of the Euler-Lagrange equation on fresh points."""
    kappa, tau = 1.0, 0.01
    domain = domains.Box(-math.pi, math.pi, dim=1)
    sampler, seconds = fitted(
        energy=energies.L2Functional(lambda x, u, grad_u: 0.5 * kappa * u**2),
        metric="l2", domain=domain, initial=lambda x: x[:, 0].sin(),
        step_size=tau, n_steps=N_STEPS // (10 if quick else 1), random_state=seed,
    )  # fmt: skip
    x = fresh_points(domain, seed)
    worst = 0.0
    for before, after in pairwise(sampler.times_):
        u, v = sampler.field(x, t=after), sampler.field(x, t=before)
        worst = max(worst, relative_l2((u - v) / tau, -kappa * u))
    note = "paper: a picture; exact scheme 0"
    yield Measure("residual relative to its right side, worst step", worst, required=1e-3, seconds=seconds, note=note)
    yield from descent(sampler, seconds)


def heat(seed: int, quick: bool, *, d: int, order: int) -> Iterator[Measure]:
    modes, name = (ref.HEAT_2D, "heat-2d") if d == 2 else (ref.HEAT_8D, "heat-8d")
    domain = domains.Box(-modes.half_side, modes.half_side, dim=d)
    n = N_STEPS // (10 if quick else 1)
    sampler, seconds = fitted(**heat_problem(d), n_steps=n, order=order, random_state=seed)
    x, t = fresh_points(domain, seed), n * TAU
    exact, scheme = modes.at(x, t), modes.after_steps(x, TAU, n, order)
    required = {(2, 1): 1.3e-3, (2, 2): 1.5e-4, (8, 1): 9e-3, (8, 2): 3e-3}[d, order]
    note = f"paper {PAPER[name]:.3g}; exact scheme {relative_l2(scheme, exact):.3g}"
    found = sampler.field(x, t=t)
    yield Measure(f"relative L2 error, t = {t:g}", relative_l2(found, exact), required, seconds=seconds, note=note)
    yield Measure("relative L2 distance from the exact scheme", relative_l2(found, scheme), seconds=seconds)
    yield from descent(sampler, seconds)


def heat_problem(d: int) -> dict[str, Any]:
    """The arguments of the paper's heat equation."""
    modes = ref.HEAT_2D if d == 2 else ref.HEAT_8D
    return {
        "energy": energies.Dirichlet(modes.kappa),
        "metric": "l2",
        "domain": domains.Box(-modes.half_side, modes.half_side, dim=d),
        "initial": in_torch(modes),
        "step_size": TAU,
    }


@cache
def allen_cahn_references(name: str, n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The PDE's solution and the exact scheme's on a grid."""
    start = (ref.torus if name == "torus" else ref.four_points)(ref.grid(128))
    return ref.allen_cahn_flow(start, n_steps * TAU), ref.allen_cahn_steps(start, TAU, n_steps)


def allen_cahn(seed: int, quick: bool, *, name: str, order: int) -> Iterator[Measure]:
    domain, n = domains.Box(-ref.HALF_SIDE, ref.HALF_SIDE, dim=2), N_STEPS // (10 if quick else 1)
    sampler, seconds = fitted(
        energy=energies.AllenCahn(ref.EPSILON), metric="l2", domain=domain,
        initial=in_torch(ref.torus if name == "torus" else ref.four_points),
        step_size=TAU, n_steps=n, order=order, random_state=seed,
    )  # fmt: skip
    x = fresh_points(domain, seed)[:4000]
    exact, scheme = (ref.at_points(field, x) for field in allen_cahn_references(name, n))
    required = 3e-3 if order == 2 else {"torus": 5e-3, "four-points": 6e-3}[name]
    note = f"paper {PAPER[name]:.3g} on its own data; order 1, exactly solved {relative_l2(scheme, exact):.3g}"
    found = sampler.field(x)
    what = f"relative L2 error, t = {n * TAU:g}"
    yield Measure(what, relative_l2(found, exact), required, seconds=seconds, note=note)
    if order == 1:
        yield Measure("relative L2 distance from the exact scheme", relative_l2(found, scheme), seconds=seconds)
    yield from descent(sampler, seconds)


def disc(seed: int, quick: bool) -> Iterator[Measure]:
    """Heat on the unit disc, from 1 + J0(j1 r); the domain is its membership function."""
    kappa, n = 0.1, 20 // (5 if quick else 1)
    domain = domains.Region(lambda x: x.norm(dim=1) <= 1.0, domains.Box(-1.0, 1.0, dim=2))
    sampler, seconds = fitted(
        energy=energies.Dirichlet(kappa), metric="l2", domain=domain,
        initial=in_torch(lambda x: 1.0 + ref.disc_mode(x)), step_size=TAU, n_steps=n, random_state=seed,
    )  # fmt: skip
    x, rate = fresh_points(domain, seed), kappa * ref.DISC_RATE**2
    mode = ref.disc_mode(x)
    scheme, exact = 1.0 + mode * (1.0 + TAU * rate) ** -n, 1.0 + mode * math.exp(-rate * n * TAU)
    found = sampler.field(x)
    note = f"exact scheme to the PDE {relative_l2(scheme, exact):.3g}, ours {relative_l2(found, exact):.3g}"
    what = "relative L2 distance from the exact scheme"
    yield Measure(what, relative_l2(found, scheme), required=5e-4, seconds=seconds, note=note)
    yield from descent(sampler, seconds)


def adam_in_the_time_of(seed: int, quick: bool, factor: float = 20.0) -> Iterator[Measure]:
    """What the paper's recipe reaches on heat 2-D in so many times our CPU time; its iterations are not printed."""
    n, modes = N_STEPS // (10 if quick else 1), ref.HEAT_2D
    _, ours = fitted(**heat_problem(2), n_steps=n, random_state=seed)
    recipe = partial(engines.MinimizingMovement.as_in_the_paper, n_iterations=20)
    _, sample = fitted(**heat_problem(2), n_steps=1, engine=recipe(), random_state=seed)
    iterations = max(1, round(factor * ours / n / (sample / 20)))
    sampler, seconds = fitted(**heat_problem(2), n_steps=n, engine=recipe(n_iterations=iterations), random_state=seed)
    x = fresh_points(heat_problem(2)["domain"], seed)
    error = relative_l2(sampler.field(x), modes.at(x, n * TAU))
    note = f"{iterations} iterations a step at {1e3 * sample / 20:.0f} ms, {seconds / ours:.1f} times our {ours:.1f} s"
    what = (
        f"relative L2 error of the paper's recipe in {factor:g} times our time, over the paper's {PAPER['heat-2d']:g}"
    )
    yield Measure(what, error / PAPER["heat-2d"], required=1.0, at_least=True, seconds=seconds, note=note)


EXPERIMENTS = {
    "motivating": motivating,
    "heat-2d": partial(heat, d=2, order=1),
    "heat-2d-order2": partial(heat, d=2, order=2),
    "heat-8d": partial(heat, d=8, order=1),
    "heat-8d-order2": partial(heat, d=8, order=2),
    **{
        f"allen-cahn-{name}{'-order2' * (order - 1)}": partial(allen_cahn, name=name, order=order)
        for name in ("torus", "four-points")
        for order in (1, 2)
    },
    "heat-disc": disc,
}
