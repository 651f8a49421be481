"""Levenberg and Marquardt's method: known minima, walls, parameters that stay, and when it stops."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from jkosampler.engines.levenberg_marquardt import levenberg_marquardt

F64 = torch.float64


class Point(NamedTuple):
    parameters: Tensor
    value: float


def rosenbrock(x: Tensor) -> Tensor:
    return torch.stack([10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]])


def at(x: Tensor, wall: float = math.inf) -> Point | None:
    return None if float(x[0]) > wall else Point(x, 0.5 * float(rosenbrock(x).square().sum()))


def model(now: Point, moving: int = 2) -> tuple[Tensor, Tensor]:
    jacobian = torch.autograd.functional.jacobian(rosenbrock, now.parameters)[:, :moving]
    return jacobian.mT @ rosenbrock(now.parameters), jacobian.mT @ jacobian


def never(now: Point, values: list[float]) -> bool:
    return False


START = Point(torch.tensor([-1.2, 1.0], dtype=F64), 0.5 * (4.4**2 + 2.2**2))


def test_minimum_of_a_curved_valley() -> None:
    end, n_iterations = levenberg_marquardt(START, at, model, never, max_iterations=60)
    torch.testing.assert_close(end.parameters, torch.ones(2, dtype=F64), rtol=0.0, atol=1e-6)
    assert n_iterations <= 60


def test_a_wall_is_not_crossed_and_the_best_point_before_it_is_kept() -> None:
    tried = []

    def walled(x: Tensor) -> Point | None:
        tried.append(float(x[0]))
        return at(x, wall=0.5)

    end, _ = levenberg_marquardt(START, walled, model, never, max_iterations=200)
    assert max(tried) > 0.5  # it was met
    assert float(end.parameters[0]) == pytest.approx(0.5, abs=0.02)
    assert end.value < 0.5 * (1.0 - 0.5) ** 2 + 0.05


def test_parameters_beyond_the_model_stay() -> None:
    end, _ = levenberg_marquardt(START, at, lambda now: model(now, 1), never, max_iterations=60)
    assert float(end.parameters[1]) == 1.0
    assert abs(float(end.parameters[0])) == pytest.approx(1.0, abs=0.03)


def test_it_stops_when_told_and_values_fall() -> None:
    seen: list[float] = []

    def done(now: Point, values: list[float]) -> bool:
        seen[:] = values
        assert values[-1] == now.value
        return len(values) == 4

    end, n_iterations = levenberg_marquardt(START, at, model, done, max_iterations=60)
    assert len(seen) == 4
    assert seen == sorted(seen, reverse=True)
    assert end.value == seen[-1]
    assert n_iterations >= 3


def test_most_iterations() -> None:
    _, n_iterations = levenberg_marquardt(START, at, model, never, max_iterations=5)
    assert n_iterations == 5


def test_a_minimum_ends_it() -> None:
    best = Point(torch.ones(2, dtype=F64), 0.0)
    end, n_iterations = levenberg_marquardt(best, at, model, never, max_iterations=1000)
    assert end is best
    assert n_iterations < 20  # the damping grows without end


def test_directions_that_an_objective_ceased_to_feel() -> None:
    """A parameter that matters far away and not here must not run off: its scale is remembered."""

    def residual(x: Tensor) -> Tensor:
        return torch.stack([x[0] - 1.0, 5.0 * torch.relu(x[0] + 1.0).square() * 1e-8 * x[1] + torch.relu(-x[0]) * x[1]])

    def here(x: Tensor) -> Point:
        return Point(x, 0.5 * float(residual(x).square().sum()))

    def slopes(now: Point) -> tuple[Tensor, Tensor]:
        jacobian = torch.autograd.functional.jacobian(residual, now.parameters)
        return jacobian.mT @ residual(now.parameters), jacobian.mT @ jacobian

    end, _ = levenberg_marquardt(here(torch.tensor([-2.0, 1.0], dtype=F64)), here, slopes, never, max_iterations=60)
    assert float(end.parameters[0]) == pytest.approx(1.0, abs=1e-4)
    assert abs(float(end.parameters[1])) < 2.0
