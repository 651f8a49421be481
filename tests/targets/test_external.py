"""Targets of numpy functions: values and gradients as in torch, one call a point, whatever form the function has."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError, TargetCallError, TargetError, TargetShapeError, TargetValueError
from jkosampler.laws import Gaussian
from jkosampler.targets import Target, TargetEvaluator, from_numpy

PRECISION = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])


def exact(x: Tensor) -> Tensor:
    return -0.5 * ((x @ torch.tensor(PRECISION, dtype=x.dtype)) * x).sum(dim=1)


def points(n: int = 5, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Counted:
    """A function that remembers how it was called."""

    def __init__(self, function: Callable[[np.ndarray], object]) -> None:
        self.function = function
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: np.ndarray) -> object:
        assert x.dtype == np.float64
        self.shapes.append(x.shape)
        return self.function(x)

    def rows(self) -> int:
        return sum(shape[0] if len(shape) == 2 else 1 for shape in self.shapes)


def batch(x: np.ndarray) -> np.ndarray:
    return -0.5 * np.einsum("ni,ij,nj->n", x, PRECISION, x)


def single(x: np.ndarray) -> float:
    return float(-0.5 * x.reshape(3) @ PRECISION @ x) if x.ndim == 1 else _refuse()


def row(x: np.ndarray) -> np.ndarray:
    return batch(x) if x.shape == (1, 3) else _refuse()


def _refuse() -> float:
    raise TypeError("not like this")


def batch_gradient(x: np.ndarray) -> np.ndarray:
    return -x @ PRECISION


def single_gradient(x: np.ndarray) -> np.ndarray:
    return -PRECISION @ x if x.ndim == 1 else _refuse()


FORMS = [(batch, batch_gradient), (single, single_gradient), (batch, single_gradient), (row, batch_gradient)]


@pytest.mark.parametrize(("value", "gradient"), FORMS, ids=["batches", "points", "mixed", "batches of one"])
@pytest.mark.parametrize("pair", [False, True])
def test_values_and_gradients_are_torchs(value: Callable, gradient: Callable, pair: bool) -> None:
    if pair:
        target = from_numpy(lambda x: (value(x), gradient(x)), dim=3, value_and_grad=True)
    else:
        target = from_numpy(value, gradient, 3)
    assert isinstance(target, Target)
    assert target.differentiable
    if pair and (value, gradient) == FORMS[2]:
        with pytest.raises(TargetCallError, match="neither with a batch nor with one point"):
            target(points())
        return
    plain, evaluator = TargetEvaluator(Target(exact, 3)), TargetEvaluator(target)
    for n in (5, 1, 2):
        for ours, expected in zip(evaluator.value_and_grad(points(n)), plain.value_and_grad(points(n)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    evaluator.probe(points())
    single_precision = TargetEvaluator(target, dtype=torch.float32)
    value32, gradient32 = single_precision.value_and_grad(points())
    assert value32.dtype == gradient32.dtype == torch.float32
    np.testing.assert_allclose(target(points().numpy()), exact(points()), rtol=1e-12)


def test_a_density_alone_is_not_differentiable() -> None:
    target = from_numpy(batch, names=["a", "b", "c"], prior=Gaussian([0.0] * 3, 2.0), observed_data={"y": [1.0]})
    assert (target.differentiable, target.dim, target.names) == (False, 3, ["a", "b", "c"])
    assert target.observed_data["y"].tolist() == [1.0]
    torch.testing.assert_close(TargetEvaluator(target).log_density(points()), exact(points()))


@pytest.mark.parametrize("differentiable", [True, False])
@pytest.mark.parametrize("form", [batch, single], ids=["batches", "points"])
def test_constraints_are_those_of_a_torch_function(form: Callable, differentiable: bool) -> None:
    support = {"b": "positive", "c": (-1.0, 2.0)}
    allowed: list[np.ndarray] = []

    def value(x: np.ndarray) -> object:
        allowed.append(np.atleast_2d(x).copy())
        return form(x)

    target = from_numpy(value, batch_gradient if differentiable else None, names=["a", "b", "c"], support=support)
    plain = Target(exact, names=["a", "b", "c"], support=support)
    assert target.differentiable is differentiable
    ours, theirs = TargetEvaluator(target.unconstrained), TargetEvaluator(plain.unconstrained)
    z = 2.0 * points(6)
    torch.testing.assert_close(ours.log_density(z), theirs.log_density(z), rtol=1e-12, atol=1e-12)
    x = np.concatenate(allowed)
    assert bool((x[:, 1] > 0).all())
    assert bool((np.abs(x[:, 2] - 0.5) < 1.5).all())
    if differentiable:
        torch.testing.assert_close(ours.value_and_grad(z)[1], theirs.value_and_grad(z)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vectorized", [True, False, None])
def test_each_point_is_evaluated_once(vectorized: bool | None) -> None:
    """With four evaluations more where the form has to be found out, once; gradients only where they are asked for."""
    value, gradient = (
        (Counted(batch), Counted(batch_gradient))
        if vectorized is not False
        else (
            Counted(single),
            Counted(single_gradient),
        )
    )
    both = Counted(lambda x: (value.function(x), gradient.function(x)))
    separate = TargetEvaluator(from_numpy(value, gradient, 3, vectorized=vectorized))
    pair = TargetEvaluator(from_numpy(both, dim=3, value_and_grad=True, vectorized=vectorized))
    probe = 4 if vectorized is None else 0
    separate.log_density(points(7))
    assert (value.rows(), gradient.rows()) == (7 + probe, 0)
    separate.value_and_grad(points(7))
    assert (value.rows(), gradient.rows()) == (14 + probe, 7 + probe)
    pair.value_and_grad(points(7))
    assert both.rows() == 7 + probe
    assert separate.n_evaluations == 14


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: -0.5 * np.sum(x**2) * np.ones(len(x)) if x.ndim == 2 else -0.5 * np.sum(x**2),
        lambda x: -0.5 * np.sum(np.atleast_2d(x)[0] ** 2) * np.ones(len(x) if x.ndim == 2 else 1),
        lambda x: -0.5 * np.sum(x**2, axis=0) if x.ndim == 2 else -0.5 * np.sum(x**2),
        lambda x: -0.5 * np.sum(x**2),
    ],
    ids=["sum over the batch", "first point", "wrong axis", "no batch"],
)
@pytest.mark.parametrize("n", [3, 6])
def test_values_that_depend_on_the_batch_are_looped(
    wrong: Callable[[np.ndarray], object], n: int, caplog: pytest.LogCaptureFixture
) -> None:
    target = from_numpy(wrong, dim=3)
    with caplog.at_level(logging.INFO, logger="jkosampler"):
        np.testing.assert_allclose(target(points(1)), -0.5 * points(1).square().sum(1))
        assert "looped" not in caplog.text
        np.testing.assert_allclose(target(points(n)), -0.5 * points(n).square().sum(1))
    assert "log_density takes no batches" in caplog.text


def test_gradients_are_not_asked_for_where_the_density_is_zero() -> None:
    def logarithm(x: np.ndarray) -> float:
        return float(np.log(x[0])) if x[0] > 0 else -np.inf

    def slope(x: np.ndarray) -> np.ndarray:
        assert (x > 0).all()
        return 1.0 / x

    x = torch.tensor([[2.0], [-1.0], [4.0]], dtype=torch.float64)
    value, gradient = TargetEvaluator(from_numpy(logarithm, slope, 1)).value_and_grad(x)
    assert value[1] == -np.inf
    np.testing.assert_allclose(gradient[:, 0], [0.5, 0.0, 0.25])


def test_a_function_may_overwrite_its_points() -> None:
    def destructive(x: np.ndarray) -> np.ndarray:
        value = batch(x)
        x[:] = np.nan
        return value

    x = points()
    value, gradient = TargetEvaluator(from_numpy(destructive, batch_gradient, 3, vectorized=True)).value_and_grad(x)
    torch.testing.assert_close(value, exact(x))
    torch.testing.assert_close(gradient, -x @ torch.tensor(PRECISION))


def test_numerical_exceptions_name_the_point() -> None:
    def failing(x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            raise np.linalg.LinAlgError("singular matrix")
        return batch(x)

    target, x = from_numpy(failing, dim=3), points()
    target(x)
    x[3, 0] = 101.0
    with pytest.raises(
        TargetCallError, match=r"log_density failed at x\[3\] = \(101, .*LinAlgError: singular"
    ) as caught:
        TargetEvaluator(target).log_density(x)
    np.testing.assert_array_equal(caught.value.points, x[3:4])


def test_other_exceptions_pass_with_a_note() -> None:
    class LicenceError(Exception):
        pass

    def failing(x: np.ndarray) -> float:
        if x[0] > 100:
            raise LicenceError("no licence")
        return single(x)

    target, x = from_numpy(failing, dim=3), points()
    x[2, 0] = 101.0
    with pytest.raises(LicenceError) as caught:
        target(x)
    assert any("log_density at x[2] = (101" in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (lambda x: x, r"neither with a batch nor with one point.*shape \(1,\), got \(1, 3\)"),
        (lambda x: x.missing, "AttributeError: 'numpy.ndarray' object has no attribute 'missing'"),
        (lambda x: "text", "could not convert string to float"),
        (lambda x: 1j * np.sum(x), "complex"),
    ],
)
def test_functions_that_never_work_are_explained(value: Callable[[np.ndarray], object], match: str) -> None:
    with pytest.raises(TargetCallError, match=match):
        TargetEvaluator(from_numpy(value, dim=3)).log_density(points())


def test_nonsense_is_seen_by_the_evaluator() -> None:
    with pytest.raises(TargetValueError, match="NaN"):
        TargetEvaluator(from_numpy(lambda x: np.nan, dim=3)).log_density(points())
    with pytest.raises(TargetShapeError, match=r"shape \(5,\), got \(5, 3\)"):
        from_numpy(lambda x: x, dim=3, vectorized=True)(points())
    with pytest.raises(TargetError):
        from_numpy(batch, dim=3, value_and_grad=True)(points())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"log_density": 3, "dim": 3}, "log_density must be a callable"),
        ({"log_density": batch, "grad": 3, "dim": 3}, "grad must be a callable"),
        ({"log_density": batch}, "dimension is unknown"),
        ({"log_density": batch, "dim": 2, "names": ["a"]}, "contradict"),
        ({"log_density": batch, "grad": batch, "dim": 3, "value_and_grad": True}, "give one of them"),
        ({"log_density": batch, "dim": 3, "vectorized": "yes"}, "vectorized"),
        ({"log_density": batch, "dim": 3, "support": {"a": "positive"}}, "names"),
        ({"log_density": batch, "names": ["a", "b", "c"], "support": {"d": "positive"}}, "d"),
        ({"log_density": batch, "dim": 3, "space": "positive"}, "space must be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        from_numpy(**arguments)
