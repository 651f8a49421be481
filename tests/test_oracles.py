"""The closed forms that other tests rely on, against printed values and computations that don't use them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracles
import pytest
from oracles import WORKED, GaussianStep, Problem, random_problem
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

TAU = 0.3
PRINTED = 2e-8  # the values below have eight decimals
STEPS = {"wasserstein": oracles.wasserstein_step, "kalman": oracles.kalman_step}
Step = Callable[[Problem, float], GaussianStep]


def cost_matrix(metric: str, p: Problem) -> np.ndarray:
    """The G of the transport cost E (T - x)'G(T - x)."""
    return np.eye(len(p.m)) if metric == "wasserstein" else np.linalg.inv(p.S)


def objective(metric: str, p: Problem, tau: float, mean: np.ndarray, matrix: np.ndarray) -> float:
    """KL + cost / (2 tau) of the affine map `mean + matrix (x - m)`, by moments alone."""
    g, move, shift = cost_matrix(metric, p), matrix - np.eye(len(p.m)), mean - p.m
    cost = np.trace(g @ move @ p.S @ move.T) + shift @ g @ shift
    return oracles.kl(Problem(p.A, p.b, mean, matrix @ p.S @ matrix.T)) + cost / (2.0 * tau)


def test_ornstein_uhlenbeck_printed_values() -> None:
    mean, covariance = oracles.ornstein_uhlenbeck(WORKED, 0.5)
    np.testing.assert_allclose(mean, [0.43751807, 0.05471567], atol=PRINTED)
    expected = [[0.57060175, -0.10944581], [-0.10944581, 0.81180639]]
    np.testing.assert_allclose(covariance, expected, atol=PRINTED)


def test_ornstein_uhlenbeck_solves_its_moment_equations() -> None:
    p = random_problem(3, 20.0, 0)

    def rates(_: float, y: np.ndarray) -> np.ndarray:
        m, s = y[:3], y[3:].reshape(3, 3)
        return np.concatenate([-p.A @ (m - p.b), (2.0 * np.eye(3) - p.A @ s - s @ p.A).ravel()])

    _compare_with_integration(oracles.ornstein_uhlenbeck(p, 0.7), rates, p, 0.7)


def test_kalman_flow_printed_values() -> None:
    mean, covariance = oracles.kalman_flow(WORKED, 0.5)
    np.testing.assert_allclose(mean, [0.29581974, 0.28114880], atol=PRINTED)
    expected = [[0.58430411, -0.01791063], [-0.01791063, 0.65440555]]
    np.testing.assert_allclose(covariance, expected, atol=PRINTED)


def test_kalman_flow_solves_its_moment_equations() -> None:
    p = random_problem(3, 20.0, 1)

    def rates(_: float, y: np.ndarray) -> np.ndarray:
        m, c = y[:3], y[3:].reshape(3, 3)
        return np.concatenate([-c @ p.A @ (m - p.b), (2.0 * c - 2.0 * c @ p.A @ c).ravel()])

    _compare_with_integration(oracles.kalman_flow(p, 0.7), rates, p, 0.7)


def _compare_with_integration(exact: tuple, rates: Callable, p: Problem, t: float) -> None:
    start = np.concatenate([p.m, p.S.ravel()])
    end = solve_ivp(rates, (0.0, t), start, method="DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(exact[0], end[:3], atol=1e-8)
    np.testing.assert_allclose(exact[1].ravel(), end[3:], atol=1e-8)


def test_wasserstein_step_printed_values() -> None:
    mean, covariance, matrix = oracles.wasserstein_step(WORKED, TAU)
    np.testing.assert_allclose(mean, [0.25880923, 0.23936817], atol=PRINTED)
    np.testing.assert_allclose(covariance, [[0.70010622, 0.04948062], [0.04948062, 0.65490395]], atol=PRINTED)
    np.testing.assert_allclose(matrix, [[0.88535073, -0.19252897], [-0.19252897, 1.23311183]], atol=PRINTED)
    distance = oracles.wasserstein_squared(WORKED.m, WORKED.S, mean, covariance)
    after = oracles.kl(Problem(WORKED.A, WORKED.b, mean, covariance))
    found = [distance, oracles.kl(WORKED), after, after + distance / (2.0 * TAU)]
    np.testing.assert_allclose(found, [0.21714281, 1.94099117, 1.02313899, 1.38504369], atol=PRINTED)


def test_kalman_step_printed_values() -> None:
    mean, covariance, matrix = oracles.kalman_step(WORKED, TAU)
    np.testing.assert_allclose(mean, [0.18354489, 0.42945277], atol=PRINTED)
    np.testing.assert_allclose(covariance, [[0.66023476, 0.09144642], [0.09144642, 0.53003738]], atol=PRINTED)
    np.testing.assert_allclose(matrix, [[0.84811014, -0.13358940], [-0.14193874, 1.09859027]], atol=PRINTED)
    after = oracles.kl(Problem(WORKED.A, WORKED.b, mean, covariance))
    value = objective("kalman", WORKED, TAU, mean, matrix)
    found = [2.0 * TAU * (value - after), after, value]
    np.testing.assert_allclose(found, [0.14288536, 1.33297026, 1.57111253], atol=PRINTED)


@pytest.mark.parametrize(
    ("step", "mean", "covariance", "divergence"),
    [
        (
            oracles.wasserstein_step,
            [0.74167275, -0.44840714],
            [[0.55736698, -0.23200931], [-0.23200931, 1.02574421]],
            0.15103961,
        ),
        (
            oracles.kalman_step,
            [0.60054337, -0.19924256],
            [[0.55163399, -0.18142410], [-0.18142410, 0.92628131]],
            0.33350887,
        ),
    ],
)
def test_five_steps_printed_values(step: Step, mean: list, covariance: list, divergence: float) -> None:
    p = WORKED
    for _ in range(5):
        p = p._replace(m=step(p, TAU).mean, S=step(p, TAU).covariance)
    np.testing.assert_allclose(p.m, mean, atol=PRINTED)
    np.testing.assert_allclose(p.S, covariance, atol=PRINTED)
    assert oracles.kl(p) == pytest.approx(divergence, abs=PRINTED)


def test_scalar_values() -> None:
    assert oracles.scalar_step(1.0, 0.1, 4.0) == pytest.approx(0.80321414, abs=PRINTED)
    assert oracles.scalar_step(1.0, 0.1, 0.0) == pytest.approx(1.09160798, abs=PRINTED)
    assert oracles.kalman_eigenvalue(4.0, 0.5) == pytest.approx(1.47683362, abs=PRINTED)
    assert oracles.kalman_eigenvalue(1.0, 0.7) == pytest.approx(1.0, abs=1e-14)
    before = np.linalg.eigvals(WORKED.S @ WORKED.A)
    after = np.linalg.eigvals(oracles.kalman_step(WORKED, TAU).covariance @ WORKED.A)
    np.testing.assert_allclose(np.sort(after), np.sort(oracles.kalman_eigenvalue(before, TAU)), rtol=1e-12)
    np.testing.assert_allclose(np.sort(after), [0.38359346, 1.55835987], atol=PRINTED)


def test_midpoint_step_printed_values() -> None:
    mean, covariance, _ = oracles.midpoint_step(WORKED, TAU)
    np.testing.assert_allclose(mean, [0.30465799, 0.21926144], atol=PRINTED)
    np.testing.assert_allclose(covariance, [[0.61475519, -0.02734407], [-0.02734407, 0.70689109]], atol=PRINTED)


@pytest.mark.parametrize(
    ("step", "errors"),
    [
        (oracles.wasserstein_step, {5: 2.491e-2, 10: 1.316e-2, 20: 6.772e-3, 40: 3.437e-3}),
        (oracles.midpoint_step, {5: 1.466e-3, 10: 3.637e-4, 20: 9.075e-5, 40: 2.268e-5}),
    ],
)
def test_steps_converge_to_the_flow_at_their_order(step: Step, errors: dict[int, float]) -> None:
    exact = oracles.ornstein_uhlenbeck(WORKED, 0.5)[1]
    for n, error in errors.items():
        p = WORKED
        for _ in range(n):
            after = step(p, 0.5 / n)
            p = p._replace(m=after.mean, S=after.covariance)
        assert np.abs(p.S - exact).max() == pytest.approx(error, rel=1e-3)


def test_kalman_steps_converge_to_the_kalman_flow() -> None:
    exact_mean, exact = oracles.kalman_flow(WORKED, 0.5)
    errors = []
    for n in (50, 100):
        p = WORKED
        for _ in range(n):
            after = oracles.kalman_step(p, 0.5 / n)
            p = p._replace(m=after.mean, S=after.covariance)
        errors.append(max(np.abs(p.S - exact).max(), np.abs(p.m - exact_mean).max()))
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.1)
    assert errors[1] < 2e-3


@pytest.mark.parametrize("metric", STEPS)
@pytest.mark.parametrize("p", [WORKED, random_problem(3, 30.0, 2)], ids=["worked", "d=3"])
def test_step_is_the_minimum_over_all_affine_maps(metric: str, p: Problem) -> None:
    d = len(p.m)
    start = np.concatenate([p.m, np.eye(d).ravel()])  # the matrix is free: its symmetry must come out

    def value(y: np.ndarray) -> float:
        return objective(metric, p, TAU, y[:d], y[d:].reshape(d, d))

    best = minimize(value, start, method="BFGS", options={"gtol": 1e-9})
    exact = STEPS[metric](p, TAU)
    assert objective(metric, p, TAU, exact.mean, exact.matrix) <= best.fun + 1e-10
    np.testing.assert_allclose(exact.mean, best.x[:d], atol=1e-5)
    np.testing.assert_allclose(exact.matrix.ravel(), best.x[d:], atol=1e-5)
    np.testing.assert_allclose(exact.covariance, exact.matrix @ p.S @ exact.matrix.T, rtol=1e-10)


@pytest.mark.parametrize("metric", STEPS)
def test_step_satisfies_the_first_order_identities(metric: str) -> None:
    p = random_problem(4, 50.0, 3)
    mean, covariance, matrix = STEPS[metric](p, TAU)
    g = cost_matrix(metric, p)
    # E[(T - x)(T - m')'] = (K - I) S K' and E[grad V(T) (T - m')'] = A S', since T is affine
    move = (matrix - np.eye(4)) @ p.S @ matrix.T
    np.testing.assert_allclose(g @ move, TAU * (np.eye(4) - p.A @ covariance), atol=1e-9)
    np.testing.assert_allclose(g @ (mean - p.m), -TAU * p.A @ (mean - p.b), atol=1e-10)


def test_kalman_step_commutes_with_affine_maps() -> None:
    p = random_problem(3, 40.0, 4)
    rng = np.random.default_rng(5)
    m, c = rng.standard_normal((3, 3)), rng.standard_normal(3)
    back = np.linalg.inv(m)
    image = Problem(back.T @ p.A @ back, m @ p.b + c, m @ p.m + c, m @ p.S @ m.T)
    step, pushed = oracles.kalman_step(p, TAU), oracles.kalman_step(image, TAU)
    np.testing.assert_allclose(pushed.mean, m @ step.mean + c, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(pushed.covariance, m @ step.covariance @ m.T, rtol=1e-8, atol=1e-8)


def test_fokker_planck_example_of_the_paper() -> None:
    p = Problem(np.array([[2.5, 1.5], [1.5, 2.5]]), np.full(2, 1.0 / 3.0), np.zeros(2), np.eye(2))
    mean, covariance = oracles.ornstein_uhlenbeck(p, 0.1)
    np.testing.assert_allclose(mean, [0.10989332] * 2, atol=PRINTED)
    np.testing.assert_allclose(covariance, [[0.79349836, -0.20650164], [-0.20650164, 0.79349836]], atol=PRINTED)
    for _ in range(20):
        step = oracles.wasserstein_step(p, 0.005)
        p = p._replace(m=step.mean, S=step.covariance)
    np.testing.assert_allclose(p.m, [0.10900956] * 2, atol=PRINTED)
    np.testing.assert_allclose(p.S, [[0.79527492, -0.20472508], [-0.20472508, 0.79527492]], atol=PRINTED)
