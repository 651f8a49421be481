"""Evidence, ELBO and ESS against closed forms for Gaussians.

Proposal q = N(0, I), unnormalised target Z N(mu, sigma^2 I): with v = sigma^2,
KL(q | p) = d/2 (1/v - 1 + log v) + |mu|^2 / (2 v), and, for v < 2,
E_q (p/q)^2 = prod_i exp(mu_i^2 / (2 - v)) / sqrt(v (2 - v)).
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import logsumexp

from jkosampler.diagnostics.evidence import evidence, tail_error
from jkosampler.errors import ArgumentError

LOG_Z = -37.25
MU, V = np.array([0.3, -0.2]), 0.8


def log_weights(n, seed, mu=MU, v=V):
    x = np.random.default_rng(seed).normal(size=(n, len(mu)))
    log_q = stats.norm.logpdf(x).sum(axis=1)
    log_p = stats.norm.logpdf(x, loc=mu, scale=np.sqrt(v)).sum(axis=1)
    return LOG_Z + log_p - log_q


def second_moment(mu, v):
    return np.prod(np.exp(mu**2 / (2 - v)) / np.sqrt(v * (2 - v)))


def kl(mu, v):
    return 0.5 * np.sum(1 / v - 1 + np.log(v) + mu**2 / v)


def test_the_closed_forms_themselves():
    def ratio(x):
        return stats.norm.pdf(x, 0.3, np.sqrt(V)) / stats.norm.pdf(x)

    quadrature, _ = integrate.quad(lambda x: ratio(x) ** 2 * stats.norm.pdf(x), -12, 12)
    assert quadrature == pytest.approx(second_moment(np.array([0.3]), V), rel=1e-8)
    quadrature, _ = integrate.quad(lambda x: -np.log(ratio(x)) * stats.norm.pdf(x), -12, 12)
    assert quadrature == pytest.approx(kl(np.array([0.3]), V), rel=1e-8)


def test_gaussian_closed_forms():
    n = 200_000
    found = evidence(log_weights(n, seed=0))
    m2 = second_moment(MU, V)
    assert found.n == n
    assert found.elbo == pytest.approx(LOG_Z - kl(MU, V), abs=4 * found.elbo_se)
    assert found.log_evidence == pytest.approx(LOG_Z, abs=4 * np.sqrt((m2 - 1) / n))
    assert found.log_evidence_se == pytest.approx(np.sqrt((m2 - 1) / n), rel=0.05)
    w2 = np.exp(2 * (log_weights(n, seed=0) - LOG_Z))
    assert found.ess_fraction == pytest.approx(1 / m2, abs=4 * w2.std() / np.sqrt(n) / m2**2)
    assert found.ess == pytest.approx(n * found.ess_fraction)


@pytest.mark.parametrize("seed", range(5))
def test_definitions_term_by_term(seed):
    values = 2 * np.random.default_rng(seed).normal(size=50)
    w = np.exp(values)
    found = evidence(values)
    assert found.ess == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found.log_evidence == pytest.approx(np.log(w.mean()))
    assert found.log_evidence_se == pytest.approx(np.sqrt(1 / found.ess - 1 / 50))
    assert found.elbo == pytest.approx(values.mean())
    assert found.elbo_se == pytest.approx(stats.sem(values))


def test_standard_error_covers():
    """|error| < 1.96 se in 95 % of repetitions, within 4 binomial standard deviations."""
    repetitions, n = 600, 500
    inside = 0
    for seed in range(repetitions):
        found = evidence(log_weights(n, seed))
        inside += abs(found.log_evidence - LOG_Z) < 1.96 * found.log_evidence_se
    assert inside / repetitions == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / repetitions))


def test_elbo_standard_error_covers():
    repetitions, n = 600, 200
    truth = LOG_Z - kl(MU, V)
    results = [evidence(log_weights(n, seed)) for seed in range(repetitions)]
    inside = np.mean([abs(r.elbo - truth) < 1.96 * r.elbo_se for r in results])
    assert inside == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / repetitions))


@pytest.mark.parametrize("shift", [-1e6, 0.0, 1e6])
def test_a_constant_shifts_evidence_and_elbo_only(shift):
    values = np.random.default_rng(0).normal(size=300)
    base, moved = evidence(values), evidence(values + shift)
    assert moved.log_evidence - shift == pytest.approx(base.log_evidence, abs=1e-8)
    assert moved.elbo - shift == pytest.approx(base.elbo, abs=1e-8)
    assert moved.ess == pytest.approx(base.ess, rel=1e-8)
    assert moved.log_evidence_se == pytest.approx(base.log_evidence_se, rel=1e-6)


def test_huge_range():
    values = np.array([-1e8, 0.0, 1e8, 5.0])
    found = evidence(values)
    assert found.log_evidence == pytest.approx(logsumexp(values) - np.log(4))
    assert found.ess == pytest.approx(1.0)
    assert found.log_evidence_se == pytest.approx(np.sqrt(1 - 1 / 4))


def test_nearly_constant_weights_keep_a_small_standard_error():
    values = 1e-9 * np.random.default_rng(0).normal(size=1000)
    assert evidence(values).log_evidence_se == pytest.approx(values.std() / np.sqrt(1000), rel=1e-6)


def test_constant_weights():
    found = evidence(np.full(10, -3.0))
    assert (found.elbo, found.log_evidence, found.ess, found.ess_fraction) == (-3.0, -3.0, 10.0, 1.0)
    assert found.elbo_se == 0.0
    assert found.log_evidence_se == 0.0


def test_zero_weights_are_legal():
    found = evidence(np.array([-np.inf, 0.0, 0.0, 0.0]))
    assert found.elbo == -np.inf
    assert np.isnan(found.elbo_se)
    assert found.log_evidence == pytest.approx(np.log(0.75))
    assert found.ess == pytest.approx(3.0)


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf], [0.0], []])
def test_bad_weights(bad):
    with pytest.raises(ArgumentError, match="log_weights"):
        evidence(np.array(bad))


@pytest.mark.parametrize("k", [-0.5, 0.3, 0.9])
def test_tail_error_is_the_integral_of_the_extrapolated_tail(k):
    n, largest = 400, 3.0
    integral, _ = integrate.quad(lambda s: (largest - 1) * (n * s) ** -k, 0, 1 / n)
    assert tail_error(largest, k, n) == pytest.approx(integral, rel=1e-6)


def test_tail_error_of_a_tail_without_mean_and_of_equal_weights():
    assert tail_error(1.2, 1.0, 400) == tail_error(1.2, np.inf, 400) == tail_error(1.2, np.nan, 400) == np.inf
    assert tail_error(1.0, -np.inf, 400) == 0.0
