"""Scouting: the parts against closed forms, and what it finds and leaves alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference_targets import TARGETS, equal_gaussians, many_wells
from small_problems import seeded
from torch import Tensor

from jkosampler import JKOSampler, _scout
from jkosampler._mixture_fit import Mixtures, fitted, updated, with_shares
from jkosampler.energies import KL, EnergyEvaluator
from jkosampler.laws import Gaussian, Mixture
from jkosampler.targets import Target


def evaluator(log_density: object, d: int) -> EnergyEvaluator:
    return EnergyEvaluator(KL(Target(log_density, d)), dim=d, dtype=torch.float64, device="cpu")


def standard(d: int) -> Gaussian:
    return Gaussian(torch.zeros(d), torch.eye(d))


def two_modes(x: Tensor) -> Tensor:
    """N(-4, .5^2) and N(4, .5^2) in the first coordinate, 3 : 1; N(0, 1) in the second. Not normalised."""
    first = torch.logaddexp(math.log(3.0) - 2.0 * (x[:, 0] + 4.0).square(), -2.0 * (x[:, 0] - 4.0).square())
    return first - 0.5 * x[:, 1].square()


class TestAnnealing:
    def test_moves_leave_a_gaussian_as_it_is(self) -> None:
        """At beta = 1, started from the target: every moment stays within its Monte Carlo error."""
        precision = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
        law = Gaussian(torch.zeros(2), torch.linalg.inv(precision))
        energy = evaluator(lambda x: -0.5 * ((x @ precision) * x).sum(1), 2)
        n, generator = 20_000, seeded(0)
        now = _scout._Seen.at(energy, standard(2), law.sample((n,), generator=generator))
        moved, size = _scout._moved(energy, standard(2), now, 1.0, 0.8, 15, generator)
        assert 0.2 < size < 2.0
        assert float((moved.x != now.x).any(1).double().mean()) > 0.9
        covariance = torch.cov(moved.x.mT)
        spread = 4.0 * math.sqrt(2.0 / n)
        torch.testing.assert_close(covariance, law.covariance, rtol=0.0, atol=spread)
        assert float(moved.x.mean(0).abs().max()) < 4.0 / math.sqrt(n)

    def test_wrong_acceptance_would_be_seen(self) -> None:
        """Langevin moves without rejections, at a size as large, do not keep the law."""
        generator, n = seeded(1), 20_000
        x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        for _ in range(15):
            noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
            x = x - 0.5 * 1.2**2 * x + 1.2 * noise
        assert abs(float(x.var()) - 1.0) > 4.0 * math.sqrt(2.0 / n)

    def test_the_rise_halves_the_effective_sample_size(self) -> None:
        log_ratio = 30.0 * torch.randn(5000, generator=seeded(0), dtype=torch.float64)
        rise = _scout._next_rise(log_ratio, 1.0)
        weights = torch.softmax(rise * log_ratio, 0)
        assert float(1.0 / weights.square().sum()) / 5000 == pytest.approx(0.5, abs=0.01)
        assert _scout._next_rise(1e-3 * log_ratio, 0.7) == 0.7


class TestMixtures:
    @pytest.mark.parametrize("name", ["shifted8modes", "gmm20"])
    def test_as_many_components_as_modes(self, name: str) -> None:
        target = TARGETS[name]()
        assert target.modes is not None
        x = torch.from_numpy(target.draw(2000, np.random.default_rng(0)))
        found = fitted(x, seeded(0))
        assert found is not None
        (mixture,) = found.blocks
        assert len(mixture.components) == len(target.modes)
        means = torch.stack([part.mean for part in mixture.components]).numpy()
        nearest = np.linalg.norm(means[:, None] - target.modes[None], axis=2).min(1)
        assert nearest.max() < 0.1

    def test_one_gaussian_is_one(self) -> None:
        assert fitted(standard(3).sample((1500,), generator=seeded(0)), seeded(1)) is None

    def test_em_finds_the_shares(self) -> None:
        energy = evaluator(two_modes, 2)
        parts = [Gaussian(torch.tensor([at, 0.3]), 0.4 * torch.eye(2)) for at in (-3.7, 4.2)]
        found = _scout._improved(energy, Mixtures((Mixture([0.5, 0.5], parts),)), seeded(0))
        (mixture,) = found.mixtures.blocks
        shares = mixture.weights / mixture.weights.sum()
        # 50 000 draws
        assert float(shares[0]) == pytest.approx(0.75, abs=4.0 * math.sqrt(0.75 * 0.25 / 50_000))
        assert found.ess_fraction > 0.97
        log_z = math.log(4.0 * 0.5 * math.sqrt(2.0 * math.pi) * math.sqrt(2.0 * math.pi))
        assert found.elbo == pytest.approx(log_z, abs=0.02)
        for part in mixture.components:
            np.testing.assert_allclose(part.covariance.numpy(), [[0.25, 0.0], [0.0, 1.0]], atol=0.05)

    def test_independent_coordinates_are_seen_as_such(self) -> None:
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.standard_normal((3000, 4)))
        x[:, 0] += 6.0 * torch.from_numpy(rng.integers(2, size=3000))
        x[:, 2] += 6.0 * torch.from_numpy(rng.integers(2, size=3000))
        found = fitted(x, seeded(0))
        assert found is not None
        assert [len(block.components) for block in found.blocks] == [2, 1, 2, 1]
        assert found.describe() == "independent coordinates, 2 of them mixtures of Gaussians"
        weights = torch.full((3000,), 1.0 / 3000, dtype=torch.float64)
        for after in (updated(found, x, weights), with_shares(found, x, weights)):
            before, now = found.law.log_prob(x).mean(), after.law.log_prob(x).mean()
            assert float(now) >= float(before) - 1e-3  # already there

    def test_modes_of_coordinates_that_depend_on_each_other_are_one_mixture(self) -> None:
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.standard_normal((3000, 2)) + 6.0 * rng.integers(2, size=(3000, 1)))
        found = fitted(x, seeded(0))
        assert found is not None
        assert [len(block.components) for block in found.blocks] == [2]


class TestScouting:
    @pytest.mark.parametrize("seed", range(3))
    def test_modes_and_weights(self, seed: int) -> None:
        target = TARGETS["shifted8peaky"]()
        found = _scout.scout(evaluator(target.log_density, 2), standard(2), seeded(seed))
        assert found is not None
        assert len(found.mixtures.blocks[0].components) == 8
        error = 4.0 * math.sqrt(0.125 * 0.875 / 50_000)
        np.testing.assert_allclose(
            (found.mixtures.blocks[0].weights / found.mixtures.blocks[0].weights.sum()).numpy(), 0.125, atol=error
        )
        assert found.elbo > -0.02

    def test_a_target_of_one_mode_is_left_to_the_flow(self) -> None:
        for log_density in (
            lambda x: -0.5 * x.square().sum(1) / 0.01,
            lambda x: -0.5 * x[:, 0] ** 2 - 2.0 * (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2,
        ):
            assert _scout.scout(evaluator(log_density, 2), standard(2), seeded(0)) is None

    def test_a_target_that_fails_is_left_to_the_flow(self) -> None:
        def fails(x: Tensor) -> Tensor:
            raise ValueError("no")

        def somewhere(x: Tensor) -> Tensor:
            return torch.where(x[:, 0] > 2.5, torch.nan, -0.5 * x.square().sum(1))

        def nowhere(x: Tensor) -> Tensor:
            return torch.full_like(x[:, 0], -torch.inf)

        for log_density in (fails, somewhere, nowhere):
            assert _scout.scout(evaluator(log_density, 2), standard(2), seeded(0)) is None

    def test_a_target_that_fails_later_is_left_to_the_flow(self) -> None:
        calls = 0

        def fails_later(x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return two_modes(x) if len(x) < 5000 else torch.full_like(x[:, 0], torch.nan)  # draws of the mixture

        assert _scout.scout(evaluator(fails_later, 2), standard(2), seeded(0)) is None
        assert calls > 10

    @pytest.mark.parametrize("seed", range(2))
    def test_modes_of_independent_coordinates(self, seed: int) -> None:
        """2^10 modes, by 20 components; the shares of both wells are those of quadrature."""
        target = many_wells(10)
        found = _scout.scout(evaluator(target.log_density, 20), standard(20), seeded(seed))
        assert found is not None
        assert len(found.mixtures.blocks) == 20
        assert found.elbo == pytest.approx(target.log_z, abs=0.1)
        x = found.mixtures.law.sample((20_000,), generator=seeded(1))
        # P(a > 0) = .8443; shares by 50 000 weighted draws, and these draws
        error = 4.0 * math.sqrt(0.8443 * 0.1557 * (1.0 / 20_000 + 1.0 / (50_000 * found.ess_fraction)))
        np.testing.assert_allclose((x[:, 0::2] > 0.0).double().mean(0).numpy(), 0.8443, atol=error)

    @pytest.mark.parametrize("seed", range(2))
    def test_more_modes_than_mixtures_have_are_left_to_the_flow(self, seed: int) -> None:
        """2^10 modes in turned coordinates; a start on a few would lose the others, which N(0, I) has in its basins."""
        target = many_wells(10)
        turn = torch.linalg.qr(torch.randn(20, 20, generator=seeded(9), dtype=torch.float64))[0]
        energy = evaluator(lambda x: target.log_density(x @ turn), 20)
        assert _scout.scout(energy, standard(20), seeded(seed)) is None

    @pytest.mark.parametrize("d", [2, 10])
    def test_modes_far_from_the_start(self, d: int) -> None:
        """The start is one of two modes, sixty standard deviations from the other."""
        at = torch.zeros(d, dtype=torch.float64)
        at[0] = 30.0

        def log_density(x: Tensor) -> Tensor:
            return torch.logaddexp(-0.5 * (x - at).square().sum(1), -0.5 * (x + at).square().sum(1))

        found = _scout.scout(evaluator(log_density, d), Gaussian(-at, torch.eye(d)), seeded(0))
        assert found is not None
        assert found.ess_fraction > 0.5
        x = found.mixtures.law.sample((20_000,), generator=seeded(1))
        error = 4.0 * (0.25 / 20_000 + 0.25 / (50_000 * found.ess_fraction)) ** 0.5
        assert float((x[:, 0] > 0.0).double().mean()) == pytest.approx(0.5, abs=error)

    def test_a_target_that_fails_far_away_is_scouted_near(self) -> None:
        def fails_far(x: Tensor) -> Tensor:
            return torch.where((x.abs() > 25.0).any(1), torch.nan, two_modes(x))

        found = _scout.scout(evaluator(fails_far, 2), standard(2), seeded(0))
        assert found is not None
        assert found.elbo == pytest.approx(math.log(4.0 * math.pi), abs=0.02)

    def test_on_a_line(self) -> None:
        found = _scout.scout(evaluator(lambda x: two_modes(torch.cat([x, 0.0 * x], 1)), 1), standard(1), seeded(0))
        assert found is not None
        assert len(found.mixtures.blocks[0].components) == 2

    def test_points_where_nothing_may_be_take_no_part(self) -> None:
        def half(x: Tensor) -> Tensor:
            return torch.where(x[:, 1] > 0.0, two_modes(x), -torch.inf)

        found = _scout.scout(evaluator(half, 2), standard(2), seeded(0))
        assert found is not None
        sides = torch.stack([part.mean[0] for part in found.mixtures.blocks[0].components]) < 0.0
        assert float(
            found.mixtures.blocks[0].weights[sides].sum() / found.mixtures.blocks[0].weights.sum()
        ) == pytest.approx(0.75, abs=0.02)


class TestFits:
    def test_separated_modes_are_found(self) -> None:
        flow = JKOSampler(two_modes, dim=2, n_steps=2, random_state=0, progress=False).fit()
        assert flow.start_note_ is not None
        assert "1 of them mixtures of Gaussians" in flow.start_note_
        x = flow.sample(20_000, random_state=1)
        assert (x[:, 0] < 0.0).mean() == pytest.approx(0.75, abs=6.0 * math.sqrt(0.75 * 0.25 / 20_000))
        assert flow.log_evidence_ == pytest.approx(math.log(4.0 * math.pi), abs=0.01)
        np.testing.assert_allclose(flow.log_density([[0.0, 0.0]], 0.0), -math.log(2.0 * math.pi))

    def test_scouting_leaves_other_fits_alone(self) -> None:
        def fit(budget: int | None) -> np.ndarray:
            flow = JKOSampler(
                lambda x: -2.0 * x.square().sum(1), dim=2, n_steps=1, random_state=0, progress=False, n_particles=500,
                max_target_evaluations=budget,
            )  # fmt: skip
            return flow.fit().sample(50, random_state=1)

        np.testing.assert_array_equal(fit(None), fit(499_999))  # the latter does not scout

    def test_nor_fixed_steps(self) -> None:
        flow = JKOSampler(
            two_modes, dim=2, step_size=0.1, n_steps=1, random_state=0, progress=False, n_particles=500
        ).fit()
        assert flow.start_note_ is None

    @pytest.mark.slow
    @pytest.mark.parametrize("d", [5, 30])
    def test_far_modes_in_many_dimensions(self, d: int) -> None:
        rng = np.random.default_rng(d)
        target = equal_gaussians(rng.uniform(-1.0, 1.0, (6, d)), 0.02)
        found = _scout.scout(evaluator(target.log_density, d), standard(d), seeded(0))
        assert found is not None
        np.testing.assert_allclose(
            (found.mixtures.blocks[0].weights / found.mixtures.blocks[0].weights.sum()).numpy(), 1.0 / 6.0, atol=0.01
        )
