"""The peer on targets of one mode: a neural spline flow of zuko, by reverse KL with stick-the-landing gradients.

Roeder, Wu, Duvenaud, "Sticking the landing" (2017): the density's own parameters are held fixed in its value, so that
the gradient's noise vanishes as the flow comes near the target.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["kl_of_spline_flow", "trained_spline_flow"]

_BATCH, _LEARNING_RATE, _WARM_UP = 256, 2e-3, 0.05


def trained_spline_flow(
    log_density: Callable[[Tensor], Tensor], dim: int, cpu_seconds: float, seed: int
) -> Callable[[], Any]:
    """A flow after so many CPU seconds of training: call it for its law.

    Coupling layers, three transforms of eight bins with two hidden layers of 64; Adam, its rate decaying by a cosine.
    """
    import zuko

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        flow = zuko.flows.NSF(dim, transforms=3, hidden_features=(64, 64), passes=2 if dim > 1 else None)
        fixed = copy.deepcopy(flow)
        optimizer = torch.optim.Adam(flow.parameters(), lr=_LEARNING_RATE, fused=True)
        began = time.process_time()
        while (progress := (time.process_time() - began) / cpu_seconds) < 1.0:
            optimizer.param_groups[0]["lr"] = (
                _LEARNING_RATE * min(1.0, progress / _WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * progress))
            )
            fixed.load_state_dict(flow.state_dict())
            x = flow().rsample((_BATCH,))
            values = fixed().log_prob(x) - log_density(x.double())
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
        x, log_q = flow().rsample_and_log_prob((n,))
        log_weights = log_density(x.double()) - log_q
    return log_z - float(log_weights[log_weights.isfinite()].mean()), n_evaluations
