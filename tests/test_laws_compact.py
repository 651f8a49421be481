"""Laws on a ball against printed values, quadrature, autograd and their own draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad, quad
from scipy.special import gamma

from jkosampler.errors import ArgumentError
from jkosampler.laws import Ball, Barenblatt, Gaussian, Law, Parabola, Product, Uniform

F32, F64 = torch.float32, torch.float64

# id -> (law, p of its density (R^2 - |x - c|^2)^p)
LAWS: dict[str, tuple[Callable[[], Law], float]] = {
    "ball d=1": (lambda: Ball(0.5, 2.0), 0.0),
    "ball d=2": (lambda: Ball([1.0, -1.0], 0.3), 0.0),
    "ball d=6": (lambda: Ball(dim=6), 0.0),
    "parabola d=1": (lambda: Parabola(1, 2.0, 0.5), 1.0),
    "parabola d=10": (lambda: Parabola(10), 1.0),
    "barenblatt d=1": (lambda: Barenblatt(1, 2, 0.1), 1.0),
    "barenblatt d=2": (lambda: Barenblatt(dim=2, m=2, age=1e-3), 1.0),
    "barenblatt d=2 m=3": (lambda: Barenblatt(2, 3.0, 0.02), 0.5),
    "barenblatt d=2 m=1.5": (lambda: Barenblatt(2, 1.5), 2.0),
    "barenblatt d=6 m=3": (lambda: Barenblatt(6, 3, 1e-3), 0.5),
    "barenblatt d=10": (lambda: Barenblatt(10, 2, 1e-3), 1.0),
}
# (m, d, al, be, C), printed
CONSTANTS = [
    (2, 1, 0.33333333, 0.083333333, 0.360562393),
    (2, 2, 0.5, 0.0625, 0.199471140),
    (2, 3, 0.6, 0.05, 0.134810141),
    (2, 6, 0.75, 0.03125, 0.069715271),
    (2, 10, 0.83333333, 0.020833333, 0.045803236),
    (3, 1, 0.25, 0.083333333, 0.183776298),
    (3, 2, 0.33333333, 0.055555556, 0.088943167),
    (3, 6, 0.42857143, 0.023809524, 0.031766689),
    (3, 10, 0.45454545, 0.015151515, 0.022417275),
]


@pytest.fixture(params=LAWS, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Law, float]:
    make, power = LAWS[request.param]
    return make(), power


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def density_along(law: Law, r: np.ndarray | float) -> np.ndarray:
    """Density at distance r of the center, along the first axis."""
    x = law.mean.repeat(np.size(r), 1)
    x[:, 0] += torch.as_tensor(np.atleast_1d(r))
    return law.log_prob(x).exp().numpy()


def test_mass_is_one_by_radial_quadrature(case: tuple[Law, float]) -> None:
    law, _ = case
    sphere = 2.0 * math.pi ** (law.dim / 2) / gamma(law.dim / 2)
    # r = R sin(a): the root singularity of m = 3 at the edge goes away
    radius = law.radius

    def integrand(a: float) -> float:
        r = radius * math.sin(a)
        return float(sphere * r ** (law.dim - 1) * density_along(law, r)[0] * radius * math.cos(a))

    assert quad(integrand, 0.0, math.pi / 2)[0] == pytest.approx(1.0, rel=1e-8)


@pytest.mark.parametrize("law", [Parabola(2), Barenblatt(2, 2, 0.1)], ids=["parabola", "barenblatt"])
def test_mass_in_the_plane_by_cartesian_quadrature(law: Law) -> None:
    def density(y: float, x: float) -> float:
        return float(law.log_prob(torch.tensor([[x, y]], dtype=F64)).exp())

    def half(x: float) -> float:
        return math.sqrt(max(law.radius**2 - x**2, 0.0))

    quarter = dblquad(density, 0.0, law.radius, 0.0, half, epsabs=1e-6, epsrel=1e-6)[0]
    assert 4.0 * quarter == pytest.approx(1.0, abs=1e-5)


def test_score_is_that_of_autograd(case: tuple[Law, float]) -> None:
    law, _ = case
    x = law.sample((500,), generator=generator(1))
    torch.testing.assert_close(law.score(x), Law.score(law, x), rtol=1e-9, atol=1e-9)
    single = law.to(F32)
    gap = 1.0 - ((x - law.mean) / law.radius).square().sum(1)
    bulk = x[gap > 0.1].float()  # nearer to the edge the score's own condition number, 1 / gap, shows
    torch.testing.assert_close(single.score(bulk).double(), law.score(bulk.double()), rtol=1e-4, atol=1e-4)


def test_nothing_lies_outside_nor_on_the_edge(case: tuple[Law, float]) -> None:
    law, _ = case
    x = law.mean.repeat(4, 1)
    x[:, 0] += law.radius * torch.tensor([1.0, 1.0 + 1e-9, -2.0, 1e6], dtype=F64)
    assert law.log_prob(x).eq(-math.inf).all()
    assert law.score(x).eq(0.0).all()
    together = torch.cat([x, law.mean[None]]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(law.log_prob(together)[-1], together)
    assert gradient.eq(0.0).all()  # points outside spoil no gradient of a batch
    assert law.score(torch.full((1, law.dim), math.nan, dtype=F64)).isnan().all()


def test_covariance_is_that_of_the_draws(case: tuple[Law, float]) -> None:
    law, _ = case
    n = 50_000
    offset = (law.sample((n,), generator=generator(2)) - law.mean) / law.radius
    error = offset.std(0) / math.sqrt(n)
    assert (offset.mean(0).abs() < 5 * error).all()
    products = torch.einsum("ni,nj->nij", offset, offset)
    error = products.std(0) / math.sqrt(n)
    assert ((products.mean(0) - law.covariance / law.radius**2).abs() < 5 * error).all()


def test_radii_of_draws_follow_the_beta_law(case: tuple[Law, float]) -> None:
    """Means of |x|^2k / R^2k: products of (d/2 + i) / (d/2 + p + 1 + i)."""
    law, power = case
    n = 50_000
    square = ((law.sample((n,), generator=generator(3)) - law.mean) / law.radius).square().sum(1)
    expected = 1.0
    for k in range(1, 5):
        expected *= (law.dim / 2 + k - 1) / (law.dim / 2 + power + k)
        moment = square**k
        assert abs(moment.mean() - expected) < 5 * moment.std() / math.sqrt(n)


def test_log_density_of_every_draw_is_finite(case: tuple[Law, float]) -> None:
    law, _ = case
    for dtype in (torch.bfloat16, F32, F64):  # the first rounds many draws of a ball onto its edge
        own = law.to(dtype)
        x = own.sample((50_000,), generator=generator(4))
        assert x.dtype == own.mean.dtype == own.covariance.dtype == dtype
        for judge in (own, law):  # what is inside in a lower precision is inside in double precision too
            assert judge.log_prob(x).isfinite().all()
            assert judge.score(x).isfinite().all()


def test_draws_far_from_the_origin_stay_inside() -> None:
    """At 1e4 single precision resolves 1e-3: many draws are rounded onto the edge or beyond, and drawn again."""
    law = Ball([1e4, 1e4], 5e-3).to(F32)
    x = law.sample((2000,), generator=generator(5))
    assert law.log_prob(x).isfinite().all()
    assert len(x.unique(dim=0)) > 10


@pytest.mark.parametrize(("m", "d", "alpha", "beta", "c"), CONSTANTS)
@pytest.mark.parametrize("age", [1e-3, 0.7])
def test_barenblatt_is_the_printed_profile(m: int, d: int, alpha: float, beta: float, c: float, age: float) -> None:
    law = Barenblatt(d, m, age)
    radius = math.sqrt(c / beta) * age ** (alpha / d)
    assert law.radius == pytest.approx(radius, rel=3e-8)  # printed to eight or nine digits
    r = radius * np.linspace(0.0, 0.9, 7)
    expected = age**-alpha * (c - beta * r**2 * age ** (-2 * alpha / d)) ** (1 / (m - 1))
    np.testing.assert_allclose(density_along(law, r), expected, rtol=3e-7)
    assert float(law.covariance.trace()) == pytest.approx(radius**2 * (d / 2) / (d / 2 + 1 / (m - 1) + 1), rel=1e-7)


def test_barenblatt_worked_value() -> None:
    law = Barenblatt(dim=2, m=2, age=0.1)
    assert law.radius == pytest.approx(1.0046158514, abs=1e-10)
    assert density_along(law, 0.5)[0] == pytest.approx(0.4745331305, abs=1e-10)
    assert (law.m, law.age, law.mass, law.has_jump) == (2.0, 0.1, 1.0, False)


@pytest.mark.parametrize(("d", "m"), [(1, 2.0), (2, 3.0), (2, 2.5), (6, 1.5), (10, 2.0)])
def test_barenblatt_solves_the_porous_medium_equation(d: int, m: float) -> None:
    """d rho/ds against the radial Laplacian of rho^m, both by central differences inside the support."""
    s, h = 0.3, 1e-4
    law = Barenblatt(d, m, s)
    r = law.radius * np.array([0.3, 0.5, 0.7])
    rate = (density_along(Barenblatt(d, m, s + h), r) - density_along(Barenblatt(d, m, s - h), r)) / (2 * h)
    before, here, after = (density_along(law, r + k * h) ** m for k in (-1, 0, 1))
    laplacian = (after - 2 * here + before) / h**2 + (d - 1) / r * (after - before) / (2 * h)
    np.testing.assert_allclose(rate, laplacian, rtol=1e-5, atol=1e-6 * np.abs(laplacian).max())


@pytest.mark.parametrize("m", [1.0 + 1e-6, 1.0 + 1e-10])
def test_barenblatt_tends_to_the_heat_kernel(m: float) -> None:
    law, heat = Barenblatt(3, m, 0.2), Gaussian([0.0, 0.0, 0.0], 0.4)
    x = heat.sample((200,), generator=generator(6))
    torch.testing.assert_close(law.log_prob(x), heat.log_prob(x), rtol=0.0, atol=50 * (m - 1))
    torch.testing.assert_close(law.score(x), heat.score(x), rtol=50 * (m - 1), atol=50 * (m - 1))


@pytest.mark.parametrize(("d", "mass"), [(1, 1.0), (2, 3 * math.pi / 8), (3, 2 * math.pi / 5)])
def test_parabola_has_its_mass(d: int, mass: float) -> None:
    law = Parabola(d)
    assert law.mass == law.smoothed().mass == law.to(F32).mass == pytest.approx(mass, rel=1e-14)
    assert law.height == pytest.approx(0.75, rel=1e-14)
    r = np.array([0.0, 0.5, 0.9])
    np.testing.assert_allclose(law.mass * density_along(law, r), 0.75 * (1 - r**2), rtol=1e-13)
    wide = Parabola(d, height=0.2, radius=3.0)
    np.testing.assert_allclose(wide.mass * density_along(wide, r), 0.2 * (1 - r**2 / 9), rtol=1e-13)
    heavy = law.with_mass(2 * law.mass)
    assert (heavy.height, heavy.mass) == (pytest.approx(1.5, rel=1e-14), pytest.approx(2 * mass, rel=1e-14))
    assert Product([law, law]).mass == pytest.approx(mass**2)


def test_ball_on_the_line_is_an_interval() -> None:
    ball, interval = Ball(1.0, 0.5), Uniform(0.5, 1.5)
    x = torch.linspace(0.0, 2.0, 32, dtype=F64)[:, None]
    torch.testing.assert_close(ball.log_prob(x), interval.log_prob(x))
    torch.testing.assert_close(ball.covariance, interval.covariance)
    assert ball.has_jump
    assert isinstance(ball.smoothed(), Gaussian)


def test_dimension_of_a_ball() -> None:
    assert Ball(3.0, dim=4).mean.tolist() == [3.0] * 4
    assert Ball([1.0, 2.0], dim=2).dim == 2
    assert (Ball().dim, Ball().radius) == (1, 1.0)


def test_laws_describe_themselves() -> None:
    assert repr(Ball(dim=3)) == "uniform law on a ball in 3 dimensions"
    assert repr(Parabola(1)) == "parabola of radius 1 in 1 dimension"
    assert repr(Parabola(2)) == "parabola of radius 1 in 2 dimensions of mass 1.178"
    assert repr(Barenblatt(2, age=1e-3)) == "Barenblatt profile of age 0.001, m = 2, in 2 dimensions"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ball([0.0, 0.0], 0.0), "radius must be one positive number"),
        (lambda: Ball([0.0, 0.0], [1.0, 2.0]), "radius must be one positive number"),
        (lambda: Ball([0.0, 0.0], dim=3), r"center must be a number or have shape \(3,\)"),
        (lambda: Ball([[0.0, 0.0]]), "center must be a number"),
        (lambda: Ball(math.nan), "center must be finite"),
        (lambda: Ball(dim=0), "dim must be a whole number"),
        (lambda: Barenblatt(2.0), "dim must be a whole number"),
        (lambda: Barenblatt(2, m=1.0), "m must be above 1"),
        (lambda: Barenblatt(2, m="two"), "m must be a number"),
        (lambda: Barenblatt(2, age=0.0), "age must be one positive number"),
        (lambda: Barenblatt(2, age=math.inf), "age must be finite"),
        (lambda: Parabola(0), "dim must be a whole number"),
        (lambda: Parabola(2, height=-1.0), "height must be one positive number"),
        (lambda: Parabola(2, radius=0.0), "radius must be one positive number"),
        (lambda: Parabola(200, radius=1e9), "the mass of height and radius must be finite"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
