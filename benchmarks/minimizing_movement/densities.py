"""Wasserstein flows of densities (section 4.2): against exact solutions, on fresh points of the paper's boxes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import reference_pde as pde
import torch
from common.measures import Measure, fitted, relative_l2
from oracles import Problem, ornstein_uhlenbeck, wasserstein_step
from scipy.stats import multivariate_normal

from jkosampler import JKOSampler, domains, energies, engines, laws
from jkosampler.errors import FitError

__all__ = ["EXPERIMENTS"]

TAU = 0.005
POINTS = 4096
LAMBDAS = (0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
ENGINE = "minimizing-movement"


def descent(sampler: JKOSampler, seconds: float) -> Iterator[Measure]:
    """F(u') + d^2 / (2 tau) <= F(u) at every step, on particles that took no part."""
    failures = sum(not record.descends for record in sampler.history_)
    worst = min(record.slack / record.slack_se for record in sampler.history_)
    note = f"F(u) - F(u') - d^2/(2 tau) is at least {worst:.3g} standard errors"
    yield Measure("steps that do not descend", failures, required=0, seconds=seconds, note=note)


def fresh(domain: domains.Box, seed: int) -> np.ndarray:
    return domain.quadrature(POINTS, torch.Generator().manual_seed(1000 + seed)).x.numpy()


def heat(seed: int, quick: bool) -> Iterator[Measure]:
    """Section 4.2.1, between walls."""
    domain, n = domains.Box(-math.pi, math.pi, dim=2), 4 if quick else 40
    sampler, seconds = fitted(
        energy=energies.Entropy(), domain=domain, engine=ENGINE, step_size=TAU, n_steps=n, random_state=seed,
        initial=lambda x: heat_density(x, 1.0),
    )  # fmt: skip
    x = fresh(domain, seed)
    exact, scheme = (heat_density(x, factor) for factor in (math.exp(-n * TAU), (1.0 + TAU) ** -n))
    note = f"paper: a picture; the scheme, linearised {relative_l2(scheme, exact):.2g}"
    error = relative_l2(sampler.density(x), exact)
    yield Measure(f"relative L2 error, t = {n * TAU:g}", error, required=2e-3, seconds=seconds, note=note)
    yield from descent(sampler, seconds)


def lambda_study(seed: int, quick: bool) -> Iterator[Measure]:
    """Section 4.2.6: both trainings of the pair of potentials, by lambda, on the heat flow with networks."""
    n = 2 if quick else 10
    domain = domains.Box(-math.pi, math.pi, dim=2)
    x = fresh(domain, seed)
    exact = heat_density(x, math.exp(-n * TAU))
    note = "paper, at t = 0.25: " + "fails below 1, best at 1"
    for pair in ("max-min", "joint"):
        for lam in (0.01, 1.0) if quick else LAMBDAS:
            engine = engines.MinimizingMovement(
                representation="networks", pair=pair, lam=lam, width=16, n_quadrature=24**2
            )
            sampler = JKOSampler(
                energy=energies.Entropy(), domain=domain, engine=engine, step_size=TAU, n_steps=n, random_state=seed,
                initial=lambda x: heat_density(x, 1.0), progress=False,
            )  # fmt: skip
            began = time.process_time()
            try:
                sampler.fit()
            except FitError:
                what = f"{pair}, lambda = {lam:g}: steps before the potentials run away"
                required = None if pair == "joint" else float(n)
                yield Measure(what, sampler.n_steps_, required, at_least=True, seconds=time.process_time() - began)
                continue
            what = f"{pair}, lambda = {lam:g}: relative L2 error, t = {n * TAU:g}"
            required = 5e-3 if pair == "max-min" else None
            error, seconds = relative_l2(sampler.density(x), exact), time.process_time() - began
            yield Measure(what, error, required, seconds=seconds, note=note)


def heat_density(x: np.ndarray, amplitude: float) -> np.ndarray:
    """The paper's initial density with its cosines damped; for tensors too."""
    cosines = x.cos() if isinstance(x, torch.Tensor) else np.cos(x)
    return (1.0 + 0.2 * amplitude * cosines.sum(1)) / (4.0 * math.pi**2)


def porous_medium(seed: int, quick: bool, *, d: int) -> Iterator[Measure]:
    """Sections 4.2.2 and 4.2.3: from Barenblatt's profile of age .1."""
    n, m, age = 6 if quick else 60, 2.0, 0.1
    sampler, seconds = fitted(
        energy=energies.Power(m), initial=laws.Barenblatt(d, m, age), engine=ENGINE, step_size=TAU, n_steps=n,
        random_state=seed,
    )  # fmt: skip
    r = np.linalg.norm(x := fresh(domains.Box(-3.0, 3.0, dim=d), seed), axis=1)
    scheme_age = age
    for _ in range(n):
        scheme_age = pde.barenblatt_step(scheme_age, TAU, d, m)[1]
    exact, scheme = (pde.barenblatt_density(r, s, d, m) for s in (age + n * TAU, scheme_age))
    found = sampler.density(x)
    note = f"paper: a picture; exact scheme {relative_l2(scheme, exact):.2g}"
    error = relative_l2(found, exact)
    yield Measure(f"relative L2 error, t = {n * TAU:g}", error, required=1e-2, seconds=seconds, note=note)
    yield Measure("relative L2 distance from the exact scheme", relative_l2(found, scheme), seconds=seconds)
    yield from descent(sampler, seconds)


def fokker_planck(seed: int, quick: bool, *, d: int) -> Iterator[Measure]:
    """Sections 4.2.4 and 4.2.5."""
    n, half_side = 6 if quick else 60, 5.0 if d == 2 else 3.5
    problem = fokker_planck_problem(d)
    sampler, seconds = fitted(
        energy=energies.Entropy() + energies.Potential(quadratic(problem)),
        initial=laws.Gaussian(problem.m, problem.S), engine=ENGINE, step_size=TAU, n_steps=n, random_state=seed,
    )  # fmt: skip
    x, weight = fresh(domains.Box(-half_side, half_side, dim=d), seed), (2.0 * half_side) ** d / POINTS
    errors, floors, means, scheme = [], [], [], problem
    for k in range(1, n + 1):
        step = wasserstein_step(scheme, TAU)
        scheme = scheme._replace(m=step.mean, S=step.covariance)
        mean, covariance = ornstein_uhlenbeck(problem, k * TAU)
        exact = multivariate_normal.pdf(x, mean, covariance)
        found = sampler.density(x, t=k * TAU)
        errors.append(relative_l2(found, exact))
        floors.append(relative_l2(multivariate_normal.pdf(x, scheme.m, scheme.S), exact))
        means.append(np.linalg.norm(weight * (found - exact) @ x) / np.linalg.norm(mean))
    paper = "paper < 1e-2" if d == 2 else "paper: a picture"
    for steps in (21, 60):
        if (d == 2 and steps <= n) or steps == n:
            note = f"{paper}; exact scheme {np.mean(floors[:steps]):.2g}"
            what = f"relative L2 error, averaged over {steps} steps"
            required = 6e-3 if d == 2 else 3e-2
            yield Measure(what, float(np.mean(errors[:steps])), required, seconds=seconds, note=note)
    if d == 2:
        what = "distance of the mean from the exact path, relative, worst step"
        yield Measure(what, max(means), required=0.02, seconds=seconds)
    yield from descent(sampler, seconds)


def fokker_planck_problem(d: int) -> Problem:
    """Start N(0, I), and the stationary law of the paper."""
    mean, covariance = np.zeros(d), np.eye(d)
    mean[:2], covariance[:2, :2] = 1.0 / 3.0, [[0.625, -0.375], [-0.375, 0.625]]
    return Problem(np.linalg.inv(covariance), mean, np.zeros(d), np.eye(d))


def quadratic(problem: Problem) -> Callable[[torch.Tensor], torch.Tensor]:
    """(x - b)' A (x - b) / 2."""
    A, b = torch.from_numpy(problem.A), torch.from_numpy(problem.b)
    return lambda x: 0.5 * (((x - b) @ A) * (x - b)).sum(1)


EXPERIMENTS = {
    "heat-w2": heat,
    "porous-1d": partial(porous_medium, d=1),
    "porous-2d": partial(porous_medium, d=2),
    "fokker-planck-2d": partial(fokker_planck, d=2),
    "fokker-planck-4d": partial(fokker_planck, d=4),
}
