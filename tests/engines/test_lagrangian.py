"""The Lagrangian engine as an engine: states, records, rejections, targets that fail, the paper's algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from oracles import WORKED, scalar_step
from small_problems import QUICK, double_well, gaussian_law, start
from torch import Tensor

from jkosampler import JKOSampler
from jkosampler.energies import KL, Entropy
from jkosampler.engines import Lagrangian
from jkosampler.errors import ArgumentError, StartError, TargetValueError
from jkosampler.laws import Gaussian, Uniform

LogTarget = Callable[[Tensor], Tensor]
RECORD = {
    "time", "step_size", "stage", "outside", "energy", "energy_se", "energy_change", "energy_change_se",
    "transport_cost", "slack", "slack_se", "descends", "solved",
    "loss", "n_iterations", "residual", "optimality_gap", "integration_error", "discrepancy",
    "dissipation", "rejected", "wall_s", "target_evaluations",
}  # fmt: skip


def sampler(log_target: LogTarget = double_well, **settings: Any) -> JKOSampler:
    arguments: dict[str, Any] = {
        "dim": 2, "step_size": 0.2, "n_steps": 2, "n_particles": 2000, "engine": Lagrangian(**QUICK),
        "progress": False, "random_state": 0,
    }  # fmt: skip
    return JKOSampler(log_target, **(arguments | settings))


def test_init_leaves_the_start_as_it_is() -> None:
    engine, state = start()
    law = gaussian_law(WORKED)
    assert (len(state.pool), len(state.check)) == (2500, 2000)
    assert (state.maps, state.times, state.stopped, state.converged) == ((), (0.0,), None, False)
    torch.testing.assert_close(state.pool.log_rho, law.log_prob(state.pool.x))
    torch.testing.assert_close(state.values, state.check.log_rho - double_well(state.check.x))
    assert not torch.equal(state.pool.x[:2000], state.check.x)  # judges are not trained on
    assert isinstance(engine.get_params()["width"], int)


def test_step_gives_a_new_state_and_a_record() -> None:
    engine, before = start()
    kept = before.pool.x.clone()
    after, info = engine.step(before)
    assert info is not None
    assert set(info) == RECORD
    assert torch.equal(before.pool.x, kept)
    assert before.maps == ()
    assert after.times == (0.0, pytest.approx(0.2))
    assert (info.time, info.step_size, info.stage, info.n_iterations) == (pytest.approx(0.2), 0.2, "network", 40)
    assert len(after.maps) == 1
    moved, log_det = after.maps[0](before.pool.x)
    torch.testing.assert_close(after.pool.x, moved.detach())
    torch.testing.assert_close(after.pool.log_rho, before.pool.log_rho - log_det.detach())
    assert info.energy == pytest.approx(float(after.values.mean()))
    assert info.energy_change == pytest.approx(float((after.values - before.values).mean()))
    moved = (after.check.x - before.check.x).square().sum(1)  # of a frame that is N(0, I)'s, up to Monte Carlo error
    assert info.transport_cost == pytest.approx(float(moved.mean()), rel=0.2)
    assert info.slack == pytest.approx(-info.energy_change - info.transport_cost / 0.4)
    assert info.descends == (info.slack >= -3.0 * info.slack_se)
    assert info.target_evaluations > 40 * 512
    assert info.wall_s > 0.0


def test_states_can_be_stepped_again() -> None:
    engine, before = start()
    once, _ = engine.step(before)
    twice, info = engine.step(once)
    assert info is not None
    assert twice.times == (0.0, pytest.approx(0.2), pytest.approx(0.4))
    assert twice.maps[0] is once.maps[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        twice.converged = True  # type: ignore[misc]


@pytest.mark.parametrize(("n_ridges", "stage"), [(0, "network"), (24, "collocation")])
def test_the_generator_decides_everything(n_ridges: int, stage: str) -> None:
    settings: dict[str, Any] = {"engine": Lagrangian(**(QUICK | {"n_ridges": n_ridges})), "n_steps": 1}
    fits = [sampler(**settings).fit() for _ in range(2)]
    assert [record.stage for record in fits[0].history_] == [stage]
    x = torch.zeros(1, 2)
    assert torch.equal(fits[0].log_density(x), fits[1].log_density(x))
    np.testing.assert_array_equal(fits[0].particles_, fits[1].particles_)
    other = sampler(**settings, random_state=1).fit()
    assert not np.array_equal(fits[0].particles_, other.particles_)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # that it ends early is the point
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("step_size", [0.2, None])
@pytest.mark.parametrize("learning_rate", [0.3, 1e4])
def test_a_huge_learning_rate_never_raises_the_energy(
    learning_rate: float, step_size: float | None, affine: bool
) -> None:
    n_ridges = None if step_size is None else 0
    engine = Lagrangian(**(QUICK | {"n_ridges": n_ridges}), learning_rate=learning_rate, affine=affine)
    fit = sampler(engine=engine, step_size=step_size, n_steps=4).fit()
    for record in fit.history_:
        assert record.energy_change <= 3.0 * record.energy_change_se + 1e-9
        assert record.energy_change + record.transport_cost / 0.4 <= 3.0 * record.energy_change_se or step_size is None
    energies = [record.energy for record in fit.history_]
    errors = [record.energy_change_se for record in fit.history_]
    assert all(then <= now + 3.0 * se for (now, then), se in zip(pairwise(energies), errors[1:], strict=True))
    assert fit.n_steps_ == len(fit.history_) == len(fit.times_) - 1
    if fit.n_steps_ < 4:
        assert fit.stop_reason_ != "all 4 steps were made"
    assert np.isfinite(fit.log_density(fit.sample(100, random_state=0))).all()


class Flaky:
    """A target that returns NaN in some of its calls, counted from the start of the fit."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        self.fails, self.calls = fails, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        value = double_well(x)
        return value + torch.nan if self.fails(self.calls) else value


@pytest.mark.parametrize("affine", [True, False])
def test_nan_now_and_then_is_retried(affine: bool) -> None:
    target = Flaky(lambda call: call in (40, 150 + 30 * affine))
    fit = sampler(target, engine=Lagrangian(**QUICK, affine=affine)).fit()
    assert target.calls > 150 + 30 * affine
    assert [record.rejected for record in fit.history_] == [1, 1]


def test_nan_that_persists_is_the_target_s_error_and_keeps_what_was_fitted() -> None:
    broken = [False]
    target = Flaky(lambda _: broken[0])
    fit = sampler(target)
    steps = fit.steps()
    next(steps)
    broken[0] = True
    with pytest.raises(TargetValueError, match="NaN or \\+inf"):
        next(steps)
    assert fit.n_steps_ == 1
    assert fit.sample(10).shape == (10, 2)


def test_failures_at_the_start_are_errors_at_once() -> None:
    with pytest.raises(TargetValueError):
        sampler(Flaky(lambda _: True)).fit()
    with pytest.raises(StartError):
        sampler(lambda x: torch.where(x[:, 0] > 1e6, 0.0 * x[:, 0], -torch.inf)).fit()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"map": "spline"}, "map must be"),
        ({"gradient": "best"}, "gradient must be"),
        ({"optimizer": "sgd"}, "optimizer must be"),
        ({"coverage": "everywhere"}, "coverage must be"),
        ({"optimizer": "lbfgs"}, "gradient='control-variate'"),
        ({"map": "ode", "integrator": "rk5"}, "integrator must be"),
        ({"map": "ode", "inner_steps": 0}, "inner_steps must be"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        sampler(engine=Lagrangian(**(QUICK | settings))).fit()


def test_a_box_start_is_smoothed_where_the_path_is_free(caplog: pytest.LogCaptureFixture) -> None:
    box = Uniform([-2.0, -2.0], [2.0, 2.0])
    fit = sampler(initial=box, step_size=None, n_steps=3).fit()
    assert fit.start_note_ is not None
    assert "jumps at its edge" in fit.start_note_
    assert fit.start_note_ in caplog.text
    assert [record.note for record in fit.history_] == [fit.start_note_, None, None]
    np.testing.assert_allclose(fit.log_density(np.zeros((1, 2)), t=0.0), [-np.log(16.0)])
    assert np.abs(fit.sample(1000, t=0.0, random_state=0)).max() <= 2.0
    assert fit.history_[-1].energy < fit.history_[0].energy


@pytest.mark.parametrize("kind", ["heat", "ornstein-uhlenbeck"])
def test_the_algorithm_of_the_paper_lowers_the_energy(kind: str) -> None:
    engine = Lagrangian.as_in_the_paper(n_iterations=150, learning_rate=5e-3, width=16, depth=2, batch_size=200)
    assert (engine.map, engine.gradient, engine.affine, engine.resample_every) == ("ode", "plain", False, 100)
    energy = Entropy() if kind == "heat" else KL(lambda x: -0.5 * x.square().sum(-1))
    fit = JKOSampler(
        energy=energy,
        metric="wasserstein",
        initial=Gaussian([1.0, 0.0], 0.5),
        step_size=0.1,
        n_steps=2,
        n_particles=1000,
        engine=engine,
        progress=False,
        random_state=0,
    ).fit()
    assert [record.stage for record in fit.history_] == ["network", "network"]
    assert all(record.energy_change < -3.0 * record.energy_change_se for record in fit.history_)
    assert all(abs(record.integration_error) < 0.01 for record in fit.history_)
    # The exact steps: every coordinate is independent, and the centre falls towards the target's.
    precision, variance = (0.0 if kind == "heat" else 1.0), 0.5
    for _ in range(2):
        variance = scalar_step(variance**0.5, 0.1, precision) ** 2
    x = fit.sample(50_000, random_state=0)
    np.testing.assert_allclose(x.mean(axis=0), [(1.0 + 0.1 * precision) ** -2, 0.0], atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), variance * np.eye(2), atol=0.06)


def test_settings_of_the_paper_can_be_changed_by_name() -> None:
    paper = Lagrangian.as_in_the_paper()
    assert (paper.n_iterations, paper.learning_rate, paper.integrator) == (10_000, 1e-5, "rk4")
    assert Lagrangian.as_in_the_paper(integrator="heun", resample_every=None).integrator == "heun"
    with pytest.raises(TypeError):
        Lagrangian.as_in_the_paper(iterations=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resample_every", 0), ("batch_size", 0), ("n_iterations", -3), ("width", 2.5), ("inner_steps", 0),
        ("n_ridges", -1), ("threads", 0), ("learning_rate", -1.0), ("tolerance", 0.0),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_used_are_named(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=f"^{name} must be"):
        start(**{name: value})
