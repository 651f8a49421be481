"""The look from outside: it finds mass that a law lacks, and none where nothing is missing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jkosampler import JKOSampler, laws
from jkosampler._probes import look_outside
from jkosampler.particles import Particles


def two_modes(share: float, distance: float) -> laws.Mixture:
    parts = [laws.Gaussian([0.0, 0.0], 1.0), laws.Gaussian([distance, 0.0], 1.0)]
    return laws.Mixture([1.0 - share, share], parts)


def seen_from(law: laws.Law, target: object, seed: int = 0) -> str | None:
    """What the probes say of a law that is not fitted at all: a sampler of zero steps."""
    sampler = JKOSampler(target, dim=2, initial=law, n_steps=0, random_state=0, progress=False).fit()
    fitted, generator = sampler._fitted, torch.Generator().manual_seed(seed)
    inside = Particles.draw(law.to(torch.float64, "cpu"), 4000, generator)
    log_target = -fitted.setup.problem.energy.potential(inside.x)[0]
    return look_outside(fitted.setup, fitted.flow, inside, log_target, generator)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_mode_outside_is_found(share: float) -> None:
    sentence = seen_from(laws.Gaussian([0.0, 0.0], 1.0), two_modes(share, 15.0))
    assert sentence is not None
    found = float(sentence.split("lacks, ")[1].split("%")[0]) / 100.0
    assert found == pytest.approx(share, abs=0.1)


def test_nothing_is_found_where_nothing_is_missing() -> None:
    law = laws.Gaussian([0.0, 0.0], 1.0)
    assert [seen_from(law, law, seed) for seed in range(20)] == [None] * 20
    # A law a little off has noisy weights, and still lacks nothing that matters.
    near = laws.Gaussian([0.1, 0.0], 1.1)
    assert [seen_from(near, law, seed) for seed in range(20)] == [None] * 20


def test_a_target_that_fails_far_away_does_not_stop_the_look() -> None:
    def log_target(x: Tensor) -> Tensor:
        return torch.where(x.norm(dim=1) < 8.0, -0.5 * x.square().sum(1) - math.log(2.0 * math.pi), torch.nan)

    assert seen_from(laws.Gaussian([0.0, 0.0], 1.0), log_target) is None


def test_mass_beyond_the_range_of_floats_is_found() -> None:
    """More than e^709 times the law's own: a ratio of infinities would be no number, and go unnoticed."""

    def log_target(x: Tensor) -> Tensor:
        there = (x[:, 0] - 15.0).square() + x[:, 1].square() < 36.0
        return torch.where(there, 800.0 + 0.0 * x[:, 0], -0.5 * x.square().sum(1))

    sentence = seen_from(laws.Gaussian([0.0, 0.0], 1.0), log_target)
    assert sentence is not None
    assert "100.0%" in sentence
