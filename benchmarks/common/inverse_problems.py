"""Inverse problems with Gaussian noise and prior, seen with and without derivatives, and their known answers.

The moments of Darcy flow are those of the long chains of `darcy_reference.py`, which are kept in a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkosampler import forward, laws
from jkosampler.targets import BayesianInverseProblem

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from reference_elliptic import exact_elliptic

__all__ = ["MOMENTS", "InverseProblem", "darcy", "elliptic"]

MOMENTS = Path(__file__).parents[2] / "docs" / "benchmarks" / "darcy_reference.json"
_SEED = 1234  # of the truth and of the noise
_NOISE = 0.02  # over the largest observation


class InverseProblem:
    """y = G(x) + noise, prior N(0, prior_std^2), with counters of what samplers ask for.

    Parameters
    ----------
    model : ForwardModel
        G, in torch.
    y : ndarray (k,)
    noise_std, prior_std : float
    reference : mapping, optional
        `mean` and `sd` (d,); `log_evidence` and `kl_gaussian`, the KL of the best Gaussian, where they are known.
    start : Law, optional
        Where samplers start; None: the prior.

    Attributes
    ----------
    n_evaluations, n_gradients, n_calls : int
        Points at which G was evaluated, those among them at which it was differentiated too, and batched calls.
    """

    def __init__(
        self,
        model: forward.ForwardModel,
        y: np.ndarray,
        noise_std: float,
        prior_std: float,
        reference: dict[str, Any] | None = None,
        start: laws.Law | None = None,
    ) -> None:
        self.model, self.dim, self.start = model, model.dim, start
        self.y, self.noise_std, self.prior_std = np.asarray(y, dtype=float), float(noise_std), float(prior_std)
        self.reference = {k: np.array(v) if isinstance(v, list) else v for k, v in (reference or {}).items()}
        self.n_evaluations = self.n_gradients = self.n_calls = 0
        self._posterior = self.posterior()

    def posterior(self, black_box: bool = False) -> BayesianInverseProblem:
        """The posterior; of a black box there are values alone."""
        model = self.model
        if black_box:

            def run(x: np.ndarray) -> np.ndarray:
                return self.model(torch.from_numpy(x)).numpy()

            model = forward.BlackBox(run, self.dim, len(self.y), vectorized=True)
        return model.posterior(y=self.y, noise_std=self.noise_std, prior_std=self.prior_std)

    def draw_start(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Where an ensemble of n starts, (n, d)."""
        if self.start is None:
            return self.prior_std * rng.standard_normal((n, self.dim))
        return self.start.sample((n,), generator=torch.Generator().manual_seed(int(rng.integers(2**31)))).numpy()

    def predicted(self, x: np.ndarray) -> np.ndarray:
        """G (n, k) at x (n, d), in units of the noise."""
        self._count(len(x))
        with torch.no_grad():
            return self.model(torch.from_numpy(x)).numpy() / self.noise_std

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Gradient (n, d) of the log posterior at x (n, d)."""
        self._count(len(x))
        self.n_gradients += len(x)
        points = torch.from_numpy(x).requires_grad_(True)
        return torch.autograd.grad(self._posterior(points).sum(), points)[0].numpy()

    def log_density(self, x: Tensor) -> Tensor:
        """Log of prior times likelihood (n,) at x (n, d), which is not counted."""
        return self._posterior(x)

    def errors(self, x: np.ndarray) -> tuple[float, float]:
        """Largest error of the means of draws (n, d), in standard deviations, and largest relative one of these."""
        mean, sd = self.reference["mean"], self.reference["sd"]
        return float(np.max(np.abs(x.mean(0) - mean) / sd)), float(np.max(np.abs(x.std(0) / sd - 1.0)))

    def _count(self, n: int) -> None:
        self.n_calls += 1
        self.n_evaluations += n


def elliptic() -> InverseProblem:
    """The elliptic boundary value problem of the Deep JKO paper, from its start; moments and evidence by quadrature."""
    start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])
    exact = exact_elliptic(noise_std=0.1, prior_std=10.0)
    return InverseProblem(forward.EllipticBVP(), np.array([27.5, 79.7]), 0.1, 10.0, exact, start)


def darcy(n_terms: int) -> InverseProblem:
    """Flow through a random medium, seen at 20 points with noise of 2 % of the largest pressure.

    The truth of fewer terms is the beginning of that of more.
    """
    model, rng = forward.Darcy1D(n_terms), np.random.default_rng(_SEED)
    noise, truth = rng.standard_normal(model.output_dim), rng.standard_normal(64)[:n_terms]
    pressure = model(torch.from_numpy(truth)[None])[0].numpy()
    noise_std = _NOISE * float(pressure.max())
    known = json.loads(MOMENTS.read_text()) if MOMENTS.exists() else {}
    return InverseProblem(model, pressure + noise_std * noise, noise_std, 1.0, known.get(str(n_terms)))
