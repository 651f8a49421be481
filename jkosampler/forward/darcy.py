"""Flow through a random medium in one dimension, as far as it is known in closed form.

    -(exp(a) p')' = f on (0, 1),   p(0) = p0,   p(1) = p1,   a = mean + sigma sum_i sqrt(lambda_i) xi_i phi_i

with the eigenpairs of the covariance exp(-|x - y| / l), and xi ~ N(0, I) a priori. Integrated twice, with I the
integral of exp(-a) from 0 to x and J that of f x exp(-a),

    p = p0 + (p1 - p0) I / I(1) + J(1) I / I(1) - J.

The integrals are Gauss-Legendre rules on cells, whose edges hold the points asked for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import Distribution

from jkosampler._arguments import float_tensor, positive_number
from jkosampler.errors import ArgumentError
from jkosampler.forward.base import ForwardModel
from jkosampler.laws import Law
from jkosampler.targets import BayesianInverseProblem

__all__ = ["Darcy1D"]

_LARGEST_DIM = 64
_RULE = np.polynomial.legendre.leggauss(3)


class Darcy1D(ForwardModel):
    """Pressures at the observation points, as a function of the Karhunen-Loeve coefficients xi.

    Parameters
    ----------
    n_terms : int
        d, at most 64.
    observation_points : sequence of float (k,), optional
        Points in [0, 1]; None: 20 of equal distance inside.
    correlation_length : float
        l, in units of the domain's length.
    sigma : float
        Standard deviation of the log permeability, of all terms together.
    mean : float
        Mean of the log permeability.
    source : float
        f.
    left_value, right_value : float
        Pressures p0 and p1 at the ends. By default neither is the flow zero somewhere for a typical medium, which would
        hide the permeability there, nor is the pressure the same for a multiple of it, as it is without a source.
    n_cells : int
        Cells of the quadrature, with three nodes each.

    Raises
    ------
    ArgumentError
        An argument can't be used; the message names it.

    Examples
    --------
    >>> import torch
    >>> model = Darcy1D(n_terms=8)
    >>> model(torch.zeros(1, 8, dtype=torch.float64)).shape
    torch.Size([1, 20])
    >>> model.posterior(y=[0.5] * 20, noise_std=0.01).prior.dim
    8
    """

    def __init__(
        self,
        n_terms: int = 24,
        *,
        observation_points: Any = None,
        correlation_length: float = 0.3,
        sigma: float = 1.0,
        mean: float = 0.0,
        source: float = 1.0,
        left_value: float = 0.0,
        right_value: float = 1.0,
        n_cells: int = 128,
    ) -> None:
        self.dim = _whole(n_terms, "n_terms", _LARGEST_DIM)
        self.n_cells = _whole(n_cells, "n_cells", None)
        self.correlation_length = positive_number(correlation_length, "correlation_length")
        self.sigma = positive_number(sigma, "sigma")
        others = {"mean": mean, "source": source, "left_value": left_value, "right_value": right_value}
        for name, value in others.items():
            if float_tensor(value, name).ndim:
                raise ArgumentError(f"{name} must be one number, got {value!r}.")
        self.mean, self.source = float(mean), float(source)
        self.left_value, self.right_value = float(left_value), float(right_value)
        if observation_points is None:
            observation_points = np.linspace(0.0, 1.0, 22)[1:-1]
        self.observation_points = _positions(observation_points, "observation_points")
        self.output_dim = len(self.observation_points)
        self.eigenvalues, self._frequencies = _eigenpairs(self.correlation_length, self.dim)
        self._quadrature = self._rule(self.observation_points)

    @property
    def constant_data(self) -> dict[str, np.ndarray]:
        """Constants of the model that belong to the record of a fit."""
        return {"observation_points": self.observation_points}

    def __call__(self, xi: Tensor) -> Tensor:
        """Pressures (n, k) at the observation points, for coefficients xi (n, d)."""
        return self._pressure(xi, *self._quadrature)

    def solution(self, xi: Tensor, x: Any) -> Tensor:
        """Pressures (n, m) at positions x (m,) in [0, 1], for coefficients xi (n, d).

        Where exp(-a) overflows it stays at the largest power of e in the dtype.
        """
        return self._pressure(xi, *self._rule(_positions(x, "x")))

    def log_permeability(self, xi: Tensor, x: Any) -> Tensor:
        """Log permeability a (n, m) at positions x (m,) in [0, 1], for coefficients xi (n, d)."""
        return self.mean + xi @ torch.as_tensor(self.modes(_positions(x, "x")), dtype=xi.dtype, device=xi.device)

    def modes(self, x: np.ndarray) -> np.ndarray:
        """Terms sigma sqrt(lambda_i) phi_i (d, m) at positions x (m,)."""
        w, t = self._frequencies[:, None], np.asarray(x) - 0.5
        even = (np.arange(self.dim) % 2 == 0)[:, None]
        sign = np.where(even, 1.0, -1.0)
        norm = np.sqrt(0.5 + sign * np.sin(w) / (2 * w))  # of cos(w t) or sin(w t) on an interval of length one
        phi = np.where(even, np.cos(w * t), np.sin(w * t)) / norm
        return self.sigma * np.sqrt(self.eigenvalues)[:, None] * phi

    def posterior(
        self,
        y: Any,
        noise_std: Any = None,
        noise_cov: Any = None,
        prior_std: Any = None,
        prior: Law | Distribution | None = None,
    ) -> BayesianInverseProblem:
        """Posterior of xi given y = G(xi) + noise, as `ForwardModel.posterior`; the prior is N(0, I) if none is given.

        Parameters
        ----------
        y : array_like (k,)
        noise_std : array_like (k,) or float, optional
        noise_cov : array_like (k, k), optional
        prior_std : array_like (d,) or float, optional
        prior : Law or torch Distribution, optional

        Raises
        ------
        ArgumentError
            As `BayesianInverseProblem`.
        """
        if prior is None and prior_std is None:
            prior_std = 1.0
        return super().posterior(y, noise_std=noise_std, noise_cov=noise_cov, prior_std=prior_std, prior=prior)

    def _rule(self, x: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Modes at the nodes (d, m, 3), nodes and weights (m, 3) of all cells, and the edges that are x."""
        edges = np.unique(np.concatenate([np.linspace(0.0, 1.0, self.n_cells + 1), x]))
        width = np.diff(edges)[:, None]
        nodes = edges[:-1, None] + width * (_RULE[0] + 1) / 2
        modes = self.modes(nodes.ravel()).reshape(self.dim, *nodes.shape)
        weights = torch.from_numpy(width * _RULE[1] / 2)
        return torch.from_numpy(modes), torch.from_numpy(nodes), weights, torch.from_numpy(np.searchsorted(edges, x))

    def _pressure(self, xi: Tensor, modes: Tensor, nodes: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        modes, nodes, weights = (thing.to(xi) for thing in (modes, nodes, weights))
        negative = -self.mean - torch.tensordot(xi, modes, dims=1)
        # the largest factor apart: of the rest nothing overflows, and it cancels but for the source's part
        top = negative.detach().amax(dim=(1, 2), keepdim=True)
        w = torch.exp(negative - top) * weights
        resistance, load = _running(w), _running(w * nodes)
        share = resistance / resistance[:, -1:]
        largest = math.floor(math.log(torch.finfo(xi.dtype).max)) - math.log1p(abs(self.source))
        factor = self.source * torch.exp(top[:, :, 0].clamp(max=largest))
        pressure = self.left_value + (self.right_value - self.left_value) * share
        pressure = pressure + factor * (load[:, -1:] * share - load)
        return pressure[:, index.to(xi.device)]


def _running(parts: Tensor) -> Tensor:
    """Integrals (n, m + 1) up to every edge, of what the nodes (n, m, 3) of the cells hold."""
    return torch.nn.functional.pad(parts.sum(dim=2).cumsum(dim=1), (1, 0))


def _eigenpairs(length: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and frequencies of exp(-|x - y| / l) on an interval of length one, the largest first.

    About the middle the eigenfunctions are cos(w t) with w tan(w / 2) = 1 / l and sin(w t) with tan(w / 2) = -w l, by
    turns; one frequency lies between successive multiples of pi.
    """
    c = 1.0 / length
    frequencies = np.empty(count)
    for i in range(count):

        def condition(w: float, even: bool = i % 2 == 0) -> float:
            cos, sin = math.cos(w / 2), math.sin(w / 2)
            return c * cos - w * sin if even else w * cos + c * sin

        frequencies[i] = brentq(condition, i * math.pi, (i + 1) * math.pi, xtol=1e-14)
    return 2 * c / (frequencies**2 + c**2), frequencies


def _positions(x: Any, name: str) -> np.ndarray:
    points = np.atleast_1d(float_tensor(x, name).cpu().numpy())
    if points.ndim != 1 or not points.size or points.min() < 0.0 or points.max() > 1.0:
        raise ArgumentError(f"{name} must be numbers in [0, 1], got {x!r}.")
    return points


def _whole(value: Any, name: str, most: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1 or (most and value > most):
        limit = "a positive whole number" if most is None else f"a whole number from 1 to {most}"
        raise ArgumentError(f"{name} must be {limit}, got {value!r}.")
    return int(value)
