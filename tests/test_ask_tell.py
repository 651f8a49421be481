"""Fits to values that are told, and processes that end while they wait for them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_elliptic import exact_elliptic
from sklearn.base import clone

from jkosampler import JKOSampler, forward, laws
from jkosampler.errors import ArgumentError, ResourceError, TargetValueError
from jkosampler.targets import Told, from_numpy

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def log_density(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slope = np.stack([x[:, 0] / 4.0, x[:, 1] - 1.0], axis=1)
    return -0.5 * (x[:, 0] ** 2 / 4.0 + (x[:, 1] - 1.0) ** 2), -slope


def sampler(**options: Any) -> JKOSampler:
    return JKOSampler(**{"dim": 2, "random_state": 0, "progress": False, "n_particles": 1000} | options)


def told(one: JKOSampler, most: int | None = None, **options: Any) -> int:
    """Answer the questions of a fit, at most so many; returns how many there were."""
    n = 0
    for x in one.ask(**options):
        if n == most:
            break
        n += 1
        one.tell(*log_density(x))
    return n


def test_what_is_told_is_fitted_as_what_is_called() -> None:
    one, other = sampler(), sampler(log_target=from_numpy(log_density, dim=2, value_and_grad=True, vectorized=True))
    calls = told(one)
    other.fit()
    assert np.array_equal(one.particles_, other.particles_)
    assert calls <= one.n_target_calls_  # points that come again in a step are not asked for again
    assert one.report_ is not None
    assert one.log_evidence_ == pytest.approx(np.log(4.0 * np.pi), abs=5.0 * one.log_evidence_se_ + 1e-3)
    assert one.get_params()["log_target"] is None
    with pytest.raises(ResourceError, match="the values of this target are told"):
        one.diagnose()
    assert not [thread for thread in threading.enumerate() if thread.name == "jkosampler fit"]


def test_outputs_of_a_forward_model_without_gradient() -> None:
    posterior = forward.Told(2, 2).posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
    model, start = forward.EllipticBVP(), laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])
    one = JKOSampler(posterior, initial=start, random_state=0, progress=False)
    n = 0
    for x in one.ask(n_report=4000):
        n += 1
        one.tell(model(torch.from_numpy(x)).numpy())
    exact = exact_elliptic()
    assert n < 40
    assert one.log_evidence_ == pytest.approx(exact["log_evidence"], abs=0.01)
    draws = one.sample(20_000, random_state=0)
    assert np.all(np.abs(draws.mean(0) - exact["mean"]) < 0.05 * exact["sd"])


class TestProcessesThatEnd:
    @pytest.mark.parametrize("seed", [0, None])
    def test_each_batch_by_another_process(self, tmp_path: Path, seed: int | None) -> None:
        path, answered, n = tmp_path / "fit.safetensors", set(), 0
        while n < 200:
            one = sampler(checkpoint=path, random_state=seed, n_steps=3, step_size=0.5)  # as a new process would
            asked = one.ask(n_report=100)
            x = next(asked, None)
            if x is None:
                break
            assert x.tobytes() not in answered  # nothing is asked twice
            answered.add(x.tobytes())
            one.tell(*log_density(x))
            asked.close()
            n += 1
        assert one.n_steps_ == 3
        if seed is not None:
            whole = sampler(n_steps=3, step_size=0.5)
            assert told(whole, n_report=100) == n
            assert np.array_equal(one.particles_, whole.particles_)
            assert one.log_evidence_ == whole.log_evidence_

    def test_a_question_without_an_answer_is_asked_again(self, tmp_path: Path) -> None:
        path = tmp_path / "fit.safetensors"
        told(sampler(checkpoint=path), most=5)
        first, second = (next(sampler(checkpoint=path).ask()) for _ in range(2))
        assert np.array_equal(first, second)


class TestMistakes:
    def test_the_points_before_were_not_told(self) -> None:
        questions = sampler().ask()
        next(questions)
        with pytest.raises(ArgumentError, match="were not told"):
            next(questions)

    def test_wrong_shapes(self) -> None:
        one = sampler()
        questions = one.ask()
        x = next(questions)
        values, grads = log_density(x)
        with pytest.raises(ArgumentError, match=rf"values must have the shape \({len(x)},\)"):
            one.tell(values[:, None], grads)
        with pytest.raises(ArgumentError, match="grads must be given"):
            one.tell(values)
        one.tell(values, grads)  # and the question is still there
        with pytest.raises(ArgumentError, match="told already"):
            one.tell(values, grads)
        questions.close()
        with pytest.raises(ArgumentError, match="no points are asked for"):
            one.tell(values, grads)

    def test_errors_of_the_fit_reach_who_asks(self) -> None:
        one = sampler()
        with pytest.raises(TargetValueError, match="NaN"):  # noqa: PT012
            for x in one.ask():
                one.tell(np.full(len(x), np.nan), x)
        assert not [thread for thread in threading.enumerate() if thread.name == "jkosampler fit"]

    def test_two_loops(self) -> None:
        one = sampler()
        one.ask()  # which nobody has looked at: no fit has begun
        questions = one.ask()
        next(questions)
        with pytest.raises(ArgumentError, match="another fit"):
            one.ask()
        questions.close()
        assert len(next(one.ask())) > 0

    def test_a_target_is_asked_again_after_a_loop_that_ended_early(self) -> None:
        target = Told(2)
        one = sampler(log_target=target, max_target_evaluations=20_000)
        assert told(one, most=3) == 3
        assert told(one) > 3
        assert told(clone(one)) > 3  # as grid searches do

    def test_a_target_that_can_be_called(self) -> None:
        with pytest.raises(ArgumentError, match="fitted by fit"):
            next(sampler(log_target=lambda x: -x.square().sum(1)).ask())
        with pytest.raises(ResourceError, match="are told"):
            sampler(log_target=Told(2)).fit()
