"""`jkosampler demo`: problems of the papers, solved, with their figures, reports and draws in a folder.

The gallery (`examples/`) has the same problems step by step.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jkosampler import _cli_figures as figures
from jkosampler import _plot_style as style
from jkosampler import domains, energies, forward, laws, plotting
from jkosampler._cli_draws import format_of, names_of, write_csv, write_netcdf
from jkosampler._whole_files import whole_file
from jkosampler.errors import MissingDependencyError, WriteError
from jkosampler.estimator import JKOSampler

__all__ = ["demo"]

logger = logging.getLogger(__name__)


def demo(options: argparse.Namespace) -> int:
    """Run the example, and say what it wrote."""
    folder = Path(options.out or f"jkosampler-{options.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"--out {str(folder)!r} can't be made: {error.strerror or error}.") from error
    common = {"random_state": options.seed, "progress": not options.quiet}
    if options.quick:
        common |= {"n_particles": 1000}
    {
        "elliptic": _elliptic,
        "gaussians": _gaussians,
        "porous-medium": _porous_medium,
        "allen-cahn": _allen_cahn,
    }[options.name](folder, options.quick, common)
    return 0


def _elliptic(folder: Path, quick: bool, common: dict[str, Any]) -> None:
    """Section 4.4 of Lee, Wang, Li (arXiv 2311.06700)."""
    problem = forward.EllipticBVP().posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
    start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])
    sampler = JKOSampler(problem, metric="kalman", initial=start, n_steps=6 if quick else None, **common).fit()
    names = names_of(sampler)
    _save(folder, "evolution", figures.evolution(sampler, 2000, 1, names))
    ax = plotting.plot_posterior_contours(problem, sampler.sample(2000, random_state=2), names=names)
    _save(folder, "contours", ax.figure)
    _save(folder, "pairs", figures.pairs(sampler.sample(4000, random_state=2), names))
    _judge_and_draw(folder, sampler)


def _gaussians(folder: Path, quick: bool, common: dict[str, Any]) -> None:
    """Section 4.1 of the same: the flow of the Kullback-Leibler divergence, from two modes to four."""
    variance = 0.25
    start = laws.Mixture([0.5] * 2, [laws.Gaussian([a, 0.0], variance) for a in (-1.2, 1.2)])
    places = [(a, b) for a in (-2.0, 2.0) for b in (-2.0, 2.0)]
    target = laws.Mixture([0.25] * 4, [laws.Gaussian(place, variance) for place in places])
    steps: dict[str, Any] = {"step_size": 0.025, "n_steps": 2 if quick else 20}
    sampler = JKOSampler(target.log_prob, metric="wasserstein", initial=start, **steps, **common).fit()
    _save(folder, "evolution", figures.evolution(sampler, 4000, 1, names_of(sampler)))
    _save(folder, "energy", figures.energy(sampler))
    _judge_and_draw(folder, sampler)


def _porous_medium(folder: Path, quick: bool, common: dict[str, Any]) -> None:
    """Section 4.2 of the same, beside the exact solution of Barenblatt."""
    age = 1e-3
    sampler = JKOSampler(
        energy=energies.Power(m=2),
        initial=laws.Barenblatt(dim=2, m=2, age=age),
        step_size=1e-3,
        n_steps=3 if quick else 120,
        **common,
    ).fit()
    _save(folder, "evolution", figures.evolution(sampler, 3000, 1, names_of(sampler)))
    times = sampler.times_[1:]
    heights = [float(laws.Barenblatt(2, 2, age + t).log_prob(torch.zeros(1, 2)).exp()) for t in times]
    energy = [record.energy for record in sampler.history_]
    ax = plotting.plot_energy(times, energy, exact=2.0 / 3.0 * np.array(heights))
    ax.set(xscale="log", yscale="log")
    _save(folder, "energy", ax.figure)
    x, log_density = sampler.sample_with_log_density(3000, random_state=1)
    solution = laws.Barenblatt(2, 2, age + float(times[-1]))
    line = torch.zeros(200, 2, dtype=torch.float64)
    line[:, 0] = torch.linspace(0.0, float(solution.radius), 200)
    exact = (line[:, 0].numpy(), solution.log_prob(line).exp().numpy())
    defined = np.isfinite(log_density)
    profile = style.new_figure(4.4, 3.2).subplots()
    plotting.plot_profile(
        np.linalg.norm(x[defined], axis=1), np.exp(log_density[defined]), exact=exact, name="|x|", ax=profile
    )
    _save(folder, "profile", profile.figure)
    _draws(folder, sampler)


def _allen_cahn(folder: Path, quick: bool, common: dict[str, Any]) -> None:
    """Section 4.1 of Park, Kim, Son, Hwang (arXiv 2109.14851): phases part, and a ring of one shrinks."""
    epsilon = 0.25
    common.pop("n_particles", None)  # a field has none
    sampler = JKOSampler(
        energy=energies.AllenCahn(epsilon),
        metric="l2",
        domain=domains.Box(-2, 2, dim=2),
        initial=lambda x: ((0.4 - (x.norm(dim=1) - 1.1).abs()) / (2.0**0.5 * epsilon)).tanh(),
        step_size=0.005,
        n_steps=2 if quick else 40,
        **common,
    ).fit()
    _save(folder, "fields", figures.fields(sampler))
    _save(folder, "energy", figures.energy(sampler))


def _save(folder: Path, name: str, figure: Any) -> None:
    with _announced(folder / f"{name}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _judge_and_draw(folder: Path, sampler: JKOSampler) -> None:
    """The report, also on stdout, and the draws."""
    report = sampler.diagnose()
    logger.info("wrote %s", report.to_html(folder / "report.html"))
    _draws(folder, sampler)
    print(report)


def _draws(folder: Path, sampler: JKOSampler) -> None:
    """As netCDF, or as CSV where that can't be written."""
    try:
        format_of("draws.nc", None)
    except MissingDependencyError as error:
        logger.warning("%s Writing CSV instead.", error)
        with _announced(folder / "draws.csv") as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            write_csv(sampler.sample(4000), names_of(sampler), file)
        return
    write_netcdf(sampler.to_arviz(), folder / "draws.nc")
    logger.info("wrote %s", folder / "draws.nc")


@contextmanager
def _announced(path: Path) -> Iterator[Path]:
    with whole_file(path, "--out") as temporary:
        yield temporary
    logger.info("wrote %s", path)
