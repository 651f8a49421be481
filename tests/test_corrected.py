"""Corrected draws of laws that are wrong on purpose: moments of the target within the Monte Carlo error."""

from __future__ import annotations

import logging
import math
from functools import cache

import numpy as np
import pytest
import torch

from jkosampler import JKOSampler, energies, laws
from jkosampler.energies import EnergyEvaluator
from jkosampler.errors import ArgumentError, FitError

N = 20_000
CORRECTED = ("snis", "imh")
MEAN, SD = 0.8, 0.6


def log_target(x: torch.Tensor) -> torch.Tensor:
    """N(.8, .6^2) times N(0, 1)."""
    return -0.5 * ((x[:, 0] - MEAN) / SD).square() - 0.5 * x[:, 1].square()


@cache
def unfinished() -> JKOSampler:
    """The law is still N(0, I)."""
    return JKOSampler(log_target, dim=2, n_steps=0, n_particles=500, random_state=0, progress=False).fit()


@pytest.mark.parametrize("method", CORRECTED)
def test_moments_are_those_of_the_target(method: str) -> None:
    x = unfinished().sample(N, method=method, random_state=1)
    assert x.shape == (N, 2)
    # weights of an effective half of the proposals, or rejections, leave an error larger than that of N draws
    tolerance = 6.0 / math.sqrt(N)
    np.testing.assert_allclose(x.mean(0), [MEAN, 0.0], atol=tolerance)
    np.testing.assert_allclose(x.std(0), [SD, 1.0], atol=tolerance)
    plain = unfinished().sample(N, random_state=1)
    assert abs(plain[:, 0].mean() - MEAN) > 10.0 * tolerance


def test_snis_repeats_few_draws_where_weights_are_nearly_equal() -> None:
    flow = JKOSampler(
        lambda x: -0.5 * x.square().sum(1), dim=2, n_steps=0, n_particles=500, random_state=0, progress=False
    ).fit()
    x = flow.sample(2000, method="snis", random_state=0)
    assert len(np.unique(x, axis=0)) == 2000


def test_chains_are_independent() -> None:
    x = unfinished().sample(N, method="imh", random_state=2)[:, 0]
    correlation = np.corrcoef(x[:-1], x[1:])[0, 1]
    assert abs(correlation) < 4.0 / math.sqrt(N)


@pytest.mark.parametrize("method", CORRECTED)
def test_the_seed_decides_and_evaluations_are_counted(method: str) -> None:
    before = unfinished().n_target_evaluations_
    first = unfinished().sample(1500, method=method, random_state=3)
    spent = unfinished().n_target_evaluations_ - before
    assert spent == (6000 if method == "snis" else 17 * 1500)
    np.testing.assert_array_equal(first, unfinished().sample(1500, method=method, random_state=3))
    assert not np.array_equal(first, unfinished().sample(1500, method=method))
    tensor = unfinished().sample(1500, method=method, random_state=3, as_tensor=True)
    np.testing.assert_array_equal(first, tensor.numpy())


@pytest.mark.parametrize("method", CORRECTED)
def test_no_draws(method: str) -> None:
    assert unfinished().sample(0, method=method).shape == (0, 2)


@pytest.mark.parametrize("method", CORRECTED)
def test_points_without_mass_are_never_drawn(method: str) -> None:
    half = JKOSampler(
        lambda x: torch.where(x[:, 0] > 0.0, -0.5 * x.square().sum(1), -torch.inf),
        dim=2, n_steps=0, n_particles=500, random_state=0, progress=False,
    ).fit()  # fmt: skip
    x = half.sample(4000, method=method, random_state=0)
    assert (x[:, 0] > 0.0).all()
    assert x[:, 0].mean() == pytest.approx(math.sqrt(2.0 / math.pi), abs=6.0 * 0.6 / math.sqrt(4000))


@pytest.mark.parametrize("method", CORRECTED)
def test_a_far_law_is_told(method: str, caplog: pytest.LogCaptureFixture) -> None:
    far = JKOSampler(
        lambda x: -50.0 * (x - 2.0).square().sum(1), dim=2, n_steps=0, n_particles=500, random_state=0, progress=False
    ).fit()
    with caplog.at_level(logging.WARNING, logger="jkosampler"):
        far.sample(500, method=method, random_state=0)
    assert f"method='{method}'" in caplog.text
    assert "look at diagnose()" in caplog.text


def test_refusals() -> None:
    with pytest.raises(ArgumentError, match=r"method must be one of .*'gibbs'"):
        unfinished().sample(10, method="gibbs")
    with pytest.raises(ArgumentError, match=r"t=0\.0: method='snis'"):
        unfinished().sample(10, 0.0, method="snis")
    heat = JKOSampler(
        energy=energies.Entropy(), initial=laws.Normal(0.0, 1.0), step_size=0.1, n_steps=0, progress=False
    ).fit()
    with pytest.raises(ArgumentError, match="corrects for a log_target"):
        heat.sample(10, method="imh")


def test_a_law_that_has_lost_the_target_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = JKOSampler(log_target, dim=2, n_steps=0, n_particles=500, random_state=0, progress=False).fit()
    monkeypatch.setattr(
        EnergyEvaluator, "potential", lambda self, x: (torch.full_like(x[:, 0], torch.inf), torch.zeros_like(x))
    )
    for method in CORRECTED:
        with pytest.raises(FitError, match="look at diagnose"):
            flow.sample(50, method=method)
