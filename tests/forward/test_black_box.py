"""Black boxes: values and gradients of the elliptic closed form, and what becomes of runs that fail."""

from __future__ import annotations

import copy
import logging
import math

import numpy as np
import pytest
import torch
import worker_functions
from torch import Tensor

from jkosampler.errors import ArgumentError, TargetCallError, TargetShapeError, TargetValueError
from jkosampler.forward import BlackBox, EllipticBVP
from jkosampler.laws import Uniform
from jkosampler.targets import TargetEvaluator

DATA = {"y": [27.5, 79.7], "noise_std": 0.1, "prior_std": 10.0}


def parameters(n: int = 6) -> Tensor:
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.tensor([-2.7, 104.0], dtype=torch.float64) + noise


def batched(u: np.ndarray) -> np.ndarray:
    return EllipticBVP()(torch.from_numpy(u[:, :2])).numpy()


def jacobian(u: np.ndarray) -> np.ndarray:
    points = worker_functions.POINTS
    return np.stack([-np.exp(-u[0]) * (points - points**2) / 2, points], axis=1)


MODELS = {
    "point by point": {"vjp": worker_functions.elliptic_vjp},
    "jacobian": {"jacobian": jacobian},
    "batched": {"function": batched, "jacobian": lambda u: np.stack([jacobian(row) for row in u]), "vectorized": True},
    "mixed": {"function": batched, "vjp": worker_functions.elliptic_vjp},
}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_values_and_gradients_are_those_of_the_closed_form(settings: dict[str, object]) -> None:
    model = BlackBox(**{"function": worker_functions.elliptic, "dim": 2, "output_dim": 2, **settings})
    assert model.differentiable
    ours, exact = model.posterior(**DATA), EllipticBVP().posterior(**DATA)
    for x in (parameters(), parameters(1)):
        found, expected = TargetEvaluator(ours).value_and_grad(x), TargetEvaluator(exact).value_and_grad(x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(copy.deepcopy(ours)(parameters()), exact(parameters()), rtol=1e-10, atol=1e-8)
    assert model(parameters().float()).dtype == torch.float32


def test_without_derivative_it_is_a_black_box() -> None:
    model = BlackBox(worker_functions.elliptic, 2, 2, names=["u1", "u2"])
    posterior = model.posterior(**DATA)
    assert (model.differentiable, posterior.differentiable, posterior.names) == (False, False, ["u1", "u2"])
    torch.testing.assert_close(posterior(parameters()), EllipticBVP().posterior(**DATA)(parameters()))


def unreliable(u: np.ndarray) -> np.ndarray:
    if u[0] > 0:
        raise ArithmeticError("the solver diverged")
    return worker_functions.elliptic(u) if u[0] > -5 else np.array([1.0, np.nan])


X = torch.tensor([[1.0, 100.0], [-2.7, 104.0], [-6.0, 100.0], [-2.5, 104.0]], dtype=torch.float64)


def test_failed_runs_are_errors_by_default() -> None:
    posterior = BlackBox(unreliable, 2, 2, vjp=worker_functions.elliptic_vjp).posterior(**DATA)
    with pytest.raises(TargetCallError, match=r"The forward model failed at x\[3\] = .*the solver diverged") as caught:
        TargetEvaluator(posterior).log_density(X[[1, 3, 1, 0]])
    assert caught.value.indices.tolist() == [3]
    with pytest.raises(TargetValueError, match=r"NaN .* x\[1\] = \(-6, 100\)"):
        TargetEvaluator(posterior).log_density(X[[1, 2]])
    assert posterior.n_failed == 0


@pytest.mark.parametrize("vectorized", [None, True], ids=["points", "batches"])
@pytest.mark.parametrize("noise", [{"noise_std": 0.1}, {"noise_cov": [[0.02, 0.01], [0.01, 0.02]]}])
def test_failed_runs_may_be_rejected(
    vectorized: bool | None, noise: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """The density is zero there, its gradient too; the others, in the same batch, are as if they were alone."""

    def in_batches(u: np.ndarray) -> np.ndarray:
        return np.stack([unreliable(row) for row in u])

    calls: list[np.ndarray] = []

    def vjp(u: np.ndarray, s: np.ndarray) -> np.ndarray:
        calls.append(u)
        if vectorized:
            return np.stack([worker_functions.elliptic_vjp(*both) for both in zip(u, s, strict=True)])
        return worker_functions.elliptic_vjp(u, s)

    function = in_batches if vectorized else unreliable
    model = BlackBox(function, 2, 2, vjp=vjp, vectorized=vectorized, on_failure="reject")
    settings = {"y": DATA["y"], "prior_std": 10.0, **noise}
    posterior = model.posterior(**settings)
    with caplog.at_level(logging.WARNING, logger="jkosampler"):
        value, gradient = TargetEvaluator(posterior).value_and_grad(X)
        exact_value, exact_gradient = TargetEvaluator(EllipticBVP().posterior(**settings)).value_and_grad(X)
        good = [1, 3]
        torch.testing.assert_close(value[good], exact_value[good])
        torch.testing.assert_close(gradient[good], exact_gradient[good])
        assert (value[[0, 2]] == -math.inf).all()
        assert (gradient[[0, 2]] == 0).all()
        assert posterior.n_failed == model.n_failed == 2
        assert not any((u[..., 0] > -1).any() or (u[..., 0] < -5).any() for u in calls)
        TargetEvaluator(posterior).log_density(X[[0, 0, 1]])
    assert posterior.n_failed == 4
    assert caplog.text.count("which is rejected") == 1


def test_wrong_shapes_are_no_failed_runs() -> None:
    model = BlackBox(lambda u: worker_functions.elliptic(u)[:1], 2, 2, vectorized=False, on_failure="reject")
    with pytest.raises(TargetShapeError, match=r"shape \(2,\), got \(1,\)"):
        model(X)


def test_it_is_not_asked_outside_the_prior() -> None:
    def bounded(u: np.ndarray) -> np.ndarray:
        if not 0 <= u[0] <= 1:
            raise RuntimeError("outside")
        return 2 * u

    posterior = BlackBox(bounded, 1, 1, vjp=lambda u, s: 2 * s).posterior(
        y=[0.5], noise_std=1.0, prior=Uniform(0.0, 1.0)
    )
    x = torch.tensor([[-0.5], [0.75], [2.0], [0.5]], dtype=torch.float64)
    value, gradient = TargetEvaluator(posterior).value_and_grad(x)
    likelihood = -0.5 * np.array([1.0, 0.5]) ** 2 - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(value, [-np.inf, likelihood[0], -np.inf, likelihood[1]])
    np.testing.assert_allclose(gradient[:, 0], [0.0, -2.0, 0.0, -1.0])
    value, gradient = TargetEvaluator(posterior).value_and_grad(x[[0, 2]])
    assert (value == -math.inf).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"function": 3}, "forward model must be a callable"),
        ({"dim": 0}, "dim"),
        ({"output_dim": 0}, "output_dim"),
        ({"names": ["a"]}, "contradict"),
        ({"vjp": jacobian, "jacobian": jacobian}, "one of jacobian and vjp"),
        ({"on_failure": "ignore"}, "on_failure"),
    ],
)
def test_bad_arguments_are_named(settings: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        BlackBox(**{"function": worker_functions.elliptic, "dim": 2, "output_dim": 2, **settings})
