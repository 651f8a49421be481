"""One step of an L2 flow: its coordinates, and the minimiser against closed forms and other solvers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import solve_banded
from scipy.optimize import brentq
from scipy.special import j0
from torch import Tensor

from jkosampler.domains import Ball, Box, Domain
from jkosampler.energies import AllenCahn, Dirichlet, Energy, FunctionalEvaluator, L2Functional
from jkosampler.engines.field_step import Basis, SolvedStep, solve_step
from jkosampler.engines.hidden_layers import band_limited
from jkosampler.errors import JKOSamplerError
from jkosampler.fields import GivenField

F64 = torch.float64
J1 = 3.8317059702
LINE, BOX, DISC = Box(-1.0, 1.0), Box([-1.0, 0.0], [1.0, 3.0]), Ball([0.0, 0.0], 1.0)
CUBE = Box([-1.0, 0.0, 0.0], [1.0, 3.0, 2.0])
TENSOR = torch.tensor([[1.0, 0.4, 0.1], [0.4, 0.5, -0.2], [0.1, -0.2, 0.7]], dtype=F64)  # a conductivity


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def basis_of(
    domain: Domain, n_units: int, n: int, energy: Energy, tau: float, field: Callable[[Tensor], Tensor]
) -> tuple[Basis, FunctionalEvaluator]:
    evaluator = FunctionalEvaluator(energy)
    points = domain.quadrature(n, generator(1), "gauss")
    layer = band_limited(domain, n_units, generator())
    return Basis(layer, points, tau, evaluator, GivenField(field, domain)), evaluator


def step_of(
    domain: Domain, n_units: int, n: int, energy: Energy, tau: float, field: Callable[[Tensor], Tensor]
) -> tuple[Basis, SolvedStep]:
    basis, evaluator = basis_of(domain, n_units, n, energy, tau, field)
    return basis, solve_step(basis, evaluator, field(basis.points.x), None)


def anisotropic() -> Energy:
    return L2Functional(lambda x, u, p: 0.5 * ((p @ TENSOR) * p).sum(-1) + (1.0 + x[:, 0] ** 2) * u**2)


def product_of_cosines(x: Tensor) -> Tensor:
    """An eigenfunction on BOX: -Lap e = (pi^2 + pi^2 / 9) e."""
    return (math.pi * (x[:, 0] + 1.0)).cos() * (math.pi * x[:, 1] / 3.0).cos()


def bessel(x: Tensor) -> Tensor:
    """An eigenfunction on DISC: -Lap e = J1^2 e."""
    return torch.from_numpy(j0(J1 * x.detach().norm(dim=1).numpy()))


# id -> (domain, energy, field, second derivatives in u and in grad u at that field, as the coordinates take them)
CURVATURES: dict[str, tuple[Domain, Energy, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]] = {
    "dirichlet": (BOX, Dirichlet(0.3), product_of_cosines, lambda x: 0.0 * x[:, 0], 0.3 * torch.eye(2, dtype=F64)),
    "allen-cahn": (
        BOX,
        AllenCahn(0.5),
        lambda x: 0.8 + 0.1 * x[:, 0],
        lambda x: 4.0 * (3.0 * (0.8 + 0.1 * x[:, 0]) ** 2 - 1.0),
        torch.eye(2, dtype=F64),
    ),
    "allen-cahn where it is concave": (  # only the positive part counts
        BOX, AllenCahn(0.5), lambda x: 0.1 * x[:, 0], lambda x: 0.0 * x[:, 0], torch.eye(2, dtype=F64)
    ),
    "anisotropic": (CUBE, anisotropic(), product_of_cosines, lambda x: 2.0 + 2.0 * x[:, 0] ** 2, TENSOR),
}  # fmt: skip


class TestBasis:
    @pytest.mark.parametrize("name", CURVATURES)
    def test_second_derivative_is_the_identity(self, name: str) -> None:
        """Built from the new units one by one, with second derivatives by hand.

        Rounding is amplified by the worst direction that is kept: 1e-16 / 1e-13, at most.
        """
        domain, energy, field, by_u, by_gradient = CURVATURES[name]
        tau = 0.02
        basis, _ = basis_of(domain, 80, 600, energy, tau, field)
        x, weights = basis.points
        r = basis._to_units.shape[1]
        units = [basis.evaluate(c) for c in torch.eye(r, dtype=F64)]
        u, p = torch.stack([unit[0] for unit in units], 1), torch.stack([unit[1] for unit in units], 2)
        found = u.T @ ((weights * (1.0 / tau + by_u(x)))[:, None] * u)
        found += torch.einsum("n,nir,ij,njs->rs", weights, p, by_gradient, p)
        torch.testing.assert_close(found, torch.eye(r, dtype=F64), rtol=0.0, atol=2e-3)

    def test_adjoint_is_the_adjoint_of_evaluate(self) -> None:
        basis, _ = basis_of(CUBE, 80, 600, anisotropic(), 0.02, product_of_cosines)
        n, r = len(basis.points.x), basis._to_units.shape[1]
        c, a, b = (torch.randn(*shape, generator=generator(2), dtype=F64) for shape in ((r,), (n,), (n, 3)))
        u, p = basis.evaluate(c)
        pairing = float(basis.points.weights @ (u * a + (p * b).sum(1)))
        assert float(c @ basis.adjoint(a, b)) == pytest.approx(pairing, rel=1e-10)

    def test_coordinates_are_those_of_a_network(self) -> None:
        basis, _ = basis_of(BOX, 80, 400, Dirichlet(), 0.02, product_of_cosines)
        c = torch.randn(basis._to_units.shape[1], generator=generator(3), dtype=F64)
        field = basis.field(c)
        for found, expected in zip(basis.evaluate(c), field.with_gradient(basis.points.x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))

    def test_dependent_units_are_left_out(self) -> None:
        """64 units of the line's band can't be told apart: what is left out is rounding."""
        basis, _ = basis_of(LINE, 64, 100, Dirichlet(), 0.01, lambda x: x[:, 0])
        assert 32 <= basis._to_units.shape[1] < 64


@pytest.mark.parametrize(
    ("domain", "field", "square", "units"),
    [
        (LINE, lambda x: (1.5 * math.pi * (x[:, 0] + 1.0)).cos(), (1.5 * math.pi) ** 2, 64),
        (BOX, product_of_cosines, math.pi**2 * 10.0 / 9.0, 400),
        (DISC, bessel, J1**2, 250),
    ],
    ids=["line", "box", "disc"],
)
def test_step_of_the_heat_equation_on_an_eigenfunction(
    domain: Domain, field: Callable[[Tensor], Tensor], square: float, units: int
) -> None:
    """Quadrature by cut cells leaves 1e-5, so do the units; a wrong factor would leave 1e-2."""
    kappa, tau = 0.3, 0.05
    basis, solved = step_of(domain, units, 1600 if domain.dim == 2 else 100, Dirichlet(kappa), tau, field)
    factor = 1.0 / (1.0 + tau * kappa * square)
    fresh = domain.sample(500, generator(4))
    exact = factor * field(fresh)
    assert float((basis.field(solved.coordinates)(fresh) - exact).norm() / exact.norm()) < 1e-4
    mass = float(basis.points.weights @ field(basis.points.x) ** 2)
    assert solved.energy == pytest.approx(0.5 * kappa * square * factor**2 * mass, rel=1e-4)
    assert solved.transport_cost == pytest.approx((1.0 - factor) ** 2 * mass, rel=1e-3)  # d^2
    assert solved.n_iterations <= 5  # a quadratic problem
    assert not solved.slow


def test_step_of_decay_is_pointwise() -> None:
    basis, solved = step_of(
        LINE, 64, 100, L2Functional(lambda x, u, p: 0.35 * u**2), 0.4, lambda x: (2.0 * x[:, 0]).exp()
    )
    # directions whose share of the objective's matrix is below 1e-13 are left out: 3e-7 of the field
    torch.testing.assert_close(solved.u, (2.0 * basis.points.x[:, 0]).exp() / 1.28, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("level", [0.6, -0.2, 1.4])
def test_step_of_allen_cahn_on_a_constant(level: float) -> None:
    """The scalar equation `v + tau (v^3 - v) / epsilon^2 = u`."""
    tau, epsilon = 0.02, 0.25
    exact = brentq(lambda v: v + tau * (v**3 - v) / epsilon**2 - level, -2.0, 2.0, xtol=1e-14)
    _, solved = step_of(LINE, 40, 80, AllenCahn(epsilon), tau, lambda x: torch.full_like(x[:, 0], level))
    torch.testing.assert_close(solved.u, torch.full_like(solved.u, exact), rtol=0.0, atol=1e-6)


def newton_on_a_grid(
    v: np.ndarray, h: float, tau: float, slope: Callable[..., np.ndarray], curvature: Callable[..., np.ndarray],
    reaction: Callable[[np.ndarray], np.ndarray], reaction_slope: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Solve `u - v = tau (slope(u')' - reaction(u))` on the cells of a line, no flux at its ends."""
    u = v.copy()
    for _ in range(50):
        du = np.diff(u) / h
        flux = np.concatenate([[0.0], slope(du), [0.0]])
        residual = u - v - tau * (np.diff(flux) / h - reaction(u))
        side = tau * curvature(du) / h**2
        bands = np.zeros((3, len(u)))
        bands[0, 1:], bands[2, :-1] = -side, -side
        bands[1] = 1.0 + tau * reaction_slope(u) + np.append(side, 0.0) + np.append(0.0, side)
        change = solve_banded((1, 1), bands, -residual)
        u += change
        if np.abs(change).max() < 1e-12:
            return u
    raise AssertionError("Newton's method did not converge")


def flat_at_the_ends(x: Tensor) -> Tensor:
    return 0.8 * (0.5 * math.pi * x[:, 0]).sin() + 0.3 * (math.pi * x[:, 0]).cos()


@pytest.mark.parametrize("name", ["allen-cahn", "p-laplacian"])
def test_nonlinear_step_is_that_of_finite_differences(name: str) -> None:
    """4000 cells, whose error falls with their square: halving them changes less than 1e-6."""
    tau, cells = 0.005, 4000
    x = -1.0 + 2.0 / cells * (torch.arange(cells, dtype=F64)[:, None] + 0.5)
    before = flat_at_the_ends(x).numpy()
    if name == "allen-cahn":
        energy: Energy = AllenCahn(0.25)
        exact = newton_on_a_grid(
            before, 2.0 / cells, tau, lambda d: d, np.ones_like,
            lambda u: 16.0 * (u**3 - u), lambda u: 16.0 * (3.0 * u**2 - 1.0),
        )  # fmt: skip
    else:
        energy = L2Functional(lambda x, u, p: 0.5 * p.square().sum(-1) + 0.25 * p.square().sum(-1) ** 2)
        exact = newton_on_a_grid(
            before, 2.0 / cells, tau, lambda d: d + d**3, lambda d: 1.0 + 3.0 * d**2, np.zeros_like, np.zeros_like
        )
    basis, solved = step_of(LINE, 128, 200, energy, tau, flat_at_the_ends)
    assert np.abs(basis.field(solved.coordinates)(x).numpy() - exact).max() < 1e-5
    assert np.abs(before - exact).max() > 0.03  # what the step changes


def test_where_it_starts_does_not_matter() -> None:
    basis, energy = basis_of(LINE, 64, 100, AllenCahn(0.25), 0.01, lambda x: x[:, 0])
    before = basis.points.x[:, 0]
    first = solve_step(basis, energy, before, None)
    again = solve_step(basis, energy, before, first.coordinates)
    elsewhere = solve_step(basis, energy, before, torch.zeros_like(first.coordinates))
    for other in (again, elsewhere):
        torch.testing.assert_close(other.u, first.u, rtol=0.0, atol=5e-5)
    assert again.n_iterations < first.n_iterations


def test_a_field_at_rest_stays() -> None:
    _, solved = step_of(LINE, 40, 80, Dirichlet(), 0.1, lambda x: torch.full_like(x[:, 0], 4.0))
    torch.testing.assert_close(solved.u, torch.full_like(solved.u, 4.0))
    assert solved.transport_cost < 1e-12


def test_an_objective_without_minimum_is_an_error() -> None:
    with pytest.raises(JKOSamplerError, match="finite"):
        step_of(LINE, 40, 80, L2Functional(lambda x, u, p: -u.square()), 1.0, lambda x: x[:, 0].cos())


def test_work_above_thirty_iterations_is_slow() -> None:
    zero = torch.zeros(1)
    assert [SolvedStep(zero, zero, 0.0, 0.0, n).slow for n in (30, 31)] == [False, True]
