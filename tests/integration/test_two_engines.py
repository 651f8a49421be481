"""One flow by both engines, through the same call but for `engine=`; and what the second engine refuses."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from reference_line import bimodal, step_on_line
from scipy.interpolate import CubicSpline
from scipy.stats import multivariate_normal, norm
from small_problems import gaussian_log_target
from torch import Tensor

from jkosampler import JKOSampler, domains, energies, engines, laws
from jkosampler.energies import KL, Entropy
from jkosampler.errors import JKOSamplerError

slow = pytest.mark.slow
BOTH = ("lagrangian", "minimizing-movement")
PLANE = oracles.Problem(np.array([[2.5, 1.5], [1.5, 2.5]]), np.full(2, 1.0 / 3.0), np.zeros(2), np.eye(2))


def fit(engine: Any, **problem: Any) -> JKOSampler:
    return JKOSampler(engine=engine, random_state=0, progress=False, **problem).fit()


@lru_cache
def in_the_plane(engine: str, n_steps: int) -> JKOSampler:
    """Fokker-Planck from N(0, I), V = (x - m)' A (x - m) / 2."""
    energy = KL(gaussian_log_target(PLANE))
    return fit(engine, energy=energy, initial=laws.Gaussian([0.0, 0.0], 1.0), step_size=0.005, n_steps=n_steps)


def l2(values: np.ndarray, reference: np.ndarray, weights: np.ndarray | float = 1.0) -> float:
    """Relative error in L2 on an even grid, or with the weights of points."""
    return float(np.sqrt(np.sum(weights * (values - reference) ** 2) / np.sum(weights * reference**2)))


@pytest.mark.parametrize("n_steps", [5, pytest.param(21, marks=slow)])
def test_fokker_planck_in_the_plane(n_steps: int) -> None:
    """Both follow the exact scheme; the second one ends its steps at a misfit of 3e-8, errors of 2.4e-4 at most."""
    grid = np.stack(np.meshgrid(*[np.linspace(-4.5, 4.5, 60)] * 2), axis=-1).reshape(-1, 2)
    p = PLANE
    for k in range(n_steps + 1):
        exact = multivariate_normal(p.m, p.S).pdf(grid)
        one, other = (in_the_plane(engine, n_steps).density(grid, t=0.005 * k) for engine in BOTH)
        assert l2(one, exact) < 1e-3
        assert l2(other, exact) < 1e-3
        assert l2(other, one) < 1e-3
        step = oracles.wasserstein_step(p, 0.005)
        p = p._replace(m=step.mean, S=step.covariance)


def test_both_report_the_same_flow() -> None:
    """Each on 2000 particles of its own; standard errors are those of differences of independent means."""
    one, other = (in_the_plane(engine, 5).history_ for engine in BOTH)
    for mine, theirs in zip(one, other, strict=True):
        assert (mine.time, mine.step_size) == (theirs.time, theirs.step_size)
        for name in ("energy", "energy_change"):
            error = np.hypot(mine[f"{name}_se"], theirs[f"{name}_se"])
            assert abs(mine[name] - theirs[name]) < 4.0 * error
        assert theirs.transport_cost == pytest.approx(mine.transport_cost, rel=0.15)
        assert (mine.stage, theirs.stage) == ("affine", "push-forward")


def test_draws_of_both_have_the_exact_moments() -> None:
    n, p = 20_000, PLANE
    for _ in range(5):
        step = oracles.wasserstein_step(p, 0.005)
        p = p._replace(m=step.mean, S=step.covariance)
    root = np.linalg.cholesky(p.S)
    for engine in BOTH:
        x = np.linalg.solve(root, (in_the_plane(engine, 5).sample(n, random_state=1) - p.m).T)
        assert np.abs(x.mean(axis=1)).max() < 4.0 / n**0.5
        assert np.abs(np.cov(x) - np.eye(2)).max() < 4.0 * (2.0 / n) ** 0.5


def log_double_well(x: Tensor) -> Tensor:
    return -((x[:, 0].square() - 1.0).square() - 0.5 * x[:, 0])


@pytest.mark.parametrize(("tau", "n_steps"), [(0.1, 1), pytest.param(0.1, 4, marks=slow)])
def test_a_double_well_on_the_line(tau: float, n_steps: int) -> None:
    start = laws.Normal(0.0, 1.0)
    problem = {"energy": KL(log_double_well), "initial": start, "step_size": tau, "n_steps": n_steps}
    one, other = (fit(engine, **problem) for engine in BOTH)
    nodes, log_rho = np.linspace(-7.0, 7.0, 801), lambda x: start.log_prob(torch.tensor(x)[:, None]).numpy()
    for k in range(1, n_steps + 1):
        step = step_on_line(bimodal, log_rho, tau, nodes)
        mine, theirs = (flow.density(step.moved[:, None], t=flow.times_[k]) for flow in (one, other))
        exact, width = np.exp(step.log_rho), np.gradient(step.moved)
        assert l2(mine, exact, width) < 3e-3 * k  # see test_reference_steps
        assert l2(theirs, exact, width) < 1e-3 * k
        assert l2(theirs, mine, width) < 4e-3 * k
        nodes, log_rho = np.linspace(step.moved[0], step.moved[-1], 801), CubicSpline(step.moved, step.log_rho)


BOX = domains.Box(0.0, 1.0, dim=2)


def density(x: Tensor) -> Tensor:
    return 1.0 + 0.2 * (np.pi * x[:, 0]).cos()


GOOD: dict[str, Any] = {
    "energy": Entropy(), "initial": density, "domain": BOX, "step_size": 0.01, "n_steps": 1,
    "random_state": 0, "progress": False,
}  # fmt: skip
GAUSSIAN = laws.Gaussian([0.5, 0.5], 0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "newton"}, r"engine must be None, one of \['lagrangian', 'minimizing-movement'\]"),
        ({"engine": engines.MinimizingMovement}, "engine must be None"),
        ({"engine": "lagrangian"}, "domain: the Lagrangian engine moves particles in R"),
        ({"engine": engines.Lagrangian(width=8)}, "domain: the Lagrangian engine moves particles in R"),
        ({"domain": domains.Ball(0.5, 0.5, dim=2)}, r"domain must be a domains.Box or None \(R\^d\)"),
        ({"domain": domains.Region(lambda x: x[:, 0] < 0.5, BOX)}, "domain must be a domains.Box"),
        ({"domain": [0.0, 1.0]}, "domain must be"),
        ({"dim": 3}, "dim says 3, domain says 2"),
        ({"step_size": None}, "step_size: engine='minimizing-movement' needs fixed steps"),
        ({"order": 2}, "order=2 of engine='minimizing-movement' is for L2 flows"),
        ({"mobility": "exclusion"}, "mobility is not for engine='minimizing-movement'"),
        (
            {"engine": engines.MinimizingMovement(optimizer="adam", representation="push-forward")},
            "optimizer='adam' is for representation='networks'",
        ),
        ({"engine": engines.MinimizingMovement(width=0)}, "width"),
        ({"domain": None, "dim": 2, "engine": "minimizing-movement"}, "initial must be a law"),
        ({"initial": laws.Uniform([0.0, 0.0], [1.0, 1.0]), "domain": None, "engine": "minimizing-movement"}, "jumps"),
        ({"initial": lambda x: -density(x)}, "initial must be a density, finite and not negative"),
        ({"initial": lambda x: density(x)[:, None]}, "initial must return a tensor of shape"),
        ({"metric": "kalman"}, "metric='kalman': between walls"),
    ],
)
def test_what_flows_of_densities_between_walls_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JKOSamplerError, match=message):
        JKOSampler(**(GOOD | changes)).fit()


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, "push-forward"),
        ({"engine": "minimizing-movement"}, "push-forward"),
        ({"engine": engines.MinimizingMovement(width=10)}, "push-forward"),
        ({"domain": None, "initial": GAUSSIAN}, "affine"),
        ({"domain": None, "initial": GAUSSIAN, "engine": "lagrangian"}, "affine"),
        ({"domain": None, "initial": GAUSSIAN, "engine": engines.MinimizingMovement(width=10)}, "push-forward"),
    ],
)
def test_which_engine_solves_a_flow_of_densities(changes: dict[str, Any], stage: str) -> None:
    flow = JKOSampler(**(GOOD | {"n_particles": 600} | changes)).fit()
    assert flow.history_[0].stage == stage
    assert flow.n_steps_ == 1


def test_a_law_in_a_box_is_what_it_is_there() -> None:
    """N(0, I) cut off at 1: its share inside is the mass, all draws are inside, and the rest is said to be left out."""
    flow = JKOSampler(
        energy=energies.Entropy(), initial=laws.Gaussian(np.zeros(2), np.eye(2)), domain=domains.Box(-1, 1, dim=2),
        step_size=0.01, n_steps=1, random_state=0, progress=False,
    ).fit()  # fmt: skip
    share = (norm.cdf(1.0) - norm.cdf(-1.0)) ** 2
    assert f"{1.0 - share:.2g} of the mass" in flow.start_note_
    assert np.abs(flow.sample(500, random_state=1)).max() <= 1.0
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (20_000, 2))
    density = flow.density(x)
    assert 4.0 * density.mean() == pytest.approx(share, abs=4.0 * 4.0 * density.std() / np.sqrt(len(x)))
