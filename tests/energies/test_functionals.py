"""Energies of fields: values, derivatives and flows against closed forms, differences and autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from jkosampler.energies import AllenCahn, Dirichlet, Energy, Entropy, FunctionalEvaluator, L2Functional, Potential
from jkosampler.errors import (
    ArgumentError,
    TargetCallError,
    TargetError,
    TargetGradientError,
    TargetShapeError,
    TargetValueError,
)

F64 = torch.float64
ARGUMENTS = tuple[Tensor, Tensor, Tensor]


def field(x: Tensor) -> Tensor:
    """A field of which no derivative vanishes."""
    return (1.3 * x[:, 0] + 0.2).sin() * (0.7 * x[:, 1]).cos() + 0.3 * x[:, 0] * x[:, 1] - 0.4 * x[:, 1] ** 2


class At(NamedTuple):
    """A field and its derivatives at points."""

    x: Tensor
    u: Tensor
    gradient: Tensor
    hessian: Tensor


def derivative(values: Tensor, x: Tensor) -> Tensor:
    """Gradient (n, d) of values (n,) at x (n, d), with its graph; zeros where they do not depend on x."""
    if not values.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(values.sum(), x, create_graph=True)[0]


def with_graph(n: int = 40) -> At:
    x = 2.0 * torch.rand(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64) - 1.0
    u = field(x.requires_grad_(True))
    gradient = derivative(u, x)
    return At(x, u, gradient, torch.stack([derivative(column, x) for column in gradient.unbind(1)], 1))


def at() -> At:
    return At(*[part.detach() for part in with_graph()])


def square(p: Tensor) -> Tensor:
    return p.square().sum(-1)


def conductivity(x: Tensor) -> Tensor:
    return 1.5 + (2.0 * x[:, 0]).sin() * x[:, 1]


class Case(NamedTuple):
    """An energy, its integrand, and its derivatives in u and grad u, by hand."""

    energy: Energy
    phi: Callable[..., Tensor]
    by_u: Callable[..., Tensor]
    flux: Callable[..., Tensor]


def mixed_phi(x: Tensor, u: Tensor, p: Tensor) -> Tensor:
    return 0.5 * conductivity(x) * (1.0 + u**2) * square(p) + x[:, 1] * u**3 + u * p[:, 0] * p[:, 1]


CASES = {
    "dirichlet": Case(
        Dirichlet(0.3), lambda x, u, p: 0.15 * square(p), lambda x, u, p: 0.0 * u, lambda x, u, p: 0.3 * p
    ),
    "allen-cahn": Case(
        AllenCahn(0.5),
        lambda x, u, p: 0.5 * square(p) + (u**2 - 1) ** 2,
        lambda x, u, p: 4.0 * (u**3 - u),
        lambda x, u, p: p,
    ),
    "decay": Case(
        L2Functional(lambda x, u, p: 0.35 * u**2),
        lambda x, u, p: 0.35 * u**2,
        lambda x, u, p: 0.7 * u,
        lambda x, u, p: 0.0 * p,
    ),
    "p-laplacian": Case(
        L2Functional(lambda x, u, p: 0.25 * p.square().sum(-1) ** 2),
        lambda x, u, p: 0.25 * square(p) ** 2,
        lambda x, u, p: 0.0 * u,
        lambda x, u, p: square(p)[:, None] * p,
    ),
    "everything": Case(
        L2Functional(mixed_phi),
        mixed_phi,
        lambda x, u, p: conductivity(x) * u * square(p) + 3 * x[:, 1] * u**2 + p[:, 0] * p[:, 1],
        lambda x, u, p: (conductivity(x) * (1.0 + u**2))[:, None] * p + u[:, None] * p.flip(1),
    ),
    "drift": Case(  # linear in grad u, with and without x: second derivatives are zeros
        L2Functional(lambda x, u, p: x[:, 0] ** 2 * p[:, 0] + 2.0 * p[:, 1]),
        lambda x, u, p: x[:, 0] ** 2 * p[:, 0] + 2.0 * p[:, 1],
        lambda x, u, p: 0.0 * u,
        lambda x, u, p: torch.stack([x[:, 0] ** 2, torch.full_like(u, 2.0)], 1),
    ),
    "of x alone": Case(
        L2Functional(lambda x, u, p: x[:, 0]), lambda x, u, p: x[:, 0], lambda x, u, p: 0 * u, lambda x, u, p: 0 * p
    ),
}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def difference(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor, h: float = 1e-5) -> Tensor:
    """Central differences: of rounding and of third derivatives they leave about 1e-9."""
    return (function(x + h * direction) - function(x - h * direction)) / (2.0 * h)


def test_values_and_first_derivatives(case: Case) -> None:
    x, u, p, _ = at()
    evaluator = FunctionalEvaluator(case.energy)
    found = evaluator.integrand(x, u, p)
    torch.testing.assert_close(found.value, case.phi(x, u, p))
    torch.testing.assert_close(evaluator.value(x, u, p), case.phi(x, u, p))
    torch.testing.assert_close(found.by_u, case.by_u(x, u, p))
    torch.testing.assert_close(found.by_gradient, case.flux(x, u, p))
    assert not any(part.requires_grad for part in found)
    assert (evaluator.n_evaluations, evaluator.n_calls) == (2 * len(x), 2)


def test_derivatives_are_those_of_differences(case: Case) -> None:
    """The oracle's own formulas and the package's: two independent checks of both."""
    x, u, p, _ = at()
    evaluator = FunctionalEvaluator(case.energy)
    found, (uu, pp) = evaluator.integrand(x, u, p), evaluator.curvature(x, u, p)
    one = torch.ones_like(u)
    close = {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(found.by_u, difference(lambda v: evaluator.value(x, v, p), u, one), **close)
    torch.testing.assert_close(uu, difference(lambda v: evaluator.integrand(x, v, p).by_u, u, one), **close)
    for i in range(2):
        axis = torch.eye(2, dtype=F64)[i].expand_as(p)
        by_axis = difference(lambda q: evaluator.value(x, u, q), p, axis)
        torch.testing.assert_close(found.by_gradient[:, i], by_axis, **close)
        column = difference(lambda q: evaluator.integrand(x, u, q).by_gradient, p, axis)
        torch.testing.assert_close(pp[:, :, i], column, **close)


def test_equation_is_divergence_less_reaction(case: Case) -> None:
    """`div(d phi / d grad u) - d phi / d u` of one function of x, differentiated as a whole."""
    x, u, p, _ = with_graph()
    flux = case.flux(x, u, p)
    divergence = sum(derivative(flux[:, i], x)[:, i] for i in range(2))
    expected = (divergence - case.by_u(x, u, p)).detach()
    torch.testing.assert_close(FunctionalEvaluator(case.energy).equation(*at()), expected)


@pytest.mark.parametrize(
    ("name", "right_side"),
    [
        ("dirichlet", lambda u, p, h: 0.3 * (h[:, 0, 0] + h[:, 1, 1])),
        ("allen-cahn", lambda u, p, h: h[:, 0, 0] + h[:, 1, 1] - 4.0 * (u**3 - u)),
        ("decay", lambda u, p, h: -0.7 * u),
        (  # div(|p|^2 p) = |p|^2 Lap u + 2 p' H p
            "p-laplacian",
            lambda u, p, h: square(p) * (h[:, 0, 0] + h[:, 1, 1]) + 2.0 * torch.einsum("ni,nij,nj->n", p, h, p),
        ),
    ],
)
def test_equation_is_the_printed_one(name: str, right_side: Callable[..., Tensor]) -> None:
    x, u, p, hessian = at()
    found = FunctionalEvaluator(CASES[name].energy).equation(x, u, p, hessian)
    torch.testing.assert_close(found, right_side(u, p, hessian))


def test_energies_of_fields_add_and_scale() -> None:
    x, u, p, hessian = at()
    parts = [CASES[name].energy for name in ("dirichlet", "allen-cahn", "everything")]
    total = FunctionalEvaluator(2.0 * (parts[0] + 0.5 * parts[1]) + -3.0 * parts[2])
    evaluators = [FunctionalEvaluator(part) for part in parts]

    def compare(of: Callable[[FunctionalEvaluator], Tensor]) -> None:
        expected = sum(c * of(evaluator) for c, evaluator in zip((2.0, 1.0, -3.0), evaluators, strict=True))
        torch.testing.assert_close(of(total), expected)

    compare(lambda e: e.value(x, u, p))
    compare(lambda e: e.integrand(x, u, p).by_u)
    compare(lambda e: e.integrand(x, u, p).by_gradient)
    compare(lambda e: e.curvature(x, u, p)[0])
    compare(lambda e: e.curvature(x, u, p)[1])
    compare(lambda e: e.equation(x, u, p, hessian))
    assert repr(2.0 * Dirichlet(0.1) + AllenCahn(0.25)) == "2 * Dirichlet(kappa=0.1) + 1 * AllenCahn(epsilon=0.25)"


def test_only_what_is_differentiable_has_a_graph() -> None:
    x, u, p, _ = at()
    evaluator, leaf = FunctionalEvaluator(AllenCahn(0.5)), p.clone().requires_grad_(True)
    (by_gradient,) = torch.autograd.grad(evaluator.differentiable(x, u, leaf).sum(), leaf)
    torch.testing.assert_close(by_gradient, p)
    assert not evaluator.value(x, u, leaf).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(evaluator.integrand(x, u, p).by_gradient, p)


def raises(x: Tensor, u: Tensor, p: Tensor) -> Tensor:
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("phi", "error", "message"),
    [
        (raises, TargetCallError, r"phi of the energy L2Functional\(\) fails: RuntimeError\('no'\)"),
        (lambda x, u: u, TargetCallError, "phi of the energy .* fails: TypeError"),
        (lambda x, u, p: torch.from_numpy(u.numpy() ** 2), TargetCallError, "phi of the energy .* fails: RuntimeError"),
        (lambda x, u, p: p, TargetShapeError, r"phi of the energy .* shape \(40,\), got \(40, 2\)"),
        (lambda x, u, p: u.sum(), TargetShapeError, r"phi of the energy .* shape \(40,\), got \(\)"),
        (lambda x, u, p: 1.0, TargetShapeError, r"phi of the energy .* shape \(40,\), got float"),
        (lambda x, u, p: u.log(), TargetValueError, r"phi of the energy: its value is not finite at 21 points: x\["),
        (lambda x, u, p: u - u.mean(), TargetCallError, "phi of the energy must treat points alike"),
        (lambda x, u, p: (u - u).abs().sqrt(), TargetGradientError, "phi of the energy: its derivative is not finite"),
    ],
)
def test_a_phi_that_misbehaves_is_found_at_once(phi: Callable[..., Tensor], error: type, message: str) -> None:
    x, u, p, _ = at()
    with pytest.raises(error, match=message) as caught:
        FunctionalEvaluator(Dirichlet() + L2Functional(phi)).check(x, u, p)
    assert isinstance(caught.value, TargetError)
    if isinstance(caught.value, TargetValueError):
        rows = (u <= 0.0).nonzero()[:, 0]
        assert caught.value.indices.tolist() == rows.tolist()
        assert caught.value.points.tolist() == x[rows[:10]].tolist()


def test_a_phi_that_behaves_passes_the_check(case: Case) -> None:
    FunctionalEvaluator(case.energy).check(*at()[:3])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dirichlet(0.0), "kappa must be one positive number"),
        (lambda: AllenCahn(-0.1), "epsilon must be one positive number"),
        (lambda: L2Functional(3.0), "phi must be a callable .* got float"),
        (lambda: FunctionalEvaluator(Dirichlet() + Entropy()), r"energy: the term Entropy\(\) is one of densities"),
        (lambda: FunctionalEvaluator(Potential(square)), r"energy: the term Potential\(\) is one of densities"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_a_phi_that_torch_cannot_see_is_refused() -> None:
    x = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)[:, None]
    evaluator = FunctionalEvaluator(L2Functional(lambda x, u, grad_u: u.detach() ** 2))
    with pytest.raises(TargetGradientError, match="torch operations on u"):
        evaluator.check(x, x[:, 0], torch.ones_like(x))


def test_curvature_at_a_kink_is_zero_and_the_equation_undefined() -> None:
    x = torch.zeros(3, 1, dtype=torch.float64)
    evaluator = FunctionalEvaluator(L2Functional(lambda x, u, grad_u: grad_u.norm(dim=-1)))
    assert evaluator.curvature(x, x[:, 0], x)[1].eq(0.0).all()
    assert not evaluator.equation(x, x[:, 0], x, torch.ones(3, 1, 1, dtype=torch.float64)).isfinite().all()


def test_a_field_may_start_where_phi_is_stationary() -> None:
    """As u = +-1 does for Allen and Cahn's energy, and every constant for Dirichlet's."""
    x = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)[:, None]
    for term in (AllenCahn(0.1), Dirichlet(1.0)):
        FunctionalEvaluator(term).check(x, torch.ones(9, dtype=torch.float64), torch.zeros_like(x))
