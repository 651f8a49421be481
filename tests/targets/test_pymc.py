"""PyMC's models, against densities and transforms computed without it."""

from __future__ import annotations

import copy
from typing import Any

import eight_schools
import numpy as np
import pytest
import torch
import torch.distributions as td
from host_checks import check_gradient, check_schools, check_space, random_points, value_and_gradient

from jkosampler import JKOSampler
from jkosampler.errors import ArgumentError
from jkosampler.targets import HostTarget, from_pymc

pm = pytest.importorskip("pymc")
pytestmark = pytest.mark.slow  # where nothing is in its cache, PyTensor compiles for minutes

CONSTANT = {"rtol": 0.0, "atol": 1e-8}  # 2 / pi, in PyMC's half-normal density, is a number of single precision


def schools_model() -> Any:
    with pm.Model(coords={"school": list("abcdefgh")}) as model:
        sigma = pm.Data("sigma", np.array(eight_schools.SIGMA), dims="school")
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        eta = pm.Normal("eta", 0, 1, dims="school")
        theta = pm.Deterministic("theta", mu + tau * eta, dims="school")
        pm.Normal("y", theta, sigma, observed=np.array(eight_schools.Y), dims="school")
    return model


@pytest.fixture(scope="module")
def schools() -> HostTarget:
    return from_pymc(schools_model())


@pytest.fixture(scope="module")
def constrained() -> HostTarget:
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", 2.0)
        pm.Uniform("between", -1.0, 3.0)
        pm.Uniform("below_scale", 0.0, scale, shape=2)  # a bound that is itself a variable
        pm.Dirichlet("weights", [2.0, 3.0, 4.0])
        pm.Normal("ordered", 0.0, scale, shape=3, transform=pm.distributions.transforms.ordered, initval=[-1, 0, 1])
    return from_pymc(model)


def test_density_and_gradient_of_the_schools(schools: HostTarget) -> None:
    check_schools(schools)


def test_names_labels_and_data(schools: HostTarget) -> None:
    space = schools.space
    assert space.variables == {"mu": (), "tau": (), "eta": (8,)}
    assert space.dims == {"eta": ["school"], "sigma": ["school"], "y": ["school"]}
    assert space.coords["school"].tolist() == list("abcdefgh")
    assert schools.names is not None
    assert schools.names[:3] == ["mu", "tau", "eta[0]"]
    assert schools.observed_data["y"].tolist() == eight_schools.Y
    assert schools.constant_data["sigma"].tolist() == eight_schools.SIGMA


def test_what_follows_from_the_parameters(schools: HostTarget) -> None:
    x = schools.space.to_user(eight_schools.points())
    theta = x[:, :1] + x[:, 1:2] * x[:, 2:]
    np.testing.assert_allclose(schools.derived(x)["theta"], theta.numpy(), rtol=1e-12)
    sigma, y = (torch.tensor(values, dtype=torch.float64) for values in (eight_schools.SIGMA, eight_schools.Y))
    found = schools.log_likelihood(x)
    torch.testing.assert_close(found, td.Normal(theta, sigma).log_prob(y), rtol=1e-10, atol=1e-10)
    z = schools.space.to_unconstrained(x)
    torch.testing.assert_close(schools.unconstrained.log_likelihood(z), found, rtol=1e-10, atol=1e-10)


def test_each_batch_size_and_dtype(schools: HostTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    z = eight_schools.points(7)
    whole = schools.unconstrained(z)
    for n in (0, 1, 2):
        torch.testing.assert_close(schools.unconstrained(z[:n]), whole[:n], rtol=1e-12, atol=1e-12)
    monkeypatch.setattr("jkosampler.targets.hosts._BATCH_ELEMENTS", 60)  # three points at a time
    torch.testing.assert_close(schools.unconstrained(z), whole, rtol=1e-12, atol=1e-12)
    value, gradient = value_and_gradient(schools.unconstrained, z.float())
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value, whole.float(), rtol=1e-5, atol=1e-5)


def test_data_are_those_of_the_call() -> None:
    model = schools_model()
    target = from_pymc(model)
    z = eight_schools.points(2)
    value = target.unconstrained(z)
    with model:
        pm.set_data({"sigma": np.ones(8)})
    copied = copy.deepcopy(target)
    torch.testing.assert_close(value_and_gradient(copied.unconstrained, z)[0], value)


def test_constrained_density(constrained: HostTarget) -> None:
    z = random_points(constrained.space.dim)
    x = constrained.space.to_user(z)
    scale = x[:, 0]
    double = {"dtype": torch.float64}
    expected = (
        td.HalfNormal(torch.tensor(2.0, **double)).log_prob(scale)
        - np.log(4.0)
        - 2 * scale.log()
        + td.Dirichlet(torch.tensor([2.0, 3.0, 4.0], **double)).log_prob(x[:, 4:7])
        + td.Normal(0.0, scale[:, None]).log_prob(x[:, 7:]).sum(1)
    )
    torch.testing.assert_close(constrained(x), expected, **CONSTANT)


def test_transforms_against_differences(constrained: HostTarget) -> None:
    z = random_points(constrained.space.dim)
    check_gradient(constrained, z)
    check_space(constrained, z, free=[0, 1, 2, 3, 4, 5, 7, 8, 9])
    x = constrained.space.to_user(z).numpy()
    found = constrained.space.by_variable(x)
    np.testing.assert_allclose(found["weights"].sum(-1), 1.0, rtol=1e-12)
    assert (np.diff(found["ordered"]) > 0).all()
    assert (found["below_scale"] < found["scale"][:, None]).all()


@pytest.mark.parametrize("column", [0, 1, 3, 4, 8])
def test_points_outside_are_refused(constrained: HostTarget, column: int) -> None:
    x = constrained.space.to_user(random_points(constrained.space.dim))
    x[1, column] = -20.0
    with pytest.raises(ArgumentError, match=r"at 1 of 6 points; the first is x\[1\]: .*scale"):
        constrained(x)


@pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS installation")
def test_cholesky_factor() -> None:
    with pm.Model() as model:
        pm.LKJCholeskyCov("chol", n=2, eta=2.0, sd_dist=pm.Exponential.dist(1.0, shape=2))
    target = from_pymc(model)
    check_gradient(target, random_points(3))
    check_space(target, random_points(3), free=[0, 1, 2])
    assert {"chol_corr", "chol_stds"} <= set(target.derived(target.space.to_user(random_points(3))))


def test_a_graph_that_cannot_be_vectorised(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> Any:
        raise NotImplementedError("no rule for this Op")

    monkeypatch.setattr("jkosampler.targets.pymc._vectorised", fail)
    target = from_pymc(schools_model())
    assert "point by point" in caplog.text
    z = eight_schools.points(5)
    value, gradient = value_and_gradient(target.unconstrained, z)
    z.requires_grad_()
    expected = torch.autograd.grad(eight_schools.log_density(z).sum(), z)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)
    assert value.shape == (5,)
    assert target.unconstrained(z[:0].detach()).shape == (0,)


def test_no_density_where_the_model_has_nan(caplog: pytest.LogCaptureFixture) -> None:
    with pm.Model() as model:
        x = pm.Normal("x", 0.5, 1.0)
        pm.Potential("root", pm.math.sqrt(x))
    target = from_pymc(model)
    value, gradient = value_and_gradient(target.unconstrained, torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    assert value.isneginf().tolist() == [False, True]
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.0, 0.0], dtype=torch.float64))
    assert "NaN or overflows at 1 of 2 points" in caplog.text


def test_an_illegal_parameter_at_one_point() -> None:
    with pm.Model() as model:
        scale = pm.HalfNormal("scale", 2.0)
        pm.Normal("y", 0.0, scale - 0.125, observed=[1.0, 2.0])
    target = from_pymc(model)
    value, gradient = value_and_gradient(target.unconstrained, torch.tensor([[0.0], [-3.0]], dtype=torch.float64))
    scale, y = torch.tensor(0.875, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    expected = (
        td.HalfNormal(2.0 * torch.ones_like(scale)).log_prob(scale + 0.125) + td.Normal(0, scale).log_prob(y).sum()
    )
    torch.testing.assert_close(value, torch.stack([expected, torch.full_like(scale, -torch.inf)]), **CONSTANT)
    assert gradient.ne(0)[:, 0].tolist() == [True, False]


def test_models_that_cannot_be_sampled() -> None:
    with pm.Model() as discrete:
        pm.Poisson("count", 3.0)
        pm.Normal("x")
    with pytest.raises(ArgumentError, match=r"discrete variables, \['count'\]"):
        from_pymc(discrete)
    with pytest.raises(ArgumentError, match="no free random variables"):
        from_pymc(pm.Model())
    with pytest.raises(ArgumentError, match=r"pymc\.Model, got int"):
        from_pymc(3)
    with pm.Model() as nowhere:
        pm.Potential("none", pm.Normal("x") * np.nan)
    with pytest.raises(ArgumentError, match=r"log density nan at its initial point: `model.debug"):
        from_pymc(nowhere)


def test_fit_of_the_schools(schools: HostTarget) -> None:
    sampler = JKOSampler(schools.unconstrained, random_state=0, progress=False).fit()
    x = schools.space.to_user(torch.as_tensor(sampler.sample(40_000)))
    for i, name in enumerate(["mu", "tau"]):
        # 0.017 is a standard error of the mean, and a divergence of 2e-4 may shift it by 0.02 sd
        assert abs(float(x[:, i].mean()) - eight_schools.MEANS[name]) < 0.12
        assert float(x[:, i].std()) == pytest.approx(eight_schools.SDS[name], rel=0.05)
