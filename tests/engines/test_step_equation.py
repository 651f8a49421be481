"""The integrated Euler-Lagrange equation and its derivative, against automatic differentiation of its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from oracles import WORKED
from small_problems import (
    draw,
    evaluator,
    exact_frame,
    gaussian_law,
    ridge_potential,
    seeded,
)
from torch import Tensor
from torch.func import grad, jacrev, vmap

from jkosampler.energies import KL, Energy, Entropy, Interaction, Internal, Potential, Power
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_equation import StepEquation, n_functions
from jkosampler.errors import TargetError
from jkosampler.laws import Gaussian
from jkosampler.maps import GradientMap
from jkosampler.metrics import Frame
from jkosampler.particles import Particles

WIDTH, N = 5, 14


def rippled(x: Tensor) -> Tensor:
    """V (...) at points x (..., d)."""
    return 0.5 * x.square().sum(-1) + 0.3 * (2.0 * x).cos().sum(-1) + 0.2 * (x[..., 0] * x[..., -1]).sin()


def kernel(z: Tensor) -> Tensor:
    return 0.4 * z.norm(dim=-1).log() + 0.2 * z.square().sum(-1)


class Case(NamedTuple):
    """An energy without interaction, by hand: `slope` is U'(rho) of its internal part."""

    energy: Energy
    slope: Callable[[Tensor], Tensor]
    mass: float = 1.0


CASES = {
    "kl": Case(KL(lambda x: -rippled(x)), lambda rho: rho.log() + 1.0),
    "power": Case(Power(3) + Potential(rippled), lambda rho: 1.5 * rho**2),
    "sum": Case(
        2.0 * Entropy() + 0.5 * Power(2) + Internal(lambda rho: rho**2 / (1.0 + rho)) + Potential(rippled),
        lambda rho: 2.0 * (rho.log() + 1.0) + rho + (2.0 * rho + rho**2) / (1.0 + rho) ** 2,
        mass=2.5,
    ),
}


def small_problem(case: Case, dim: int, n: int = N) -> tuple[StepProblem, Particles, Tensor]:
    generator = seeded(dim)
    noise = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    factor = torch.eye(dim, dtype=torch.float64) + 0.2 * noise
    frame = Frame(torch.linspace(-0.3, 0.4, dim, dtype=torch.float64), factor, 1.7)
    law = Gaussian(frame.centre, factor @ factor.mT)
    problem = StepProblem(evaluator(case.energy, dim, mass=case.mass), frame, 0.6)
    return problem, frame.to_inner(draw(law, n)), torch.linspace(1.0, 2.0, n, dtype=torch.float64)


def equation_by_hand(
    case: Case, problem: StepProblem, felt: Callable[[Tensor, int], Tensor] | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """F at one point z (d,) with log density there, of the parameters (p,); `felt` is `W * rho'` at x for row i."""
    frame, k = problem.frame, problem.frame.cost / problem.tau

    def phi(parameters: Tensor, z: Tensor) -> Tensor:
        d = len(z)
        sizes = [WIDTH, d, d * (d + 1) // 2, WIDTH * d, WIDTH]
        c, linear, triangle, w, b = parameters.split(sizes)
        upper = torch.zeros(d, d, dtype=z.dtype).index_put(tuple(torch.triu_indices(d, d)), triangle)
        quadratic = upper + upper.mT - torch.diag(upper.diagonal())
        ridges = torch.cosh(w.reshape(WIDTH, d) @ z + b).mul(2.0).log()
        return c @ ridges + linear @ z + 0.5 * z @ quadratic @ z

    def equation(parameters: Tensor, z: Tensor, log_rho: Tensor, row: Tensor) -> Tensor:
        velocity = grad(phi, argnums=1)(parameters, z)
        jacobian = torch.eye(len(z), dtype=z.dtype) + jacrev(grad(phi, argnums=1), argnums=1)(parameters, z)
        x = frame.centre + frame.factor @ (z + velocity)
        rho = case.mass * torch.exp(log_rho) / torch.linalg.det(jacobian)
        variation = rippled(x) + case.slope(rho) + k * (phi(parameters, z) + 0.5 * velocity.square().sum())
        return variation if felt is None else variation + felt(x, row)

    return equation


def by_hand(
    equation: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], parameters: Tensor, points: Particles
) -> tuple[Tensor, Tensor]:
    """F (n,) and its derivative (n, p), both in the parameters of all blocks."""
    arguments, rows = (points.x, points.log_rho), torch.arange(len(points.x))
    over = (None, 0, 0, 0)
    value = vmap(equation, over)(parameters, *arguments, rows)
    return value, vmap(jacrev(equation), over)(parameters, *arguments, rows)


def centred(values: Tensor, weights: Tensor) -> Tensor:
    return values - weights @ values / weights.sum()


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
class TestByAutograd:
    def test_equation_and_misfit(self, name: str, dim: int) -> None:
        problem, points, weights = small_problem(CASES[name], dim)
        equation = StepEquation(problem, points, weights, ridge_potential(WIDTH, size=0.03, dim=dim), hidden=True)
        now = equation.start()
        assert now is not None
        value, _ = by_hand(equation_by_hand(CASES[name], problem), equation.parameters(), points)
        exact = centred(value, weights)
        torch.testing.assert_close(now.residual, exact, rtol=1e-10, atol=1e-11)
        assert now.misfit == pytest.approx(0.5 * float(weights @ exact.square() / weights.sum()), rel=1e-10)
        assert now.value == now.misfit  # no price where all points are draws
        assert float(exact.std()) > 0.1

    @pytest.mark.parametrize("hidden", [True, False])
    def test_derivative_in_every_block(self, name: str, dim: int, hidden: bool) -> None:
        problem, points, weights = small_problem(CASES[name], dim)
        potential = ridge_potential(WIDTH, size=0.03, dim=dim)
        equation = StepEquation(problem, points, weights, potential, hidden=hidden)
        now = equation.start()
        assert now is not None
        everything = StepEquation(problem, points, weights, potential, hidden=True).parameters()
        _, slopes = by_hand(equation_by_hand(CASES[name], problem), everything, points)
        exact, found = centred(slopes, weights), equation.derivative(now)
        names = ["outer layer", "linear", "quadratic", *(["weights", "biases"] if hidden else [])]
        assert found.shape == (N, sum(equation.sizes))
        assert sum(equation.sizes[:3]) == n_functions(potential) == WIDTH + dim + dim * (dim + 1) // 2
        exact = exact[:, : sum(equation.sizes)]
        for block, mine, theirs in zip(
            names, found.split(equation.sizes, 1), exact.split(equation.sizes, 1), strict=True
        ):
            assert float(theirs.abs().max()) > 1e-3, block
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10, msg=lambda text, b=block: f"{b}: {text}")

    def test_derivative_is_that_of_the_residual(self, name: str, dim: int) -> None:
        """Along random directions, by central differences of the equation itself."""
        problem, points, weights = small_problem(CASES[name], dim)
        equation = StepEquation(problem, points, weights, ridge_potential(WIDTH, size=0.03, dim=dim), hidden=True)
        now = equation.start()
        assert now is not None
        derivative = equation.derivative(now)
        directions = torch.randn(3, len(now.parameters), generator=seeded(0), dtype=torch.float64)
        for direction in directions:
            ahead, behind = (equation.at(now.parameters + h * direction) for h in (1e-5, -1e-5))
            assert ahead is not None
            assert behind is not None
            slope = (ahead.residual - behind.residual) / 2e-5
            torch.testing.assert_close(derivative @ direction, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_stretching_beyond_the_draws_has_a_price(dim: int) -> None:
    problem, points, weights = small_problem(CASES["kl"], dim)
    potential = ridge_potential(WIDTH, size=0.03, dim=dim)
    equation = StepEquation(problem, points, weights, potential, hidden=True, n_draws=9)
    now = equation.start()
    assert now is not None
    tails = points.x[9:]
    far_out = tails.mean(dim=0) + 1.4 * (tails - tails.mean(dim=0))
    eigenvalues = torch.linalg.eigvalsh(torch.eye(dim) + potential.hessian(far_out).detach())
    log_det, far = eigenvalues.log().sum(1), weights[9:] / weights.sum()
    price = 0.5 * 3e-2 * float(far @ (log_det - log_det.mean()).square())
    assert now.value - now.misfit == pytest.approx(price, rel=1e-6)
    assert equation.misfit_of_draws(now) == pytest.approx(
        0.5 * float(weights[:9] @ centred(now.residual[:9], weights[:9]).square() / weights[:9].sum())
    )
    _, rows = equation.far_stretching(now)
    direction = torch.randn(len(now.parameters), generator=seeded(0), dtype=torch.float64)
    ends = [equation.at(now.parameters + h * direction) for h in (1e-5, -1e-5)]
    ahead, behind = (equation.far_stretching(end)[0] for end in ends if end is not None)
    torch.testing.assert_close(rows @ direction, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_target_that_fails_beyond_the_draws() -> None:
    """Far points are left out; where a draw fails, that is an error."""

    def fails(x: Tensor) -> Tensor:
        return torch.where(x[:, 0].abs() > 4.0, torch.nan, -x.square().sum(1))

    x = torch.linspace(-2.0, 2.0, 20, dtype=torch.float64).unsqueeze(1)
    x = torch.cat([x, torch.tensor([[3.0], [4.5]], dtype=torch.float64)])
    points = Particles(x, -0.5 * x[:, 0].square(), None)
    unit = Frame(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64), 1.0)
    problem = StepProblem(evaluator(KL(fails), 1), unit, 0.1)
    potential = ridge_potential(WIDTH, size=0.01, dim=1)
    even = torch.ones(22, dtype=torch.float64)
    equation = StepEquation(problem, points, even, potential, hidden=True, n_draws=20)
    now = equation.start()
    assert now is not None
    assert len(now.residual) == 20
    assert equation.derivative(now).shape[0] == 20
    with pytest.raises(TargetError):
        StepEquation(problem, points, even, potential, hidden=True, n_draws=22).start()


def test_a_start_that_folds_far_out() -> None:
    problem, points, weights = small_problem(CASES["kl"], 1)
    points = points[points.x[:, 0].abs().argsort()]
    potential = ridge_potential(WIDTH, size=0.0, dim=1)
    tails = points.x[9:]
    far = tails.mean() + 1.4 * (tails - tails.mean())
    beyond = far[far.abs().argmax()].item()
    with torch.no_grad():  # a sharp kink there, and nowhere else
        potential.weights[0][0], potential.biases[0][0], potential.output[0] = 20.0, -20.0 * beyond, -0.1
    assert abs(beyond) > float(points.x.abs().max()) + 0.3
    assert StepEquation(problem, points, weights, potential, hidden=True).start() is not None
    assert StepEquation(problem, points, weights, potential, hidden=True, n_draws=9).start() is None


@pytest.mark.parametrize("n_draws", [None, 9], ids=["draws alone", "draws and tails"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_interactions_are_those_of_the_draws_held_fast(dim: int, n_draws: int | None) -> None:
    case = CASES["kl"]._replace(mass=1.5)
    problem, points, weights = small_problem(case._replace(energy=case.energy + 0.8 * Interaction(kernel)), dim)
    potential = ridge_potential(WIDTH, size=0.03, dim=dim)
    equation = StepEquation(problem, points, weights, potential, hidden=True, n_draws=n_draws)
    now = equation.start()
    assert now is not None
    m = N if n_draws is None else n_draws
    crowd = problem.frame.to_outer((points.x + potential.gradient(points.x)).detach())[:m]
    share = weights[:m] / weights[:m].sum()

    def felt(x: Tensor, row: Tensor) -> Tensor:
        """1.5 x 0.8 sum_j w_j W(x - x_j); a draw does not feel itself, and its others count for all."""
        own = torch.arange(m) == row
        z = torch.where(own.unsqueeze(-1), 1.0, x - crowd)
        norm = torch.where(row < m, 1.0 - share.square().sum(), 1.0)
        return 1.2 * (share * torch.where(own, 0.0, kernel(z))).sum() / norm

    value, slopes = by_hand(equation_by_hand(case, problem, felt), now.parameters, points)
    torch.testing.assert_close(now.residual, centred(value, weights), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(equation.derivative(now), centred(slopes, weights), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_its_gradient_is_that_of_the_residual_of_the_step(name: str) -> None:
    """`grad F = DT' r`, with r from the scores of the moved particles."""
    case, frame, law = CASES[name], exact_frame(WORKED, "kalman"), gaussian_law(WORKED)
    problem = StepProblem(evaluator(case.energy, 2, mass=case.mass), frame, 0.4)
    points = frame.to_inner(draw(law, 40))
    potential = ridge_potential(WIDTH, size=0.03)
    equation = equation_by_hand(case, problem)
    parameters = StepEquation(problem, points, torch.ones(40), potential, hidden=True).parameters()

    def whole(z: Tensor) -> Tensor:
        x = frame.centre + frame.factor @ z
        mean, covariance = torch.tensor(WORKED.m), torch.tensor(WORKED.S)
        gap = x - mean
        log_rho = -0.5 * gap @ torch.linalg.solve(covariance, gap) - 0.5 * torch.logdet(2.0 * torch.pi * covariance)
        return equation(parameters, z, log_rho, torch.tensor(0))

    assert points.score is not None
    pushed = GradientMap(potential).push(points.x, points.score)
    force = problem.field(pushed.x).gradient
    residual = problem.residual(points.x, pushed, points.log_rho - pushed.log_det, force)
    jacobian = torch.eye(2, dtype=torch.float64) + potential.hessian(points.x).detach()
    expected = (jacobian @ residual.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(vmap(grad(whole))(points.x), expected, rtol=1e-8, atol=1e-9)


class TestParameters:
    @pytest.mark.parametrize("hidden", [True, False])
    @pytest.mark.parametrize("dim", [1, 3])
    def test_they_come_back_as_they_were_set(self, dim: int, hidden: bool) -> None:
        problem, points, weights = small_problem(CASES["kl"], dim)
        first, second = ridge_potential(WIDTH, size=0.1, dim=dim), ridge_potential(WIDTH, seed=1, size=0.2, dim=dim)
        with torch.no_grad():
            first.quadratic += torch.randn(dim, dim, generator=seeded(3), dtype=torch.float64)
        one, other = (StepEquation(problem, points, weights, p, hidden=hidden) for p in (first, second))
        parameters = one.parameters()
        assert parameters.shape == (n_functions(first) + (WIDTH * (dim + 1) if hidden else 0),)
        other.set(parameters)
        assert torch.equal(other.parameters(), parameters)
        same = torch.equal(first.weights[0], second.weights[0]) and torch.equal(first.biases[0], second.biases[0])
        assert same == hidden
        if hidden:
            torch.testing.assert_close(second.value(points.x), first.value(points.x), rtol=1e-13, atol=1e-14)

    def test_folds_and_failing_targets_are_walls(self) -> None:
        case = Case(KL(lambda x: torch.where(x[:, 0] < 50.0, -rippled(x), torch.nan)), lambda rho: rho.log())
        problem, points, weights = small_problem(case, 2)
        equation = StepEquation(problem, points, weights, ridge_potential(WIDTH, size=0.03), hidden=True)
        now = equation.start()
        assert now is not None
        fold, far = now.parameters.clone(), now.parameters.clone()
        fold[WIDTH + 2] = -1.5  # the quadratic term turns the first axis over
        far[WIDTH] = 100.0  # the linear term leads to where the target is NaN
        assert equation.at(fold) is None
        assert equation.at(far) is None
        assert equation.at(now.parameters) is not None


class TestPointsWithoutEnergy:
    def problem(self, edge: float) -> tuple[StepProblem, Particles]:
        wall = KL(lambda x: torch.where(x[:, 0] < edge, -rippled(x), -torch.inf))
        problem, points, _ = small_problem(CASES["kl"]._replace(energy=wall + Interaction(kernel)), 2, n=400)
        return problem, points

    def test_a_few_are_left_out_and_the_others_weigh_one(self) -> None:
        problem, points = self.problem(2.0)
        lost = ~problem.field(points.x).energy.isfinite()
        assert 0 < int(lost[:300].sum()) < int(lost.sum()) < 8
        weights = torch.linspace(1.0, 2.0, 400, dtype=torch.float64)
        potential = ridge_potential(WIDTH)
        equation = StepEquation(problem, points, weights, potential, n_draws=300)
        now = equation.start()
        assert now is not None
        kept = ~lost
        assert torch.equal(equation.z, points.x[kept])
        assert equation.draws == slice(0, int(kept[:300].sum()))
        torch.testing.assert_close(equation.weights, weights[kept] / weights[kept].sum())
        assert now.residual.shape == (int(kept.sum()),)
        alone = StepEquation(problem, points[kept], weights[kept], potential, n_draws=equation.draws.stop).start()
        again = equation.at(now.parameters)
        assert alone is not None
        assert again is not None
        torch.testing.assert_close(again.residual, alone.residual, rtol=1e-12, atol=1e-12)

    def test_too_many_are_none(self) -> None:
        problem, points = self.problem(1.0)
        assert StepEquation(problem, points, torch.ones(400), ridge_potential(WIDTH)).start() is None
