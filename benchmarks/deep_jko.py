"""The flows of the Deep JKO paper (arXiv 2311.06700) against exact solutions, and what they cost.

    python benchmarks/deep_jko.py [--only NAME ...] [--seeds 0 1 2] [--quick] [--json FILE] [--markdown FILE]

Prints a Markdown table: for every measure the worst of the seeds, what is required of it, and the CPU seconds of the
fit; fails where a requirement is missed. Default settings, fresh particles, one thread; the references are
`tests/reference_pde.py`, `tests/reference_line.py` and `tests/oracles.py`.
`--quick` tries every part in minutes, with one seed, few steps and few draws.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from deep_jko import aggregation, cost, gaussian, kl_flow, porous_medium
from deep_jko.measures import Measure
from elliptic import reference_computation

SEEDS = (0, 1, 2)
Record = dict[str, Any]
HEADER = ("experiment", "measure", "required", "aim", "measured", "", "worst seed", "CPU s", "note", "command")


class Experiment(NamedTuple):
    """A generator of measures, called with a seed and whether to be quick, and the seeds that it takes by default."""

    run: Callable[[int, bool], Iterator[Measure]]
    seeds: tuple[int, ...] = SEEDS


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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = [name for name in EXPERIMENTS if name not in ON_DEMAND]
    arguments.add_argument("--only", nargs="*", choices=EXPERIMENTS, default=default, metavar="NAME")
    arguments.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 2; 0..14 ornstein-uhlenbeck, 0 costs")
    arguments.add_argument("--quick", action="store_true", help="one seed, few steps, few draws")
    arguments.add_argument("--json", type=Path, help="every seed's measures; those of other experiments stay there")
    arguments.add_argument("--markdown", type=Path, help="the table of that file, or of this run")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    print(f"Reference computation of `benchmarks/elliptic.py`: {reference_computation():.3g} CPU seconds.\n")
    print(table([]))
    records: list[Record] = json.loads(chosen.json.read_text()) if chosen.json and chosen.json.exists() else []
    for name in chosen.only:  # what is done is kept, whatever comes after
        command = command_of(name, chosen.seeds, chosen.quick)
        measured = [record(name, command, *one) for one in run(name, chosen.seeds, chosen.quick)]
        print("\n".join(map(line, worst_of(measured))), flush=True)
        records = [one for one in records if one["experiment"] != name] + measured
        if chosen.json:
            write(chosen.json, json.dumps(records, indent=1) + "\n")
    if chosen.markdown:
        write(chosen.markdown, table(records) + "\n")
    missed = [one for one in worst_of(records) if not one["passes"] and one["experiment"] in chosen.only]
    sys.exit(f"{len(missed)} requirements were missed" if missed else 0)


def run(name: str, seeds: list[int] | None, quick: bool) -> list[tuple[int, Measure]]:
    """All measures of an experiment, each with its seed."""
    experiment, measured = EXPERIMENTS[name], []
    for seed in seeds or experiment.seeds[: 1 if quick else None]:
        began = time.process_time()
        measured += [(seed, measure) for measure in experiment.run(seed, quick)]
        print(f"{name}, seed {seed}: {time.process_time() - began:.0f} CPU seconds in all", file=sys.stderr)
    return measured


def command_of(name: str, seeds: list[int] | None, quick: bool) -> str:
    chosen = f" --seeds {' '.join(map(str, seeds))}" if seeds else ""
    return f"python benchmarks/deep_jko.py --only {name}{chosen}{' --quick' * quick}"


def record(name: str, command: str, seed: int, measure: Measure) -> Record:
    """A measure for JSON, which has neither NaN nor infinity."""
    numbers = {key: finite(getattr(measure, key)) for key in ("value", "seconds")}
    kept = {key: getattr(measure, key) for key in ("what", "required", "aim", "at_least", "note")}
    verdict = bool(measure.passes)
    return {"experiment": name, "seed": seed, **kept, **numbers, "passes": verdict, "command": command}


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def table(records: list[Record]) -> str:
    """For every measure that of the worst seed, in the order of `EXPERIMENTS`."""
    known = [one for one in records if one["experiment"] in EXPERIMENTS]
    order = sorted(known, key=lambda one: list(EXPERIMENTS).index(one["experiment"]))
    head = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    return "\n".join([*head, *map(line, worst_of(order))])


def worst_of(records: list[Record]) -> list[Record]:
    """For every measure that of the worst seed."""
    worst: dict[tuple[str, str], Record] = {}
    for one in records:
        key = one["experiment"], one["what"]
        if key not in worst or badness(one) > badness(worst[key]):
            worst[key] = one
    return list(worst.values())


def badness(one: Record) -> float:
    value = math.nan if one["value"] is None else one["value"]
    return Measure(one["what"], value, at_least=one["at_least"]).badness


def line(one: Record) -> str:
    """A row of the table."""
    relation = ">=" if one["at_least"] else "<="
    bounds = [f"{relation} {one[key]:g}" if one[key] is not None else "" for key in ("required", "aim")]
    verdict = ("ok" if one["passes"] else "MISSED") if one["required"] is not None else ""
    value, seconds = (number(one[key], form) for key, form in (("value", ".3g"), ("seconds", ".1f")))
    cells = [one["experiment"], one["what"], *bounds, value or "none", verdict, str(one["seed"]), seconds, one["note"]]
    return "| " + " | ".join(cells) + f" | `{one['command']}` |"


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


if __name__ == "__main__":
    main()
