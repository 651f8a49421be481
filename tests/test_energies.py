"""Energies: sums and scalings, and the three functions of the density that a step needs, each from U alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributions as td
from torch import Tensor

from jkosampler.energies import KL, Energy, EnergyEvaluator, Entropy, InternalEnergy, Potential
from jkosampler.errors import ArgumentError, StartError, TargetGradientError, TargetShapeError
from jkosampler.laws import Gaussian
from jkosampler.targets import Target

F64 = torch.float64


class Square(InternalEnergy):
    """`int rho^2`, a second internal energy for the sums."""

    def per_mass(self, log_rho: Tensor) -> Tensor:
        return log_rho.exp()

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        return log_rho.exp()

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        return 2.0 * log_rho.exp()


# name -> (energy, U); every internal energy that the package has must be here
INTERNALS: dict[str, tuple[InternalEnergy, Callable[[Tensor], Tensor]]] = {
    "entropy": (Entropy(), lambda rho: rho * rho.log()),
    "square": (Square(), lambda rho: rho**2),
}
every_internal = pytest.mark.parametrize("name", INTERNALS)


def quartic(x: Tensor) -> Tensor:
    return 0.25 * x.pow(4).sum(1) + x[:, 0]


def log_cauchy(x: Tensor) -> Tensor:
    return -torch.log1p(x.square().sum(1))


def points(n: int = 8) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def log_densities() -> Tensor:
    return torch.linspace(-30.0, 5.0, 15, dtype=F64)


def evaluator(energy: Energy, dim: int = 2, dtype: torch.dtype = F64) -> EnergyEvaluator:
    return EnergyEvaluator(energy, dim=dim, dtype=dtype, device="cpu")


@every_internal
class TestInternal:
    def test_per_mass_is_u_over_rho(self, name: str) -> None:
        energy, U = INTERNALS[name]
        rho = log_densities().exp()
        torch.testing.assert_close(energy.per_mass(log_densities()), U(rho) / rho, rtol=1e-12, atol=0)

    def test_pressure_per_mass_is_the_slope_in_log_rho(self, name: str) -> None:
        energy, U = INTERNALS[name]
        log_rho = log_densities().requires_grad_(True)
        rho = log_rho.exp()
        (slope,) = torch.autograd.grad((U(rho) / rho).sum(), log_rho)
        (own,) = torch.autograd.grad(energy.per_mass(log_rho).sum(), log_rho)
        torch.testing.assert_close(energy.pressure_per_mass(log_rho.detach()), slope, rtol=1e-10, atol=0)
        torch.testing.assert_close(own, slope, rtol=1e-10, atol=0)

    def test_pressure_per_mass_is_p_over_rho_and_its_slope_rho_u_second(self, name: str) -> None:
        energy, U = INTERNALS[name]
        rho = log_densities().exp().requires_grad_(True)
        (first,) = torch.autograd.grad(U(rho).sum(), rho, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), rho)
        pressure = rho * energy.pressure_per_mass(rho.log())
        torch.testing.assert_close(pressure, rho * first - U(rho), rtol=1e-10, atol=0)
        (slope,) = torch.autograd.grad(pressure.sum(), rho)
        torch.testing.assert_close(slope, rho.detach() * second, rtol=1e-10, atol=0)
        torch.testing.assert_close(energy.pressure_slope(rho.detach().log()), slope, rtol=1e-10, atol=0)

    def test_shapes_and_precision(self, name: str) -> None:
        energy, _ = INTERNALS[name]
        for log_rho in (torch.zeros(3), torch.zeros(0, dtype=F64)):
            for function in (energy.per_mass, energy.pressure_per_mass, energy.pressure_slope):
                assert function(log_rho).shape == log_rho.shape
                assert function(log_rho).dtype == log_rho.dtype


class TestSums:
    def test_terms_keep_their_coefficients(self) -> None:
        entropy, potential = Entropy(), Potential(quartic)
        energy = 2.0 * (entropy + 3 * potential) + potential * 0.5
        assert energy.terms() == [(2.0, entropy), (6.0, potential), (0.5, potential)]
        assert repr(energy) == "2 * Entropy() + 6 * Potential() + 0.5 * Potential()"
        assert entropy.terms() == [(1.0, entropy)]  # sums leave their parts as they were

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

    @pytest.mark.parametrize("other", [1.0, None, quartic])
    def test_only_energies_add(self, other: object) -> None:
        with pytest.raises(TypeError):
            Entropy() + other


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


class TestTargets:
    def test_a_potential_is_minus_a_log_density(self) -> None:
        x, target = points(), Potential(quartic).target(2)
        assert target.dim == 2
        assert torch.equal(target(x), -quartic(x))

    def test_kl_takes_callables_targets_laws_and_torch_distributions(self) -> None:
        x, law = points(), Gaussian([0.0, 0.0], 1.0)
        normal = td.Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64))
        target = Target(law.log_prob, 2)
        for log_target in (law.log_prob, target, law, normal):
            found = KL(log_target).target(2)
            assert found.dim == 2
            torch.testing.assert_close(found(x), law.log_prob(x), rtol=1e-12, atol=0)
        assert KL(target).target() is target
        assert KL(law).target().dim == 2

    def test_errors_name_the_argument(self) -> None:
        with pytest.raises(ArgumentError, match=r"potential must be a callable .* got float"):
            Potential(1.0)
        with pytest.raises(ArgumentError, match=r"log_target must be a callable .* got str"):
            KL("gaussian")
        with pytest.raises(ArgumentError, match="dim"):
            KL(log_cauchy).target()
        with pytest.raises(ArgumentError, match="dim says 3, log_target says 2"):
            evaluator(KL(Gaussian([0.0, 0.0], 1.0)), dim=3)
