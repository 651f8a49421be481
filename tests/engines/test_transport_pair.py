"""The pair of potentials: its distance in closed form, its derivatives by differences, and what its training does."""

from __future__ import annotations

import pytest
import torch
from oracles import wasserstein_squared
from small_problems import seeded
from torch import Tensor, nn

from jkosampler.domains import Box
from jkosampler.engines.transport_pair import TransportPair
from jkosampler.tangent import Tangent

BOX = Box(-9.0, 9.0, dim=2)
MEANS = torch.zeros(2, dtype=torch.float64), torch.tensor([0.3, -0.2], dtype=torch.float64)
S = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
K = torch.tensor([[1.2, 0.1], [0.1, 0.9]], dtype=torch.float64)  # grad psi = K x + b: from u to rho


class Quadratic(nn.Module):
    """`x' K x / 2 + b . x + c` with a symmetric K."""

    def __init__(self, matrix: Tensor, slope: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.matrix, self.slope = nn.Parameter(matrix.clone()), nn.Parameter(slope.clone())
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        symmetric = (self.matrix + self.matrix.mT) / 2.0
        return ((x @ symmetric) * x).sum(-1) / 2.0 + x @ self.slope + self.constant


def gaussian_weights(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    x, weights = BOX.quadrature(60**2, seeded(0), "gauss")
    p = weights * torch.distributions.MultivariateNormal(mean, covariance).log_prob(x).exp()
    return x, p / p.sum()


def exact_pair(constants: tuple[float, float] = (0.0, 0.0), **options: object) -> TransportPair:
    inverse = torch.linalg.inv(K)
    psi = Quadratic(K, MEANS[1], constants[0])
    return TransportPair(Tangent(psi), Tangent(Quadratic(inverse, -inverse @ MEANS[1], constants[1])), **options)  # type: ignore[arg-type]


class TestDistance:
    @pytest.mark.parametrize("constants", [(0.0, 0.0), (3.0, -40.0)])
    def test_of_gaussians(self, constants: tuple[float, float]) -> None:
        x, u = gaussian_weights(MEANS[0], S)
        y, rho = gaussian_weights(MEANS[1], K @ S @ K)
        exact = wasserstein_squared(MEANS[0].numpy(), S.numpy(), MEANS[1].numpy(), (K @ S @ K).numpy())
        assert float(exact_pair(constants).squared_distance(x, u, y, rho)) == pytest.approx(exact, rel=1e-9)

    def test_any_other_psi_says_less(self) -> None:
        x, u = gaussian_weights(MEANS[0], S)
        y, rho = gaussian_weights(MEANS[1], K @ S @ K)
        pair = exact_pair()
        exact = float(pair.squared_distance(x, u, y, rho))
        for seed in range(4):
            change = 0.1 * torch.randn(2, 2, generator=seeded(seed), dtype=torch.float64)
            other, inverse = K + change + change.mT, torch.linalg.inv(K + change + change.mT)
            psi = Tangent(Quadratic(other, MEANS[1]))
            conjugate = Tangent(Quadratic(inverse, -inverse @ MEANS[1]))
            assert float(TransportPair(psi, conjugate).squared_distance(x, u, y, rho)) < exact

    def test_identity(self) -> None:
        pair = TransportPair.identity(Box(-3.0, 5.0, dim=2), seeded(0), width=10)
        x, weights = Box(-3.0, 5.0, dim=2).quadrature(500, seeded(1))
        for potential in (pair.psi, pair.conjugate):
            assert float((potential.gradient(x) - x).square().sum(1).mean().sqrt()) < 1e-4
        p = weights / weights.sum()
        assert abs(float(pair.squared_distance(x, p, x, p))) < 1e-6


class TestTraining:
    @pytest.mark.parametrize("pair", ["max-min", "joint"])
    @pytest.mark.parametrize("lam", [0.01, 3.0])
    def test_the_slope_is_that_of_differences(self, pair: str, lam: float) -> None:
        potentials, h = exact_pair(pair=pair, lam=lam), 1e-6
        y = BOX.quadrature(20, seeded(2)).x
        ahead = potentials.conjugate.gradient(y) + 0.3

        def loss(s: Tensor) -> Tensor:
            bracket = (s * y).sum(1) - potentials.psi(s)
            cycle = (potentials.psi.gradient(s) - y).square().sum(1)
            return (bracket if pair == "joint" else -bracket) + lam * cycle

        slope = torch.stack([(loss(ahead + h * e) - loss(ahead - h * e)) / (2.0 * h) for e in torch.eye(2).double()], 1)
        torch.testing.assert_close(potentials.conjugate_slope(ahead, y), slope, rtol=1e-6, atol=1e-5)

    @pytest.mark.parametrize(
        ("pair", "lam", "comes_closer"),
        [("max-min", 0.01, True), ("max-min", 50.0, True), ("joint", 1.0, True), ("joint", 0.2, False)],
    )
    def test_the_printed_joint_minimum_needs_a_large_lambda(self, pair: str, lam: float, comes_closer: bool) -> None:
        y, rho = gaussian_weights(MEANS[1], K @ S @ K)
        potentials = exact_pair(pair=pair, lam=lam)
        step = torch.tensor([0.05, 0.0, 0.0, -0.02, 0.03, 0.0], dtype=torch.float64)
        wrong = TransportPair(potentials.psi, potentials.conjugate.moved(step), lam, pair)
        before, now = wrong.cycle(y, rho), wrong
        for _ in range(3):
            now = now.with_trained_conjugate(y, rho)
        assert (now.cycle(y, rho) < before) == comes_closer
        if pair == "max-min":
            assert now.cycle(y, rho) < 1e-2 * before

    @pytest.mark.parametrize(("sd", "least"), [(1.0, 0.5), (1.25, 0.4), (0.8, 0.625)])
    def test_the_printed_joint_minimum_of_gaussians_on_the_line(self, sd: float, least: float) -> None:
        """(2.12) from N(0, 1) back to N(0, sd^2): a minimum for lam > 1 / (2 psi''), else a saddle."""
        x, weights = Box(-12.0, 12.0, dim=1).quadrature(200, seeded(0), "gauss")
        u, rho = (weights * (-0.5 * (x[:, 0] / s).square()).exp() for s in (1.0, sd))
        u, rho = u / u.sum(), rho / rho.sum()

        def objective(slopes: Tensor, lam: float) -> Tensor:
            """(2.12) of psi = a x^2 / 2 and psi-bar = c y^2 / 2."""
            a, c = slopes
            ahead = c * x
            bracket = (ahead * x).sum(1) - 0.5 * a * ahead.square().sum(1)
            return u @ (0.5 * a * x.square().sum(1)) + rho @ (bracket + lam * (a * ahead - x).square().sum(1))

        exact = torch.tensor([sd, 1.0 / sd], dtype=torch.float64)
        for lam, minimum in ((0.95 * least, False), (1.05 * least, True)):
            slope = torch.autograd.functional.jacobian(lambda slopes: objective(slopes, lam), exact)  # noqa: B023
            bends = torch.autograd.functional.hessian(lambda slopes: objective(slopes, lam), exact)  # noqa: B023
            assert float(slope.abs().max()) < 1e-9
            assert bool((torch.linalg.eigvalsh(bends) > 0.0).all()) is minimum
