"""The eight schools, non-centred: a density of z = (mu, log tau, eta) in torch, and its exact moments."""

from __future__ import annotations

import torch
from torch import Tensor

Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
MEANS = {"mu": 4.39682, "tau": 3.59771}  # by quadrature over mu and tau, eta integrated out
SDS = {"mu": 3.31770, "tau": 3.21996}


def log_density(z: Tensor) -> Tensor:
    """Unnormalised log density (n,) at z (n, 10), the Jacobian of tau = exp(z_1) included."""
    y, sigma = (torch.tensor(values, dtype=z.dtype) for values in (Y, SIGMA))
    mu, log_tau, eta = z[:, 0], z[:, 1], z[:, 2:]
    tau = log_tau.exp()
    log_prior = -0.5 * (mu / 5).square() - torch.log1p((tau / 5).square()) - 0.5 * eta.square().sum(1)
    theta = mu[:, None] + tau[:, None] * eta
    return log_prior - 0.5 * ((y - theta) / sigma).square().sum(1) + log_tau


def points(n: int = 50, seed: int = 0) -> Tensor:
    """Points z (n, 10) about the posterior, and the first one far out."""
    z = torch.randn(n, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z[0] *= 5.0
    return z
