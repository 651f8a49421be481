"""The default sampler on targets with known answers: modes, weights, evidence, and what they cost.

    python benchmarks/samplers.py [--only NAME ...] [--seeds 0 1 2] [--quick] [--json FILE] [--markdown FILE]

Prints a Markdown table: for every measure the worst of the seeds, what is required of it, and the CPU seconds of the
fit; fails where a requirement is missed. The targets are those of `tests/reference_targets.py`. Energy distances are
sliced, in the half convention, of 50 000 draws against as many exact ones; the note has that of two exact samples.
`--quick` draws fewer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import numpy as np
import torch
from common.harness import Benchmark, Experiment
from common.measures import Measure
from reference_targets import TARGETS, sliced_energy_distance

from jkosampler import JKOSampler

SECONDS = 240.0  # of the fit: `max_time`


def default_fit(
    seed: int, quick: bool, *, name: str, distance: float, weight: float | None = None, evidence: float | None = None
) -> Iterator[Measure]:
    """`JKOSampler(log_target, dim=d).fit()`, within a budget of time."""
    target = TARGETS[name]()
    began = time.process_time()
    sampler = JKOSampler(
        target.log_density, dim=target.dim, random_state=seed, max_time=10.0 if quick else SECONDS, progress=False
    ).fit()
    seconds = time.process_time() - began
    evaluations = sampler.n_target_evaluations_
    n, rng = 5_000 if quick else 50_000, np.random.default_rng(1000 + seed)
    x, log_density = sampler.sample_with_log_density(n, random_state=seed)
    exact = target.draw(n, rng)
    found = sliced_energy_distance(x, exact, rng)
    floor = sliced_energy_distance(target.draw(n, rng), exact, rng)
    note = f"{evaluations} evaluations; two exact samples {floor:.2g}"
    if quick:
        distance, weight, evidence = 2.0, None, None
    yield Measure("energy distance", found, distance, seconds=seconds, note=note)
    log_weights = target.log_density(torch.from_numpy(x)).numpy() - log_density
    yield Measure("KL", float(target.log_z - log_weights[np.isfinite(log_weights)].mean()), seconds=seconds)
    yield Measure("log evidence error", abs(sampler.log_evidence_ - target.log_z), evidence, seconds=seconds)
    if target.modes is not None:
        nearest = np.square(x[:, None] - target.modes[None]).sum(2).argmin(1)
        shares = np.bincount(nearest, minlength=len(target.modes)) / n
        error = float(np.abs(shares - 1.0 / len(target.modes)).max())
        yield Measure("weight of a mode, largest error", error, weight, seconds=seconds)
    trusted = float(sampler.diagnose().trustworthy)
    yield Measure("trusted by the verdict (1) or not (0)", trusted, seconds=seconds)


REQUIRED: dict[str, dict[str, float]] = {
    "shifted8modes": {"distance": 1e-4, "weight": 0.01, "evidence": 0.005},
    "shifted8peaky": {"distance": 1e-4, "weight": 0.01, "evidence": 0.005},
    "gmm20": {"distance": 2e-4},
    "gmm50": {"distance": 3e-4},
    "funnel10": {"distance": 3e-3},
}
EXPERIMENTS = {name: Experiment(partial(default_fit, name=name, **needs)) for name, needs in REQUIRED.items()}

if __name__ == "__main__":
    Benchmark("samplers.py", __doc__.splitlines()[0], EXPERIMENTS).main()
