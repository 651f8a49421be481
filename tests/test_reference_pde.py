"""Reference solutions of the porous medium and aggregation equations, against printed values and the equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import reference_pde as pde
from scipy.integrate import quad, trapezoid
from scipy.optimize import minimize_scalar
from scipy.special import gamma

TIMES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
RADII = np.array([0.1, 0.3, 0.45, 0.55, 0.6, 0.7, 0.8])
# d -> rows of max rho, E, density at RADII, one for each of TIMES: Godunov's method with 2000 cells
TABLE = {
    1: [
        [0.76828, 0.17932, 0.76183, 0.70871, 0.62869, 0.55150, 0.50405, 0.38709, 0.23073],
        [0.78560, 0.16251, 0.78013, 0.73393, 0.66011, 0.58275, 0.53133, 0.38580, 0.10196],
        [0.81737, 0.13837, 0.81354, 0.78034, 0.72292, 0.65397, 0.59977, 0.0, 0.0],
        [0.89077, 0.10686, 0.88971, 0.88060, 0.86530, 0.84787, 0.0, 0.0, 0.0],
        [0.95684, 0.09111, 0.95676, 0.95610, 0.95514, 0.0, 0.0, 0.0, 0.0],
        [0.99393, 0.08435, 0.99393, 0.99393, 0.99393, 0.0, 0.0, 0.0, 0.0],
    ],
    2: [
        [0.79154, 0.40343, 0.78570, 0.73708, 0.66203, 0.58733, 0.54018, 0.41904, 0.24366],
        [0.82777, 0.35992, 0.82339, 0.78599, 0.72420, 0.65621, 0.60879, 0.45973, 0.00152],
        [0.88506, 0.30949, 0.88282, 0.86339, 0.82970, 0.78940, 0.75823, 0.0, 0.0],
        [0.96939, 0.26920, 0.96919, 0.96761, 0.96520, 0.96281, 0.96131, 0.0, 0.0],
        [0.99702, 0.26102, 0.99701, 0.99700, 0.99698, 0.99696, 0.99695, 0.0, 0.0],
        [0.99997, 0.26024, 0.99997, 0.99997, 0.99997, 0.99997, 0.99997, 0.0, 0.0],
    ],
}


def sphere(d: int) -> float:
    return 2.0 * np.pi ** (d / 2) / gamma(d / 2)


def radial_integral(function: Callable, radius: float, d: int) -> float:
    return sphere(d) * quad(lambda r: function(r) * r ** (d - 1), 0.0, radius, epsabs=1e-13, epsrel=1e-11)[0]


def barenblatt_integral(function: Callable, age: float, d: int, m: float) -> float:
    """The integral of function(r, rho(r))."""
    edge = pde.barenblatt_radius(age, d, m)
    return radial_integral(lambda r: function(r, pde.barenblatt_density(r, age, d, m)), edge, d)


def barenblatt_energy(age: float, d: int, m: float) -> float:
    return barenblatt_integral(lambda r, rho: rho**m / (m - 1.0), age, d, m)


# Porous medium


def test_barenblatt_printed_values() -> None:
    assert pde.barenblatt_density(0.5, 0.1, 2, 2) == pytest.approx(0.4745331305, abs=1e-10)
    assert pde.barenblatt_radius(0.1, 2, 2) == pytest.approx(1.0046158514, abs=1e-10)
    assert pde.barenblatt_density(0.0, 1.0, 2, 2) == pytest.approx((8.0 * np.pi) ** -0.5, rel=1e-14)
    assert pde.barenblatt_density(0.0, 1.0, 1, 2) == pytest.approx((3.0 / 64.0) ** (1 / 3), rel=1e-14)
    assert pde.barenblatt_density(0.0, 1.0, 6, 3) == pytest.approx(0.031766689**0.5, rel=2e-8)


@pytest.mark.parametrize(("d", "m"), [(1, 2.0), (2, 3.0), (6, 2.0), (10, 1.5)])
def test_barenblatt_has_unit_mass_and_solves_the_equation(d: int, m: float) -> None:
    s, h, edge = 0.05, 1e-5, pde.barenblatt_radius(0.05, d, m)
    assert barenblatt_integral(lambda r, rho: rho, s, d, m) == pytest.approx(1.0, rel=1e-7)
    r = edge * np.array([0.2, 0.5, 0.8])
    rate = (pde.barenblatt_density(r, s + h, d, m) - pde.barenblatt_density(r, s - h, d, m)) / (2 * h)
    k = 1e-4 * edge
    before, here, after = (pde.barenblatt_density(r + i * k, s, d, m) ** m for i in (-1, 0, 1))
    laplacian = (after - 2 * here + before) / k**2 + (d - 1) / r * (after - before) / (2 * k)
    np.testing.assert_allclose(rate, laplacian, rtol=1e-5, atol=1e-5 * np.abs(rate).max())


def test_barenblatt_steps_printed_values() -> None:
    assert pde.barenblatt_step(1e-3, 1e-3, 2, 2) == pytest.approx((1.1601162678, 0.001811365397), rel=1e-9)
    assert pde.barenblatt_step(0.02, 0.01, 2, 3) == pytest.approx((1.0617577600, 0.028653828567), rel=1e-9)
    ages = {1: 0.001811365, 2: 0.002679936, 5: 0.005432750, 10: 0.010205035, 30: 0.029809838, 120: 0.119292529}
    age = 1e-3
    for k in range(1, 121):
        age = pde.barenblatt_step(age, 1e-3, 2, 2)[1]
        assert age == pytest.approx(ages.get(k, age), abs=5.1e-10)


@pytest.mark.parametrize(
    ("d", "age", "tau", "n_steps", "last"),
    [
        (6, 1e-3, 5e-4, 10, 0.0056450741),
        (10, 1e-3, 5e-4, 7, 0.0041945504),
        (1, 0.1, 5e-3, 60, 0.3977161),
        (2, 0.1, 5e-3, 60, 0.39743286),
    ],
)
def test_barenblatt_sequences_of_the_papers(d: int, age: float, tau: float, n_steps: int, last: float) -> None:
    for _ in range(n_steps):
        age = pde.barenblatt_step(age, tau, d, 2)[1]
    assert age == pytest.approx(last, rel=2e-7)


@pytest.mark.parametrize(("d", "m", "age", "tau"), [(2, 2.0, 1e-3, 1e-3), (2, 3.0, 0.02, 0.01), (6, 1.5, 1e-3, 1e-2)])
def test_barenblatt_step_is_the_best_dilation(d: int, m: float, age: float, tau: float) -> None:
    energy = barenblatt_energy(age, d, m)
    spread = barenblatt_integral(lambda r, rho: r**2 * rho, age, d, m)
    best = minimize_scalar(
        lambda lam: energy * lam ** (-d * (m - 1)) + (lam - 1) ** 2 * spread / (2 * tau),
        bracket=(1.0, 1.1),
        options={"xtol": 1e-10},
    )
    factor, after = pde.barenblatt_step(age, tau, d, m)
    assert factor == pytest.approx(best.x, abs=1e-6)  # the minimum is flat: half the digits
    assert pde.barenblatt_radius(after, d, m) == pytest.approx(factor * pde.barenblatt_radius(age, d, m), rel=1e-12)
    # E[(T - x).T] = tau d (m - 1) E(rho')
    dilation = factor * (factor - 1) * spread
    assert dilation == pytest.approx(tau * d * (m - 1) * barenblatt_energy(after, d, m), rel=1e-7)
    if (d, m) == (2, 2.0):
        assert dilation == pytest.approx(0.0062490755, abs=1e-10)


def test_barenblatt_steps_converge_at_their_order() -> None:
    for step, gain in ((pde.barenblatt_step, 2.0), (pde.barenblatt_midpoint, 4.0)):
        errors = []
        for n in (40, 80):
            age = 1e-2
            for _ in range(n):
                factor, after = step(age, 0.04 / n, 2, 3)
                assert after == pytest.approx(age * factor**6, rel=1e-12)
                age = after
            errors.append(abs(age - 0.05))
        assert errors[0] / errors[1] == pytest.approx(gain, rel=0.05)


# Aggregation


@cache
def finite_volumes(d: int, n_cells: int) -> pde.AggregationSolution:
    return pde.aggregation_entropy_solution(d, TIMES[:4] if n_cells < 500 else TIMES, n_cells)


def exact_moment(t: float, d: int, order: int) -> float:
    """The integral of |x|^order rho."""
    r = np.linspace(0.0, pde.aggregation_front(t, d) * (1 - 1e-12), 20_001)
    return sphere(d) * trapezoid(pde.aggregation_density(r, t, d) * r ** (d - 1 + order), r)


def test_aggregation_printed_values() -> None:
    assert [pde.aggregation_mass(d) for d in (1, 2)] == pytest.approx([1.0, 1.1780972451])
    assert [pde.shock_time(d) for d in (1, 2)] == pytest.approx([0.143841, 0.108401], abs=5e-7)
    assert [pde.steady_radius(d) for d in (1, 2)] == pytest.approx([0.5, 0.6123724], abs=5e-8)
    assert pde.aggregation_density(0.517678575, 0.1, 1) == pytest.approx(0.610951706, abs=2e-9)
    assert pde.aggregation_density(0.528806313, 0.1, 2) == pytest.approx(0.673169029, abs=2e-9)


@pytest.mark.parametrize("d", [1, 2])
def test_aggregation_starts_and_ends_as_it_should(d: int) -> None:
    r = np.linspace(0.0, 1.2, 50)
    np.testing.assert_allclose(pde.aggregation_density(r, 0.0, d), 0.75 * np.maximum(1 - r**2, 0.0), atol=1e-12)
    for t in (0.05, 0.999 * pde.shock_time(d)):  # the edge moves with the free stream until the shock
        free = np.exp(-2 * pde.aggregation_mass(d) * t)
        assert pde.aggregation_front(t, d) == pytest.approx(free, rel=1e-12)
        assert pde.aggregation_density(0.9999 * free, t, d) < 0.1
    assert pde.aggregation_density(np.nextafter(pde.aggregation_front(0.3, d), 0.0), 0.3, d) > 0.5
    assert pde.aggregation_front(4.0, d) == pytest.approx(pde.steady_radius(d), rel=1e-3)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("t", [0.05, 0.12, 0.5, 2.0])
def test_aggregation_obeys_the_equation_and_the_jump_condition(d: int, t: float) -> None:
    mass, front, h = pde.aggregation_mass(d), pde.aggregation_front(t, d), 1e-4
    r = front * np.array([0.2, 0.5, 0.8])
    rate = (pde.aggregation_density(r, t + h, d) - pde.aggregation_density(r, t - h, d)) / (2 * h)
    before, after = (s**d * rho * (1 - rho) for s in (r - h, r + h) for rho in [pde.aggregation_density(s, t, d)])
    np.testing.assert_allclose(rate, 2 * mass * r ** (1 - d) * (after - before) / (2 * h), rtol=1e-4, atol=1e-6)
    inside = pde.aggregation_density(front * (1 - 1e-9), t, d)
    speed = (pde.aggregation_front(t + h, d) - pde.aggregation_front(t - h, d)) / (2 * h)
    assert speed == pytest.approx(-2 * mass * front * (1 - inside), rel=1e-4)
    assert exact_moment(t, d, 0) == pytest.approx(mass, rel=1e-6)


@pytest.mark.parametrize("d", [1, 2])
def test_aggregation_table(d: int) -> None:
    """The table is accurate to 3e-3 where the density falls steeply, much better elsewhere."""
    solution = finite_volumes(d, 500)
    for k, (t, row) in enumerate(zip(TIMES, TABLE[d], strict=True)):
        np.testing.assert_allclose(pde.aggregation_density(RADII, t, d), row[2:], atol=2e-3)
        np.testing.assert_allclose(np.interp(RADII, solution.centres, solution.densities[k]), row[2:], atol=2e-3)
        assert solution.densities[k].max() == pytest.approx(row[0], abs=2e-5)
        assert solution.energies[k] == pytest.approx(row[1], abs=6e-5)
        assert solution.energies[k] == pytest.approx(pde.aggregation_mass(d) * exact_moment(t, d, 2), abs=2e-5)


@pytest.mark.parametrize("d", [1, 2])
def test_finite_volumes_tend_to_the_exact_aggregation(d: int) -> None:
    errors = []
    for n_cells in (250, 500):
        solution = finite_volumes(d, n_cells)
        volume = sphere(d) / d * np.diff(np.linspace(0.0, 1.0, n_cells + 1) ** d)
        np.testing.assert_allclose(solution.densities @ volume, pde.aggregation_mass(d), rtol=1e-12)
        exact = np.array([pde.aggregation_density(solution.centres, t, d) for t in TIMES[:4]])
        off = np.abs(solution.densities[:4] - exact)
        errors.append([off[0].mean(), off[1:].mean()])
        near = [np.abs(solution.centres - pde.aggregation_front(t, d)) < 0.03 for t in TIMES[:4]]
        assert off[~np.array(near)].max() < (1e-3, 2e-4)[n_cells == 500]  # a shock is smeared over a few cells
    assert errors[0][0] / errors[1][0] > 2.0  # the kink at the edge: between first and second order
    assert errors[0][1] / errors[1][1] > 1.5  # the shock: first order
