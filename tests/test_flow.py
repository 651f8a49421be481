"""A fitted flow of maps whose laws are known: its draws, its density at any time, and the two against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from jkosampler import flow as module
from jkosampler import particles as particles_module
from jkosampler.errors import ArgumentError, MapInversionError
from jkosampler.flow import FittedFlow
from jkosampler.laws import Gaussian, Mixture, Normal, Uniform
from jkosampler.maps import Conjugated, GradientMap, ODEMap
from jkosampler.potentials import ResNetPotential

F64 = torch.float64
MEAN, COVARIANCE = np.array([0.0, 0.5]), np.array([[1.0, 0.3], [0.3, 0.5]])
LAW = Gaussian(MEAN, COVARIANCE)
# The exact JKO step of KL(. | N(b, A^-1)), A = [[2, .5], [.5, 1]], b = (1, -1), tau = .3, and then another map.
JKO_MATRIX = np.array([[0.88535073, -0.19252897], [-0.19252897, 1.23311183]])
JKO_MEAN = np.array([0.25880923, 0.23936817])
JKO_COVARIANCE = np.array([[0.70010622, 0.04948062], [0.04948062, 0.65490395]])
STEPS = [
    (JKO_MATRIX, JKO_MEAN - JKO_MATRIX @ MEAN),
    (np.array([[0.6, 0.4], [0.4, 1.9]]), np.array([-2.0, 5.0])),
]
TIMES = (0.0, 0.3, 0.8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def affine(matrix: np.ndarray, shift: np.ndarray) -> GradientMap:
    """x -> matrix x + shift."""
    potential = ResNetPotential(len(shift), depth=0)
    with torch.no_grad():
        potential.quadratic.copy_(torch.as_tensor(matrix - np.eye(len(shift))))
        potential.linear.copy_(torch.as_tensor(shift))
    return GradientMap(potential)


def gaussian_flow() -> FittedFlow:
    return FittedFlow(LAW, LAW, [affine(*step) for step in STEPS], TIMES)


def exact_moments(t: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the Gaussian at time t, with the displacement inside a step."""
    mean, covariance = MEAN, COVARIANCE
    for (matrix, shift), start, end in zip(STEPS, TIMES[:-1], TIMES[1:], strict=True):
        part = min(max((t - start) / (end - start), 0.0), 1.0)
        matrix = (1.0 - part) * np.eye(2) + part * matrix
        mean, covariance = matrix @ mean + part * shift, matrix @ covariance @ matrix.T
    return mean, covariance


def bent(kind: type[GradientMap] | type[ODEMap], dim: int, seed: int, depth: int = 2) -> GradientMap | ODEMap:
    time_input = kind is ODEMap
    potential = ResNetPotential(dim, width=6, depth=depth, time_input=time_input, generator=generator(seed))
    with torch.no_grad():
        for parameter, scale in ((potential.output, 0.1), (potential.quadratic, 0.15), (potential.linear, 0.5)):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator(seed + 50), dtype=F64))
    return kind(potential)


def bent_flow() -> FittedFlow:
    """Maps of every kind, from a mixture."""
    law = Mixture([0.4, 0.6], [Gaussian([-1.0, 0.0], COVARIANCE), Gaussian([1.0, 1.0], 0.3)])
    centre, factor = torch.tensor([0.5, 1.0], dtype=F64), torch.tensor([[0.7, 0.2], [0.0, -1.2]], dtype=F64)
    maps = [
        Conjugated(bent(GradientMap, 2, 1), centre, factor),
        bent(ODEMap, 2, 2),
        bent(GradientMap, 2, 3, depth=1),
        Conjugated(bent(ODEMap, 2, 4), centre, factor),
    ]
    return FittedFlow(law, law, maps, (0.0, 0.1, 0.3, 0.4, 1.4))


def carried(flow: FittedFlow, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Points and log densities at time t that started at x, by a loop over the times."""
    log_density = flow.start.log_prob(x)
    with torch.no_grad():
        for step, start, end in zip(flow.maps, flow.times[:-1], flow.times[1:], strict=True):
            x, log_det = step(x, min(max((t - start) / (end - start), 0.0), 1.0))
            log_density = log_density - log_det
    return x, log_density


class TestGaussianFlow:
    def test_the_first_step_is_the_oracles(self) -> None:
        mean, covariance = exact_moments(0.3)
        np.testing.assert_allclose(mean, JKO_MEAN, atol=1e-12)
        np.testing.assert_allclose(covariance, JKO_COVARIANCE, atol=2e-8)

    @pytest.mark.parametrize("t", [0.0, 1e-6, 0.15, 0.3, 0.30001, 0.55, 0.8, None])
    def test_log_density_is_exact_at_every_time(self, t: float | None) -> None:
        mean, covariance = exact_moments(0.8 if t is None else t)
        x = np.random.default_rng(0).multivariate_normal(mean, 9.0 * covariance, 200)
        found = gaussian_flow().log_density(torch.as_tensor(x), t=t)
        np.testing.assert_allclose(found, stats.multivariate_normal(mean, covariance).logpdf(x), rtol=1e-8, atol=1e-8)
        assert not found.requires_grad

    @pytest.mark.parametrize("t", [0.0, 0.15, 0.3, 0.55, 0.8, None])
    def test_moments_of_draws(self, t: float | None) -> None:
        """Within five standard errors, from the exact covariance."""
        n = 20_000
        mean, covariance = exact_moments(0.8 if t is None else t)
        x = gaussian_flow().sample(n, t=t, generator=generator(1)).numpy()
        deviation = np.sqrt(np.diag(covariance))
        assert (np.abs(x.mean(0) - mean) < 5.0 * deviation / math.sqrt(n)).all()
        error = np.sqrt((np.outer(deviation**2, deviation**2) + covariance**2) / n)
        assert (np.abs(np.cov(x.T) - covariance) < 5.0 * error).all()
        whitened = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
        assert stats.kstest(whitened[0], "norm").pvalue > 1e-3

    def test_particles_carry_the_exact_density_and_score(self) -> None:
        particles = gaussian_flow().particles(300, generator(2))
        mean, covariance = exact_moments(0.8)
        x = particles.x.numpy()
        np.testing.assert_allclose(particles.log_rho, stats.multivariate_normal(mean, covariance).logpdf(x), rtol=1e-11)
        np.testing.assert_allclose(particles.score, -(x - mean) @ np.linalg.inv(covariance), atol=1e-10)


class TestTimes:
    def test_the_start_is_the_users_law_even_where_particles_carry_another(self) -> None:
        box = Uniform([0.0, 0.0], [1.0, 2.0])
        flow = FittedFlow(box, box.smoothed(), [affine(*step) for step in STEPS], TIMES)
        x = torch.tensor([[0.5, 0.5], [1.5, 0.5]], dtype=F64)
        assert flow.log_density(x, t=0.0).tolist() == [-math.log(2.0), -math.inf]
        draws = flow.sample(500, t=0.0, generator=generator())
        assert bool(box.log_prob(draws).isfinite().all())
        soon = flow.sample(500, t=1e-4, generator=generator())
        assert not bool(box.log_prob(soon).isfinite().all())
        torch.testing.assert_close(flow.log_density(x, t=1e-6), box.smoothed().log_prob(x), rtol=1e-4, atol=1e-4)
        assert flow.particles(10, generator()).score is not None

    def test_no_time_is_the_last_and_rounding_does_not_matter(self) -> None:
        flow, x = gaussian_flow(), LAW.sample((20,), generator=generator(3))
        for t, same in ((None, 0.8), (8 * 0.1 + 1e-13, 0.8), (0.1 + 0.1 + 0.1, 0.3), (0.3 - 1e-13, 0.3), (-1e-13, 0.0)):
            found, wanted = flow.log_density(x, t=t), flow.log_density(x, t=same)
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
            draws = [flow.sample(5, t=time, generator=generator()) for time in (t, same)]
            torch.testing.assert_close(*draws, rtol=0, atol=1e-10)
        other = flow.log_density(x, t=0.3 + 1e-6)
        assert float((other - flow.log_density(x, t=0.3)).abs().max()) > 1e-7

    def test_the_law_moves_continuously_through_the_times(self) -> None:
        flow = bent_flow()
        for t in flow.times[1:-1]:
            before, at, after = (flow.sample(50, t=s, generator=generator()) for s in (t - 1e-6, t, t + 1e-6))
            torch.testing.assert_close(before, at, rtol=0, atol=1e-4)
            torch.testing.assert_close(after, at, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("t", [-0.1, 0.81, math.inf, math.nan])
    def test_a_time_outside_the_fit_is_an_error(self, t: float) -> None:
        flow = gaussian_flow()
        with pytest.raises(ArgumentError, match=r"t must lie in \[0, 0\.8\]"):
            flow.sample(1, t=t, generator=generator())
        with pytest.raises(ArgumentError, match=r"t must lie in \[0, 0\.8\]"):
            flow.log_density(torch.zeros(1, 2, dtype=F64), t=t)

    def test_a_flow_of_no_steps_is_its_law(self) -> None:
        flow = FittedFlow(LAW, LAW, [], [0.0])
        x = flow.sample(20, t=None, generator=generator())
        assert torch.equal(x, LAW.sample((20,), generator=generator()))
        assert torch.equal(flow.log_density(x, t=None), LAW.log_prob(x))


class TestDrawsAndDensityAgree:
    @pytest.mark.parametrize("t", [0.05, 0.1, 0.2, 0.37, 0.4, 1.0, 1.4])
    def test_the_pull_back_finds_the_density_carried_along_the_path(self, t: float) -> None:
        flow = bent_flow()
        x, log_density = carried(flow, flow.law.sample((300,), generator=generator(4)), t)
        torch.testing.assert_close(flow.sample(300, t=t, generator=generator(4)), x, rtol=0, atol=1e-12)
        torch.testing.assert_close(flow.log_density(x, t=t), log_density, rtol=0, atol=1e-8)

    def test_sample_and_particles_agree(self) -> None:
        flow = bent_flow()
        particles = flow.particles(200, generator(5))
        torch.testing.assert_close(flow.sample(200, t=None, generator=generator(5)), particles.x, rtol=0, atol=1e-12)
        torch.testing.assert_close(flow.log_density(particles.x, t=None), particles.log_rho, rtol=0, atol=1e-8)

    def test_the_score_of_particles_is_the_slope_of_the_density(self) -> None:
        flow, h = bent_flow(), 1e-3
        particles = flow.particles(20, generator(6))
        for i, axis in enumerate(torch.eye(2, dtype=F64)):
            near, far = (
                flow.log_density(particles.x + k * h * axis, t=None)
                - flow.log_density(particles.x - k * h * axis, t=None)
                for k in (1, 2)
            )
            slope = (8.0 * near - far) / (12.0 * h)
            assert particles.score is not None
            torch.testing.assert_close(particles.score[:, i], slope, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("t", [0.0, 0.5, 1.0, 1.7, 2.0])
    def test_the_density_has_mass_one(self, t: float) -> None:
        """Only maps with an exact log determinant; the trapezoidal rule is spectrally accurate here."""
        law = Normal(0.5, 0.8)
        flow = FittedFlow(law, law, [bent(GradientMap, 1, seed) for seed in (1, 2)], [0.0, 1.0, 2.0])
        x = torch.linspace(-15.0, 15.0, 4001, dtype=F64)
        mass = torch.trapezoid(flow.log_density(x[:, None], t=t).exp(), x)
        assert abs(float(mass) - 1.0) < 1e-9


class TestBatches:
    def test_chunks_make_no_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flow = bent_flow()
        draws = flow.sample(50, t=0.9, generator=generator())
        log_density, particles = flow.log_density(draws, t=0.9), flow.particles(50, generator())
        monkeypatch.setattr(module, "_CHUNK", 7)
        monkeypatch.setattr(particles_module, "_CHUNK", 9)
        torch.testing.assert_close(flow.sample(50, t=0.9, generator=generator()), draws, rtol=0, atol=1e-13)
        torch.testing.assert_close(flow.log_density(draws, t=0.9), log_density, rtol=0, atol=1e-9)
        again = flow.particles(50, generator())
        for name in ("x", "log_rho", "score"):
            torch.testing.assert_close(getattr(again, name), getattr(particles, name), rtol=0, atol=1e-12)

    def test_no_points(self) -> None:
        flow = bent_flow()
        assert flow.sample(0, t=None, generator=generator()).shape == (0, 2)
        assert flow.log_density(torch.zeros(0, 2, dtype=F64), t=None).shape == (0,)

    def test_the_generator_goes_on_and_the_global_one_is_left_alone(self) -> None:
        flow, source, before = bent_flow(), generator(), torch.get_rng_state()
        first, second = (flow.sample(5, t=None, generator=source) for _ in range(2))
        assert not torch.equal(first, second)
        assert torch.equal(first, flow.sample(5, t=None, generator=generator()))
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_fold_is_reported_at_the_callers_points(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folding = ResNetPotential(1, width=1, depth=1)
        with torch.no_grad():
            folding.weights[0].fill_(1.0)
            folding.biases[0].zero_()
            folding.output.fill_(-2.0)
        shifted = affine(np.array([[1.0]]), np.array([100.0]))
        flow = FittedFlow(Normal(0.0, 1.0), Normal(0.0, 1.0), [GradientMap(folding), shifted], [0.0, 1.0, 2.0])
        monkeypatch.setattr(module, "_CHUNK", 3)
        x = torch.tensor([[93.0], [94.0], [95.0], [105.0], [100.1], [106.0]], dtype=F64)
        with pytest.raises(MapInversionError, match=r"x\[4\] = \(100\.1\)") as caught:
            flow.log_density(x, t=None)
        assert caught.value.indices.tolist() == [4]
        assert caught.value.points.tolist() == [[100.1]]
