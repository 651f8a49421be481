"""Steps by the way back against exact ones: Gaussians, Barenblatt's profiles, laws on the line, and between walls."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import oracles
import pytest
import reference_pde
import torch
from oracles import WORKED, Problem
from reference_line import bimodal, skewed, step_on_line
from scipy.integrate import solve_bvp
from scipy.interpolate import CubicSpline
from scipy.stats import multivariate_normal
from small_problems import gaussian_law, gaussian_log_target, seeded
from torch import Tensor

from jkosampler import JKOSampler, laws
from jkosampler.domains import Box
from jkosampler.energies import KL, Energy, Entropy, Interaction, Potential, Power
from jkosampler.engines import MinimizingMovement
from jkosampler.engines.density_networks import DensityNetworks
from jkosampler.engines.push_forward import PushForward

slow = pytest.mark.slow
Function = Callable[[np.ndarray], np.ndarray]
TOLERANCE = 1e-3  # the training ends at a misfit of 3e-8 squared nats, 2.4e-4 in the logarithm of the density, a step


SMALL = MinimizingMovement(width=24)


def fit(
    energy: Energy, initial: Any, tau: float, n_steps: int = 1, *, gap: float = 1e-3, **settings: Any
) -> JKOSampler:
    """The flow; a better map of a step may gain no more than the share `gap` of its cost, and 5e-4 nats."""
    settings = {"engine": "minimizing-movement", "random_state": 0, "progress": False} | settings
    flow = JKOSampler(energy=energy, initial=initial, step_size=tau, n_steps=n_steps, **settings).fit()
    assert [record.stage for record in flow.history_] == ["push-forward"] * n_steps
    for record in flow.history_:  # the inequality of a step, on particles that took no part
        assert record.energy_change + record.transport_cost / (2.0 * tau) < 3.0 * record.energy_change_se + 1e-9
        assert record.optimality_gap < gap * record.transport_cost / (2.0 * tau) + 5e-4
    return flow


def gaussian_errors(flow: JKOSampler, p: Problem, k: int) -> np.ndarray:
    """The density after step k over that of N(p.m, p.S), less one, at draws of the latter."""
    x = np.random.default_rng(k).multivariate_normal(p.m, p.S, 2000)
    return np.expm1(flow.log_density(x, t=flow.times_[k]) - multivariate_normal(p.m, p.S).logpdf(x))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


class TestGaussians:
    """Starts and targets whose covariances do not commute."""

    @pytest.mark.parametrize(
        ("p", "tau"),
        [
            pytest.param(WORKED, 0.3, id="plane"),
            pytest.param(oracles.random_problem(1, 1.0, 0), 0.5, id="line"),
            pytest.param(oracles.random_problem(3, 4.0, 1), 0.1, id="space", marks=slow),
            pytest.param(WORKED, 2.0, id="long step", marks=slow),
        ],
    )
    def test_wasserstein_steps(self, p: Problem, tau: float) -> None:
        flow = fit(KL(gaussian_log_target(p)), gaussian_law(p), tau, 2)
        for k in (1, 2):
            step = oracles.wasserstein_step(p, tau)
            cost = oracles.wasserstein_squared(p.m, p.S, step.mean, step.covariance)
            p = p._replace(m=step.mean, S=step.covariance)
            assert rms(gaussian_errors(flow, p, k)) < TOLERANCE * k
            assert flow.history_[k - 1].transport_cost == pytest.approx(cost, rel=0.1)  # 2000 particles

    def test_a_kalman_step(self) -> None:
        """With C the covariance of the 4000 particles, which the coordinates of the step are those of."""
        flow = JKOSampler(
            gaussian_log_target(WORKED),
            dim=2,
            metric="kalman",
            initial=gaussian_law(WORKED),
            engine="minimizing-movement",
            step_size=0.3,
            n_steps=1,
            random_state=0,
            progress=False,
        ).fit()
        factor = flow._result.state.maps[0].factor.numpy()
        np.testing.assert_allclose(factor @ factor.T, WORKED.S, rtol=0, atol=4.0 * 2.0**0.5 / 4000**0.5)
        step = oracles.kalman_step(WORKED, 0.3, factor @ factor.T)
        assert rms(gaussian_errors(flow, WORKED._replace(m=step.mean, S=step.covariance), 1)) < TOLERANCE

    def test_attraction_by_springs(self) -> None:
        """W = |z|^2 is V = |x - b|^2 with b the mean of 1500 draws, which moves the law by 2 tau / (1 + 2 tau) b."""
        tau = 0.05
        energy = Entropy() + Interaction(lambda z: z.square().sum(-1))
        flow = fit(energy, gaussian_law(WORKED), tau, gap=0.05)  # other particles have another mean
        step = oracles.wasserstein_step(WORKED._replace(A=2.0 * np.eye(2), b=WORKED.m), tau)
        before, after = flow.sample(500, 0.0, random_state=1), flow.sample(500, random_state=1)
        design = np.column_stack([before - WORKED.m, np.ones(500)])
        found, *_ = np.linalg.lstsq(design, after, rcond=None)
        np.testing.assert_allclose(found[:2], step.matrix, rtol=0, atol=TOLERANCE)
        shift = 2.0 * tau / (1.0 + 2.0 * tau) * np.sqrt(np.diag(WORKED.S) / 1500)
        assert (np.abs(found[2] - WORKED.m) < 4.0 * shift).all()
        assert rms(gaussian_errors(flow, WORKED._replace(m=found[2], S=step.covariance), 1)) < 2.0 * TOLERANCE


@pytest.mark.parametrize(
    ("d", "m", "age", "tau"), [(1, 2, 0.02, 0.01), (1, 3, 0.02, 0.01), (2, 2, 1e-3, 1e-3), (2, 3, 0.02, 0.01)]
)
def test_source_solutions_of_the_porous_medium_equation(d: int, m: float, age: float, tau: float) -> None:
    """The exact step is a dilation; its score is infinite at the edge of the support, which draws come near to."""
    flow = fit(Power(m), laws.Barenblatt(d, m, age), tau, 2)
    for k in (1, 2):
        age = reference_pde.barenblatt_step(age, tau, d, m)[1]
        x, log_density = flow.sample_with_log_density(1000, flow.times_[k], random_state=1)
        exact = reference_pde.barenblatt_density(np.linalg.norm(x, axis=1), age, d, m)
        error = np.exp(log_density) - exact
        assert np.sqrt(np.sum(error**2) / np.sum(exact**2)) < TOLERANCE * k
        assert np.linalg.norm(x, axis=1).max() < reference_pde.barenblatt_radius(age, d, m) * (1.0 + TOLERANCE)


def log_bimodal(x: Tensor) -> Tensor:
    return -((x[:, 0].square() - 1.0).square() - 0.5 * x[:, 0])


def log_skewed(x: Tensor) -> Tensor:
    return -2.0 * (x[:, 0] + torch.exp(-x[:, 0]))


@pytest.mark.parametrize(
    ("target", "potential", "tau", "n_steps"),
    [
        pytest.param(log_bimodal, bimodal, 0.1, 2, id="two modes"),
        pytest.param(log_skewed, skewed, 0.1, 1, id="skewed"),
        pytest.param(log_bimodal, bimodal, 0.5, 3, id="two modes, long steps", marks=slow),
        pytest.param(log_skewed, skewed, 0.5, 3, id="skewed, long steps", marks=slow),
    ],
)
def test_steps_on_the_line(target: Any, potential: Any, tau: float, n_steps: int) -> None:
    """Relative L2 error over all but 1e-5 of the mass on either side, and 0.1 nats at worst, far out."""
    start = laws.Normal(0.0, 1.0)
    flow = fit(KL(target), start, tau, n_steps, engine=SMALL)
    nodes, log_rho = np.linspace(-7.0, 7.0, 801), lambda x: start.log_prob(torch.tensor(x)[:, None]).numpy()
    for k in range(1, n_steps + 1):
        exact = step_on_line(potential, log_rho, tau, nodes)
        inner = np.abs(np.cumsum(exact.mass) - 0.5) < 0.5 - 1e-5
        found, width = flow.log_density(exact.moved[inner, None], t=flow.times_[k]), np.gradient(exact.moved)[inner]
        wanted = exact.log_rho[inner]
        error = np.sum(width * (np.exp(found) - np.exp(wanted)) ** 2) / np.sum(width * np.exp(2.0 * wanted))
        assert np.sqrt(error) < TOLERANCE * k
        assert np.abs(found - wanted).max() < 0.1 * k
        nodes, log_rho = np.linspace(exact.moved[0], exact.moved[-1], 801), CubicSpline(exact.moved, exact.log_rho)


def level(x: np.ndarray) -> np.ndarray:
    return 0.0 * x


def step_between_walls(u: Function, v: Function, tau: float, length: float, power: float | None = None) -> Function:
    """The exact step on [0, length]: w = dE/drho is level at its ends, and u' = u(S) S' for S = x + tau w'."""

    def density(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return np.exp(w - v(x)) if power is None else ((power - 1.0) / power * (w - v(x))) ** (1.0 / (power - 1.0))

    def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        image = np.clip(x + tau * y[1], 0.0, length)
        return np.stack([y[1], (density(x, y[0]) / u(image) - 1.0) / tau])

    x = np.linspace(0.0, length, 401)
    start = v(x) + (np.log(u(x)) if power is None else power / (power - 1.0) * u(x) ** (power - 1.0))
    found = solve_bvp(
        slopes, lambda a, b: np.array([a[1], b[1]]), x, np.stack([start, 0.0 * x]), tol=1e-8, max_nodes=10**5
    )
    assert found.success
    return lambda z: density(z, found.sol(z)[0])


def wave(size: float, length: float) -> Function:
    return lambda x: 1.0 + size * np.cos(np.pi * x / length)


UNIT = Box([0.0, 0.0], [1.0, 3.0])
Field = Callable[[Tensor, float], Tensor]


def product(x: Tensor) -> Tensor:
    """u at t = 0 on [0, 1] x [0, 3]: `wave(.5, 1)` times `wave(-.6, 3)` over the area."""
    return (1.0 + 0.5 * (math.pi * x[:, 0]).cos()) * (1.0 - 0.6 * (math.pi * x[:, 1] / 3.0).cos()) / 3.0


def ripples(x: Tensor, t: float = 0.0) -> Tensor:
    """Heat on [-pi, pi]^2: both waves decay at the rate 1."""
    return (1.0 + 0.2 * math.exp(-t) * x.cos().sum(1)) / (4.0 * math.pi**2)


def checks(x: Tensor, t: float = 0.0) -> Tensor:
    """Heat on [0, 1] x [0, 3]."""
    decay = math.exp(-(math.pi**2) * (1.0 + 1.0 / 9.0) * t)
    return (1.0 + 0.4 * decay * (math.pi * x[:, 0]).cos() * (math.pi * x[:, 1] / 3.0).cos()) / 3.0


def valley(x: Tensor) -> Tensor:
    return (math.pi * x[:, 0]).cos() + 0.5 * (2.0 * math.pi * x[:, 1] / 3.0).cos()


def relative_error(flow: JKOSampler, exact: Function, t: float) -> float:
    """In L2 over the box; the mass must be that of the exact density, whatever that error is."""
    x, weights = (v.numpy() for v in flow.domain.quadrature(50**2, seeded(0), "gauss"))
    found, wanted = flow.density(x, t=t), exact(x)
    assert weights @ found == pytest.approx(weights @ wanted, rel=1e-8)
    return float(np.sqrt(weights @ (found - wanted) ** 2 / (weights @ wanted**2)))


class TestWalls:
    @pytest.mark.parametrize(
        ("energy", "potentials", "tolerance"),
        [
            pytest.param(Entropy(), (level, level), TOLERANCE, id="heat"),
            pytest.param(
                Entropy() + Potential(valley),
                (lambda x: np.cos(np.pi * x), lambda x: 0.5 * np.cos(2.0 * np.pi * x / 3.0)),
                TOLERANCE,
                id="valley",
            ),
            pytest.param(  # phi has a third derivative at the walls, and in the engine's coordinates a kink
                Entropy() + Potential(lambda x: x[:, 0] - 0.5 * x[:, 1]),
                (lambda x: x, lambda x: -0.5 * x),
                0.01,
                id="slope through the walls",
                marks=slow,
            ),
        ],
    )
    def test_steps_of_products_are_those_of_their_factors(
        self, energy: Energy, potentials: tuple[Function, Function], tolerance: float
    ) -> None:
        tau, sides = 0.02, (1.0, 3.0)
        flow = fit(energy, product, tau, 2, domain=UNIT, engine=SMALL)
        factors = [wave(0.5, 1.0), wave(-0.6, 3.0)]
        for k in (1, 2):
            first, second = factors = [
                step_between_walls(u, v, tau, side) for u, v, side in zip(factors, potentials, sides, strict=True)
            ]
            error = relative_error(flow, lambda x: first(x[:, 0]) * second(x[:, 1]) / 3.0, flow.times_[k])  # noqa: B023
            assert error < tolerance * k

    def test_porous_medium_of_any_mass(self) -> None:
        """u = 2.5 (1 + .5 cos(pi x_1)) / 3, of mass 2.5 and the same along x_2."""
        tau, height = 0.005, 2.5 / 3.0
        flow = fit(Power(2.0), lambda x: height * (1.0 + 0.5 * (math.pi * x[:, 0]).cos()), tau, domain=UNIT)
        exact = step_between_walls(lambda x: height * wave(0.5, 1.0)(x), level, tau, 1.0, power=2.0)
        assert relative_error(flow, lambda x: exact(x[:, 0]), tau) < TOLERANCE

    @pytest.mark.parametrize(
        ("box", "field", "tau"), [(Box(-math.pi, math.pi, dim=2), ripples, 0.02), (UNIT, checks, 0.002)]
    )
    def test_the_heat_equation(self, box: Box, field: Field, tau: float) -> None:
        """The scheme is late by (rate t) (rate tau) / 2 of the waves: 1e-4 of the density at most.

        Between the steps the density has its mass as well, and no draw ever is outside.
        """
        flow = fit(Entropy(), field, tau, 2, domain=box, engine=None)
        for t in (0.0, 0.3 * tau, tau, 1.5 * tau, 2.0 * tau):
            error = relative_error(flow, lambda x: field(torch.from_numpy(x), t).numpy(), t)  # noqa: B023
            assert error < (TOLERANCE if t else 1e-12)
            x, log_density = flow.sample_with_log_density(2000, t, random_state=1)
            assert bool(box.contains(torch.from_numpy(x)).all())
            np.testing.assert_allclose(log_density, flow.log_density(x, t), rtol=0, atol=1e-7)
        assert np.isneginf(flow.log_density(box.upper.numpy()[None] + 0.01)).all()


class TestTheFit:
    @staticmethod
    @lru_cache
    def flow(seed: int = 0) -> JKOSampler:
        return fit(KL(gaussian_log_target(WORKED)), gaussian_law(WORKED), 0.1, 2, random_state=seed, engine=SMALL)

    def test_times_between_steps_are_on_straight_lines(self) -> None:
        flow = self.flow()
        for begin, end in ((0.0, 0.1), (0.1, 0.2)):
            first, middle, last = (
                flow.sample(50, t, random_state=1) for t in (begin, begin + 0.3 * (end - begin), end)
            )
            np.testing.assert_allclose(middle, 0.7 * first + 0.3 * last, rtol=0, atol=1e-8)
            assert np.abs(last - first).max() > 0.05

    def test_draws_have_their_density(self) -> None:
        flow = self.flow()
        for t in (0.05, 0.13, 0.2):
            x, log_density = flow.sample_with_log_density(50, t, random_state=1)
            np.testing.assert_allclose(x, flow.sample(50, t, random_state=1), rtol=0, atol=1e-9)
            np.testing.assert_allclose(log_density, flow.log_density(x, t), rtol=0, atol=1e-7)
            grid = np.stack(np.meshgrid(*[np.linspace(-6.0, 7.0, 130)] * 2), axis=-1).reshape(-1, 2)
            assert flow.density(grid, t).sum() * (13.0 / 129.0) ** 2 == pytest.approx(1.0, abs=1e-4)

    def test_the_seed_decides(self) -> None:
        again = fit(KL(gaussian_log_target(WORKED)), gaussian_law(WORKED), 0.1, 2, engine=SMALL)
        x = self.flow().sample(200, random_state=1)
        assert np.array_equal(again.log_density(x), self.flow().log_density(x))
        other = self.flow(seed=1).log_density(x) - self.flow().log_density(x)
        assert 0.0 < rms(other) < 4.0 * TOLERANCE

    def test_float32(self) -> None:
        flow = fit(
            KL(lambda x: gaussian_log_target(WORKED)(x.double()).to(x)),
            gaussian_law(WORKED),
            0.1,
            2,
            random_state=0,
            dtype=torch.float32,
        )
        x = self.flow().sample(200, random_state=1)
        assert rms(flow.log_density(x) - self.flow().log_density(x)) < 4.0 * TOLERANCE


class TestSettings:
    def test_width_and_threads_are_the_engine_s(self) -> None:
        engine = MinimizingMovement(width=7, threads=2).for_densities()
        assert isinstance(engine, PushForward)
        assert (engine.n_ridges, engine.threads) == (7, 2)
        assert MinimizingMovement().for_densities().n_ridges == 64

    def test_adam_means_networks(self) -> None:
        engine = MinimizingMovement.as_in_the_paper(lam=2.0).for_densities()
        assert isinstance(engine, DensityNetworks)
        assert (engine.width, engine.lam, engine.adam_iterations) == (256, 2.0, 2000)
