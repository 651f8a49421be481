"""Potentials between walls: derivatives against automatic differentiation, and that nothing passes the walls."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from small_problems import seeded
from torch import Tensor
from torch.func import grad, jacrev, vmap

from jkosampler.maps import GradientMap
from jkosampler.potentials import ResNetPotential
from jkosampler.walled_potential import WalledPotential

F64 = torch.float64
BOXES = {
    "interval": ([-2.0], [0.5]),
    "square": ([0.0, 0.0], [1.0, 1.0]),
    "unequal sides": ([-1.0, 2.0], [3.0, 2.5]),
    "three sides": ([0.0, -2.0, 1.0], [1.0, 3.0, 1.7]),
}
every_box = pytest.mark.parametrize("box", BOXES)


def corners(box: str) -> tuple[Tensor, Tensor]:
    lower, upper = BOXES[box]
    return torch.tensor(lower, dtype=F64), torch.tensor(upper, dtype=F64)


def walled(box: str, size: float = 0.3, depth: int = 1) -> WalledPotential:
    """One with all terms of the inner potential."""
    lower, upper = corners(box)
    generator = seeded(len(lower))
    inner = ResNetPotential(len(lower), width=5, depth=depth, generator=generator)
    with torch.no_grad():
        for parameter in (inner.output, inner.quadratic, inner.linear):
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=F64)
    return WalledPotential(inner, lower, upper)


def points(box: str, n: int = 9) -> Tensor:
    """Some inside, and some outside, where the potential goes on as its mirror image."""
    lower, upper = corners(box)
    return lower + (upper - lower) * (1.4 * torch.rand(n, len(lower), generator=seeded(7), dtype=F64) - 0.2)


def on_walls(box: str, n: int = 5) -> list[tuple[int, Tensor]]:
    """For either wall of each axis: the axis, and points on that wall."""
    lower, upper = corners(box)
    walls = []
    for axis in range(len(lower)):
        for end in (lower, upper):
            x = lower + (upper - lower) * torch.rand(n, len(lower), generator=seeded(axis), dtype=F64)
            x[:, axis] = end[axis]
            walls.append((axis, x))
    return walls


def reference(potential: WalledPotential, box: str) -> Callable[[Tensor], Tensor]:
    """phi at one point (d,), as it is defined."""
    lower, upper = corners(box)

    def phi(x: Tensor) -> Tensor:
        return potential.inner.value(torch.cos(math.pi * (x - lower) / (upper - lower))[None])[0]

    return phi


@every_box
@pytest.mark.parametrize("depth", [1, 2])
class TestDerivatives:
    def test_value(self, box: str, depth: int) -> None:
        potential, x = walled(box, depth=depth), points(box)
        torch.testing.assert_close(potential.value(x), vmap(reference(potential, box))(x), rtol=1e-12, atol=1e-13)

    def test_gradient(self, box: str, depth: int) -> None:
        potential, x = walled(box, depth=depth), points(box)
        exact = vmap(grad(reference(potential, box)))(x).detach()
        assert float(exact.norm(dim=1).min()) > 1e-4
        for found in (
            potential.gradient(x),
            potential.gradient_and_hessian(x)[0],
            potential.gradient_and_laplacian(x)[0],
        ):
            torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)

    def test_hessian_and_laplacian(self, box: str, depth: int) -> None:
        potential, x = walled(box, depth=depth), points(box)
        exact = vmap(jacrev(grad(reference(potential, box))))(x)
        torch.testing.assert_close(potential.hessian(x), exact, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(potential.gradient_and_hessian(x)[1], exact, rtol=1e-11, atol=1e-11)
        trace = exact.diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(potential.gradient_and_laplacian(x)[1], trace, rtol=1e-11, atol=1e-11)


@every_box
class TestWalls:
    def test_coordinates_fill_the_cube(self, box: str) -> None:
        """From 1 at the lower wall to -1 at the upper one, with derivatives that are those of autograd."""
        potential, (lower, upper) = walled(box), corners(box)
        for end, c in ((lower, 1.0), (upper, -1.0), (0.5 * (lower + upper), 0.0)):
            torch.testing.assert_close(potential.coordinates(end[None])[0], torch.full_like(end[None], c))
        x = points(box).requires_grad_(True)
        c, slope, bend = potential.coordinates(x)
        (first,) = torch.autograd.grad(c.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        torch.testing.assert_close(slope, first)
        torch.testing.assert_close(bend, second)

    def test_nothing_goes_through_them(self, box: str) -> None:
        """cos' of pi is 1e-16: rounding alone."""
        potential = walled(box)
        for axis, x in on_walls(box):
            gradient = potential.gradient(x).detach()
            assert float(gradient[:, axis].abs().max()) < 1e-13
            if x.shape[1] > 1:  # along the wall there is a slope
                assert float(gradient.abs().max()) > 1e-3

    def test_the_map_takes_each_wall_and_the_inside_into_themselves(self, box: str) -> None:
        lower, upper = corners(box)
        step = GradientMap(walled(box, size=0.01))  # small enough not to fold, which a Cholesky factor shows
        for axis, x in on_walls(box):
            y, log_det = step(x)
            torch.testing.assert_close(y[:, axis], x[:, axis], rtol=0, atol=1e-13)
            assert bool(log_det.isfinite().all())
        x = lower + (upper - lower) * torch.rand(500, len(lower), generator=seeded(3), dtype=F64)
        y, log_det = step(x)
        assert bool(log_det.isfinite().all())
        assert bool(((y > lower) & (y < upper)).all())
        assert float((y - x).detach().norm(dim=1).max()) > 1e-3
        back, inverse_log_det = step.inverse(y.detach())
        torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
        torch.testing.assert_close(inverse_log_det, -log_det.detach(), rtol=0, atol=1e-8)

    def test_scaled(self, box: str) -> None:
        potential, x = walled(box), points(box)
        scaled = potential.scaled(-0.7)
        torch.testing.assert_close(scaled.value(x), -0.7 * potential.value(x), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(scaled.gradient(x), -0.7 * potential.gradient(x), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(scaled.hessian(x), -0.7 * potential.hessian(x), rtol=1e-11, atol=1e-11)

    def test_it_has_no_affine_part(self, box: str) -> None:
        potential = walled(box)
        d = len(BOXES[box][0])
        assert (potential.dim, potential.time_input) == (d, False)
        assert torch.equal(potential.quadratic_form(), torch.zeros(d, d, dtype=F64))
        assert torch.equal(potential.linear, torch.zeros(d, dtype=F64))

    def test_float32(self, box: str) -> None:
        """Of points, of the module, or of both; the corners keep the precision of the module."""
        double, x = walled(box), points(box)
        single = walled(box).to(torch.float32)
        assert single.lower.dtype == single.quadratic_form().dtype == single.linear.dtype == torch.float32
        for found in (single.value(x.float()), single.gradient(x.float()), single.hessian(x.float())):
            assert found.dtype == torch.float32
        torch.testing.assert_close(single.gradient(x.float()).double(), double.gradient(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(single.hessian(x.float()).double(), double.hessian(x), rtol=1e-3, atol=1e-3)
        y, _ = GradientMap(walled(box, size=0.01).to(torch.float32)).inverse(x.float())
        assert y.dtype == torch.float32

    def test_state_dict_round_trip(self, box: str) -> None:
        potential, x = walled(box), points(box)
        d = len(BOXES[box][0])
        other = WalledPotential(
            ResNetPotential(d, width=5, depth=1), torch.zeros(d, dtype=F64), torch.ones(d, dtype=F64)
        )
        assert not other.load_state_dict(potential.state_dict()).missing_keys
        assert torch.equal(other.gradient(x), potential.gradient(x))
