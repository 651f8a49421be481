"""Metrics: their frames whiten, and in a frame's coordinates a step costs what the metric says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.laws import Gaussian
from jkosampler.maps import GradientMap
from jkosampler.metrics import Frame, KalmanWasserstein, Metric, Wasserstein, as_metric
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential

F64 = torch.float64
MEAN = np.array([5.0, -1.0, 0.3])
ROOT = np.array([[2.0, 0.1, 0.0], [0.4, 0.3, 0.2], [0.0, -0.5, 1.0]])
LAW = Gaussian(MEAN, ROOT @ ROOT.T)
METRICS = [Wasserstein(), KalmanWasserstein()]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=repr)


def weighted_particles(n: int = 200, seed: int = 0) -> tuple[Particles, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(n, generator=generator, dtype=F64) + 0.1
    return Particles.draw(LAW, n, generator), weights / weights.sum()


def moments(x: Tensor, weights: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.average(x.numpy(), axis=0, weights=weights.numpy()), np.cov(x.numpy().T, aweights=weights, bias=True)


def moved(x: Tensor) -> Tensor:
    """Some other points, no affine image of x."""
    return x + 0.3 * torch.sin(3.0 * x) + 0.1


@every_metric
class TestEveryMetric:
    def test_inner_coordinates_and_back(self, metric: Metric) -> None:
        particles, weights = weighted_particles()
        frame = metric.frame(particles, weights)
        inner = frame.to_inner(particles)
        wanted = (particles.x.numpy() - frame.centre.numpy()) @ np.linalg.inv(frame.factor.numpy()).T
        np.testing.assert_allclose(inner.x, wanted, atol=1e-12)
        torch.testing.assert_close(frame.to_outer(inner.x), particles.x, rtol=0, atol=1e-12)
        assert torch.equal(inner.log_rho, particles.log_rho)  # still densities of x, which is what energies see
        mean, covariance = moments(inner.x, weights)
        np.testing.assert_allclose(mean, 0.0, atol=1e-12)
        np.testing.assert_allclose(np.trace(covariance), 3.0, rtol=1e-12)

    def test_the_score_is_the_gradient_in_inner_coordinates(self, metric: Metric) -> None:
        particles, weights = weighted_particles()
        frame = metric.frame(particles, weights)
        inner = frame.to_inner(particles)
        z = inner.x.clone().requires_grad_(True)
        (score,) = torch.autograd.grad(LAW.log_prob(frame.to_outer(z)).sum(), z)
        torch.testing.assert_close(inner.score, score, rtol=0, atol=1e-10)
        unscored = Particles(particles.x, particles.log_rho, None)
        assert frame.to_inner(unscored).score is None

    def test_the_map_of_x_that_a_map_of_z_is(self, metric: Metric) -> None:
        particles, weights = weighted_particles()
        frame = metric.frame(particles, weights)
        potential = ResNetPotential(3, width=4, depth=1, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            potential.output.fill_(0.1)
            step = GradientMap(potential)
            found = frame.conjugate(step).positions(particles.x)
            wanted = frame.to_outer(step.positions(frame.to_inner(particles).x))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)

    def test_repr_and_name(self, metric: Metric) -> None:
        assert repr(metric) == f"{type(metric).__name__}()"
        assert isinstance(as_metric(metric.name), type(metric))
        assert as_metric(metric) is metric


class TestWasserstein:
    def test_the_cost_is_the_squared_length_of_the_way(self) -> None:
        particles, weights = weighted_particles()
        frame = Wasserstein().frame(particles, weights)
        other = Particles(moved(particles.x), particles.log_rho, None)
        way = (frame.to_inner(other).x - frame.to_inner(particles).x).square().sum(1)
        torch.testing.assert_close(frame.cost * way, (other.x - particles.x).square().sum(1), rtol=1e-12, atol=0)

    def test_it_shifts_and_scales_all_axes_alike(self) -> None:
        particles, weights = weighted_particles()
        frame = Wasserstein().frame(particles, weights)
        mean, covariance = moments(particles.x, weights)
        np.testing.assert_allclose(frame.centre, mean, rtol=1e-12)
        np.testing.assert_allclose(frame.factor, np.sqrt(np.trace(covariance) / 3) * np.eye(3), rtol=1e-12)


def with_covariance(covariance: np.ndarray, n: int = 400) -> Particles:
    x = np.random.default_rng(0).standard_normal((n, len(covariance))) @ linalg.cholesky(covariance)
    return Particles(torch.as_tensor(x), torch.zeros(n, dtype=F64), None)


def rotated(values: list[float]) -> np.ndarray:
    turn, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))
    return turn @ np.diag(values) @ turn.T


def equal(particles: Particles) -> Tensor:
    return torch.full((len(particles),), 1.0 / len(particles), dtype=F64)


class TestKalman:
    def test_it_whitens_with_the_symmetric_root(self) -> None:
        particles, weights = weighted_particles()
        frame = KalmanWasserstein().frame(particles, weights)
        mean, covariance = moments(particles.x, weights)
        np.testing.assert_allclose(frame.centre, mean, rtol=1e-12)
        np.testing.assert_allclose(frame.factor, linalg.sqrtm(covariance), atol=1e-12)
        assert frame.cost == 1.0
        np.testing.assert_allclose(moments(frame.to_inner(particles).x, weights)[1], np.eye(3), atol=1e-12)

    def test_the_cost_is_that_of_the_inverse_covariance(self) -> None:
        particles, weights = weighted_particles()
        frame = KalmanWasserstein().frame(particles, weights)
        other = Particles(moved(particles.x), particles.log_rho, None)
        way = (frame.to_inner(other).x - frame.to_inner(particles).x).square().sum(1)
        step = (other.x - particles.x).numpy()
        precision = np.linalg.inv(moments(particles.x, weights)[1])
        np.testing.assert_allclose(frame.cost * way, np.einsum("ni,ij,nj->n", step, precision, step), rtol=1e-11)

    def test_the_cost_does_not_change_under_affine_maps(self) -> None:
        particles, weights = weighted_particles()
        matrix, shift = torch.tensor([[1.0, 2.0, 0.0], [-30.0, 0.1, 4.0], [0.5, 0.5, -2.0]], dtype=F64), 17.0

        def cost(x: Tensor, y: Tensor) -> Tensor:
            frame = KalmanWasserstein().frame(Particles(x, particles.log_rho, None), weights)
            ends = [frame.to_inner(Particles(at, particles.log_rho, None)).x for at in (x, y)]
            return frame.cost * (ends[1] - ends[0]).square().sum(1)

        x, y = particles.x, moved(particles.x)
        image = cost(x @ matrix.mT + shift, y @ matrix.mT + shift)
        torch.testing.assert_close(image, cost(x, y), rtol=1e-9, atol=0)

    def test_a_gradient_in_the_frame_is_the_covariance_times_a_gradient(self) -> None:
        """The flow's velocity C grad phi, with phi(x) the potential at the frame's coordinates of x."""
        particles, weights = weighted_particles()
        frame = KalmanWasserstein().frame(particles, weights)
        potential = ResNetPotential(3, width=4, depth=1, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            potential.output.fill_(0.1)
        x = particles.x.clone().requires_grad_(True)
        inverse = torch.linalg.inv(frame.factor)
        (gradient,) = torch.autograd.grad(potential.value((x - frame.centre) @ inverse.mT).sum(), x)
        covariance = torch.as_tensor(moments(particles.x, weights)[1])
        with torch.no_grad():
            velocity = frame.conjugate(GradientMap(potential)).positions(particles.x) - particles.x
        torch.testing.assert_close(velocity, gradient @ covariance, rtol=0, atol=1e-11)

    @pytest.mark.parametrize(
        ("covariance", "tolerance"),
        [
            (rotated([1e8, 1.0, 1.0]), 1e-7),
            (rotated([1.0, 1e-8, 1e-3]), 1e-7),
            (np.diag([1e8, 1e-8]), 1e-10),  # axes of other units cost no accuracy
        ],
    )
    def test_an_ill_conditioned_covariance(self, covariance: np.ndarray, tolerance: float) -> None:
        particles = with_covariance(covariance)
        weights = equal(particles)
        frame = KalmanWasserstein().frame(particles, weights)
        z = frame.to_inner(particles).x
        np.testing.assert_allclose(moments(z, weights)[1], np.eye(len(covariance)), atol=tolerance)
        torch.testing.assert_close(frame.factor, frame.factor.mT, rtol=0, atol=1e-13 * float(frame.factor.abs().max()))
        assert float(torch.linalg.eigvalsh(frame.factor)[0]) > 0.0

    @pytest.mark.parametrize("last", ["dependent", "zero", "constant", "underflow"])
    def test_a_singular_covariance_is_an_error(self, last: str) -> None:
        x = with_covariance(np.eye(3)).x
        column = {
            "dependent": x[:, 0] - 2.0 * x[:, 1] + 1.0,
            "constant": 3.7,
            "zero": 0.0,
            "underflow": 1e-200 * x[:, 2],
        }
        x[:, 2] = column[last]
        particles = Particles(x, x[:, 0], None)
        with pytest.raises(ArgumentError, match="initial: the covariance of the particles is singular"):
            KalmanWasserstein().frame(particles, equal(particles))

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_fewer_particles_than_dimensions_are_an_error(self, n: int) -> None:
        particles = with_covariance(np.eye(3), n)
        with pytest.raises(ArgumentError, match=f"n_particles={n} is too few .* d=3 dimensions: take at least 30"):
            KalmanWasserstein().frame(particles, equal(particles))


@pytest.mark.parametrize("metric", ["l2", "Kalman", None, 2, Wasserstein], ids=str)
def test_an_unknown_metric_is_an_error(metric: object) -> None:
    with pytest.raises(ArgumentError, match=r"metric must be one of \['kalman', 'wasserstein', 'l2'\]"):
        as_metric(metric)


def test_a_frame_is_plain_data() -> None:
    frame = Frame(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), 1.0)
    torch.testing.assert_close(frame.to_outer(torch.ones(1, 2, dtype=F64)), torch.ones(1, 2, dtype=F64))
