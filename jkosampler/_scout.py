"""Where the modes of a target are, before a flow sets out: an annealed population, and a mixture fitted to it.

A flow moves no mass between separated modes: each keeps what of the start lies in its basin. So a small population
is annealed from the start to the target along `(1 - beta) log start + beta log target`, with steps of beta that halve
the effective sample size and a few Metropolis-adjusted Langevin moves after each, and so is another from a much wider
start. They are not resampled, as sequential Monte Carlo would: in many dimensions that leaves one mode of many. How
many particles end in a mode therefore says nothing; Gaussian mixtures are fitted to where they are, and their weights,
means and covariances improved by importance-weighted EM on their own draws (`_mixture_fit`). They become the start
where valleys of the target separate their components, and their draws count for the target.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from jkosampler._mixture_fit import Mixtures, fitted, split, updated, with_shares
from jkosampler.diagnostics import psis
from jkosampler.energies import EnergyEvaluator
from jkosampler.errors import ArgumentError, TargetError
from jkosampler.laws import Gaussian, Law

__all__ = ["Scouted", "annealed", "mixture_on", "scout"]

logger = logging.getLogger(__name__)

_POPULATION, _PER_DIMENSION, _LARGEST_POPULATION = 1000, 40, 3000
_WIDER = 30.0  # standard deviations of the start: a second population begins as wide as that
_STAGES = 60  # at most; a target that needs more is left to the flow
_RESAMPLED_STAGES = 300  # where an emulator is the target
_MOVES = 3  # of each particle between two temperatures,
_LAST_MOVES, _MOST_LAST_MOVES = 20, 70  # and at the target, beside one a dimension
_ACCEPTED = 0.57  # share of moves that the size of Langevin proposals aims at
_DRAWS, _DRAWS_PER_DIMENSION, _ROUNDS = 10_000, 1000, 8  # of the mixture, for rounds of importance-weighted EM
_UPDATES_OF_HALVES = 20
_LAST_DRAWS = 50_000  # behind the weights of the components
_GOOD = 0.99  # effective share of the draws that ends these rounds
_VALLEY, _BETWEEN = 2.0, 11  # nats below two means that separate them, among so many points from one to the other
_SHARE_OF_BUDGET = 0.5  # of a fit, that scouting may use
_HOPELESS = 1e-3  # effective share for each round of EM so far: a law that is still farther off does not get near
_USEFUL = 0.1  # effective share of a mixture's draws below which the flow does better from the start itself


class Scouted(NamedTuple):
    """Mixtures near the target, and what their own draws say: evidence lower bound, and effective share."""

    mixtures: Mixtures
    elbo: float
    ess_fraction: float


def scout(energy: EnergyEvaluator, start: Law, generator: torch.Generator) -> Scouted | None:
    """A mixture on the target's modes.

    None where they are not separated, where a mixture of few Gaussians is far from the target, or where the target
    fails: a flow from the start itself meets the same, and says it in its own words.
    """
    try:
        x = annealed(energy, start, generator)
        found = None if x is None else mixture_on(energy, x, _from_afar(energy, start, generator), generator)
    except (TargetError, ArgumentError, RuntimeError, ValueError) as error:
        logger.info("scouting ended early: %s", error)
        return None
    if found is not None:
        logger.info(
            "scouting: %s, lower bound %.4g, effective share %.2g",
            found.mixtures.describe(),
            found.elbo,
            found.ess_fraction,
        )
    return found


def mixture_on(energy: EnergyEvaluator, x: Tensor, others: list[Tensor], generator: torch.Generator) -> Scouted | None:
    """A mixture on separated modes, at which annealed points x (n, d) and others are; None as for `scout`."""
    law = fitted(torch.cat([x, *others]), generator)
    if law is None:
        return None
    base = x[(-energy.potential(x)[0]).argmax()]
    if _connected(energy, law, base):
        return None
    found = _improved(energy, law, generator)
    if found.ess_fraction < _USEFUL:
        logger.info("scouting: %s are far from the target", law.describe())
        return None
    return None if _connected(energy, found.mixtures, base) else found  # modes without weight are gone now


class _Seen(NamedTuple):
    """Points (n, d) with log start, log target (n,) and their gradients (n, d)."""

    x: Tensor
    log_start: Tensor
    log_target: Tensor
    start_score: Tensor
    target_score: Tensor

    @classmethod
    def at(cls, energy: EnergyEvaluator, start: Law, x: Tensor) -> _Seen:
        potential, gradient = energy.potential(x)
        return cls(x, start.log_prob(x), -potential, start.score(x), -gradient)

    def where(self, chosen: Tensor, others: _Seen) -> _Seen:
        """The others where chosen (n,), and these elsewhere."""
        pairs = zip(self, others, strict=True)
        return _Seen(*(torch.where(chosen.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in pairs))

    def at_rows(self, rows: Tensor) -> _Seen:
        """These rows."""
        return _Seen(*(values[rows] for values in self))

    def log_density(self, beta: float) -> Tensor:
        tempered = beta * self.log_target if beta > 0.0 else torch.zeros_like(self.log_target)
        return (1.0 - beta) * self.log_start + tempered

    def score(self, beta: float) -> Tensor:
        return (1.0 - beta) * self.start_score + beta * self.target_score


def annealed(
    energy: EnergyEvaluator,
    start: Law,
    generator: torch.Generator,
    share: float = 1.0,
    *,
    resample: bool = False,
    until: float = 1.0,
) -> Tensor | None:
    """The population (n, d), or a share of it, annealed to some beta; None where it takes too many stages."""
    n = int(share * min(_POPULATION + _PER_DIMENSION * start.dim, _LARGEST_POPULATION))
    now = _Seen.at(energy, start, start.sample((n,), generator=generator))
    beta, size = 0.0, 1.0
    if not bool(now.log_target.isfinite().any()):
        return None
    for _ in range(_RESAMPLED_STAGES if resample else _STAGES):
        if energy.budget_used() > _SHARE_OF_BUDGET:
            break
        log_ratio = now.log_target - now.log_start
        rise = _next_rise(log_ratio, until - beta)
        beta += rise
        if resample:
            weights = torch.softmax(rise * log_ratio, dim=0).cpu()
            now = now.at_rows(torch.multinomial(weights, n, replacement=True, generator=generator).to(now.x.device))
        done = beta >= until * (1.0 - 1e-12)
        now, size = _moved(
            energy,
            start,
            now,
            min(beta, until),
            size,
            min(_LAST_MOVES + start.dim, _MOST_LAST_MOVES) if done else _MOVES,
            generator,
        )
        if done:
            return now.x[now.log_target.isfinite()]
    logger.info("annealing ended at beta = %.2g", beta)
    return None


def _from_afar(energy: EnergyEvaluator, start: Law, generator: torch.Generator) -> list[Tensor]:
    """A population annealed from a much wider Gaussian, if the target can bear it: for modes far from the start."""
    try:
        wide = Gaussian(start.mean, _WIDER**2 * start.covariance)
        found = annealed(energy, wide, generator, share=0.5)
    except (TargetError, ArgumentError, RuntimeError, ValueError) as error:
        logger.info("scouting from a wider start ended early: %s", error)
        return []
    return [] if found is None else [found]


def _next_rise(log_ratio: Tensor, most: float) -> float:
    """The rise of beta that halves the effective sample size of weights, at most so much."""

    def excess(rise: float) -> float:
        weights = torch.softmax(rise * log_ratio, dim=0)
        return float(1.0 / weights.square().sum()) / len(log_ratio) - 0.5

    if excess(most) >= 0.0:
        return most
    smallest = most * 1e-12
    return smallest if excess(smallest) <= 0.0 else float(brentq(excess, smallest, most, rtol=1e-3))


def _moved(
    energy: EnergyEvaluator, start: Law, now: _Seen, beta: float, size: float, n_moves: int, generator: torch.Generator
) -> tuple[_Seen, float]:
    """The population after Metropolis-adjusted Langevin moves, and the size of proposals that suits them."""
    n, d = now.x.shape
    covariance = torch.atleast_2d(torch.cov(now.x.mT))
    covariance = covariance + 1e-10 * covariance.diagonal().mean() * torch.eye(d).to(covariance)
    factor, info = torch.linalg.cholesky_ex(covariance)
    if int(info):
        return now, size
    for _ in range(n_moves):
        noise = torch.randn(n, d, generator=generator, dtype=torch.float64).to(now.x)
        drift = _drift(now, beta, covariance, size)
        proposed = _Seen.at(energy, start, now.x + drift + size * noise @ factor.mT)
        back = now.x - proposed.x - _drift(proposed, beta, covariance, size)
        back = torch.linalg.solve_triangular(factor, back.mT, upper=False).mT / size
        log_ratio = proposed.log_density(beta) - now.log_density(beta)
        log_ratio = log_ratio - 0.5 * back.square().sum(1) + 0.5 * noise.square().sum(1)
        chance = torch.rand(n, generator=generator, dtype=torch.float64).log().to(log_ratio)
        accepted = chance < log_ratio
        now = now.where(accepted, proposed)
        size = min(size * math.exp(float(accepted.double().mean()) - _ACCEPTED), 2.0)
    return now, size


def _drift(now: _Seen, beta: float, covariance: Tensor, size: float) -> Tensor:
    """Half of a squared step along the gradient, in the metric of the covariance; no longer than a few steps."""
    drift = 0.5 * size**2 * now.score(beta) @ covariance
    longest = 4.0 * size * covariance.diagonal().sum().sqrt()
    return drift * (longest / drift.norm(dim=1, keepdim=True)).clamp(max=1.0).nan_to_num(nan=1.0)


def _connected(energy: EnergyEvaluator, law: Mixtures, base: Tensor) -> bool:
    """Whether one comes from every component to every other without crossing a valley of the target.

    The ways are lines between their means, the coordinates of other blocks being those of the base (d,), and a valley
    is where the target falls far below both ends.
    """
    before = 0
    for block in law.blocks:
        k, columns = len(block.components), slice(before, before + block.dim)
        before += block.dim
        if k == 1:
            continue
        means = torch.stack([part.mean for part in block.components])
        s = torch.linspace(0.0, 1.0, _BETWEEN, dtype=means.dtype, device=means.device)
        first, second = torch.triu_indices(k, k, 1)
        lines = base.expand(len(first), _BETWEEN, -1).clone()
        lines[:, :, columns] = torch.lerp(means[first].unsqueeze(1), means[second].unsqueeze(1), s.view(1, -1, 1))
        log_target = -energy.potential(lines.reshape(-1, len(base)))[0].reshape(-1, _BETWEEN)
        # the highest pass on the way from one to the other, which may lead over others
        height, ends = torch.full((k, k), torch.inf).to(means), torch.empty(k).to(means)
        ends[first], ends[second] = log_target[:, 0], log_target[:, -1]
        height[first, second] = height[second, first] = log_target.amin(1)
        for via in range(k):
            height = torch.maximum(height, torch.minimum(height[:, via : via + 1], height[via]))
        if bool((torch.minimum(ends, ends.unsqueeze(1)) - height >= _VALLEY).any()):
            return False
    return True


class _Weighted(NamedTuple):
    """Draws (n, d) of a law with mixtures, their normalised weights (n,), and what they say."""

    x: Tensor
    weights: Tensor
    seen: Scouted


def _weighted(energy: EnergyEvaluator, law: Mixtures, n: int, generator: torch.Generator) -> _Weighted:
    x = law.law.sample((n,), generator=generator)
    log_weights = -energy.potential(x)[0] - law.law.log_prob(x)
    smoothed = torch.from_numpy(psis(log_weights.cpu().double().numpy())[0]).to(x)
    weights = torch.softmax(smoothed, dim=0)
    return _Weighted(x, weights, Scouted(law, float(log_weights.mean()), float(1.0 / weights.square().sum()) / n))


def _improved(energy: EnergyEvaluator, law: Mixtures, generator: torch.Generator) -> Scouted:
    """The mixtures after rounds of importance-weighted EM on their own draws: the best seen, with exact weights.

    Those of single coordinates go on with twice the components, which their many draws can settle.
    """
    best = _best_round(energy, law, generator)
    if len(law.blocks) > 1 and _USEFUL <= best.seen.ess_fraction < _GOOD:
        law = split(best.seen.mixtures)
        for _ in range(_UPDATES_OF_HALVES):
            law = updated(law, best.x, best.weights)
        best = max(best, _best_round(energy, law, generator), key=_ess_fraction)
    if best.seen.ess_fraction < _USEFUL:
        return best.seen
    last = _weighted(energy, best.seen.mixtures, _LAST_DRAWS, generator)
    return best.seen._replace(mixtures=with_shares(best.seen.mixtures, last.x, last.weights))


def _best_round(energy: EnergyEvaluator, law: Mixtures, generator: torch.Generator) -> _Weighted:
    rounds: list[_Weighted] = []
    for _ in range(_ROUNDS):
        rounds.append(_weighted(energy, law, _DRAWS + _DRAWS_PER_DIMENSION * law.law.dim, generator))
        if rounds[-1].seen.ess_fraction >= _GOOD or energy.budget_used() > _SHARE_OF_BUDGET:
            break
        if max(map(_ess_fraction, rounds)) < _HOPELESS * len(rounds):
            break
        law = updated(law, rounds[-1].x, rounds[-1].weights)
    return max(rounds, key=_ess_fraction)


def _ess_fraction(drawn: _Weighted) -> float:
    return drawn.seen.ess_fraction
