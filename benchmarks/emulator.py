"""How well an emulator knows Darcy flow with 24 terms, by the directions in which its ridge functions bend.

    python benchmarks/emulator.py [--only NAME ...] [--seeds 0 1 2] [--quick] [--json FILE] [--markdown FILE]

The emulator of `jkosampler.engines.output_emulator` learns the 20 outputs at points around the posterior (walks of
`common/ensembles.py`, of which three in ten are moved half as far out again) and is compared with the model at others:
standard deviation of the difference of log densities, in nats. The directions are drawn in proportion to a power of the
outputs' sensitivity; at the power zero all directions are alike. Fails where the default is not at most half as wrong
as that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from common.harness import Benchmark, Experiment
from common.inverse_problems import darcy
from common.measures import Measure
from ensemble_kalman import run_eks_then_aldi

from jkosampler.engines import output_emulator

MODULE = "jkosampler.engines.output_emulator"
DEFAULT = output_emulator._ACTIVE
TESTED, FURTHER_SHARE, FURTHER, JITTER = 2000, 0.3, 1.5, 0.05


def errors(seed: int, quick: bool, *, n: int, n_ridges: int, powers: tuple[float, ...]) -> Iterator[Measure]:
    """The emulator's error from n points, for each power."""
    problem, generator = darcy(24), torch.Generator().manual_seed(seed)
    black_box = problem.posterior(black_box=True)
    walk = torch.from_numpy(run_eks_then_aldi(problem, np.random.default_rng(seed), 0))
    mean, factor = walk.mean(0), torch.linalg.cholesky(walk.mT.cov())
    x, fresh = (walk[torch.randint(len(walk), (m,), generator=generator)] for m in (n // 10 if quick else n, TESTED))
    further = int(FURTHER_SHARE * len(x))
    x[:further] = mean + FURTHER * (x[:further] - mean)
    fresh = fresh + JITTER * torch.randn(fresh.shape, generator=generator, dtype=torch.float64) @ factor.mT
    outputs, exact = (black_box.black_box(points) for points in (x, fresh))
    known, expected = black_box.log_density_from(x, outputs), black_box.log_density_from(fresh, exact)
    found = {}
    for power in powers:
        began = time.process_time()
        with patch(f"{MODULE}._ACTIVE", power), patch(f"{MODULE}._MOST_RIDGES", n_ridges):
            emulator = output_emulator.OutputEmulator(x, outputs, known, generator)
        seconds = time.process_time() - began
        found[power] = float((black_box.log_density_from(fresh, emulator(fresh)) - expected).std())
        yield Measure(f"error, nats, at the power {power:g}", found[power], seconds=seconds)
    if DEFAULT in found:
        yield Measure("the default's over that of all directions", found[DEFAULT] / found[0.0], None if quick else 0.5)


EXPERIMENTS = {
    "powers": Experiment(partial(errors, n=5000, n_ridges=500, powers=(0.0, 0.25, DEFAULT, 0.5))),
    "more-points": Experiment(partial(errors, n=50_000, n_ridges=500, powers=(0.0, DEFAULT))),
    "more-ridges": Experiment(partial(errors, n=50_000, n_ridges=2000, powers=(0.0,))),
}
BENCHMARK = Benchmark("emulator.py", __doc__.splitlines()[0], EXPERIMENTS)
markdown = BENCHMARK.markdown

if __name__ == "__main__":
    BENCHMARK.main()
