"""The inverse of a map as a map: positions, log determinants and scores against autograd of S written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from small_problems import seeded
from torch import Tensor
from torch.func import grad, jacrev, vmap

from jkosampler.errors import MapInversionError
from jkosampler.maps import Conjugated, DisplacementMap, GradientMap, Inverted, Map, RidgeField
from jkosampler.potentials import ResNetPotential
from jkosampler.walled_potential import WalledPotential

F64 = torch.float64
WIDTH, N = 6, 8
LOWER, UPPER = torch.tensor([-1.0, 0.5], dtype=F64), torch.tensor([1.0, 3.5], dtype=F64)
FRACTIONS = [0.0, 0.3, 1.0]
Point = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """A map S, the same at one point (d,) by hand, and points (n, d)."""

    backward: GradientMap | DisplacementMap
    by_hand: Point
    x: Tensor


def random_potential(dim: int, size: float, seed: int = 0) -> ResNetPotential:
    generator = seeded(seed + dim)
    potential = ResNetPotential(dim, width=WIDTH, depth=1, generator=generator)
    with torch.no_grad():
        for parameter in (potential.output, potential.quadratic, potential.linear):
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=F64)
    return potential


def phi_by_hand(potential: ResNetPotential) -> Point:
    c, w, b = (p.detach() for p in (potential.output, potential.weights[0], potential.biases[0]))
    a, linear = potential.quadratic.detach(), potential.linear.detach()
    return lambda z: c @ torch.cosh(w @ z + b).mul(2.0).log() + 0.5 * z @ a @ z + linear @ z


def along_gradient(dim: int, seed: int = 0) -> Case:
    potential = random_potential(dim, 0.07, seed)
    slope = grad(phi_by_hand(potential))
    return Case(
        GradientMap(potential), lambda z: z + slope(z), torch.randn(N, dim, generator=seeded(9), dtype=F64) + 0.5
    )


def between_walls(seed: int = 0) -> Case:
    potential = random_potential(2, 0.02, seed)
    inner = phi_by_hand(potential)
    slope = grad(lambda z: inner(torch.cos(math.pi * (z - LOWER) / (UPPER - LOWER))))
    x = LOWER + (UPPER - LOWER) * torch.rand(N, 2, generator=seeded(9), dtype=F64)
    return Case(GradientMap(WalledPotential(potential, LOWER, UPPER)), lambda z: z + slope(z), x)


def turning(seed: int = 0) -> Case:
    field = RidgeField(2, WIDTH)
    field.set(0.1 * torch.randn(len(field.get()), generator=seeded(seed), dtype=F64))
    with torch.no_grad():
        field.weight += torch.randn(WIDTH, 2, generator=seeded(seed + 1), dtype=F64)
    directions = (field.output.unsqueeze(1) * field.weight + field.extra).detach()
    w, b, linear, matrix = (p.detach() for p in (field.weight, field.bias, field.linear, field.matrix()))
    return Case(
        DisplacementMap(field),
        lambda z: z + torch.tanh(w @ z + b) @ directions + matrix @ z + linear,
        torch.randn(N, 2, generator=seeded(9), dtype=F64),
    )


CASES: dict[str, Callable[[], Case]] = {
    "line": lambda: along_gradient(1),
    "space": lambda: along_gradient(3),
    "walls": between_walls,
    "turning": turning,
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def jacobians(function: Point, z: Tensor) -> Tensor:
    return vmap(jacrev(function))(z)


def log_dets(jacobian: Tensor) -> Tensor:
    sign, value = torch.linalg.slogdet(jacobian)
    assert bool((sign > 0.0).all())
    return value


def test_forward_solves_for_the_preimage(case: Case) -> None:
    z, log_det = Inverted(case.backward)(case.x)
    torch.testing.assert_close(vmap(case.by_hand)(z), case.x, rtol=0, atol=1e-9)  # ten times the inverse's tolerance
    torch.testing.assert_close(log_det, -log_dets(jacobians(case.by_hand, z)), rtol=0, atol=1e-9)
    assert float((z - case.x).norm(dim=1).max()) > 0.05
    assert float(log_det.abs().max()) > 0.05
    torch.testing.assert_close(Inverted(case.backward).positions(case.x), z, rtol=0, atol=0)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_fractions_lie_on_straight_lines(case: Case, fraction: float) -> None:
    """x_s = (1 - s) x + s T(x); with z = T(x), Dx_s/dx = (s I + (1 - s) DS(z)) DS(z)^-1."""
    step = Inverted(case.backward)
    part, log_det = step(case.x, fraction)
    z, _ = step(case.x)
    torch.testing.assert_close(part, torch.lerp(case.x, z, fraction), rtol=0, atol=1e-9)
    backward = jacobians(case.by_hand, z)
    stretched = (1.0 - fraction) * backward + fraction * torch.eye(case.x.shape[1], dtype=F64)
    torch.testing.assert_close(log_det, log_dets(stretched @ torch.linalg.inv(backward)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_inverse_undoes_forward(case: Case, fraction: float) -> None:
    step = Inverted(case.backward)
    y, log_det = step(case.x, fraction)
    back, inverse_log_det = step.inverse(y, fraction)
    torch.testing.assert_close(back, case.x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


def test_inverse_is_the_backward_map(case: Case) -> None:
    y, log_det = Inverted(case.backward).inverse(case.x)
    torch.testing.assert_close(y, vmap(case.by_hand)(case.x), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_det, log_dets(jacobians(case.by_hand, case.x)), rtol=0, atol=1e-12)
    assert not y.requires_grad
    assert not log_det.requires_grad


def test_push_carries_the_score(case: Case) -> None:
    """The density of T(x) for x ~ N(0.2, I) is N(S(z)) det DS(z)."""

    def log_density(z: Tensor) -> Tensor:
        return -0.5 * (case.by_hand(z) - 0.2).square().sum() + torch.linalg.slogdet(jacrev(case.by_hand)(z))[1]

    step = Inverted(case.backward)
    pushed = step.push(case.x, 0.2 - case.x)
    z, log_det = step(case.x)
    torch.testing.assert_close(pushed.x, z, rtol=0, atol=0)
    torch.testing.assert_close(pushed.log_det, log_det, rtol=0, atol=0)
    torch.testing.assert_close(pushed.score, vmap(grad(log_density))(z), rtol=0, atol=1e-8)
    assert not any(part.requires_grad for part in pushed)


def test_in_other_coordinates() -> None:
    case, centre = along_gradient(2), torch.tensor([1.0, -2.0], dtype=F64)
    factor = torch.tensor([[1.5, 0.2], [-0.4, 0.8]], dtype=F64)
    step: Map = Conjugated(Inverted(case.backward), centre, factor)
    y, log_det = step(case.x, 0.3)
    back, inverse_log_det = step.inverse(y, 0.3)
    torch.testing.assert_close(back, case.x, rtol=0, atol=1e-8)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-8)
    plain = Conjugated(case.backward, centre, factor)(step(case.x)[0])
    torch.testing.assert_close(plain[0], case.x, rtol=0, atol=1e-8)


def test_float32() -> None:
    case = along_gradient(3)
    step, reference = Inverted(case.backward), Inverted(case.backward).push(case.x, -case.x)
    pushed = step.to(torch.float32).push(case.x.float(), -case.x.float())
    for found, wanted in zip(pushed, reference, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)


class TestFolds:
    """S(z) = z - 1.5 tanh z turns back for |z| < .66, and T jumps over that."""

    @staticmethod
    def step() -> Inverted:
        potential = ResNetPotential(1, width=1, depth=1)
        with torch.no_grad():
            potential.weights[0].fill_(1.0)
            potential.biases[0].zero_()
            potential.output.fill_(-1.5)
        return Inverted(GradientMap(potential))

    @pytest.mark.parametrize("fraction", [0.3, 1.0])
    def test_forward_is_nan_there_and_nowhere_else(self, fraction: float) -> None:
        x = torch.tensor([[2.0], [0.0], [-3.0], [0.0]], dtype=F64)  # 0 = S(0), where S' = -1/2
        y, log_det = self.step()(x, fraction)
        assert y.isnan().squeeze(1).tolist() == log_det.isnan().tolist() == [False, True, False, True]
        kept = torch.tensor([0, 2])
        alone = self.step()(x[kept], fraction)
        torch.testing.assert_close(y[kept], alone[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(log_det[kept], alone[1], rtol=0, atol=1e-12)
        if fraction == 1.0:
            torch.testing.assert_close(y - 1.5 * torch.tanh(y), x.where(~y.isnan(), y), equal_nan=True)

    def test_push_is_nan_there_and_nowhere_else(self) -> None:
        x = torch.tensor([[2.0], [0.0], [-3.0]], dtype=F64)
        for part in self.step().push(x, -x):
            assert part.reshape(3).isnan().tolist() == [False, True, False]

    def test_a_part_of_the_way_that_folds_names_its_points(self) -> None:
        """y = S_(0.9)(z): of slope 1 - 1.35 at the origin."""
        y = torch.tensor([[2.0], [0.0], [-3.0]], dtype=F64)
        with pytest.raises(MapInversionError, match=r"1 of 3 points.*x\[1\] = \(0\)") as caught:
            self.step().inverse(y, 0.1)
        assert caught.value.indices.tolist() == [1]
        assert caught.value.points.tolist() == [[0.0]]

    @pytest.mark.parametrize("fraction", [0.9, 1.0])
    def test_the_whole_way_back_through_a_fold_names_its_points(self, fraction: float) -> None:
        with pytest.raises(MapInversionError) as caught:  # S_(0.1) does not fold, but S does
            self.step().inverse(torch.tensor([[2.0], [0.0], [-3.0]], dtype=F64), fraction)
        assert caught.value.indices.tolist() == [1]
