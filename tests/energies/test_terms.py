"""Terms of energies: sums and scalings, and the three functions of the density that a step needs, each from U alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributions as td
from small_problems import Square, evaluator
from torch import Tensor

from jkosampler.energies import KL, Entropy, Internal, InternalEnergy, Potential, Power
from jkosampler.errors import ArgumentError
from jkosampler.laws import Gaussian
from jkosampler.targets import Target

F64 = torch.float64


# name -> (energy, U); every internal energy that the package has must be here
INTERNALS: dict[str, tuple[InternalEnergy, Callable[[Tensor], Tensor]]] = {
    "entropy": (Entropy(), lambda rho: rho * rho.log()),
    "square": (Square(), lambda rho: rho**2),
    "power 2": (Power(), lambda rho: rho**2),
    "power 3": (Power(3), lambda rho: rho**3 / 2.0),
    "fast diffusion": (Power(0.5), lambda rho: -2.0 * rho.sqrt()),
    "internal, entropy": (Internal(lambda rho: torch.special.xlogy(rho, rho)), lambda rho: rho * rho.log()),
    "internal, power": (Internal(lambda rho: 1.5 * rho.pow(2.5)), lambda rho: 1.5 * rho**2 * rho.sqrt()),
    "internal, saturating": (Internal(lambda rho: rho * rho / (1.0 + rho)), lambda rho: rho**2 / (1.0 + rho)),
}
every_internal = pytest.mark.parametrize("name", INTERNALS)

# U and, in closed form, U / rho, U' - U / rho and rho U''
CLOSED_FORMS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "entropy": (lambda r: r * r.log(), torch.log, torch.ones_like, torch.ones_like),
    "cube": (lambda r: r**3 / 2.0, lambda r: r**2 / 2.0, lambda r: r**2, lambda r: 3.0 * r**2),
    "root": (lambda r: -2.0 * r.sqrt(), lambda r: -2.0 * r**-0.5, lambda r: r**-0.5, lambda r: 0.5 * r**-0.5),
    "saturating": (
        lambda r: r**2 / (1.0 + r),
        lambda r: r / (1.0 + r),
        lambda r: r / (1.0 + r) ** 2,
        lambda r: 2.0 * r / (1.0 + r) ** 3,
    ),
    "linear": (lambda r: 3.0 * r, lambda r: torch.full_like(r, 3.0), torch.zeros_like, torch.zeros_like),
}


def quartic(x: Tensor) -> Tensor:
    return 0.25 * x.pow(4).sum(1) + x[:, 0]


def log_cauchy(x: Tensor) -> Tensor:
    return -torch.log1p(x.square().sum(1))


def points(n: int = 8) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def log_densities() -> Tensor:
    return torch.linspace(-30.0, 5.0, 15, dtype=F64)


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
        rho, exact, slope = rho.detach(), (rho * first - U(rho)).detach(), (rho * second).detach()
        torch.testing.assert_close(rho * energy.pressure_per_mass(rho.log()), exact, rtol=1e-10, atol=0)
        torch.testing.assert_close(energy.pressure_slope(rho.log()), slope, rtol=1e-10, atol=0)
        above, below = ((1.0 + h) * rho * energy.pressure_per_mass(((1.0 + h) * rho).log()) for h in (1e-5, -1e-5))
        torch.testing.assert_close((above - below) / (2e-5 * rho), slope, rtol=1e-6, atol=0)

    def test_shapes_and_precision(self, name: str) -> None:
        energy, _ = INTERNALS[name]
        for log_rho in (torch.zeros(3), torch.zeros(0, dtype=F64)):
            for function in (energy.per_mass, energy.pressure_per_mass, energy.pressure_slope):
                assert function(log_rho).shape == log_rho.shape
                assert function(log_rho).dtype == log_rho.dtype


class TestInternalOfAFunction:
    @pytest.mark.parametrize("name", CLOSED_FORMS)
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_closed_forms(self, name: str, mode: type) -> None:
        energy, rho = Internal(CLOSED_FORMS[name][0]), log_densities().exp()
        with mode():
            log_rho = rho.log()
            found = [energy.per_mass(log_rho), energy.pressure_per_mass(log_rho), energy.pressure_slope(log_rho)]
        for values, exact in zip(found, CLOSED_FORMS[name][1:], strict=True):
            torch.testing.assert_close(values, exact(rho), rtol=1e-11, atol=1e-14)
            assert not values.requires_grad

    @pytest.mark.parametrize("m", [0.5, 1.5, 2.0, 3.0])
    def test_a_power_is_the_internal_energy_of_its_function(self, m: float) -> None:
        power, internal = Power(m), Internal(lambda rho: rho**m / (m - 1.0))
        for function in ("per_mass", "pressure_per_mass", "pressure_slope"):
            found, exact = (getattr(energy, function)(log_densities()) for energy in (power, internal))
            torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)

    @pytest.mark.parametrize(("dtype", "log_rho"), [(torch.float32, -600.0), (F64, -600.0), (F64, -2000.0)])
    def test_densities_that_underflow(self, dtype: torch.dtype, log_rho: float) -> None:
        """An entropy has U / rho = log rho; below the least number of float64 it stays there."""
        energy, where = Internal(lambda rho: rho * rho.log()), torch.tensor([log_rho, 0.0], dtype=dtype)
        exact = torch.tensor([max(log_rho, -690.0), 0.0], dtype=dtype)
        torch.testing.assert_close(energy.per_mass(where), exact, rtol=1e-6, atol=0)
        for function in (energy.pressure_per_mass, energy.pressure_slope):
            torch.testing.assert_close(function(where), torch.ones(2, dtype=dtype), rtol=1e-6, atol=0)

    @pytest.mark.parametrize(
        ("U", "words"),
        [
            (lambda rho: rho.sum(), r"shape \(15,\), got \(\)"),
            (lambda rho: rho.unsqueeze(-1), r"shape \(15,\), got \(15, 1\)"),
            (lambda rho: 1.0, "got float"),
            (lambda rho: rho.detach().numpy(), "got ndarray"),
        ],
        ids=["sum", "column", "number", "numpy"],
    )
    def test_what_u_must_return(self, U: Callable[[Tensor], object], words: str) -> None:
        energy = Internal(U)
        for function in (energy.per_mass, energy.pressure_per_mass, energy.pressure_slope):
            with pytest.raises(ArgumentError, match=words):
                function(log_densities())

    def test_u_must_be_made_of_torch_operations(self) -> None:
        with pytest.raises(ArgumentError, match=r"Internal\(U\) must be made of torch operations"):
            Internal(lambda rho: rho.detach() ** 2).pressure_slope(log_densities())

    def test_arguments_are_named(self) -> None:
        with pytest.raises(ArgumentError, match=r"U must be a callable .* got float"):
            Internal(2.0)
        for m in (0.0, -1.0, 1.0, float("inf"), float("nan"), "two", None, [2.0, 3.0]):
            with pytest.raises(ArgumentError, match=r"^m must be"):
                Power(m)

    def test_names(self) -> None:
        assert repr(0.5 * Power(1.5) + Internal(torch.exp)) == "0.5 * Power(m=1.5) + 1 * Internal()"


class TestSums:
    def test_terms_keep_their_coefficients(self) -> None:
        entropy, potential = Entropy(), Potential(quartic)
        energy = 2.0 * (entropy + 3 * potential) + potential * 0.5
        assert energy.terms() == [(2.0, entropy), (6.0, potential), (0.5, potential)]
        assert repr(energy) == "2 * Entropy() + 6 * Potential() + 0.5 * Potential()"
        assert entropy.terms() == [(1.0, entropy)]  # sums leave their parts as they were

    @pytest.mark.parametrize("other", [1.0, None, quartic])
    def test_only_energies_add(self, other: object) -> None:
        with pytest.raises(TypeError):
            Entropy() + other


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
