"""The evaluator: right values and gradients, honest counts, and an error for every way to return nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from jkosampler.errors import (
    ArgumentError,
    FitError,
    StartError,
    TargetCallError,
    TargetError,
    TargetGradientError,
    TargetShapeError,
    TargetValueError,
)
from jkosampler.targets import Target, TargetEvaluator

F64 = torch.float64


def evaluator(log_density: Callable[[Tensor], Tensor], dim: int = 2, **settings: object) -> TargetEvaluator:
    return TargetEvaluator(Target(log_density, dim), **settings)


def quartic(x: Tensor) -> Tensor:
    return -x.pow(4).sum(dim=1)


def points(n: int = 5, d: int = 2) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=F64)


def test_values_gradients_and_counts() -> None:
    target, x = evaluator(quartic), points()
    torch.testing.assert_close(target.log_density(x), quartic(x))
    assert (target.n_evaluations, target.n_calls) == (5, 1)
    value, gradient = target.value_and_grad(x)
    torch.testing.assert_close(value, quartic(x))
    torch.testing.assert_close(gradient, -4 * x.pow(3))
    assert not any(tensor.requires_grad for tensor in (value, gradient, x))
    assert (target.n_evaluations, target.n_calls) == (10, 2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_mode_of_the_caller_does_not_matter(context: Callable[[], torch.no_grad]) -> None:
    target = evaluator(quartic)
    with context():
        x = points() + 0.0
        assert not target.log_density(x).requires_grad
        torch.testing.assert_close(target.value_and_grad(x)[1], -4 * x.pow(3))


def test_precision_is_the_evaluators() -> None:
    seen = []

    def log_density(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return quartic(x.double())

    target = evaluator(log_density, dtype=torch.float32)
    value, gradient = target.value_and_grad(points())
    assert seen == [torch.float32]
    assert value.dtype == gradient.dtype == target.log_density(points()).dtype == torch.float32


def test_minus_infinity_is_legal_and_has_gradient_zero() -> None:
    def half_space(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, torch.log(x[:, 0]) - x[:, 1].square(), -math.inf)

    target = evaluator(half_space)
    x = torch.tensor([[2.0, 1.0], [0.0, 1.0], [-1.0, 1.0]], dtype=F64)
    value, gradient = target.value_and_grad(x)
    assert value.tolist() == [math.log(2.0) - 1.0, -math.inf, -math.inf]
    assert gradient.tolist() == [[0.5, -2.0], [0.0, 0.0], [0.0, 0.0]]


def test_target_may_not_move_the_particles() -> None:
    x = points()
    before = x.clone()
    evaluator(lambda x: x.mul_(2.0).sum(dim=1)).log_density(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("log_density", "message"),
    [
        (lambda x: quartic(x)[:, None], r"shape \(5, 1\).*instead of \(5,\).*squeeze\(-1\)"),
        (lambda x: x.square(), r"shape \(5, 2\).*sum\(dim=1\)"),
        (lambda x: x.square().sum(), r"shape \(\).*sum\(dim=1\)"),
        (lambda x: x.square().sum(dim=0), r"shape \(2,\)"),
        (lambda x: x.detach().numpy().sum(axis=1), "ndarray.*torch operations.*torch.exp for np.exp"),
        (lambda x: 1.0, "float"),
        (lambda x: None, "NoneType"),
    ],
)
def test_wrong_shape_is_named(log_density: Callable[[Tensor], Tensor], message: str) -> None:
    for call in (evaluator(log_density).log_density, evaluator(log_density).value_and_grad):
        with pytest.raises(TargetShapeError, match=message):
            call(points())


def test_complex_value_is_refused() -> None:
    with pytest.raises(TargetError, match="complex"):
        evaluator(lambda x: quartic(x) + 0j).log_density(points())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_plus_infinity_name_the_points(bad: float) -> None:
    def log_density(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 100.0, bad, quartic(x))

    x = points(40)
    x[3:35:2, 0] = 200.0
    for call in (evaluator(log_density).log_density, evaluator(log_density).value_and_grad):
        with pytest.raises(TargetValueError, match=r"16 of 40 points: x\[3\] = \(200, ") as caught:
            call(x)
        assert caught.value.indices.tolist() == list(range(3, 23, 2))
        np.testing.assert_array_equal(caught.value.points, x[3:23:2].numpy())


@pytest.mark.parametrize(
    "log_density",
    [
        lambda x: torch.tensor(-(x.detach().numpy() ** 2).sum(axis=1)),
        lambda x: quartic(x.detach()),
        lambda x: torch.ones(len(x), dtype=F64, requires_grad=True) * 2.0,
        lambda x: -(x > 0).sum(dim=1),
    ],
    ids=["numpy", "detached", "parameters only", "integers"],
)
def test_cut_gradient_is_an_error(log_density: Callable[[Tensor], Tensor]) -> None:
    assert evaluator(log_density).log_density(points()).dtype == F64
    with pytest.raises(TargetGradientError, match="torch operations"):
        evaluator(log_density).value_and_grad(points())


@pytest.mark.parametrize(
    "log_density",
    [
        lambda x: -x.square().sum(dim=1).sqrt(),
        lambda x: -x.abs().sqrt().sum(dim=1),
        lambda x: -x.sqrt().sum(dim=1),
    ],
    ids=["norm", "root of abs", "infinite"],
)
def test_gradient_that_is_not_finite_names_the_points(log_density: Callable[[Tensor], Tensor]) -> None:
    x = points().abs() + 0.1
    x[2] = 0.0
    with pytest.raises(TargetGradientError, match=r"1 of 5 points: x\[2\] = \(0, 0\)") as caught:
        evaluator(log_density).value_and_grad(x)
    assert caught.value.indices.tolist() == [2]


def test_black_box_has_no_gradient() -> None:
    black_box = TargetEvaluator(Target(quartic, 2, differentiable=False))
    black_box.log_density(points())
    with pytest.raises(TargetGradientError, match=r"differentiable=False.*no gradient"):
        black_box.value_and_grad(points())


def test_error_of_the_user_passes_with_a_note() -> None:
    def broken(x: Tensor) -> Tensor:
        raise KeyError("sigma")

    for call in (evaluator(broken).log_density, evaluator(broken).value_and_grad):
        with pytest.raises(KeyError, match="sigma") as caught:
            call(points())
        assert "shape (5, 2)" in caught.value.__notes__[0]


CONSTANT = torch.eye(2, dtype=torch.float32)


def if_positive(x: Tensor) -> Tensor:
    return quartic(x) if x[:, 0] < 100.0 else 2.0 * quartic(x)


@pytest.mark.parametrize(
    ("log_density", "cause"),
    [
        (lambda x: -(x @ CONSTANT).square().sum(dim=1), RuntimeError),
        (lambda x: -(x[0] ** 2) - x[1] ** 2, IndexError),
        (lambda x: -(x.square().sum(dim=2)), IndexError),
        (if_positive, RuntimeError),
        (lambda x: torch.as_tensor([-float(x[:, 0])] * len(x)), ValueError),
        (lambda x: -math.exp(x[:, 0]) * x[:, 1], ValueError),
        (lambda x, y: x[:, 0], TypeError),
    ],
    ids=["float32", "single point", "axis", "if", "float()", "math", "arguments"],
)
def test_probe_explains_the_usual_mistakes(log_density: Callable[..., Tensor], cause: type[Exception]) -> None:
    with pytest.raises(TargetCallError, match=rf"{cause.__name__}: .* a float64 tensor of shape \(\d, 2\)") as caught:
        evaluator(log_density).probe(points())
    assert type(caught.value.__cause__) is cause
    for hint in ("x[:, 0]", "torch.where", "dtype=torch.float32"):
        assert hint in str(caught.value)


def test_numpy_in_the_target_is_explained_at_the_first_gradient() -> None:
    target = evaluator(lambda x: -torch.as_tensor(np.asarray(x) ** 2).sum(dim=1))
    target.probe(points())
    with pytest.raises(TargetCallError, match=r"RuntimeError.*numpy"):
        target.value_and_grad(points())


def test_errors_after_the_first_calls_are_the_users_own() -> None:
    broken = False

    def later(x: Tensor) -> Tensor:
        if broken:
            raise RuntimeError("out of memory")
        return quartic(x)

    target = evaluator(later)
    target.probe(points())
    target.value_and_grad(points())
    broken = True
    for call in (target.log_density, target.value_and_grad):
        with pytest.raises(RuntimeError, match="out of memory") as caught:
            call(points())
        assert "shape (5, 2)" in caught.value.__notes__[0]
    with pytest.raises(TargetCallError):
        target.probe(points())


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, torch.linalg.LinAlgError])
def test_numbers_that_a_target_refuses_later_are_its_failure_there(error: type[Exception]) -> None:
    def log_density(x: Tensor) -> Tensor:
        if bool((x.abs() > 100.0).any()):
            raise error("Expected positive values, but found " + "[0.0, 0.0]\n" * 100)
        return quartic(x)

    target = evaluator(log_density)
    target.probe(points())
    target.value_and_grad(points())
    for call in (target.log_density, target.value_and_grad):
        with pytest.raises(TargetCallError, match=r"Expected positive .* shape \(5, 2\).*return -inf") as caught:
            call(1000.0 * points())
        assert type(caught.value.__cause__) is error
        assert len(str(caught.value)) < 700


@pytest.mark.parametrize("error", [KeyboardInterrupt, KeyError, FitError, ArgumentError])
def test_other_errors_pass_the_probe(error: type[BaseException]) -> None:
    def broken(x: Tensor) -> Tensor:
        raise error("as it is")

    with pytest.raises(error, match="as it is"):
        evaluator(broken).probe(points())


def test_start_outside_the_support() -> None:
    def half_space(x: Tensor) -> Tensor:
        return torch.where(x[:, 0] > 0, quartic(x), -math.inf)

    x = points(20)
    target = evaluator(half_space)
    assert torch.equal(target.check_start(x), half_space(x))
    with pytest.raises(StartError, match="initial law") as caught:
        target.check_start(-x.abs())
    assert caught.value.points.shape == (10, 2)


@pytest.mark.parametrize("d", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "log_density",
    [
        lambda x: -x.square().sum(dim=0),
        lambda x: -x.square().sum(),
        lambda x: -x.square().sum(dim=1).squeeze(),
        lambda x: quartic(x - x.mean(dim=0)),
        lambda x: quartic(x + torch.randn(1, generator=NOISE)),
    ],
    ids=["wrong axis", "one number", "squeezed", "coupled", "random"],
)
def test_probe_finds_what_one_batch_hides(log_density: Callable[[Tensor], Tensor], d: int) -> None:
    with pytest.raises(TargetShapeError):
        evaluator(log_density, d).probe(points(max(d, 3), d) + 1.0)


NOISE = torch.Generator().manual_seed(1)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_probe_passes_a_good_target_and_counts(n: int) -> None:
    good = evaluator(quartic)
    good.probe(points(n))
    assert (good.n_evaluations, good.n_calls) == (4, 2)
    evaluator(lambda x: quartic(x) - math.inf).probe(points(n))
