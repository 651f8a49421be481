"""Darcy flow: eigenpairs against the kernel, pressures against finite volumes, gradients against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.forward import Darcy1D, solve_diffusion
from jkosampler.targets import TargetEvaluator

F64 = torch.float64


def coefficients(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("length", [0.1, 0.3, 2.0])
def test_modes_are_those_of_the_exponential_kernel(length: float) -> None:
    """Against the eigenvalues of the kernel on Gauss-Legendre nodes, whose kink leaves an error of some 1e-5."""
    model = Darcy1D(n_terms=12, correlation_length=length, sigma=1.5)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    nodes, weights = (nodes + 1) / 2, weights / 2
    kernel = np.exp(-np.abs(nodes[:, None] - nodes) / length)
    root = np.sqrt(weights)
    values, vectors = np.linalg.eigh(root[:, None] * kernel * root)
    np.testing.assert_allclose(model.eigenvalues, values[::-1][:12], atol=3e-5)
    modes = model.modes(nodes)
    numerical = 1.5 * np.sqrt(values[::-1][:12]) * (vectors / root[:, None])[:, ::-1][:, :12]
    signs = np.sign(np.sum(modes.T * numerical * weights[:, None], axis=0))
    np.testing.assert_allclose(modes.T, numerical * signs, atol=5e-3)
    gram = modes * weights @ modes.T
    np.testing.assert_allclose(gram, np.diag(1.5**2 * model.eigenvalues), atol=1e-12)


def test_all_modes_together_have_nearly_the_whole_variance() -> None:
    """The rest of the eigenvalues, 2 c / w^2 at multiples of pi, sums up to 2 / (length pi^2 64)."""
    model = Darcy1D(n_terms=64, correlation_length=0.3, sigma=2.0)
    missing = 1.0 - model.eigenvalues.sum()
    assert missing == pytest.approx(2 / (0.3 * math.pi**2 * 64), rel=0.03)
    variance = np.square(model.modes(np.linspace(0, 1, 2001))).sum(axis=0)
    assert np.trapezoid(variance, dx=1 / 2000) == pytest.approx(4.0 * (1 - missing), rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_terms": 64, "sigma": 2.0}, {"source": 0.0}, {"source": -3.0, "right_value": 0.5, "mean": 1.0}],
    ids=["default", "rough", "no source", "sink"],
)
def test_pressures_are_the_limit_of_finite_volumes(settings: dict[str, float]) -> None:
    model = Darcy1D(**settings)
    xi = coefficients(2, model.dim)
    errors = []
    for m in (420, 840, 1680):
        centres, nodes = (np.arange(m) + 0.5) / m, np.linspace(0.0, 1.0, m + 1)
        ours = model.solution(xi, nodes).numpy()
        conductivity = model.log_permeability(xi, centres).exp().numpy()
        source = float(settings.get("source", 1.0))
        numerical = [solve_diffusion(row, settings.get("right_value", 1.0), source) for row in conductivity]
        errors.append(np.abs(ours - np.stack(numerical)).max())
        observed = ours[:, m // 21 :: m // 21][:, :20]
        np.testing.assert_allclose(model(xi), observed, rtol=1e-6, atol=1e-7)
    assert errors[-1] < 1e-4 * np.abs(ours).max()
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / errors[1:]), 2.0, atol=0.1)


def test_the_quadrature_has_converged() -> None:
    for terms, tolerance in ((24, 1e-8), (64, 1e-6)):
        xi = 2 * coefficients(5, terms)
        torch.testing.assert_close(Darcy1D(terms)(xi), Darcy1D(terms, n_cells=2048)(xi), rtol=tolerance, atol=tolerance)


def test_constant_media_have_the_elliptic_problems_solution() -> None:
    model = Darcy1D(3, mean=-0.7, left_value=2.0, right_value=5.0, source=4.0, observation_points=[0.0, 0.3, 1.0])
    x = np.array([0.0, 0.3, 1.0])
    expected = 2.0 + 3.0 * x + math.exp(0.7) * 4.0 * (x - x**2) / 2
    np.testing.assert_allclose(model(torch.zeros(2, 3, dtype=F64)), np.tile(expected, (2, 1)), rtol=1e-13)


def test_gradient_is_that_of_differences() -> None:
    model = Darcy1D()
    posterior = model.posterior(y=model(coefficients(1, 24))[0], noise_std=0.05)
    x = 0.5 * coefficients(3, 24)
    _, gradient = TargetEvaluator(posterior).value_and_grad(x)
    step = 1e-5
    for j in range(24):
        shift = torch.zeros(24, dtype=F64)
        shift[j] = step
        difference = (posterior(x + shift) - posterior(x - shift)) / (2 * step)
        # differences of values of some thousands are good to 1e-12 * 1e3 / 1e-5, and to step^2
        torch.testing.assert_close(gradient[:, j], difference, rtol=1e-5, atol=1e-4)


def test_posterior_has_a_standard_normal_prior_and_its_observations() -> None:
    model = Darcy1D(8)
    posterior = model.posterior(y=[0.5] * 20, noise_std=0.1)
    assert (model.dim, model.output_dim, posterior.dim) == (8, 20, 8)
    prior = posterior.prior.log_prob(torch.zeros(1, 8, dtype=F64))
    assert float(prior) == pytest.approx(-4 * math.log(2 * math.pi))
    np.testing.assert_allclose(posterior.constant_data["observation_points"], np.arange(1, 21) / 21)
    other = model.posterior(y=[0.5] * 20, noise_std=0.1, prior_std=2.0)
    assert float(other.prior.log_prob(torch.zeros(1, 8, dtype=F64))) == pytest.approx(float(prior) - 8 * math.log(2.0))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_extreme_media_are_impossible_not_nan(dtype: torch.dtype) -> None:
    posterior = Darcy1D(4).posterior(y=[0.5] * 20, noise_std=0.01, prior_std=1e4)
    xi = torch.zeros(4001, 4, dtype=dtype)
    xi[:, 0] = torch.linspace(-2000.0, 2000.0, 4001)
    xi[:, 1] = 100.0
    assert posterior.forward_model(xi).isfinite().all()
    value, gradient = TargetEvaluator(posterior, dtype=dtype).value_and_grad(xi)
    assert value[0] == -math.inf
    assert value[-1].isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_terms": 65},
        {"n_terms": 0},
        {"n_cells": 0.5},
        {"correlation_length": 0.0},
        {"sigma": -1.0},
        {"source": math.nan},
        {"mean": [1.0, 2.0]},
        {"observation_points": [0.5, 1.5]},
        {"observation_points": []},
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        Darcy1D(**arguments)
