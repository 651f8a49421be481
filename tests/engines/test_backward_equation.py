"""The equation of the way back: by automatic differentiation of its definition, and at exact steps of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import oracles
import pytest
import torch
from oracles import WORKED
from small_problems import draw, evaluator, exact_frame, gaussian_law, gaussian_log_target, ridge_potential, seeded
from torch import Tensor
from torch.func import grad, jacrev, vmap

from jkosampler.domains import Box
from jkosampler.energies import KL, Energy, Entropy, Interaction, Potential, Power
from jkosampler.engines.backward_equation import BackwardEquation, way_back
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_equation import Linearised
from jkosampler.errors import ArgumentError
from jkosampler.metrics import Frame
from jkosampler.particles import Particles
from jkosampler.walled_potential import WalledPotential

F64 = torch.float64
WIDTH, N, TAU = 5, 14, 0.6
Point = Callable[[Tensor], Tensor]


def rippled(x: Tensor) -> Tensor:
    """V (...) at points x (..., d)."""
    return 0.5 * x.square().sum(-1) + 0.3 * (2.0 * x).cos().sum(-1) + 0.2 * (x[..., 0] * x[..., -1]).sin()


def kernel(z: Tensor) -> Tensor:
    return 0.4 * z.norm(dim=-1).log() + 0.2 * z.square().sum(-1)


def log_law(x: Tensor) -> Tensor:
    """Log density of the old law at one point, up to a constant: no symmetry, and smooth everywhere."""
    return -0.4 * (x - 0.3).square().sum() + 0.3 * x.sum().sin() + 0.1 * x[0] * x[-1]


class Case(NamedTuple):
    """An energy, the U'(rho) of its internal part by hand, and the mass."""

    energy: Energy
    slope: Point
    mass: float


CASES = {
    "kl": Case(KL(lambda x: -rippled(x)), lambda rho: rho.log() + 1.0, 1.0),
    "power": Case(Power(3) + Potential(rippled), lambda rho: 1.5 * rho**2, 1.0),
    "sum": Case(2.0 * Entropy() + 0.5 * Power(2) + Potential(rippled), lambda rho: 2.0 * rho.log() + 2.0 + rho, 2.5),
}


class Small(NamedTuple):
    """A problem by hand: `frame` and `box` may be read, `equation` is what is tested."""

    case: Case
    problem: StepProblem
    points: Particles
    weights: Tensor
    equation: BackwardEquation

    def phi(self, parameters: Tensor, z: Tensor) -> Tensor:
        d = len(z)
        c, linear, triangle, w, b = parameters.split([WIDTH, d, d * (d + 1) // 2, WIDTH * d, WIDTH])
        if (box := self.problem.walls) is not None:
            x = self.problem.frame.centre + self.problem.frame.factor @ z
            z = torch.cos(math.pi * (x - box.lower) / (box.upper - box.lower))
        upper = torch.zeros(d, d, dtype=F64).index_put(tuple(torch.triu_indices(d, d)), triangle)
        quadratic = upper + upper.mT - torch.diag(upper.diagonal())
        return c @ torch.cosh(w.reshape(WIDTH, d) @ z + b).mul(2.0).log() + linear @ z + 0.5 * z @ quadratic @ z

    def back(self, parameters: Tensor, z: Tensor) -> Tensor:
        """S(z)."""
        return z + grad(self.phi, argnums=1)(parameters, z)

    def f(self, parameters: Tensor, z: Tensor, felt: Tensor) -> Tensor:
        """F at one point, where W * rho' is given."""
        frame = self.problem.frame
        old = log_law(frame.centre + frame.factor @ self.back(parameters, z))
        rho = self.case.mass * old.exp() * torch.linalg.det(jacrev(self.back, argnums=1)(parameters, z))
        variation = rippled(frame.centre + frame.factor @ z) + felt + self.case.slope(rho)
        return frame.cost / TAU * self.phi(parameters, z) - variation

    def by_hand(self, now: Linearised, felt: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The residual (n,) and its derivative (n, p) at fixed points, both less their weighted means."""
        felt = torch.zeros(len(now.z), dtype=F64) if felt is None else felt
        value = vmap(self.f, (None, 0, 0))(now.parameters, now.z, felt)
        slopes = vmap(jacrev(self.f), (None, 0, 0))(now.parameters, now.z, felt)
        return centred(value, self.equation.weights), centred(slopes, self.equation.weights)


def centred(values: Tensor, weights: Tensor) -> Tensor:
    return values - weights @ values / weights.sum()


def small(case: Case, dim: int, *, walls: bool, n: int = N, n_draws: int | None = None) -> Small:
    generator = seeded(dim)
    factor = torch.eye(dim, dtype=F64) + 0.2 * torch.randn(dim, dim, generator=generator, dtype=F64)
    frame = Frame(torch.linspace(-0.3, 0.4, dim, dtype=F64), factor, 1.7)
    x, box = frame.centre + torch.randn(n, dim, generator=generator, dtype=F64) @ factor.mT, None
    if walls:
        box = Box(torch.linspace(-1.0, 0.0, dim), torch.linspace(1.5, 4.0, dim))
        frame = Frame(frame.centre, torch.diag(torch.linspace(0.8, 1.4, dim, dtype=F64)), 1.7)
        x = box.sample(n, generator)
    old = Particles(x, vmap(log_law)(x), vmap(grad(log_law))(x))
    points, weights = frame.to_inner(old), torch.linspace(1.0, 2.0, n, dtype=F64)
    problem = StepProblem(evaluator(case.energy, dim, mass=case.mass), frame, TAU, walls=box)
    potential = ridge_potential(WIDTH, size=0.03, dim=dim)
    equation = BackwardEquation(problem, points, weights, potential, n_draws=n if n_draws is None else n_draws)
    return Small(case, problem, points, weights, equation)


def started(equation: BackwardEquation) -> Linearised:
    now = equation.start()
    assert now is not None
    return now


@pytest.mark.parametrize("walls", [False, True], ids=["open", "walls"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
class TestByAutograd:
    def test_equation_and_misfit_at_points_that_lead_back(self, name: str, dim: int, walls: bool) -> None:
        its = small(CASES[name], dim, walls=walls)
        now = started(its.equation)
        back = vmap(its.back, (None, 0))(now.parameters, now.z)
        torch.testing.assert_close(back, its.points.x, rtol=0, atol=1e-9)
        assert float((now.z - its.points.x).abs().max()) > 0.01
        exact, _ = its.by_hand(now)
        torch.testing.assert_close(now.residual, exact, rtol=1e-8, atol=1e-8)
        assert now.misfit == pytest.approx(0.5 * float(its.weights @ exact.square() / its.weights.sum()), rel=1e-7)
        assert now.value == now.misfit
        assert float(exact.std()) > 0.1

    def test_derivative_at_fixed_points_in_every_block(self, name: str, dim: int, walls: bool) -> None:
        its = small(CASES[name], dim, walls=walls)
        now = started(its.equation)
        _, exact = its.by_hand(now)
        found, sizes = its.equation.derivative(now), its.equation.sizes
        assert found.shape == exact.shape == (N, sum(sizes))
        for mine, theirs in zip(found.split(sizes, 1), exact.split(sizes, 1), strict=True):
            assert float(theirs.abs().max()) > 1e-3
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("walls", [False, True], ids=["open", "walls"])
def test_interactions_are_those_of_the_draws_held_fast(walls: bool) -> None:
    """1.5 x 0.8 sum_j w_j W(x - x_j), all moved; a draw does not feel itself, and its others count for all."""
    case, m = CASES["kl"]._replace(mass=1.5), 9
    its = small(case._replace(energy=case.energy + 0.8 * Interaction(kernel)), 2, walls=walls, n_draws=m)
    now = started(its.equation)
    x, share = its.problem.frame.to_outer(now.z), its.weights[:m] / its.weights[:m].sum()
    own = torch.arange(N)[:, None] == torch.arange(m)
    pairs = kernel((x[:, None] - x[:m]).where(~own[..., None], torch.ones(2, dtype=F64))).where(~own, 0.0)
    felt = 1.2 * (pairs @ share) / torch.where(own.any(1), 1.0 - share.square().sum(), 1.0)
    exact, slopes = its.by_hand(now, felt)
    torch.testing.assert_close(now.residual, exact, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(its.equation.derivative(now), slopes, rtol=1e-7, atol=1e-8)


def test_stretching_beyond_the_draws_has_a_price() -> None:
    """That of S, at points 1.4 times as far out as the images of far points; by its definition and by differences."""
    its = small(CASES["kl"], 2, walls=False, n_draws=9)
    now = started(its.equation)
    tails, far = its.points.x[9:], its.weights[9:] / its.weights.sum()
    beyond = tails.mean(dim=0) + 1.4 * (tails - tails.mean(dim=0))
    log_det = torch.linalg.slogdet(vmap(jacrev(its.back, argnums=1), (None, 0))(now.parameters, beyond))[1]
    price = 0.5 * 3e-2 * float(far @ (log_det - log_det.mean()).square())
    assert now.value - now.misfit == pytest.approx(price, rel=1e-6)
    direction = torch.randn(len(now.parameters), generator=seeded(0), dtype=F64)
    ends = [its.equation.at(now.parameters + h * direction) for h in (1e-5, -1e-5)]
    ahead, behind = (its.equation.far_stretching(end)[0] for end in ends if end is not None)
    rows = its.equation.far_stretching(now)[1]
    torch.testing.assert_close(rows @ direction, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_between_walls_there_is_nothing_beyond() -> None:
    now = started(small(CASES["kl"], 2, walls=True, n_draws=9).equation)
    assert now.value == now.misfit


@pytest.mark.parametrize(("value", "n"), [(-torch.inf, 395), (torch.nan, 390)], ids=["no mass", "fails"])
def test_points_left_out(value: float, n: int) -> None:
    """Far points where the target fails, or a few where no mass may be: the rest keep their images and scores."""
    target = KL(lambda x: torch.where(x[:, 0] < 2.1, -rippled(x), value))
    its = small(CASES["kl"]._replace(energy=target), 2, walls=False, n=400)
    order = its.points.x[:, 0].argsort()
    equation = BackwardEquation(its.problem, its.points[order], its.weights[order], its.equation.potential, n_draws=390)
    now = started(equation)
    assert equation.draws == slice(0, 390)
    rows = order[torch.cdist(equation.images, its.points.x[order]).argmin(dim=1)]
    assert torch.equal(equation.images, its.points.x[rows])
    assert len(rows.unique()) == n
    torch.testing.assert_close(equation.weights, its.weights[rows] / its.weights[rows].sum())
    again = equation.at(now.parameters)
    assert again is not None
    kept = its._replace(equation=equation)
    for found in (now, again):
        exact, slopes = kept.by_hand(found)
        torch.testing.assert_close(found.residual, exact, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(equation.derivative(found), slopes, rtol=1e-7, atol=1e-8)


def test_folds_are_walls() -> None:
    its = small(CASES["kl"], 2, walls=False)
    now = started(its.equation)
    fold = now.parameters.clone()
    fold[WIDTH + 2] = -1.5  # the quadratic term turns the first axis over
    assert its.equation.at(fold) is None
    assert its.equation.at(now.parameters) is not None


def test_laws_that_jump_are_refused() -> None:
    its = small(CASES["kl"], 2, walls=False)
    with pytest.raises(ArgumentError, match="initial: its density jumps"):
        BackwardEquation(its.problem, its.points.without_score(), its.weights, its.equation.potential, n_draws=N)


@pytest.mark.parametrize("metric", ["wasserstein", "kalman"])
class TestExactSteps:
    """S(x) = m + K^-1 (x - m'), and phi in the coordinates z = L^-1 (x - c) of the metric."""

    @staticmethod
    def equation(metric: str, tau: float = 0.3) -> BackwardEquation:
        step = {"wasserstein": oracles.wasserstein_step, "kalman": oracles.kalman_step}[metric](WORKED, tau)
        frame, law = exact_frame(WORKED, metric), gaussian_law(WORKED)
        problem = StepProblem(evaluator(KL(gaussian_log_target(WORKED)), 2), frame, tau)
        potential, inverse = ridge_potential(WIDTH), torch.linalg.inv(torch.tensor(step.matrix))
        shift = torch.tensor(WORKED.m) - frame.centre + inverse @ (frame.centre - torch.tensor(step.mean))
        with torch.no_grad():
            potential.quadratic.copy_(torch.linalg.solve(frame.factor, inverse @ frame.factor) - torch.eye(2))
            potential.linear.copy_(torch.linalg.solve(frame.factor, shift))
            potential.output.zero_()
        return BackwardEquation(problem, frame.to_inner(draw(law, 60)), torch.ones(60), potential, n_draws=60)

    def test_f_is_constant(self, metric: str) -> None:
        equation = self.equation(metric)
        now = started(equation)
        assert float(now.residual.abs().max()) < 1e-8  # ten digits of the inverse
        with torch.no_grad():
            equation.potential.linear.mul_(1.01)
        assert float(started(equation).residual.abs().max()) > 1e-3

    def test_there_the_derivative_is_that_of_the_residual_with_points_that_follow(self, metric: str) -> None:
        """Where grad F = 0 it does not matter that they do; by central differences along random directions."""
        equation = self.equation(metric)
        now = started(equation)
        derivative, h = equation.derivative(now), 1e-4
        for direction in torch.randn(3, len(now.parameters), generator=seeded(0), dtype=F64):
            ahead, behind = (equation.at(now.parameters + s * direction) for s in (h, -h))
            assert ahead is not None
            assert behind is not None
            slope = (ahead.residual - behind.residual) / (2.0 * h)
            torch.testing.assert_close(derivative @ direction, slope, rtol=1e-4, atol=1e-4)


def test_the_way_back_between_walls_is_level_there_in_its_own_coordinates() -> None:
    its = small(CASES["kl"], 3, walls=True)
    frame, box = its.problem.frame, its.problem.walls
    assert box is not None
    phi = way_back(its.problem, its.equation.potential)
    assert isinstance(phi, WalledPotential)
    corners = frame.to_inner(Particles(torch.stack([box.lower, box.upper]).double(), torch.zeros(2), None)).x
    assert float(phi.gradient(corners).detach().abs().max()) < 1e-12
    open_problem = its.problem._replace(walls=None)
    assert way_back(open_problem, its.equation.potential) is its.equation.potential
