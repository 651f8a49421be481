"""Gaussian mixtures of points: which there are, and what weighted points make of them.

A law is a mixture over all coordinates or, where that fits points better, a product of mixtures of one coordinate
each: 2^k modes of k independent coordinates need 2 k components then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from jkosampler._surroundings import ignoring
from jkosampler.laws import Gaussian, Law, Mixture, Product

__all__ = ["Mixtures", "fitted", "split", "updated", "with_shares"]

_COMPONENTS, _COMPONENTS_OF_ONE = 24, 4  # at most, of all coordinates or of one
_SHAPES = ("full", "diag", "spherical")  # of covariances
_PATIENCE = 3  # numbers of components without a better criterion, before no more are tried
_FEWEST = 10  # points of a cluster, or draws that count for a component
_SHAPE_COUNTS = 10  # effective draws a dimension that a covariance's new shape weighs against
_NEGLIGIBLE = 1e-5  # share of the target of a component that is dropped


@dataclass(frozen=True)
class Mixtures:
    """Independent mixtures side by side: one over all d coordinates, or d over one each."""

    blocks: tuple[Mixture, ...]

    @property
    def law(self) -> Law:
        """The law over R^d."""
        return self.blocks[0] if len(self.blocks) == 1 else Product(self.blocks)

    def columns(self, x: Tensor) -> list[Tensor]:
        """The coordinates (n, d_i) of points (n, d) that each block has."""
        return list(x.split([block.dim for block in self.blocks], dim=1))

    def describe(self) -> str:
        """Say in a few words which law this is."""
        if len(self.blocks) == 1:
            return f"a mixture of {len(self.blocks[0].components)} Gaussians"
        several = sum(len(block.components) > 1 for block in self.blocks)
        return f"independent coordinates, {several} of them mixtures of Gaussians"


def fitted(x: Tensor, generator: torch.Generator) -> Mixtures | None:
    """The mixtures with the best Bayesian information criterion for points (n, d); None where that is one Gaussian.

    EM starts from Ward's clusters, since random starts merge modes. It may find full covariances, diagonal ones or
    multiples of the identity, in coordinates of variance one: those of many components in many dimensions would be ill
    determined otherwise. (Whitening would blow up the directions along which the modes do not differ.)
    """
    mean, scale = x.mean(0), x.std(0)
    if not bool((scale > 0.0).all()):
        return None
    points = ((x - mean) / scale).cpu().double().numpy()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with ignoring(ConvergenceWarning):
        best = _best(points, _COMPONENTS, _SHAPES, seed)
        ones = [_best(column[:, None], _COMPONENTS_OF_ONE, ("full",), seed) for column in points.T]
    criterion = sum(one.bic(column[:, None]) for one, column in zip(ones, points.T, strict=True))
    if len(ones) > 1 and criterion < best.bic(points):
        fits, alone = ones, all(one.n_components == 1 for one in ones)
    else:
        fits, alone = [best], best.n_components == 1
    if alone:
        return None
    places = zip(fits, mean.split([fit.means_.shape[1] for fit in fits]),
                 scale.split([fit.means_.shape[1] for fit in fits]), strict=True)  # fmt: skip
    return Mixtures(tuple(_law(fit, at, size) for fit, at, size in places))


def _law(fit: GaussianMixture, mean: Tensor, scale: Tensor) -> Mixture:
    """A mixture of standardised points in coordinates of this mean and scale (d,)."""
    parts, d = [], len(mean)
    for m, c in zip(fit.means_, fit.covariances_, strict=True):
        full = c if np.ndim(c) == 2 else np.diag(np.broadcast_to(c, (d,)))
        covariance = scale.unsqueeze(1) * torch.from_numpy(full).to(scale) * scale
        parts.append(Gaussian(mean + scale * torch.from_numpy(m).to(scale), covariance))
    return Mixture(fit.weights_, parts)


def _best(points: np.ndarray, most: int, shapes: tuple[str, ...], seed: int) -> GaussianMixture:
    """The mixture of standardised points with the best criterion, of so many components at most."""
    d = points.shape[1]
    best = GaussianMixture(1, random_state=seed).fit(points)
    best_criterion = best.bic(points)
    lowest, without_gain = dict.fromkeys(shapes, math.inf), dict.fromkeys(shapes, 0)
    tree = linkage(points, "ward")
    for k in range(2, most + 1):
        labels = fcluster(tree, k, "maxclust")
        clusters = [points[labels == label] for label in np.unique(labels)]
        fewest = min(map(len, clusters))
        if fewest < _FEWEST:
            break
        for shape in shapes:
            if without_gain[shape] == _PATIENCE or (shape == "full" and fewest < 2 * d):
                continue
            fit = _fitted_from(points, clusters, shape, seed)
            criterion = fit.bic(points)
            without_gain[shape] = 0 if criterion < lowest[shape] else without_gain[shape] + 1
            lowest[shape] = min(criterion, lowest[shape])
            if criterion < best_criterion:
                best, best_criterion = fit, criterion
    return best


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


def updated(law: Mixtures, x: Tensor, weights: Tensor) -> Mixtures:
    """The mixtures after a round of EM at draws (n, d) of the law with normalised weights (n,).

    Cappe, Douc, Guillin, Marin, Robert (2008). Where few points count for a component, its covariance keeps the shape
    it had.
    """
    return Mixtures(
        tuple(_updated(block, part, weights) for block, part in zip(law.blocks, law.columns(x), strict=True))
    )


def _updated(law: Mixture, x: Tensor, weights: Tensor) -> Mixture:
    shares = weights.unsqueeze(1) * _shares(law, x)
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


def split(law: Mixtures) -> Mixtures:
    """Every component of one coordinate in two halves, side by side, of the same mean and variance together."""
    blocks = []
    for block in law.blocks:
        parts: list[Gaussian] = []
        for part in block.components:
            offset = 0.5 * part.covariance[0].sqrt()
            parts += [Gaussian(part.mean + sign * offset, 0.75 * part.covariance) for sign in (-1.0, 1.0)]
        blocks.append(Mixture(block.weights.repeat_interleave(2), parts))
    return Mixtures(tuple(blocks))


def with_shares(law: Mixtures, x: Tensor, weights: Tensor) -> Mixtures:
    """The same components with the shares that draws (n, d) of the law with weights (n,) of sum one give them.

    How many of the draws came from a component is chance that says nothing: its share is known, and divided out.
    """
    blocks = []
    for block, part in zip(law.blocks, law.columns(x), strict=True):
        drawn = _shares(block, part)
        gain = (weights @ drawn) / drawn.mean(0).clamp(min=1e-300)
        blocks.append(Mixture((block.weights * gain).clamp(min=_NEGLIGIBLE), block.components))
    return Mixtures(tuple(blocks))


def _shares(law: Mixture, x: Tensor) -> Tensor:
    """The probability (n, k) that each point (n, d) comes from each component."""
    parts = torch.stack([part.log_prob(x) for part in law.components], dim=1) + law.weights.log()
    return torch.softmax(parts, dim=1)
