"""Fits that are wrong on purpose: the verdict must not trust them, or the fit must have mended what is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jkosampler import JKOSampler, laws

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]


def banana(x: Tensor) -> Tensor:
    return -0.5 * x[:, 0] ** 2 - 2.0 * (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2


@pytest.mark.parametrize("seed", range(3))
def test_a_fit_of_one_step(seed: int) -> None:
    report = JKOSampler(banana, dim=2, n_steps=1, random_state=seed, progress=False).fit().diagnose()
    assert not report.trustworthy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d", [2, 10])
@pytest.mark.parametrize("distance", [8.0, 30.0])
def test_a_start_far_from_half_of_the_modes(distance: float, d: int, seed: int) -> None:
    at = torch.zeros(d, dtype=torch.float64)
    at[0] = distance

    def log_density(x: Tensor) -> Tensor:
        return torch.logaddexp(-0.5 * (x - at).square().sum(1), -0.5 * (x + at).square().sum(1))

    fit = JKOSampler(log_density, dim=d, initial=laws.Gaussian(-at, 1.0), random_state=seed, progress=False).fit()
    missing = math.log(2.0) + 0.5 * d * math.log(2.0 * math.pi) - fit.log_evidence_
    assert missing < 0.02 or not fit.diagnose().trustworthy


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("d", [1, 2])
def test_tails_that_fall_like_one_over_the_square(d: int, seed: int) -> None:
    def cauchy(x: Tensor) -> Tensor:
        return -torch.log1p(x.square()).sum(1)

    fit = JKOSampler(cauchy, dim=d, random_state=seed, max_time=40.0, progress=False).fit()
    assert not fit.diagnose().trustworthy
