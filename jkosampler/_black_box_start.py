"""Where the flow of a target without gradient begins: an emulator and a population of it that agree with the target.

Along gradients that are known only near the particles a flow from a wide start ends in whatever basin it sees first.
So the start is evaluated at some thousand points, an emulator fitted, a population annealed to the emulated target,
which costs nothing, and the target evaluated at some of it; where the two disagree the emulator learns, and the
population is made anew. What comes out is a Gaussian around the population, or a mixture on its modes where these are
separated.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from jkosampler._mixture_fit import Mixtures, with_shares
from jkosampler._scout import annealed, mixture_on
from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.output_emulator import OutputEmulator, n_held_out, usable_power
from jkosampler.errors import ArgumentError, TargetError
from jkosampler.laws import Gaussian, Law

__all__ = ["black_box_start"]

logger = logging.getLogger(__name__)

_FIRST, _FIRST_PER_DIMENSION = 1000, 40  # points of the start that are evaluated
_ROUNDS = 20  # of population and emulator
_NEARLY_ALL = 0.95  # share of the population at which target and emulator
_AGREED, _NEARLY_AGREED = 1.0, 10.0  # may differ by so many nats,
_AGREED_PER_DIMENSION = 0.04  # or by so many a dimension, where that is more
_WIDER = 1.2  # standard deviations of the population, of the Gaussian that a flow begins with
_SHARE_OF_BUDGET = 0.3


def black_box_start(energy: EnergyEvaluator, start: Law, generator: torch.Generator) -> tuple[Law, str] | None:
    """A law near the target and a word for it; None where target and emulator do not come to agree."""
    black_box = energy.black_box
    assert black_box is not None
    try:
        black_box.log_density(start.sample((_FIRST + _FIRST_PER_DIMENSION * start.dim,), generator=generator))
        population, emulated = _agreed(energy, start, generator)
    except (TargetError, ArgumentError, RuntimeError, ValueError) as error:
        logger.info("no start by an emulator: %s", error)
        return None
    if population is None:
        return None
    covariance = torch.cov(population.mT).reshape(start.dim, start.dim)
    found = mixture_on(emulated, population, [], generator)
    if found is not None:
        mixtures = _with_true_shares(energy, found.mixtures, generator)
        return mixtures.law, mixtures.describe()
    return Gaussian(population.mean(0), _WIDER**2 * covariance), "a Gaussian"


def _with_true_shares(energy: EnergyEvaluator, mixtures: Mixtures, generator: torch.Generator) -> Mixtures:
    """The modes with the shares that the target itself gives them: a flow moves no mass between them later."""
    law = mixtures.law
    x = law.sample((n_held_out(law.dim),), generator=generator)
    log_weights = -energy.potential(x)[0] - law.log_prob(x)
    return with_shares(mixtures, x, torch.softmax(log_weights, dim=0))


def _agreed(energy: EnergyEvaluator, start: Law, generator: torch.Generator) -> tuple[Tensor | None, EnergyEvaluator]:
    """A population of the emulated target at which the target agrees, None if there is none, and that target.

    Where rounds or budget end before, one at which they nearly agree will do: it is nearer than any other start.
    """
    black_box, n = energy.black_box, n_held_out(start.dim) // 2
    assert black_box is not None
    nearest, known = _NEARLY_AGREED, None
    for i in range(_ROUNDS):
        beta = usable_power(black_box, n)
        emulated = energy.with_black_box(black_box.emulated(OutputEmulator.of(black_box, generator, beta=beta)))
        population = annealed(emulated, start, generator, resample=True, until=beta)
        if population is None or energy.budget_used() > _SHARE_OF_BUDGET:
            break
        some = population[:n]
        difference = (black_box.log_density(some) + emulated.potential(some)[0]).abs()
        apart = float(difference.quantile(_NEARLY_ALL))
        logger.info("round %d of emulator and target, to the power %.3g: %.3g nats apart", i + 1, beta, apart)
        if beta < 1.0:
            continue
        if apart < nearest:
            nearest, known = apart, population
        if apart < max(_AGREED, _AGREED_PER_DIMENSION * start.dim):
            break
    return known, emulated
