"""The elliptic inverse problem against its exact posterior: accuracy, evaluations and CPU time.

    python benchmarks/elliptic.py [--only CASE ...] [--seeds 0 1 2] [--networks] [--json FILE] [--markdown FILE]

The cases are the paper's start, the same with explicit steps, or for a solution in numpy without gradient, starts from
the prior, and two noises that make the posterior harder. Exact answers are the quadratures of
`tests/reference_elliptic.py`. The CPU time stands beside that of a fixed reference computation in the same process
(1000 float32 products of 1000 x 64 by 64 x 64 matrices), whose ratio compares machines better than seconds do.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common.harness import Benchmark, Experiment
from common.measures import Measure, fitted

from jkosampler import engines, forward, laws

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference_elliptic import exact_elliptic

Y, PRIOR_STD = np.array([27.5, 79.7]), 10.0
LEVELS = np.array([0.05, 0.5, 0.95])


def fit_of(
    seed: int,
    quick: bool,
    *,
    noise: float = 0.1,
    paper: bool = True,
    potential: str = "implicit",
    black_box: bool = False,
    networks: bool = False,
    required: dict[str, float] | None = None,
) -> Iterator[Measure]:
    """A fit from the paper's start or from the prior, and its errors in 50 000 draws.

    `required` are bounds by the first word of a measure.
    """
    needs, n = required or {}, 5_000 if quick else 50_000
    engine = engines.Lagrangian(n_ridges=0 if networks else None, potential=potential)
    exact = exact_elliptic(noise_std=noise, prior_std=PRIOR_STD)
    model = forward.BlackBox(solution, 2, 2, vectorized=True) if black_box else forward.EllipticBVP()
    problem = model.posterior(y=Y, noise_std=noise, prior_std=PRIOR_STD)
    start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)]) if paper else None
    reference = reference_computation()
    sampler, seconds = fitted(problem, metric="kalman", initial=start, engine=engine, random_state=seed)
    n_evaluations, n_calls = sampler.n_target_evaluations_, sampler.n_target_calls_
    report, x = sampler.diagnose(n), sampler.sample(n)
    quantiles, expected = np.quantile(x, LEVELS, axis=0).T, np.stack([exact["quantiles_u1"], exact["quantiles_u2"]])
    of = partial(Measure, seconds=seconds)
    yield of("KL", exact["log_evidence"] - report.elbo, needs.get("KL"))
    yield of("evidence: error of its log", abs(report.log_evidence - exact["log_evidence"]), needs.get("evidence"))
    yield of("means, sd", float(np.max(np.abs(x.mean(0) - exact["mean"]) / exact["sd"])), needs.get("means"))
    yield of("sds, relative", float(np.max(np.abs(x.std(0) / exact["sd"] - 1.0))), needs.get("sds"))
    yield of("quantiles, sd", float(np.max(np.abs(quantiles - expected) / exact["sd"][:, None])))
    yield of("k-hat", report.pareto_k)
    yield of("effective share of draws", report.ess_fraction, at_least=True)
    yield of("P(u1 > -1), error", abs(float((x[:, 0] > -1.0).mean()) - exact["plateau_mass"]))
    yield of("CPU seconds over the reference computation's", seconds / reference)
    yield of("evaluations", n_evaluations, needs.get("evaluations"))
    yield of("calls", n_calls, needs.get("calls"))
    yield of("trusted by the verdict (1) or not (0)", float(report.trustworthy), at_least=True, note=report.verdict)


def solution(u: np.ndarray) -> np.ndarray:
    """The solution (n, 2) at the observation points, in numpy and without derivatives."""
    x = np.array([0.25, 0.75])
    with np.errstate(over="ignore"):
        return u[:, 1:] * x + np.exp(-u[:, :1]) * (x - x**2) / 2.0


def reference_computation() -> float:
    """CPU seconds of 1000 float32 products of 1000 x 64 by 64 x 64 matrices."""
    left, right = torch.ones(1000, 64), torch.ones(64, 64)
    began = time.process_time()
    for _ in range(1000):
        left @ right
    return time.process_time() - began


AS_THE_FLOW = {"KL": 2e-4}  # what a spline flow reaches in a minute
EXPLICIT = {"KL": 0.01, "means": 0.03, "sds": 0.03, "evaluations": 50_000}
BLACK_BOX = {"evidence": 0.03, "means": 0.05, "sds": 0.05, "evaluations": 30_000, "calls": 300}
CASES = {
    "paper": {"required": AS_THE_FLOW},
    "explicit": {"potential": "explicit", "required": EXPLICIT},
    "black-box": {"black_box": True, "required": BLACK_BOX},
    "black-box-prior": {"black_box": True, "paper": False},
    "prior": {"paper": False, "required": AS_THE_FLOW},
    "noise-0.2": {"noise": 0.2},
    "noise-0.5": {"noise": 0.5},
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--networks", action="store_true", help="train a network where collocation would do")
    networks = parser.parse_known_args()[0].networks
    logging.getLogger("jkosampler").setLevel(logging.ERROR)
    Benchmark(
        "elliptic.py" + " --networks" * networks,
        __doc__.splitlines()[0],
        {name: Experiment(partial(fit_of, networks=networks, **case)) for name, case in CASES.items()},
    ).main(parser)
