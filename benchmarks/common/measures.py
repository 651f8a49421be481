"""What experiments return, and what several of them need: a timed fit, fresh particles at all times, errors."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from jkosampler import JKOSampler

__all__ = ["Measure", "fitted", "fresh_particles", "mean_and_error", "relative_l2", "slope"]


class Measure(NamedTuple):
    """A measured number, what is required of it and aimed at (None: nothing), and CPU seconds of the fit behind it."""

    what: str
    value: float
    required: float | None = None
    aim: float | None = None
    at_least: bool = False
    seconds: float = math.nan
    note: str = ""

    @property
    def badness(self) -> float:
        """Larger is worse; a number that is none is worst."""
        if math.isnan(self.value):
            return math.inf
        return -self.value if self.at_least else self.value

    @property
    def passes(self) -> bool:
        """Whether it is as required."""
        if self.required is None:
            return not math.isnan(self.value)
        return self.badness <= (-self.required if self.at_least else self.required)


def fitted(*arguments: Any, **parameters: Any) -> tuple[JKOSampler, float]:
    """A fitted sampler, and the CPU seconds of its fit."""
    sampler = JKOSampler(*arguments, progress=False, **parameters)
    began = time.process_time()
    sampler.fit()
    return sampler, time.process_time() - began


def fresh_particles(sampler: JKOSampler, n: int, seed: int) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """The times of all laws of a fit, the first one's included, with n draws (n, d) and their log densities (n,).

    The same particles all the way, which the fit has not seen. (`sample_with_log_density` gives the same at a time,
    but sets out anew for every one: quadratic in the number of steps.)
    """
    flow = sampler._fitted.flow
    x = flow.start.sample((n,), generator=torch.Generator().manual_seed(seed))
    log_density = flow.start.log_prob(x)
    yield flow.times[0], x.numpy(), log_density.numpy()
    for t, step in zip(flow.times[1:], flow.maps, strict=True):
        with torch.no_grad():
            x, log_det = step(x)
            log_density = log_density - log_det
        yield t, x.numpy(), log_density.numpy()


def relative_l2(found: np.ndarray, exact: np.ndarray) -> float:
    """Relative L2 error of values at particles."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """A mean and its standard error."""
    return float(np.mean(values)), float(np.std(values) / math.sqrt(len(values)))


def slope(x: list[float], y: list[float]) -> float:
    """The exponent p of y ~ x^p, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
