"""Maps where they fold or can't be inverted, and their arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError, MapInversionError
from jkosampler.maps import Conjugated, GradientMap, Map, ODEMap
from jkosampler.potentials import ResNetPotential

F64 = torch.float64
CENTRE = torch.tensor([100.0, -7.0], dtype=F64)
FACTOR = torch.tensor([[0.0, -2.0], [0.5, 3.0]], dtype=F64)


def folding_potential(strength: float) -> ResNetPotential:
    """phi = -strength log(2 cosh x_1): x_1 -> x_1 - strength tanh x_1, which folds near 0 for strength > 1."""
    potential = ResNetPotential(2, width=1, depth=1)
    with torch.no_grad():
        potential.weights[0].copy_(torch.tensor([[1.0, 0.0]]))
        potential.biases[0].zero_()
        potential.output.fill_(-strength)
    return potential


def folding_maps() -> dict[str, Map]:
    return {
        "gradient": GradientMap(folding_potential(2.0)),
        "euler": ODEMap(folding_potential(30.0), integrator="euler"),
        "rk4": ODEMap(folding_potential(30.0)),
    }


def points(first: list[float]) -> Tensor:
    column = torch.tensor(first, dtype=F64)
    return torch.stack([column, torch.linspace(-1.0, 2.0, len(first), dtype=F64)], dim=1)


IN_THE_FOLD = points([-40.0, 0.05, 37.0, 0.3])  # rows 1 and 3


@pytest.mark.parametrize("name", folding_maps())
class TestFolds:
    def test_the_inverse_names_the_points_of_the_batch(self, name: str) -> None:
        with pytest.raises(
            MapInversionError, match=r"2 of 4 points.*x\[1\] = \(0\.05, 0\); x\[3\] = \(0\.3, 2\)"
        ) as caught:
            folding_maps()[name].inverse(IN_THE_FOLD)
        np.testing.assert_array_equal(caught.value.indices, [1, 3])
        np.testing.assert_array_equal(caught.value.points, IN_THE_FOLD[[1, 3]])

    def test_in_other_coordinates_it_names_the_points_as_they_were_given(self, name: str) -> None:
        step = Conjugated(folding_maps()[name], CENTRE, FACTOR)
        y = CENTRE + IN_THE_FOLD @ FACTOR.mT
        with pytest.raises(MapInversionError, match=r"x\[1\] = \(100, -6\.975\)") as caught:
            step.inverse(y)
        np.testing.assert_array_equal(caught.value.indices, [1, 3])
        np.testing.assert_array_equal(caught.value.points, y[[1, 3]])

    def test_the_other_points_have_their_inverse(self, name: str) -> None:
        step, y = folding_maps()[name], IN_THE_FOLD[[0, 2]]
        x, log_det = step.inverse(y)
        with torch.no_grad():
            again, forward_log_det = step(x)
        torch.testing.assert_close(again, y, rtol=0, atol=1e-8)
        torch.testing.assert_close(log_det, -forward_log_det, rtol=0, atol=1e-8)

    def test_half_a_step_that_does_not_fold(self, name: str) -> None:
        x = points([-0.2, 0.05, 0.3])
        step = folding_maps()[name]
        with torch.no_grad():
            y, _ = step(x, 0.02)
        torch.testing.assert_close(step.inverse(y, 0.02)[0], x, rtol=0, atol=1e-8)

    def test_many_points_are_summed_up(self, name: str) -> None:
        y = torch.cat([points([40.0]), points([0.01 * k for k in range(1, 26)])])
        with pytest.raises(MapInversionError, match=r"25 of 26 points.*and 22 more") as caught:
            folding_maps()[name].inverse(y)
        np.testing.assert_array_equal(caught.value.indices, np.arange(1, 26))
        np.testing.assert_array_equal(caught.value.points, y[1:11])

    @pytest.mark.parametrize("conjugate", [False, True])
    def test_a_point_that_is_not_a_number_has_no_inverse(self, name: str, conjugate: bool) -> None:
        step = folding_maps()[name]
        step = Conjugated(step, CENTRE, FACTOR) if conjugate else step
        y = CENTRE + 40.0 * torch.eye(2, dtype=F64) @ FACTOR.mT if conjugate else 40.0 * torch.eye(2, dtype=F64)
        y = torch.cat([y[:1], torch.full((1, 2), torch.nan, dtype=F64)])
        with pytest.raises(MapInversionError) as caught:
            step.inverse(y)
        np.testing.assert_array_equal(caught.value.indices, [1])


def test_a_fold_shows_in_the_log_determinant_of_its_own_rows_alone() -> None:
    step = GradientMap(folding_potential(2.0))
    x, score = points([-3.0, 0.1, 2.0]), points([1.0, 2.0, 3.0])
    with torch.no_grad():
        assert step(x)[1].isnan().tolist() == [False, True, False]
        assert step.transport(x)[1].isnan().tolist() == [False, True, False]
    whole, others = step.push(x, score), step.push(x[[0, 2]], score[[0, 2]])
    for found, wanted in zip(whole, others, strict=True):
        torch.testing.assert_close(found[[0, 2]], wanted, rtol=0, atol=1e-14)
    assert bool(whole.log_det[1].isnan())


def test_half_a_turn_keeps_the_area_but_is_no_optimal_map() -> None:
    potential = ResNetPotential(2, depth=0)
    with torch.no_grad():
        potential.quadratic.copy_(-2.0 * torch.eye(2))
    step = GradientMap(potential)
    assert bool(step(points([1.0, 2.0]))[1].isnan().all())
    with pytest.raises(MapInversionError, match="2 of 2 points"):
        step.inverse(points([1.0, 2.0]))


def test_a_jacobian_of_determinant_zero_folds() -> None:
    potential = ResNetPotential(2, depth=0)
    with torch.no_grad():
        potential.quadratic[0, 0] = -1.0
    step = GradientMap(potential)
    assert bool(step(points([1.0, 2.0]))[1].isnan().all())
    with pytest.raises(MapInversionError, match="2 of 2 points"):
        step.inverse(points([0.0, 0.0]))


class TestArguments:
    def test_a_gradient_map_has_no_time(self) -> None:
        with pytest.raises(ArgumentError, match="without time input"):
            GradientMap(ResNetPotential(2, time_input=True))

    def test_an_unknown_integrator(self) -> None:
        with pytest.raises(ArgumentError, match=r"\['euler', 'heun', 'rk4'\], got 'rk5'"):
            ODEMap(ResNetPotential(2), integrator="rk5")

    def test_no_inner_steps(self) -> None:
        with pytest.raises(ArgumentError, match="inner_steps must be at least 1, got 0"):
            ODEMap(ResNetPotential(2), inner_steps=0)
