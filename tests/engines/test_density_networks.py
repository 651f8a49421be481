"""Densities as networks: the step against closed forms, its slopes against differences, and what a user meets."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from small_problems import seeded
from torch import Tensor

from jkosampler import JKOSampler, energies, laws
from jkosampler.domains import Ball, Box
from jkosampler.energies import EnergyEvaluator
from jkosampler.engines import MinimizingMovement
from jkosampler.engines.density_step import DensityStep, PositiveNetwork, Saddle
from jkosampler.engines.network_fit import fit_gradients, fit_values
from jkosampler.engines.transport_pair import TransportPair
from jkosampler.errors import ArgumentError, FitError, UnavailableError
from jkosampler.fields import NetworkField
from jkosampler.tangent import InputConvex, Tangent

LINE = Box(-6.0, 6.0, dim=1)
TAU = 0.05
SMALL = {"representation": "networks", "width": 12, "convex_width": 8, "n_quadrature": 160}


def precision(x: Tensor) -> Tensor:
    """The potential of N(1/2, 1/2)."""
    return (x[:, 0] - 0.5).square()


def exact_steps(n: int, mean: float = 0.0, variance: float = 1.0) -> tuple[float, float]:
    """Mean and variance after n exact steps of the flow to N(1/2, 1/2): (x' - x) / tau = -2 (x' - 1/2) + m-part."""
    for _ in range(n):
        mean = (mean + TAU) / (1.0 + 2.0 * TAU)
        # the map is x' = a x + .., and a solves (a - 1) / tau = 1 / (a s) - 2 a
        p, q = 1.0 + 2.0 * TAU, TAU / variance
        variance *= ((1.0 + math.sqrt(1.0 + 4.0 * p * q)) / (2.0 * p)) ** 2
    return mean, variance


def sampler(n_steps: int = 3, energy: energies.Energy | None = None, **options: object) -> JKOSampler:
    engine = MinimizingMovement(**(SMALL | options.pop("engine", {})))  # type: ignore[arg-type, operator]
    settings = {
        "energy": energies.Entropy() + energies.Potential(precision) if energy is None else energy,
        "initial": laws.Normal(0.0, 1.0), "domain": LINE, "step_size": TAU, "n_steps": n_steps,
        "random_state": 0, "progress": False,
    }  # fmt: skip
    return JKOSampler(**(settings | options), engine=engine)  # type: ignore[arg-type]


@cache
def fitted() -> JKOSampler:
    return sampler().fit()


def relative_l2(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def normal(x: np.ndarray, mean: float, variance: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2.0 * variance)) / math.sqrt(2.0 * math.pi * variance)


class TestSteps:
    def test_against_exact_steps_to_a_gaussian(self) -> None:
        x = np.linspace(-5.5, 5.5, 301)
        for k in (1, 2, 3):
            exact = normal(x, *exact_steps(k))
            assert relative_l2(fitted().density(x[:, None], k * TAU), exact) < 5e-3
        moved = relative_l2(normal(x, *exact_steps(2)), exact)
        assert moved > 0.02  # a step is seen

    def test_the_record(self) -> None:
        first = fitted().history_[0]
        mean, variance = exact_steps(1)
        assert first.transport_cost == pytest.approx(mean**2 + (math.sqrt(variance) - 1.0) ** 2, rel=0.02)
        energy = -0.5 * math.log(2.0 * math.pi * math.e * variance) + variance + (mean - 0.5) ** 2
        assert first.energy == pytest.approx(energy, abs=2e-3)
        assert first.loss == pytest.approx(first.energy + first.transport_cost / (2.0 * TAU))
        for record in fitted().history_:
            assert record.descends
            assert record.slack > 5.0 * record.slack_se
            assert record.solved
            assert record.cycle < 0.02
            assert record.residual < 0.05
        assert [record.time for record in fitted().history_] == pytest.approx([TAU, 2.0 * TAU, 3.0 * TAU])

    @pytest.mark.parametrize("lam", [0.01, pytest.param(50.0, marks=pytest.mark.slow)])
    def test_lambda_hardly_matters(self, lam: float) -> None:
        x = np.linspace(-5.0, 5.0, 101)[:, None]
        other = sampler(1, engine={"lam": lam}).fit()
        assert relative_l2(other.density(x), fitted().density(x, TAU)) < 5e-3

    def test_joint_training_needs_a_lambda_above_a_half(self) -> None:
        x = np.linspace(-5.0, 5.0, 101)[:, None]
        good = sampler(1, engine={"pair": "joint"}).fit()
        assert relative_l2(good.density(x), fitted().density(x, TAU)) < 5e-3
        bad = sampler(8, engine={"pair": "joint", "lam": 0.1})
        with pytest.raises(FitError, match=r"pair='joint' and lam=0.1 they run away"):
            bad.fit()
        assert bad.n_steps_ < 8
        assert np.isfinite(bad.density(x)).all()

    @pytest.mark.slow
    def test_an_interaction_about_the_mean_is_a_potential(self) -> None:
        x = np.linspace(-5.0, 5.0, 101)[:, None]
        kernel = energies.Interaction(lambda z: z.square().sum(-1))
        pair = sampler(1, energies.Entropy() + kernel).fit()
        alone = sampler(1, energies.Entropy() + energies.Potential(lambda x: x.square().sum(-1))).fit()
        assert relative_l2(pair.density(x), alone.density(x)) < 5e-3
        assert relative_l2(alone.density(x, 0.0), alone.density(x)) > 0.02

    def test_a_square_and_walls(self) -> None:
        """The entropy's flow between walls keeps a cosine and damps it, to first order by 1 / (1 + tau)."""
        box = Box(0.0, math.pi, dim=2)
        flow = sampler(
            2, energies.Entropy(), domain=box, initial=lambda x: 1.0 + 0.1 * x.cos().sum(1), step_size=0.01,
            engine={"n_quadrature": 400},
        ).fit()  # fmt: skip
        x, weights = box.quadrature(400, seeded(5), "gauss")
        u = flow.density(x)
        amplitude = float(weights @ (u * x[:, 0].cos())) / (math.pi / 2.0 * math.pi)
        assert float(weights @ u) == pytest.approx(math.pi**2, rel=1e-6)
        # a step without any effect would be off by .002
        assert amplitude == pytest.approx(0.1 / 1.01**2, abs=4e-4)

    def test_adam_goes_the_same_way(self) -> None:
        moved = sampler(1, engine={"optimizer": "adam", "n_iterations": 60, "learning_rate": 1e-3}).fit()
        assert not moved.history_[0].solved or moved.history_[0].residual < 0.1
        assert np.isfinite(moved.density(np.zeros((1, 1)))).all()
        assert moved.history_[0].n_iterations == 60


class TestSlopes:
    @pytest.mark.parametrize("energy", [energies.Entropy(), energies.Power(3.0)])
    def test_the_derivative_in_the_density(self, energy: energies.Energy) -> None:
        terms = energy + energies.Potential(precision)
        evaluator = EnergyEvaluator(terms, dim=1, dtype=torch.float64, device="cpu")
        points = LINE.quadrature(200, seeded(0), "gauss")
        rho = points.weights * torch.exp(-points.x[:, 0].square() / 2.0)
        step = DensityStep(evaluator, TAU, points, rho / rho.sum())
        field = NetworkField(*LINE.frame(), width=6, depth=2, activation="tanh", generator=seeded(1))
        density = Tangent(PositiveNetwork(field))
        pair = TransportPair.identity(LINE, seeded(2), width=4)
        change = 0.1 * torch.randn(len(pair.psi.theta), generator=seeded(3), dtype=torch.float64)
        now = Saddle(density, replace(pair, psi=pair.psi.moved(change)))

        def functional(theta: Tensor) -> Tensor:
            u = density.at(theta, points.x)
            p = points.weights * u / (points.weights @ u)
            log_u = (u / (points.weights @ u)).log()
            energy_now = p @ (evaluator.internal(log_u) + precision(points.x))
            return energy_now + p @ (points.x.square().sum(1) / 2.0 - now.pair.psi(points.x)) / TAU

        at = step.slopes(now)
        relative = density.jacobian(points.x) / density(points.x)[:, None]
        slope = (at.p * at.left) @ relative
        (exact,) = torch.autograd.grad(functional(theta := density.theta.requires_grad_(True)), theta)
        torch.testing.assert_close(slope.detach(), exact, rtol=1e-8, atol=1e-10)


class TestFits:
    def test_values(self) -> None:
        x, weights = LINE.quadrature(200, seeded(0), "gauss")
        field = NetworkField(*LINE.frame(), width=10, depth=2, activation="tanh", generator=seeded(1))
        wanted = torch.exp(-x[:, 0].square())
        found = fit_values(Tangent(PositiveNetwork(field)), x, wanted, weights, max_iterations=100, enough=1e-8)
        assert float((weights @ (found(x) - wanted).square()) / (weights @ wanted.square())) < 1e-6

    def test_gradients(self) -> None:
        x, weights = LINE.quadrature(200, seeded(0), "gauss")
        network = InputConvex(*LINE.frame(), width=8, depth=2, generator=seeded(1))
        wanted = x + 0.2 * x.tanh()
        found = fit_gradients(Tangent(network), x, wanted, weights, max_iterations=60, enough=1e-10)
        assert float((found.gradient(x) - wanted).abs().mean()) < 1e-2


def test_a_density_is_positive_whatever_its_network_is() -> None:
    # the paper's section 3.2 counts the ELU among the non-negative activations: it is negative below zero
    network = PositiveNetwork(_First())
    x = torch.linspace(-30.0, 30.0, 7, dtype=torch.float64).unsqueeze(1)
    assert bool((network(x) > 0.0).all())
    assert bool((torch.nn.functional.elu(x[:3]) < 0.0).all())


class _First(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., 0]


class TestUse:
    def test_draws_are_those_of_the_density(self) -> None:
        draws, log_density = fitted().sample_with_log_density(20_000, random_state=1)
        np.testing.assert_allclose(log_density, fitted().log_density(draws))
        mean, variance = exact_steps(3)
        assert draws.mean() == pytest.approx(mean, abs=4.0 * math.sqrt(variance / 20_000) + 2e-3)
        assert draws.std() == pytest.approx(math.sqrt(variance), abs=4.0 * math.sqrt(variance / 40_000) + 2e-3)

    def test_between_two_steps_densities_are_mixed(self) -> None:
        x = np.linspace(-3.0, 3.0, 11)[:, None]
        ends = [fitted().density(x, t) for t in (TAU, 2.0 * TAU)]
        np.testing.assert_allclose(fitted().density(x, 1.25 * TAU), 0.75 * ends[0] + 0.25 * ends[1])
        draws = fitted().sample(20_000, 1.5 * TAU, random_state=3)
        middle = 0.5 * (exact_steps(1)[0] + exact_steps(2)[0])
        assert draws.mean() == pytest.approx(middle, abs=4.0 * draws.std() / math.sqrt(20_000) + 2e-3)

    def test_outside_the_box_there_is_nothing(self) -> None:
        assert fitted().log_density([[7.0]])[0] == -np.inf
        assert np.abs(fitted().sample(5000, random_state=0)).max() <= 6.0

    def test_the_initial_law_comes_first(self) -> None:
        x = np.linspace(-3.0, 3.0, 11)
        inside = math.erf(6.0 / math.sqrt(2.0))
        np.testing.assert_allclose(fitted().density(x[:, None], 0.0), inside * normal(x, 0.0, 1.0) / inside, rtol=1e-6)

    def test_the_truncated_mass_is_told(self) -> None:
        narrow = sampler(0, domain=Box(-2.0, 2.0, dim=1)).fit()
        assert narrow.start_note_ is not None
        assert f"{1.0 - math.erf(math.sqrt(2.0)):.2g}" in narrow.start_note_

    def test_extend_goes_on(self) -> None:
        flow = sampler(1).fit().extend(1)
        x = np.linspace(-5.0, 5.0, 101)[:, None]
        np.testing.assert_array_equal(flow.density(x), fitted().density(x, 2.0 * TAU))
        assert flow.n_steps_ == 2
        assert flow.particles_.shape[1] == 1

    def test_a_log_target_is_diagnosed(self) -> None:
        flow = sampler(energy=None, log_target=lambda x: -precision(x), n_steps=1)
        flow.set_params(energy=None)
        report = flow.fit().diagnose(500)
        assert np.isfinite(report.log_evidence)

    def test_there_is_no_field(self) -> None:
        with pytest.raises(UnavailableError, match=r"density\(x, t\) is u"):
            fitted().field([[0.0]])


class TestRefusals:
    def test_settings(self) -> None:
        for changes, message in (
            ({"domain": None}, "integrates over a box"),
            ({"domain": Ball([0.0], 2.0)}, "must be a domains.Box"),
            ({"dtype": torch.float32}, "computes in float64"),
            ({"order": 2}, "order=2"),
            ({"step_size": None}, "step_size"),
        ):
            with pytest.raises(ArgumentError, match=message):
                sampler(**changes).fit()  # type: ignore[arg-type]
        for engine, message in (
            ({"pair": "both"}, "pair must be one of"),
            ({"lam": 0.0}, "lam must be one positive number"),
            ({"representation": "grid"}, "representation must be one of"),
            ({"representation": "push-forward", "optimizer": "adam"}, "representation='networks'"),
            ({"convex_width": 0}, "convex_width"),
        ):
            with pytest.raises(ArgumentError, match=message):
                sampler(engine=engine).fit()
