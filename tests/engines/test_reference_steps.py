"""Steps of laws that are not Gaussian against the exact step on the line, and what the certificates say of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracles
import pytest
import torch
from reference_line import LineStep, Potential, bimodal, skewed, step_on_line
from reference_pde import two_bumps
from scipy.interpolate import CubicSpline
from scipy.stats import norm
from sklearn.utils import Bunch
from small_problems import gradient_flow
from torch import Tensor

from jkosampler import JKOSampler
from jkosampler.energies import KL
from jkosampler.engines import Lagrangian, State
from jkosampler.engines.step_size import FixedSteps
from jkosampler.laws import Gaussian, Law, Mixture, Normal, Uniform

NODES = np.linspace(-7.0, 7.0, 801)
START = Normal(0.0, 1.0)


def log_bimodal(x: Tensor) -> Tensor:
    return -((x[:, 0].square() - 1.0).square() - 0.5 * x[:, 0])


def log_skewed(x: Tensor) -> Tensor:
    return -2.0 * (x[:, 0] + torch.exp(-x[:, 0]))


TARGETS: dict[str, tuple[Potential, Any]] = {"bimodal": (bimodal, log_bimodal), "skewed": (skewed, log_skewed)}


def log_density_of(law: Law) -> Any:
    return lambda x: law.log_prob(torch.tensor(x).unsqueeze(-1)).numpy()


def reference(name: str, tau: float, law: Law = START, nodes: np.ndarray = NODES) -> LineStep:
    return step_on_line(TARGETS[name][0], log_density_of(law), tau, nodes)


def density_error(sampler: JKOSampler, exact: LineStep, t: float, tail: float = 1e-3) -> float:
    """Relative L2 error of the density over the exact new law, but for the tails of this mass."""
    kept = (np.cumsum(exact.mass) > tail) & (np.cumsum(exact.mass) < 1.0 - tail)
    ratio = np.exp(sampler.log_density(exact.moved[kept, None], t=t) - exact.log_rho[kept])
    return float(np.sqrt(exact.mass[kept] @ (ratio - 1.0) ** 2))


def fit(
    name: str, tau: float, n_steps: int = 1, *, law: Law = START, metric: str = "wasserstein", **engine: Any
) -> JKOSampler:
    return JKOSampler(
        TARGETS[name][1],
        metric=metric,
        initial=law,
        step_size=tau,
        n_steps=n_steps,
        engine=Lagrangian(**engine),
        progress=False,
        random_state=0,
    ).fit()


def test_the_reference_has_the_closed_form_of_gaussians_at_second_order() -> None:
    def quadratic(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return 2.0 * x**2, 4.0 * x, np.full_like(x, 4.0)

    sigma, errors = oracles.scalar_step(1.0, 0.1, 4.0), []
    for n in (200, 400, 800):
        step = step_on_line(quadratic, norm.logpdf, 0.1, np.linspace(-7.0, 7.0, n + 1))
        ratio = np.exp(step.log_rho - norm(0.0, sigma).logpdf(step.moved))
        errors.append(float(np.sqrt(step.mass @ (ratio - 1.0) ** 2)))
    assert errors[2] < 2e-5
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("name", TARGETS)
def test_the_reference_satisfies_the_first_order_identities(name: str) -> None:
    step = reference(name, 0.3)
    slope = TARGETS[name][0](step.moved)[1]
    assert step.mass @ (step.moved - step.x) == pytest.approx(-0.3 * step.mass @ slope, abs=1e-6)
    expected = 0.3 * (1.0 - step.mass @ (slope * step.moved))
    assert step.mass @ ((step.moved - step.x) * step.moved) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "tau", "kind", "tolerance"),
    [
        ("bimodal", 0.1, "ridges", 0.003),
        ("bimodal", 0.5, "ridges", 0.003),
        ("bimodal", 0.1, "gradient", 0.02),
        ("skewed", 0.1, "ode", 0.02),
        pytest.param("bimodal", 0.5, "gradient", 0.03, marks=pytest.mark.slow),
        pytest.param("skewed", 0.5, "gradient", 0.02, marks=pytest.mark.slow),
        pytest.param("bimodal", 0.1, "ode", 0.03, marks=pytest.mark.slow),
        pytest.param("skewed", 0.5, "ode", 0.04, marks=pytest.mark.slow),
    ],
)
def test_a_step_has_the_density_of_the_exact_one(name: str, tau: float, kind: str, tolerance: float) -> None:
    settings: dict[str, Any] = {} if kind == "ridges" else {"map": kind, "n_ridges": 0}
    exact, sampler = reference(name, tau), fit(name, tau, **settings)
    assert sampler.history_[0].stage == ("collocation" if kind == "ridges" else "network")
    assert density_error(sampler, exact, tau) < tolerance
    record = sampler.history_[0]
    cost = exact.mass @ (exact.moved - exact.x) ** 2
    assert record.transport_cost == pytest.approx(cost, rel=0.15)  # 2000 fresh particles
    energy = exact.mass @ (exact.log_rho + TARGETS[name][0](exact.moved)[0])
    assert abs(record.energy - energy) < 4.5 * record.energy_se + 0.005
    assert record.residual < 0.15
    assert abs(record.integration_error) < 0.01


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
@pytest.mark.parametrize("name", TARGETS)
def test_a_step_is_as_exact_in_the_tails(name: str, seed: int) -> None:
    """A solution of the step's equation on the draws alone goes wrong where these end, by a factor and more."""
    tau = 0.1
    exact = reference(name, tau)
    sampler = JKOSampler(
        TARGETS[name][1],
        metric="wasserstein",
        initial=START,
        step_size=tau,
        n_steps=1,
        progress=False,
        random_state=seed,
    ).fit()
    cumulative = np.cumsum(exact.mass)
    tails = [int(np.searchsorted(cumulative, q)) for q in (1e-4, 1e-3, 0.999, 0.9999)]
    error = sampler.log_density(exact.moved[tails, None], t=tau) - exact.log_rho[tails]
    assert np.abs(error).max() < 0.05


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        pytest.param(
            {"optimizer": "lbfgs", "gradient": "control-variate", "batch_size": 2000, "n_iterations": 60},
            0.04,
            id="lbfgs",
        ),
        pytest.param({"gradient": "control-variate"}, 0.03, id="control variate", marks=pytest.mark.slow),
        pytest.param({"gradient": "plain"}, 0.05, id="plain", marks=pytest.mark.slow),
        pytest.param({"resample_every": 100}, 0.02, id="fresh particles", marks=pytest.mark.slow),
        pytest.param({"tolerance": 1e-3, "n_iterations": 600}, 0.05, id="tolerance", marks=pytest.mark.slow),
        pytest.param(
            {"training_dtype": torch.float64, "depth": 3, "width": 32}, 0.03, id="float64", marks=pytest.mark.slow
        ),
    ],
)
def test_other_ways_to_train_find_the_same_step(settings: dict[str, Any], tolerance: float) -> None:
    assert density_error(fit("bimodal", 0.1, n_ridges=0, **settings), reference("bimodal", 0.1), 0.1) < tolerance


@pytest.mark.slow
def test_three_steps_in_a_row() -> None:
    sampler, nodes, log_rho = fit("bimodal", 0.1, 3), NODES, log_density_of(START)
    for k in (1, 2, 3):
        exact = step_on_line(bimodal, log_rho, 0.1, nodes)
        assert density_error(sampler, exact, 0.1 * k) < 0.003 * k
        nodes = np.linspace(exact.moved[0], exact.moved[-1], 801)
        log_rho = CubicSpline(exact.moved, exact.log_rho)


def test_kalman_steps_are_wasserstein_steps_in_whitened_coordinates() -> None:
    start = Mixture([0.4, 0.6], [Normal(-1.0, 0.5), Normal(1.0, 0.4)])
    variance = float(start.covariance)
    sampler = fit("skewed", 0.3, law=start, metric="kalman")
    assert density_error(sampler, reference("skewed", 0.3 * variance, start), 0.3) < 0.01


def test_a_step_in_the_plane_is_the_product_of_steps_on_lines() -> None:
    tau, angle = 0.2, 0.5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def log_target(x: Tensor) -> Tensor:
        y = x @ torch.tensor(turn)  # y = turn' x
        return log_bimodal(y[:, :1]) + log_skewed(y[:, 1:])

    sampler = JKOSampler(
        log_target,
        metric="wasserstein",
        initial=Gaussian([0.0, 0.0], 1.0),
        step_size=tau,
        n_steps=1,
        progress=False,
        random_state=0,
    ).fit()
    lines = [reference("bimodal", tau), reference("skewed", tau)]
    rng = np.random.default_rng(0)
    rows = [rng.choice(len(line.mass), 4000, p=line.mass / line.mass.sum()) for line in lines]
    y = np.stack([line.moved[row] for line, row in zip(lines, rows, strict=True)], axis=1)
    exact = sum(line.log_rho[row] for line, row in zip(lines, rows, strict=True))
    ratio = np.exp(sampler.log_density(y @ turn.T) - exact)
    assert np.sqrt(np.mean((ratio - 1.0) ** 2)) < 0.05


def test_a_box_start_is_carried_as_it_is_by_fixed_steps() -> None:
    box = Uniform(-1.5, 1.5)
    sampler = fit("bimodal", 0.1, law=box)
    assert sampler.start_note_ is None
    exact = reference("bimodal", 0.1, box, np.linspace(-1.5, 1.5, 801))
    # The exact density falls to zero at its edge, where the slope of the map has no bound: not a network's matter.
    assert density_error(sampler, exact, 0.1, tail=0.05) < 0.1
    x = sampler.sample(20_000, t=0.1, random_state=0)[:, 0]
    levels = np.interp(x, exact.moved, np.cumsum(exact.mass))
    assert np.abs(np.sort(levels) - (np.arange(20_000) + 0.5) / 20_000).max() < 0.02  # Kolmogorov: 0.0115 at 1 %
    assert np.isneginf(sampler.log_density(np.array([[-1.6], [1.51]]), t=0.0)).all()


def solved(name: str, tau: float, **engine: Any) -> tuple[State, Bunch]:
    law = START
    lagrangian = Lagrangian(**engine)
    flow = gradient_flow(KL(TARGETS[name][1]), law, control=FixedSteps(tau, 1e-4), n=8000)
    state, info = lagrangian.step(lagrangian.init(flow))
    assert info is not None
    return state, info


def objective(name: str, tau: float, state: State) -> float:
    """KL + cost / (2 tau) of the step's map, by quadrature."""
    exact = reference(name, tau)
    moved, log_det = state.maps[0](torch.tensor(exact.x).unsqueeze(-1))
    y = moved.detach()[:, 0].numpy()
    log_rho = norm.logpdf(exact.x) - log_det.detach().numpy()
    return float(exact.mass @ (log_rho + TARGETS[name][0](y)[0] + (y - exact.x) ** 2 / (2.0 * tau)))


def test_certificates_are_small_where_a_step_is_solved_and_large_where_it_is_not() -> None:
    tau, exact = 0.5, reference("skewed", 0.5)
    best = exact.mass @ (exact.log_rho + skewed(exact.moved)[0] + (exact.moved - exact.x) ** 2 / (2.0 * tau))
    state, info = solved("skewed", tau)
    lazy_state, lazy = solved("skewed", tau, n_iterations=1, affine=False, n_ridges=0)
    assert info.residual < 0.15
    assert info.optimality_gap < 0.03
    assert lazy.residual > 0.5
    assert lazy.optimality_gap > 0.2
    # The potential is convex, so that the gap bounds what the exact step gains over the one that was found.
    for found, record in ((state, info), (lazy_state, lazy)):
        excess = objective("skewed", tau, found) - best
        assert -1e-4 < excess < record.optimality_gap + 1e-4  # the quadrature
    assert objective("skewed", tau, lazy_state) - best > 0.1


def test_a_bad_integrator_is_found_out() -> None:
    settings: dict[str, Any] = {"map": "ode", "affine": False, "n_iterations": 120, "width": 16}
    flow = gradient_flow(KL(TARGETS["skewed"][1]), START, control=FixedSteps(2.0, 1e-4, retries=0), n=8000)
    euler = Lagrangian(integrator="euler", **settings)
    state, info = euler.step(euler.init(flow))
    assert info is None  # one Euler step claims a density that is not the map's
    assert state.maps == ()
    _, rk4 = solved("skewed", 2.0, integrator="rk4", **settings)
    assert abs(rk4.integration_error) < 0.01


def test_an_ode_that_is_found_out_is_integrated_more_finely() -> None:
    settings: dict[str, Any] = {"map": "ode", "affine": False, "n_iterations": 60, "width": 16, "integrator": "heun"}
    state, info = solved("skewed", 2.0, **settings)
    assert abs(info.integration_error) < 0.01
    steps = state.maps[0].inner.inner_steps
    assert info.rejected > 0
    assert steps == 2**info.rejected


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_two_gaussians_that_part_into_four(seed: int) -> None:
    """The start and the target are products over the axes, and with them the exact step."""
    tau, nodes = 0.025, np.linspace(-5.5, 5.5, 4001)
    bumps = [two_bumps(c) for c in (1.2, 0.0)]
    lines = [step_on_line(two_bumps(2.0), lambda x, bump=bump: -bump(x)[0], tau, nodes) for bump in bumps]
    start, target = (
        Mixture(np.full(len(centres), 1.0 / len(centres)), [Gaussian(centre, 0.25) for centre in centres])
        for centres in ([[-1.2, 0.0], [1.2, 0.0]], [[a, b] for a in (-2.0, 2.0) for b in (-2.0, 2.0)])
    )
    sampler = JKOSampler(
        energy=KL(target), dim=2, initial=start, step_size=tau, n_steps=1, progress=False, random_state=seed
    ).fit()
    assert sampler.history_[0].stage == "collocation"
    x = start.sample((4000,), generator=torch.Generator().manual_seed(99)).numpy()
    moved = np.stack([CubicSpline(line.x, line.moved)(x[:, i]) for i, line in enumerate(lines)], axis=1)
    exact = np.exp(sum(CubicSpline(line.x, line.log_rho)(x[:, i]) for i, line in enumerate(lines)))
    error = sampler.density(moved) - exact
    assert np.sqrt(np.sum(error**2) / np.sum(exact**2)) <= 0.002
