"""The elliptic inverse problem against its exact posterior: accuracy, evaluations and CPU time over seeds.

    python benchmarks/elliptic.py [--seeds 0 1 2] [--cases NAME ...] [--networks] [--out FILE]

The cases are the paper's start, the same with explicit steps, a start from the prior, and two noises that make the
posterior harder. Prints a Markdown table and writes JSON. Exact answers are the quadratures of
`tests/reference_elliptic.py`. The CPU time stands beside that of a fixed reference computation in the same process
(1000 float32 products of 1000 x 64 by 64 x 64 matrices), whose ratio compares machines better than seconds do.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch

from jkosampler import JKOSampler, engines, forward, laws

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference_elliptic import exact_elliptic

Y, PRIOR_STD, DRAWS = np.array([27.5, 79.7]), 10.0, 50_000
LEVELS = np.array([0.05, 0.5, 0.95])
# noise, whether the start is the paper's, and how steps take the potential
CASES = {
    "paper": (0.1, True, "implicit"),
    "explicit": (0.1, True, "explicit"),
    "prior": (0.1, False, "implicit"),
    "noise-0.2": (0.2, True, "implicit"),
    "noise-0.5": (0.5, True, "implicit"),
}
COLUMNS = {
    "kl": "KL(q‖p)",
    "log_evidence_error": "log evidence, error",
    "mean_error": "means, sd",
    "sd_error": "sds",
    "quantile_error": "quantiles, sd",
    "pareto_k": "k-hat",
    "ess_fraction": "ESS",
    "plateau_error": "P(u1>-1), error",
    "cpu_s": "CPU s",
    "reference_s": "reference s",
    "evaluations": "evaluations",
    "calls": "calls",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments.add_argument("--networks", action="store_true", help="train a network where collocation would do")
    arguments.add_argument("--out", type=Path, default=Path("build/benchmarks/elliptic.json"))
    chosen = arguments.parse_args()
    logging.getLogger("jkosampler").setLevel(logging.ERROR)
    rows = [run(case, seed, chosen.networks) for case in chosen.cases for seed in chosen.seeds]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(rows, indent=1))
    print("| case | seed | " + " | ".join(COLUMNS.values()) + " | verdict |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for row in rows:
        cells = [f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in COLUMNS]
        print(f"| {row['case']} | {row['seed']} | " + " | ".join(cells) + f" | {row['verdict']} |")


def run(case: str, seed: int, networks: bool) -> dict[str, float | int | str]:
    noise, from_paper, potential = CASES[case]
    engine = engines.Lagrangian(n_ridges=0 if networks else None, potential=potential)
    exact = exact_elliptic(noise_std=noise, prior_std=PRIOR_STD)
    problem = forward.EllipticBVP().posterior(y=Y, noise_std=noise, prior_std=PRIOR_STD)
    start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)]) if from_paper else None
    sampler = JKOSampler(problem, metric="kalman", initial=start, engine=engine, random_state=seed, progress=False)
    reference = reference_computation()
    began = time.process_time()
    sampler.fit()
    cpu = time.process_time() - began
    evaluations, calls = sampler.n_target_evaluations_, sampler.n_target_calls_
    report, x = sampler.diagnose(DRAWS), sampler.sample(DRAWS)
    quantiles = np.quantile(x, LEVELS, axis=0).T
    expected = np.stack([exact["quantiles_u1"], exact["quantiles_u2"]])
    return {
        "case": case,
        "seed": seed,
        "kl": exact["log_evidence"] - report.elbo,
        "log_evidence_error": abs(report.log_evidence - exact["log_evidence"]),
        "mean_error": float(np.max(np.abs(x.mean(0) - exact["mean"]) / exact["sd"])),
        "sd_error": float(np.max(np.abs(x.std(0) / exact["sd"] - 1.0))),
        "quantile_error": float(np.max(np.abs(quantiles - expected) / exact["sd"][:, None])),
        "pareto_k": report.pareto_k,
        "ess_fraction": report.ess_fraction,
        "plateau_error": abs(float((x[:, 0] > -1.0).mean()) - exact["plateau_mass"]),
        "cpu_s": cpu,
        "reference_s": reference,
        "evaluations": evaluations,
        "calls": calls,
        "steps": sampler.n_steps_,
        "verdict": report.verdict.removeprefix("Verdict: ").split(":")[0].split(".")[0],
    }


def reference_computation() -> float:
    """CPU seconds of 1000 float32 products of 1000 x 64 by 64 x 64 matrices, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    left, right = torch.ones(1000, 64), torch.ones(64, 64)
    began = time.process_time()
    for _ in range(1000):
        left @ right
    torch.set_num_threads(threads)
    return time.process_time() - began


if __name__ == "__main__":
    main()
