"""The elliptic boundary value problem of the Deep JKO paper (arXiv 2311.06700, section 4.4).

    -(exp(u1) p'(x))' = 1 on (0, 1),   p(0) = 0,   p(1) = u2,   p(x) = u2 x + exp(-u1) (x - x^2) / 2

observed at a few points. `solve_diffusion` solves such problems with any conductivity by finite volumes; it
shares nothing with the closed form, and so checks it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from jkosampler._arguments import float_tensor
from jkosampler.errors import ArgumentError
from jkosampler.forward.base import ForwardModel

__all__ = ["EllipticBVP", "solve_diffusion"]


class EllipticBVP(ForwardModel):
    """Solution of the problem at the observation points, as a function of u = (u1, u2).

    Parameters
    ----------
    observation_points : sequence of float (k,)
        Points in [0, 1].

    Examples
    --------
    >>> problem = EllipticBVP().posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
    >>> problem.names
    ['u1', 'u2']
    """

    dim = 2

    def __init__(self, observation_points: Any = (0.25, 0.75)) -> None:
        points = torch.atleast_1d(float_tensor(observation_points, "observation_points"))
        if points.ndim != 1 or not points.numel() or float(points.min()) < 0.0 or float(points.max()) > 1.0:
            raise ArgumentError(f"observation_points must be numbers in [0, 1], got {observation_points!r}.")
        self.observation_points = points
        self.output_dim = points.shape[0]
        self.names = ["u1", "u2"]

    @property
    def constant_data(self) -> dict[str, np.ndarray]:
        """Constants of the model that belong to the record of a fit."""
        return {"observation_points": self.observation_points.cpu().numpy()}

    def __call__(self, u: Tensor) -> Tensor:
        """Solution (n, k) at the observation points, for parameters u (n, 2)."""
        return self.solution(u, self.observation_points)

    def solution(self, u: Tensor, x: Any) -> Tensor:
        """Solution p (n, m) at positions x (m,) in [0, 1], for parameters u (n, 2).

        Where exp(-u1) overflows it stays at the largest whole power of e in the dtype: inf * 0 can't arise.
        """
        x = torch.as_tensor(x, dtype=u.dtype, device=u.device)
        largest = math.floor(math.log(torch.finfo(u.dtype).max))
        resistance = torch.exp((-u[:, :1]).clamp(max=largest))
        return u[:, 1:2] * x + resistance * (0.5 * (x - x.square()))

    def solve_finite_difference(self, u: Any, n_cells: int) -> np.ndarray:
        """Numerical solution (n, n_cells + 1) at the nodes i / n_cells, for parameters u (n, 2)."""
        u = np.asarray(u, dtype=np.float64)
        return np.stack([solve_diffusion(np.full(n_cells, np.exp(u1)), u2) for u1, u2 in u])


def solve_diffusion(conductivity: np.ndarray, right_value: float, source: float = 1.0) -> np.ndarray:
    """Solve -(a p')' = f on (0, 1), p(0) = 0, p(1) = b, by conservative differences of second order.

    Parameters
    ----------
    conductivity : ndarray (m,)
        a > 0 at the centres (i + 1/2) / m of m equal cells.
    right_value : float
        b.
    source : float
        f.

    Returns
    -------
    ndarray (m + 1,)
        p at the nodes i / m.
    """
    a = np.asarray(conductivity, dtype=np.float64)
    m = a.shape[0]
    if a.ndim != 1 or m < 2 or not np.all(a > 0):
        raise ArgumentError("conductivity must be positive, one number for each of at least two cells.")
    bands = np.zeros((3, m - 1))
    bands[0, 1:] = -a[1:-1]
    bands[1] = a[:-1] + a[1:]
    bands[2, :-1] = -a[1:-1]
    load = np.full(m - 1, source / m**2)
    load[-1] += a[-1] * right_value
    return np.concatenate([[0.0], solve_banded((1, 1), bands, load), [right_value]])
