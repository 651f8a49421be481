"""Fits of constrained targets: whatever the sampler is asked, it answers in the user's parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from torch import Tensor

from jkosampler import JKOSampler, domains, energies, laws
from jkosampler.errors import ArgumentError
from jkosampler.targets import Space, Target

QUIET = {"random_state": 0, "progress": False}
ALPHA = torch.tensor([2.0, 0.7, 4.0], dtype=torch.float64)


def gamma_beta(x: Tensor) -> Tensor:
    """Gamma(3.5, rate 2) x Beta(2, 4), without their constants."""
    return 2.5 * x[:, 0].log() - 2.0 * x[:, 0] + x[:, 1].log() + 3.0 * torch.log1p(-x[:, 1])


LOG_Z = math.lgamma(3.5) - 3.5 * math.log(2.0) + math.lgamma(2.0) + math.lgamma(4.0) - math.lgamma(6.0)


def exact_log_density(x: np.ndarray) -> np.ndarray:
    return gamma_beta(torch.tensor(x)).numpy() - LOG_Z


def gamma_beta_target(**more: object) -> Target:
    return Target(gamma_beta, names=["s", "p"], support={"s": "positive", "p": (0, 1)}, **more)


def dirichlet_target() -> Target:
    names = ["w[0]", "w[1]", "w[2]"]
    return Target(lambda x: ((ALPHA - 1.0) * x.log()).sum(1), names=names, support={"w": "simplex"})


@pytest.fixture(scope="module")
def fitted() -> JKOSampler:
    prior = laws.CallableLaw(
        lambda n, generator: torch.rand(n, 2, generator=generator, dtype=torch.float64),
        lambda x: torch.where(((x > 0) & (x < 1)).all(1), 0.0, -math.inf) + 0.0 * x.sum(1),
        2,
    )
    target = gamma_beta_target(prior=prior, log_likelihood=lambda x: x[:, :1], observed_data={"y": [1.0]})
    return JKOSampler(target, initial=laws.Gaussian([0.0, 0.0], 1.0), **QUIET).fit()


@pytest.fixture(scope="module")
def on_simplex() -> JKOSampler:
    return JKOSampler(dirichlet_target(), **QUIET).fit()


def test_evidence_and_moments_are_exact(fitted: JKOSampler) -> None:
    assert fitted.converged_
    assert fitted.log_evidence_ == pytest.approx(LOG_Z, abs=1e-3)
    assert fitted.diagnose().trustworthy
    x = fitted.sample(20_000, random_state=1)
    sds = np.array([math.sqrt(3.5) / 2.0, math.sqrt(8.0 / 36.0 / 7.0)])
    # four standard errors of 20 000 draws
    np.testing.assert_allclose((x.mean(0) - [1.75, 1.0 / 3.0]) / sds, 0.0, atol=0.03)
    np.testing.assert_allclose(x.std(0), sds, rtol=0.05)


def test_the_density_is_that_of_the_users_parameters(fitted: JKOSampler) -> None:
    x, log_q = fitted.sample_with_log_density(2000, random_state=2)
    np.testing.assert_allclose(fitted.log_density(x), log_q, atol=1e-6)
    np.testing.assert_allclose(fitted.score_samples(x), log_q, atol=1e-6)
    np.testing.assert_allclose(fitted.density(x), np.exp(log_q), rtol=1e-6)
    assert np.abs(log_q - exact_log_density(x)).mean() < 0.01
    assert fitted.score(x) == pytest.approx(log_q.mean(), abs=1e-6)
    points = torch.tensor(x[:5])
    assert isinstance(fitted.log_density(points), Tensor)
    assert isinstance(fitted.sample(3, as_tensor=True), Tensor)


def test_the_start_is_seen_in_the_users_parameters_too(fitted: JKOSampler) -> None:
    s, p = 0.7, 0.2
    exact = td.LogNormal(0.0, 1.0).log_prob(torch.tensor(s)).item()
    exact += td.Normal(0.0, 1.0).log_prob(torch.tensor(math.log(p / (1 - p)))).item() - math.log(p * (1 - p))
    assert fitted.log_density([[s, p]], t=0)[0] == pytest.approx(exact, abs=1e-6)
    x, log_q = fitted.sample_with_log_density(100, t=fitted.times_[1] / 2)
    np.testing.assert_allclose(fitted.log_density(x, t=fitted.times_[1] / 2), log_q, atol=1e-6)


def test_the_boundary_and_beyond_have_density_zero(fitted: JKOSampler, on_simplex: JKOSampler) -> None:
    x = [[0.0, 0.5], [1.0, 0.5], [1.0, 0.0], [1.0, 1.0], [-1.0, 0.5], [1.0, 2.0]]
    assert np.isneginf(fitted.log_density(x)).tolist() == [True, False, True, True, True, True]
    assert fitted.density(x)[0] == 0.0
    assert np.isneginf(fitted.log_density(x[:1]))  # none is inside
    assert np.isneginf(on_simplex.log_density([[0.5, 0.5, 0.0], [0.5, 0.5, 0.5]])).all()
    with pytest.raises(ArgumentError, match=r"shape \(n, 3\)"):
        on_simplex.log_density([[0.5, 0.5]])
    with pytest.raises(ArgumentError, match="finite"):
        fitted.log_density([[np.nan, 0.5]])


@pytest.mark.parametrize("method", ["flow", "snis", "imh"])
def test_all_draws_are_inside(fitted: JKOSampler, method: str) -> None:
    x = fitted.sample(4000, method=method, random_state=3)
    assert (x > 0).all()
    assert (x[:, 1] < 1).all()
    # six standard errors of 4000 draws
    np.testing.assert_allclose(x.mean(0), [1.75, 1.0 / 3.0], atol=0.09)


def test_fitted_attributes_count_the_users_columns(fitted: JKOSampler, on_simplex: JKOSampler) -> None:
    assert (fitted.n_features_in_, on_simplex.n_features_in_) == (2, 3)
    assert on_simplex.particles_.shape[1] == 3
    np.testing.assert_allclose(on_simplex.particles_.sum(1), 1.0, atol=1e-12)
    assert (fitted.particles_ > 0).all()


def test_a_dirichlet_law(on_simplex: JKOSampler) -> None:
    log_z = float(torch.lgamma(ALPHA).sum() - torch.lgamma(ALPHA.sum()))
    assert on_simplex.log_evidence_ == pytest.approx(log_z, abs=2e-3)
    x = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(3), 500)) * 0.9 + 0.1 / 3.0
    exact = td.Dirichlet(ALPHA).log_prob(x)
    assert float((on_simplex.log_density(x) - exact).abs().mean()) < 0.02
    # four standard errors of 20 000 draws, sd .2
    mean = (ALPHA / ALPHA.sum()).numpy()
    np.testing.assert_allclose(on_simplex.sample(20_000, random_state=1).mean(0), mean, atol=0.006)


def test_the_export_has_variables_of_their_shapes(fitted: JKOSampler, on_simplex: JKOSampler) -> None:
    exported = on_simplex.to_arviz(draws=50, chains=2)
    assert exported["posterior"]["w"].shape == (2, 50, 3)
    exported = fitted.to_arviz(draws=50, chains=4, random_state=1)
    assert exported["posterior"]["s"].shape == (4, 50)
    assert exported["prior"]["p"].shape == (4, 50)
    assert float(exported["prior"]["p"].max()) < 1.0
    assert exported["log_likelihood"]["y"].shape[:2] == (4, 50)
    np.testing.assert_allclose(exported["log_likelihood"]["y"].values[..., 0], exported["posterior"]["s"].values)
    x = np.stack([exported["posterior"][name].values.ravel() for name in ("s", "p")], 1)
    statistics = exported["sample_stats"]
    np.testing.assert_allclose(statistics["lp"].values.ravel(), exact_log_density(x) + LOG_Z, atol=1e-9)
    np.testing.assert_allclose(statistics["log_q"].values.ravel(), fitted.log_density(x), atol=1e-6)
    np.testing.assert_allclose(statistics["log_weight"], statistics["lp"] - statistics["log_q"], atol=1e-9)


class Doubled(Space):
    """x = 2 z, three columns of one variable with labels."""

    def __init__(self) -> None:
        super().__init__(3, {"v": (3,)}, dims={"v": ["place"]}, coords={"place": ["a", "b", "c"]})

    def to_user(self, z: Tensor) -> Tensor:
        return 2.0 * z

    def to_unconstrained(self, x: Tensor) -> Tensor:
        return x / 2.0

    def log_jacobian(self, z: Tensor) -> Tensor:
        return torch.full_like(z[:, 0], 3.0 * math.log(2.0))


class FromElsewhere(Target):
    """A target whose density in R^d comes from a host."""

    @property
    def unconstrained(self) -> Target:
        return Target(lambda z: -0.5 * z.square().sum(1), 3)


@pytest.mark.parametrize("kind", [Target, FromElsewhere])
def test_a_space_of_ones_own(kind: type[Target]) -> None:
    target = kind(lambda x: -0.125 * x.square().sum(1) - 3.0 * math.log(2.0), space=Doubled())
    sampler = JKOSampler(target, **QUIET).fit()
    assert sampler.log_evidence_ == pytest.approx(1.5 * math.log(2.0 * math.pi), abs=1e-3)
    exact = td.Normal(0.0, 2.0).log_prob(torch.zeros(3)).sum().item()
    assert sampler.log_density([[0.0, 0.0, 0.0]])[0] == pytest.approx(exact, abs=0.01)
    posterior = sampler.to_arviz(draws=10)["posterior"]
    assert posterior["v"].dims == ("chain", "draw", "place")
    assert posterior["place"].values.tolist() == ["a", "b", "c"]


def test_starting_particles_are_parameters() -> None:
    x = torch.tensor(np.random.default_rng(0).dirichlet(ALPHA, 400))
    settings = QUIET | {"n_steps": 0, "initial": laws.Gaussian([0.0, 0.0], 1.0)}
    sampler = JKOSampler(dirichlet_target(), **settings).fit(x)
    np.testing.assert_allclose(sampler.particles_, x, atol=1e-12)
    x[7] = torch.tensor([1.0, 0.0, 0.0])
    with pytest.raises(ArgumentError, match=r"X: 'w' must be a simplex.* row 7 = "):
        JKOSampler(dirichlet_target(), **settings).fit(x)


def test_the_start_has_the_priors_moments_where_that_is_inside() -> None:
    prior = laws.Product([td.Exponential(torch.tensor(1.0, dtype=torch.float64)), laws.Uniform(0.0, 1.0)])
    sampler = JKOSampler(gamma_beta_target(prior=prior), n_steps=0, **QUIET).fit()
    assert sampler.start_note_ is None
    # log of an exponential draw: mean -gamma, variance pi^2/6; logit of a uniform one: mean 0, variance pi^2/3
    exact = td.LogNormal(-np.euler_gamma, math.pi / 6.0**0.5).log_prob(torch.tensor(0.5)).item()
    exact += td.Normal(0.0, math.pi / 3.0**0.5).log_prob(torch.tensor(math.log(3.0 / 7.0))).item() - math.log(0.21)
    # moments are those of 2^17 draws
    assert sampler.log_density([[0.5, 0.3]], t=0)[0] == pytest.approx(exact, abs=0.02)
    cut_off = laws.Gaussian([0.0, 0.5], 1.0)
    sampler = JKOSampler(gamma_beta_target(prior=cut_off), n_steps=0, **QUIET).fit()
    exact = 2.0 * td.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)).item() - math.log(0.25)
    assert sampler.log_density([[1.0, 0.5]], t=0)[0] == pytest.approx(exact, abs=1e-6)  # N(0, I) of z


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"initial": laws.Gaussian([0.0] * 3, 1.0)}, "initial must be over the 2 unconstrained coordinates"),
        ({"domain": domains.Box(-1, 1, dim=2)}, "domain: the parameters of log_target have constraints"),
        ({"dim": 2}, "contradict"),
    ],
)
def test_what_does_not_go_with_constraints_is_refused(changes: dict, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        JKOSampler(dirichlet_target(), **QUIET, **changes).fit()


def test_a_constrained_target_is_no_part_of_an_energy() -> None:
    energy = energies.KL(gamma_beta_target()) + energies.Potential(lambda x: x.square().sum(1))
    with pytest.raises(ArgumentError, match="KL of a constrained target"):
        JKOSampler(energy=energy, **QUIET).fit()
