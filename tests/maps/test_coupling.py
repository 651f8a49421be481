"""Coupling maps against autograd, and which coordinates their layers part."""

from __future__ import annotations

import pytest
import torch
from small_problems import seeded
from torch import Tensor
from torch.autograd.functional import jacobian

from jkosampler.maps import CouplingMap, fewest_layers

D = torch.float64
CASES = pytest.mark.parametrize(("d", "n_layers"), [(2, 2), (3, 6), (7, 6)])


def trained(d: int, n_layers: int, size: float = 0.1) -> CouplingMap:
    """A map whose parameters are not those of the identity."""
    step = CouplingMap(d, n_layers, 8, generator=seeded(0))
    with torch.no_grad():
        for parameter in step.parameters():
            parameter += size * torch.randn(parameter.shape, generator=seeded(parameter.numel()), dtype=D)
    return step


def points(d: int, n: int = 6) -> Tensor:
    return torch.randn(n, d, generator=seeded(1), dtype=D)


@CASES
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_log_det_is_that_of_the_jacobian(d: int, n_layers: int, fraction: float) -> None:
    step, x = trained(d, n_layers), points(d)
    with torch.no_grad():
        _, log_det = step(x, fraction)
    for row, found in zip(x, log_det, strict=True):
        exact = torch.linalg.slogdet(jacobian(lambda y: step(y[None], fraction)[0][0], row))
        assert exact.sign == 1.0
        assert float(found) == pytest.approx(float(exact.logabsdet), abs=1e-9)


@CASES
@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_inverse(d: int, n_layers: int, fraction: float) -> None:
    step, x = trained(d, n_layers, 0.1), points(d)
    y, log_det = step(x, fraction)
    back, inverse_log_det = step.inverse(y, fraction)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0.0)
    torch.testing.assert_close(inverse_log_det, -log_det.detach(), atol=1e-9, rtol=0.0)
    assert not back.requires_grad


@CASES
def test_scores_follow_the_jacobian(d: int, n_layers: int) -> None:
    step, x = trained(d, n_layers), points(d)
    score = torch.randn(len(x), d, generator=seeded(2), dtype=D)
    pushed = step.push(x, score)
    moved, log_det = step(x)
    torch.testing.assert_close(pushed.x, moved.detach())
    torch.testing.assert_close(pushed.log_det, log_det.detach())
    torch.testing.assert_close(step.positions(x), moved)
    for row, before, after in zip(x, score, pushed.score, strict=True):
        turn = jacobian(lambda y: step(y[None])[0][0], row)
        slope = jacobian(lambda y: step(y[None])[1][0], row)
        torch.testing.assert_close(turn.mT @ after, before - slope, atol=1e-8, rtol=1e-8)


@CASES
def test_the_initial_velocity_is_the_slope_of_the_way(d: int, n_layers: int) -> None:
    step, x, h = trained(d, n_layers), points(d), 1e-6
    with torch.no_grad():
        velocity, divergence = step.initial_velocity(x)
        ahead, log_det = step(x, h)
        moved, whole, cost = step.transport(x)
    torch.testing.assert_close(velocity, (ahead - x) / h, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(divergence, log_det / h, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cost, (moved - x).square().sum(1))
    torch.testing.assert_close(whole, step(x)[1].detach())


def test_it_begins_as_the_identity() -> None:
    x = points(4)
    y, log_det = CouplingMap(4, 6, 8, generator=seeded(0))(x)
    assert bool((y == x).all())
    assert bool((log_det == 0.0).all())


def test_no_point_overflows() -> None:
    step = trained(3, 6, 3.0)
    for far in (1e2, 1e4):
        pushed = step.push(far * points(3), points(3))
        for values in pushed:
            assert bool(values.isfinite().all())


@pytest.mark.parametrize("d", [2, 3, 8, 10, 33])
def test_every_coordinate_can_depend_on_every_other(d: int) -> None:
    """The layers, in any order of two coordinates, keep one and move the other at least once."""
    assert fewest_layers(d) == 2 * (d - 1).bit_length()
    step = CouplingMap(d, fewest_layers(d), 4, generator=seeded(0))
    parted = torch.zeros(d, d, dtype=torch.bool)
    for layer in step.layers:
        kept, moved = (torch.as_tensor(getattr(layer, name)) for name in ("kept", "moved"))
        assert len(kept) + len(moved) == d
        parted |= torch.isin(torch.arange(d), kept).unsqueeze(1) & torch.isin(torch.arange(d), moved)
    assert bool((parted | torch.eye(d, dtype=torch.bool)).all())
