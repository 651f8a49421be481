"""The main job, end to end: the elliptic posterior from the paper's start, the prior, and with more noise.

The reference is quadrature (`reference_elliptic`); tolerances at 50 000 draws are several Monte Carlo errors.
"""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from reference_elliptic import exact_elliptic

from jkosampler import JKOSampler, forward, laws
from jkosampler.targets import Target

DRAWS = 50_000
PAPER = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])


def posterior(noise_std=0.1):
    return forward.EllipticBVP().posterior(y=[27.5, 79.7], noise_std=noise_std, prior_std=10.0)


def fit(seed, *, noise_std=0.1, initial=None):
    return JKOSampler(posterior(noise_std), metric="kalman", initial=initial, random_state=seed, progress=False).fit()


def check_against_quadrature(sampler, exact, *, kl):
    report, x = sampler.diagnose(DRAWS), sampler.sample(DRAWS)
    assert exact["log_evidence"] - report.elbo <= kl
    assert abs(report.log_evidence - exact["log_evidence"]) <= 0.003
    assert report.ess_fraction >= 0.99
    assert report.trustworthy
    assert np.all(np.abs(x.mean(0) - exact["mean"]) <= 0.02 * exact["sd"])
    assert np.all(np.abs(x.std(0) / exact["sd"] - 1.0) <= 0.02)
    quantiles = np.quantile(x, [0.05, 0.5, 0.95], axis=0).T
    expected = np.stack([exact["quantiles_u1"], exact["quantiles_u2"]])
    assert np.all(np.abs(quantiles - expected) <= 0.05 * exact["sd"][:, None])
    return report


@pytest.fixture(scope="module")
def exact():
    return exact_elliptic()


@pytest.fixture(scope="module")
def first():
    return fit(0, initial=PAPER)


def test_from_the_start_of_the_paper(first, exact):
    assert check_against_quadrature(first, exact, kl=0.001).pareto_k < 0.3
    assert first.n_target_evaluations_ <= 1_000_000
    assert first.history_[0].note is not None  # the box is smoothed, and the history says so


def test_energy_on_fresh_draws_never_rises_beyond_its_monte_carlo_error(first):
    # draws of their own at every time: those of the fit have accepted the steps
    target, seen = posterior(), []
    for k, t in enumerate(first.times_[1:]):
        x, log_q = first.sample_with_log_density(20_000, t=t, random_state=k, as_tensor=True)
        energy = log_q - target(x)
        seen.append((float(energy.mean()), float(energy.std()) / len(x) ** 0.5))
    for (before, error_before), (after, error_after) in pairwise(seen):
        assert after - before <= 3.0 * np.hypot(error_before, error_after)


def test_density_integrates_to_one_at_every_stored_time(first):
    for t in first.times_[1:]:
        x = first.sample(2000, t=t, random_state=0)
        axes = [np.linspace(m - 9 * s, m + 9 * s, 181) for m, s in zip(x.mean(0), x.std(0), strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
        cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
        assert first.density(points, t=t).sum() * cell == pytest.approx(1.0, abs=1e-3)


def test_pull_back_of_draws_agrees_with_the_density_carried_along(first):
    particles = first._fitted.flow.particles(2000, torch.Generator().manual_seed(0))
    pulled = first.log_density(particles.x)
    assert float((pulled - particles.log_rho).abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_seeds_and_their_k_hat(seed, exact):
    began = time.process_time()
    sampler = fit(seed, initial=PAPER)
    assert time.process_time() - began <= 30.0
    assert check_against_quadrature(sampler, exact, kl=0.001).pareto_k < 0.3
    assert sampler.n_target_evaluations_ <= 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_from_the_prior(seed, exact):
    report = fit(seed).diagnose(DRAWS)
    assert exact["log_evidence"] - report.elbo <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twice_the_noise(seed):
    report = fit(seed, noise_std=0.2, initial=PAPER).diagnose(DRAWS)
    assert exact_elliptic(noise_std=0.2)["log_evidence"] - report.elbo <= 0.005


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_plateau_is_found_or_warned_of(seed):
    exact = exact_elliptic(noise_std=0.5)
    sampler = fit(seed, noise_std=0.5, initial=PAPER)
    found = np.mean(sampler.sample(DRAWS)[:, 0] > -1.0)
    assert abs(found - exact["plateau_mass"]) <= 0.03 or not sampler.diagnose(DRAWS).trustworthy


@pytest.mark.slow
def test_kalman_is_affine_invariant(exact):
    """x -> Mx + b, cond(M) = 1e4: the KL stays."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(2, 2, generator=generator, dtype=torch.float64))[0] for _ in "lr")
    matrix = left @ torch.diag(torch.tensor([100.0, 0.01], dtype=torch.float64)) @ right
    shift = torch.tensor([3.0, -7.0], dtype=torch.float64)
    problem = posterior()

    def pull(x):
        return torch.linalg.solve(matrix, (x - shift).mT).mT

    smooth = PAPER.smoothed()
    start = laws.Gaussian(matrix @ smooth.mean + shift, matrix @ smooth.covariance @ matrix.T)
    target = Target(lambda x: problem(pull(x)), dim=2)
    moved = JKOSampler(target, initial=start, random_state=0, progress=False).fit()
    log_jacobian = float(torch.linalg.slogdet(matrix)[1])
    kl = exact["log_evidence"] + log_jacobian - moved.diagnose(DRAWS).elbo
    assert kl <= 0.005
