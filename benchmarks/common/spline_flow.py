"""The peer on targets of one mode: a neural spline flow of zuko, by reverse KL with stick-the-landing gradients.

Roeder, Wu, Duvenaud, "Sticking the landing" (2017): the density's own parameters are held fixed in its value, so that
the gradient's noise vanishes as the flow comes near the target. A learned affine map follows the splines, which are the
identity beyond five units.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["SplineFlow", "kl_of_spline_flow", "trained_spline_flow"]

_BATCH, _LEARNING_RATE, _WARM_UP = 256, 5e-3, 0.05


class SplineFlow(nn.Module):
    """Coupling layers, three transforms of eight bins with two hidden layers of 64, then an affine map."""

    def __init__(self, dim: int) -> None:
        import zuko

        super().__init__()
        self.splines = zuko.flows.NSF(dim, transforms=3, hidden_features=(64, 64), passes=2 if dim > 1 else None)
        self.shift, self.log_scale = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.shear = nn.Parameter(torch.zeros(dim, dim))

    @property
    def factor(self) -> Tensor:
        """The affine map's matrix (d, d), lower triangular."""
        return self.shear.tril(-1) + torch.diag(self.log_scale.exp())

    def sample(self, n: int) -> Tensor:
        """Differentiable draws (n, d)."""
        return self.shift + self.splines().rsample((n,)) @ self.factor.mT

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density (n,) at x (n, d)."""
        z = torch.linalg.solve_triangular(self.factor, (x - self.shift).mT, upper=False).mT
        return self.splines().log_prob(z) - self.log_scale.sum()


def trained_spline_flow(log_density: Callable[[Tensor], Tensor], dim: int, cpu_seconds: float, seed: int) -> SplineFlow:
    """A flow after so many CPU seconds of training by Adam, its rate decaying by a cosine."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = SplineFlow(dim)
        fixed = copy.deepcopy(flow)
        optimizer = torch.optim.Adam(flow.parameters(), lr=_LEARNING_RATE, fused=True)
        began = time.process_time()
        while (progress := (time.process_time() - began) / cpu_seconds) < 1.0:
            optimizer.param_groups[0]["lr"] = (
                _LEARNING_RATE * min(1.0, progress / _WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * progress))
            )
            fixed.load_state_dict(flow.state_dict())
            x = flow.sample(_BATCH)
            values = fixed.log_prob(x) - log_density(x.double())
            optimizer.zero_grad()
            values[values.isfinite()].mean().backward()
            if bool(torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0).isfinite()):
                optimizer.step()
    return flow


def kl_of_spline_flow(
    log_density: Callable[[Tensor], Tensor], dim: int, log_z: float, cpu_seconds: float, seed: int, n: int = 50_000
) -> tuple[float, int]:
    """KL of a flow after so many CPU seconds of training, from n fresh draws, and the evaluations it took."""
    n_evaluations = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal n_evaluations
        n_evaluations += len(x)
        return log_density(x)

    flow = trained_spline_flow(counted, dim, cpu_seconds, seed)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        x = flow.sample(n)
        log_weights = log_density(x.double()) - flow.log_prob(x)
    return log_z - float(log_weights[log_weights.isfinite()].mean()), n_evaluations
