"""How a benchmark of several experiments is run: seeds, the table of the worst of them, and the file that keeps all.

Each experiment is a generator of `measures.Measure`, called with a seed and whether to be quick.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.measures import Measure

__all__ = ["Benchmark", "Experiment", "Record"]

Record = dict[str, Any]
ALL = "all"  # in place of a seed: a measure of several
HEADER = ("experiment", "measure", "required", "aim", "measured", "", "worst seed", "CPU s", "note", "command")


class Experiment(NamedTuple):
    """A generator of measures, called with a seed and whether to be quick, and the seeds that it takes by default."""

    run: Callable[[int, bool], Iterator[Measure]]
    seeds: tuple[int, ...] = (0, 1, 2)


class Benchmark:
    """Experiments by name.

    Parameters
    ----------
    script : str
        Its file, for the commands in the table.
    about : str
        What `--help` says first.
    experiments : dict
    on_demand : collection of str
        Those that only `--only` runs.
    summary : callable, optional
        What follows the table, from all records.
    across : callable, optional
        Measures of several records: names of experiments with a `Measure`. Records without them are ignored.
    """

    def __init__(
        self,
        script: str,
        about: str,
        experiments: dict[str, Experiment],
        on_demand: tuple[str, ...] = (),
        summary: Callable[[list[Record]], str] | None = None,
        across: Callable[[list[Record]], Iterator[tuple[str, Measure]]] | None = None,
    ) -> None:
        self.script, self.about, self.experiments, self.on_demand = script, about, experiments, on_demand
        self.summary, self.across = summary, across

    def main(self, *parents: argparse.ArgumentParser) -> None:
        """Run what the command line asks for; exit with a failure where a requirement is missed.

        `parents` have options that the script itself reads.
        """
        arguments = argparse.ArgumentParser(description=self.about, parents=parents)
        default = [name for name in self.experiments if name not in self.on_demand]
        arguments.add_argument("--only", nargs="*", choices=self.experiments, default=default, metavar="NAME")
        arguments.add_argument("--seeds", type=int, nargs="+", help="default: each experiment's own, mostly 0 1 2")
        arguments.add_argument("--quick", action="store_true", help="one seed, few steps, few draws")
        arguments.add_argument("--json", type=Path, help="every seed's measures; those of other experiments stay there")
        arguments.add_argument("--markdown", type=Path, help="the table of that file, or of this run")
        chosen = arguments.parse_args()
        torch.set_num_threads(1)
        print(self.table([]))
        records: list[Record] = json.loads(chosen.json.read_text()) if chosen.json and chosen.json.exists() else []
        for name in chosen.only:  # what is done is kept, whatever comes after
            command = self.command_of(name, chosen.seeds, chosen.quick)
            measured = [record(name, command, *one) for one in self.run(name, chosen.seeds, chosen.quick)]
            print("\n".join(map(line, worst_of(measured))), flush=True)
            records = [one for one in records if one["experiment"] != name] + measured
            if chosen.json:
                write(chosen.json, json.dumps(records, indent=1) + "\n")
        if chosen.markdown:
            write(chosen.markdown, self.markdown(records))
        records = records + self.combined(records)
        print("\n".join(line(one) for one in records if one["seed"] == ALL))
        if self.summary is not None:
            print(f"\n{self.summary(records)}")
        missed = [one for one in worst_of(records) if not one["passes"] and one["experiment"] in chosen.only]
        sys.exit(f"{len(missed)} requirements were missed" if missed else 0)

    def run(self, name: str, seeds: list[int] | None, quick: bool) -> list[tuple[int, Measure]]:
        """All measures of an experiment, each with its seed."""
        experiment, measured = self.experiments[name], []
        for seed in seeds or experiment.seeds[: 1 if quick else None]:
            began = time.process_time()
            measured += [(seed, measure) for measure in experiment.run(seed, quick)]
            print(f"{name}, seed {seed}: {time.process_time() - began:.0f} CPU seconds in all", file=sys.stderr)
        return measured

    def combined(self, records: list[Record]) -> list[Record]:
        """The measures of several records."""
        found = [] if self.across is None else self.across(records)
        return [record(name, self.command_of(name, None, False), ALL, measure) for name, measure in found]

    def command_of(self, name: str, seeds: list[int] | None, quick: bool) -> str:
        chosen = f" --seeds {' '.join(map(str, seeds))}" if seeds else ""
        return f"python benchmarks/{self.script} --only {name}{chosen}{' --quick' * quick}"

    def markdown(self, records: list[Record]) -> str:
        """The table of a file of records, and what follows it."""
        records = records + self.combined(records)
        return self.table(records) + "\n" + ("" if self.summary is None else f"\n{self.summary(records)}\n")

    def table(self, records: list[Record]) -> str:
        """For every measure that of the worst seed, in the order of the experiments."""
        names = list(self.experiments)
        known = [one for one in records if one["experiment"] in names]
        order = sorted(known, key=lambda one: names.index(one["experiment"]))
        head = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        return "\n".join([*head, *map(line, worst_of(order))])


def record(name: str, command: str, seed: int | str, measure: Measure) -> Record:
    """A measure for JSON, which has neither NaN nor infinity."""
    numbers = {key: finite(getattr(measure, key)) for key in ("value", "seconds")}
    kept = {key: getattr(measure, key) for key in ("what", "required", "aim", "at_least", "note")}
    verdict = bool(measure.passes)
    return {"experiment": name, "seed": seed, **kept, **numbers, "passes": verdict, "command": command}


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


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
