"""Posteriors of posteriordb, read from a folder of their data: log densities over R^d, with all constants.

Each model has a folder with `data.json` (posteriordb's data) and `reference.json` (`logZ`: log of the integral of the
density written here; the moments of reference draws). A positive parameter enters by its log, with its Jacobian;
half-Cauchy priors are written as full Cauchy densities.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Cauchy, Normal

__all__ = ["MODELS", "Posterior", "read_posterior"]

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Posterior:
    """A posterior over R^d: log density (n,) of points (n, d), log of its integral, reference means and deviations."""

    dim: int
    log_density: LogDensity
    log_z: float
    mean: np.ndarray
    deviation: np.ndarray

    def error_of_moments(self, x: np.ndarray) -> float:
        """The largest error of the draws' means and standard deviations, in standard deviations."""
        errors = x.mean(0) - self.mean, x.std(0) - self.deviation
        return float(np.max(np.abs(errors) / self.deviation))


def _column(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, dtype=float))


def eight_schools(data: dict[str, Any]) -> tuple[int, LogDensity]:
    """Non-centred: eta (8), mu, log tau."""
    y, sigma = _column(data["y"]), _column(data["sigma"])
    n_schools = len(y)

    def log_density(z: Tensor) -> Tensor:
        eta, mu, log_tau = z[:, :n_schools], z[:, n_schools], z[:, n_schools + 1]
        tau = log_tau.exp()
        prior = Normal(0.0, 1.0).log_prob(eta).sum(1) + Normal(0.0, 5.0).log_prob(mu) + Cauchy(0.0, 5.0).log_prob(tau)
        theta = mu.unsqueeze(1) + tau.unsqueeze(1) * eta
        return prior + log_tau + Normal(theta, sigma.to(z)).log_prob(y.to(z)).sum(1)

    return n_schools + 2, log_density


def _regression(design: Tensor, response: Tensor, beta_scale: float, sigma_scale: float) -> tuple[int, LogDensity]:
    """Normal regression: coefficients, log sigma; an infinite scale is a flat prior."""
    k = design.shape[1]

    def log_density(z: Tensor) -> Tensor:
        beta, log_sigma = z[:, :k], z[:, k]
        sigma = log_sigma.exp()
        total = log_sigma + Normal(beta @ design.to(z).mT, sigma.unsqueeze(1)).log_prob(response.to(z)).sum(1)
        if math.isfinite(beta_scale):
            total = total + Normal(0.0, beta_scale).log_prob(beta).sum(1)
        if math.isfinite(sigma_scale):
            total = total + Cauchy(0.0, sigma_scale).log_prob(sigma)
        return total

    return k + 1, log_density


def kidiq(data: dict[str, Any]) -> tuple[int, LogDensity]:
    """Children's scores by their mothers' intelligence."""
    iq = _column(data["mom_iq"])
    return _regression(torch.stack([torch.ones_like(iq), iq], 1), _column(data["kid_score"]), math.inf, 2.5)


def autoregression(data: dict[str, Any]) -> tuple[int, LogDensity]:
    """Autoregression of order K."""
    y, order = _column(data["y"]), data["K"]
    lags = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], dim=1)
    return _regression(torch.cat([torch.ones(len(lags), 1).to(y), lags], 1), y[order:], 10.0, 2.5)


def mesquite(data: dict[str, Any]) -> tuple[int, LogDensity]:
    """Weight of mesquite bushes by their raw measures."""
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    columns = [_column(data[name]) for name in names]
    design = torch.stack([torch.ones_like(columns[0]), *columns], dim=1)
    return _regression(design, _column(data["weight"]), math.inf, math.inf)


def wells(data: dict[str, Any]) -> tuple[int, LogDensity]:
    """Logistic regression: who switches wells, by distance, arsenic, their product, association and education."""
    distance, arsenic = _column(data["dist"]), _column(data["arsenic"])
    c, a = (distance - distance.mean()) / 100.0, arsenic - arsenic.mean()
    columns = [torch.ones_like(c), c, a, c * a, _column(data["assoc"]), _column(data["educ"]) / 4.0]
    design, switched = torch.stack(columns, dim=1), _column(data["switched"])

    def log_density(z: Tensor) -> Tensor:
        return Bernoulli(logits=z @ design.to(z).mT).log_prob(switched.to(z)).sum(1)

    return len(columns), log_density


MODELS: dict[str, Callable[[dict[str, Any]], tuple[int, LogDensity]]] = {
    "eight_schools_noncentered": eight_schools,
    "mesquite": mesquite,
    "kidiq": kidiq,
    "arK": autoregression,
    "wells": wells,
}


def read_posterior(folder: Path, name: str) -> Posterior:
    """The named model with the data in `folder / name`."""
    read = {kind: json.loads((folder / name / f"{kind}.json").read_text()) for kind in ("data", "reference")}
    dim, log_density = MODELS[name](read["data"])
    reference = read["reference"]
    mean, deviation = (np.array(reference["unconstrained"][key]) for key in ("mean", "sd"))
    return Posterior(dim, log_density, float(reference["logZ"]), mean, deviation)
