"""The ensemble samplers that benchmarks compare with, on a linear Gaussian posterior, which all of them reach."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from common.ensembles import Walk, aldi, aldi_without_gradient, eks, snapshots

A, Y = np.array([[2.0, 0.5], [0.0, 1.0], [1.0, 0.5]]), np.array([1.0, -0.5, 0.3])  # over the noise
PRIOR_STD = 2.0
PRECISION = A.T @ A + np.eye(2) / PRIOR_STD**2
MEAN, COVARIANCE = np.linalg.solve(PRECISION, A.T @ Y), np.linalg.inv(PRECISION)


def predicted(x: np.ndarray) -> np.ndarray:
    return x @ A.T


def gradient(x: np.ndarray) -> np.ndarray:
    return (MEAN - x) @ PRECISION


SAMPLERS: dict[str, Callable[[np.ndarray, np.random.Generator], Walk]] = {
    "eks": lambda x, rng: eks(x, predicted, Y, PRIOR_STD, rng, step=0.1),
    "aldi": lambda x, rng: aldi(x, gradient, rng),
    "aldi without gradient": lambda x, rng: aldi_without_gradient(x, predicted, Y, PRIOR_STD, rng),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_linear_gaussian_posterior(name: str) -> None:
    rng = np.random.default_rng(0)
    start = np.array([5.0, -3.0]) + rng.standard_normal((400, 2))
    x = snapshots(SAMPLERS[name](start, rng), n_steps=400, n=20)
    # twenty ensembles of 400, a few relaxation times in all: some 2000 independent draws, whose errors are .02 sd and
    # 2 % of an sd at one standard deviation; steps of .05 leave a bias of 2 %
    sd = np.sqrt(COVARIANCE.diagonal())
    assert np.abs((x.mean(0) - MEAN) / sd).max() < 0.08
    assert np.abs(np.cov(x.T) - COVARIANCE).max() < 0.1 * COVARIANCE.max()


def test_finite_ensemble_term_keeps_a_small_ensemble_from_shrinking() -> None:
    # five particles in the plane: without the term the variances are .66 and .02 of what they should be; with it they
    # are too large by 5 and 13 %, which is the part of the steps
    rng = np.random.default_rng(1)
    x = snapshots(aldi(rng.standard_normal((5, 2)), gradient, rng, share=0.05), n_steps=20_000, n=5_000)
    assert np.abs(x.var(0) / COVARIANCE.diagonal() - 1.0).max() < 0.25
