"""Is the verdict of `diagnose()` right? Good and bad fits, and how far each law really is from its target.

    python benchmarks/verdict.py [--only NAME ...] [--seeds 0] [--quick] [--json FILE] [--markdown FILE]

Every target (experiments) is fitted in seven ways (measures): by default; by one step; with few evaluations; from a
start that is much too narrow, from one that is much too wide, and from one on a single mode or far out, by fixed steps,
which look for no modes; and after two fixed steps only. The error is the total variation distance between target and
law, `E_p max(0, 1 - q/p)` over exact draws of the target, so that what the law misses is seen. Fails where the draws
were trusted at a distance above 0.17, which an effective share of 0.9, the least that is trusted, can leave at most.
The table is followed by one that counts the fits of each verdict.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import numpy as np
import torch
from common.harness import Benchmark, Experiment, Record
from common.measures import Measure
from reference_targets import TARGETS, ReferenceTarget
from sklearn.exceptions import ConvergenceWarning

from jkosampler import JKOSampler, laws

LARGEST_TRUSTED = 0.17  # half the root of the chi-square divergence 1 / 0.9 - 1
GOOD = 0.05
VERDICTS = {
    "trust these draws for means": "trusted for means and quantiles",
    "trust these draws": "trusted",
    "use with care": "with care",
    "do not trust": "not trusted",
}
NAMES = ("banana", "bananas3", "chain5", "funnel4", "funnel10", "shifted8modes", "mos_2d", "cauchy", "two-modes")
HEADER = ("verdict", "fits", f"distance below {GOOD:g}", f"to {LARGEST_TRUSTED:g}", "above", "largest")


def ways(target: ReferenceTarget, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Parameters of the sampler, by what is done to it."""
    zero, at = torch.zeros(target.dim, dtype=torch.float64), torch.from_numpy(target.draw(1, rng)[0])
    fixed = {"step_size": 0.5, "n_steps": 10}
    return {
        "default": {},
        "one step": {"n_steps": 1},
        "few evaluations": {"max_target_evaluations": 15_000},
        "narrow start": {"initial": laws.Gaussian(zero, 1e-3)},
        "wide start": {"initial": laws.Gaussian(zero, 1e3)},
        "start on one mode": {"initial": laws.Gaussian(at, 1e-2), **fixed},
        "two fixed steps": {"step_size": 0.5, "n_steps": 2},
    }


def distance(sampler: JKOSampler, target: ReferenceTarget, x: np.ndarray) -> tuple[float, float]:
    """Total variation distance of the law from the target, from exact draws x (n, d), with its standard error."""
    points = torch.from_numpy(x)
    log_q = sampler._fitted.flow.log_density_where_defined(points).nan_to_num(nan=-torch.inf)
    log_p = target.log_density(points) - target.log_z
    missing = (1.0 - (log_q - log_p).clamp(max=0.0).exp()).numpy()
    return float(missing.mean()), float(missing.std() / len(missing) ** 0.5)


def said_of(target_name: str, seed: int, quick: bool) -> Iterator[Measure]:
    """The distance of every fit of a target, and the verdict."""
    target, rng = TARGETS[target_name](), np.random.default_rng(1000 + seed)
    x = target.draw(2_000 if quick else 20_000, rng)
    for way, parameters in ways(target, rng).items():
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the verdict says it
            sampler = JKOSampler(
                target.log_density, dim=target.dim, random_state=seed, progress=False,
                max_time=3.0 if quick else 25.0, **parameters,
            ).fit()  # fmt: skip
        seconds = time.process_time() - began
        found, error = distance(sampler, target, x)
        said = sampler.diagnose().verdict
        verdict = next(short for beginning, short in VERDICTS.items() if said.startswith(f"Verdict: {beginning}"))
        allowed = LARGEST_TRUSTED + 3.0 * error if verdict.startswith("trusted") else None
        yield Measure(way, found, allowed, seconds=seconds, note=verdict)


def counted(records: list[Record]) -> str:
    """The second table: how many fits of each verdict are how far from their target."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    for verdict in VERDICTS.values():
        found = np.array([one["value"] for one in records if one["note"] == verdict])
        if len(found):
            near, far = int((found < GOOD).sum()), int((found > LARGEST_TRUSTED).sum())
            cells = [verdict, len(found), near, len(found) - near - far, far, f"{found.max():.2g}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


EXPERIMENTS = {name: Experiment(partial(said_of, name), (0,)) for name in NAMES}
BENCHMARK = Benchmark("verdict.py", __doc__.splitlines()[0], EXPERIMENTS, summary=counted)
markdown = BENCHMARK.markdown

if __name__ == "__main__":
    BENCHMARK.main()
