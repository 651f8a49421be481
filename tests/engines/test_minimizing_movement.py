"""The minimizing-movement engine: its records, its order in time, wider layers, Adam."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from sklearn.base import clone
from torch import Tensor

from jkosampler.domains import Box, Domain
from jkosampler.energies import AllenCahn, Dirichlet, Energy, FunctionalEvaluator
from jkosampler.engines import FieldFlow, FieldState, MinimizingMovement
from jkosampler.engines.hidden_layers import band_of
from jkosampler.errors import ArgumentError
from jkosampler.fields import GivenField

F64 = torch.float64
LINE = Box(-1.0, 1.0)
KAPPA, SQUARE = 0.3, math.pi**2  # -e'' = SQUARE e for the mode below, whose integral of squares is 1
GAMMA = 1.0 - math.sqrt(0.5)
X = torch.linspace(-1.0, 1.0, 41, dtype=F64)[:, None]


def mode(x: Tensor) -> Tensor:
    return (math.pi * (x[:, 0] + 1.0)).cos()


def flow(
    energy: Energy, field: Callable[[Tensor], Tensor], tau: float, order: int = 1, domain: Domain = LINE, seed: int = 0
) -> FieldFlow:
    generator = torch.Generator().manual_seed(seed)
    return FieldFlow(
        FunctionalEvaluator(energy), domain, GivenField(field, domain), tau, order, generator, torch.device("cpu")
    )


def run(engine: MinimizingMovement, problem: FieldFlow, n_steps: int) -> tuple[FieldState, list[Any]]:
    state, records = engine.init(problem), []
    for _ in range(n_steps):
        state, record = engine.step(state)
        records.append(record)
    return state, records


def heat(tau: float, n_steps: int, order: int = 1, **settings: Any) -> tuple[FieldState, list[Any]]:
    return run(MinimizingMovement(**settings), flow(Dirichlet(KAPPA), mode, tau, order), n_steps)


def multiplier(tau: float, order: int) -> float:
    """What a step makes of the mode: rational functions of z = -tau kappa mu^2.

    Of second order: `k_1 = z / (1 - gamma z)`, `k_2 = z (1 + (1 - gamma) k_1) / (1 - gamma z)`, both from one, and
    `1 + (1 - gamma) k_1 + gamma k_2`.
    """
    z = -tau * KAPPA * SQUARE
    if order == 1:
        return 1.0 / (1.0 - z)
    first = z / (1.0 - GAMMA * z)
    second = z * (1.0 + (1.0 - GAMMA) * first) / (1.0 - GAMMA * z)
    return 1.0 + (1.0 - GAMMA) * first + GAMMA * second


def integral(state: FieldState, values: Tensor) -> float:
    return float(state.check.weights @ values)


class TestRecord:
    def test_it_has_what_is_promised(self) -> None:
        state, records = heat(0.05, 2)
        keys = {"time", "step_size", "energy", "transport_cost", "loss", "n_iterations", "wall_s", "target_evaluations"}
        keys |= {"residual", "unresolved", "slack", "slack_se", "descends", "width"}
        assert all(set(record) == keys for record in records)
        assert [record.time for record in records] == [pytest.approx(0.05), pytest.approx(0.1)]
        assert state.times == (0.0, *[record.time for record in records])
        assert state.n_steps == 2
        assert sum(record.target_evaluations for record in records) < state.flow.energy.n_evaluations  # and the check
        assert all(record.wall_s > 0.0 and record.n_iterations >= 1 for record in records)

    @pytest.mark.parametrize("order", [1, 2])
    def test_energies_and_slack_are_those_of_the_mode(self, order: int) -> None:
        """Closed forms; 2048 balanced points leave less than 1e-6 of the slack, draws would leave `slack_se`."""
        m = multiplier(0.05, order)
        for k, record in enumerate(heat(0.05, 2, order)[1]):
            energy, before = 0.5 * KAPPA * SQUARE * m ** (2 * k + 2), 0.5 * KAPPA * SQUARE * m ** (2 * k)
            cost = m ** (2 * k) * (1.0 - m) ** 2  # d^2
            assert record.energy == pytest.approx(energy, rel=1e-5)
            assert record.transport_cost == pytest.approx(cost, rel=1e-5)
            assert record.loss == pytest.approx(energy + cost / 0.1, rel=1e-5)
            assert record.slack == pytest.approx(before - energy - cost / 0.1, rel=1e-5)
            assert 0.01 * record.slack < record.slack_se < 0.1 * record.slack
            assert record.descends

    def test_residual_is_that_of_the_implicit_equation(self) -> None:
        """Too few units, whose field is differentiated here by autograd: `(u_1 - u_0) / tau` less `kappa u_1''`."""
        state, (record,) = heat(0.05, 1, width=8)
        x = state.check.x.clone().requires_grad_(True)
        after = state.fields[-1](x)
        (first,) = torch.autograd.grad(after.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        right, after = KAPPA * second[:, 0], after.detach()
        missing = integral(state, ((after - mode(state.check.x)) / 0.05 - right) ** 2) ** 0.5
        assert record.residual == pytest.approx(missing / integral(state, right**2) ** 0.5, rel=1e-6)
        left = 0.05 * missing / integral(state, after**2) ** 0.5
        damping = KAPPA * (0.5 * band_of(8, 1) / float(state.layer.scale)) ** 2  # of what the units do not resolve
        assert record.unresolved == pytest.approx(left / (1.0 + 0.05 * damping), rel=1e-6)
        assert record.residual > 1e-3  # there is something to see
        assert heat(0.05, 1)[1][0].residual < 1e-4

    def test_a_step_that_gains_no_energy_says_so(self, caplog: pytest.LogCaptureFixture) -> None:
        """Eight units can't be cos(30 x): the step's field is another one, far away."""
        rough = flow(Dirichlet(1e-4), lambda x: (30.0 * x[:, 0]).cos(), 0.05)
        with caplog.at_level(logging.WARNING, logger="jkosampler"):
            _, (record,) = run(MinimizingMovement(width=8), rough, 1)
        assert record.slack < -3.0 * record.slack_se
        assert not record.descends
        assert "step 1 does not satisfy F(u') + d^2/(2 tau) <= F(u)" in caplog.text


@pytest.mark.parametrize("order", [1, 2])
def test_fields_are_those_of_the_exact_scheme(order: int) -> None:
    state, _ = heat(0.04, 5, order)
    assert len(state.fields) == 6
    for k, field in enumerate(state.fields):
        torch.testing.assert_close(field(X), multiplier(0.04, order) ** k * mode(X), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_order_on_the_heat_equation(order: int) -> None:
    errors = []
    for n_steps in (4, 8, 16):
        state, _ = heat(0.5 / n_steps, n_steps, order)
        errors.append(float((state.fields[-1](X) - math.exp(-0.5 * KAPPA * SQUARE) * mode(X)).abs().max()))
    assert errors[0] / errors[1] == pytest.approx(2.0**order, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2.0**order, rel=0.06)
    assert errors[2] < (2e-2, 2e-4)[order - 1]


@pytest.mark.parametrize("order", [1, 2])
def test_order_on_a_nonlinear_equation(order: int) -> None:
    """Allen-Cahn's of a constant, `u' = (u - u^3) / epsilon^2`, whose solution is known."""
    epsilon, start, time = 0.25, 0.4, 0.16
    exact = start / math.sqrt(start**2 + (1.0 - start**2) * math.exp(-2.0 * time / epsilon**2))
    errors = []
    for n_steps in (8, 16, 32):
        problem = flow(AllenCahn(epsilon), lambda x: torch.full_like(x[:, 0], start), time / n_steps, order)
        state, _ = run(MinimizingMovement(width=24), problem, n_steps)
        errors.append(float((state.fields[-1](X) - exact).abs().max()))
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2.0**order, rel=0.25)


class TestWidth:
    domain = Box(-3.0, 3.0)

    def rough(self, tau: float = 0.05) -> FieldFlow:
        """A wave of frequency 180 in the box's coordinates: 128 units reach 100, 256 reach 201."""
        return flow(Dirichlet(1e-4), lambda x: (60.0 * x[:, 0]).cos(), tau, domain=self.domain)

    def test_more_units_where_a_step_is_not_resolved(self) -> None:
        state, records = run(MinimizingMovement(), self.rough(), 2)
        assert [record.width for record in records] == [256, 256]
        assert all(record.unresolved < 1e-2 for record in records)
        exact = (60.0 * X[:, 0]).cos() / (1.0 + 0.05 * 1e-4 * 3600.0) ** 2
        assert float((state.fields[-1](X) - exact).abs().max()) < 5e-3  # 256 units reach little beyond the wave
        assert len(state.fields) == 3  # the refused step is none

    def test_a_given_width_is_kept(self) -> None:
        _, (record,) = run(MinimizingMovement(width=128), self.rough(), 1)
        assert record.width == 128
        assert record.unresolved > 0.5

    def test_a_tolerance_asks_for_more_or_less(self) -> None:
        assert run(MinimizingMovement(tolerance=10.0), self.rough(), 1)[1][0].width == 128
        assert run(MinimizingMovement(tolerance=1e-12), flow(Dirichlet(), mode, 0.05), 1)[1][0].width == 512

    @pytest.mark.parametrize(
        ("settings", "error"), [({"n_quadrature": 77}, 5e-3), ({"n_quadrature": 900, "quadrature": "monte-carlo"}, 0.2)]
    )
    def test_points_to_integrate_by(self, settings: dict[str, Any], error: float) -> None:
        """Sixteen units leave 1e-3; fitted at 900 draws, sqrt(16 / 900) of what they can't be, and of the integrals."""
        state, _ = heat(0.05, 1, width=16, **settings)
        assert state.basis is not None
        assert len(state.basis.points.x) == settings["n_quadrature"]
        assert float((state.fields[-1](X) - multiplier(0.05, 1) * mode(X)).abs().max()) < error


def test_pursuit_in_many_dimensions() -> None:
    """Two waves in five dimensions, each multiplied on its own; Sobol's points leave some 1e-3 of the change."""

    def waves(x: Tensor) -> tuple[Tensor, Tensor]:
        return mode(x[:, :1]), (0.5 * math.pi * (x[:, 1] + 1.0)).cos() * mode(x[:, 3:4])

    problem = flow(Dirichlet(0.2), lambda x: 1.0 + sum(waves(x)), 0.05, domain=Box(-1.0, 1.0, dim=5))
    state, records = run(MinimizingMovement(width=9), problem, 2)
    x = problem.domain.sample(500, torch.Generator().manual_seed(3))
    first, second = waves(x)
    exact = 1.0 + first / (1.0 + 0.01 * SQUARE) ** 2 + second / (1.0 + 0.0125 * SQUARE) ** 2
    assert float((state.fields[-1](x) - exact).norm() / exact.norm()) < 2e-3
    assert all(record.descends and record.width <= 9 for record in records)


class TestAdam:
    def adam(self, **changes: Any) -> MinimizingMovement:
        settings = {"n_iterations": 300, "width": 32, "n_quadrature": 500, "learning_rate": 5e-3}
        return MinimizingMovement.as_in_the_paper(**(settings | changes))

    def test_it_is_near_a_step_of_the_heat_equation(self) -> None:
        state, records = run(self.adam(), flow(Dirichlet(KAPPA), lambda x: 1.0 + mode(x), 0.05), 2)
        m = multiplier(0.05, 1)
        for k, record in enumerate(records, 1):
            exact = 1.0 + m**k * mode(X)
            assert float((state.fields[k](X) - exact).norm() / exact.norm()) < 0.05
            assert record.descends
            assert record.energy == pytest.approx(0.5 * KAPPA * SQUARE * m ** (2 * k), rel=0.1)
            assert record.loss == pytest.approx(record.energy + record.transport_cost / 0.1)
            assert (record.n_iterations, record.width) == (300, 32)
        assert records[1].energy < records[0].energy < 0.5 * KAPPA * SQUARE

    def test_steps_are_kept_apart(self) -> None:
        """The network goes on being trained; the fields before stay as they were."""
        problem = flow(Dirichlet(KAPPA), mode, 0.05)
        engine = self.adam(n_iterations=5)
        state, _ = engine.step(engine.init(problem))
        before = state.fields[1](X).detach().clone()
        state, _ = engine.step(state)
        assert torch.equal(state.fields[1](X), before)
        assert not torch.equal(state.fields[2](X), before)

    @pytest.mark.parametrize("quadrature", ["gauss", "sobol"])
    def test_points_can_stay(self, quadrature: str) -> None:
        state, (record,) = run(
            self.adam(n_iterations=20, quadrature=quadrature, activation="cos", depth=1),
            flow(Dirichlet(KAPPA), mode, 0.05), 1,
        )  # fmt: skip
        assert record.n_iterations == 20
        assert len(list(state.fields[-1].parameters())) == 4  # type: ignore[attr-defined]

    def test_paper(self) -> None:
        paper = MinimizingMovement.as_in_the_paper().get_params()
        assert (paper["optimizer"], paper["width"], paper["depth"], paper["activation"]) == ("adam", 256, 2, "tanh")
        assert paper["learning_rate"] == 1e-3
        assert clone(self.adam()).get_params() == self.adam().get_params()


ADAM = {"optimizer": "adam", "width": 8, "n_iterations": 5, "n_quadrature": 50}


@pytest.mark.parametrize("settings", [{}, ADAM], ids=["projection", "adam"])
def test_same_random_state_same_fields(settings: dict[str, Any]) -> None:
    fields = []
    for seed in (1, 1, 2):
        state, _ = run(MinimizingMovement(**settings), flow(AllenCahn(0.4), mode, 0.01, seed=seed), 2)
        fields.append(state.fields[-1](X).detach())
    assert torch.equal(fields[0], fields[1])
    assert not torch.equal(fields[0], fields[2])


@pytest.mark.parametrize("settings", [{}, ADAM], ids=["projection", "adam"])
def test_global_random_state_is_left_alone(settings: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    heat(0.05, 1, **settings)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of .*'sgd'"),
        ({"quadrature": "simpson"}, "quadrature must be one of .*'simpson'"),
        ({"activation": "sine"}, "activation must be one of .*'sine'"),
        ({"activation": "elu"}, "activation='elu' is for optimizer='adam'"),
        ({"representation": "networks"}, "representation='networks' is for densities"),
        ({"width": 1}, "width must be a whole number of at least 2"),
        ({"width": 2.5}, "width must be a whole number"),
        ({"depth": 0}, "depth must be a whole number of at least 1"),
        ({"n_iterations": 0}, "n_iterations must be a whole number of at least 1"),
        ({"n_quadrature": 1}, "n_quadrature must be a whole number of at least 2"),
        ({"threads": 0}, "threads must be a whole number of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be one positive number"),
        ({"tolerance": -1.0}, "tolerance must be one positive number"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MinimizingMovement(**settings).init(flow(Dirichlet(), mode, 0.1))


def test_adam_has_order_one() -> None:
    with pytest.raises(ArgumentError, match="order=2 is not for optimizer='adam'"):
        MinimizingMovement.as_in_the_paper().init(flow(Dirichlet(), mode, 0.1, order=2))
