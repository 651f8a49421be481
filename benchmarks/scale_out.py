"""What two processes bring: the speed of a fit under `torchrun`, as a multiple of one process, and what a step needs.

    python benchmarks/scale_out.py [--microseconds 0 10 100 1000] [--processes 2] [--repetitions 1] [--json FILE]
                                   [--markdown FILE]

The posterior of the elliptic problem whose forward model and adjoint are solved by finite volumes, a banded system for each
point and with as many cells as make a point cost about so many microseconds on this machine; 0 is the closed form in
torch, all points at once. Fits by one process and by several take turns, with the same seed, so that both make the same
steps; every fit is by wall-clock, on cores that nothing else should use. `share` is the part of the time of one
process that is spent in the target, and `bound` what Amdahl's law makes of it.
"""

from __future__ import annotations

import argparse
import json
import os
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

HEADER = (
    "| cost of a point, µs | evaluations | s, one process | s, {0} processes | speed | share of the target | bound | rounds "
    "| log evidence, difference |\n|---|---|---|---|---|---|---|---|---|"
)


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
        model = FiniteVolumes(m)
        began = time.perf_counter()
        for _ in range(20):
            model(np.array([0.1, 90.0]))
        if (time.perf_counter() - began) / 20 >= seconds:
            break
        m += max(4, m // 20 * 4)
    return m


def fit(m: int) -> dict[str, Any]:
    """One fit, by this process or by all of the group."""
    torch.set_num_threads(1)
    if m == 0:
        model, numerics = forward.EllipticBVP(), None
    else:
        numerics = FiniteVolumes(m)
        model = forward.BlackBox(numerics, 2, 2, vjp=numerics.vjp, vectorized=False)
    problem = model.posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
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


def child(m: int) -> None:
    """What each process does; the first one prints."""
    dist.init_process_group("gloo")
    found = fit(m)
    if dist.get_rank() == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def measured(m: int, processes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, __file__, "--child", str(m)], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def row(microseconds: float, processes: int, repetitions: int) -> dict[str, Any]:
    """Fits in turns, and the fastest of each."""
    m = cells(1e-6 * microseconds) if microseconds else 0
    runs = [(measured(m, 1), measured(m, processes)) for _ in range(repetitions)]
    one, many = (min((pair[i] for pair in runs), key=lambda run: run["seconds"]) for i in (0, 1))
    share = one["target_seconds"] / one["seconds"]
    bound = 1.0 / (1.0 - share + share / processes)
    return {"microseconds": microseconds, "cells": m, "one": one, "many": many, "share": share, "bound": bound}


def shown(found: dict[str, Any]) -> str:
    one, many = found["one"], found["many"]
    cost = f"{found['microseconds']:g}" if found["microseconds"] else "closed form"
    share = f"{found['share']:.0%} | {found['bound']:.2f}" if found["microseconds"] else " | "
    return (
        f"| {cost} | {one['evaluations']:,} | {one['seconds']:.1f} | {many['seconds']:.1f} "
        f"| {one['seconds'] / many['seconds']:.2f} | {share} | {many['rounds']} "
        f"| {abs(one['log_evidence'] - many['log_evidence']):.0e} |"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--microseconds", type=float, nargs="+", default=[0.0, 10.0, 100.0, 1000.0])
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--repetitions", type=int, default=1)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--markdown", type=Path)
    arguments.add_argument("--child", type=int, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.child is not None:
        child(chosen.child)
        return
    lines, records = [HEADER.format(chosen.processes)], []
    print(lines[0], flush=True)
    for microseconds in chosen.microseconds:
        records.append(row(microseconds, chosen.processes, chosen.repetitions))
        lines.append(shown(records[-1]))
        print(lines[-1], flush=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(records, indent=1) + "\n")
    if chosen.markdown:
        chosen.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
