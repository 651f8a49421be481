"""What two processes bring, as a multiple of one, and what the points of a step must cost for that.

    python benchmarks/scale_out.py [--microseconds 0 10 100 1000] [--fits 0 100] [--processes 2] [--json FILE]
                                   [--markdown FILE]

The posterior of the elliptic problem whose forward model and adjoint are solved by finite volumes: for each point a
banded system of as many cells as make a solve cost about so many microseconds on this machine. 0 is the closed form
in torch, all points at once.

*Batches*: values and gradients at 1000 points, by rank 0 alone and by all ranks, in turns in the same processes;
medians of nine (three where a point costs a millisecond).
*Fits* (explicit steps): by one process and by several, one after the other, with the same seed and so the same steps;
`share` is the part of one process's time that is spent in solves, `bound` what Amdahl's law makes of it. Wall-clock:
nothing else should use the cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.linalg import solve_banded

from jkosampler import JKOSampler, _distributed, engines, forward, laws
from jkosampler.targets import TargetEvaluator

BATCHES = (
    "| cost of a solve, µs | cost of a point, µs | ms, rank 0 alone | ms, all ranks | speed | shared at first? |\n"
    "|---|---|---|---|---|---|"
)
FITS = (
    "| cost of a solve, µs | evaluations | steps | s, one process | s, several | speed | share of solves | bound "
    "| shared batches | log evidence, difference |\n|---|---|---|---|---|---|---|---|---|---|"
)
POINTS = 1000


class FiniteVolumes:
    """Solution at 1/4 and 3/4, and its derivative times sensitivities; both solve on m cells."""

    def __init__(self, m: int) -> None:
        self.m, self.seconds = m, 0.0

    def __call__(self, u: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        p = self._solve(np.full(self.m - 1, 1.0 / self.m**2), np.exp(u[0]), np.exp(u[0]) * u[1])
        self.seconds += time.perf_counter() - began
        return p[[self.m // 4 - 1, 3 * self.m // 4 - 1]]

    def vjp(self, u: np.ndarray, s: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        m, load = self.m, np.zeros(self.m - 1)
        load[[m // 4 - 1, 3 * m // 4 - 1]] = s
        adjoint = self._solve(load, np.exp(u[0]), 0.0)
        self.seconds += time.perf_counter() - began
        # a K p = f + a u2 e_last: dp/du1 = -K^-1 f / a, dp/du2 = K^-1 e_last
        return np.array([-adjoint.sum() / m**2, np.exp(u[0]) * adjoint[-1]])

    def _solve(self, load: np.ndarray, a: float, last: float) -> np.ndarray:
        bands = np.empty((3, self.m - 1))
        bands[0] = bands[2] = -a
        bands[1] = 2.0 * a
        load[-1] += last
        return solve_banded((1, 1), bands, load, check_finite=False)


def cells(seconds: float) -> int:
    """As many as make a solve cost so much; at least 8."""
    m = 8
    while m < 10**6:
        model, fastest = FiniteVolumes(m), math.inf
        for _ in range(20):
            began = time.perf_counter()
            model(np.array([0.1, 90.0]))
            fastest = min(fastest, time.perf_counter() - began)
        if fastest >= seconds:
            break
        m += max(4, m // 20 * 4)
    return m


def posterior(m: int) -> tuple[Any, FiniteVolumes | None]:
    """The inverse problem by m cells, with what solves it; by the closed form where m is 0."""
    numerics = FiniteVolumes(m) if m else None
    model = forward.BlackBox(numerics, 2, 2, vjp=numerics.vjp, vectorized=False) if numerics else forward.EllipticBVP()
    return model.posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0), numerics


def fit(m: int) -> dict[str, Any]:
    """One fit, by this process or by all of the group."""
    torch.set_num_threads(1)
    problem, numerics = posterior(m)
    start = laws.Gaussian([0.0, 100.0], np.diag([1.0, 25.0]))
    engine = engines.Lagrangian(potential="explicit")
    sampler = JKOSampler(problem, initial=start, engine=engine, random_state=0, progress=False)
    began = time.perf_counter()
    sampler.fit()
    evidence = sampler.log_evidence_
    seconds = time.perf_counter() - began
    together = _distributed.team()
    return {
        "seconds": seconds,
        "target_seconds": numerics.seconds if numerics else 0.0,
        "evaluations": sampler.n_target_evaluations_,
        "steps": sampler.n_steps_,
        "log_evidence": evidence,
        "rounds": together.n_rounds if together else 0,
        "round_trip": together.round_trip if together else 0.0,
    }


def batch(m: int) -> dict[str, Any]:
    """Seconds of a batch by rank 0 alone and by all, and whether a fit would share it."""
    evaluator = TargetEvaluator(posterior(m)[0])
    x = torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 1] += 100.0
    together = _distributed.team()
    assert together is not None

    def turns() -> dict[str, Any]:
        evaluator.value_and_grad(x)
        shared = together._is_worth_it(evaluator, "gradient", x, 3)
        _distributed._WORTHWHILE = 0.0
        alone, by_all = [], []
        spread = evaluator.spread
        for _ in range(3 if m > 2000 else 9):
            for seconds, way in ((alone, None), (by_all, spread)):
                evaluator.spread = way
                began = time.perf_counter()
                evaluator.value_and_grad(x)
                seconds.append(time.perf_counter() - began)
        return {"alone": statistics.median(alone), "all": statistics.median(by_all), "shared": shared}

    return {**together.led("batch", [evaluator], turns), "round_trip": together.round_trip}


def child(what: str, m: int) -> None:
    """What each process does; the first one prints."""
    dist.init_process_group("gloo")
    found = fit(m) if what == "fit" else batch(m)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measured(what: str, m: int, processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = [__file__, "--child", what, str(m)]
    done = subprocess.run([*command, *child], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def both(microseconds: float, m: int, processes: int) -> dict[str, Any]:
    one, many = measured("fit", m, 1), measured("fit", m, processes)
    share = one["target_seconds"] / one["seconds"]
    bound = 1.0 / (1.0 - share + share / processes)
    return {"microseconds": microseconds, "cells": m, "one": one, "many": many, "share": share, "bound": bound}


def cost(microseconds: float) -> str:
    return f"{microseconds:g}" if microseconds else "closed form"


def markdown(records: dict[str, Any]) -> str:
    """Both tables."""
    batches, fits = map(shown_batch, records["batches"]), map(shown_fit, records["fits"])
    return "\n".join([BATCHES, *batches, "", FITS, *fits]) + "\n"


def shown_batch(found: dict[str, Any]) -> str:
    return (
        f"| {cost(found['microseconds'])} | {1e6 * found['alone'] / POINTS:.0f} | {1e3 * found['alone']:.1f} "
        f"| {1e3 * found['all']:.1f} | {found['alone'] / found['all']:.2f} | {'yes' if found['shared'] else 'no'} |"
    )


def shown_fit(found: dict[str, Any]) -> str:
    one, many = found["one"], found["many"]
    share = f"{found['share']:.0%} | {found['bound']:.2f}" if found["microseconds"] else " | "
    return (
        f"| {cost(found['microseconds'])} | {one['evaluations']} | {one['steps']} "
        f"| {one['seconds']:.1f} | {many['seconds']:.1f} "
        f"| {one['seconds'] / many['seconds']:.2f} | {share} | {many['rounds']} "
        f"| {abs(one['log_evidence'] - many['log_evidence']):.0e} |"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--microseconds", type=float, nargs="*", default=[0.0, 10.0, 100.0, 1000.0])
    arguments.add_argument("--fits", type=float, nargs="*", default=[0.0, 100.0])
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--markdown", type=Path)
    arguments.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.child is not None:
        child(chosen.child[0], int(chosen.child[1]))
        return
    records: dict[str, list[Any]] = {"batches": [], "fits": []}

    print(BATCHES, flush=True)
    sizes = {cost: cells(1e-6 * cost) if cost else 0 for cost in {*chosen.microseconds, *chosen.fits}}
    for value in chosen.microseconds:
        found = {"microseconds": value, "cells": sizes[value], **measured("batch", sizes[value], chosen.processes)}
        records["batches"].append(found)
        print(shown_batch(found), flush=True)
    print(f"\n{FITS}", flush=True)
    for value in chosen.fits:
        records["fits"].append(both(value, sizes[value], chosen.processes))
        print(shown_fit(records["fits"][-1]), flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(records, indent=1) + "\n")
    if chosen.markdown:
        chosen.markdown.write_text(markdown(records))


if __name__ == "__main__":
    main()
