"""Networks as functions of their parameters: every derivative against differences; convexity at random parameters."""

from __future__ import annotations

import pytest
import torch
from small_problems import seeded
from torch import Tensor

from jkosampler.tangent import InputConvex, Tangent, gram

CENTER, SCALE = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)


def network(seed: int = 0, width: int = 5, depth: int = 3) -> InputConvex:
    return InputConvex(CENTER, SCALE, width=width, depth=depth, generator=seeded(seed))


def points(n: int, seed: int = 1) -> Tensor:
    return CENTER + SCALE * (2.0 * torch.rand(n, 2, generator=seeded(seed), dtype=torch.float64) - 1.0)


def shaken(tangent: Tangent, seed: int = 2, size: float = 0.5) -> Tangent:
    return tangent.moved(size * torch.randn(len(tangent.theta), generator=seeded(seed), dtype=torch.float64))


class TestInputConvex:
    @pytest.mark.parametrize("seed", range(5))
    def test_hessians_have_no_negative_eigenvalue(self, seed: int) -> None:
        f = shaken(Tangent(network(seed)), seed, size=2.0)
        hessians = torch.func.vmap(torch.func.jacrev(torch.func.grad(f)))(points(50))
        assert float(torch.linalg.eigvalsh(hessians).min()) > -1e-10

    def test_a_negative_weight_would_break_it(self) -> None:
        net = network(depth=1)
        with torch.no_grad():
            net.root.zero_()
        f = Tangent(net)
        hessians = torch.func.vmap(torch.func.jacrev(torch.func.grad(lambda x: -f(x))))(points(50))
        assert float(torch.linalg.eigvalsh(hessians).min()) < -1e-4

    def test_the_gradient_is_near_the_identity_at_first(self) -> None:
        x = points(200)
        moved = Tangent(network()).gradient(x) - x
        assert float((moved / SCALE.mean()).abs().mean()) < 0.2


class TestTangent:
    def test_derivatives_are_those_of_differences(self) -> None:
        f, x, h = shaken(Tangent(network())), points(6), 1e-6
        gradient = torch.stack([(f(x + h * e) - f(x - h * e)) / (2.0 * h) for e in torch.eye(2).double()], 1)
        torch.testing.assert_close(f.gradient(x), gradient, rtol=1e-6, atol=1e-7)
        steps = h * torch.eye(len(f.theta), dtype=torch.float64)
        jacobian = torch.stack([(f.moved(s)(x) - f.moved(-s)(x)) / (2.0 * h) for s in steps], -1)
        torch.testing.assert_close(f.jacobian(x), jacobian, rtol=1e-6, atol=1e-7)
        bends = torch.stack([(f.moved(s).gradient(x) - f.moved(-s).gradient(x)) / (2.0 * h) for s in steps], -1)
        torch.testing.assert_close(f.gradient_jacobian(x), bends, rtol=1e-6, atol=1e-7)

    def test_products_without_the_matrix(self) -> None:
        f, x, generator = shaken(Tangent(network())), points(7), seeded(3)
        v, w = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((7,), (7, 2)))
        torch.testing.assert_close(f.pulled(x, v), v @ f.jacobian(x))
        torch.testing.assert_close(f.pulled_gradient(x, w), torch.einsum("nd,ndp->p", w, f.gradient_jacobian(x)))

    def test_gram(self) -> None:
        f, x = Tangent(network()), points(7)
        weights, bends = torch.rand(7, generator=seeded(4), dtype=torch.float64), f.gradient_jacobian(x)
        torch.testing.assert_close(gram(bends, weights), torch.einsum("n,ndp,ndq->pq", weights, bends, bends))
        torch.testing.assert_close(gram(f.jacobian(x), weights), (weights * f.jacobian(x).mT) @ f.jacobian(x))

    def test_the_network_itself_stays(self) -> None:
        net = network()
        f = Tangent(net)
        before = f(points(3))
        shaken(f)
        torch.testing.assert_close(net(points(3)), before, rtol=0.0, atol=0.0)
