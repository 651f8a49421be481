"""Second order in time: convergence to the exact flows of Gaussians, the recursion, pieces, times inside a step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from oracles import WORKED, Problem, kalman_flow, ornstein_uhlenbeck, sdirk_step, wasserstein_step
from reference_pde import fokker_planck_line
from scipy.stats import multivariate_normal, norm
from small_problems import gaussian_law, gaussian_log_target

from jkosampler import JKOSampler, engines, laws
from jkosampler.errors import ArgumentError

GAMMA = 1.0 - 0.5**0.5
EXACT = {"wasserstein": ornstein_uhlenbeck, "kalman": kalman_flow}


def fit(p: Problem, **settings: Any) -> JKOSampler:
    start = gaussian_law(p)
    return JKOSampler(
        gaussian_log_target(p),
        dim=start.dim,
        initial=start,
        n_particles=2000,
        random_state=0,
        progress=False,
        **settings,
    ).fit()


def covariance(sampler: JKOSampler) -> np.ndarray:
    """That of the fitted Gaussian law, from its quadratic log density: no Monte Carlo error."""
    d = sampler.n_features_in_
    points = np.array([np.eye(d)[i] + np.eye(d)[j] for i in range(d) for j in range(d)])
    origin, axes = sampler.log_density(np.zeros((1, d)))[0], sampler.log_density(np.eye(d))
    pairs = sampler.log_density(points).reshape(d, d)
    precision = -(pairs - axes[:, None] - axes[None, :] + origin)
    return np.linalg.inv(precision)


@pytest.mark.parametrize("metric", sorted(EXACT))
def test_errors_fall_with_the_square_of_the_step(metric: str) -> None:
    exact = EXACT[metric](WORKED, 0.5)[1]
    errors = [
        np.abs(covariance(fit(WORKED, metric=metric, order=2, step_size=0.5 / n, n_steps=n)) - exact).max()
        for n in (5, 10, 20)
    ]
    first = np.abs(covariance(fit(WORKED, metric=metric, step_size=0.1, n_steps=5)) - exact).max()
    assert errors[0] < 0.2 * first
    for coarse, fine in pairwise(errors):
        assert 3.3 < coarse / fine < 4.9


def test_a_step_is_two_exact_steps_with_an_extrapolation_between() -> None:
    tau = 0.3
    stage = wasserstein_step(WORKED, GAMMA * tau)
    factor = (1.0 - GAMMA) / GAMMA
    matrix = np.eye(2) + factor * (stage.matrix - np.eye(2))
    between = WORKED._replace(m=WORKED.m + factor * (stage.mean - WORKED.m), S=matrix @ WORKED.S @ matrix.T)
    expected = wasserstein_step(between, GAMMA * tau)
    found = fit(WORKED, metric="wasserstein", order=2, step_size=tau, n_steps=1)
    np.testing.assert_allclose(covariance(found), expected.covariance, rtol=0, atol=1e-6)
    assert found.history_[0].stage == "affine"


def test_a_step_too_long_for_the_extrapolation_is_made_in_pieces() -> None:
    stiff = Problem(A=np.diag([200.0, 1.0]), b=np.zeros(2), m=np.zeros(2), S=np.eye(2))
    found = fit(stiff, metric="wasserstein", order=2, step_size=0.1, n_steps=1)
    assert found.history_[0].rejected > 0
    exact = ornstein_uhlenbeck(stiff, 0.1)[1]
    np.testing.assert_allclose(np.diag(covariance(found)), np.diag(exact), rtol=0.05)


def test_laws_between_the_stages_are_laws() -> None:
    start = laws.Gaussian([0.0], [[1.0]])
    found = JKOSampler(
        lambda x: -0.25 * x[:, 0].pow(4) - 0.5 * x[:, 0],
        metric="wasserstein",
        initial=start,
        order=2,
        step_size=0.04,
        n_steps=1,
        n_particles=2000,
        random_state=0,
        progress=False,
    ).fit()
    grid = np.linspace(-8.0, 8.0, 4001)[:, None]
    for t in (0.01, 0.02, 0.03, 0.038, 0.04):
        assert np.trapezoid(found.density(grid, t), grid[:, 0]) == pytest.approx(1.0, abs=1e-5)
        x, log_density = found.sample_with_log_density(200, t, random_state=1)
        np.testing.assert_allclose(found.log_density(x, t), log_density, rtol=0, atol=1e-7)
    inside = found.sample(200, 0.02, random_state=1)
    ends = [found.sample(200, t, random_state=1) for t in (0.0, 0.04)]
    assert np.mean(np.abs(inside - ends[0])) < np.mean(np.abs(ends[1] - ends[0]))


def test_what_second_order_needs() -> None:
    with pytest.raises(ArgumentError, match=r"order=2 .* give step_size"):
        fit(WORKED, order=2)
    with pytest.raises(ArgumentError, match="straight lines, which only the gradient map"):
        fit(WORKED, order=2, step_size=0.1, n_steps=1, engine=engines.Lagrangian(map="ode"))
    assert torch.get_default_dtype() == torch.float32  # nothing global was touched on the way


@pytest.mark.parametrize("metric", sorted(EXACT))
def test_every_step_is_that_of_the_exact_recursion(metric: str) -> None:
    """Means and covariances to the accuracy of the particles' weights, also at the stage inside each step."""
    tau, law = 0.1, WORKED
    found = fit(WORKED, metric=metric, order=2, step_size=tau, n_steps=3)
    points = gaussian_law(WORKED).sample((20,), generator=torch.Generator().manual_seed(0)).numpy()
    for k in range(3):
        inside, law = sdirk_step(law, tau, metric)
        for t, exact in (((k + 1.0 - GAMMA) * tau, inside), ((k + 1.0) * tau, law)):
            expected = multivariate_normal(exact.m, exact.S).logpdf(points)
            np.testing.assert_allclose(found.log_density(points, t), expected, rtol=0, atol=1e-7)
    assert {record.stage for record in found.history_} == {"affine"}


def test_the_exact_recursion_is_of_second_order() -> None:
    for metric, flow in EXACT.items():
        mean, covariance_ = flow(WORKED, 0.5)
        errors = []
        for n in (10, 20, 40):
            law = WORKED
            for _ in range(n):
                law = sdirk_step(law, 0.5 / n, metric)[1]
            errors.append([np.abs(law.m - mean).max(), np.abs(law.S - covariance_).max()])
        for coarse, fine in pairwise(errors):
            np.testing.assert_allclose(np.divide(coarse, fine), 4.0, atol=0.15)
        assert max(errors[-1]) < 2e-5


def test_pieces_are_steps_of_the_exact_recursion() -> None:
    stiff, tau = WORKED._replace(A=np.array([[30.0, 5.0], [5.0, 2.0]])), 0.25
    found = fit(stiff, metric="wasserstein", order=2, step_size=tau, n_steps=1)
    record = found.history_[0]
    assert (record.rejected, found.n_steps_, record.step_size) == (2, 1, tau)  # 4 pieces, one step
    law = stiff
    for _ in range(4):
        law = sdirk_step(law, tau / 4.0, "wasserstein")[1]
    np.testing.assert_allclose(covariance(found), law.S, rtol=0, atol=1e-7)
    exact = ornstein_uhlenbeck(stiff, tau)[1]
    first_order = wasserstein_step(stiff, tau).covariance
    assert np.abs(law.S - exact).max() < 0.02 * np.abs(first_order - exact).max()


def test_laws_that_are_not_gaussian_converge_too() -> None:
    def potential(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return 0.5 * x**2 + 0.4 * np.cos(2.0 * x), x - 0.8 * np.sin(2.0 * x), 1.0 - 1.6 * np.cos(2.0 * x)

    x, densities = fokker_planck_line(potential, lambda x: norm.pdf(x, 0.5, 0.6), 7.0, 400, [0.5])
    errors = {}
    for order, n in ((1, 2), (2, 1), (2, 2)):
        sampler = JKOSampler(
            lambda x: -0.5 * x[:, 0].square() - 0.4 * (2.0 * x[:, 0]).cos(),
            metric="wasserstein",
            initial=laws.Normal(0.5, 0.6),
            step_size=0.5 / n,
            n_steps=n,
            order=order,
            n_particles=2500,
            engine=engines.Lagrangian(n_ridges=32),
            random_state=0,
            progress=False,
        ).fit()
        kept = densities[0] > 1e-3
        error = sampler.density(x[kept, None]) - densities[0][kept]
        errors[order, n] = np.sqrt(np.sum(error**2) / np.sum(densities[0][kept] ** 2))
    assert errors[2, 2] < 0.006
    assert errors[2, 1] > 3.0 * errors[2, 2]
    assert errors[1, 2] > 2.0 * errors[2, 1]
