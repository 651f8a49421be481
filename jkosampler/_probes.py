"""A look from outside the fitted law: is there mass where its own draws never come?

Importance weights at the draws of a law can't see what the draws don't reach. Half of the draws are therefore taken
from a wider law, the probe, and weighted by the mixture of both, `w = gamma / ((q + probe) / 2)`. Where the law is
right these estimate the evidence that it estimates itself, with weights that are never above twice its own; where the
target has mass that the law lacks, they estimate more. Probes are the law that the fit started from, the prior, and
Gaussians wider than the law. What none of them reaches stays unseen.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jkosampler._setup import Setup
from jkosampler.errors import TargetError
from jkosampler.flow import FittedDensities, FittedFlow
from jkosampler.laws import Gaussian, Law
from jkosampler.particles import Particles

__all__ = ["look_outside"]

_DRAWS, _DRAWS_OF_BLACK_BOX = 4000, 500  # of each probe, at most
_WIDER = (3.0, 8.0, 20.0)  # standard deviations of the law
_SIGNIFICANT = 4.0  # standard errors
_MATERIAL = 0.01  # of the mass


def look_outside(
    setup: Setup, flow: FittedFlow | FittedDensities, inside: Particles, log_target: Tensor, generator: torch.Generator
) -> str | None:
    """A sentence that names the mass which a probe has found and the law lacks; None where none has.

    Parameters
    ----------
    setup : Setup
        The problem, with a target.
    flow : FittedFlow
        The fitted law.
    inside : Particles
        Draws of the last law, with their densities.
    log_target : Tensor (n,)
        The log target at these draws.
    generator : torch.Generator
        Source of the probes' draws.
    """
    n = _DRAWS if setup.target is None or setup.target.differentiable else _DRAWS_OF_BLACK_BOX
    some, log_target = inside[:n], log_target[:n]
    found = []
    for name, probe in _probes(setup, inside.x):
        excess, error = _excess(setup, flow, some, log_target, probe, generator)
        if excess > max(_SIGNIFICANT * error, _MATERIAL):
            found.append((excess, name))
    if not found:
        return None
    excess, name = max(found)
    return (
        f"a look from outside, by draws of {name}, finds mass that the law lacks, {excess:.1%} of the target's or more."
    )


def _probes(setup: Setup, x: Tensor) -> list[tuple[str, Law]]:
    mean, covariance = x.mean(0), torch.cov(x.mT).reshape(setup.dim, setup.dim)
    wider = [(f"a Gaussian {factor:g} times as wide", Gaussian(mean, factor**2 * covariance)) for factor in _WIDER]
    start = setup.problem.law if setup.law.has_jump else setup.law
    probes: list[tuple[str, Law]] = [("the initial law", start), *wider]
    if setup.target is not None and setup.target.prior is not None:
        probes.append(("the prior", setup.target.prior))
    return [(name, law.to(setup.dtype, setup.device)) for name, law in probes]


def _excess(
    setup: Setup,
    flow: FittedFlow | FittedDensities,
    inside: Particles,
    log_target: Tensor,
    probe: Law,
    generator: torch.Generator,
) -> tuple[float, float]:
    """Share of the target's mass that the law lacks as the probe sees it, and its standard error."""
    outside = probe.sample((len(inside),), generator=generator)
    try:
        log_targets = [log_target, -setup.problem.energy.potential(outside)[0]]
    except (TargetError, RuntimeError):  # the probe has found where the target fails, not where it has mass
        return 0.0, float("inf")
    log_law = [inside.log_rho, flow.log_density_where_defined(outside)]
    own = (log_target - inside.log_rho).cpu().double().numpy()
    halves = [
        (target - torch.logaddexp(law, probe.log_prob(x)) + np.log(2.0)).cpu().double().numpy()
        for target, law, x in zip(log_targets, log_law, (inside.x, outside), strict=True)
    ]
    if not np.isfinite(own.max()):
        return 0.0, float("inf")
    # the largest of all: a probe may find a weight that is no float beside those of the law's own draws
    top = max(own.max(), halves[0].max(), halves[1].max())
    halves = [np.exp(half - top) for half in halves]
    own = np.exp(own - top)
    both = 0.5 * (halves[0].mean() + halves[1].mean())
    # The law's own estimate and the first half share their draws, so that their noise cancels in the difference.
    noise = np.sqrt((0.5 * halves[0] - own).var() + 0.25 * halves[1].var()) / len(inside) ** 0.5
    return float((both - own.mean()) / both), float(noise / both)
