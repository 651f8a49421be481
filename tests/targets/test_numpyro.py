"""NumPyro's models, against densities and transforms computed without it."""

from __future__ import annotations

from typing import Any

import eight_schools
import numpy as np
import pytest
import torch
import torch.distributions as td
from host_checks import check_gradient, check_schools, check_space, random_points, value_and_gradient

from jkosampler import JKOSampler
from jkosampler.errors import ArgumentError
from jkosampler.targets import HostTarget, from_numpyro

numpyro = pytest.importorskip("numpyro")
jax = pytest.importorskip("jax")
dist = numpyro.distributions


def schools_model(sigma: Any, y: Any = None) -> None:
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        eta = numpyro.sample("eta", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def constrained_model() -> None:
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    numpyro.sample("between", dist.Uniform(-1.0, 3.0))
    with numpyro.plate("pair", 2):
        numpyro.sample("below_scale", dist.Uniform(0.0, scale))  # a bound that is itself a variable
    numpyro.sample("weights", dist.Dirichlet(np.array([2.0, 3.0, 4.0])))
    ordered = numpyro.sample("ordered", dist.ImproperUniform(dist.constraints.ordered_vector, (), (3,)))
    numpyro.factor("prior", dist.Normal(0, scale).log_prob(ordered).sum())


@pytest.fixture(scope="module")
def schools() -> HostTarget:
    return from_numpyro(schools_model, np.array(eight_schools.SIGMA), y=np.array(eight_schools.Y))


@pytest.fixture(scope="module")
def constrained() -> HostTarget:
    return from_numpyro(constrained_model)


def test_density_and_gradient_of_the_schools(schools: HostTarget) -> None:
    check_schools(schools)


def test_the_user_keeps_single_precision(schools: HostTarget) -> None:
    schools.unconstrained(eight_schools.points(3))
    assert not jax.config.jax_enable_x64
    assert jax.numpy.ones(1).dtype == "float32"


def test_names_labels_and_data(schools: HostTarget) -> None:
    space = schools.space
    assert space.variables == {"mu": (), "tau": (), "eta": (8,)}
    assert space.dims == {"eta": ["school"], "y": ["school"]}
    assert schools.names is not None
    assert schools.names[:3] == ["mu", "tau", "eta[0]"]
    assert schools.observed_data["y"].tolist() == eight_schools.Y


def test_what_follows_from_the_parameters(schools: HostTarget) -> None:
    x = schools.space.to_user(eight_schools.points())
    theta = x[:, :1] + x[:, 1:2] * x[:, 2:]
    np.testing.assert_allclose(schools.derived(x)["theta"], theta.numpy(), rtol=1e-12)
    sigma, y = (torch.tensor(values, dtype=torch.float64) for values in (eight_schools.SIGMA, eight_schools.Y))
    found = schools.log_likelihood(x)
    torch.testing.assert_close(found, td.Normal(theta, sigma).log_prob(y), rtol=1e-10, atol=1e-10)


def test_each_batch_size_and_dtype(schools: HostTarget) -> None:
    z = eight_schools.points(400)
    whole = schools.unconstrained(z)
    one_by_one = torch.cat([schools.unconstrained(point[None]) for point in z])
    torch.testing.assert_close(whole, one_by_one, rtol=1e-12, atol=1e-12)
    assert schools.unconstrained(z[:0]).shape == (0,)
    value, gradient = value_and_gradient(schools.unconstrained, z.float())
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value, whole.float(), rtol=1e-5, atol=1e-5)


def test_constrained_density(constrained: HostTarget) -> None:
    assert constrained.space.variables["below_scale"] == (2,)
    x = constrained.space.to_user(random_points(constrained.space.dim))
    scale = x[:, 0]
    expected = (
        td.HalfNormal(torch.tensor(2.0, dtype=torch.float64)).log_prob(scale)
        - np.log(4.0)
        - 2 * scale.log()
        + td.Dirichlet(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)).log_prob(x[:, 4:7])
        + td.Normal(0.0, scale[:, None]).log_prob(x[:, 7:]).sum(1)
    )
    torch.testing.assert_close(constrained(x), expected, rtol=1e-9, atol=1e-9)


def test_transforms_against_differences(constrained: HostTarget) -> None:
    z = random_points(constrained.space.dim)
    check_gradient(constrained, z)
    check_space(constrained, z, free=[0, 1, 2, 3, 4, 5, 7, 8, 9])
    found = constrained.space.by_variable(constrained.space.to_user(z).numpy())
    np.testing.assert_allclose(found["weights"].sum(-1), 1.0, rtol=1e-12)
    assert (np.diff(found["ordered"]) > 0).all()
    assert (found["below_scale"] < found["scale"][:, None]).all()


@pytest.mark.parametrize("column", [0, 1, 3, 4, 8])
def test_points_outside_are_refused(constrained: HostTarget, column: int) -> None:
    x = constrained.space.to_user(random_points(constrained.space.dim))
    x[1, column] = -20.0
    with pytest.raises(ArgumentError, match=r"at 1 of 6 points; the first is x\[1\]: .*scale"):
        constrained(x)


@pytest.mark.slow
def test_cholesky_factor_of_a_correlation() -> None:
    target = from_numpyro(lambda: numpyro.sample("L", dist.LKJCholesky(3, 2.0)))
    assert target.space.variables == {"L": (3, 3)}
    check_gradient(target, random_points(3))
    check_space(target, random_points(3), free=[3, 6, 7])  # below the diagonal


def test_plates_within_plates() -> None:
    def rows() -> None:
        with numpyro.plate("group", 3, dim=-2):
            numpyro.sample("a", dist.MultivariateNormal(np.zeros(2), np.eye(2)))

    def vectors() -> None:
        with numpyro.plate("group", 3, dim=-2), numpyro.plate("item", 4, dim=-1):
            numpyro.sample("a", dist.MultivariateNormal(np.zeros(2), np.eye(2)))

    assert from_numpyro(rows).space.dims == {"a": ["group", "a_dim_1", "a_dim_2"]}
    assert from_numpyro(vectors).space.dims == {"a": ["group", "item", "a_dim_2"]}


def test_no_density_where_the_model_has_nan(caplog: pytest.LogCaptureFixture) -> None:
    def model() -> None:
        x = numpyro.sample("x", dist.Normal(0.5, 1.0))
        numpyro.factor("root", jax.numpy.sqrt(x))

    target = from_numpyro(model)
    value, gradient = value_and_gradient(target.unconstrained, torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    assert value.isneginf().tolist() == [False, True]
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.0, 0.0], dtype=torch.float64))
    assert "NaN or overflows at 1 of 2 points" in caplog.text


def test_models_that_cannot_be_sampled() -> None:
    def discrete() -> None:
        numpyro.sample("count", dist.Poisson(3.0))

    def nowhere() -> None:
        numpyro.factor("none", numpyro.sample("x", dist.Normal()) * np.nan)

    def subsampled() -> None:
        with numpyro.plate("rows", 10, subsample_size=2):
            numpyro.sample("x", dist.Normal())

    def observed() -> None:
        numpyro.sample("x", dist.Normal(), obs=1.0)

    cases = [
        (discrete, r"discrete variables, \['count'\]"),
        (nowhere, "NumPyro says: Cannot find valid initial parameters"),
        (subsampled, "plate 'rows' takes a random subsample"),
        (observed, "no latent variables"),
        (3, "got int"),
    ]
    for model, message in cases:
        with pytest.raises(ArgumentError, match=message):
            from_numpyro(model)  # type: ignore[arg-type]


@pytest.mark.slow
def test_fit_of_the_schools(schools: HostTarget) -> None:
    sampler = JKOSampler(schools.unconstrained, random_state=0, progress=False).fit()
    x = schools.space.to_user(torch.as_tensor(sampler.sample(40_000)))
    for i, name in enumerate(["mu", "tau"]):
        # 0.017 is a standard error of the mean, and a divergence of 2e-4 may shift it by 0.02 sd
        assert abs(float(x[:, i].mean()) - eight_schools.MEANS[name]) < 0.12
        assert float(x[:, i].std()) == pytest.approx(eight_schools.SDS[name], rel=0.05)
