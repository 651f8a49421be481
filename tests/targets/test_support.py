"""`Target(support=...)`: variables from names, constraints from words, the density in R^d, and clear errors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.distributions as td
from torch import Tensor

from jkosampler import laws
from jkosampler.errors import ArgumentError, TargetShapeError, TargetValueError
from jkosampler.targets import BayesianInverseProblem, Space, Target, TargetEvaluator
from jkosampler.targets.pulled_law import pulled_law
from jkosampler.targets.support import space_of

MIXED = ["sigma", "p", "w[0]", "w[1]", "w[2]", "b", "L[0,0]", "L[0,1]", "L[1,0]", "L[1,1]"]
WORDS = {"sigma": "positive", "p": (0, 1), "w": "simplex", "L": "cholesky correlation"}


def flat(x: Tensor) -> Tensor:
    return 0.0 * x.sum(1)


def gamma(x: Tensor) -> Tensor:
    return (1.5 * x.log() - 2.0 * x).sum(1)


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_names_and_words_make_a_space() -> None:
    space = Target(flat, names=MIXED, support=WORDS).space
    assert space is not None
    assert (space.dim, space.n_columns, space.column_names) == (6, 10, MIXED)
    assert space.variables == {"sigma": (), "p": (), "w": (3,), "b": (), "L": (2, 2)}
    z = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = space.to_user(z)
    torch.testing.assert_close(space.to_unconstrained(x), z, rtol=0.0, atol=1e-12)
    assert bool(space.contains(x).all())
    torch.testing.assert_close(x[:, 0].log(), z[:, 0])
    torch.testing.assert_close(x[:, 1].logit(), z[:, 1])
    assert torch.equal(x[:, 5], z[:, 4])
    shaped = space.by_variable(x.numpy())
    assert {name: values.shape for name, values in shaped.items()} == {
        "sigma": (20,), "p": (20,), "w": (20, 3), "b": (20,), "L": (20, 2, 2),
    }  # fmt: skip


def test_the_log_jacobian_is_the_sum_over_the_variables() -> None:
    space = space_of({"a": "positive", "b": (0, 1)}, ["a", "c", "b"], 3)
    z = tensor([0.3, 5.0, -0.7])
    exact = 0.3 + torch.log(torch.sigmoid(z[:, 2]) * torch.sigmoid(-z[:, 2]))
    torch.testing.assert_close(space.log_jacobian(z), exact)


@pytest.mark.parametrize("word", ["positive ordered", "positive_ordered", "Positive-Ordered"])
def test_words_may_be_spelled(word: str) -> None:
    assert "positive and increasing" in repr(space_of({"x": word}, None, 3))


@pytest.mark.parametrize(
    ("ends", "inside", "outside"),
    [
        ((None, None), -5.0, None),
        ((0, None), 0.1, 0.0),
        ((2.0, np.inf), 2.1, 2.0),
        ((None, -1), -1.5, -1.0),
        ((-np.inf, 0), -1.5, 0.0),
        ([0, 1], 0.5, 1.0),
    ],
)
def test_ends_of_intervals(ends: tuple, inside: float, outside: float | None) -> None:
    space = space_of({"a": ends}, ["a"], 1)
    assert bool(space.contains(tensor([inside])))
    if outside is not None:
        assert not bool(space.contains(tensor([outside])))


@pytest.mark.parametrize(
    ("support", "names", "match"),
    [
        ({"s": "positiv"}, ["s"], "'s' is 'positiv', but must be one of"),
        ({"t": "positive"}, ["s"], "no variable 't'; the names make"),
        ({"w[0]": "positive"}, ["w[0]", "w[1]"], r"no variable 'w\[0\]'"),
        ({"s": (1, 0)}, ["s"], "low end below its high"),
        ({"s": (0, "one")}, ["s"], "numbers or None"),
        ({"s": (float("nan"), 1)}, ["s"], "low end below"),
        ({"s": "simplex"}, ["s"], "has shape"),
        ({"w": "simplex"}, ["w[0]"], "two or more columns"),
        ({"w": "ordered"}, ["w[0,0]", "w[0,1]"], "a vector"),
        ({"w": "cholesky correlation"}, ["w[0]", "w[1]"], "a square matrix"),
        ({}, ["w[0]", "a", "w[1]"], "must follow one another"),
        ({}, ["w[1]", "w[0]"], "must follow one another"),
        ({}, ["w[0]", "w[99999999999]"], "must follow one another"),
        ({}, ["w", "w[0]"], "must follow one another"),
        ("positive", ["s"], "must be a dict"),
    ],
)
def test_what_makes_no_space_is_refused(support: object, names: list[str], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Target(flat, names=names, support=support)


def test_a_space_and_a_support_are_one_too_many() -> None:
    space = space_of({"x": "positive"}, None, 2)
    assert Target(flat, space=space).dim == 2
    with pytest.raises(ArgumentError, match="give one of them"):
        Target(flat, space=space, support={"x": "positive"})
    with pytest.raises(ArgumentError, match="space must be"):
        Target(flat, 2, space="positive")
    with pytest.raises(ArgumentError, match="contradict"):
        Target(flat, 3, space=space)


BOUNDARY = {
    "sigma": ([0.0, 0.5, 0.2, 0.3, 0.5, 1.0, 1.0, 0.0, 0.6, 0.8], "'sigma' must be above 0"),
    "p": ([1.0, 1.0, 0.2, 0.3, 0.5, 1.0, 1.0, 0.0, 0.6, 0.8], "'p' must be in"),
    "face": ([1.0, 0.5, 0.0, 0.5, 0.5, 1.0, 1.0, 0.0, 0.6, 0.8], "'w' must be a simplex"),
    "sum": ([1.0, 0.5, 0.2, 0.3, 0.6, 1.0, 1.0, 0.0, 0.6, 0.8], "'w' must be a simplex"),
    "singular": ([1.0, 0.5, 0.2, 0.3, 0.5, 1.0, 1.0, 0.0, 1.0, 0.0], "'L' must be the Cholesky"),
    "upper": ([1.0, 0.5, 0.2, 0.3, 0.5, 1.0, 1.0, 0.1, 0.6, 0.8], "'L' must be the Cholesky"),
    "length": ([1.0, 0.5, 0.2, 0.3, 0.5, 1.0, 1.0, 0.0, 0.6, 0.9], "'L' must be the Cholesky"),
    "sign": ([1.0, 0.5, 0.2, 0.3, 0.5, 1.0, 1.0, 0.0, 0.6, -0.8], "'L' must be the Cholesky"),
}
GOOD = [1.0, 0.5, 0.2, 0.3, 0.5, 1.0, 1.0, 0.0, 0.6, 0.8]


@pytest.mark.parametrize(("bad", "match"), BOUNDARY.values(), ids=BOUNDARY)
def test_the_boundary_and_beyond_are_refused_by_row(bad: list[float], match: str) -> None:
    space = space_of(WORDS, MIXED, 10)
    x = tensor(GOOD, bad, GOOD)
    assert space.contains(x).tolist() == [True, False, True]
    # the base class finds the same rows by trying
    assert Space.contains(space, x).tolist() == [True, False, True]
    with pytest.raises(ArgumentError, match=match) as raised:
        space.to_unconstrained(x)
    assert "1 of 3 rows are not: row 1 = (" in str(raised.value)


def test_ordered_rows() -> None:
    space = space_of({"x": "ordered"}, None, 3)
    assert space.contains(tensor([1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [2.0, 1.0, 3.0])).tolist() == [True, False, False]
    positive = space_of({"x": "positive ordered"}, None, 2)
    assert positive.contains(tensor([1.0, 2.0], [0.0, 3.0], [-1.0, 3.0])).tolist() == [True, False, False]


def test_a_target_keeps_the_users_space_and_hands_out_the_unconstrained_density() -> None:
    target = Target(
        gamma,
        2,
        support={"x": "positive"},
        log_likelihood=lambda x: x.log(),
        observed_data={"y": [1.0]},
    )
    x = tensor([0.5, 2.0])
    assert torch.equal(target(x), gamma(x))
    inner = target.unconstrained
    assert (inner.dim, inner.space, inner.unconstrained) == (2, None, inner)
    torch.testing.assert_close(inner(x.log()), gamma(x) + x.log().sum(1))  # with the Jacobian
    torch.testing.assert_close(inner.log_likelihood(x.log()), x.log())
    assert inner.observed_data["y"].tolist() == [1.0]
    assert copy.deepcopy(target).unconstrained.dim == 2
    plain = Target(gamma, 2)
    assert plain.unconstrained is plain


def test_errors_of_a_constrained_target_name_the_users_points() -> None:
    space = {"w": "simplex"}
    names = ["w[0]", "w[1]", "w[2]"]
    z = torch.zeros(3, 2, dtype=torch.float64)
    wrong = Target(lambda x: gamma(x).unsqueeze(1), names=names, support=space)
    with pytest.raises(TargetShapeError, match=r"shape \(3, 1\) for points of shape \(3, 3\)"):
        TargetEvaluator(wrong.unconstrained).log_density(z)
    undefined = Target(lambda x: gamma(x) * torch.nan, names=names, support=space)
    with pytest.raises(TargetValueError, match=r"x\[0\] = \(0.333333, 0.333333, 0.333333\)") as raised:
        TargetEvaluator(undefined.unconstrained).log_density(z)
    assert raised.value.points.shape == (3, 3)


class Exponentials(Space):
    """x = e^z, whose derivative torch takes from x itself."""

    def to_user(self, z: Tensor) -> Tensor:
        return z.exp()

    def to_unconstrained(self, x: Tensor) -> Tensor:
        return x.log()

    def log_jacobian(self, z: Tensor) -> Tensor:
        return z.sum(1)


def test_a_function_that_works_in_place_keeps_its_gradient() -> None:
    target = Target(lambda x: gamma(x.mul_(2.0)), space=Exponentials(2, {"x": (2,)}))
    _, gradient = TargetEvaluator(target.unconstrained).value_and_grad(torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(gradient, tensor([2.5 - 4.0, 2.5 - 4.0]))


def test_a_scale_of_nothing_has_no_density_rather_than_no_gradient() -> None:
    target = Target(lambda x: td.Normal(0.0, x[:, 0]).log_prob(torch.tensor(3.0)), 1, support={"x": "positive"})
    value, gradient = TargetEvaluator(target.unconstrained).value_and_grad(tensor([-700.0], [-280.0], [-100.0], [0.0]))
    assert value.isneginf().tolist() == [True, True, False, False]
    assert bool(gradient.isfinite().all())
    assert gradient[3, 0] == pytest.approx(9.0)  # -log s - 9 / (2 s^2) + log s


def test_a_prior_inside_the_space_is_pulled_back() -> None:
    prior = td.Gamma(tensor([2.0, 3.0])[0], tensor([1.0, 2.0])[0])
    law = Target(gamma, 2, support={"x": "positive"}, prior=prior).unconstrained.prior
    assert law is not None
    assert not law.has_jump  # its edge is at infinity now
    z = law.sample((20_000,), generator=torch.Generator().manual_seed(0))
    exact = torch.digamma(tensor([2.0, 3.0])[0]) - tensor([1.0, 2.0])[0].log()
    torch.testing.assert_close(z.mean(0), exact, rtol=0.0, atol=0.03)  # sd .8 / sqrt(20 000) = .006
    torch.testing.assert_close(law.mean, exact, rtol=0.0, atol=0.015)
    torch.testing.assert_close(law.log_prob(z), prior.log_prob(z.exp()).sum(1) + z.sum(1))
    assert law.to(torch.float32).log_prob(z.float()).dtype == torch.float32
    assert "unconstrained" in law.describe()


@pytest.mark.parametrize(
    ("prior", "jumps"),
    [(laws.Uniform([0.0], [1.0]), False), (laws.Uniform([0.2], [0.8]), True), (laws.Normal(0.5, 1.0), None)],
    ids=["all of the space", "a part of it", "more than it"],
)
def test_priors_with_edges(prior: laws.Law, jumps: bool | None) -> None:
    law = pulled_law(prior, space_of({"x": (0, 1)}, None, 1))
    assert (None if law is None else law.has_jump) is jumps


def test_draws_that_rounding_has_put_onto_the_boundary_are_drawn_anew() -> None:
    def rounded(n: int, generator: torch.Generator) -> Tensor:
        x = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        return torch.where(x < 0.3, 0.0, x) if n == 100 else x

    law = pulled_law(laws.CallableLaw(rounded, flat, 1), space_of({"x": (0, 1)}, None, 1))
    assert law is not None
    assert bool(law.sample((100,), generator=torch.Generator().manual_seed(0)).isfinite().all())


def test_an_inverse_problem_takes_constraints() -> None:
    prior = td.Exponential(torch.ones(1, dtype=torch.float64))
    problem = BayesianInverseProblem(
        lambda x: x.square(), y=[1.0], noise_std=0.5, prior=prior, names=["k"], support={"k": "positive"}
    )
    z = tensor([0.3])
    torch.testing.assert_close(problem.unconstrained(z), problem(z.exp()) + 0.3)
    assert problem.unconstrained.log_likelihood(z).shape == (1, 1)
