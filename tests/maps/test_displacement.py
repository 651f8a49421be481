"""Displacements that need not be gradients: derivatives in x and in their parameters, maps along them."""

from __future__ import annotations

import pytest
import torch
from small_problems import seeded
from torch import Tensor

from jkosampler.maps import DisplacementMap, RidgeField

F64 = torch.float64
in_dimensions = pytest.mark.parametrize("dim", [1, 2, 3])


def random_field(dim: int, size: float = 0.1, seed: int = 0) -> RidgeField:
    field = RidgeField(dim, 5)
    field.set(size * torch.randn(len(field.get()), generator=seeded(seed), dtype=F64))
    with torch.no_grad():
        field.weight += torch.randn(5, dim, generator=seeded(seed + 1), dtype=F64)
    return field


def points(dim: int, n: int = 7) -> Tensor:
    return torch.randn(n, dim, generator=seeded(2), dtype=F64)


def jacobian_by_autograd(field: RidgeField, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.functional.jacobian(lambda y: field(y[None])[0], row) for row in x])


@in_dimensions
def test_jacobian(dim: int) -> None:
    field, x = random_field(dim), points(dim)
    value, jacobian = field.with_jacobian(x)
    torch.testing.assert_close(value, field(x))
    torch.testing.assert_close(jacobian, jacobian_by_autograd(field, x))


@in_dimensions
def test_the_first_parameters_make_a_gradient(dim: int) -> None:
    field = random_field(dim)
    parameters = field.get()
    parameters[field.n_gradient :] = 0.0
    field.set(parameters)
    jacobian = field.with_jacobian(points(dim))[1]
    torch.testing.assert_close(jacobian, jacobian.mT)
    if dim > 1:
        jacobian = random_field(dim).with_jacobian(points(dim))[1]
        assert float((jacobian - jacobian.mT).detach().abs().max()) > 1e-3


@in_dimensions
def test_derivatives_in_the_parameters(dim: int) -> None:
    field, x = random_field(dim), points(dim)
    matrices = torch.randn(7, dim, dim, generator=seeded(3), dtype=F64)
    parameters = field.get()

    def displacement(values: Tensor) -> Tensor:
        return _at(field, values, x)[0]

    def trace(values: Tensor) -> Tensor:
        return torch.einsum("nij,nji->n", matrices, _at(field, values, x)[1])

    for gradient_only in (True, False):
        n = field.n_gradient if gradient_only else len(parameters)
        found = field.parameter_jacobian(x, gradient_only=gradient_only)
        torch.testing.assert_close(found, _central(displacement, parameters)[..., :n], rtol=1e-6, atol=1e-8)
        found = field.trace_jacobian(x, matrices, gradient_only=gradient_only)
        torch.testing.assert_close(found, _central(trace, parameters)[..., :n], rtol=1e-6, atol=1e-8)


def _at(field: RidgeField, values: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    other = RidgeField(field.dim, field.width)
    other.set(values)
    value, jacobian = other.with_jacobian(x)
    return value.detach(), jacobian.detach()


def _central(function, parameters: Tensor, size: float = 1e-6) -> Tensor:
    columns = []
    for k in range(len(parameters)):
        shift = torch.zeros_like(parameters)
        shift[k] = size
        columns.append((function(parameters + shift) - function(parameters - shift)) / (2.0 * size))
    return torch.stack(columns, dim=-1)


@in_dimensions
@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_map_and_its_inverse(dim: int, fraction: float) -> None:
    step, x = DisplacementMap(random_field(dim, size=0.05)), points(dim)
    y, log_det = step(x, fraction)
    torch.testing.assert_close(y, x + fraction * step.field(x))
    jacobian = torch.eye(dim, dtype=F64) + fraction * jacobian_by_autograd(step.field, x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
    back, inverse_log_det = step.inverse(y, fraction)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-8)


@in_dimensions
def test_scores_are_those_of_the_pushed_density(dim: int) -> None:
    step, x = DisplacementMap(random_field(dim, size=0.05)), points(dim)
    y, _, score = step.push(x, -x)

    def log_density(z: Tensor) -> Tensor:
        back, log_det = step.inverse(z)
        return -0.5 * back.square().sum(1) + log_det

    torch.testing.assert_close(score, _central_gradient(log_density, y), rtol=1e-5, atol=1e-6)


def _central_gradient(function, x: Tensor, size: float = 1e-4) -> Tensor:
    shifts = size * torch.eye(x.shape[1], dtype=F64)
    return torch.stack([(function(x + s) - function(x - s)) / (2.0 * size) for s in shifts], dim=1).detach()


def test_a_fold_has_no_density() -> None:
    field = RidgeField(1, 1)
    with torch.no_grad():
        field.symmetric.fill_(-2.0)
    assert bool(DisplacementMap(field)(points(1))[1].isnan().all())
