"""Chains of maps: what a fraction makes of them, laws at times in between, points without an inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_problems import random_map
from torch import Tensor

from jkosampler.errors import MapInversionError
from jkosampler.flow import FittedFlow
from jkosampler.laws import Gaussian, Normal
from jkosampler.maps import Chain, GradientMap
from jkosampler.potentials import ResNetPotential

F64 = torch.float64
SHARES = (0.5, 0.125, 0.375)
LAW = Gaussian([0.3, -0.2], [[1.0, 0.3], [0.3, 0.5]])


def parts() -> list[GradientMap]:
    return [random_map("gradient", 2, seed=seed, size=0.15) for seed in (1, 2, 3)]


def chain() -> Chain:
    return Chain(parts(), SHARES)


def points(n: int = 6) -> Tensor:
    return LAW.sample((n,), generator=torch.Generator().manual_seed(0))


class TestFractions:
    @pytest.mark.parametrize(
        ("fraction", "fractions"),
        [
            (0.0, []),
            (0.125, [0.25]),
            (0.5, [1.0]),
            (0.5625, [1.0, 0.5]),
            (0.625, [1.0, 1.0]),
            (0.8125, [1.0, 1.0, 0.5]),
            (1.0, [1.0, 1.0, 1.0]),
        ],
    )
    def test_the_first_maps_are_made_whole_and_the_next_in_part(self, fraction: float, fractions: list[float]) -> None:
        x, log_det = points(), torch.zeros(6, dtype=F64)
        with torch.no_grad():
            for step, part in zip(parts(), fractions, strict=False):
                x, change = step(x, part)
                log_det = log_det + change
            moved, found = chain()(points(), fraction)
            back, inverse = chain().inverse(moved, fraction)
        torch.testing.assert_close(moved, x, rtol=0, atol=1e-14)
        torch.testing.assert_close(found, log_det, rtol=0, atol=1e-14)
        torch.testing.assert_close(back, points(), rtol=0, atol=1e-9)
        torch.testing.assert_close(inverse, -log_det, rtol=0, atol=1e-9)

    def test_paths_are_continuous(self) -> None:
        """Across the ends of the stages: fractions a hair apart are points a hair apart."""
        step, x = chain(), points()
        with torch.no_grad():
            for fraction in (0.5, 0.625):
                before, after = (step(x, fraction + h)[0] for h in (-1e-9, 1e-9))
                assert float((after - before).abs().max()) < 1e-7

    def test_shares_that_round_make_the_whole_step(self) -> None:
        """Sums of shares end a rounding error beside one; the whole step takes no notice of it."""
        thirds = Chain(parts(), [1.0 / 3.0] * 3)
        tenths = Chain([*parts(), *parts()], [0.1, 0.2, 0.1, 0.2, 0.1, 1.0 - sum([0.1, 0.2, 0.1, 0.2, 0.1])])
        with torch.no_grad():
            for step, n in ((thirds, 1), (tenths, 2)):
                x = points()
                for part in parts() * n:
                    x = part(x)[0]
                torch.testing.assert_close(step(points())[0], x, rtol=0, atol=1e-14)
                torch.testing.assert_close(step.positions(points()), x, rtol=0, atol=1e-13)


class TestLaws:
    TIMES = (0.02, 0.1, 0.2, 0.21, 0.25, 0.3, 0.4)

    def test_densities_between_integrate_to_one(self) -> None:
        law = Normal(0.2, 0.8)
        maps = [random_map("gradient", 1, seed=seed, size=0.15) for seed in (4, 5, 6)]
        flow = FittedFlow(law, law, [Chain(maps, SHARES)], (0.0, 0.4))
        x = torch.linspace(-12.0, 12.0, 6001, dtype=F64)
        for t in self.TIMES:
            density = flow.log_density(x[:, None], t=t).exp()
            assert float(torch.trapezoid(density, x)) == pytest.approx(1.0, abs=1e-9)

    def test_pull_back_agrees_with_the_density_carried_along(self) -> None:
        flow = FittedFlow(LAW, LAW, [chain(), chain()], (0.0, 0.4, 0.6))
        for t in (*self.TIMES, 0.47, 0.5, 0.55, 0.6):
            x, log_density = flow.sample_with_log_density(50, t=t, generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(flow.log_density(x, t=t), log_density, rtol=0, atol=1e-7)
            same = flow.sample(50, t=t, generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(same, x, rtol=0, atol=1e-13)


def test_points_without_inverse_are_those_of_the_caller() -> None:
    """The first map folds; the second one, inverted before it, shifts all points by (5, 0)."""
    folding, shift = ResNetPotential(2, width=1, depth=1), ResNetPotential(2, depth=0)
    with torch.no_grad():
        folding.weights[0].copy_(torch.tensor([[1.0, 0.0]]))
        folding.biases[0].zero_()
        folding.output.fill_(-2.0)  # x_1 - 2 tanh x_1
        shift.linear.copy_(torch.tensor([5.0, 0.0]))
    step = Chain([GradientMap(folding), GradientMap(shift)], [0.5, 0.5])
    y = torch.tensor([[-35.0, 1.0], [5.05, 0.0], [42.0, 0.5], [5.3, 2.0]], dtype=F64)
    with pytest.raises(MapInversionError, match=r"x\[1\] = \(5\.05, 0\); x\[3\] = \(5\.3, 2\)") as caught:
        step.inverse(y)
    np.testing.assert_array_equal(caught.value.indices, [1, 3])
    np.testing.assert_array_equal(caught.value.points, y[[1, 3]])
