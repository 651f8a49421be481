"""Flows of PDEs through the public interface, against exact solutions of their steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_pde
import torch

from jkosampler import JKOSampler, energies, laws

GAMMA = 1.0 - 0.5**0.5


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("d", "m", "age", "tau"), [(2, 2.0, 1e-3, 1e-3), (2, 3.0, 0.02, 0.01), (6, 2.0, 1e-3, 5e-4)])
def test_porous_medium_from_its_source_solution(d: int, m: float, age: float, tau: float, order: int) -> None:
    flow = JKOSampler(
        energy=energies.Power(m),
        initial=laws.Barenblatt(d, m, age),
        step_size=tau,
        n_steps=3,
        order=order,
        random_state=0,
        progress=False,
    ).fit()
    for k, record in enumerate(flow.history_):
        assert record.stage == "affine"
        if order == 1:
            age = reference_pde.barenblatt_step(age, tau, d, m)[1]
        else:
            growth = reference_pde.barenblatt_step(age, GAMMA * tau, d, m)[0]
            age *= (1.0 + (1.0 - GAMMA) / GAMMA * (growth - 1.0)) ** (d * (m - 1.0) + 2.0)
            age = reference_pde.barenblatt_step(age, GAMMA * tau, d, m)[1]
        x, log_density = flow.sample_with_log_density(1000, flow.times_[k + 1], random_state=1)
        exact = reference_pde.barenblatt_density(np.linalg.norm(x, axis=1), age, d, m)
        np.testing.assert_allclose(np.exp(log_density), exact, rtol=0, atol=1e-5 * exact.max())


@pytest.mark.slow
def test_porous_medium_from_another_start_dissipates() -> None:
    flow = JKOSampler(
        energy=energies.Power(2.0),
        initial=laws.Mixture([0.5, 0.5], [laws.Gaussian([a, 0.0], 0.1 * np.eye(2)) for a in (-1.0, 1.0)]),
        step_size=0.02,
        n_steps=2,
        n_particles=4000,
        random_state=0,
        progress=False,
    ).fit()
    for record in flow.history_:
        released = record.energy_change + record.transport_cost / (2.0 * record.step_size)
        assert released <= 3.0 * record.energy_change_se
        assert record.optimality_gap < 0.02 * record.transport_cost / (2.0 * record.step_size)


@pytest.mark.parametrize("mass", [1.0, 2.5])
def test_attraction_by_springs_contracts_to_the_centre(mass: float) -> None:
    # T - x = -2 tau mass (T - mean): an affine step
    start = laws.Gaussian([1.0, 0.0], np.diag([1.0, 0.25])).with_mass(mass)
    flow = JKOSampler(
        energy=energies.Interaction(lambda z: z.square().sum(-1)),
        initial=start,
        step_size=0.1,
        n_steps=1,
        n_particles=2000,
        random_state=0,
        progress=False,
    ).fit()
    before, after = flow.sample(1000, 0.0, random_state=1), flow.sample(1000, random_state=1)
    shrink = 1.0 / (1.0 + 0.2 * mass)
    # a particle does not feel itself: of 500 that solve the step each feels a centre shifted by a 500th
    np.testing.assert_allclose(np.diff(after, axis=0), shrink * np.diff(before, axis=0), rtol=2e-3, atol=1e-3)
    assert flow.history_[0].stage == "affine"
    x = before[:5]
    np.testing.assert_allclose(flow.density(x, t=0.0), mass * np.exp(start.log_prob(torch.as_tensor(x)).numpy()))
    expected = mass**2 * 1.25 * shrink**2
    assert flow.history_[0].energy == pytest.approx(expected, abs=4.0 * flow.history_[0].energy_se)


@pytest.mark.slow
def test_chemotaxis_spreads_at_its_exact_rate() -> None:
    # Keller-Segel in the plane (mass 1): E[(T - x).T] = tau (2 - chi / (4 pi)) for the exact step
    chi, tau = 2.0 * math.pi, 0.05
    flow = JKOSampler(
        energy=energies.Entropy() + energies.Interaction(lambda z: chi / (2.0 * math.pi) * z.norm(dim=-1).log()),
        initial=laws.Gaussian([0.0, 0.0], np.eye(2)),
        step_size=tau,
        n_steps=1,
        n_particles=2000,
        random_state=0,
        progress=False,
    ).fit()
    before, after = flow.sample(100_000, 0.0, random_state=1), flow.sample(100_000, random_state=1)
    found = ((after - before) * after).sum(1)
    expected = tau * (2.0 - chi / (4.0 * math.pi))
    # 2000 particles stand for the law in the interaction, whose share is a quarter
    assert found.mean() == pytest.approx(expected, abs=4.0 * found.std() / 100_000**0.5 + 0.03 * expected)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("m", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("d", [1, 2, 6])
def test_steps_from_a_source_solution_are_dilations(d: int, m: float, order: int) -> None:
    """Where each draw goes: T(x) = lam x with the factors of the exact steps, to 1e-6."""
    age, tau, factor, q = 0.02, 0.01, 1.0, d * (m - 1.0) + 2.0
    flow = JKOSampler(
        energy=energies.Power(m),
        initial=laws.Barenblatt(d, m, age),
        step_size=tau,
        n_steps=2,
        order=order,
        n_particles=1500,
        random_state=0,
        progress=False,
    ).fit()
    before = flow.sample(200, 0.0, random_state=1)
    for k in (1, 2):
        if order == 2:
            growth = 1.0 + (1.0 - GAMMA) / GAMMA * (reference_pde.barenblatt_step(age, GAMMA * tau, d, m)[0] - 1.0)
            age, factor = age * growth**q, factor * growth
        growth, age = reference_pde.barenblatt_step(age, tau if order == 1 else GAMMA * tau, d, m)
        factor *= growth
        np.testing.assert_allclose(flow.sample(200, k * tau, random_state=1) / before, factor, rtol=1e-6)
    assert {record.stage for record in flow.history_} == {"affine"}


STARTS = {
    "parabola": (laws.Parabola(2).with_mass(1.0), 3.0, 0.02, 2.0),
    "parabola of another mass": (laws.Parabola(2), 3.0, 0.02, 2.0),
    "gaussian": (laws.Gaussian([0.0, 0.0], 1.0), 2.0, 0.1, 8.0),
}


@pytest.mark.parametrize("name", STARTS)
def test_porous_medium_from_a_start_that_changes_its_shape(name: str) -> None:
    law, m, tau, edge = STARTS[name]
    flow = JKOSampler(
        energy=energies.Power(m),
        initial=law,
        step_size=tau,
        n_steps=1,
        n_particles=3000,
        random_state=0,
        progress=False,
    ).fit()
    assert flow.history_[0].stage == "collocation"
    axis = np.linspace(-edge, edge, 241)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    cell, values = (axis[1] - axis[0]) ** 2, []
    for t in (0.0, 0.5 * tau, tau):
        density = flow.density(grid, t)
        assert cell * density.sum() == pytest.approx(law.mass, rel=1e-4)
        values.append(cell * np.sum(density**m) / (m - 1.0))
    x, y = (flow.sample(20_000, t, random_state=1) for t in (0.0, tau))
    cost = law.mass * np.square(y - x).sum(1).mean()
    assert values[0] - values[2] > 1.5 * cost / (2.0 * tau)  # twice as much for short steps, once at the least
    # E[(T - x).T] = tau E[tr P / rho], with P = rho^m, at every exact step; five standard errors
    moved = np.square(y).sum(1) - (x * y).sum(1) - 2.0 * tau * flow.density(y, tau) ** (m - 1.0)
    assert abs(moved.mean()) < 5.0 * moved.std() / 20_000**0.5
    assert 5.0 * moved.std() / 20_000**0.5 < 0.1 * (moved + 2.0 * tau * flow.density(y, tau) ** (m - 1.0)).mean()
