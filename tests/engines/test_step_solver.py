"""How a fixed step is solved: affine map, trained ridges, networks; what the next step starts from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from oracles import WORKED
from small_problems import QUICK, double_well, gaussian_log_target, gradient_flow, start
from torch import Tensor

from jkosampler.energies import KL
from jkosampler.engines import Lagrangian, step_solver
from jkosampler.engines.collocation import train_ridges
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_equation import StepEquation
from jkosampler.engines.step_size import AdaptiveSteps, Control
from jkosampler.engines.step_solver import StepSolver
from jkosampler.laws import Gaussian
from jkosampler.maps import GradientMap, ODEMap
from jkosampler.potentials import ResNetPotential


def test_ridges_back_off_from_nan_now_and_then() -> None:
    calls = [0]

    def flaky(x: Tensor) -> Tensor:
        calls[0] += started
        return double_well(x) + (torch.nan if calls[0] % 10 == 9 else 0.0)

    started = False
    engine, state = start(flaky, n_ridges=24, affine=False)
    started = True
    _, info = engine.step(state)
    assert info is not None
    assert calls[0] > 20
    assert (info.stage, info.rejected) == ("collocation", 0)


@pytest.mark.parametrize(
    ("settings", "stage", "kind"),
    [
        ({}, "network", GradientMap),
        ({"map": "gradient"}, "network", GradientMap),
        ({"map": "ode"}, "network", ODEMap),
        ({"n_ridges": None}, "collocation", GradientMap),  # the default of fixed steps
        ({"n_ridges": 20, "map": "gradient"}, "collocation", GradientMap),
        ({"n_ridges": None, "map": "ode"}, "network", ODEMap),
    ],
)
def test_the_map_is_that_of_the_settings(settings: dict[str, Any], stage: str, kind: type) -> None:
    engine, state = start(**settings)
    after, info = engine.step(state)
    assert info is not None
    assert info.stage == stage
    assert isinstance(after.maps[0].inner, kind)
    if stage == "collocation":
        potential = after.maps[0].inner.potential
        assert (potential.depth, potential.width) == (1, settings["n_ridges"] or 64)


def test_a_network_starts_from_the_best_affine_map() -> None:
    steps = []
    for settings in ({"map": "gradient"}, {"map": "ode", "inner_steps": 8}):
        engine, state = start(n_iterations=1, learning_rate=1e-5, **settings)
        after, _ = engine.step(state)
        steps.append(after)
    x = steps[0].check.x
    torch.testing.assert_close(steps[1].check.x, x, atol=2e-4, rtol=0.0)
    torch.testing.assert_close(steps[1].check.log_rho, steps[0].check.log_rho, atol=2e-4, rtol=0.0)
    assert float(steps[0].values.mean()) < float(state.values.mean()) - 0.5


def test_an_affine_step_that_is_the_solution_needs_no_network() -> None:
    engine, state = start(gaussian_log_target(WORKED))
    after, info = engine.step(state)
    assert info is not None
    assert (info.stage, info.n_iterations, after.warm_start) == ("affine", 0, None)
    assert info.optimality_gap < 1e-6


def test_the_next_network_starts_from_the_hidden_layers_of_the_last() -> None:
    engine, state = start()
    assert state.warm_start is None
    after, _ = engine.step(state)
    assert after.warm_start is after.maps[0].inner.potential
    trained = {name: value.clone() for name, value in after.warm_start.state_dict().items()}
    hidden = {"weights.0", "weights.1", "biases.0", "biases.1"}
    for warm in (True, False):
        quick = Lagrangian(**(QUICK | {"n_iterations": 1, "warm_start": warm}))  # at a rate of 4e-7
        last = quick.step(after)[0].maps[-1].inner.potential.state_dict()
        same = {name for name, value in last.items() if torch.allclose(value, trained[name].to(value), atol=1e-4)}
        assert same == (hidden if warm else set())  # nor are the outer layer, linear and quadratic terms the last ones
    other = Lagrangian(**(QUICK | {"n_iterations": 1, "width": 12}))  # of which nothing can be used
    assert other.step(after)[0].maps[-1].inner.potential.width == 12
    torch.testing.assert_close(dict(after.warm_start.state_dict()), trained, rtol=0.0, atol=0.0)


def test_the_next_ridges_start_from_the_last_ones_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    guesses: list[dict[str, Tensor]] = []

    def watched(equation: StepEquation, **most: Any) -> Any:
        guesses.append({name: value.clone() for name, value in equation.potential.state_dict().items()})
        return train_ridges(equation, **most)

    monkeypatch.setattr(step_solver, "train_ridges", watched)
    engine, state = start(n_ridges=24)
    after, info = engine.step(state)
    assert info is not None
    assert (info.stage, len(guesses)) == ("collocation", 1)
    assert after.warm_start is after.maps[0].inner.potential
    trained = {name: value.clone() for name, value in after.warm_start.state_dict().items()}
    engine.step(after)
    torch.testing.assert_close(guesses[1], trained, rtol=0.0, atol=0.0)
    torch.testing.assert_close(dict(after.warm_start.state_dict()), trained, rtol=0.0, atol=0.0)  # which stay
    Lagrangian(**(QUICK | {"n_ridges": 24}), warm_start=False).step(after)
    assert not torch.allclose(guesses[-1]["weights.0"], trained["weights.0"], atol=1e-2)


@pytest.mark.parametrize(("dim", "n_ridges"), [(33, None), (2, 0)])
def test_collocation_is_left_out_in_high_dimension_or_on_demand(dim: int, n_ridges: int | None) -> None:
    law = Gaussian(torch.zeros(dim), torch.eye(dim))
    flow = gradient_flow(KL(lambda x: -x.square().sum(1)), law, metric="kalman", control=AdaptiveSteps(1e-3), n=500)
    engine = Lagrangian(n_ridges=n_ridges)
    assert StepSolver(engine, engine.init(flow), Control(1.0, "collocation")).solve() is None


def test_a_broken_map_leaves_everything_to_gain() -> None:
    engine, state = start()
    solver = StepSolver(engine, state, state.control)
    frame = state.flow.metric.frame(state.pool, torch.full_like(state.pool.log_rho, 1.0 / len(state.pool)))
    problem = StepProblem(state.flow.energy, frame, 0.1)
    some = frame.to_inner(state.pool)[:200]
    potential = ResNetPotential(2, depth=0)
    at_rest = solver._left(problem, GradientMap(potential), some)
    assert 0.0 < at_rest < math.inf
    with torch.no_grad():
        potential.linear[0] = math.nan
    assert solver._left(problem, GradientMap(potential), some) == math.inf
    assert not solver._is_solved(problem, GradientMap(potential), some)
