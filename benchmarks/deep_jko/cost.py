"""Cost: beside the paper's recipe on the same flow, and against particles, dimensions and steps."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from common.measures import Measure, fitted, relative_l2, slope

from deep_jko.kl_flow import DRAWS, exact_plane_density, four_in, plane_problem
from deep_jko.porous_medium import SETTINGS, fit
from jkosampler import JKOSampler, engines, laws

__all__ = ["paper_recipe", "scaling"]

LINEAR = 1.1  # largest exponent that counts as growth in proportion
PAPER_ITERATIONS, PAPER_STEPS, END = 10_000, 16, 0.4


def paper_recipe(seed: int, quick: bool) -> Iterator[Measure]:
    """Algorithm 2 with the paper's settings on the flow of two Gaussians to four, beside our whole runs.

    Its time is that of a sample of iterations of the first step: later ones cost more, since fresh particles have a
    longer way. Its error is that of the whole flow with as many iterations a step as our run leaves time for.
    """
    per_iteration = _seconds_per_iteration(seed, 20 if quick else 200)
    whole = PAPER_STEPS * PAPER_ITERATIONS * per_iteration
    for order in (1, 2):
        sampler, ours = _flow(seed, order=order)
        note = f"{whole:.0f} s at {1e3 * per_iteration:.1f} ms an iteration over {ours:.1f} s"
        what = f"CPU seconds of the paper's recipe over ours, order {order}"
        yield Measure(what, whole / ours, 100.0, at_least=True, seconds=ours, note=note)
        if quick:
            return
        n_iterations = max(1, round(ours / (PAPER_STEPS * per_iteration)))
        theirs, seconds = _recipe(seed, n_iterations, PAPER_STEPS)
        note = f"{n_iterations} iterations a step; ours {_error(sampler):.2g}"
        what = f"relative L2 error at t = 0.4 of the recipe in the time of order {order}"
        yield Measure(what, _error(theirs), seconds=seconds, note=note)


def _flow(seed: int, **changes: Any) -> tuple[JKOSampler, float]:
    target, parameters = plane_problem(random_state=seed, **changes)
    return fitted(*target, **parameters)


def _recipe(seed: int, n_iterations: int, n_steps: int) -> tuple[JKOSampler, float]:
    engine = engines.Lagrangian.as_in_the_paper(n_iterations=n_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it gives up before its last step
        return _flow(seed, engine=engine, n_steps=n_steps)


def _seconds_per_iteration(seed: int, sample: int) -> float:
    """From two fits of one step, so that what is done once in a step drops out."""
    few, many = (_recipe(seed, n, 1)[1] for n in (sample // 4, sample // 4 + sample))
    return (many - few) / sample


def _error(sampler: JKOSampler) -> float:
    """At t = 0.4, or NaN for a fit that did not come so far."""
    if sampler.times_[-1] < END - 1e-9:
        return float("nan")
    x, log_density = sampler.sample_with_log_density(DRAWS, t=END, random_state=1000)
    return relative_l2(np.exp(log_density), exact_plane_density(x, END))


def scaling(seed: int, quick: bool) -> Iterator[Measure]:
    """CPU seconds of a KL step against particles and dimension, and of the use of a law against its steps."""
    yield from _against_particles(seed, (1000, 10_000) if quick else (1000, 10_000, 100_000))
    yield from _against_dimension(seed, (2, 4) if quick else (2, 4, 8, 16, 32, 64))
    yield from _against_steps(seed, (10, 20) if quick else (10, 40, 160))


def _against_particles(seed: int, counts: tuple[int, ...]) -> Iterator[Measure]:
    times = []
    for count in counts:
        times.append(_flow(seed, n_particles=count, n_steps=3)[1] / 3.0)
        yield Measure(f"a step with {count} particles, CPU seconds", times[-1])
    yield Measure("exponent in the number of particles", slope(list(counts), times), LINEAR)


def _against_dimension(seed: int, dimensions: tuple[int, ...]) -> Iterator[Measure]:
    times = []
    for d in dimensions:
        start = laws.Gaussian(np.zeros(d), np.eye(d))
        sampler, seconds = fitted(
            four_in(d).log_prob, metric="wasserstein", initial=start, step_size=0.2, n_steps=1, random_state=seed
        )
        times.append(seconds)
        step = sampler.history_[0]
        note = f"{step.stage}, {step.n_iterations} iterations, optimality gap {step.optimality_gap:.1e} nats"
        yield Measure(f"a step in {d} dimensions, CPU seconds", seconds, note=note)
    yield Measure("exponent in the dimension", slope(list(dimensions), times))


def _against_steps(seed: int, counts: tuple[int, ...]) -> Iterator[Measure]:
    sampling, pulling = [], []
    sampler, _ = fit(SETTINGS["porous-2d"]._replace(n_steps=max(counts)), seed)
    for count in counts:
        t = sampler.times_[count]
        began = time.process_time()
        x = sampler.sample(1000, t=t, random_state=1000)
        sampled = time.process_time()
        sampler.log_density(x, t=t)
        sampling.append(sampled - began)
        pulling.append(time.process_time() - sampled)
        yield Measure(f"sample(1000) after {count} steps, CPU seconds", sampling[-1])
        yield Measure(f"log_density of 1000 points after {count} steps, CPU seconds", pulling[-1])
    for what, times in (("sample", sampling), ("log_density", pulling)):
        yield Measure(f"exponent of {what} in the number of steps", slope(list(counts), times), LINEAR)
