"""The references of L2 flows against themselves: grids, steps, closed forms, published energies."""

from __future__ import annotations

import numpy as np
import pytest
import reference_fields as ref


@pytest.mark.parametrize("modes", [ref.HEAT_2D, ref.HEAT_8D], ids=["2d", "8d"])
def test_heat_modes_are_level_at_the_walls(modes: ref.Modes) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-modes.half_side, modes.half_side, (50, modes.frequencies.shape[1]))
    for axis in range(x.shape[1]):
        on_wall = x.copy()
        on_wall[:, axis] = modes.half_side
        inside, outside = on_wall.copy(), on_wall.copy()
        inside[:, axis] -= 1e-4
        outside[:, axis] += 1e-4
        assert np.abs(modes(outside) - modes(inside)).max() < 1e-10


@pytest.mark.parametrize(
    ("modes", "at_20", "at_40"), [(ref.HEAT_2D, 1.636e-3, 1.125e-3), (ref.HEAT_8D, 7.490e-3, 7.080e-3)]
)
def test_distance_of_the_scheme_from_the_heat_equation(modes: ref.Modes, at_20: float, at_40: float) -> None:
    """By the mean squares of the modes, 2^-(cosines)."""
    cosines = (modes.frequencies > 0).sum(1)
    rates = modes.kappa * (modes.frequencies**2).sum(1)
    for n, expected in ((20, at_20), (40, at_40)):
        pde, scheme = np.exp(-0.005 * n * rates), (1.0 / (1.0 + 0.005 * rates)) ** n
        squares = modes.coefficients**2 * 0.5**cosines
        assert np.sqrt((squares * (pde - scheme) ** 2).sum() / (squares * pde**2).sum()) == pytest.approx(
            expected, rel=1e-3
        )


def test_a_step_of_second_order_is_of_second_order() -> None:
    z = np.array([1e-2, 5e-3])
    errors = np.abs(ref.sdirk_factor(z) - np.exp(-z))
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.02)  # third order in one step
    assert abs(ref.sdirk_factor(np.array([1e9]))[0]) < 1e-8  # stiff modes are damped


@pytest.mark.parametrize(("start", "energy"), [(ref.torus, 50.632825), (ref.four_points, 46.746771)])
def test_allen_cahn_starts(start: object, energy: float) -> None:
    """The energy at the start has kinks in it: the grid's is near that of an extrapolation."""
    assert callable(start)
    assert ref.allen_cahn_energy(start(ref.grid(128))) == pytest.approx(energy, rel=5e-3)


def test_allen_cahn_flow_by_energies_and_values() -> None:
    """Energies and the value near the centre that a computation with half the grid and other code gave."""
    for start, energy, value, step_energy in (
        (ref.torus, 43.368453, -0.692764, 43.373173),
        (ref.four_points, 16.326897, -0.947436, 15.990259),
    ):
        u = ref.allen_cahn_flow(start(ref.grid(128)), 0.1)
        assert ref.allen_cahn_energy(u) == pytest.approx(energy, rel=1e-4)
        assert ref.at_points(u, np.array([[1.0 / 64.0, 1.0 / 64.0]]))[0] == pytest.approx(value, abs=3e-4)
        steps = ref.allen_cahn_steps(start(ref.grid(128)), 0.005, 20)
        assert ref.allen_cahn_energy(steps) == pytest.approx(step_energy, rel=1e-4)


def test_allen_cahn_of_a_constant() -> None:
    """u' = (u - u^3) / eps^2, in closed form and by one implicit step."""
    u = np.full((8, 8), 0.3)
    decay = np.exp(-0.02 / ref.EPSILON**2)
    exact = 0.3 / np.sqrt(0.09 + 0.91 * decay**2)
    assert ref.allen_cahn_flow(u, 0.02) == pytest.approx(np.full((8, 8), exact), rel=1e-9)
    after = ref.allen_cahn_steps(u, 0.005, 1)
    assert after + 0.005 * (after**3 - after) / ref.EPSILON**2 == pytest.approx(u, abs=1e-10)


def test_interpolation_is_exact_at_the_nodes() -> None:
    nodes = ref.grid(16)
    u = ref.torus(nodes)
    assert ref.at_points(u, nodes.reshape(-1, 2)) == pytest.approx(u.reshape(-1), abs=1e-12)
