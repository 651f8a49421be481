"""Particles: draws, the weights that give a sample its score identities, and what a map does to a pool."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats
from torch import Tensor

from jkosampler import particles as module
from jkosampler.laws import Gaussian, Law, Mixture, TorchLaw, Uniform
from jkosampler.maps import GradientMap, Map, ODEMap
from jkosampler.particles import Particles, calibrated_weights, weighted_moments
from jkosampler.potentials import ResNetPotential

F64 = torch.float64
MEAN, COVARIANCE = np.array([3.0, -1.0]), np.array([[4.0, 0.6], [0.6, 0.25]])
GAUSSIAN = Gaussian(MEAN, COVARIANCE)
MIXTURE = Mixture([0.3, 0.7], [Gaussian([-2.0, 0.0], 1.0), Gaussian([1.5, 1.0], COVARIANCE)])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_in(d: int) -> Gaussian:
    a = torch.randn(d, d, generator=generator(d), dtype=F64)
    return Gaussian(torch.arange(float(d)), a @ a.mT + 0.2 * torch.eye(d))


class TestDraw:
    def test_carries_the_density_and_score_of_the_law(self) -> None:
        drawn = Particles.draw(GAUSSIAN, 50, generator())
        log_pdf = stats.multivariate_normal(MEAN, COVARIANCE).logpdf(drawn.x.numpy())
        np.testing.assert_allclose(drawn.log_rho, log_pdf, rtol=1e-12)
        score = -(drawn.x.numpy() - MEAN) @ np.linalg.inv(COVARIANCE)
        np.testing.assert_allclose(drawn.score, score, rtol=1e-10)
        assert torch.equal(drawn.x, GAUSSIAN.sample((50,), generator=generator()))

    def test_a_law_with_a_jump_has_no_score(self) -> None:
        drawn = Particles.draw(Uniform([0.0, 0.0], [1.0, 2.0]), 10, generator())
        assert drawn.score is None
        np.testing.assert_allclose(drawn.log_rho, -math.log(2.0))
        assert drawn[2:5].score is None
        assert drawn.to(torch.float32).score is None

    def test_rows_and_precision(self) -> None:
        drawn = Particles.draw(GAUSSIAN, 10, generator())
        rows = torch.tensor([7, 0])
        assert len(drawn) == 10
        assert len(drawn[3:5]) == 2
        for name in ("x", "log_rho", "score"):
            assert torch.equal(getattr(drawn[rows], name), getattr(drawn, name)[rows])
            assert torch.equal(getattr(drawn.to(torch.float32), name), getattr(drawn, name).float())


class TestDrawSpread:
    @pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
    def test_densities_and_scores_are_the_laws_own(self, law: Law) -> None:
        spread = Particles.draw_spread(law, 200, generator())
        x = spread.x.clone().requires_grad_(True)
        log_rho = law.log_prob(x)
        torch.testing.assert_close(spread.log_rho, log_rho.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(spread.score, torch.autograd.grad(log_rho.sum(), x)[0], rtol=0, atol=1e-10)

    @pytest.mark.parametrize("d", [1, 2, 7])
    def test_whitened_radii_are_uniform_and_directions_those_of_draws(self, d: int) -> None:
        law, n = gaussian_in(d), 3000
        spread = Particles.draw_spread(law, n, generator(1))
        draws = law.sample((n,), generator=generator(1)).numpy()
        mean, covariance = draws.mean(0), np.atleast_2d(np.cov(draws.T, bias=True))
        root = np.linalg.cholesky(covariance)
        before, after = (np.linalg.solve(root, (x - mean).T).T for x in (draws, spread.x.numpy()))
        radius = np.linalg.norm(after, axis=1)
        np.testing.assert_allclose(after / radius[:, None], before / np.linalg.norm(before, axis=1)[:, None], atol=1e-9)
        low, high = stats.chi(d).ppf(1e-6), stats.chi(d).isf(1e-6)
        assert low <= radius.min()
        assert radius.max() <= high
        assert stats.kstest(radius, stats.uniform(low, high - low).cdf).pvalue > 1e-3
        assert abs(np.corrcoef(radius, np.linalg.norm(before, axis=1))[0, 1]) < 5.0 / math.sqrt(n)

    def test_it_reaches_the_tails(self) -> None:
        spread = Particles.draw_spread(GAUSSIAN, 1000, generator())
        draws = Particles.draw(GAUSSIAN, 1000, generator())
        assert float(spread.log_rho.min()) < float(draws.log_rho.min()) - 3.0

    def test_a_jump_falls_back_to_draws(self) -> None:
        law = Uniform([0.0, 0.0], [1.0, 2.0])
        spread = Particles.draw_spread(law, 500, generator())
        assert spread.score is None
        assert bool(spread.log_rho.isfinite().all())
        assert stats.kstest(spread.x[:, 1].numpy(), stats.uniform(0, 2).cdf).pvalue > 1e-3

    def test_a_jump_inside_the_support_falls_back_too(self) -> None:
        law = Mixture([0.5, 0.5], [Gaussian([0.0, 0.0], 1.0), Uniform([0.0, 0.0], [1.0, 2.0])])
        spread = Particles.draw_spread(law, 1000, generator())
        assert spread.score is None
        exact = law.mean.numpy(), law.covariance.diagonal().sqrt().numpy() / math.sqrt(1000)
        np.testing.assert_array_less(np.abs(spread.x.mean(0).numpy() - exact[0]), 5.0 * exact[1])
        assert float(spread.x.abs().max()) < 4.5

    def test_an_edge_falls_back_to_draws(self) -> None:
        law = TorchLaw(td.Gamma(torch.tensor(3.0, dtype=F64), torch.tensor(1.0, dtype=F64)), has_jump=False)
        spread = Particles.draw_spread(law, 500, generator())
        assert spread.score is not None
        assert bool((spread.x > 0).all())
        assert stats.kstest(spread.x[:, 0].numpy(), stats.gamma(3).cdf).pvalue > 1e-3

    def test_too_few_points_for_a_covariance(self) -> None:
        assert Particles.draw_spread(gaussian_in(7), 3, generator()).x.shape == (3, 7)


def identities(particles: Particles, weights: Tensor) -> tuple[Tensor, Tensor]:
    """`sum w s` and `sum w s x' + I`, both zero for calibrated weights."""
    assert particles.score is not None
    d = particles.x.shape[1]
    outer = torch.einsum("n,ni,nj->ij", weights, particles.score, particles.x)
    return weights @ particles.score, outer + torch.eye(d, dtype=F64)


class TestCalibratedWeights:
    @pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE, gaussian_in(1), gaussian_in(5)], ids=repr)
    def test_positive_of_sum_one_and_both_identities(self, law: Law) -> None:
        drawn = Particles.draw(law, 2000, generator(2))
        weights = calibrated_weights(drawn)
        assert bool((weights > 0).all())
        assert abs(float(weights.sum()) - 1.0) < 1e-12
        equal = torch.full_like(weights, 1.0 / 2000)
        for found, before in zip(identities(drawn, weights), identities(drawn, equal), strict=True):
            assert float(found.abs().max()) < 1e-6
            assert float(before.abs().max()) > 1e-3  # which the sample did not have by itself

    @pytest.mark.parametrize("d", [1, 2, 5])
    def test_moments_of_gaussian_draws_are_exact(self, d: int) -> None:
        law, n = gaussian_in(d), 20 * (d * d + d)
        drawn = Particles.draw(law, n, generator(3))
        mean, covariance = weighted_moments(drawn.x, calibrated_weights(drawn))
        torch.testing.assert_close(mean, law.mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(covariance, law.covariance, rtol=0, atol=1e-6)

    def test_among_all_such_weights_they_have_the_largest_entropy(self) -> None:
        """Lagrange: log w is an affine function of the conditions, here by least squares."""
        drawn = Particles.draw(MIXTURE, 1500, generator(4))
        assert drawn.score is not None
        x, score = drawn.x.numpy(), drawn.score.numpy()
        products = (score[:, :, None] * x[:, None, :]).reshape(1500, 4)
        design = np.hstack([np.ones((1500, 1)), score, products])
        log_weights = calibrated_weights(drawn).log().numpy()
        multipliers, *_ = np.linalg.lstsq(design, log_weights, rcond=None)
        np.testing.assert_allclose(design @ multipliers, log_weights, atol=1e-9)
        assert np.std(log_weights) > 0.01

    def test_scales_of_the_axes_do_not_matter(self) -> None:
        drawn = Particles.draw(MIXTURE, 1000, generator(5))
        assert drawn.score is not None
        scale = torch.tensor([1e4, 1e-4], dtype=F64)
        stretched = Particles(drawn.x * scale + 7.0, drawn.log_rho, drawn.score / scale)
        torch.testing.assert_close(calibrated_weights(stretched), calibrated_weights(drawn), rtol=1e-5, atol=0)

    @pytest.mark.parametrize(
        ("d", "n", "asked"), [(2, 119, False), (2, 120, True), (20, 8400, True), (21, 9240, False)]
    )
    def test_limits_of_particles_and_dimensions(
        self, d: int, n: int, asked: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Seen by a stand-in for the solver, which takes seconds in 20 dimensions."""
        answer = np.linspace(1.0, 2.0, n)
        monkeypatch.setattr(module, "_maximum_entropy", lambda conditions: answer)
        weights = calibrated_weights(Particles.draw(gaussian_in(d), n, generator(6)))
        np.testing.assert_allclose(weights, answer if asked else 1.0 / n, rtol=1e-15)

    def test_equal_without_a_score(self) -> None:
        drawn = Particles.draw(Uniform([0.0, 0.0], [1.0, 2.0]), 1000, generator())
        assert torch.equal(calibrated_weights(drawn), torch.full((1000,), 1e-3, dtype=F64))

    @pytest.mark.parametrize(
        "fault", [lambda s: -s, lambda s: 0.0 * s, lambda s: 20.0 * s, lambda s: torch.where(s > 3.0, torch.nan, s)]
    )
    def test_equal_where_the_score_contradicts_the_sample(self, fault: object) -> None:
        drawn = Particles.draw(MIXTURE, 1000, generator(7))
        weights = calibrated_weights(Particles(drawn.x, drawn.log_rho, fault(drawn.score)))
        assert torch.equal(weights, torch.full((1000,), 1e-3, dtype=F64))

    def test_a_score_of_another_scale_shows_in_the_moments(self) -> None:
        drawn = Particles.draw(GAUSSIAN, 1000, generator(8))
        assert drawn.score is not None
        weights = calibrated_weights(Particles(drawn.x, drawn.log_rho, 1.25 * drawn.score))
        _, covariance = weighted_moments(drawn.x, weights)
        torch.testing.assert_close(covariance, GAUSSIAN.covariance / 1.25, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("factor", "is_equal"), [(8.0, False), (12.0, True)])
    def test_equal_rather_than_a_handful_of_particles(self, factor: float, is_equal: bool) -> None:
        """Weights that shrink a Gaussian's covariance by a leave (2a-1)/a^2 of the sample: 0.23 or 0.16."""
        drawn = Particles.draw(GAUSSIAN, 4000, generator(8))
        assert drawn.score is not None
        weights = calibrated_weights(Particles(drawn.x, drawn.log_rho, factor * drawn.score))
        assert bool((weights == weights[0]).all()) == is_equal

    def test_float32_particles_have_float32_weights(self) -> None:
        weights = calibrated_weights(Particles.draw(GAUSSIAN, 500, generator(9)).to(torch.float32))
        assert weights.dtype == torch.float32
        assert abs(float(weights.sum()) - 1.0) < 1e-5


def test_weighted_moments_are_numpys() -> None:
    x = MIXTURE.sample((60,), generator=generator())
    weights = torch.rand(60, generator=generator(1), dtype=F64)
    weights = weights / weights.sum()
    mean, covariance = weighted_moments(x, weights)
    np.testing.assert_allclose(mean, np.average(x.numpy(), axis=0, weights=weights.numpy()), rtol=1e-13)
    np.testing.assert_allclose(covariance, np.cov(x.numpy().T, aweights=weights.numpy(), bias=True), rtol=1e-12)


def step_of(kind: type[GradientMap] | type[ODEMap]) -> Map:
    potential = ResNetPotential(2, width=6, depth=1, generator=generator(1))
    with torch.no_grad():
        potential.output.fill_(0.05)
        potential.quadratic.copy_(torch.tensor([[0.3, 0.1], [0.0, -0.2]]))
        potential.linear.copy_(torch.tensor([1.0, -2.0]))
    return kind(potential)


class TestPush:
    def test_an_affine_map_takes_a_gaussian_to_a_gaussian(self) -> None:
        potential = ResNetPotential(2, depth=0)
        matrix, shift = np.array([[1.4, 0.3], [0.3, 0.6]]), np.array([1.0, -2.0])
        with torch.no_grad():
            potential.quadratic.copy_(torch.as_tensor(matrix) - torch.eye(2))
            potential.linear.copy_(torch.as_tensor(shift))
        pushed = Particles.draw(GAUSSIAN, 200, generator()).push(GradientMap(potential))
        mean, covariance = matrix @ MEAN + shift, matrix @ COVARIANCE @ matrix
        log_pdf = stats.multivariate_normal(mean, covariance).logpdf(pushed.x.numpy())
        np.testing.assert_allclose(pushed.log_rho, log_pdf, rtol=1e-11)
        score = -(pushed.x.numpy() - mean) @ np.linalg.inv(covariance)
        np.testing.assert_allclose(pushed.score, score, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("kind", [GradientMap, ODEMap])
    @pytest.mark.parametrize("law", [GAUSSIAN, Uniform([0.0, 0.0], [1.0, 2.0])], ids=repr)
    def test_chunks_equal_all_at_once(
        self, law: Law, kind: type[GradientMap] | type[ODEMap], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn, step = Particles.draw(law, 25, generator()), step_of(kind)
        whole = drawn.push(step)
        monkeypatch.setattr(module, "_CHUNK", 10)
        parts = drawn.push(step)
        with torch.no_grad():
            x, log_det = step(drawn.x)
        for pushed in (whole, parts):
            torch.testing.assert_close(pushed.x, x, rtol=0, atol=1e-13)
            torch.testing.assert_close(pushed.log_rho, drawn.log_rho - log_det, rtol=0, atol=1e-13)
            assert not pushed.x.requires_grad
        if drawn.score is None:
            assert parts.score is None
        else:
            score = step.push(drawn.x, drawn.score).score
            torch.testing.assert_close(whole.score, score, rtol=0, atol=1e-13)
            torch.testing.assert_close(parts.score, score, rtol=0, atol=1e-13)
