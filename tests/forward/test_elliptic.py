"""The elliptic problem: closed form against finite volumes, posterior against quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_elliptic import exact_elliptic

from jkosampler.errors import ArgumentError
from jkosampler.forward import EllipticBVP, solve_diffusion
from jkosampler.targets import TargetEvaluator

F64 = torch.float64
U = torch.tensor([[-2.7, 104.3], [0.0, 1.0], [1.5, -3.0]], dtype=F64)


def test_closed_form_solves_the_equation_numerically() -> None:
    nodes = np.linspace(0.0, 1.0, 65)
    numerical = EllipticBVP().solve_finite_difference(U, n_cells=64)
    assert numerical.shape == (3, 65)
    np.testing.assert_allclose(EllipticBVP().solution(U, nodes), numerical, rtol=1e-11, atol=1e-11)


def test_closed_form_solves_the_equation_by_autograd() -> None:
    x = torch.linspace(0.0, 1.0, 5, dtype=F64, requires_grad=True)
    p = EllipticBVP().solution(U[:1], x)
    (slope,) = torch.autograd.grad(p.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(-torch.exp(U[0, 0]) * curvature, torch.ones(5, dtype=F64))
    torch.testing.assert_close(p[0, [0, -1]].detach(), torch.tensor([0.0, 104.3], dtype=F64))


def test_finite_volumes_are_of_second_order() -> None:
    """For a = e^x, f = 1, b = 2 has the solution p = (x + 1 - c) e^-x + c - 1 with p(1) = 2."""
    c = (2.0 + 1.0 - 2.0 / math.e) / (1.0 - 1.0 / math.e)
    errors = []
    for m in (20, 40, 80):
        x = np.linspace(0.0, 1.0, m + 1)
        exact = (x + 1.0 - c) * np.exp(-x) + c - 1.0
        assert exact[-1] == pytest.approx(2.0)
        errors.append(np.abs(solve_diffusion(np.exp((x[:-1] + x[1:]) / 2), 2.0) - exact).max())
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(rates, 2.0, atol=0.05)


def test_observations_and_names() -> None:
    model = EllipticBVP()
    torch.testing.assert_close(
        model(U), torch.stack([U[:, 1] / 4, 3 * U[:, 1] / 4], 1) + 0.09375 * torch.exp(-U[:, :1])
    )
    assert (model.dim, model.output_dim, model.names, model.differentiable) == (2, 2, ["u1", "u2"], True)
    assert EllipticBVP([0.1, 0.5, 0.9])(U).shape == (3, 3)
    assert model(U.float()).dtype == torch.float32
    posterior = model.posterior([27.5, 79.7], noise_std=0.1, prior_std=10.0)
    assert posterior.names == ["u1", "u2"]
    np.testing.assert_array_equal(posterior.constant_data["observation_points"], [0.25, 0.75])


def test_reference_has_the_recorded_values() -> None:
    """Recomputed independently on a 2401 x 2401 grid; the paper's log Z leaves the constants out."""
    exact = exact_elliptic()
    assert exact["log_evidence"] == pytest.approx(-60.593868, abs=1e-6)
    assert exact["log_z_paper"] == pytest.approx(-56.91811427355, abs=1e-9)
    np.testing.assert_allclose(exact["mean"], [-2.713848468803, 104.345757833328], rtol=1e-10)
    np.testing.assert_allclose(exact["sd"], [0.113625803726, 0.284220306068], rtol=1e-9)
    np.testing.assert_allclose(exact["quantiles_u1"], [-2.888908045, -2.720274564, -2.516950166], atol=1e-6)
    np.testing.assert_allclose(exact["quantiles_u2"], [103.878435229, 104.345655691, 104.813427578], atol=1e-8)
    assert exact["plateau_mass"] < 1e-9
    assert exact_elliptic(noise_std=0.2)["log_z_paper"] == pytest.approx(-55.453028, abs=1e-6)
    assert exact_elliptic(noise_std=0.5)["plateau_mass"] == pytest.approx(0.123, abs=1e-3)


@pytest.mark.parametrize("noise_std", [0.1, 0.2])
def test_evidence_of_the_posterior_is_the_quadratures(noise_std: float) -> None:
    """Trapezium rule over a box of twelve standard deviations around the posterior."""
    exact = exact_elliptic(noise_std)
    problem = EllipticBVP().posterior(y=[27.5, 79.7], noise_std=noise_std, prior_std=10.0)
    axes = [
        torch.linspace(m - 12 * s, m + 12 * s, 801, dtype=F64) for m, s in zip(exact["mean"], exact["sd"], strict=True)
    ]
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    value = TargetEvaluator(problem).log_density(torch.cartesian_prod(*axes))
    log_evidence = float(torch.logsumexp(value, 0) + cell.log())
    assert log_evidence == pytest.approx(exact["log_evidence"], abs=1e-6 if noise_std == 0.1 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_very_negative_u1_is_impossible_not_nan(dtype: torch.dtype) -> None:
    problem = EllipticBVP([0.0, 0.5, 1.0]).posterior(y=[0.0, 1.0, 2.0], noise_std=1e-3, prior_std=10.0)
    u1 = -torch.linspace(0.0, 2000.0, 8001, dtype=dtype)
    u = torch.stack([u1, torch.full_like(u1, 100.0)], dim=1)
    assert problem.forward_model(u).isfinite().all()
    value, gradient = TargetEvaluator(problem, dtype=dtype).value_and_grad(u)
    assert value[0].isfinite()
    assert (value[-4000:] == -math.inf).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("points", [[], [-0.1], [0.5, 1.5], [[0.5]], "middle"])
def test_bad_observation_points_are_named(points: object) -> None:
    with pytest.raises(ArgumentError, match="observation_points"):
        EllipticBVP(points)


@pytest.mark.parametrize("conductivity", [np.ones(1), np.ones((2, 2)), np.array([1.0, 0.0, 1.0])])
def test_bad_conductivity_is_named(conductivity: np.ndarray) -> None:
    with pytest.raises(ArgumentError, match="conductivity"):
        solve_diffusion(conductivity, 1.0)
