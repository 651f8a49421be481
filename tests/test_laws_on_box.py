"""Densities given by functions on boxes: against closed forms of products of waves, and of one that is no product."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy import stats
from small_problems import seeded
from torch import Tensor, nn

from jkosampler.domains import Box
from jkosampler.errors import ArgumentError, StartError
from jkosampler.laws import DensityOnBox, Gaussian, Uniform

F64 = torch.float64
N = 20_000
KOLMOGOROV = 1.95 / N**0.5  # exceeded once in a thousand times


class Waves:
    """`height prod_i (1 + a_i cos(pi (x_i - lower_i) / L_i))` in closed form."""

    def __init__(self, lower: list[float], sides: list[float], sizes: list[float], height: float) -> None:
        self.lower, self.sides, self.sizes = (torch.tensor(v, dtype=F64) for v in (lower, sides, sizes))
        self.box, self.height = Box(self.lower, self.lower + self.sides), height
        self.mass = height * math.prod(sides)
        self.mean = self.lower + self.sides * (0.5 - 2.0 * self.sizes / math.pi**2)
        square = self.sides**2 * (1.0 / 3.0 - 2.0 * self.sizes / math.pi**2)
        self.covariance = torch.diag(square - (self.mean - self.lower) ** 2)

    def __call__(self, x: Tensor) -> Tensor:
        angle = math.pi * (x - self.lower.to(x)) / self.sides.to(x)
        return self.height * (1.0 + self.sizes.to(x) * angle.cos()).prod(-1)

    def score(self, x: Tensor) -> Tensor:
        angle, rate = math.pi * (x - self.lower) / self.sides, math.pi / self.sides
        return -self.sizes * rate * angle.sin() / (1.0 + self.sizes * angle.cos())

    def distribution(self, axis: int) -> Callable[[np.ndarray], np.ndarray]:
        """Distribution function of one coordinate."""
        low, side, a = float(self.lower[axis]), float(self.sides[axis]), float(self.sizes[axis])
        return lambda x: (x - low) / side + a * np.sin(math.pi * (x - low) / side) / math.pi


# and how far sums over quadrature points may be off: Gauss's rule is exact, 2^14 Sobol points are off by some 1e-4
CASES = {
    "plane": (Waves([-1.0, 2.0], [1.0, 3.0], [0.5, -0.9], 2.0), 1e-12),
    "space": (Waves([0.0, -3.0, 1.0], [2.0, 1.0, 0.5], [0.3, 0.7, -0.5], 0.4), 1e-3),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Waves, DensityOnBox, float]:
    waves, tolerance = CASES[request.param]
    return waves, DensityOnBox(waves, waves.box), tolerance


def inside(waves: Waves, n: int = 50) -> Tensor:
    return waves.box.sample(n, seeded(1))


class TestDensity:
    def test_mass_and_moments(self, case: tuple[Waves, DensityOnBox, float]) -> None:
        waves, law, tolerance = case
        assert law.mass == pytest.approx(waves.mass, rel=tolerance)
        torch.testing.assert_close(law.mean, waves.mean, rtol=0, atol=tolerance)
        torch.testing.assert_close(law.covariance, waves.covariance, rtol=0, atol=tolerance)
        assert law.dim == len(waves.sides)
        assert not law.has_jump
        assert law.smoothed() is law

    def test_log_prob_and_score(self, case: tuple[Waves, DensityOnBox, float]) -> None:
        waves, law, tolerance = case
        x = inside(waves)
        exact = (waves(x) / waves.mass).log()
        torch.testing.assert_close(law.log_prob(x), exact, rtol=0, atol=2.0 * tolerance)
        torch.testing.assert_close(law.score(x), waves.score(x), rtol=1e-10, atol=1e-12)
        scaled = law.with_mass(7.0)
        assert scaled.mass == 7.0
        assert torch.equal(scaled.log_prob(x), law.log_prob(x))

    def test_nothing_is_outside(self, case: tuple[Waves, DensityOnBox, float]) -> None:
        waves, law, _ = case
        for axis in range(law.dim):
            for end, out in ((waves.box.lower, -1e-6), (waves.box.upper, 1e-6)):
                x = inside(waves, 3)
                x[:, axis] = end[axis]
                wall = law.log_prob(x)
                assert bool(wall.isfinite().all())  # the walls belong to the box, and what rounding puts beyond them
                x[:, axis] += 1e-6 * out
                torch.testing.assert_close(law.log_prob(x), wall, rtol=0, atol=1e-9)
                x[:, axis] += out
                assert bool(law.log_prob(x).isneginf().all())
                assert torch.equal(law.score(x), torch.zeros_like(x))

    def test_points_that_are_no_numbers(self) -> None:
        waves, _ = CASES["plane"]
        x = inside(waves, 3)
        x[0, 0], x[1, -1] = math.inf, math.nan
        log_prob = DensityOnBox(waves, waves.box).log_prob(x)
        assert (log_prob.isneginf().tolist(), log_prob.isnan().tolist()) == ([True, False, False], [False, True, False])

    def test_the_score_on_the_walls(self) -> None:
        law = DensityOnBox(lambda x: x.sum(1).exp(), Box(0.0, 1.0, dim=2))
        torch.testing.assert_close(law.score(torch.tensor([[0.0, 0.3], [0.2, 1.0]])), torch.ones(2, 2, dtype=F64))

    def test_where_it_vanishes(self) -> None:
        """u = (x_1)_+^2: its mass is 2/3, and where it is zero there is neither a draw nor a score."""
        law = DensityOnBox(lambda x: x[:, 0].clamp(min=0.0).square(), Box(-1.0, 1.0, dim=2))
        assert law.mass == pytest.approx(2.0 / 3.0, rel=1e-5)  # Gauss's rule does not know of the kink
        x = torch.tensor([[-0.5, 0.0], [0.0, 0.3], [0.5, 0.0]], dtype=F64)
        assert law.log_prob(x).isneginf().tolist() == [True, True, False]
        torch.testing.assert_close(law.score(x), torch.tensor([[0.0, 0.0], [0.0, 0.0], [4.0, 0.0]], dtype=F64))
        assert float(law.sample(2000, seeded(0))[:, 0].min()) > 0.0


class TestDraws:
    def test_marginals_and_moments(self, case: tuple[Waves, DensityOnBox, float]) -> None:
        waves, law, _ = case
        x = law.sample((N,), generator=seeded(2))
        assert x.shape == (N, law.dim)
        assert bool(waves.box.contains(x).all())
        for axis in range(law.dim):
            assert stats.kstest(x[:, axis].numpy(), waves.distribution(axis)).statistic < KOLMOGOROV
        error = (x.mean(0) - waves.mean) / (waves.covariance.diagonal() / N).sqrt()
        assert float(error.abs().max()) < 4.0
        deviation = waves.covariance.diagonal().sqrt()
        error = (torch.cov(x.mT) - waves.covariance) / torch.outer(deviation, deviation)
        assert float(error.abs().max()) < 4.0 / N**0.5  # kurtosis of a box is below that of a Gaussian

    def test_a_density_that_is_no_product(self) -> None:
        """1 + .8 cos(pi x) cos(pi y) on the unit square: counts in 8 x 8 cells."""
        law = DensityOnBox(lambda x: 1.0 + 0.8 * (math.pi * x).cos().prod(-1), Box(0.0, 1.0, dim=2))
        covariance = 0.8 * (2.0 / math.pi**2) ** 2
        assert float(law.covariance[0, 1]) == pytest.approx(covariance, rel=1e-10)
        x = law.sample(N, seeded(3)).numpy()
        edges = np.linspace(0.0, 1.0, 9)
        wave = np.diff(np.sin(np.pi * edges)) / np.pi
        expected = N * (1.0 / 64.0 + 0.8 * np.outer(wave, wave))
        counts, _, _ = np.histogram2d(x[:, 0], x[:, 1], bins=[edges, edges])
        assert ((counts - expected) ** 2 / expected).sum() < stats.chi2(63).ppf(0.999)

    def test_they_follow_the_generator_alone(self) -> None:
        waves, state = CASES["plane"][0], torch.get_rng_state()
        law, other = DensityOnBox(waves, waves.box), DensityOnBox(waves, waves.box)
        first = law.sample(10, seeded(0))
        assert torch.equal(other.sample(10, seeded(0)), first)
        assert not torch.equal(law.sample(10, seeded(1)), first)
        assert torch.equal(torch.get_rng_state(), state)
        assert law.sample(0).shape == (0, 2)

    def test_a_peak_between_the_points_of_the_quadrature(self) -> None:
        """A hill of height 50 and width .003, in the middle of four points of Gauss's rule, which see u < 2.

        Of 20 000 draws 61 are expected within three widths (56 of the hill, 5 of the plain), and 15 if the first bound
        were kept.
        """
        width, centre = 0.003, 0.5
        law = DensityOnBox(
            lambda x: 1.0 + 50.0 * (-0.5 * ((x - centre) / width).square().sum(-1)).exp(), Box(0.0, 1.0, dim=2)
        )
        assert law.mass == pytest.approx(1.0, abs=1e-3)  # the hill's share is .0028
        found = int(((law.sample(N, seeded(0)) - centre).norm(dim=1) < 3.0 * width).sum())
        hill = 50.0 * 2.0 * math.pi * width**2
        expected = N * (hill * (1.0 - math.exp(-4.5)) + 9.0 * math.pi * width**2) / (1.0 + hill)
        assert abs(found - expected) < 4.0 * expected**0.5


class TestTo:
    @pytest.mark.parametrize("known", [False, True], ids=["moments later", "moments before"])
    def test_float32(self, known: bool) -> None:
        waves = CASES["plane"][0]
        law = DensityOnBox(waves, waves.box)
        if known:
            assert law.mean.dtype == F64
        single = law.to(torch.float32)
        assert law.dtype == law.mean.dtype == F64
        x = single.sample(5000, seeded(0))
        for value in (x, single.log_prob(x), single.score(x), single.mean, single.covariance):
            assert value.dtype == torch.float32
        assert bool(single.log_prob(x).isfinite().all())  # rounding puts none of them outside
        torch.testing.assert_close(single.mean.double(), waves.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(single.log_prob(x).double(), law.log_prob(x.double()), rtol=0, atol=1e-5)
        assert single.mass == law.mass


SQUARE = Box(-1.0, 1.0, dim=2)


@pytest.mark.parametrize(
    ("density", "error", "message"),
    [
        (lambda x: x[:, 0], StartError, r"finite and not negative, but is not at 8192 points: x\[0\] = \(-0.99"),
        (lambda x: torch.where(x[:, 0] > 0.9, math.nan, 1.0), StartError, "finite and not negative"),
        (lambda x: torch.where(x[:, 0] > 0.9, math.inf, 1.0), StartError, "finite and not negative"),
        (lambda x: torch.zeros_like(x[:, 0]), StartError, "zero everywhere in the domain"),
        (lambda x: x.square(), ArgumentError, r"tensor of shape \(16384,\), got \(16384, 2\)"),
        (lambda x: x[:1, 0].square(), ArgumentError, r"got \(1,\)"),
        (lambda x: 1.0, ArgumentError, "got float"),
        (lambda x: x[:, 0].square().numpy(), ArgumentError, "got ndarray"),
    ],
)
def test_what_is_no_density(density: Callable[[Tensor], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="initial.*" + message):
        DensityOnBox(density, SQUARE)


def test_errors_later_on_name_their_points() -> None:
    """A density that is negative between the points of the quadrature alone."""
    law = DensityOnBox(lambda x: x[:, 0].exp() - 9.0 * (x == 0.5).all(-1), SQUARE)
    with pytest.raises(StartError, match=r"not negative, but is not at 1 points: x\[1\] = \(0.5, 0.5\)") as caught:
        law.log_prob(torch.tensor([[0.0, 0.0], [0.5, 0.5]], dtype=F64))
    assert caught.value.indices.tolist() == [1]
    assert caught.value.points.tolist() == [[0.5, 0.5]]


@pytest.fixture
def every_warning() -> Iterator[None]:
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def test_a_network_is_a_density(every_warning: None) -> None:
    network = nn.Linear(2, 1, dtype=F64)
    law = DensityOnBox(lambda x: network(x)[:, 0].square(), SQUARE)
    assert not law.sample(10, seeded(0)).requires_grad


def test_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = np.polynomial.legendre.leggauss

    def cheap(n: int) -> tuple[np.ndarray, np.ndarray]:
        if n > 2048:  # whose cost grows as n^3
            raise MemoryError(n)
        return rule(n)

    monkeypatch.setattr(np.polynomial.legendre, "leggauss", cheap)
    waves = Waves([-1.0], [3.0], [0.8], 2.0)
    law = DensityOnBox(waves, waves.box)
    assert law.mass == pytest.approx(waves.mass, rel=1e-6)
    torch.testing.assert_close(law.mean, waves.mean, rtol=0, atol=1e-6)
    x = law.sample(N, seeded(0))[:, 0].numpy()
    assert stats.kstest(x, waves.distribution(0)).statistic < KOLMOGOROV


def test_the_score_of_what_torch_does_not_differentiate() -> None:
    """A uniform density, and one of numpy."""
    x = torch.rand(20, 2, dtype=F64, generator=seeded(1))
    assert DensityOnBox(lambda x: torch.ones(len(x)), Box(0.0, 1.0, dim=2)).score(x).eq(0.0).all()
    law = DensityOnBox(lambda x: torch.from_numpy(np.exp(2.0 * x.detach().numpy()[:, 0])), Box(0.0, 1.0, dim=2))
    exact = torch.tensor([2.0, 0.0], dtype=F64).expand(20, 2)
    torch.testing.assert_close(law.score(x), exact, rtol=1e-6, atol=1e-6)


def test_an_edge_of_a_law_inside_the_box_is_a_jump() -> None:
    """Unlike the walls: a uniform law that fills the box has none."""
    box = Box(0.0, 1.0, dim=2)

    def on_box(low: float, high: float) -> DensityOnBox:
        law = Uniform([low, low], [high, high])
        return DensityOnBox(lambda x: law.log_prob(x).exp(), box, law=law)

    assert on_box(0.2, 0.6).has_jump
    assert not on_box(-1.0, 2.0).has_jump


def test_a_law_that_is_hardly_in_the_box_is_drawn_there() -> None:
    """N(0, I) beyond four standard deviations: waiting for its own draws would not end."""
    law = Gaussian([0.0, 0.0], np.eye(2))
    restricted = DensityOnBox(lambda x: law.log_prob(x).exp(), Box(4.0, 5.0, dim=2), law=law)
    x = restricted.sample(2000, seeded(0))
    exact = stats.truncnorm(4.0, 5.0)
    assert float(x.mean()) == pytest.approx(exact.mean(), abs=4.0 * exact.std() / 4000**0.5)
