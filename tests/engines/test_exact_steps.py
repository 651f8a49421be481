"""Fixed steps between Gaussians follow the closed forms, step by step, through the public estimator."""

from __future__ import annotations

from functools import cache

import numpy as np
import oracles
import pytest
from oracles import Problem, random_problem
from scipy.stats import multivariate_normal
from small_problems import gaussian_law, gaussian_log_target, gradient_flow

from jkosampler import JKOSampler, energies
from jkosampler.energies import KL
from jkosampler.engines import Lagrangian
from jkosampler.engines.step_size import FixedSteps

CASES = {
    "wasserstein": (random_problem(3, 10.0, 0), 0.3, oracles.wasserstein_step),
    "kalman": (random_problem(8, 1e3, 2), 0.5, oracles.kalman_step),  # the condition of S A is 2e5
}


@cache
def fitted(metric: str) -> JKOSampler:
    p, tau, _ = CASES[metric]
    return JKOSampler(
        gaussian_log_target(p),
        metric=metric,
        initial=gaussian_law(p),
        step_size=tau,
        n_steps=5,
        progress=False,
        random_state=0,
    ).fit()


@cache
def exact_laws(metric: str) -> list[Problem]:
    p, tau, step = CASES[metric]
    laws = [p]
    for _ in range(5):
        after = step(laws[-1], tau)
        laws.append(p._replace(m=after.mean, S=after.covariance))
    return laws


@pytest.mark.parametrize("metric", CASES)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_moments_of_draws_follow_the_exact_steps(metric: str, k: int) -> None:
    _, tau, _ = CASES[metric]
    exact = exact_laws(metric)[k]
    x = fitted(metric).sample(1_000_000, t=k * tau, random_state=k)
    whiten = np.linalg.inv(oracles.root(exact.S))
    # Monte Carlo errors: 0.001 standard deviations, and 2 sqrt(d / n) < 0.006 in the spectral norm.
    assert np.abs(x.mean(axis=0) - exact.m).max() < 0.01 * np.sqrt(np.diag(exact.S).min())
    assert np.abs(whiten @ (x.mean(axis=0) - exact.m)).max() < 0.01
    covariance = whiten @ np.cov(x.T) @ whiten
    assert np.linalg.norm(covariance - np.eye(len(exact.m)), 2) < 0.01


@pytest.mark.parametrize("metric", CASES)
@pytest.mark.parametrize("k", [0, 1, 3, 5])
def test_densities_follow_the_exact_steps(metric: str, k: int) -> None:
    _, tau, _ = CASES[metric]
    exact = multivariate_normal(*exact_laws(metric)[k][2:])
    x = exact.rvs(1000, random_state=k)
    np.testing.assert_allclose(fitted(metric).log_density(x, t=k * tau), exact.logpdf(x), atol=2e-4)


@pytest.mark.parametrize("metric", CASES)
def test_history_tells_the_energies_and_costs_of_the_exact_steps(metric: str) -> None:
    p, tau, _ = CASES[metric]
    sampler, laws = fitted(metric), exact_laws(metric)
    log_z = 0.5 * (len(p.m) * np.log(2.0 * np.pi) - np.linalg.slogdet(p.A)[1])
    assert sampler.n_steps_ == len(sampler.history_) == 5
    np.testing.assert_allclose(sampler.times_, tau * np.arange(6))
    for before, after, record in zip(laws[:-1], laws[1:], sampler.history_, strict=True):
        assert abs(record.energy - (oracles.kl(after) - log_z)) < 4.5 * record.energy_se
        change = oracles.kl(after) - oracles.kl(before)
        assert abs(record.energy_change - change) < 4.5 * record.energy_change_se
        assert record.transport_cost == pytest.approx(_cost(metric, before, tau), rel=0.15)
        assert record.optimality_gap < 1e-6  # nats, at every particle: no sampling error
        assert record.integration_error == 0.0
    assert sampler.log_evidence_ == pytest.approx(log_z, abs=4.5 * sampler.log_evidence_se_ + 1e-6)


def _cost(metric: str, before: Problem, tau: float) -> float:
    """E (T - x)'G(T - x) of the exact step, G = I or C^-1."""
    step = CASES[metric][2](before, tau)
    move, shift = step.matrix - np.eye(len(before.m)), step.mean - before.m
    g = np.eye(len(before.m)) if metric == "wasserstein" else np.linalg.inv(before.S)
    return float(np.trace(g @ move @ before.S @ move.T) + shift @ g @ shift)


def test_an_energy_and_its_log_target_give_the_same_steps() -> None:
    p, tau, _ = CASES["wasserstein"]
    log_target = gaussian_log_target(p)
    energy = energies.Entropy() + energies.Potential(lambda x: -log_target(x))
    sampler = JKOSampler(
        energy=energy, initial=gaussian_law(p), step_size=tau, n_steps=2, progress=False, random_state=0
    ).fit()
    np.testing.assert_allclose(sampler.particles_, fitted_particles(tau), atol=1e-9)


def fitted_particles(tau: float) -> np.ndarray:
    p = CASES["wasserstein"][0]
    sampler = JKOSampler(
        gaussian_log_target(p),
        metric="wasserstein",
        initial=gaussian_law(p),
        step_size=tau,
        n_steps=2,
        progress=False,
        random_state=0,
    )
    return sampler.fit().particles_


@pytest.mark.parametrize("metric", CASES)
@pytest.mark.parametrize(("kind", "tolerance"), [("gradient", 0.04), pytest.param("ode", 0.1, marks=pytest.mark.slow)])
def test_a_network_alone_finds_a_gaussian_step_too(metric: str, kind: str, tolerance: float) -> None:
    p = oracles.WORKED
    engine = Lagrangian(map=kind, affine=False, n_iterations=250, n_ridges=0)
    sampler = JKOSampler(
        gaussian_log_target(p),
        metric=metric,
        initial=gaussian_law(p),
        step_size=0.3,
        n_steps=1,
        engine=engine,
        n_particles=4000,
        progress=False,
        random_state=0,
    ).fit()
    step = CASES[metric][2](p, 0.3)
    exact = multivariate_normal(step.mean, step.covariance)
    x = exact.rvs(1000, random_state=0)
    error = np.exp(sampler.log_density(x) - exact.logpdf(x)) - 1.0
    assert np.sqrt(np.mean(error**2)) < tolerance
    assert sampler.history_[0].stage == "network"


@pytest.mark.parametrize("metric", CASES)
def test_certificates_of_a_step_that_was_not_made(metric: str) -> None:
    p, tau = oracles.WORKED, 0.3
    flow = gradient_flow(
        KL(gaussian_log_target(p)), gaussian_law(p), metric=metric, control=FixedSteps(tau, 1e-3), n=2000
    )
    engine = Lagrangian(affine=False, n_ridges=0, n_iterations=1)  # at a learning rate of 4e-7
    _, info = engine.step(engine.init(flow))
    assert info is not None
    # With T = id the residual is r = A (x - b) - S^-1 (x - m), all moments of which are known.
    slope, shift = p.A - np.linalg.inv(p.S), p.A @ (p.m - p.b)
    kalman = np.trace(p.S @ slope @ p.S @ slope) + shift @ p.S @ shift
    square = kalman if metric == "kalman" else np.trace(slope @ p.S @ slope) + shift @ shift
    assert info.optimality_gap == pytest.approx(0.5 * tau * square, rel=0.15)  # 2000 draws
    assert info.dissipation == pytest.approx(kalman, rel=0.15)
    variance = 0.5 * np.trace(slope @ p.S @ slope @ p.S) + shift @ p.S @ shift
    assert info.discrepancy == pytest.approx(0.5 * variance, rel=0.15)
    root = oracles.root(p.S)  # the identities are stated in whitened coordinates, whatever the metric
    matrix = root @ (p.A @ p.S - np.eye(2)) @ np.linalg.inv(root)
    expected = np.sqrt((np.sum(matrix**2) + np.sum((root @ shift) ** 2)) / 2.0)
    assert info.residual == pytest.approx(expected, rel=0.15)
