"""Stan's models: an object that has BridgeStan's interface, and Stan itself where it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import eight_schools
import numpy as np
import pytest
import torch
import torch.distributions as td
from host_checks import check_gradient, check_space, random_points, value_and_gradient

from jkosampler.errors import ArgumentError
from jkosampler.targets import from_bridgestan

MEAN = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
CONCENTRATION = np.array([2.0, 3.0, 4.0])


class StandIn:
    """sigma ~ exponential(1); w ~ dirichlet(2, 3, 4); B ~ normal(MEAN, sigma), a 2 x 3 matrix.

    z = (log sigma, log w_1 / w_3, log w_2 / w_3, B); from sigma = 1000 on it raises.
    """

    def param_unc_num(self) -> int:
        return 9

    def param_names(self, *, include_tp: bool = False, include_gq: bool = False) -> list[str]:
        assert not include_gq
        names = ["sigma", "w.1", "w.2", "w.3", *(f"B.{i}.{j}" for j in (1, 2, 3) for i in (1, 2))]
        return names + ["row_sum.1", "row_sum.2"] * include_tp

    def log_density(self, theta_unc: np.ndarray, *, propto: bool = True, jacobian: bool = True) -> float:
        assert not propto
        x = self.param_constrain(theta_unc)
        sigma, w, b = x[0], x[1:4], x[4:].reshape(3, 2).T
        if sigma > 1000:
            raise RuntimeError("normal_lpdf: Scale parameter is inf, but must be positive finite!")
        normalised = np.log(1 * 2 * 6 / 40320)  # Gamma(2) Gamma(3) Gamma(4) / Gamma(9)
        value = -sigma + ((CONCENTRATION - 1) * np.log(w)).sum() - normalised
        value += (-0.5 * ((b - MEAN) / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)).sum()
        return value + (np.log(sigma) + np.log(w).sum()) * jacobian

    def log_density_gradient(
        self, theta_unc: np.ndarray, *, propto: bool = True, jacobian: bool = True
    ) -> tuple[float, np.ndarray]:
        value = self.log_density(theta_unc, propto=propto, jacobian=jacobian)
        assert jacobian
        x = self.param_constrain(theta_unc)
        sigma, w, b = x[0], x[1:4], x[4:].reshape(3, 2).T
        scale = -sigma + 1 + (((b - MEAN) / sigma) ** 2 - 1).sum()
        matrix = -((b - MEAN) / sigma**2).T.ravel()
        return value, np.concatenate([[scale], (CONCENTRATION - w * CONCENTRATION.sum())[:2], matrix])

    def param_constrain(self, theta_unc: np.ndarray, *, include_tp: bool = False) -> np.ndarray:
        assert theta_unc.shape == (9,)
        assert theta_unc.dtype == np.float64
        assert theta_unc.flags.c_contiguous
        odds = np.exp(np.array([*theta_unc[1:3], 0.0]))
        x = np.concatenate([[np.exp(theta_unc[0])], odds / odds.sum(), theta_unc[3:]])
        return np.concatenate([x, x[4:].reshape(3, 2).sum(0)]) if include_tp else x

    def param_unconstrain(self, theta: np.ndarray) -> np.ndarray:
        if theta[0] <= 0 or (theta[1:4] <= 0).any() or abs(theta[1:4].sum() - 1) > 1e-8:
            raise RuntimeError("lub_free: out of bounds")
        return np.concatenate([[np.log(theta[0])], np.log(theta[1:3] / theta[3]), theta[4:]])


def test_variables_are_laid_out_row_by_row() -> None:
    target = from_bridgestan(StandIn())
    assert target.space.variables == {"sigma": (), "w": (3,), "B": (2, 3)}
    assert target.names == ["sigma", "w[0]", "w[1]", "w[2]", *(f"B[{i},{j}]" for i in (0, 1) for j in (0, 1, 2))]
    z = random_points(9)
    b = target.space.by_variable(target.space.to_user(z).numpy())["B"]
    np.testing.assert_array_equal(b, z[:, 3:].numpy().reshape(-1, 3, 2).transpose(0, 2, 1))
    found = target.derived(target.space.to_user(z))
    assert list(found) == ["row_sum"]
    np.testing.assert_allclose(found["row_sum"], b.sum(2), rtol=1e-14)


def test_density_of_the_parameters() -> None:
    target = from_bridgestan(StandIn())
    z = random_points(9)
    x = target.space.to_user(z)
    expected = (
        td.Exponential(torch.tensor(1.0, dtype=torch.float64)).log_prob(x[:, 0])
        + td.Dirichlet(torch.from_numpy(CONCENTRATION)).log_prob(x[:, 1:4])
        + td.Normal(torch.from_numpy(MEAN.ravel()), x[:, :1]).log_prob(x[:, 4:]).sum(1)
    )
    torch.testing.assert_close(target(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(target.unconstrained(z), expected + target.space.log_jacobian(z), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(target(x.numpy()), expected.numpy(), rtol=1e-10)


def test_gradient_and_jacobian() -> None:
    target = from_bridgestan(StandIn())
    check_gradient(target, random_points(9))
    check_space(target, random_points(9), free=[0, 1, 2, 4, 5, 6, 7, 8, 9])


def test_no_density_where_stan_raises(caplog: pytest.LogCaptureFixture) -> None:
    target = from_bridgestan(StandIn())
    z = torch.zeros(3, 9, dtype=torch.float64)
    z[1, 0] = 8.0
    for _ in range(2):
        value, gradient = value_and_gradient(target.unconstrained, z)
        assert value.isneginf().tolist() == [False, True, False]
        assert gradient[1].eq(0).all()
        assert gradient[0].ne(0).any()
    assert target(target.space.to_user(z)).isneginf().tolist() == [False, True, False]
    assert target.space.log_jacobian(z).isnan().tolist() == [False, True, False]
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once
    assert "Scale parameter is inf" in caplog.text


def test_points_outside_are_named() -> None:
    target = from_bridgestan(StandIn())
    x = target.space.to_user(random_points(9))
    x[2, 0] = -1.0
    with pytest.raises(ArgumentError, match=r"at 1 of 6 points; the first is x\[2\]: .*'sigma': -1.0"):
        target(x)
    x[2, 0], x[2, 1] = 1.0, 2.0
    with pytest.raises(ArgumentError, match="constraint"):
        target.space.to_unconstrained(x)


def test_names_of_tuples_and_of_sparse_indices() -> None:
    class Tuples(StandIn):
        def param_names(self, **_: Any) -> list[str]:
            return ["p.1:1", "p.1:2.1", "p.1:2.2", "p.2:1", "p.2:2.1", "p.2:2.2", "c.real", "c.imag", "a", "b"]

    variables = from_bridgestan(Tuples()).space.variables
    assert variables == {"p.1:1": (), "p.1:2": (2,), "p.2:1": (), "p.2:2": (2,)} | dict.fromkeys(
        ["c.real", "c.imag", "a", "b"], ()
    )


def test_other_objects_are_refused() -> None:
    with pytest.raises(ArgumentError, match="StanModel; str has no method param_unc_num, param_names"):
        from_bridgestan("model.stan")

    class Empty(StandIn):
        def param_unc_num(self) -> int:
            return 0

    with pytest.raises(ArgumentError, match="no parameters"):
        from_bridgestan(Empty())


STAN = """
data { vector[8] y; vector[8] sigma; }
parameters { real mu; real<lower=0> tau; vector[8] eta; }
transformed parameters { vector[8] theta = mu + tau * eta; }
model { mu ~ normal(0, 5); tau ~ cauchy(0, 5); eta ~ std_normal(); y ~ normal(theta, sigma); }
"""


@pytest.mark.slow
@pytest.mark.skipif("BRIDGESTAN" not in os.environ, reason="BRIDGESTAN names no source of BridgeStan to compile with")
def test_stan_itself(tmp_path: Path) -> None:
    bridgestan = pytest.importorskip("bridgestan")
    path = tmp_path / "eight_schools.stan"
    path.write_text(STAN)
    data = f'{{"y": {eight_schools.Y}, "sigma": {eight_schools.SIGMA}}}'
    target = from_bridgestan(bridgestan.StanModel.from_stan_file(str(path), data))
    z = eight_schools.points()
    difference = target.unconstrained(z) - eight_schools.log_density(z)
    torch.testing.assert_close(difference, difference[:1].expand(len(z)), rtol=1e-8, atol=1e-8)
    assert target.space.variables == {"mu": (), "tau": (), "eta": (8,)}
    theta = target.derived(target.space.to_user(z))["theta"]
    np.testing.assert_allclose(theta, (z[:, :1] + z[:, 1:2].exp() * z[:, 2:]).numpy(), rtol=1e-12)
    check_space(target, random_points(10), free=list(range(10)))
