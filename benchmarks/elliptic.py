"""The elliptic inverse problem against its exact posterior: accuracy, evaluations and CPU time over seeds.

    python benchmarks/elliptic.py [--seeds 0 1 2] [--cases paper prior noise-0.2 noise-0.5] [--out FILE.json]

Prints a Markdown table and writes JSON. Exact answers are quadratures: u2 is Gaussian given u1, and a trapezium rule
in u1 does the rest. The CPU time stands beside that of a fixed reference computation in the same process (1000 float32
products of 1000 x 64 by 64 x 64 matrices), whose ratio compares machines better than seconds do.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from scipy.special import ndtr

from jkosampler import JKOSampler, forward, laws

Y, PRIOR_STD, DRAWS = np.array([27.5, 79.7]), 10.0, 50_000
LEVELS = np.array([0.05, 0.5, 0.95])
CASES = {"paper": (0.1, True), "prior": (0.1, False), "noise-0.2": (0.2, True), "noise-0.5": (0.5, True)}
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
    arguments.add_argument("--out", type=Path, default=Path("build/benchmarks/elliptic.json"))
    chosen = arguments.parse_args()
    logging.getLogger("jkosampler").setLevel(logging.ERROR)
    rows = [run(case, seed) for case in chosen.cases for seed in chosen.seeds]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(rows, indent=1))
    print("| case | seed | " + " | ".join(COLUMNS.values()) + " | verdict |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for row in rows:
        cells = [f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in COLUMNS]
        print(f"| {row['case']} | {row['seed']} | " + " | ".join(cells) + f" | {row['verdict']} |")


def run(case: str, seed: int) -> dict[str, float | int | str]:
    noise, from_paper = CASES[case]
    exact = exact_posterior(noise)
    problem = forward.EllipticBVP().posterior(y=Y, noise_std=noise, prior_std=PRIOR_STD)
    start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)]) if from_paper else None
    sampler = JKOSampler(problem, metric="kalman", initial=start, random_state=seed, progress=False)
    reference = reference_computation()
    began = time.process_time()
    sampler.fit()
    cpu = time.process_time() - began
    evaluations, calls = sampler.n_target_evaluations_, sampler.n_target_calls_
    report, x = sampler.diagnose(DRAWS), sampler.sample(DRAWS)
    quantiles = np.quantile(x, LEVELS, axis=0).T
    return {
        "case": case,
        "seed": seed,
        "kl": exact["log_evidence"] - report.elbo,
        "log_evidence_error": abs(report.log_evidence - exact["log_evidence"]),
        "mean_error": float(np.max(np.abs(x.mean(0) - exact["mean"]) / exact["sd"])),
        "sd_error": float(np.max(np.abs(x.std(0) / exact["sd"] - 1.0))),
        "quantile_error": float(np.max(np.abs(quantiles - exact["quantiles"]) / exact["sd"][:, None])),
        "pareto_k": report.pareto_k,
        "ess_fraction": report.ess_fraction,
        "plateau_error": abs(float((x[:, 0] > -1.0).mean()) - exact["plateau"]),
        "cpu_s": cpu,
        "reference_s": reference,
        "evaluations": evaluations,
        "calls": calls,
        "steps": sampler.n_steps_,
        "verdict": report.verdict.removeprefix("Verdict: ").split(":")[0].split(".")[0],
    }


def exact_posterior(noise: float) -> dict[str, float | np.ndarray]:
    """Evidence, moments, quantiles and P(u1 > -1) by quadrature."""
    u1 = np.linspace(-8.0, 60.0, 400_001)
    residual = Y[:, None] - 0.09375 * np.exp(-u1)
    precision = 0.625 / noise**2 + 1.0 / PRIOR_STD**2
    centre = (0.25 * residual[0] + 0.75 * residual[1]) / (noise**2 * precision)
    misfit = (residual**2).sum(0) / noise**2 - precision * centre**2
    log_weight = -0.5 * misfit - 0.5 * u1**2 / PRIOR_STD**2 + 0.5 * np.log(2 * np.pi / precision)
    top = log_weight.max()
    weight = np.exp(log_weight - top)
    total = np.trapezoid(weight, u1)
    weight /= weight.sum()
    constants = np.log(2 * np.pi * PRIOR_STD**2) + np.log(2 * np.pi * noise**2)
    mean = np.array([weight @ u1, weight @ centre])
    second = np.array([weight @ u1**2, weight @ centre**2 + 1.0 / precision])
    grid = np.linspace(mean[1] - 12.0, mean[1] + 12.0, 4001)
    keep = weight > 1e-14
    distribution = ndtr((grid[:, None] - centre[keep][::20]) * precision**0.5) @ weight[keep][::20]
    return {
        "log_evidence": float(top + np.log(total) - constants),
        "mean": mean,
        "sd": np.sqrt(second - mean**2),
        "quantiles": np.array(
            [np.interp(LEVELS, np.cumsum(weight), u1), np.interp(LEVELS, distribution / distribution[-1], grid)]
        ),
        "plateau": float(weight[u1 > -1.0].sum()),
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
