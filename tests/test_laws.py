"""Every law against independent densities, its own samples, and the rules all laws share."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats
from torch import Tensor

from jkosampler import laws
from jkosampler.errors import ArgumentError
from jkosampler.laws import (
    Ball,
    Barenblatt,
    CallableLaw,
    Gaussian,
    Law,
    Mixture,
    Normal,
    Parabola,
    Product,
    TorchLaw,
    Uniform,
    as_law,
)

F64 = torch.float64
Density = Callable[[np.ndarray], np.ndarray]
Case = tuple[Law, Density]
COVARIANCE = np.array([[1.0, 0.3], [0.3, 0.5]])


def gaussian_pdf(x: np.ndarray) -> np.ndarray:
    return stats.multivariate_normal([0.0, 0.5], COVARIANCE).pdf(x)


def own_law(has_moments: bool) -> CallableLaw:
    """Logistic law on the line, sampled by inversion."""

    def sampler(n: int, generator: torch.Generator) -> Tensor:
        return torch.logit(torch.rand(n, 1, generator=generator, dtype=F64))

    def log_prob(x: Tensor) -> Tensor:
        return -x[:, 0] - 2 * torch.nn.functional.softplus(-x[:, 0])

    moments = {"mean": [0.0], "covariance": [[math.pi**2 / 3]]} if has_moments else {}
    return CallableLaw(sampler, log_prob, 1, **moments)


def torch_mixture() -> td.Distribution:
    centres = torch.tensor([[-1.0, 0.0], [2.0, 1.0]], dtype=F64)
    weights = torch.tensor([0.3, 0.7], dtype=F64)
    return td.MixtureSameFamily(
        td.Categorical(weights), td.Independent(td.Normal(centres, torch.ones(2, 2, dtype=F64)), 1)
    )


# name -> (law, density by scipy); every law that the package has must be here
LAWS: dict[str, tuple[Callable[[], Law], Density]] = {
    "gaussian": (lambda: Gaussian([0.0, 0.5], COVARIANCE), gaussian_pdf),
    "gaussian, scales": (
        lambda: Gaussian(1.0, scale=[1.0, 2.0]),
        lambda x: stats.norm(1, 1).pdf(x[:, 0]) * stats.norm(1, 2).pdf(x[:, 1]),
    ),
    "normal": (lambda: Normal(-1.0, 2.0), lambda x: stats.norm(-1, 2).pdf(x[:, 0])),
    "uniform": (lambda: Uniform(90.0, 110.0), lambda x: stats.uniform(90, 20).pdf(x[:, 0])),
    "box": (
        lambda: Uniform([-1.0, 0.0], [1.0, 3.0]),
        lambda x: stats.uniform(-1, 2).pdf(x[:, 0]) * stats.uniform(0, 3).pdf(x[:, 1]),
    ),
    "ball": (
        lambda: Ball([1.0, -1.0], 2.0),
        lambda x: (((x - [1.0, -1.0]) ** 2).sum(axis=1) < 4.0) / (4.0 * math.pi),
    ),
    "parabola": (  # Beta(2, 2) on [-1, 1]
        lambda: Parabola(1),
        lambda x: stats.beta(2.0, 2.0, loc=-1.0, scale=2.0).pdf(x[:, 0]),
    ),
    "barenblatt": (
        lambda: Barenblatt(dim=2, m=2, age=0.1),
        lambda x: np.maximum(0.1**-0.5 * ((8.0 * math.pi) ** -0.5 - (x**2).sum(axis=1) / (16.0 * 0.1**0.5)), 0.0),
    ),
    "mixture": (
        lambda: Mixture([1.0, 3.0], [Gaussian([0.0, 0.5], COVARIANCE), Gaussian([4.0, -2.0], 0.25)]),
        lambda x: 0.25 * gaussian_pdf(x) + 0.75 * stats.multivariate_normal([4.0, -2.0], 0.25).pdf(x),
    ),
    "mixture with a box": (
        lambda: Mixture([0.5, 0.5], [Normal(0.0, 1.0), Uniform(1.0, 2.0)]),
        lambda x: 0.5 * stats.norm(0, 1).pdf(x[:, 0]) + 0.5 * stats.uniform(1, 1).pdf(x[:, 0]),
    ),
    "product": (
        lambda: Product([Normal(0.0, 1.0), Uniform(90.0, 110.0)]),
        lambda x: stats.norm(0, 1).pdf(x[:, 0]) * stats.uniform(90, 20).pdf(x[:, 1]),
    ),
    "torch scalar": (
        lambda: TorchLaw(td.Exponential(torch.tensor(2.0, dtype=F64))),
        lambda x: stats.expon(scale=0.5).pdf(x[:, 0]),
    ),
    "torch batch": (
        lambda: TorchLaw(td.Laplace(torch.zeros(2, dtype=F64), torch.tensor([1.0, 2.0], dtype=F64))),
        lambda x: stats.laplace(0, 1).pdf(x[:, 0]) * stats.laplace(0, 2).pdf(x[:, 1]),
    ),
    "torch event": (
        lambda: TorchLaw(td.MultivariateNormal(torch.tensor([0.0, 0.5], dtype=F64), torch.tensor(COVARIANCE))),
        gaussian_pdf,
    ),
    "torch mixture": (
        lambda: TorchLaw(torch_mixture()),
        lambda x: 0.3 * stats.multivariate_normal([-1, 0]).pdf(x) + 0.7 * stats.multivariate_normal([2, 1]).pdf(x),
    ),
    "torch transformed": (
        lambda: TorchLaw(
            td.TransformedDistribution(td.Normal(torch.zeros(1, dtype=F64), 0.5), [td.transforms.ExpTransform()]),
            has_jump=False,
        ),
        lambda x: stats.lognorm(0.5).pdf(x[:, 0]),
    ),
    "callable": (lambda: own_law(True), lambda x: stats.logistic.pdf(x[:, 0])),
    "callable without moments": (lambda: own_law(False), lambda x: stats.logistic.pdf(x[:, 0])),
}


@pytest.fixture(params=LAWS, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    make, density = LAWS[request.param]
    return make(), density


def no_draws(n: int, generator: torch.Generator) -> Tensor:
    return torch.zeros(n, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_density_is_the_independent_one(case: Case) -> None:
    law, density = case
    inner = law.sample((200,), generator=generator())
    x = torch.cat([inner, law.mean + 5.0 * (inner - law.mean)])
    with np.errstate(divide="ignore"):
        expected = np.log(density(x.numpy()))
    log_prob = law.log_prob(x)
    assert log_prob.shape == (400,)
    np.testing.assert_allclose(log_prob.numpy(), expected, rtol=1e-10, atol=1e-10)


def test_far_and_foreign_points_are_never_nan(case: Case) -> None:
    law, _ = case
    far = torch.tensor([1e8, -1e8, math.inf, -math.inf], dtype=F64)[:, None].expand(-1, law.dim)
    assert not law.log_prob(far).isnan().any()
    assert (law.log_prob(far)[2:] == -math.inf).all()
    assert law.score(far[:2]).isfinite().all()
    assert law.log_prob(torch.full((1, law.dim), math.nan, dtype=F64)).isnan().all()


def test_score_is_the_slope_of_the_log_density(case: Case) -> None:
    law, _ = case
    x = law.sample((50,), generator=generator(1))
    h = 1e-5
    steps = h * torch.eye(law.dim, dtype=F64)
    slopes = torch.stack([(law.log_prob(x + e) - law.log_prob(x - e)) / (2 * h) for e in steps], dim=1)
    smooth = slopes.isfinite().all(dim=1)  # a point within h of an edge has no central difference
    assert smooth.sum() > 40
    np.testing.assert_allclose(law.score(x)[smooth].numpy(), slopes[smooth].numpy(), rtol=1e-5, atol=1e-5)


def test_moments_are_those_of_the_draws(case: Case) -> None:
    law, _ = case
    n = 100_000
    x = law.sample((n,), generator=generator(2)).numpy()
    centred = x - law.mean.numpy()
    error = centred.std(axis=0) / math.sqrt(n)
    assert np.all(np.abs(centred.mean(axis=0)) < 5 * error)
    products = np.einsum("ni,nj->nij", centred, centred)
    error = products.std(axis=0) / math.sqrt(n)
    assert np.all(np.abs(products.mean(axis=0) - law.covariance.numpy()) < 5 * error)


def test_draws_follow_the_density(case: Case) -> None:
    """P(first coordinate below a level): importance weights of a wide Gaussian against the share of draws."""
    law, _ = case
    n = 200_000
    wide = Gaussian(law.mean, 4.0 * torch.diag(law.covariance))
    y = wide.sample((n,), generator=generator(3))
    weights = (law.log_prob(y) - wide.log_prob(y)).exp()
    x = law.sample((n,), generator=generator(4))
    for level in law.mean[0] + law.covariance[0, 0].sqrt() * torch.tensor([-0.8, 0.0, 0.9]):
        inside = weights * (y[:, 0] < level)
        share = (x[:, 0] < level).to(F64)
        error = ((inside.var() + share.var()) / n).sqrt()
        assert abs(inside.mean() - share.mean()) < 5 * error + 1e-12
    assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(n)


def test_jump_is_declared(case: Case) -> None:
    """E[div v + v . score] = 0 for v = tanh, v = x: exactly the laws without a jump obey it."""
    law, _ = case
    n = 100_000
    x = law.sample((n,), generator=generator(5))
    scale = law.covariance.diagonal().sqrt()
    z = (x - law.mean) / scale
    v, divergence = 2 * z + torch.tanh(z), ((3 - torch.tanh(z).square()) / scale).sum(1)
    terms = divergence + (v * law.score(x)).sum(1)
    zero = abs(float(terms.mean())) < 5 * float(terms.std()) / math.sqrt(n)
    assert zero != law.has_jump
    smooth = law.smoothed()
    assert not smooth.has_jump
    assert (smooth is law) == (not law.has_jump)
    torch.testing.assert_close(smooth.mean, law.mean)
    torch.testing.assert_close(smooth.covariance, law.covariance)


def test_generator_reproduces_and_global_state_stays(
    case: Case,
) -> None:
    law, _ = case
    state = torch.random.get_rng_state()
    first, second = law.sample((7,), generator=generator(6)), law.sample(7, generator=generator(6))
    stream = generator(6)
    law.sample((7,), generator=stream)
    other, unseeded = law.sample((7,), generator=stream), law.sample((7,))
    assert law.score(first).shape == first.shape == (7, law.dim)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(law.sample((7,)), unseeded)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert law.sample((0,), generator=generator()).shape == (0, law.dim)


def test_other_precision(case: Case) -> None:
    law, _ = case
    single = law.to(torch.float32)
    x = law.sample((5,), generator=generator(7))
    assert single.dtype == single.sample((5,)).dtype == single.mean.dtype == single.covariance.dtype == torch.float32
    assert single.log_prob(x.float()).dtype == single.score(x.float()).dtype == torch.float32
    assert law.dtype == law.log_prob(x).dtype == F64
    torch.testing.assert_close(single.log_prob(x.float()).double(), law.log_prob(x), rtol=1e-3, atol=1e-3)


def test_another_mass_changes_nothing_else(case: Case) -> None:
    law, _ = case
    heavy = law.with_mass(2.5)
    assert heavy.mass == heavy.to(torch.float32).mass == heavy.smoothed().mass == 2.5
    assert law.smoothed().mass == law.mass == pytest.approx(1.0, rel=1e-14)
    assert heavy.has_jump == law.has_jump
    assert heavy.describe() == law.describe() == repr(law)
    assert repr(heavy) == f"{law.describe()} of mass 2.5"
    x = law.sample((20,), generator=generator(8))
    assert torch.equal(heavy.sample((20,), generator=generator(8)), x)
    assert torch.equal(heavy.log_prob(x), law.log_prob(x))
    assert torch.equal(heavy.score(x), law.score(x))
    assert torch.equal(heavy.mean, law.mean)
    with pytest.raises(ArgumentError, match="mass must be one positive number"):
        law.with_mass(0.0)


def test_wrong_shape_of_points_is_named(case: Case) -> None:
    law, _ = case
    with pytest.raises(ArgumentError, match=rf"x must have shape \(n, {law.dim}\)"):
        law.log_prob(torch.zeros(4, law.dim + 1))
    with pytest.raises(ArgumentError, match="sample_shape"):
        law.sample((2, 3))


def test_overflow_is_a_density_of_zero() -> None:
    """Solving with the factor gives inf - inf here."""
    law = Gaussian(0.0, 1e-4 * (np.eye(3) + 1.0))
    assert law.log_prob(torch.full((1, 3), 1e307, dtype=F64)) == -math.inf


def test_score_is_zero_where_the_density_is() -> None:
    law = CallableLaw(no_draws, lambda x: x.relu().log().sum(dim=1), 2)
    assert law.score(torch.tensor([[0.5, 1.0], [0.0, 1.0]])).tolist() == [[2.0, 1.0], [0.0, 0.0]]


def test_every_law_is_tested() -> None:
    tested = {type(make()) for make, _ in LAWS.values()}
    assert tested == {getattr(laws, name) for name in laws.__all__} - {Law, as_law, laws.DensityOnBox}


def test_smoothing_keeps_the_smooth_factors() -> None:
    smooth = Product([own_law(True), Uniform(90.0, 110.0)]).smoothed()
    assert isinstance(smooth, Product)
    assert isinstance(smooth.factors[0], CallableLaw)
    assert isinstance(smooth.factors[1], Gaussian)
    assert float(smooth.covariance[1, 1]) == pytest.approx(400 / 12)


def test_masses_multiply_in_a_product_and_not_in_a_mixture() -> None:
    heavy, heavier = Normal(0.0, 1.0).with_mass(2.0), Uniform(0.0, 1.0).with_mass(3.0)
    assert Product([heavy, heavier]).mass == Product([heavy, heavier]).smoothed().mass == 6.0
    mixture = Mixture([0.5, 0.5], [heavy, heavier])
    assert mixture.mass == 1.0
    assert mixture.weights.tolist() == [0.5, 0.5]


def test_single_precision_torch_law_is_evaluated_in_double() -> None:
    value = as_law(td.Normal(0.0, 1.0)).log_prob(torch.tensor([[0.1234567890123]], dtype=F64))
    assert float(value) == pytest.approx(stats.norm.logpdf(0.1234567890123), rel=1e-14)
    single = td.MultivariateNormal(torch.zeros(2), torch.eye(2))  # can't be mixed: stays in its own precision
    assert as_law(single).log_prob(torch.ones(1, 2, dtype=F64)).dtype == F64


def test_laws_describe_themselves() -> None:
    law = Product([Normal(0.0, 10.0), Uniform(90.0, 110.0)])
    assert repr(law) == law.describe() == "N(0, 10^2) x U(90, 110)"
