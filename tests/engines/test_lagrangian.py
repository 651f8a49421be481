"""The Lagrangian engine as an engine: states, records, rejections, targets that fail, the paper's algorithm."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from oracles import WORKED
from small_problems import double_well, gaussian_law, gaussian_log_target, gradient_flow
from torch import Tensor

from jkosampler import JKOSampler, engines
from jkosampler.energies import KL, Entropy
from jkosampler.engines import Lagrangian, State
from jkosampler.engines.step_size import FixedSteps
from jkosampler.errors import ArgumentError, StartError, TargetValueError
from jkosampler.laws import Gaussian, Uniform
from jkosampler.maps import GradientMap, ODEMap

LogTarget = Callable[[Tensor], Tensor]
QUICK: dict[str, Any] = {"n_iterations": 40, "width": 16}
RECORD = {
    "time", "step_size", "stage", "energy", "energy_se", "energy_change", "energy_change_se", "transport_cost", "loss",
    "n_iterations", "residual", "optimality_gap", "integration_error", "discrepancy", "dissipation", "rejected",
    "wall_s", "target_evaluations",
}  # fmt: skip


def start(log_target: LogTarget = double_well, tau: float = 0.2, **settings: Any) -> tuple[Lagrangian, State]:
    engine = Lagrangian(**(QUICK | settings))
    flow = gradient_flow(KL(log_target), gaussian_law(WORKED), metric="kalman", control=FixedSteps(tau, 1e-3), n=2500)
    return engine, engine.init(flow)


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
    assert info.target_evaluations == before.flow.energy.n_evaluations - 2004 - 4 * 0 - _spent_before(before)
    assert info.wall_s > 0.0


def _spent_before(state: State) -> int:
    return 0


def test_states_can_be_stepped_again() -> None:
    engine, before = start()
    once, _ = engine.step(before)
    twice, info = engine.step(once)
    assert info is not None
    assert twice.times == (0.0, pytest.approx(0.2), pytest.approx(0.4))
    assert twice.maps[0] is once.maps[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        twice.converged = True  # type: ignore[misc]
