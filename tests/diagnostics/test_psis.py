"""PSIS against ArviZ (either generation), exact tails and the edge cases."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
from scipy import stats

from jkosampler.diagnostics.psis import as_log_weights, fit_generalized_pareto, pareto_k, psis
from jkosampler.errors import ArgumentError


def arviz_psis(log_weights):
    """Smoothed log weights and k-hat of whichever ArviZ is installed."""
    if importlib.util.find_spec("arviz_stats"):
        from arviz_stats.base import array_stats

        # ArviZ 1.x takes log likelihoods, that is minus the log weights.
        smoothed, k = array_stats.psislw(-log_weights)
        return np.asarray(smoothed), float(k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz")
    smoothed, k = arviz.psislw(log_weights.copy())
    return smoothed, float(k)


def pareto_log_weights(k, n, seed=0):
    """Log weights whose tail index is exactly k: w = U^-k."""
    return -k * np.log(np.random.default_rng(seed).uniform(size=n))


# ArviZ 0.x rounds the tail length up (as the paper's authors do), 1.x down: these sizes need no rounding.
@pytest.mark.parametrize("n", [100, 400, 2500, 10_000])
@pytest.mark.parametrize("k", [0.1, 0.4, 0.7, 1.3])
def test_agrees_with_arviz(n, k):
    log_weights = pareto_log_weights(k, n) - 700.0
    smoothed, k_hat = psis(log_weights)
    expected, expected_k = arviz_psis(log_weights)
    assert k_hat == pytest.approx(expected_k, abs=1e-8)
    np.testing.assert_allclose(smoothed, expected, atol=1e-8)


def test_agrees_with_arviz_for_gaussian_log_weights_and_some_zero_weights():
    log_weights = 3.0 * np.random.default_rng(1).normal(size=2500)
    log_weights[::7] = -np.inf
    smoothed, k_hat = psis(log_weights)
    expected, expected_k = arviz_psis(log_weights)
    assert k_hat == pytest.approx(expected_k, abs=1e-8)
    np.testing.assert_allclose(smoothed, expected, atol=1e-8)
    assert np.all(smoothed[::7] == -np.inf)


def test_sign_large_log_weight_is_large_weight():
    heavy = pareto_log_weights(1.5, 4000)
    assert pareto_k(heavy) > 1.2
    assert pareto_k(-heavy) < 0.2  # bounded by the uniform's power


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_recovers_the_index_of_an_exact_pareto_tail(k):
    estimates = [pareto_k(pareto_log_weights(k, 4000, seed)) for seed in range(60)]
    # 190 tail draws: sd of a maximum likelihood estimate (1 + k)/sqrt(190); the prior pulls by 10/200 to 1/2.
    shrunk = k + (0.5 - k) * 10 / 200
    assert np.mean(estimates) == pytest.approx(shrunk, abs=4 * (1 + k) / np.sqrt(190 * 60) + 0.01)


def test_fit_recovers_a_generalized_pareto_law():
    k, sigma = 0.4, 3.0
    excess = np.sort(stats.genpareto(c=k, scale=sigma).rvs(size=20_000, random_state=2))
    fitted_k, fitted_sigma = fit_generalized_pareto(excess)
    # asymptotic variances of maximum likelihood: (1 + k)^2 / m and 2 (1 + k) sigma^2 / m
    assert fitted_k == pytest.approx(k, abs=4 * (1 + k) / np.sqrt(20_000))
    assert fitted_sigma == pytest.approx(sigma, abs=4 * np.sqrt(2 * (1 + k) / 20_000) * sigma)


def test_smoothing_keeps_the_order_the_body_and_the_maximum():
    log_weights = pareto_log_weights(0.6, 2500, seed=3)
    smoothed, _ = psis(log_weights)
    order = np.argsort(log_weights)
    assert np.exp(smoothed).sum() == pytest.approx(1.0, abs=1e-12)
    assert np.all(np.diff(smoothed[order]) >= 0)
    body = order[: 2500 - 150]
    np.testing.assert_allclose(np.ptp(smoothed[body] - log_weights[body]), 0.0, atol=1e-12)
    offset = (smoothed - log_weights)[body[0]]
    assert smoothed.max() <= log_weights.max() + offset + 1e-12
    assert np.abs(smoothed - log_weights - offset).max() > 1e-3  # the tail did change


def test_smoothing_improves_a_heavy_tailed_average():
    """Mean 1 of Exp(1) from draws of Exp(rate 4), k = 3/4 (an example of Vehtari et al. 2024, section 3)."""
    rate, n, repetitions = 4.0, 1000, 300
    rng = np.random.default_rng(0)
    raw, smooth, shapes = np.empty((3, repetitions))
    for i in range(repetitions):
        x = rng.exponential(1 / rate, size=n)
        log_weights = (rate - 1) * x
        smoothed, shapes[i] = psis(log_weights)
        raw[i] = np.average(x, weights=np.exp(log_weights))
        smooth[i] = np.exp(smoothed) @ x
    shrunk = 0.75 + (0.5 - 0.75) * 10 / (95 + 10)
    assert shapes.mean() == pytest.approx(shrunk, abs=4 * 1.75 / np.sqrt(95 * repetitions) + 0.01)
    assert np.mean((smooth - 1) ** 2) < 0.9 * np.mean((raw - 1) ** 2)


def test_input_is_left_alone():
    log_weights = pareto_log_weights(0.5, 500)
    copy = log_weights.copy()
    psis(log_weights)
    np.testing.assert_array_equal(log_weights, copy)


@pytest.mark.parametrize("level", [0.0, -5.3, 1e4, -1e10])
@pytest.mark.parametrize("n", [2, 10, 1000])
def test_constant_weights_are_the_perfect_case(level, n):
    smoothed, k_hat = psis(np.full(n, level))
    assert k_hat == -np.inf
    np.testing.assert_allclose(smoothed, -np.log(n), atol=1e-12)


def test_weights_constant_to_rounding_are_the_perfect_case():
    noise = np.random.default_rng(4).integers(-1, 2, size=1000)
    assert pareto_k(-1234.5 + noise * 2.3e-13) == -np.inf


def test_top_weights_tied_are_bounded():
    log_weights = np.random.default_rng(5).normal(size=1000) - 5
    log_weights[:200] = 0.0
    assert pareto_k(log_weights) == -np.inf


def test_too_short_a_tail_says_nothing():
    smoothed, k_hat = psis(np.linspace(0, 1, 20))  # ceil(20/5) = 4 tail draws
    assert k_hat == np.inf
    np.testing.assert_allclose(smoothed, np.linspace(0, 1, 20) - np.log(np.exp(np.linspace(0, 1, 20)).sum()))
    assert np.isfinite(pareto_k(np.random.default_rng(6).normal(size=21)))  # 5 of them


def test_few_finite_weights():
    log_weights = np.full(1000, -np.inf)
    log_weights[:3] = [0.0, 1.0, 2.0]
    smoothed, k_hat = psis(log_weights)
    assert k_hat == np.inf
    assert np.exp(smoothed).sum() == pytest.approx(1.0)


def test_one_dominating_weight():
    log_weights = np.random.default_rng(7).normal(size=1000)
    log_weights[0] = 5000.0
    smoothed, k_hat = psis(log_weights)
    assert k_hat > 0.7
    assert smoothed[0] == pytest.approx(0.0, abs=1e-12)


def test_huge_range_does_not_overflow():
    smoothed, k_hat = psis(np.linspace(-1e5, 1e5, 2000))
    assert k_hat > 0.7
    assert np.all(np.isfinite(smoothed))
    assert np.exp(smoothed).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.0, np.nan, 1.0], "index 1"),
        ([0.0, 0.0, np.inf], "index 2"),
        ([-np.inf, -np.inf], "all 2 draws"),
        ([[0.0, 1.0]], r"shape \(n,\)"),
        ([0.0], "n >= 2"),
    ],
)
def test_bad_weights_are_named(bad, message):
    with pytest.raises(ArgumentError, match=f"log_weights.*{message}"):
        as_log_weights(np.array(bad))
