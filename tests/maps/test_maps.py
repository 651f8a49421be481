"""The same tests over every map: its inverse, its Jacobian, what it does to a score; and the orders of the ODEs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from jkosampler.laws import Gaussian
from jkosampler.maps import INTEGRATORS, Chain, Conjugated, GradientMap, Map, ODEMap
from jkosampler.potentials import ResNetPotential

F64 = torch.float64
DIM, N = 3, 6
CENTRE = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
FACTOR = torch.tensor([[1.5, 0.2, 0.0], [-0.4, 0.8, 0.1], [0.3, 0.0, -2.0]], dtype=F64)  # no symmetry, det < 0
LAW = Gaussian(CENTRE, FACTOR @ FACTOR.mT)


def potential(depth: int = 2, *, time_input: bool = False, seed: int = 0, strength: float = 1.0) -> ResNetPotential:
    """A potential whose Hessian is well above -1 where the tests look, with all of its terms."""
    generator = torch.Generator().manual_seed(100 * seed + 10 * depth + time_input)
    result = ResNetPotential(DIM, width=8, depth=depth, time_input=time_input, generator=generator)
    scales = ((result.output, 0.06), (result.quadratic, 0.12), (result.linear, 0.3))
    with torch.no_grad():
        for parameter, scale in scales:
            noise = torch.randn(parameter.shape, generator=generator, dtype=F64)
            parameter.copy_(strength * scale * noise)
    return result


Build = Callable[[int], Map]


def _plain_maps() -> dict[str, Build]:
    maps: dict[str, Build] = {}
    for depth in (0, 1, 2, 4):
        maps[f"gradient, depth {depth}"] = lambda seed, depth=depth: GradientMap(potential(depth, seed=seed))
    for name in INTEGRATORS:
        for time_input in (False, True):
            for steps in (1, 3):
                maps[f"{name} x {steps}{', time' if time_input else ''}"] = (
                    lambda seed, name=name, time_input=time_input, steps=steps: ODEMap(
                        potential(time_input=time_input, seed=seed), integrator=name, inner_steps=steps
                    )
                )
    return maps


def _conjugated(build: Build) -> Build:
    return lambda seed: Conjugated(build(seed), CENTRE, FACTOR)


def _chains() -> dict[str, Build]:
    def of(kinds: list[type[GradientMap] | type[ODEMap]], shares: list[float]) -> Build:
        return lambda seed: Chain([kind(potential(seed=seed + 3 * i)) for i, kind in enumerate(kinds)], shares)

    return {
        "chain of one gradient map": of([GradientMap], [1.0]),
        "chain of gradient maps": of([GradientMap, GradientMap], [0.7, 0.3]),
        "chain of three kinds": of([GradientMap, ODEMap, GradientMap], [0.5, 0.2, 0.3]),
    }


PLAIN = _plain_maps()
CHAINS = _chains()
MAPS = PLAIN | CHAINS | {f"conjugated {name}": _conjugated(build) for name, build in (PLAIN | CHAINS).items()}
EXACT = [name for name in MAPS if "gradient" in name]  # their log det is that of their Jacobian
every_map = pytest.mark.parametrize("name", MAPS)


def points(seed: int = 1, n: int = N) -> Tensor:
    return LAW.sample((n,), generator=torch.Generator().manual_seed(seed))


def jacobian(step: Map, x: Tensor, fraction: float = 1.0) -> Tensor:
    """DT (n, d, d) by automatic differentiation of `forward`."""
    rows = [torch.autograd.functional.jacobian(lambda z: step(z[None], fraction)[0][0], point) for point in x]
    return torch.stack(rows)


@every_map
class TestEveryMap:
    @pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
    def test_inverse_undoes_forward_and_the_log_determinants_cancel(self, name: str, fraction: float) -> None:
        step, x = MAPS[name](0), points()
        with torch.no_grad():
            y, log_det = step(x, fraction)
        back, inverse_log_det = step.inverse(y, fraction)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
        torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-8)
        moved = float((y - x).norm(dim=1).min())
        if fraction:
            assert moved > 0.02
        else:
            assert moved < 1e-13
            assert float(log_det.abs().max()) == 0.0

    def test_a_longer_fraction_moves_further(self, name: str) -> None:
        """Half of a gradient map's way is half of its displacement; an ODE's is half of its time."""
        step, x = MAPS[name](0), points()
        if isinstance(getattr(step, "inner", step), Chain):  # whose halves are other maps: see test_composed
            return
        with torch.no_grad():
            half, whole = step(x, 0.5)[0] - x, step(x)[0] - x
        tolerance = 1e-12 if name in EXACT else 0.25 * float(whole.abs().max())
        torch.testing.assert_close(2.0 * half, whole, rtol=0, atol=tolerance)

    def test_positions_and_transport_agree_with_forward(self, name: str) -> None:
        step, x = MAPS[name](0), points()
        with torch.no_grad():
            y, log_det = step(x)
            torch.testing.assert_close(step.positions(x), y, rtol=0, atol=1e-13)
            if isinstance(step, Conjugated | Chain):  # only steps in their own coordinates have a cost
                return
            moved, same_log_det, action = step.transport(x)
        torch.testing.assert_close(moved, y, rtol=0, atol=1e-13)
        torch.testing.assert_close(same_log_det, log_det, rtol=0, atol=1e-13)
        length = (y - x).square().sum(1)
        if isinstance(step, GradientMap):
            torch.testing.assert_close(action, length, rtol=0, atol=1e-13)
        else:  # Cauchy-Schwarz, which every scheme with positive weights obeys
            assert bool((action >= length - 1e-13).all())
            assert bool((action < 1.3 * length + 0.02).all())

    def test_push_carries_the_density_and_its_score(self, name: str) -> None:
        """The score of T#rho by central differences of order four of log rho(T^-1 y) + log det DT^-1(y)."""
        step, x = MAPS[name](0), points(n=4)
        pushed = step.push(x, LAW.score(x))
        with torch.no_grad():
            y, log_det = step(x)
        torch.testing.assert_close(pushed.x, y, rtol=0, atol=1e-13)
        torch.testing.assert_close(pushed.log_det, log_det, rtol=0, atol=1e-13)
        assert not any(part.requires_grad for part in pushed)

        def log_density(at: Tensor) -> Tensor:
            source, inverse_log_det = step.inverse(at)
            return LAW.log_prob(source) + inverse_log_det

        h = 0.01
        offsets = h * torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=F64)
        stencil = y[:, None, None] + offsets[:, None] * torch.eye(DIM, dtype=F64)[:, None]  # (n, axis, offset, d)
        values = log_density(stencil.reshape(-1, DIM)).reshape(stencil.shape[:-1])
        weights = torch.tensor([8.0, -8.0, -1.0, 1.0], dtype=F64) / (12.0 * h)
        torch.testing.assert_close(pushed.score, values @ weights, rtol=0, atol=3e-7)

    def test_initial_velocity_is_that_of_a_short_start(self, name: str) -> None:
        step, x, epsilon = MAPS[name](0), points(), 1e-6
        if isinstance(step, Conjugated | Chain):
            return
        with torch.no_grad():
            velocity, divergence = step.initial_velocity(x)
            y, log_det = step(x, epsilon)
        torch.testing.assert_close(velocity, (y - x) / epsilon, rtol=0, atol=1e-5)
        torch.testing.assert_close(divergence, log_det / epsilon, rtol=0, atol=1e-5)

    def test_float32(self, name: str) -> None:
        double, x = MAPS[name](0), points()
        step = MAPS[name](0).to(torch.float32)
        y, log_det = step(x.float())
        back, _ = step.inverse(y.detach())
        pushed = step.push(x.float(), LAW.score(x).float())
        assert {part.dtype for part in (y, log_det, back, *pushed)} == {torch.float32}
        torch.testing.assert_close(back.double(), x, rtol=0, atol=1e-3)
        reference = double.push(x, LAW.score(x))
        for found, wanted in zip(pushed, reference, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4)

    def test_no_global_random_numbers(self, name: str) -> None:
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        step, x = MAPS[name](0), points()
        step.inverse(step.push(x, x).x)
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002

    def test_state_dict_round_trip(self, name: str) -> None:
        step, other, x = MAPS[name](0), MAPS[name](1), points()
        if isinstance(other, Conjugated):  # coordinates are state as well
            other.centre, other.factor = torch.zeros_like(CENTRE), torch.eye(DIM, dtype=F64)
        assert not torch.allclose(step(x)[0], other(x)[0])
        assert not other.load_state_dict(step.state_dict()).missing_keys
        for found, wanted in zip(other(x), step(x), strict=True):
            assert torch.equal(found, wanted)

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        step = MAPS[name](0)
        y, log_det = step(points())
        (y.square().sum() + log_det.square().sum()).backward()
        for parameter_name, parameter in step.named_parameters():
            if parameter.numel():
                assert parameter.grad is not None, parameter_name
                assert bool(parameter.grad.abs().sum() > 0), parameter_name


class TestJacobian:
    @pytest.mark.parametrize("fraction", [0.5, 1.0])
    @pytest.mark.parametrize("name", EXACT)
    def test_log_det_of_gradient_maps_is_exact(self, name: str, fraction: float) -> None:
        step, x = MAPS[name](0), points()
        sign, wanted = torch.linalg.slogdet(jacobian(step, x, fraction))
        assert bool((sign > 0).all())
        torch.testing.assert_close(step(x, fraction)[1], wanted, rtol=0, atol=1e-12)

    def test_conjugation_is_a_change_of_coordinates(self) -> None:
        inner = GradientMap(potential())
        step, x = Conjugated(inner, CENTRE, FACTOR), points()
        z = (x - CENTRE) @ torch.linalg.inv(FACTOR).mT
        with torch.no_grad():
            torch.testing.assert_close(step(x)[0], CENTRE + inner(z)[0] @ FACTOR.mT, rtol=0, atol=1e-12)
            torch.testing.assert_close(step.to_inner(x), z, rtol=0, atol=1e-12)
            torch.testing.assert_close(step.to_outer(z), x, rtol=0, atol=1e-12)

    def test_far_points_have_inverses_too(self) -> None:
        step = GradientMap(potential(strength=2.0))
        y = 10.0 ** torch.arange(1, 7, dtype=F64)[:, None] * torch.tensor([1.0, -0.5, 0.3], dtype=F64)
        x, _ = step.inverse(y)
        error = (step(x)[0] - y).norm(dim=1).detach()
        assert bool((error <= 1e-10 * (1.0 + y.norm(dim=1))).all())

    def test_an_inverse_where_plain_newton_runs_in_a_circle(self) -> None:
        """x + 3 tanh(10 x) = y, from x = y: undamped steps go from -2 to 4 and back for y = 1."""
        field = ResNetPotential(1, width=1, depth=1)
        with torch.no_grad():
            field.weights[0].fill_(10.0)
            field.biases[0].zero_()
            field.output.fill_(0.3)
        y = torch.linspace(-4.0, 4.0, 33, dtype=F64)[:, None]
        x, log_det = GradientMap(field).inverse(y)
        torch.testing.assert_close(x + 3.0 * torch.tanh(10.0 * x), y, rtol=0, atol=1e-9)
        torch.testing.assert_close(log_det, -torch.log1p(30.0 / torch.cosh(10.0 * x[:, 0]) ** 2), rtol=0, atol=1e-7)


class TestODE:
    @staticmethod
    def exact(field: ResNetPotential, x: Tensor, start: float, end: float) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, log determinants and actions by scipy's order-eight scheme at 1e-12."""
        n, d = x.shape

        def velocity(s: float, state: np.ndarray) -> np.ndarray:
            z = torch.as_tensor(state[: n * d]).reshape(n, d)
            with torch.no_grad():
                v, divergence = field.gradient_and_laplacian(z, s if field.time_input else None)
            return torch.cat([v.flatten(), divergence, v.square().sum(1)]).numpy()

        first = np.concatenate([x.numpy().ravel(), np.zeros(2 * n)])
        end_state = solve_ivp(velocity, (start, end), first, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        z, log_det, action = torch.as_tensor(end_state).split([n * d, n, n])
        return z.reshape(n, d), log_det, action

    @pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.25, 0.75), (1.0, 0.0)])
    @pytest.mark.parametrize("time_input", [False, True], ids=["x", "x,t"])
    @pytest.mark.parametrize(("integrator", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
    def test_order_of_the_scheme(self, integrator: str, order: int, time_input: bool, start: float, end: float) -> None:
        field, x = potential(time_input=time_input, strength=2.0), points()
        step = ODEMap(field, integrator=integrator)
        exact = self.exact(field, x, start, end)
        errors = []
        for refine in (10, 20):
            with torch.no_grad():
                found = step.integrate(x, start, end, refine)
            errors.append([float((a - b).norm()) for a, b in zip(found, exact, strict=True)])
        rates = np.log2(np.array(errors[0]) / np.array(errors[1]))
        np.testing.assert_allclose(rates, order, atol=0.2, err_msg="positions, log det, action")
        assert max(errors[1]) > 1e-10  # truncation, not rounding

    def test_inner_steps_refine_and_fractions_compose(self) -> None:
        field, x = potential(time_input=True), points()
        once, thrice = ODEMap(field), ODEMap(field, inner_steps=3)
        with torch.no_grad():
            for found, wanted in zip(once.integrate(x, 0.0, 1.0, refine=3), thrice.transport(x), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
            half, first, _ = once.integrate(x, 0.0, 0.5)
            end, second, _ = once.integrate(half, 0.5, 1.0)
            whole, log_det, _ = once.integrate(x, 0.0, 1.0, refine=2)
        torch.testing.assert_close(end, whole, rtol=0, atol=1e-14)
        torch.testing.assert_close(first + second, log_det, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("integrator", INTEGRATORS)
    def test_probes_that_span_give_the_exact_trace(self, integrator: str) -> None:
        field, x = potential(time_input=True), points()
        exact = ODEMap(field, integrator=integrator)
        probed = ODEMap(field, integrator=integrator, probes=DIM**0.5 * torch.eye(DIM, dtype=F64))
        assert "probes" in probed.state_dict()
        for found, wanted in zip(probed.push(x, LAW.score(x)), exact.push(x, LAW.score(x)), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)

    def test_probes_take_the_precision_of_the_potential(self) -> None:
        step = ODEMap(potential().to(torch.float32), probes=DIM**0.5 * torch.eye(DIM, dtype=F64))
        assert {part.dtype for part in step(points().float())} == {torch.float32}
        assert {part.dtype for part in step.to(F64)(points())} == {F64}
