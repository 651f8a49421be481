"""The flows of the deep minimizing movement paper (arXiv 2109.14851) against exact solutions, and what they cost.

    python benchmarks/minimizing_movement.py [--only NAME ...] [--seeds 0 1 2] [--quick] [--json FILE] [--markdown FILE]

Prints a Markdown table: for every measure the worst of the seeds, what is required of it, and the CPU seconds of the
fit; fails where a requirement is missed. Default settings, fresh points, one thread; the references are
`tests/reference_fields.py`, `tests/reference_pde.py` and `tests/oracles.py`.
`--quick` tries every part with one seed and few steps.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common.harness import Benchmark, Experiment
from minimizing_movement import densities, fields

EXPERIMENTS = {
    **{name: Experiment(run) for name, run in (fields.EXPERIMENTS | densities.EXPERIMENTS).items()},
    "lambda": Experiment(densities.lambda_study, (0,)),
    "paper-recipe": Experiment(fields.adam_in_the_time_of, (0,)),
}
BENCHMARK = Benchmark("minimizing_movement.py", __doc__.splitlines()[0], EXPERIMENTS)
markdown = BENCHMARK.markdown


if __name__ == "__main__":
    BENCHMARK.main()
