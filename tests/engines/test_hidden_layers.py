"""Hidden layers: what random units span, and the frequencies that a pursuit finds."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jkosampler.domains import Box, Domain, LShape
from jkosampler.engines.hidden_layers import band_limited, band_of, pursued
from jkosampler.fields import CosineField

F64 = torch.float64
SIX = Box(-1.0, 2.0, dim=6)  # half sides 1.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(layer: CosineField, x: Tensor, values: Tensor, weights: Tensor | None = None) -> CosineField:
    """The layer with its best last layer, by LAPACK's truncated least squares."""
    root = torch.ones_like(values) if weights is None else weights.sqrt()
    design = root[:, None] * layer.angles(x).cos()
    solved = torch.linalg.lstsq(design, (root * values)[:, None], driver="gelsd", rcond=1e-13)
    return layer.with_coefficients(solved.solution[:, 0])


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class TestBandLimited:
    @pytest.mark.parametrize(("d", "n_units"), [(1, 1001), (2, 4000), (3, 3000)])
    def test_band_has_half_as_many_waves_as_units(self, d: int, n_units: int) -> None:
        """The waves exp(i pi k . y) of a cube of side 2, counted; the count of a ball is its volume within 1 %."""
        band = band_of(n_units, d) / math.pi
        axis = torch.arange(-math.ceil(band), math.ceil(band) + 1, dtype=F64)
        lattice = torch.cartesian_prod(*[axis] * d).reshape(-1, d)
        assert 2 * int((lattice.norm(dim=1) <= band).sum()) == pytest.approx(n_units, rel=0.01)

    @pytest.mark.parametrize("d", [1, 2, 3, 5])
    def test_frequencies_fill_the_ball_evenly(self, d: int) -> None:
        n = 2000
        layer = band_limited(Box(-1.0, 3.0, dim=d), n, generator())
        assert len(layer.phases) == len(layer.frequencies) == n
        assert layer.frequencies[0].eq(0.0).all()
        assert layer.phases[0] == 0.0  # the constant
        w = layer.frequencies[1:] / band_of(n, d)
        radius = w.norm(dim=1)
        assert 0.99 < radius.max() <= 1.0
        # moments of the ball; Sobol's points are nearer to them than the draws whose error this is
        for values, expected in ((w, 0.0), (w**2, 1 / (d + 2)), (radius[:, None] ** d, 0.5)):
            assert ((values.mean(0) - expected).abs() < 4.0 * values.std(0) / math.sqrt(n)).all()
        turns = layer.phases[1:] / (2.0 * math.pi)
        assert 0.0 <= turns.min() < turns.max() <= 1.0
        assert abs(float(turns.mean()) - 0.5) < 4.0 / math.sqrt(12 * n)

    def test_it_is_in_the_coordinates_of_the_box_and_reproducible(self) -> None:
        domain = Box([-1.0, 2.0], [3.0, 8.0])
        layer, again, other = (band_limited(domain, 50, generator(seed)) for seed in (1, 1, 2))
        assert layer.center.tolist() == [1.0, 5.0]
        assert layer.scale.tolist() == [2.0, 3.0]
        for name in ("frequencies", "phases"):
            assert torch.equal(getattr(layer, name), getattr(again, name))
            assert not torch.equal(getattr(layer, name), getattr(other, name))

    @pytest.mark.parametrize(
        ("domain", "n_units"), [(Box(-2.0, 2.0), 40), (Box([-1.0, 0.0], [1.0, 3.0]), 600), (LShape(), 600)], ids=str
    )
    def test_units_span_a_smooth_function(self, domain: Domain, n_units: int) -> None:
        def smooth(x: Tensor) -> Tensor:
            return (0.5 * x[:, 0] * x[:, -1]).exp() * (x[:, 0] + 2.0 * x[:, -1]).cos()

        x, weights = domain.quadrature(50**domain.dim, generator(1), "gauss")
        field = fitted(band_limited(domain, n_units, generator()), x, smooth(x), weights)
        fresh = domain.sample(1000, generator(2))
        assert relative(field(fresh), smooth(fresh)) < 1e-6


def waves(x: Tensor) -> Tensor:
    """Three cosines; their frequencies in coordinates of the cube [-1, 1]^6 are the rows of WAVES."""
    first, second = (2.0 * x[:, 0]).cos(), (3.0 * x[:, 1] - x[:, 3] + 0.4).cos()
    return 1.0 + first + 0.5 * second - 0.7 * (1.5 * x[:, 2] + 2.5 * x[:, 4] + x[:, 5] - 1.0).cos()


WAVES = 1.5 * torch.tensor(
    [[2.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.5, 0.0, 2.5, 1.0]], dtype=F64
)


def ridge(x: Tensor) -> Tensor:
    return (x @ torch.tensor([1.0, -0.5, 0.3, 0.0, 0.8, 0.2], dtype=F64)).tanh()


def pursue(
    function: Callable[[Tensor], Tensor], n_units: int, frequencies: Tensor | None = None, seed: int = 0
) -> tuple[CosineField, float]:
    """The pursuit's layer and misfit; the latter against that of another solver of the last layer."""
    draws = generator(seed)
    x, fresh = (SIX.quadrature(1024, draws).x for _ in range(2))
    layer, misfit = pursued(
        SIX, x, function(x), fresh, function(fresh), n_units=n_units, generator=draws, frequencies=frequencies
    )
    assert relative(fitted(layer, x, function(x))(fresh), function(fresh)) == pytest.approx(misfit, rel=0.05, abs=1e-7)
    return layer, misfit


def found(layer: CosineField) -> Tensor:
    """A layer's frequencies (m, d): after the constant all cosines, then their sines."""
    m = len(layer.phases) // 2
    cosines, sines = layer.frequencies[1:].tensor_split(2)
    assert layer.frequencies[0].eq(0.0).all()
    assert torch.equal(cosines, sines)
    torch.testing.assert_close(layer.phases[m + 1 :].cos(), torch.zeros(m, dtype=F64))
    assert layer.phases[: m + 1].eq(0.0).all()
    return cosines


def distance(frequencies: Tensor, wanted: Tensor) -> Tensor:
    """From each wanted frequency to the nearest one, whose sign doesn't matter."""
    return torch.minimum(torch.cdist(wanted, frequencies), torch.cdist(wanted, -frequencies)).amin(1)


class TestPursued:
    def test_it_finds_the_frequencies_of_cosines(self) -> None:
        layer, misfit = pursue(waves, 49)
        assert misfit < 1e-6
        assert len(found(layer)) == 3  # no more than there are
        assert distance(found(layer), WAVES).max() < 1e-5
        again, _ = pursue(waves, 49)
        assert torch.equal(layer.frequencies, again.frequencies)

    def test_a_ridge_that_is_no_sum_of_waves_is_left_with_little(self) -> None:
        layer, misfit = pursue(ridge, 33)
        assert 1e-6 < misfit < 5e-3
        assert len(layer.phases) <= 33

    @pytest.mark.parametrize(("n_units", "most"), [(1, 0), (2, 0), (3, 1), (6, 2)])
    def test_it_keeps_to_its_number_of_units(self, n_units: int, most: int) -> None:
        layer, misfit = pursue(waves, n_units)
        assert len(found(layer)) == most
        assert len(layer.phases) == 1 + 2 * most
        assert misfit > 0.1  # too few for three waves

    def test_a_layer_that_suffices_stays_as_it_is(self) -> None:
        layer, misfit = pursue(waves, 49, WAVES)
        assert torch.equal(found(layer), WAVES)
        assert misfit < 1e-7

    def test_known_frequencies_are_where_it_goes_on(self) -> None:
        """What is left of a field after two of its three waves is the third."""
        layer, misfit = pursue(waves, 7, WAVES[:2])
        assert misfit < 1e-6
        assert distance(found(layer), WAVES).max() < 1e-5
        _, without = pursue(waves, 5, WAVES[:2])  # no room for another
        assert without == pytest.approx(0.7 / math.sqrt(2.0 + 1.0 + 0.25 + 0.49), rel=0.1)

    def test_a_constant_needs_no_waves(self) -> None:
        layer, misfit = pursue(lambda x: torch.full_like(x[:, 0], 3.0), 9)
        assert len(layer.phases) == 1
        assert misfit < 1e-9
