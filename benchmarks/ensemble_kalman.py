"""Inverse problems with and without derivatives, beside the ensemble samplers that one would take for them.

    python benchmarks/ensemble_kalman.py [--only NAME ...] [--seeds 0 1 2] [--quick] [--json FILE] [--markdown FILE]

The elliptic problem of the Deep JKO paper as a black box, against quadratures; Darcy flow with 24 and 48 terms, as a
black box and with gradients, against the long chains of `common/darcy_reference.py`, whose moments are kept in
`docs/benchmarks/darcy_reference.json`; `--reference 24 48` runs them again, with NumPyro. Ours are default fits, for
Darcy flow with `max_time=240`. The others are those of `common/ensembles.py`; EKS and ALDI get as many evaluations as
our fit took, and those without gradient ten times as many too. Fails where a requirement is missed.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from common.ensembles import Walk, aldi, aldi_without_gradient, eks, snapshots
from common.harness import Benchmark, Experiment, Record
from common.inverse_problems import InverseProblem, darcy, elliptic
from common.measures import Measure
from sklearn.exceptions import ConvergenceWarning

from jkosampler import JKOSampler

SECONDS = 240.0  # of a fit to Darcy flow: `max_time`
PARTICLES = 500
SAYS = "trusted by the verdict (1) or not (0): ours"  # what it says is the note
FIRST_STEPS, MIXED_PARTICLES, MIXED_STEPS = 40, 1000, 440  # of EKS, then of ALDI with 440 000 gradients
Needs = dict[str, float]
Sampler = Callable[[InverseProblem, np.random.Generator, int], np.ndarray]


def ours(
    problem: InverseProblem, seed: int, quick: bool, black_box: bool, max_time: float | None, needs: Needs
) -> Iterator[Measure]:
    """A default fit: moments of 50 000 draws, evidence, KL, and what the fit and the evidence took."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the verdict says it
        sampler = JKOSampler(
            problem.posterior(black_box), initial=problem.start, random_state=seed, max_time=max_time, progress=False
        ).fit()
        log_evidence = sampler.log_evidence_
    seconds = time.process_time() - began
    n_evaluations, n_calls = sampler.n_target_evaluations_, sampler.n_target_calls_
    report = sampler.diagnose(5_000 if quick else 50_000)
    x = sampler.sample(5_000 if quick else 50_000, random_state=seed)
    of, known = partial(Measure, seconds=seconds), problem.reference
    means, sds = problem.errors(x)
    note = f"{n_evaluations} evaluations in {n_calls} calls"
    yield of("means, sd: ours", means, needs.get("means"), note=note)
    yield of("sds, relative: ours", sds, needs.get("sds"), note=note)
    yield of("evaluations: ours", n_evaluations, needs.get("evaluations"))
    yield of("calls: ours", n_calls, needs.get("calls"))
    error = abs(log_evidence - float(known["log_evidence"]))
    yield of("log evidence, error: ours", error, needs.get("evidence"), note=f"+- {report.log_evidence_se:.2g}")
    kl = log_evidence - report.elbo
    yield of("KL: ours", kl, note=f"effective share of draws {report.ess_fraction:.2g}")
    if "kl_gaussian" in known:
        gaussian = float(known["kl_gaussian"])
        yield of(
            "KL over the best Gaussian's: ours", kl / gaussian, needs.get("of_gaussian"), note=f"{gaussian:.3g} nats"
        )
    yield of(SAYS, float(report.trustworthy), at_least=True, note=report.verdict)


def of_ensemble(name: str, sampler: Sampler, problem: InverseProblem, seed: int, n_evaluations: int) -> list[Measure]:
    """The errors of an ensemble's snapshots, and what they took."""
    before = problem.n_evaluations, problem.n_gradients, problem.n_calls
    began = time.process_time()
    with np.errstate(over="ignore", invalid="ignore"):
        x = sampler(problem, np.random.default_rng(seed), n_evaluations)
    seconds = time.process_time() - began
    n, n_gradients, n_calls = np.subtract((problem.n_evaluations, problem.n_gradients, problem.n_calls), before)
    note = f"{n} evaluations{f', {n_gradients} with gradient,' * bool(n_gradients)} in {n_calls} calls"
    # an ensemble that explodes is a finding, not a failure of the benchmark
    errors = [error if math.isfinite(error) else 1e9 for error in problem.errors(x)]
    names = f"means, sd: {name}", f"sds, relative: {name}"
    return [Measure(what, error, seconds=seconds, note=note) for what, error in zip(names, errors, strict=True)]


def run_eks(problem: InverseProblem, rng: np.random.Generator, n_evaluations: int, step: float = 1.0) -> np.ndarray:
    start = problem.draw_start(PARTICLES, rng)
    return snapshots(kalman(problem, start, rng, step), steps_of(n_evaluations))


def run_aldi_without_gradient(problem: InverseProblem, rng: np.random.Generator, n_evaluations: int) -> np.ndarray:
    start, y = problem.draw_start(PARTICLES, rng), problem.y / problem.noise_std
    return snapshots(
        aldi_without_gradient(start, problem.predicted, y, problem.prior_std, rng), steps_of(n_evaluations)
    )


def run_aldi(problem: InverseProblem, rng: np.random.Generator, n_evaluations: int) -> np.ndarray:
    return snapshots(aldi(problem.draw_start(PARTICLES, rng), problem.gradient, rng), steps_of(n_evaluations))


def run_eks_then_aldi(problem: InverseProblem, rng: np.random.Generator, n_evaluations: int) -> np.ndarray:
    """As published for such a problem: `n_evaluations` is ignored."""
    walk = kalman(problem, problem.draw_start(MIXED_PARTICLES, rng), rng)
    for _ in range(FIRST_STEPS):
        _, x = next(walk)
    return snapshots(aldi(x, problem.gradient, rng, share=0.2), MIXED_STEPS, n=40)


def kalman(problem: InverseProblem, start: np.ndarray, rng: np.random.Generator, step: float = 1.0) -> Walk:
    return eks(start, problem.predicted, problem.y / problem.noise_std, problem.prior_std, rng, step)


def steps_of(n_evaluations: int) -> int:
    return max(2, n_evaluations // PARTICLES)


def experiment(
    seed: int,
    quick: bool,
    *,
    read: Callable[[], InverseProblem],
    black_box: bool,
    others: tuple[str, ...],
    needs: Needs,
    seconds: float | None = SECONDS,
) -> Iterator[Measure]:
    """Ours, and the others with as many evaluations."""
    problem, found = read(), {}
    limit = 10.0 if quick and seconds is not None else seconds
    for measure in ours(problem, seed, quick, black_box, limit, {} if quick else needs):
        found[measure.what] = measure.value
        yield measure
    for name in others:
        sampler, factor = OTHERS[name]
        for measure in of_ensemble(name, sampler, problem, seed, factor * int(found["evaluations: ours"])):
            found[measure.what] = measure.value
            yield measure
    if needs.get("as_eks"):
        for what in ("means, sd", "sds, relative"):
            ratio = found[f"{what}: ours"] / found[f"{what}: EKS"]
            yield Measure(f"{what}: ours over EKS's", ratio, None if quick else needs["as_eks"])


OTHERS: dict[str, tuple[Sampler, int]] = {
    "EKS": (run_eks, 1),
    "EKS, ten times the evaluations": (run_eks, 10),
    "EKS, ten times as many in steps a tenth as long": (partial(run_eks, step=0.1), 10),
    "ALDI without gradient": (run_aldi_without_gradient, 1),
    "ALDI without gradient, ten times the evaluations": (run_aldi_without_gradient, 10),
    "ALDI": (run_aldi, 1),
    "EKS, then ALDI": (run_eks_then_aldi, 1),
}
WITHOUT = tuple(name for name in OTHERS if name not in ("ALDI", "EKS, then ALDI"))
OF_ELLIPTIC = {"means": 0.05, "sds": 0.05, "evidence": 0.03, "evaluations": 30_000, "calls": 300}
OF_GRADIENT = {"means": 0.1, "sds": 0.08, "of_gaussian": 0.5}
OF_BLACK_BOX = {"means": 0.2, "as_eks": 1.0}
EXPERIMENTS = {
    "elliptic": Experiment(
        partial(experiment, read=elliptic, black_box=True, others=(*WITHOUT, "ALDI"), needs=OF_ELLIPTIC, seconds=None)
    )
}
for dim in (24, 48):
    run = partial(experiment, read=partial(darcy, dim))
    EXPERIMENTS[f"darcy{dim}"] = Experiment(partial(run, black_box=True, others=WITHOUT, needs=OF_BLACK_BOX))
    EXPERIMENTS[f"darcy{dim}-gradient"] = Experiment(
        partial(run, black_box=False, others=("ALDI", "EKS, then ALDI"), needs=OF_GRADIENT)
    )


STAND_INS = (  # for the gradient of the misfit: what that loses, name of the sampler, whether it is given gradients
    ('gradient (`metric="kalman"`)', "exact", "ours", True),
    (
        "emulator, 500 ridges (default without gradient)",
        "outputs that bend along many directions at once; seen in the weights",
        "ours",
        False,
    ),
    ("linear over the ensemble, EKS", "curvature of the model within the ensemble", "EKS", False),
    ("the same, ten times the evaluations", "the same", "EKS, ten times the evaluations", False),
    (
        "linear, ALDI without gradient, ten times",
        "the same; unstable from far",
        "ALDI without gradient, ten times the evaluations",
        False,
    ),
    ("gradient, ALDI", "nothing but its steps' bias", "ALDI", True),
    ("EKS, then gradient ALDI", "nothing but its steps' bias", "EKS, then ALDI", True),
)


def stand_ins(records: list[Record]) -> str:
    """The table of what stands in for the misfit's gradient: errors of the worst seed, of means and of sds."""
    lines = ["| the misfit's gradient | what it loses | elliptic | Darcy, d = 24 | Darcy, d = 48 |", "|---" * 5 + "|"]
    for shown, loses, name, gradient in STAND_INS:
        problems = ("", "darcy24-gradient", "darcy48-gradient") if gradient else ("elliptic", "darcy24", "darcy48")
        cells = [shown, loses, *(errors_of(name, [one for one in records if one["experiment"] == p]) for p in problems)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def errors_of(name: str, records: list[Record]) -> str:
    """Those of the worst seed; what verdicts that do not trust a fit say, and the errors without the worst of these."""
    found = {(one["what"], one["seed"]): one for one in records}
    seeds = sorted({one["seed"] for one in records})

    def worst(of: list[int]) -> str:
        sizes = [max(found[f"{what}: {name}", seed]["value"] for seed in of) for what in ("means, sd", "sds, relative")]
        return ", ".join(f"{size:#.2g}" for size in sizes)

    if not seeds:
        return ""
    verdicts = {seed: found[SAYS, seed]["note"] for seed in seeds} if name == "ours" else {}
    bad, careful = (
        [s for s in verdicts if verdicts[s].startswith(f"Verdict: {says}")] for says in ("do not", "use with")
    )
    remarks = [f"{len(careful)} of {len(seeds)} with care"] * bool(careful)
    if bad:
        others = [seed for seed in seeds if seed not in bad]
        remarks.append(f"{len(bad)} not trusted" + (f", the others {worst(others)}" if others else ""))
    return worst(seeds) + (f" ({'; '.join(remarks)})" if remarks else "")


BENCHMARK = Benchmark("ensemble_kalman.py", __doc__.splitlines()[0], EXPERIMENTS)
markdown = BENCHMARK.markdown
more_tables = {"misfit_gradient.md": stand_ins}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--reference", type=int, nargs="+", metavar="DIM", help="only write these references of Darcy flow"
    )
    dims = parser.parse_known_args()[0].reference
    if dims:
        from common.darcy_reference import write_references  # needs NumPyro, which nothing else here does

        write_references(dims)
        sys.exit()
    logging.getLogger("jkosampler").setLevel(logging.ERROR)
    BENCHMARK.main(parser)
