"""Fields: gradients and Hessians against autograd and differences; fields of the user; fitted fields between steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jkosampler.domains import Ball, Box
from jkosampler.errors import ArgumentError, TargetError, TargetShapeError, TargetValueError, UnavailableError
from jkosampler.fields import ACTIVATIONS, CosineField, FittedFields, GivenField, MixedField, NetworkField, ScalarField

F64 = torch.float64
CENTER, SCALE = torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([2.0, 0.7], dtype=F64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(n: int = 30) -> Tensor:
    return CENTER + SCALE * (2.0 * torch.rand(n, 2, generator=generator(1), dtype=F64) - 1.0)


def ridges(seed: int = 0, m: int = 7) -> CosineField:
    draws = generator(seed)
    frequencies = 3.0 * torch.randn(m, 2, generator=draws, dtype=F64)
    phases, coefficients = torch.randn(2, m, generator=draws, dtype=F64)
    return CosineField(CENTER, SCALE, frequencies, phases, coefficients)


def network(activation: str = "tanh", depth: int = 2) -> NetworkField:
    return NetworkField(CENTER, SCALE, width=9, depth=depth, activation=activation, generator=generator(2))


SPACE = Box(-4.0, 4.0, dim=2)


def wave(x: Tensor) -> Tensor:
    return (1.3 * x[:, 0]).sin() * x[:, 1] ** 3


def numpy_wave(x: Tensor) -> Tensor:
    y = x.detach().numpy()
    return torch.from_numpy(np.sin(1.3 * y[:, 0]) * y[:, 1] ** 3)


FIELDS: dict[str, Callable[[], ScalarField]] = {
    "ridges": ridges,
    "given": lambda: GivenField(wave, SPACE),
} | {f"network {name}": lambda name=name: network(name) for name in ACTIVATIONS}


@pytest.fixture(params=FIELDS, ids=str)
def field(request: pytest.FixtureRequest) -> ScalarField:
    return FIELDS[request.param]()


def test_gradient_and_hessian_are_those_of_differences(field: ScalarField) -> None:
    """Central differences of h = 1e-5 leave about 1e-9 of values of size one, by rounding and by third derivatives."""
    x, h = cloud(), 1e-5
    u, gradient = field.with_gradient(x)
    hessian = field.hessian(x) if hasattr(field, "hessian") else None
    torch.testing.assert_close(u, field(x).detach())
    assert not any(part.requires_grad for part in (u, gradient))
    for i, step in enumerate(h * torch.eye(2, dtype=F64)):
        after, before = field.with_gradient(x + step), field.with_gradient(x - step)
        torch.testing.assert_close(gradient[:, i], (after[0] - before[0]) / (2 * h), rtol=1e-6, atol=1e-7)
        if hessian is not None:
            torch.testing.assert_close(hessian[:, i], (after[1] - before[1]) / (2 * h), rtol=1e-6, atol=1e-7)


def test_gradient_is_that_of_autograd(field: ScalarField) -> None:
    x = cloud().requires_grad_(True)
    (expected,) = torch.autograd.grad(field(x).sum(), x)
    with torch.inference_mode():  # whatever mode the caller is in
        torch.testing.assert_close(field.with_gradient(cloud())[1], expected)


def test_ridges_are_the_printed_sum() -> None:
    field, x = ridges(), cloud(4)
    parts = list(zip(field.frequencies.tolist(), field.phases.tolist(), field.coefficients.tolist(), strict=True))
    for point, value in zip(x.tolist(), field(x).tolist(), strict=True):
        y = [(point[i] - float(CENTER[i])) / float(SCALE[i]) for i in range(2)]
        expected = sum(c * math.cos(w[0] * y[0] + w[1] * y[1] + b) for w, b, c in parts)
        assert value == pytest.approx(expected, rel=1e-12)
    doubled = field.with_coefficients(2.0 * field.coefficients).to(torch.device("cpu"))
    torch.testing.assert_close(doubled(x), 2.0 * field(x))
    assert CosineField(CENTER, SCALE, field.frequencies, field.phases)(x).eq(0.0).all()


def test_mixed_field_is_the_mixture() -> None:
    u, v, x = GivenField(wave, SPACE), network(), cloud()
    torch.testing.assert_close(MixedField(u, v, 1.5)(x), -0.5 * u(x) + 1.5 * v(x))


@pytest.mark.parametrize("depth", [1, 3])
def test_network_has_its_layers_and_a_gradient_everywhere(depth: int) -> None:
    field = network(depth=depth)
    sizes = [tuple(p.shape) for p in field.parameters() if p.ndim == 2]
    assert sizes == [(9, 2), *[(9, 9)] * (depth - 1), (1, 9)]
    field(cloud()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in field.parameters())
    again = network(depth=depth)
    assert all(torch.equal(p, q) for p, q in zip(field.parameters(), again.parameters(), strict=True))
    assert max(float(p.detach().abs().max()) for p in field.parameters()) <= 2**-0.5


def test_network_sees_scaled_coordinates() -> None:
    field = network(depth=1)
    first, _, last = field.layers
    expected = last(((cloud() - CENTER) / SCALE @ first.weight.T + first.bias).tanh())[:, 0]
    torch.testing.assert_close(field(cloud()), expected)


class TestGivenField:
    def test_what_torch_cannot_differentiate_is_differenced(self) -> None:
        """Differences over 1e-5 of an extent of 4 leave (4e-5)^2 / 6 of the third derivative, some ten."""
        given, x = GivenField(numpy_wave, SPACE), cloud()
        u, gradient = given.with_gradient(x)
        exact_u, exact = GivenField(wave, SPACE).with_gradient(x)
        torch.testing.assert_close(u, exact_u)
        torch.testing.assert_close(gradient, exact, rtol=1e-7, atol=1e-8)
        assert (gradient - exact).abs().max() > 0.0  # it is not torch's

    def test_constants_and_single_precision(self) -> None:
        x = cloud()
        u, gradient = GivenField(lambda x: torch.ones(len(x)), SPACE).with_gradient(x)
        assert u.dtype == F64
        assert gradient.eq(0.0).all()
        u, gradient = GivenField(lambda x: wave(x).float(), SPACE).with_gradient(x)
        torch.testing.assert_close(gradient, GivenField(wave, SPACE).with_gradient(x)[1], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("function", "error", "message"),
        [
            (lambda x: x[:, 7], TargetError, r"initial fails when it is called with points of shape \(30, 2\)"),
            (lambda x: x, TargetShapeError, r"initial must return a tensor of shape \(30,\), got \(30, 2\)"),
            (lambda x: x.sum(), TargetShapeError, r"initial must return a tensor of shape \(30,\), got \(\)"),
            (lambda x: numpy_wave(x).numpy(), TargetShapeError, "initial must return a tensor .* got ndarray"),
            (lambda x: x[:, 0].log(), TargetValueError, r"initial is not finite at \d+ points: x\["),
        ],
    )
    def test_errors(self, function: Callable[[Tensor], Any], error: type, message: str) -> None:
        for method in (lambda f: f, lambda f: f.with_gradient):
            with pytest.raises(error, match=message) as caught:
                method(GivenField(function, SPACE))(cloud())
        if error is TargetError:
            assert isinstance(caught.value.__cause__, IndexError)
        if error is TargetValueError:
            rows = (cloud()[:, 0] <= 0.0).nonzero()[:, 0]
            assert caught.value.indices.tolist() == rows.tolist()
            assert caught.value.points.tolist() == cloud()[rows[:10]].tolist()

    def test_the_name_of_an_argument(self) -> None:
        with pytest.raises(TargetShapeError, match="start must return a tensor"):
            GivenField(lambda x: x, SPACE, "start")(cloud())


class TestFittedFields:
    times = (0.0, 0.1, 0.4)

    def fitted(self) -> tuple[FittedFields, list[ScalarField]]:
        fields: list[ScalarField] = [GivenField(wave, SPACE), ridges(0), network()]
        return FittedFields(Box(-9, 9, dim=2), fields, self.times), fields

    def test_at_stored_times(self) -> None:
        fitted, fields = self.fitted()
        x = cloud()
        for t, expected in zip(self.times, fields, strict=True):
            found = fitted.field(x, t=t)
            torch.testing.assert_close(found, expected(x).detach(), rtol=0.0, atol=0.0)
            assert not found.requires_grad
        torch.testing.assert_close(fitted.field(x, t=None), fitted.field(x, t=0.4), rtol=0.0, atol=0.0)

    @pytest.mark.parametrize(("t", "weights"), [(0.025, (0.75, 0.25, 0.0)), (0.2, (0.0, 2 / 3, 1 / 3))])
    def test_between_steps_it_is_linear(self, t: float, weights: tuple[float, ...]) -> None:
        fitted, fields = self.fitted()
        expected = sum(w * field(cloud()).detach() for w, field in zip(weights, fields, strict=True))
        torch.testing.assert_close(fitted.field(cloud(), t=t), expected)

    def test_many_points_and_none(self) -> None:
        fitted, fields = self.fitted()
        x = cloud(16384 + 5)
        torch.testing.assert_close(fitted.field(x, t=0.0), fields[0](x))
        assert fitted.field(x[:0], t=0.05).shape == (0,)

    @pytest.mark.parametrize("t", [-0.1, 0.41, math.nan])
    def test_other_times_are_refused(self, t: float) -> None:
        with pytest.raises(ArgumentError, match=r"t must lie in \[0, 0.4\]"):
            self.fitted()[0].field(cloud(), t=t)

    def test_points_outside_are_refused(self) -> None:
        fitted = FittedFields(Ball([0.0, 0.0], 1.0), [ridges()], [0.0])
        with pytest.raises(ArgumentError, match=r"x: 1 points lie outside the domain.* x\[1\] = \(0.8, 0.8\)"):
            fitted.field(torch.tensor([[0.0, 0.0], [0.8, 0.8]], dtype=F64), t=None)

    @pytest.mark.parametrize("name", ["sample", "sample_with_log_density", "log_density", "particles"])
    def test_what_a_field_has_not(self, name: str) -> None:
        with pytest.raises(UnavailableError, match=r"no density and has no draws: field\(x, t\) is u"):
            getattr(self.fitted()[0], name)(3, t=0.1)


def test_a_gradient_that_torch_sees_only_in_part_is_made_of_differences() -> None:
    """x0 + sin(5 x1) with the sine computed by numpy: torch alone would say (1, 0)."""
    box, x = Box(-1.0, 1.0, dim=2), cloud().clamp(-1.0, 1.0)
    given = GivenField(lambda x: x[:, 0] + torch.from_numpy(np.sin(5.0 * x.detach().numpy()[:, 1])), box)
    exact = torch.stack([torch.ones(len(x), dtype=F64), 5.0 * (5.0 * x[:, 1]).cos()], 1)
    torch.testing.assert_close(given.with_gradient(x)[1], exact, rtol=1e-4, atol=1e-3)
    one = x[:1]  # of a single point too
    torch.testing.assert_close(given.with_gradient(one)[1], exact[:1], rtol=1e-4, atol=1e-3)


def test_numpy_functions_need_no_detach() -> None:
    given = GivenField(lambda x: torch.from_numpy(np.cos(x.numpy()[:, 0])), Box(-1.0, 1.0, dim=2))
    x = cloud().clamp(-0.9, 0.9)
    torch.testing.assert_close(given.with_gradient(x)[1][:, 0], -x[:, 0].sin(), rtol=1e-6, atol=1e-7)
