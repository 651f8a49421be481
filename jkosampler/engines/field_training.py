"""Adam for one step of an L2 flow, as the paper trains its networks: the baseline of the minimizing-movement engine.

Equation (3.7) of Park, Kim, Son, Hwang (arXiv 2109.14851), its integrals by points that may be new in each iteration.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from jkosampler.domains import Quadrature
from jkosampler.energies import FunctionalEvaluator
from jkosampler.errors import FitError
from jkosampler.fields import NetworkField, ScalarField

__all__ = ["train_step"]


def train_step(
    network: NetworkField,
    energy: FunctionalEvaluator,
    before: ScalarField,
    tau: float,
    n_iterations: int,
    learning_rate: float,
    points: Callable[[], Quadrature],
) -> None:
    """Train a network in place to minimise F(u) + |u - before|^2 / (2 tau).

    Raises
    ------
    FitError
        The loss is not finite.
    """
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for i in range(n_iterations):
        x, weights = points()
        with torch.no_grad():
            v = before(x)
        x.requires_grad_(True)
        u = network(x)
        (gradient,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        phi = energy.differentiable(x, u, gradient)
        loss = weights @ (phi + (u - v).square() / (2.0 * tau))
        if not bool(loss.isfinite()):
            raise FitError(f"the loss of iteration {i} is not finite: take a smaller learning_rate or step_size.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        x.requires_grad_(False)
