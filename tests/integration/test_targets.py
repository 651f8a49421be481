"""Whole fits, with the defaults, of targets that are hard in one way each: exact answers are closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from jkosampler import JKOSampler, laws, targets
from jkosampler.errors import FitError

STUDENT = math.log(3.0 * math.pi) + math.lgamma(1.5) - math.lgamma(2.5)  # log integral of `student_t` in the plane


def fitted(log_target: Any, dim: int | None = None, **settings: Any) -> JKOSampler:
    return JKOSampler(log_target, dim=dim, random_state=0, progress=False, **settings).fit()


def student_t(x: Tensor) -> Tensor:
    return -2.5 * torch.log1p(x.square().sum(1) / 3.0)


def bent(x: Tensor) -> Tensor:
    return -0.5 * x[:, 0].square() - 2.0 * (x[:, 1] - 0.5 * x[:, 0].square()).square()


def kl(sampler: JKOSampler, log_evidence: float) -> float:
    return log_evidence - sampler.diagnose(20_000).elbo


def test_uniform_prior_whose_edge_the_start_crosses() -> None:
    prior = laws.Uniform([-3.0, -3.0], [3.0, 3.0])
    problem = targets.BayesianInverseProblem(lambda x: x, y=[0.5, 0.5], noise_std=0.3, prior=prior)
    sampler = fitted(problem)
    assert sampler.history_[0].outside == 0.0
    assert sampler.converged_
    assert sampler.log_evidence_ == pytest.approx(-math.log(36.0), abs=1e-3)


@pytest.mark.slow
def test_density_with_a_hard_edge_at_its_mode_is_not_trusted() -> None:
    with pytest.warns(ConvergenceWarning, match="not converged"):
        sampler = fitted(lambda x: torch.where(x[:, 0] > 0.0, -x[:, 0] - 0.5 * x[:, 1] ** 2, -torch.inf), 2)
    report = sampler.diagnose(4000)
    assert not report.trustworthy
    error = abs(report.log_evidence - 0.5 * math.log(2.0 * math.pi))
    assert error < 4.0 * report.log_evidence_se + 0.01


def test_wasserstein_steps_take_the_scale_of_the_target() -> None:
    sampler = fitted(lambda x: -0.5 * (x / 100.0).square().sum(1), 2, metric="wasserstein")
    assert sampler.n_steps_ < 15
    assert kl(sampler, math.log(2.0 * math.pi * 1e4)) < 1e-3


@pytest.mark.parametrize("dim", [6, 12])
def test_gaussians_need_no_network_in_any_dimension(dim: int) -> None:
    scales = torch.logspace(-2, 0, dim, dtype=torch.float64)
    sampler = fitted(lambda x: -0.5 * (x / scales).square().sum(1), dim)
    assert {record.stage for record in sampler.history_} <= {"affine", "collocation"}
    assert abs(kl(sampler, 0.5 * dim * math.log(2.0 * math.pi) + float(scales.log().sum()))) < 1e-3


def test_a_mode_that_the_fit_loses_is_reported() -> None:
    mixture = laws.Mixture([0.8, 0.2], [laws.Gaussian([-4.0], 1.0), laws.Gaussian([4.0], 1.0)])
    sampler = fitted(mixture, initial=laws.Gaussian([0.0], 25.0))
    share = float((sampler.sample(4000, random_state=0) > 0.0).mean())
    report = sampler.diagnose(4000)
    assert abs(share - 0.2) < 0.02 or not report.trustworthy


def test_heavy_tails() -> None:
    assert kl(fitted(student_t, 2), STUDENT) < 2e-3


@pytest.mark.parametrize("dim", [1, 2])
def test_float32(dim: int) -> None:
    sampler = fitted(student_t, dim, dtype=torch.float32)
    assert "collocation" in {record.stage for record in sampler.history_}
    line = math.log(quad(lambda x: (1.0 + x * x / 3.0) ** -2.5, -100.0, 100.0)[0])
    assert abs(kl(sampler, {1: line, 2: STUDENT}[dim])) < 5e-3


@pytest.mark.slow
def test_bent_target() -> None:
    assert kl(fitted(bent, 2), math.log(math.pi)) < 0.01


@pytest.mark.slow
def test_fifteen_dimensions() -> None:
    def log_target(x: Tensor) -> Tensor:
        return (-0.5 * x.square() - 0.1 * (2.0 * x).cos()).sum(1)

    one = quad(lambda x: math.exp(-0.5 * x * x - 0.1 * math.cos(2.0 * x)), -20.0, 20.0)[0]
    sampler = fitted(log_target, 15)
    assert kl(sampler, 15.0 * math.log(one)) < 0.03


@pytest.mark.parametrize(
    "log_target",
    [lambda x: 0.5 * x.square().sum(1), lambda x: -0.5 * x[:, 0].square(), lambda x: x.sum(1)],
    ids=["wrong sign", "flat direction", "slope without end"],
)
def test_densities_without_an_integral_end_in_words(log_target: Any) -> None:
    with pytest.raises(FitError, match=r"right sign .* and a finite integral"):
        fitted(log_target, 2)
