"""Domains: volumes, draws and quadratures against closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from scipy.special import j0, j1
from torch import Tensor

from jkosampler.domains import Ball, Box, Domain, LShape, Quadrature, Region
from jkosampler.errors import ArgumentError

F64 = torch.float64
METHODS = ["gauss", "sobol", "monte-carlo"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def annulus(inner: float = 0.5, outer: float = 1.2) -> Region:
    return Region(lambda x: (x.norm(dim=-1) > inner) & (x.norm(dim=-1) < outer), Box(-1.25, 1.25, dim=2))


def slanted() -> Region:
    """The part of [0, 1]^2 below the line x_2 = 1/8 + x_1 / 2: area 3/8, and no cell has the line for a side."""
    return Region(lambda x: x[:, 1] < 0.125 + 0.5 * x[:, 0], Box(0.0, 1.0, dim=2))


def ellipse() -> Region:
    """Semi-axes 3 and 1/2: a box whose sides differ, so that a fault in the order of axes shows."""
    return Region(lambda x: (x / torch.tensor([3.0, 0.5]).to(x)).norm(dim=-1) <= 1.0, Box([-3.1, -0.6], [3.1, 0.6]))


# id -> (domain, volume, mean of x, mean of the squares of x), in closed form
DOMAINS: dict[str, tuple[Callable[[], Domain], float, list[float], list[float]]] = {
    "interval": (lambda: Box(-1.0, 3.0), 4.0, [1.0], [7 / 3]),
    "box": (lambda: Box([0.0, -2.0], [1.0, 4.0]), 6.0, [0.5, 1.0], [1 / 3, 4.0]),
    "cube": (lambda: Box(-2, 2, dim=3), 64.0, [0.0] * 3, [4 / 3] * 3),
    "disc": (lambda: Ball([1.0, -1.0], 2.0), 4 * math.pi, [1.0, -1.0], [2.0, 2.0]),
    "ball": (lambda: Ball(0.0, 2.0, dim=3), 32 * math.pi / 3, [0.0] * 3, [4 / 5] * 3),
    "L": (lambda: LShape(2.0), 12.0, [-1 / 3, 1 / 3], [4 / 3, 4 / 3]),
    "annulus": (annulus, 1.19 * math.pi, [0.0, 0.0], [1.69 / 4] * 2),
    "slanted": (slanted, 3 / 8, [11 / 18, 31 / 144], [4 / 9, 17 / 256 + 1 / 768]),
    "ellipse": (ellipse, 1.5 * math.pi, [0.0, 0.0], [9 / 4, 1 / 16]),
}
PLANE = ["disc", "L", "annulus", "slanted", "ellipse"]


@pytest.fixture(params=DOMAINS, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[Domain, float, Tensor, Tensor]:
    make, volume, mean, square = DOMAINS[request.param]
    return make(), volume, torch.tensor(mean, dtype=F64), torch.tensor(square, dtype=F64)


def test_volume_and_box(case: tuple[Domain, float, Tensor, Tensor]) -> None:
    domain, volume, mean, _ = case
    # of regions without a given volume: balanced points in the plane are at least as good as 131 072 draws
    share = volume / float((domain.upper - domain.lower).prod())
    given = not isinstance(domain, Region) or isinstance(domain, Ball | LShape)
    error = 1e-13 if given else 4.0 * math.sqrt((1.0 - share) / share / 2**17)
    assert domain.volume == pytest.approx(volume, rel=error)
    assert domain.dim == len(mean)
    centre, half = domain.frame()
    torch.testing.assert_close(centre - half, domain.lower)
    torch.testing.assert_close(centre + half, domain.upper)


def test_draws_have_the_moments(case: tuple[Domain, float, Tensor, Tensor]) -> None:
    domain, _, mean, square = case
    n = 40_000
    x = domain.sample(n, generator(1))
    assert x.shape == (n, domain.dim)
    assert domain.contains(x).all()
    for values, expected in ((x, mean), (x**2, square)):
        assert ((values.mean(0) - expected).abs() < 4.0 * values.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize(("name", "method"), [pair for pair in product(DOMAINS, METHODS) if pair != ("ball", "gauss")])
def test_quadrature_is_inside_positive_and_reproducible(name: str, method: str) -> None:
    make, volume, mean, _ = DOMAINS[name]
    domain, n = make(), 600
    points, again, other = (domain.quadrature(n, generator(seed), method) for seed in (2, 2, 3))
    assert domain.contains(points.x).all()
    assert (points.weights > 0).all()
    torch.testing.assert_close(points, again, rtol=0.0, atol=0.0)
    assert (method == "gauss") == torch.equal(points.x, other.x)
    assert len(points.x) == n or method == "gauss"
    expected = volume if method == "gauss" else domain.volume  # the weights of the others share out the volume
    assert float(points.weights.sum()) == pytest.approx(expected, rel=1e-4 if method == "gauss" else 1e-13)
    first = points.weights @ (points.x - torch.tensor(mean)) / points.weights.sum()
    spread = points.x.std(0) / math.sqrt(n)  # of draws; balanced points and Gauss's do better
    assert (first.abs() < 4.0 * spread).all()


def test_sobol_points_beat_draws() -> None:
    """Scrambled and balanced, 1024 points leave far less of a smooth integral than the 0.01 of as many draws."""
    x, weights = Box(0.0, 1.0, dim=2).quadrature(1024, generator(4), "sobol")
    assert float(weights @ x.exp().prod(1)) == pytest.approx((math.e - 1.0) ** 2, abs=1e-3)


@pytest.mark.parametrize(
    ("lower", "upper"), [([-1.0], [2.0]), ([0.0, -2.0], [1.0, 4.0]), ([0.0, 1.0, -1.0], [2.0] * 3)]
)
def test_gauss_is_exact_for_polynomials_in_boxes(lower: list[float], upper: list[float]) -> None:
    m = 4
    x, weights = Box(lower, upper).quadrature(m ** len(lower), generator(), "gauss")
    assert len(x) == m ** len(lower)

    def moment(low: float, high: float, p: int) -> float:
        return (high ** (p + 1) - low ** (p + 1)) / (p + 1)

    for powers in ([2 * m - 1, 0, 3], [1, 2 * m - 1, 2], [6, 4, 2 * m - 1]):
        p = torch.tensor(powers[: len(lower)])
        exact = math.prod(moment(*side) for side in zip(lower, upper, powers, strict=False))
        assert float(weights @ (x**p).prod(1)) == pytest.approx(exact, rel=1e-12)
    # of degree 2 m it is not: the error m!^4 / ((2m + 1) (2m)!) (b - a)^(2m + 1) / (2m)! per axis
    first = float(weights @ x[:, 0] ** (2 * m)) / math.prod(b - a for a, b in list(zip(lower, upper, strict=True))[1:])
    length, factorial = upper[0] - lower[0], math.factorial
    error = length ** (2 * m + 1) * factorial(m) ** 4 / ((2 * m + 1) * factorial(2 * m) ** 2)
    assert moment(lower[0], upper[0], 2 * m) - first == pytest.approx(error, rel=1e-6)


def test_many_gauss_points_on_a_line() -> None:
    """Whatever the rule is made of: a wave that 1000 points see 25 times is integrated to rounding."""
    x, weights = Box(-1.0, 3.0).quadrature(1000, generator(), "gauss")
    assert 1000 <= len(x) < 1100
    assert len(x.unique()) == len(x)
    assert float(weights @ (40.0 * x[:, 0]).cos()) == pytest.approx(
        (math.sin(120.0) + math.sin(40.0)) / 40.0, abs=1e-12
    )


@pytest.mark.parametrize("name", PLANE)
@pytest.mark.parametrize("n", [100, 2500])
def test_cut_cells_integrate_moments(name: str, n: int) -> None:
    make, volume, mean, square = DOMAINS[name]
    domain = make()
    x, weights = domain.quadrature(n, generator(), "gauss")
    size = 2e-5 * volume * float(domain.frame()[1].max().clamp(min=1.0)) ** 2  # arcs leave 1e-5 of it, the rest nothing
    for values, expected in ((x[:, 0] ** 0, 1.0), *zip(x.T, mean, strict=True), *zip((x**2).T, square, strict=True)):
        assert float(weights @ values) == pytest.approx(volume * float(expected), abs=size)


def test_cut_cells_are_exact_along_straight_sides() -> None:
    """No quadrature error but rounding and 2^-40 of a cell: sides of cells, and a line that Gauss's rule follows."""
    for domain, volume in (
        (LShape(), 3.0),
        (slanted(), 3 / 8),
        (Region(lambda x: x[:, 0] < 0.3, Box(0, 1, dim=2)), 0.3),
    ):
        _, weights = domain.quadrature(400, generator(), "gauss")
        assert float(weights.sum()) == pytest.approx(volume, abs=1e-8)


def test_cut_cells_integrate_a_wave_on_a_disc_and_an_annulus() -> None:
    """The integral of J_0(k r) over a disc of radius R is 2 pi R J_1(k R) / k."""
    k = 4.0

    def disc(radius: float) -> float:
        return 2.0 * math.pi * radius * j1(k * radius) / k

    for domain, exact in ((Ball([0.0, 0.0], 1.2), disc(1.2)), (annulus(), disc(1.2) - disc(0.5))):
        points = domain.quadrature(2500, generator(), "gauss")
        values = torch.from_numpy(j0(k * points.x.norm(dim=1).numpy()))
        assert float(points.weights @ values) == pytest.approx(exact, abs=2e-5)


def test_mean_over_the_domain_is_weighted() -> None:
    points = Quadrature(torch.zeros(2, 1), torch.tensor([1.0, 3.0]))
    assert points.mean(torch.tensor([4.0, 8.0])) == 7.0


def test_what_is_inside() -> None:
    x = torch.tensor([[0.5, -0.5], [0.5, 0.5], [-0.5, -0.5], [1.5, 0.5]])
    assert LShape(1.0).contains(x).tolist() == [False, True, True, False]  # the box bounds a region, too
    assert Box(-1, 1, dim=2).contains(x).tolist() == [True, True, True, False]
    assert Ball([0.5, 0.5], 1.0).contains(x).tolist() == [True, True, False, True]
    assert Box(-1, 1, dim=2).contains(torch.ones(1, 2)).all()  # its sides belong to a box


def test_domains_describe_themselves() -> None:
    assert repr(Box(0, 1, dim=2)) == "Box([0.0, 0.0], [1.0, 1.0])"
    assert repr(LShape()) == "LShape(Box([-1.0, -1.0], [1.0, 1.0]))"


def region(inside: Any, dim: int = 2, **options: Any) -> Region:
    return Region(inside, Box(-1, 1, dim=dim), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box(1.0, 1.0), "lower must be below upper"),
        (lambda: Box([0.0, 2.0], [1.0, 1.0]), "lower must be below upper"),
        (lambda: Box([0.0, 0.0, 0.0], [1.0, 1.0]), r"upper must be a number or have shape \(3,\)"),
        (lambda: Box([0.0, 0.0], 1.0, dim=3), r"lower must be a number or have shape \(3,\)"),
        (lambda: Box("a", 1.0), "lower must be a number"),
        (lambda: Box(0.0, math.inf), "upper must be finite"),
        (lambda: Box(0.0, 1.0, dim=0), "dim must be a whole number"),
        (lambda: Ball([0.0, 0.0], 0.0), "radius must be one positive number"),
        (lambda: LShape(-1.0), "side must be one positive number"),
        (lambda: Region(3, Box(0, 1)), "inside must be a callable"),
        (lambda: Region(lambda x: x[:, 0] > 0, (0, 1)), "box must be a domains.Box"),
        (lambda: region(lambda x: x[:, 0] > 0, volume=-1.0), "volume must be one positive number"),
        (lambda: region(lambda x: x[:, 0] > 2).volume, "domain: none of 131072 points"),
        (lambda: region(lambda x: x[:, 0] > 2).sample(5, generator()), "domain: only 0 of"),
        (lambda: region(lambda x: x[:, 0] > 2).quadrature(5, generator()), "domain: only 0 of"),
        (lambda: region(lambda x: x[:, 0]).volume, "inside must return a bool tensor"),
        (lambda: region(lambda x: x > 0).volume, "inside must return a bool tensor"),
        (lambda: region(lambda x: True).volume, "inside must return a bool tensor .* got bool"),
        (lambda: Box(0, 1).quadrature(5, generator(), "simpson"), "quadrature must be one of"),
        (lambda: Ball(dim=3).quadrature(9, generator(), "gauss"), "quadrature='gauss' is for boxes .* d=3"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
