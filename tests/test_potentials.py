"""The potential's closed forms against automatic differentiation of their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.potentials import ResNetPotential, log_two_cosh

F64 = torch.float64
N = 4


def random_potential(dim: int, depth: int, *, time_input: bool = False, width: int = 12) -> ResNetPotential:
    """A potential none of whose parameters is zero, symmetric or alike."""
    generator = torch.Generator().manual_seed(1000 * dim + 10 * depth + time_input)
    potential = ResNetPotential(dim, width=width, depth=depth, time_input=time_input, generator=generator)
    with torch.no_grad():
        for parameter in (potential.output, potential.quadratic, potential.linear):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64))
    return potential


def reference(potential: ResNetPotential, x: Tensor, t: Tensor | None) -> Tensor:
    """`phi` at one point x (d,), written down from the formulas of the module."""
    s = x if t is None else torch.cat([x, t.reshape(1)])
    u = s
    for layer, (weight, bias) in enumerate(zip(potential.weights, potential.biases, strict=True)):
        a = weight @ u + bias
        sigma = torch.logaddexp(a, -a)
        u = sigma if layer == 0 else u + sigma
    hidden = potential.output @ u if potential.depth else 0.0
    return hidden + 0.5 * s @ potential.quadratic @ s + potential.linear @ s


def points(dim: int, time_input: bool) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(7)
    x = 1.5 * torch.randn(N, dim, generator=generator, dtype=F64)
    return x, torch.rand(N, generator=generator, dtype=F64) if time_input else None


def by_autograd(potential: ResNetPotential, x: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values (n,), gradients (n, d) and Hessians (n, d, d) in x."""
    rows = []
    for i in range(len(x)):
        time = None if t is None else t[i]

        def phi(point: Tensor, time: Tensor | None = time) -> Tensor:
            return reference(potential, point, time)

        gradient = torch.autograd.functional.jacobian(phi, x[i])
        rows.append((phi(x[i]), gradient, torch.autograd.functional.hessian(phi, x[i])))
    value, gradient, hessian = (torch.stack(parts).detach() for parts in zip(*rows, strict=True))
    return value, gradient, hessian


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    scale = 1.0 + float(wanted.detach().abs().max())
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=tolerance * scale)


@pytest.mark.parametrize("time_input", [False, True], ids=["x", "x,t"])
@pytest.mark.parametrize("dim", [1, 2, 5, 20])
@pytest.mark.parametrize("depth", range(6))
def test_every_derivative_is_that_of_the_formula(depth: int, dim: int, time_input: bool) -> None:
    potential = random_potential(dim, depth, time_input=time_input)
    x, t = points(dim, time_input)
    value, gradient, hessian = by_autograd(potential, x, t)
    trace = hessian.diagonal(dim1=1, dim2=2).sum(-1)
    with torch.no_grad():
        assert_close(potential.value(x, t), value)
        assert_close(potential.gradient(x, t), gradient)
        assert_close(potential.hessian(x, t), hessian)
        assert_close(potential.laplacian(x, t), trace)
        together = (*potential.gradient_and_hessian(x, t), *potential.gradient_and_laplacian(x, t))
    for found, wanted in zip(together, (gradient, hessian, gradient, trace), strict=True):
        assert_close(found, wanted)


def test_two_layers_are_those_that_the_paper_prints() -> None:
    """(28) of arXiv 2311.06700, L = 2, for s = (x, t) and with J_0 = diag(sigma'(a_0)) W_0, its transpose in print."""
    potential = random_potential(3, 2, time_input=True)
    with torch.no_grad():
        potential.quadratic.zero_()
        potential.linear.zero_()
    x, t = points(3, time_input=True)
    assert t is not None
    (w0, w1), (b0, b1), w = potential.weights, potential.biases, potential.output
    with torch.no_grad():
        for i in range(N):
            a0 = w0 @ torch.cat([x[i], t[i : i + 1]]) + b0
            a1 = w1 @ log_two_cosh(a0) + b1
            z1 = w + w1.mT @ (a1.tanh() * w)
            j0 = torch.diag(a0.tanh()) @ w0
            first = w0.mT @ torch.diag((1.0 - a0.tanh().square()) * z1) @ w0
            second = j0.mT @ w1.mT @ torch.diag((1.0 - a1.tanh().square()) * w) @ w1 @ j0
            assert_close(potential.gradient(x, t)[i], (w0.mT @ (a0.tanh() * z1))[:3])
            assert_close(potential.hessian(x, t)[i], (first + second)[:3, :3])


@pytest.mark.parametrize("depth", range(4))
def test_derivatives_in_the_parameters(depth: int) -> None:
    """What training differentiates once more: the closed forms, and autograd three times through the formula."""
    potential = random_potential(2, depth, time_input=True, width=5)
    x, t = points(2, time_input=True)
    parameters = [parameter for parameter in potential.parameters() if parameter.numel()]
    weights = torch.linspace(-1.0, 2.0, N, dtype=F64)

    gradient, laplacian = potential.gradient_and_laplacian(x, t)
    loss = (weights * (laplacian.square() + gradient.sum(-1).square())).sum()
    _, hessian = potential.gradient_and_hessian(x, t)
    determinant = (weights * torch.linalg.det(hessian)).sum()

    point = x.clone().requires_grad_(True)
    values = torch.stack([reference(potential, point[i], t[i]) for i in range(N)]).sum()
    (slope,) = torch.autograd.grad(values, point, create_graph=True)
    rows = [torch.autograd.grad(slope[:, i].sum(), point, create_graph=True)[0] for i in range(2)]
    full = torch.stack(rows, dim=1)
    trace = full.diagonal(dim1=1, dim2=2).sum(-1)
    wanted = [
        (weights * (trace.square() + slope.sum(-1).square())).sum(),
        (weights * torch.linalg.det(full)).sum(),
    ]
    for found, expected in zip((loss, determinant), wanted, strict=True):
        found_parts = torch.autograd.grad(found, parameters, materialize_grads=True)
        expected_parts = torch.autograd.grad(expected, parameters, retain_graph=True, materialize_grads=True)
        for found_part, expected_part in zip(found_parts, expected_parts, strict=True):
            assert_close(found_part, expected_part)


@pytest.mark.parametrize("time_input", [False, True], ids=["x", "x,t"])
@pytest.mark.parametrize("depth", range(6))
def test_gradients_reach_every_parameter(depth: int, time_input: bool) -> None:
    potential = random_potential(3, depth, time_input=time_input)
    x, t = points(3, time_input)
    gradient, laplacian = potential.gradient_and_laplacian(x, t)
    (gradient.square().sum() + laplacian.square().sum()).backward()
    for name, parameter in potential.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize("seed", range(3))
def test_standard_normal_parameters_would_be_fast(seed: int) -> None:
    """As the paper's Algorithm 2 begins: speeds of hundreds, where a step has to move particles by their own scale."""
    generator = torch.Generator().manual_seed(seed)
    potential = ResNetPotential(2, width=64, depth=3, time_input=True, generator=generator)
    with torch.no_grad():
        for parameter in (*potential.weights, *potential.biases, potential.output):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64))
        x = torch.randn(100, 2, generator=generator, dtype=F64)
        assert float(potential.gradient(x, 0.5).norm(dim=1).mean()) > 100.0


@pytest.mark.parametrize("depth", range(4))
def test_it_starts_at_zero_velocity(depth: int) -> None:
    potential = ResNetPotential(3, depth=depth, time_input=True, generator=torch.Generator().manual_seed(0))
    x, t = points(3, time_input=True)
    assert not bool(potential.value(x, t).any())
    assert not bool(potential.gradient(x, t).any())
    assert not bool(potential.hessian(x, t).any())
    assert not bool(potential.laplacian(x, t).any())


def test_time_is_a_number_or_one_for_each_point() -> None:
    potential = random_potential(2, 2, time_input=True)
    x, _ = points(2, time_input=True)
    wanted = potential.gradient(x, torch.full((N,), 0.3, dtype=F64))
    for t in (0.3, torch.tensor(0.3, dtype=F64)):
        assert torch.equal(potential.gradient(x, t), wanted)
    assert not torch.allclose(potential.gradient(x, 0.4), wanted)


class TestActivation:
    A = np.concatenate([[0.0, 1e-8, 24.9, 25.0, 25.1, 1e4], np.linspace(-40.0, 40.0, 321), [-1e4, -700.0, 700.0]])

    def test_value(self) -> None:
        found = log_two_cosh(torch.as_tensor(self.A)).numpy()
        np.testing.assert_allclose(found, np.logaddexp(self.A, -self.A), rtol=1e-15, atol=2e-15)

    def test_far_out_it_is_the_modulus_in_either_precision(self) -> None:
        for dtype in (torch.float32, F64):
            a = torch.tensor([-1e4, 1e4], dtype=dtype)
            assert log_two_cosh(a).tolist() == [1e4, 1e4]
            assert log_two_cosh(a).dtype == dtype

    def test_first_and_second_derivatives(self) -> None:
        a = torch.as_tensor(self.A).requires_grad_(True)
        (first,) = torch.autograd.grad(log_two_cosh(a).sum(), a, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), a)
        np.testing.assert_allclose(first.detach(), np.tanh(self.A), rtol=0, atol=1e-15)
        np.testing.assert_allclose(second, 1.0 / np.cosh(np.clip(self.A, -300, 300)) ** 2, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_a_potential_stays_finite_far_out(self, dtype: torch.dtype) -> None:
        potential = random_potential(2, 3).to(dtype)
        x = torch.tensor([[1e4, -1e4], [-1e4, 3e3]], dtype=dtype)
        gradient, hessian = potential.gradient_and_hessian(x)
        assert bool(potential.value(x).isfinite().all())
        assert bool(gradient.isfinite().all())
        quadratic = 0.5 * (potential.quadratic + potential.quadratic.mT)
        torch.testing.assert_close(hessian, quadratic.expand(2, 2, 2))  # every tanh is saturated


class TestProbes:
    @pytest.mark.parametrize("depth", range(6))
    def test_scaled_unit_vectors_give_the_exact_trace(self, depth: int) -> None:
        potential = random_potential(5, depth, time_input=True)
        x, t = points(5, time_input=True)
        gradient, trace = potential.gradient_and_laplacian(x, t, math.sqrt(5.0) * torch.eye(5, dtype=F64))
        assert_close(trace, potential.laplacian(x, t))
        assert_close(gradient, potential.gradient(x, t))

    @pytest.mark.parametrize("depth", [0, 1, 4])
    def test_any_probes_give_the_mean_quadratic_form(self, depth: int) -> None:
        potential = random_potential(5, depth)
        x, _ = points(5, time_input=False)
        probes = torch.randn(3, 5, generator=torch.Generator().manual_seed(3), dtype=F64)
        hessian = by_autograd(potential, x, None)[2]
        wanted = torch.stack([((probes @ h) * probes).sum(1).mean() for h in hessian])
        assert_close(potential.laplacian(x, None, probes).detach(), wanted)

    def test_mean_and_variance_over_gaussian_probes(self) -> None:
        """Hutchinson: mean tr H, variance 2 |H|_F^2 / k; N repetitions, so tolerances of five standard errors."""
        potential, k, repetitions = random_potential(5, 2), 8, 2000
        x, _ = points(5, time_input=False)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            draws = torch.stack(
                [
                    potential.laplacian(x, None, torch.randn(k, 5, generator=generator, dtype=F64))
                    for _ in range(repetitions)
                ]
            )
            hessian = potential.hessian(x)
            exact = potential.laplacian(x)
        variance = 2.0 * hessian.square().sum((1, 2)) / k
        assert bool(((draws.mean(0) - exact).abs() < 5.0 * (variance / repetitions).sqrt()).all())
        spread = (draws - exact).square()
        error = spread.std(0) / math.sqrt(repetitions)
        assert bool(((spread.mean(0) - variance).abs() < 5.0 * error).all())
        assert float((error / variance).max()) < 0.06  # so the line above means something


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ({"dim": 0}, "dim must be"),
            ({"dim": 2, "depth": -1}, "depth=-1"),
            ({"dim": 2, "depth": 1, "width": 0}, "width=0"),
        ],
    )
    def test_errors_name_the_argument(self, arguments: dict[str, int], match: str) -> None:
        with pytest.raises(ArgumentError, match=match):
            ResNetPotential(**arguments)

    def test_a_time_input_needs_a_time(self) -> None:
        potential = random_potential(2, 1, time_input=True)
        with pytest.raises(ArgumentError, match="t must be given"):
            potential.gradient(torch.zeros(3, 2, dtype=F64))

    def test_without_layers_the_width_does_not_matter(self) -> None:
        assert ResNetPotential(2, depth=0, width=0).output.numel() == 0

    def test_the_generator_decides_and_the_global_one_is_left_alone(self) -> None:
        def first_layer(seed: int) -> Tensor:
            return ResNetPotential(2, generator=torch.Generator().manual_seed(seed)).weights[0].detach()

        before = torch.get_rng_state()
        assert torch.equal(first_layer(1), first_layer(1))
        assert not torch.equal(first_layer(1), first_layer(2))
        ResNetPotential(2)
        assert torch.equal(torch.get_rng_state(), before)

    def test_first_weights_have_arguments_of_order_one(self) -> None:
        """For whitened inputs: slopes of variance one, kinks uniform over [-2, 2]."""
        potential = ResNetPotential(4, width=4000, depth=1, generator=torch.Generator().manual_seed(5))
        x = torch.randn(1, 4, generator=torch.Generator().manual_seed(6), dtype=F64)
        slopes = potential.weights[0].detach().square().sum(1)  # mean 1, variance 4 * (9/16) * (4/45) = 0.2
        assert abs(float(slopes.mean()) - 1.0) < 5.0 * math.sqrt(0.2 / 4000)
        assert 1.99 < float(potential.biases[0].detach().abs().max()) <= 2.0
        assert bool(potential.value(x).isfinite().all())
