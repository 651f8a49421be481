"""Contours of targets that take torch tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_plotting import COVARIANCE, draws, log_gaussian

from jkosampler import plotting
from jkosampler.errors import TargetCallError
from jkosampler.targets import Target

__all__ = ["draws"]

PRECISION = torch.as_tensor(np.linalg.inv(COVARIANCE))


def torch_gaussian(x):
    z = x - torch.tensor([1.0, -2.0], dtype=torch.float64)
    return -0.5 * torch.einsum("ni,ij,nj->n", z, PRECISION, z)


SHIFT = torch.zeros(2, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "target",
    [
        torch_gaussian,
        lambda x: -0.5 * ((x - x.new_tensor([1.0, -2.0])) @ PRECISION * (x - x.new_tensor([1.0, -2.0]))).sum(dim=1),
        lambda x: torch_gaussian(x + SHIFT),
        lambda x: torch_gaussian(torch.as_tensor(x) + SHIFT),
        Target(torch_gaussian, 2),
    ],
    ids=["function", "methods", "with parameters", "numpy in, torch out", "Target"],
)
def test_contours_of_a_torch_target_are_those_of_the_numpy_one(draws, target):
    found = plotting.plot_posterior_contours(target, draws, resolution=60).collections[-1]
    wanted = plotting.plot_posterior_contours(log_gaussian, draws, resolution=60).collections[-1]
    for path, other in zip(found.get_paths(), wanted.get_paths(), strict=True):
        np.testing.assert_allclose(path.vertices, other.vertices, atol=1e-9)


def test_contours_say_what_both_calls_raised(draws):
    def broken(x):
        raise TypeError(f"no {type(x).__name__}")

    with pytest.raises(TargetCallError, match=r"TypeError: no ndarray, nor .* TypeError: no Tensor"):
        plotting.plot_posterior_contours(broken, draws)
    with pytest.raises(ZeroDivisionError):
        plotting.plot_posterior_contours(lambda x: 1 / 0, draws)
