"""Energies evaluated: sums, what is counted and probed, laws of other mass, potential and interaction at points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_problems import Square, evaluator
from torch import Tensor

from jkosampler.energies import KL, Energy, EnergyEvaluator, Entropy, Interaction, Internal, Potential, Power
from jkosampler.errors import ArgumentError, StartError, TargetGradientError, TargetShapeError
from jkosampler.laws import Gaussian

F64 = torch.float64


def quartic(x: Tensor) -> Tensor:
    return 0.25 * x.pow(4).sum(1) + x[:, 0]


def log_cauchy(x: Tensor) -> Tensor:
    return -torch.log1p(x.square().sum(1))


def points(n: int = 8) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def log_densities() -> Tensor:
    return torch.linspace(-30.0, 5.0, 15, dtype=F64)


class TestValues:
    def test_values_add_and_scale(self) -> None:
        x, log_rho = points(), log_densities()
        energy = evaluator(2.0 * Entropy() + 0.5 * Square() + 3.0 * Potential(quartic) + 0.25 * KL(log_cauchy))
        rho = log_rho.exp()
        torch.testing.assert_close(energy.internal(log_rho), 2.25 * log_rho + 0.5 * rho, rtol=1e-12, atol=0)
        torch.testing.assert_close(energy.pressure_per_mass(log_rho), 2.25 + 0.5 * rho, rtol=1e-12, atol=0)
        torch.testing.assert_close(energy.pressure_slope(log_rho), 2.25 + rho, rtol=1e-12, atol=0)
        value, gradient = energy.potential(x)
        square = x.square().sum(1)
        torch.testing.assert_close(value, 3.0 * quartic(x) + 0.25 * torch.log1p(square), rtol=1e-12, atol=0)
        slope = 3.0 * (x**3 + torch.tensor([1.0, 0.0])) + 0.25 * 2.0 * x / (1.0 + square)[:, None]
        torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-14)

    def test_without_terms_of_a_kind_it_is_zero(self) -> None:
        value, gradient = evaluator(Entropy()).potential(points())
        assert not bool(value.any())
        assert not bool(gradient.any())
        assert gradient.shape == (8, 2)
        log_rho = log_densities()
        only = evaluator(Potential(quartic))
        for function in (only.internal, only.pressure_per_mass, only.pressure_slope):
            assert torch.equal(function(log_rho), torch.zeros_like(log_rho))

    def test_the_terms_of_kl_are_entropy_and_a_potential(self) -> None:
        x, log_rho = points(), log_densities()
        kl, parts = evaluator(KL(log_cauchy)), evaluator(Entropy() + Potential(lambda x: -log_cauchy(x)))
        for found, wanted in zip(kl.potential(x), parts.potential(x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)
        for function in ("internal", "pressure_per_mass", "pressure_slope"):
            assert torch.equal(getattr(kl, function)(log_rho), getattr(parts, function)(log_rho))

    def test_the_mean_of_a_kl_is_the_relative_entropy(self) -> None:
        """Between Gaussians, where the closed form is known; five standard errors."""
        rho, gamma = Gaussian([0.3, -0.2], [[1.0, 0.3], [0.3, 0.5]]), Gaussian([0.0, 0.5], [2.0, 0.7])
        x = rho.sample((20_000,), generator=torch.Generator().manual_seed(1))
        energy = evaluator(KL(gamma))
        sample = energy.potential(x)[0] + energy.internal(rho.log_prob(x))
        ratio, gap = np.linalg.solve(gamma.covariance, rho.covariance), (rho.mean - gamma.mean).numpy()
        quadratic = gap @ np.linalg.solve(gamma.covariance, gap)
        exact = 0.5 * (np.trace(ratio) - 2.0 - np.linalg.slogdet(ratio)[1] + quadratic)
        assert abs(float(sample.mean()) - exact) < 5.0 * float(sample.std()) / 20_000**0.5


class TestEvaluator:
    def test_it_counts_points_and_calls_of_every_target(self) -> None:
        energy = evaluator(Entropy() + Potential(quartic) + KL(log_cauchy))
        assert (energy.n_evaluations, energy.n_calls) == (0, 0)
        energy.potential(points(8))
        assert (energy.n_evaluations, energy.n_calls) == (16, 2)
        energy.potential(points(3))
        assert (energy.n_evaluations, energy.n_calls) == (22, 4)
        energy.internal(log_densities())
        assert energy.n_evaluations == 22
        assert evaluator(Entropy()).n_evaluations == 0

    def test_a_wall_is_infinite_with_a_zero_gradient(self) -> None:
        energy = evaluator(Entropy() + 2.0 * Potential(lambda x: torch.where(x[:, 0] > 0, x[:, 0], torch.inf)))
        value, gradient = energy.potential(torch.tensor([[-1.0, 0.0], [3.0, 0.0]], dtype=F64))
        assert value.tolist() == [np.inf, 6.0]
        assert gradient.tolist() == [[0.0, 0.0], [2.0, 0.0]]

    def test_the_start_is_probed(self) -> None:
        evaluator(KL(log_cauchy)).check_start(points())
        with pytest.raises(StartError):
            evaluator(Potential(lambda x: torch.full_like(x[:, 0], torch.inf) + 0.0 * x[:, 0])).check_start(points())
        with pytest.raises(TargetShapeError):
            evaluator(Potential(lambda x: x.sum())).check_start(points())
        with pytest.raises(TargetShapeError):  # a value that depends on the other points of its batch
            evaluator(Potential(lambda x: x[:, 0] - x[:, 0].mean())).check_start(points())

    def test_a_potential_needs_a_gradient(self) -> None:
        with pytest.raises(TargetGradientError):
            evaluator(Potential(lambda x: torch.zeros(len(x), dtype=F64))).potential(points())

    def test_points_come_in_the_evaluators_precision(self) -> None:
        seen: list[torch.dtype] = []

        def watched(x: Tensor) -> Tensor:
            seen.append(x.dtype)
            return quartic(x)

        value, gradient = evaluator(Potential(watched), dtype=torch.float32).potential(points().float())
        assert {value.dtype, gradient.dtype, *seen} == {torch.float32}

    def test_a_term_of_no_known_kind(self) -> None:
        class Strange(Energy):
            pass

        with pytest.raises(ArgumentError, match=r"energy: the term Strange\(\) can't be computed"):
            evaluator(Entropy() + Strange())


GAUSSIAN = Gaussian([0.4, -0.3], [[0.8, 0.2], [0.2, 0.5]])


def gaussian_power_integral(m: float) -> float:
    """`int rho^m` of GAUSSIAN: (2 pi)^((1-m) d/2) det(S)^((1-m)/2) m^(-d/2), d = 2."""
    return (2.0 * math.pi) ** (1.0 - m) * (0.8 * 0.5 - 0.2**2) ** (0.5 * (1.0 - m)) / m


class TestMass:
    """A law of mass mu: the energies are those of mu rho, over mu."""

    @pytest.mark.parametrize("mass", [1.0, 0.4, 3.0])
    @pytest.mark.parametrize("name", ["entropy", "power", "internal", "potential", "interaction", "sum"])
    def test_mean_over_draws_is_the_energy(self, name: str, mass: float) -> None:
        second, entropy = gaussian_power_integral(2.0), -1.0 - math.log(2.0 * math.pi) - 0.5 * math.log(0.36)
        exact = {
            "entropy": mass * (entropy + math.log(mass)),
            "power": mass**3 * gaussian_power_integral(3.0) / 2.0,
            "internal": 0.5 * mass**2 * second,
            "potential": mass * (0.8 + 0.5 + 0.4**2 + 0.3**2),
            "interaction": 0.5 * mass**2 * 2.0 * 1.3,  # W = |z|^2: 1/2 iint = mu^2 trace of the covariance
        }
        energies: dict[str, Energy] = {
            "entropy": Entropy(),
            "power": Power(3),
            "internal": Internal(lambda rho: 0.5 * rho**2),
            "potential": Potential(lambda x: x.square().sum(1)),
            "interaction": Interaction(lambda z: z.square().sum(-1)),
        }
        exact["sum"] = exact["power"] + 2.0 * exact["interaction"] + exact["potential"]
        energies["sum"] = energies["power"] + 2.0 * energies["interaction"] + energies["potential"]
        x = GAUSSIAN.sample((2000,), generator=torch.Generator().manual_seed(2))
        energy = evaluator(energies[name], mass=mass)
        field = energy.field(x)
        # a pair belongs to both of its particles: the mean over particles varies with the whole variation
        sample = mass * (field.energy + energy.internal(GAUSSIAN.log_prob(x)))
        spread = mass * (field.variation + energy.internal(GAUSSIAN.log_prob(x)))
        assert abs(float(sample.mean()) - exact[name]) < 5.0 * float(spread.std()) / 2000**0.5

    @pytest.mark.parametrize("mass", [0.4, 3.0])
    def test_functions_of_the_density_see_the_whole_mass(self, mass: float) -> None:
        log_rho = log_densities()
        energy = evaluator(2.0 * Power(3) + Internal(lambda rho: rho * rho.log()), mass=mass)
        rho = mass * log_rho.exp()
        torch.testing.assert_close(energy.internal(log_rho), rho**2 + rho.log(), rtol=1e-12, atol=0)
        torch.testing.assert_close(energy.pressure_per_mass(log_rho), 2.0 * rho**2 + 1.0, rtol=1e-12, atol=0)
        torch.testing.assert_close(energy.pressure_slope(log_rho), 6.0 * rho**2 + 1.0, rtol=1e-12, atol=0)


def logarithmic(z: Tensor) -> Tensor:
    return 0.5 * z.norm(dim=-1).log()


def attractive(z: Tensor) -> Tensor:
    return z.square().sum(-1) + (z[..., 0] * z[..., 1]).cos()


class TestField:
    ENERGY = 2.0 * Potential(quartic) + 0.7 * Interaction(logarithmic) + Interaction(attractive) + Power(3)
    MASS = 1.6

    def weights(self, n: int) -> Tensor:
        weights = torch.linspace(1.0, 3.0, n, dtype=F64)
        return weights / weights.sum()

    def felt(self, x: Tensor, crowd: Tensor, weights: Tensor) -> Tensor:
        """`W * rho` at x of the two kernels, for mass MASS."""
        z = x.unsqueeze(1) - crowd
        return self.MASS * (0.7 * logarithmic(z) + attractive(z)) @ weights

    def test_gradient_of_the_sample_energy(self) -> None:
        """`sum_i w_i (V + W * rho / 2)` by autograd in the positions: w_i times the gradient of the variation."""
        n = 9
        x, weights = points(n).requires_grad_(True), self.weights(n)
        apart = ~torch.eye(n, dtype=torch.bool)
        z = torch.where(apart.unsqueeze(-1), x.unsqueeze(1) - x, 1.0)
        pairs = torch.where(apart, 0.7 * logarithmic(z) + attractive(z), 0.0)
        felt = self.MASS * pairs @ weights / (1.0 - weights.square().sum())
        total = weights @ (2.0 * quartic(x) + 0.5 * felt)
        (slope,) = torch.autograd.grad(total, x)
        field = evaluator(self.ENERGY, mass=self.MASS).field(x.detach(), weights)
        torch.testing.assert_close(weights @ field.energy, total.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(field.energy, (2.0 * quartic(x) + 0.5 * felt).detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(field.variation, (2.0 * quartic(x) + felt).detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(weights.unsqueeze(-1) * field.gradient, slope, rtol=1e-11, atol=1e-13)

    def test_of_a_crowd(self) -> None:
        x, crowd, weights = points(5).requires_grad_(True), points(12)[5:] + 0.3, self.weights(7)
        variation = 2.0 * quartic(x) + self.felt(x, crowd, weights)
        (slope,) = torch.autograd.grad(variation.sum(), x)
        field = evaluator(self.ENERGY, mass=self.MASS).field(x.detach(), weights, crowd)
        torch.testing.assert_close(field.variation, variation.detach(), rtol=1e-12, atol=1e-13)
        half = 2.0 * quartic(x) + 0.5 * self.felt(x, crowd, weights)
        torch.testing.assert_close(field.energy, half.detach(), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(field.gradient, slope, rtol=1e-11, atol=1e-13)

    def test_variation_is_the_derivative_of_the_energy(self) -> None:
        """d/de E(rho (1 + e g)) = int dE/drho g rho for g of mean zero, by quadrature on the line."""
        x = torch.linspace(-8.0, 8.0, 801, dtype=F64).unsqueeze(1)
        p = (-0.5 * x[:, 0].square()).exp() + 0.5 * (-(x[:, 0] - 2.0).square()).exp()
        p, g = p / p.sum(), (2.0 * x[:, 0]).sin()
        g = g - p @ g
        well = Potential(lambda x: 0.25 * x[:, 0].pow(4))
        terms: list[Energy] = [Entropy(), Power(3), Internal(lambda rho: rho.square() * rho.sqrt()), well]
        terms += [Interaction(lambda z: z.square().sum(-1).cos()), KL(lambda x: -x[:, 0].square() / 3.0)]
        for term in terms:
            energy = evaluator(term, 1, mass=self.MASS)

            def whole(e: float, energy: EnergyEvaluator = energy) -> float:
                q = p * (1.0 + e * g)
                return float(q @ (energy.field(x, q, x).energy + energy.internal((q / 0.02).log())))

            variation = energy.field(x, p, x).variation + energy.internal_variation((p / 0.02).log())
            assert (whole(1e-4) - whole(-1e-4)) / 2e-4 == pytest.approx(float((p * g) @ variation), rel=1e-6), term

    def test_equal_weights_are_the_default(self) -> None:
        x, crowd = points(5), points(12)[5:]
        energy = evaluator(self.ENERGY)
        for many in (None, crowd):
            weights = torch.full((5 if many is None else 7,), 1.0 / (5 if many is None else 7), dtype=F64)
            for found, wanted in zip(energy.field(x, None, many), energy.field(x, weights, many), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-14, atol=0)

    def test_without_interaction_it_is_the_potential(self) -> None:
        energy = evaluator(Entropy() + Potential(quartic))
        value, gradient = energy.potential(points())
        for found, wanted in zip(energy.field(points(), None, points(3)), (value, value, gradient), strict=True):
            assert torch.equal(found, wanted)

    def test_a_wall_is_infinite_with_a_zero_gradient_whatever_is_felt(self) -> None:
        wall = Potential(lambda x: torch.where(x[:, 0] < 1.0, x[:, 1], torch.inf))
        x = torch.tensor([[0.0, 0.0], [2.0, 1.0], [0.5, 3.0]], dtype=F64)
        energy, variation, gradient = evaluator(wall + Interaction(attractive)).field(x)
        for values in (energy, variation):
            assert values.isfinite().tolist() == [True, False, True]
        assert gradient[1].tolist() == [0.0, 0.0]
        assert bool(gradient[[0, 2]].any(1).all())

    def test_what_an_energy_says_of_itself(self) -> None:
        kl, pair = KL(log_cauchy), Interaction(attractive)
        cases: list[tuple[Energy, bool, bool, bool]] = [  # is_relative_entropy, has_interaction, has_internal
            (kl, True, False, True),
            (Entropy() + Potential(quartic), True, False, True),
            (2.0 * kl, False, False, True),
            (kl + pair, False, True, True),
            (Power(2) + Potential(quartic), False, False, True),
            (Entropy(), False, False, True),
            (pair + Potential(quartic), False, True, False),
        ]
        for energy, *facts in cases:
            found = evaluator(energy)
            assert [found.is_relative_entropy, found.has_interaction, found.has_internal] == facts, energy

    def test_kernels_are_tried_at_the_start(self) -> None:
        evaluator(self.ENERGY).check_start(points())
        with pytest.raises(ArgumentError, match="must be even"):
            evaluator(Entropy() + Interaction(lambda z: z.sum(-1))).check_start(points())
