"""The default sampler on targets with known answers: modes, tails, evidence, and what they cost.

    python benchmarks/samplers.py [--only NAME ...] [--seeds 0 1 2] [--quick] [--json FILE] [--markdown FILE]
                                  [--posteriordb FOLDER]

Prints a Markdown table: for every measure the worst of the seeds, what is required of it, and the CPU seconds of the
fit; fails where a requirement is missed. The targets are those of `tests/reference_targets.py` and, where a folder of
their data is given, the models of `common/posteriors.py`. Energy distances are sliced, in the half convention, of
50 000 draws against as many exact ones; the note has that of two exact samples. Experiments named `flow-..` train
zuko's neural spline flow for as many CPU seconds as our fit took; `peers-..` run what else one would take. They need
`pip install -c constraints.txt -e '.[peers]'`, and run only when they are asked for. `--quick` draws fewer.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import numpy as np
import torch
from common.harness import Benchmark, Experiment, Record
from common.measures import Measure
from common.peers import PEERS, run_peer
from common.posteriors import MODELS, Posterior, read_posterior
from common.spline_flow import kl_of_spline_flow
from reference_targets import TARGETS, ReferenceTarget, sliced_energy_distance
from sklearn.exceptions import ConvergenceWarning

from jkosampler import JKOSampler
from jkosampler.maps import CouplingMap

OVER_THE_FLOW = "KL over the flow's"
SECONDS = 240.0  # of the fit: `max_time`
MOST_CPU, MOST_NETWORKS = 300.0, 200.0  # seconds that a fit may take, and networks that a draw may go through


def fitted(target: ReferenceTarget | Posterior, seed: int, quick: bool) -> tuple[JKOSampler, float]:
    """`JKOSampler(log_target, dim=d).fit()`, within a budget of time, and its CPU seconds."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the verdict says it
        sampler = JKOSampler(
            target.log_density, dim=target.dim, random_state=seed, max_time=10.0 if quick else SECONDS, progress=False
        ).fit()
    return sampler, time.process_time() - began


def n_networks(sampler: JKOSampler) -> int:
    """Networks and affine maps that a draw goes through."""
    steps = [step.inner for step in sampler._fitted.flow.maps]
    return sum(len(step.layers) if isinstance(step, CouplingMap) else 1 for step in steps)


def kl_and_ess(
    sampler: JKOSampler, target: ReferenceTarget | Posterior, x: np.ndarray, log_q: np.ndarray
) -> tuple[float, float]:
    """log Z less the mean log weight, and the effective share of the draws."""
    log_weights = target.log_density(torch.from_numpy(x)).numpy() - log_q
    log_weights = log_weights[np.isfinite(log_weights)]
    weights = np.exp(log_weights - log_weights.max())
    return float(target.log_z - log_weights.mean()), float(weights.sum() ** 2 / (weights**2).sum() / len(weights))


def default_fit(
    seed: int,
    quick: bool,
    *,
    read: Callable[[], ReferenceTarget | Posterior],
    distance: float | None = None,
    weight: float | None = None,
    evidence: float | None = None,
    kl: float | None = None,
    ess: float | None = None,
    of_gaussian: float | None = None,
) -> Iterator[Measure]:
    """A default fit, and what it must reach."""
    target = read()
    sampler, seconds = fitted(target, seed, quick)
    if quick:
        distance = weight = evidence = kl = ess = of_gaussian = None
    note = f"{sampler.n_target_evaluations_} evaluations in {sampler.n_target_calls_} calls"
    yield Measure("CPU seconds of the fit", seconds, MOST_CPU, seconds=seconds, note=note)
    yield Measure("network evaluations of a draw", n_networks(sampler), MOST_NETWORKS)
    n, rng = 5_000 if quick else 50_000, np.random.default_rng(1000 + seed)
    x, log_q = sampler.sample_with_log_density(n, random_state=seed)
    if isinstance(target, ReferenceTarget):
        exact = target.draw(n, rng)
        floor = sliced_energy_distance(target.draw(n, rng), exact, rng)
        found = sliced_energy_distance(x, exact, rng)
        yield Measure("energy distance", found, distance, seconds=seconds, note=f"two exact samples {floor:.2g}")
    found_kl, share = kl_and_ess(sampler, target, x, log_q)
    yield Measure("KL", found_kl, kl, seconds=seconds)
    yield Measure("effective share of draws", share, ess, at_least=True, seconds=seconds)
    yield Measure("log evidence error", abs(sampler.log_evidence_ - target.log_z), evidence, seconds=seconds)
    gaussian = [record.energy + target.log_z for record in sampler.history_ if record.stage == "affine"]
    if of_gaussian is not None and gaussian:
        share = found_kl / gaussian[-1]
        yield Measure("KL over the best Gaussian's", share, of_gaussian, note=f"{gaussian[-1]:.3g} nats")
    if isinstance(target, ReferenceTarget) and target.modes is not None:
        nearest = np.square(x[:, None] - target.modes[None]).sum(2).argmin(1)
        shares = np.bincount(nearest, minlength=len(target.modes)) / n
        error = float(np.abs(shares - 1.0 / len(target.modes)).max())
        yield Measure("weight of a mode, largest error", error, weight, seconds=seconds)
    trusted = float(sampler.diagnose().trustworthy)
    yield Measure("trusted by the verdict (1) or not (0)", trusted, seconds=seconds)


def beside_a_spline_flow(seed: int, quick: bool, *, name: str) -> Iterator[Measure]:
    """KL of a default fit, and of a neural spline flow after the same CPU time."""
    target = TARGETS[name]()
    sampler, seconds = fitted(target, seed, quick)
    n = 5_000 if quick else 50_000
    ours, _ = kl_and_ess(sampler, target, *sampler.sample_with_log_density(n, random_state=seed))
    flow, evaluations = kl_of_spline_flow(target.log_density, target.dim, target.log_z, seconds, seed, n)
    yield Measure("KL", ours, seconds=seconds, note=f"{sampler.n_target_evaluations_} evaluations")
    yield Measure("KL of the flow", flow, seconds=seconds, note=f"{evaluations} evaluations")
    noise = 1e-4  # a KL that is less is nothing that 50 000 draws can tell from zero
    yield Measure(OVER_THE_FLOW, max(ours, noise) / max(flow, noise), None if quick else 2.0)


def beside_peers(seed: int, quick: bool, *, read: Callable[[], ReferenceTarget | Posterior]) -> Iterator[Measure]:
    """The errors of 10 000 draws: of exact ones where there are any, of ours, and of others' samplers.

    Of a posterior with reference moments: the largest error of a mean or a standard deviation, in standard deviations.
    """
    target, n, rng = read(), 1_000 if quick else 10_000, np.random.default_rng(1000 + seed)
    if isinstance(target, ReferenceTarget):
        what, exact = "energy distance", target.draw(n, rng)
        yield Measure(f"{what} of exact draws", standardised_distance(target.draw(n, rng), exact, seed))
        error_of = partial(standardised_distance, exact=exact, seed=seed)
    else:
        what, error_of = "error of means and sds", target.error_of_moments
    sampler, seconds = fitted(target, seed, quick)
    cost = f"{sampler.n_target_evaluations_} evaluations in {sampler.n_target_calls_} calls"
    x = sampler.sample(n, random_state=seed)
    note = f"{cost}, log evidence {sampler.log_evidence_ - target.log_z:+.2g}"
    yield Measure(f"{what} of ours", error_of(x), seconds=seconds, note=note)
    for peer in PEERS:
        found = run_peer(peer, target.log_density, target.dim, n, seed)
        note = f"{found.n_evaluations} evaluations in {found.n_calls} calls"
        if np.isfinite(found.log_z):
            note += f", log evidence {found.log_z - target.log_z:+.2g}"
        yield Measure(f"{what} of {peer}", error_of(found.x), seconds=found.seconds, note=note)


def standardised_distance(x: np.ndarray, exact: np.ndarray, seed: int) -> float:
    """Sliced energy distance in coordinates in which the exact draws have unit deviations."""
    deviation = exact.std(0)
    return sliced_energy_distance(x / deviation, exact / deviation, np.random.default_rng(seed))


def across_seeds(records: list[Record]) -> Iterator[tuple[str, Measure]]:
    """Mean energy distances, and on how many targets our worst KL is at most the flow's."""
    records = [one for one in records if "--quick" not in one["command"]]
    for name, bound in MEAN_DISTANCE.items():
        found = [one["value"] for one in records if (one["experiment"], one["what"]) == (name, "energy distance")]
        if found:
            yield name, Measure(f"energy distance, mean of {len(found)} seeds", float(np.mean(found)), bound)
    ratios = [
        [one["value"] for one in records if one["experiment"] == f"flow-{name}" and one["what"] == OVER_THE_FLOW]
        for name in BESIDE_A_FLOW
    ]
    if all(ratios):
        share = sum(max(ratio) <= 1.0 for ratio in ratios) / len(ratios)
        measure = Measure("share of targets with at most the flow's KL", share, 0.5, at_least=True)
        yield f"flow-{BESIDE_A_FLOW[-1]}", measure


def evidence_interval(seed: int, quick: bool) -> Iterator[Measure]:
    """How often the interval of 95 % covers the evidence: 50 fits of log Gamma(2) variables in the plane.

    Half of them end after a third of the usual evaluations, so that their errors are of some size.
    """

    def log_density(x: torch.Tensor) -> torch.Tensor:
        return (2.0 * x - x.exp()).sum(1)  # Gamma(2) = 1: normalised

    n, covered = 3 if quick else 50, 0
    for i in range(n):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            sampler = JKOSampler(
                log_density, dim=2, random_state=1000 * seed + i, progress=False,
                max_target_evaluations=None if i % 2 else 30_000,
            ).fit()  # fmt: skip
        covered += abs(sampler.log_evidence_) <= 1.96 * sampler.log_evidence_se_
    yield Measure("intervals that cover the evidence, of 50", covered, None if quick else 44.0, at_least=True)


REQUIRED: dict[str, dict[str, float]] = {
    "shifted8modes": {"distance": 1e-4, "weight": 0.01, "evidence": 0.005},
    "shifted8peaky": {"distance": 1e-4, "weight": 0.01, "evidence": 0.005},
    "gmm20": {"distance": 2e-4},
    "gmm50": {"distance": 3e-4},
    "funnel10": {"distance": 3e-3, "kl": 0.02},
    "manywell32": {"evidence": 0.1, "ess": 0.5},
    "gaussian100": {"kl": 0.05},
    "bananas-chain100": {"of_gaussian": 0.5},
    "sine-chain100": {},
}
MEAN_DISTANCE = {"shifted8modes": 5e-5, "shifted8peaky": 5e-5}
OF_POSTERIORS = {"eight_schools_noncentered": 0.01, "mesquite": 0.015, "kidiq": 0.01, "arK": 0.01, "wells": 0.01}
BESIDE_PEERS = ("banana", "bananas10", "funnel10", "shifted8modes", "gmm20", "gaussian100")
BESIDE_A_FLOW = ("banana", "bananas3", "chain5", "funnel4", "bananas10", "bananas30", "funnel10")


def experiments(folder: Path | None) -> dict[str, Experiment]:
    """By name; those of posteriordb where there is its folder."""
    found = {n: Experiment(partial(default_fit, read=TARGETS[n], **needs)) for n, needs in REQUIRED.items()}
    if folder is not None:
        for name in MODELS:
            run = partial(default_fit, read=partial(read_posterior, folder, name), kl=OF_POSTERIORS[name])
            found[name] = Experiment(run)
            run = partial(beside_peers, read=partial(read_posterior, folder, name))
            found[f"peers-{name}"] = Experiment(run, (0,))
    found |= {f"peers-{n}": Experiment(partial(beside_peers, read=TARGETS[n]), (0,)) for n in BESIDE_PEERS}
    found["evidence-interval"] = Experiment(evidence_interval, (0,))
    return found | {f"flow-{n}": Experiment(partial(beside_a_spline_flow, name=n)) for n in BESIDE_A_FLOW}


def benchmark(folder: Path | None) -> Benchmark:
    """With the posteriors of posteriordb where there is a folder of them."""
    script = "samplers.py" if folder is None else "samplers.py --posteriordb FOLDER"
    known = experiments(folder)
    on_demand = tuple(name for name in known if name.startswith(("flow-", "peers-")))
    return Benchmark(script, __doc__.splitlines()[0], known, on_demand, across=across_seeds)


markdown = benchmark(Path("FOLDER")).markdown

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--posteriordb", type=Path, metavar="FOLDER", help="of posteriordb's data, for its models")
    benchmark(parser.parse_known_args()[0].posteriordb).main(parser)
