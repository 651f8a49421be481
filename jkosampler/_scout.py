"""Where the modes of a target are, before a flow sets out: an annealed population, and a mixture fitted to it.

A flow moves no mass between separated modes: each keeps what of the start lies in its basin. So a small population
is annealed from the start to the target along `(1 - beta) log start + beta log target`, with steps of beta that halve
the effective sample size and a few Metropolis-adjusted Langevin moves after each. It is not resampled, as sequential
Monte Carlo would: in many dimensions that leaves one mode of many. How many particles end in a mode therefore says
nothing; a Gaussian mixture is fitted to where they are, and its weights, means and covariances are improved by
importance-weighted EM on its own draws (Cappe, Douc, Guillin, Marin, Robert 2008). The mixture becomes the start where
valleys of the target separate its components, and its draws count for the target.
"""

from __future__ import annotations

import logging
import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import brentq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from jkosampler.diagnostics import psis
from jkosampler.energies import EnergyEvaluator
from jkosampler.errors import ArgumentError, TargetError
from jkosampler.laws import Gaussian, Law, Mixture

__all__ = ["Scouted", "scout"]

logger = logging.getLogger(__name__)

_POPULATION, _PER_DIMENSION = 1000, 40
_STAGES = 60  # at most; a target that needs more is left to the flow
_MOVES = 3  # of each particle between two temperatures,
_LAST_MOVES = 20  # and at the target, beside one a dimension
_ACCEPTED = 0.57  # share of moves that the size of Langevin proposals aims at
_COMPONENTS = 24  # at most
_SHAPES = ("full", "diag", "spherical")  # of covariances
_PATIENCE = 3  # numbers of components without a better criterion, before no more are tried
_FEWEST = 10  # points of a cluster, or draws that count for a component
_SHAPE_COUNTS = 10  # effective draws a dimension that a covariance's new shape weighs against
_NEGLIGIBLE = 1e-5  # share of the target of a component that is dropped
_DRAWS, _DRAWS_PER_DIMENSION, _ROUNDS = 10_000, 1000, 8  # of the mixture, for rounds of importance-weighted EM
_LAST_DRAWS = 50_000  # behind the weights of the components
_GOOD = 0.99  # effective share of the draws that ends these rounds
_VALLEY, _BETWEEN = 2.0, 11  # nats below two means that separate them, among so many points from one to the other
_USEFUL = 0.1  # effective share of a mixture's draws below which the flow does better from the start itself


class Scouted(NamedTuple):
    """A mixture near the target, and what its own draws say: evidence lower bound, and effective share."""

    law: Mixture
    elbo: float
    ess_fraction: float


def scout(energy: EnergyEvaluator, start: Law, generator: torch.Generator) -> Scouted | None:
    """A mixture on the target's modes.

    None where they are not separated, where a mixture of few Gaussians is far from the target, or where the target
    fails: a flow from the start itself meets the same, and says it in its own words.
    """
    try:
        found = _scouted(energy, start, generator)
    except (TargetError, ArgumentError, RuntimeError, ValueError) as error:
        logger.info("scouting ended early: %s", error)
        return None
    if found is not None:
        logger.info("scouting: %s, lower bound %.4g, effective share %.2g", found.law, found.elbo, found.ess_fraction)
    return found


def _scouted(energy: EnergyEvaluator, start: Law, generator: torch.Generator) -> Scouted | None:
    x = _annealed(energy, start, generator)
    law = None if x is None else _fitted(x, generator)
    if law is None or _connected(energy, law):
        return None
    mixture = _improved(energy, law, generator)
    if mixture.ess_fraction < _USEFUL:
        logger.info("scouting: %d Gaussians are far from the target", len(mixture.law.components))
        return None
    return None if _connected(energy, mixture.law) else mixture  # modes without weight are gone now


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

    def log_density(self, beta: float) -> Tensor:
        tempered = beta * self.log_target if beta > 0.0 else torch.zeros_like(self.log_target)
        return (1.0 - beta) * self.log_start + tempered

    def score(self, beta: float) -> Tensor:
        return (1.0 - beta) * self.start_score + beta * self.target_score


def _annealed(energy: EnergyEvaluator, start: Law, generator: torch.Generator) -> Tensor | None:
    """The annealed population (n, d), None where it takes too many stages."""
    n = _POPULATION + _PER_DIMENSION * start.dim
    now = _Seen.at(energy, start, start.sample((n,), generator=generator))
    beta, size = 0.0, 1.0
    if not bool(now.log_target.isfinite().any()):
        return None
    for _ in range(_STAGES):
        log_ratio = now.log_target - now.log_start
        beta += _next_rise(log_ratio, 1.0 - beta)
        done = beta >= 1.0 - 1e-12
        now, size = _moved(
            energy, start, now, min(beta, 1.0), size, _LAST_MOVES + start.dim if done else _MOVES, generator
        )
        if done:
            return now.x[now.log_target.isfinite()]
    logger.info("scouting ended at beta = %.2g after %d stages", beta, _STAGES)
    return None


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


def _fitted(x: Tensor, generator: torch.Generator) -> Mixture | None:
    """The Gaussian mixture with the best Bayesian information criterion; None where that is one Gaussian.

    EM starts from Ward's clusters, since random starts merge modes. It may find full covariances, diagonal ones or
    multiples of the identity, in coordinates of variance one: those of many components in many dimensions would be ill
    determined otherwise. (Whitening would blow up the directions along which the modes do not differ.)
    """
    mean, scale = x.mean(0), x.std(0)
    if not bool((scale > 0.0).all()):
        return None
    points = ((x - mean) / scale).cpu().double().numpy()
    tree, d = linkage(points, "ward"), points.shape[1]
    seed = int(torch.randint(2**31, (1,), generator=generator))
    best = single = GaussianMixture(1, random_state=seed).fit(points)
    best_criterion = best.bic(points)
    lowest, without_gain = dict.fromkeys(_SHAPES, math.inf), dict.fromkeys(_SHAPES, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for k in range(2, _COMPONENTS + 1):
            labels = fcluster(tree, k, "maxclust")
            clusters = [points[labels == label] for label in np.unique(labels)]
            fewest = min(map(len, clusters))
            if fewest < _FEWEST:
                break
            for shape in _SHAPES:
                if without_gain[shape] == _PATIENCE or (shape == "full" and fewest < 2 * d):
                    continue
                fit = _fitted_from(points, clusters, shape, seed)
                criterion = fit.bic(points)
                without_gain[shape] = 0 if criterion < lowest[shape] else without_gain[shape] + 1
                lowest[shape] = min(criterion, lowest[shape])
                if criterion < best_criterion:
                    best, best_criterion = fit, criterion
    if best is single:
        return None
    parts = []
    for m, c in zip(best.means_, best.covariances_, strict=True):
        full = c if np.ndim(c) == 2 else np.diag(np.broadcast_to(c, (d,)))
        covariance = scale.unsqueeze(1) * torch.from_numpy(full).to(scale) * scale
        parts.append(Gaussian(mean + scale * torch.from_numpy(m).to(scale), covariance))
    return Mixture(best.weights_, parts)


def _fitted_from(points: np.ndarray, clusters: list[np.ndarray], shape: str, seed: int) -> GaussianMixture:
    """EM from clusters of the points."""
    variances = np.stack([cluster.var(0) for cluster in clusters]) + 1e-9
    precisions = {
        "full": lambda: np.stack([np.diag(1.0 / v) for v in variances]),
        "diag": lambda: 1.0 / variances,
        "spherical": lambda: 1.0 / variances.mean(1),
    }[shape]()
    return GaussianMixture(
        len(clusters), covariance_type=shape, random_state=seed, precisions_init=precisions,
        means_init=np.stack([cluster.mean(0) for cluster in clusters]),
        weights_init=np.array([len(cluster) for cluster in clusters]) / len(points),
    ).fit(points)  # fmt: skip


def _connected(energy: EnergyEvaluator, law: Mixture) -> bool:
    """Whether one comes from every component to every other without crossing a valley of the target.

    Two components are neighbours where the target does not fall far below both on the line between their means.
    """
    means = torch.stack([part.mean for part in law.components])
    if len(means) == 1:
        return True
    k, s = len(means), torch.linspace(0.0, 1.0, _BETWEEN, dtype=means.dtype, device=means.device)
    first, second = torch.triu_indices(k, k, 1)
    lines = torch.lerp(means[first].unsqueeze(1), means[second].unsqueeze(1), s.view(1, -1, 1))
    log_target = -energy.potential(lines.reshape(-1, law.dim))[0].reshape(-1, _BETWEEN)
    fall = torch.minimum(log_target[:, 0], log_target[:, -1]) - log_target.amin(1)
    near = (fall < _VALLEY).cpu()
    graph = coo_array((np.ones(int(near.sum())), (first[near].numpy(), second[near].numpy())), shape=(k, k))
    return int(connected_components(graph, directed=False, return_labels=False)) == 1


class _Weighted(NamedTuple):
    """Draws (n, d) of a mixture, their normalised weights (n,), log shares of components (n, k), and what they say."""

    x: Tensor
    weights: Tensor
    log_shares: Tensor
    seen: Scouted


def _weighted(energy: EnergyEvaluator, law: Mixture, n: int, generator: torch.Generator) -> _Weighted:
    x = law.sample((n,), generator=generator)
    parts = torch.stack([part.log_prob(x) for part in law.components], dim=1) + law.weights.log()
    log_q = torch.logsumexp(parts, dim=1)
    log_weights = -energy.potential(x)[0] - log_q
    smoothed = torch.from_numpy(psis(log_weights.cpu().double().numpy())[0]).to(x)
    weights = torch.softmax(smoothed, dim=0)
    seen = Scouted(law, float(log_weights.mean()), float(1.0 / weights.square().sum()) / n)
    return _Weighted(x, weights, parts - log_q.unsqueeze(1), seen)


def _improved(energy: EnergyEvaluator, law: Mixture, generator: torch.Generator) -> Scouted:
    """The mixture after rounds of importance-weighted EM on its own draws: the best one seen, with exact weights."""
    rounds: list[_Weighted] = []
    for _ in range(_ROUNDS):
        rounds.append(_weighted(energy, law, _DRAWS + _DRAWS_PER_DIMENSION * law.dim, generator))
        if rounds[-1].seen.ess_fraction >= _GOOD:
            break
        law = _em_update(law, rounds[-1])
    best = max(rounds, key=lambda one: one.seen.ess_fraction).seen
    last = _weighted(energy, best.law, _LAST_DRAWS, generator)
    shares = (last.weights @ last.log_shares.exp()).clamp(min=_NEGLIGIBLE)
    return best._replace(law=Mixture(shares, best.law.components))


def _em_update(law: Mixture, drawn: _Weighted) -> Mixture:
    """The mixture of largest likelihood at weighted points, given each component's shares of them.

    Where few points count for a component, its covariance keeps the shape it had.
    """
    x, shares = drawn.x, drawn.weights.unsqueeze(1) * drawn.log_shares.exp()
    totals, components, kept, d = shares.sum(0), [], [], x.shape[1]
    for part, share, total in zip(law.components, shares.mT, totals.tolist(), strict=True):
        share = share / max(total, 1e-300)
        count = float(1.0 / share.square().sum().clamp(min=1e-300))
        if total < _NEGLIGIBLE:
            continue
        if count > _FEWEST:
            mean = share @ x
            centred = x - mean
            covariance = (share.unsqueeze(1) * centred).mT @ centred
            size = torch.linalg.solve(part.covariance, covariance).diagonal().sum() / d
            known = count / (count + _SHAPE_COUNTS * d)
            part = Gaussian(mean, known * covariance + (1.0 - known) * size * part.covariance)
        components.append(part)
        kept.append(total)
    return Mixture(kept, components)
