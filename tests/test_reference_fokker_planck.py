"""Reference solutions of Fokker-Planck equations: in the plane against Gaussians, and against the line."""

from __future__ import annotations

from functools import cache

import numpy as np
import oracles
import pytest
import reference_pde as pde
from oracles import WORKED
from scipy.interpolate import CubicSpline
from scipy.stats import multivariate_normal

KL_AT = {0.1: 2.8822221521, 0.2: 1.2817860912, 0.3: 0.5736509320, 0.4: 0.2573016675}  # two Gaussians to four


def relative_l2(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def quadratic(points: np.ndarray) -> np.ndarray:
    offset = points - WORKED.b
    return 0.5 * np.einsum("ni,ij,nj->n", offset, WORKED.A, offset)


@cache
def gaussian_flow(n: int, step: float) -> pde.PlaneSolution:
    start = multivariate_normal(WORKED.m, WORKED.S).pdf
    return pde.fokker_planck(quadratic, start, 5.5, n, (0.2, 0.5), step)


@cache
def two_to_four(n: int, step: float) -> pde.PlaneSolution:
    return pde.fokker_planck(pde.four_gaussians, pde.two_gaussians, 5.5, n, tuple(KL_AT), step)


@cache
def line_factors(n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points on the line, and the densities of either coordinate on the way from two Gaussians to four."""

    def solve(c: float) -> tuple[np.ndarray, np.ndarray]:
        start = pde.two_bumps(c)
        return pde.fokker_planck_line(pde.two_bumps(2.0), lambda x: np.exp(-start(x)[0]), 6.0, n, tuple(KL_AT))

    return *solve(1.2), solve(0.0)[1]


def test_fokker_planck_between_gaussians() -> None:
    x = np.random.default_rng(0).multivariate_normal([0.4, 0.1], 0.7 * np.eye(2), 500)
    for k, t in enumerate((0.2, 0.5)):
        exact = multivariate_normal(*oracles.ornstein_uhlenbeck(WORKED, t)).pdf(x)
        coarse, fine = (gaussian_flow(n, step).density_at(x, k) for n, step in ((55, 0.04), (110, 0.02)))
        assert relative_l2(coarse, exact) / relative_l2(fine, exact) == pytest.approx(4.0, abs=0.25)  # second order
        assert relative_l2(fine, exact) < 3e-3
        assert relative_l2(pde.extrapolated(fine, coarse), exact) < 1e-4
    assert gaussian_flow(55, 0.04).density_at(np.array([[6.0, 0.0]])) == 0.0


def test_fokker_planck_is_of_second_order_in_time() -> None:
    rough, half, quarter = (gaussian_flow(55, step).densities[1] for step in (0.02, 0.01, 0.005))
    change = [np.abs(rough - half).max(), np.abs(half - quarter).max()]
    assert change[0] / change[1] == pytest.approx(4.0, abs=0.2)


def test_fokker_planck_keeps_its_steady_state_and_mass() -> None:
    def steady(x: np.ndarray) -> np.ndarray:
        return np.exp(-pde.four_gaussians(x))

    solution = pde.fokker_planck(pde.four_gaussians, steady, 5.0, 40, (0.0, 1.0), 0.25)
    np.testing.assert_allclose(solution.densities[1], solution.densities[0], rtol=1e-10)
    np.testing.assert_allclose(solution.energies, 0.0, atol=1e-6)  # KL from itself
    moving = two_to_four(60, 0.02)
    masses = moving.densities.sum(axis=(1, 2)) * (11.0 / 60) ** 2
    np.testing.assert_allclose(masses, 1.0, atol=1e-6)
    assert np.all(np.diff(moving.energies) < 0.0)


def test_bumps_are_normalised_and_have_their_slopes() -> None:
    x, h = np.linspace(-4.0, 4.0, 41), 1e-4
    for c in (0.0, 1.2, 2.0):
        v, slope, curvature = pde.two_bumps(c)(x)
        mixture = 0.5 * (multivariate_normal(-c, 0.25).pdf(x) + multivariate_normal(c, 0.25).pdf(x))
        np.testing.assert_allclose(np.exp(-v), mixture, rtol=1e-12)
        before, after = pde.two_bumps(c)(x - h), pde.two_bumps(c)(x + h)
        np.testing.assert_allclose(slope, (after[0] - before[0]) / (2 * h), atol=1e-5)
        np.testing.assert_allclose(curvature, (after[1] - before[1]) / (2 * h), atol=1e-4)


def test_two_to_four_is_what_it_says() -> None:
    x = np.random.default_rng(2).normal(0.0, 2.0, (50, 2))
    start = np.mean([multivariate_normal([c, 0.0], 0.25).pdf(x) for c in (-1.2, 1.2)], axis=0)
    target = np.mean([multivariate_normal([a, b], 0.25).pdf(x) for a in (-2.0, 2.0) for b in (-2.0, 2.0)], axis=0)
    np.testing.assert_allclose(pde.two_gaussians(x), start, rtol=1e-12)
    np.testing.assert_allclose(np.exp(-pde.four_gaussians(x)), target, rtol=1e-12)


def test_line_solution_of_a_gaussian() -> None:
    """dx = -(x - 1) 2 dt + noise from N(-.5, .3): E1 on the line."""
    x, (rho,) = pde.fokker_planck_line(
        lambda x: ((x - 1.0) ** 2, 2.0 * (x - 1.0), 2.0 + 0.0 * x),
        multivariate_normal(-0.5, 0.3).pdf,
        7.0,
        150,
        (0.4,),
    )
    decay = np.exp(-0.8)
    exact = multivariate_normal(1.0 - 1.5 * decay, 0.3 * decay**2 + 0.5 * (1 - decay**2)).pdf(x)
    np.testing.assert_allclose(rho, exact, atol=1e-11)


def test_two_to_four_by_the_line() -> None:
    """The divergence is the sum over coordinates; finer points change nothing."""
    for n in (300, 400):
        x, first, second = line_factors(n)
        width, v = x[1] - x[0], pde.two_bumps(2.0)(x)[0]
        parts = [(rho * (np.log(np.maximum(rho, 1e-300)) + v)).sum(axis=1) * width for rho in (first, second)]
        np.testing.assert_allclose(parts[0] + parts[1], list(KL_AT.values()), atol=1e-9)


def test_two_to_four_in_the_plane() -> None:
    x, first, second = line_factors()
    rng = np.random.default_rng(1)
    points = rng.choice([-1.0, 1.0], (2000, 2)) * [1.7, 1.0] + 0.7 * rng.standard_normal((2000, 2))
    coarse, fine = two_to_four(60, 0.02), two_to_four(120, 0.01)
    for k in range(4):
        exact = CubicSpline(x, first[k])(points[:, 0]) * CubicSpline(x, second[k])(points[:, 1])
        rough, better = coarse.density_at(points, k), fine.density_at(points, k)
        assert relative_l2(better, exact) < 1e-2
        assert relative_l2(rough, exact) / relative_l2(better, exact) == pytest.approx(4.0, abs=0.4)
        assert relative_l2(pde.extrapolated(better, rough), exact) < 2e-3
        far = exact < 1e-4 * exact.max()
        assert far.sum() >= 10
        np.testing.assert_allclose(better[far], exact[far], rtol=0.5)  # a floor of the logarithm would show
    extrapolated = pde.extrapolated(fine.energies, coarse.energies)
    np.testing.assert_allclose(extrapolated, list(KL_AT.values()), rtol=2e-4)


def test_two_to_four_at_full_resolution() -> None:
    """KL .2580 within the discretisation error of 241 x 241 cells, 1e-3, most of which extrapolation takes away."""
    fine, coarse = two_to_four(241, 0.01).energies[-1], two_to_four(121, 0.02).energies[-1]
    assert fine == pytest.approx(0.2580, abs=1e-3)
    assert pde.extrapolated(fine, coarse, 241 / 121) == pytest.approx(KL_AT[0.4], abs=5e-6)
