"""The flows of the Deep JKO paper (arXiv 2311.06700) against exact solutions, and what they cost.

    python benchmarks/deep_jko.py [--only NAME ...] [--seeds 0 1 2] [--quick] [--json FILE] [--markdown FILE]

Prints a Markdown table: for every measure the worst of the seeds, what is required of it, and the CPU seconds of the
fit; fails where a requirement is missed. Default settings, fresh particles, one thread; the references are
`tests/reference_pde.py`, `tests/reference_line.py` and `tests/oracles.py`.
`--quick` tries every part in minutes, with one seed, few steps and few draws.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common.harness import Benchmark, Experiment
from deep_jko import aggregation, cost, gaussian, kl_flow, porous_medium
from elliptic import reference_computation

EXPERIMENTS = {
    "kl-2d": Experiment(partial(kl_flow.two_to_four, order=1)),
    "kl-2d-order2": Experiment(partial(kl_flow.two_to_four, order=2)),
    "kl-10d": Experiment(kl_flow.ten_dimensions),
    "ornstein-uhlenbeck": Experiment(gaussian.ornstein_uhlenbeck, tuple(range(15))),
    **{name: Experiment(partial(porous_medium.steps, name=name)) for name in porous_medium.SETTINGS},
    "porous-order2": Experiment(porous_medium.second_order),
    "aggregation-1d": Experiment(partial(aggregation.aggregation, d=1)),
    "aggregation-2d": Experiment(partial(aggregation.aggregation, d=2)),
    "paper-recipe": Experiment(cost.paper_recipe, (0,)),
    "scaling": Experiment(cost.scaling, (0,)),
}
ON_DEMAND = ("aggregation-1d", "aggregation-2d")  # the longest
BENCHMARK = Benchmark("deep_jko.py", __doc__.splitlines()[0], EXPERIMENTS, ON_DEMAND)
markdown = BENCHMARK.markdown


if __name__ == "__main__":
    print(f"Reference computation of `benchmarks/elliptic.py`: {reference_computation():.3g} CPU seconds.\n")
    BENCHMARK.main()
