"""What holds of a target from any host, by independent computations."""

from __future__ import annotations

import eight_schools
import numpy as np
import torch
from torch import Tensor

from jkosampler.targets import HostTarget, Target

# Central differences of smooth functions of order one: h^2 and eps / h, 1e-10 both, at a step of 1e-5.
STEP = 1e-5
DIFFERENCED = 1e-7


def value_and_gradient(target: Target, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    value = target(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def check_schools(target: HostTarget) -> None:
    """Density, up to a constant, and gradient of the eight schools against those written in torch."""
    z = eight_schools.points()
    value, gradient = value_and_gradient(target.unconstrained, z)
    z.requires_grad_()
    expected = eight_schools.log_density(z)
    difference = value - expected.detach()
    torch.testing.assert_close(difference, difference[:1].expand(len(z)), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), z)[0], rtol=1e-8, atol=1e-8)


def check_gradient(target: HostTarget, z: Tensor) -> None:
    """The host's gradient against differences of its value."""
    value, gradient = value_and_gradient(target.unconstrained, z)
    torch.testing.assert_close(target.unconstrained(z), value, rtol=1e-12, atol=1e-12)
    steps = STEP * torch.eye(z.shape[1], dtype=torch.float64)
    differences = torch.stack([target.unconstrained(z + h) - target.unconstrained(z - h) for h in steps], dim=1)
    # the density's curvature and size are some ten times those of the transforms
    torch.testing.assert_close(gradient, differences / (2 * STEP), rtol=1e-6, atol=1e-6)


def check_space(target: HostTarget, z: Tensor, free: list[int]) -> None:
    """To x and back, and the log Jacobian of the columns `free` of x against differences."""
    space = target.space
    assert (space.dim, len(free)) == (z.shape[1], z.shape[1])
    x = space.to_user(z)
    assert x.shape == (len(z), space.n_columns)
    assert target.names is not None
    assert len(target.names) == target.dim == space.n_columns
    torch.testing.assert_close(space.to_unconstrained(x), z, rtol=1e-8, atol=1e-8)
    steps = STEP * torch.eye(space.dim, dtype=torch.float64)
    columns = torch.stack([space.to_user(z + h) - space.to_user(z - h) for h in steps], dim=2)[:, free] / (2 * STEP)
    expected = torch.from_numpy(np.linalg.slogdet(columns.numpy())[1])
    torch.testing.assert_close(space.log_jacobian(z), expected, rtol=DIFFERENCED, atol=DIFFERENCED)


def random_points(dim: int, n: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
