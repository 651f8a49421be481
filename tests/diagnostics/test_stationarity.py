"""Relative Fisher information and step identities against exact Gaussian flows and steps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from jkosampler.diagnostics.stationarity import estimate_stationarity, stationarity, step_identities
from jkosampler.errors import ArgumentError

# Target N(b, A^-1), start N(m, S), step tau; A and S do not commute.
A = np.array([[2.0, 0.5], [0.5, 1.0]])
B = np.array([1.0, -1.0])
M = np.array([0.0, 0.5])
S = np.array([[1.0, 0.3], [0.3, 0.5]])
TAU = 0.3
EYE = np.eye(2)


def points_with_moments(mean, covariance, n=64, seed=0):
    """Points whose sample mean and covariance (over n) are exact: the identities are linear in those two."""
    z = np.random.default_rng(seed).normal(size=(n, len(mean)))
    z -= z.mean(axis=0)
    z = z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / n)).T
    return mean + z @ np.linalg.cholesky(covariance).T


def wasserstein_step(tau=TAU):
    """Exact W2 JKO step of KL: mean m' and linear part K of the map."""
    root = sqrtm(S).real
    inverse = np.linalg.inv(root)
    riccati = inverse @ (EYE + tau * A) @ inverse
    n = (sqrtm(EYE + 4 * tau * riccati).real - EYE) / (2 * tau)
    mean = np.linalg.solve(EYE + tau * A, M + tau * A @ B)
    return mean, inverse @ np.linalg.inv(n) @ inverse


def kalman_step(tau=TAU):
    """Exact Kalman-Wasserstein step with C = S frozen."""
    root = sqrtm(S).real
    n = (sqrtm((1 + 4 * tau) * EYE + 4 * tau**2 * root @ A @ root).real - EYE) / (2 * tau)
    mean = np.linalg.solve(EYE + tau * S @ A, M + tau * S @ A @ B)
    return mean, root @ np.linalg.inv(n) @ np.linalg.inv(root)


def identities(mean, linear, covariance, x=None, tau=TAU):
    x = points_with_moments(M, S) if x is None else x
    moved = mean + (x - M) @ linear.T
    return step_identities(moved - x, moved, (moved - B) @ A, tau, covariance)


def test_worked_values_of_the_exact_steps():
    mean, linear = wasserstein_step()
    np.testing.assert_allclose(mean, [0.25880923, 0.23936817], atol=1e-8)
    np.testing.assert_allclose(linear, [[0.88535073, -0.19252897], [-0.19252897, 1.23311183]], atol=1e-8)
    mean, linear = kalman_step()
    np.testing.assert_allclose(mean, [0.18354489, 0.42945277], atol=1e-8)
    np.testing.assert_allclose(linear, [[0.84811014, -0.13358940], [-0.14193874, 1.09859027]], atol=1e-8)


@pytest.mark.parametrize(("step", "covariance"), [(wasserstein_step, None), (wasserstein_step, EYE), (kalman_step, S)])
def test_exact_step_has_no_residual(step, covariance):
    found = identities(*step(), covariance)
    np.testing.assert_allclose(found.translation, 0, atol=1e-12)
    np.testing.assert_allclose(found.matrix, 0, atol=1e-12)
    assert found.residual < 1e-11


def test_no_step_leaves_the_right_sides():
    """With T = x (no step) both are the right sides at the start: tau E[grad V(x)] and so on."""
    found = identities(M, EYE, S)
    np.testing.assert_allclose(found.translation, TAU * A @ (M - B), atol=1e-12)
    np.testing.assert_allclose(found.matrix, -TAU * (EYE - A @ S), atol=1e-12)
    root = sqrtm(S).real
    white = [root @ A @ (M - B), root @ (EYE - A @ S) @ np.linalg.inv(root)]
    expected = np.sqrt((np.linalg.norm(white[0]) ** 2 + np.linalg.norm(white[1]) ** 2) / 2)
    assert found.residual == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mean, linear: (mean + np.array([0.05, 0.0]), linear),
        lambda mean, linear: (mean, 1.03 * linear),
        lambda mean, linear: (mean, linear @ np.array([[1.0, 0.04], [-0.04, 1.0]])),
        lambda mean, linear: (M, EYE),
    ],
)
@pytest.mark.parametrize(("step", "covariance"), [(wasserstein_step, None), (kalman_step, S)])
def test_wrong_map_is_detected(wrong, step, covariance):
    assert identities(*wrong(*step()), covariance).residual > 0.02


def test_wrong_metric_and_wrong_step_size_are_detected():
    assert identities(*wasserstein_step(), S).residual > 0.1
    assert identities(*kalman_step(), None).residual > 0.1
    assert identities(*wasserstein_step(), None, tau=1.2 * TAU).residual > 0.02


def test_monte_carlo_noise_is_as_documented():
    """At the exact step n d E residual^2 = tr H + tr H tr H^-1 + d with H = C S'^-1.

    The force is S'^-1 (T - m') there, and fourth moments of a Gaussian give the rest.
    It is d (d + 2) when the step changes the covariance little.
    """
    rng = np.random.default_rng(0)
    n, repetitions = 400, 300
    mean, linear = kalman_step()
    h = S @ np.linalg.inv(linear @ S @ linear.T)
    squares = [
        identities(mean, linear, S, rng.multivariate_normal(M, S, size=n)).residual ** 2 for _ in range(repetitions)
    ]
    expected = (np.trace(h) + np.trace(h) * np.trace(np.linalg.inv(h)) + 2) / (2 * n)
    assert np.mean(squares) == pytest.approx(expected, abs=4 * np.std(squares) / np.sqrt(repetitions))
    assert expected == pytest.approx((2 + 2) / n, rel=0.2)


def test_residual_of_a_kalman_step_is_affine_invariant():
    """x -> L x + c maps a step to a step: C -> L C L^T, gradients -> L^-T gradients."""
    x = points_with_moments(M, S)
    rng = np.random.default_rng(1)
    moved = 0.9 * x + 0.1 * np.tanh(x)
    gradient = (moved - B) @ A + 0.2 * np.sin(moved)
    base = step_identities(moved - x, moved, gradient, TAU, S)
    linear, shift = rng.normal(size=(2, 2)) + 2 * EYE, np.array([300.0, -40.0])
    other = step_identities(
        (moved - x) @ linear.T,
        moved @ linear.T + shift,
        gradient @ np.linalg.inv(linear),
        TAU,
        linear @ S @ linear.T,
    )
    assert base.residual > 0.1
    assert other.residual == pytest.approx(base.residual, rel=1e-8)


def test_residual_of_a_wasserstein_step_is_free_of_units():
    """x -> a x is time -> a^2 time in the Wasserstein metric, for any potential."""
    x = points_with_moments(M, S)
    moved, a = 0.9 * x + 0.1 * np.tanh(x), 1e3
    gradient = (moved - B) @ A
    base = step_identities(moved - x, moved, gradient, TAU)
    other = step_identities(a * (moved - x), a * moved, gradient / a, a**2 * TAU)
    assert other.residual == pytest.approx(base.residual, rel=1e-8)


def test_centred_origin_is_unaffected_by_a_far_away_target():
    rng = np.random.default_rng(2)
    x = rng.multivariate_normal(M, S, size=300)
    far = np.array([1e4, -1e4])
    mean, linear = kalman_step()
    moved = mean + (x - M) @ linear.T
    near = step_identities(moved - x, moved, (moved - B) @ A, TAU, S)
    away = step_identities(moved - x, moved + far, (moved - B) @ A, TAU, S)
    np.testing.assert_allclose(away.matrix, near.matrix, atol=1e-9)


# Relative Fisher information


def relative_score(x, mean, covariance):
    """Grad log N(mean, covariance) - grad log target."""
    return -(x - mean) @ np.linalg.inv(covariance) + (x - B) @ A


def kl(mean, covariance):
    return 0.5 * (np.trace(A @ covariance) - 2 - np.log(np.linalg.det(A @ covariance)) + (mean - B) @ A @ (mean - B))


def kalman_flow(t):
    """Exact mean and covariance of the continuous Kalman-Wasserstein flow of KL."""
    covariance = np.linalg.inv(A + np.exp(-2 * t) * (np.linalg.inv(S) - A))
    mean = B + np.exp(-t) * sqrtm(covariance @ np.linalg.inv(S)).real @ (M - B)
    return mean, covariance


@pytest.mark.parametrize("t", [0.0, 0.4, 2.0])
def test_is_the_rate_at_which_the_kalman_flow_dissipates(t):
    mean, covariance = kalman_flow(t)
    x = points_with_moments(mean, covariance)
    rate = (kl(*kalman_flow(t - 1e-4)) - kl(*kalman_flow(t + 1e-4))) / 2e-4
    assert stationarity(relative_score(x, mean, covariance), covariance) == pytest.approx(rate, rel=1e-6)


def test_vanishes_at_the_target_only():
    covariance = np.linalg.inv(A)
    x = points_with_moments(B, covariance)
    assert stationarity(relative_score(x, B, covariance), covariance) == pytest.approx(0.0, abs=1e-20)
    assert stationarity(relative_score(x, B + 0.1, covariance), covariance) > 1e-3


def test_bounds_kl_by_the_log_sobolev_inequality():
    """-Hess log target = A >= C^-1 when C = A^-1 + something positive."""
    covariance = np.linalg.inv(A) + np.diag([0.3, 1.0])
    mean = B + np.array([1.0, -2.0])
    x = points_with_moments(mean, covariance)
    assert kl(mean, covariance) <= stationarity(relative_score(x, mean, covariance), covariance) / 2


def test_stationarity_is_affine_invariant():
    rng = np.random.default_rng(3)
    g, linear = rng.normal(size=(50, 2)), rng.normal(size=(2, 2))
    moved = stationarity(g @ np.linalg.inv(linear), linear @ S @ linear.T)
    assert moved == pytest.approx(stationarity(g, S), rel=1e-10)
    assert stationarity(g, EYE) == pytest.approx((g**2).sum(axis=1).mean())


def test_standard_error_of_the_stationarity():
    """g ~ N(0, I) in d = 2 and C = I: g'Cg has mean 2 and variance 4; repetitions show the error that is stated."""
    rng = np.random.default_rng(4)
    estimates = [estimate_stationarity(rng.normal(size=(200, 2)), EYE) for _ in range(400)]
    values, errors = np.array(estimates).T
    assert np.mean(errors) == pytest.approx(2 / np.sqrt(200), rel=0.03)
    assert np.std(values) == pytest.approx(np.mean(errors), rel=4 / np.sqrt(2 * 400))
    assert abs(np.mean(values) - 2) < 4 * np.mean(errors) / np.sqrt(400)
    g = rng.normal(size=(50, 2))
    assert estimate_stationarity(g, S).value == stationarity(g, S)
    assert np.isnan(estimate_stationarity(g[:1], S).standard_error)


@pytest.mark.parametrize(
    ("g", "c", "name"),
    [
        (np.zeros(3), EYE, "relative_score"),
        (np.array([[0.0, np.nan]]), EYE, "relative_score.*row 0"),
        (np.zeros((3, 2)), np.eye(3), "covariance"),
        (np.zeros((3, 2)), np.array([[1.0, 0.5], [0.0, 1.0]]), "covariance.*symmetric"),
        (np.zeros((3, 2)), np.diag([1.0, -1.0]), "covariance.*positive"),
        (np.zeros((3, 2)), np.diag([1.0, np.nan]), "covariance.*finite"),
    ],
)
def test_stationarity_names_the_bad_argument(g, c, name):
    with pytest.raises(ArgumentError, match=name):
        stationarity(g, c)


def test_step_identities_names_the_bad_argument():
    x = points_with_moments(M, S)
    with pytest.raises(ArgumentError, match="displacement"):
        step_identities(x[1:], x, x, TAU)
    with pytest.raises(ArgumentError, match="grad_potential"):
        step_identities(x, x, x[:, :1], TAU)
    with pytest.raises(ArgumentError, match="step_size"):
        step_identities(x, x, x, 0.0)
    with pytest.raises(ArgumentError, match="covariance is singular"):
        step_identities(x, x, x, TAU, np.ones((2, 2)))
    with pytest.raises(ArgumentError, match="moved - displacement is singular"):
        step_identities(x, x, x, TAU)
