"""The fused transport against the plain formulas that autograd differentiates, and the care for its buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import jkosampler.maps.ode
from jkosampler.errors import ArgumentError
from jkosampler.maps import INTEGRATORS, ODEMap, _stage, fused
from jkosampler.potentials import ResNetPotential

F64 = torch.float64
WIDTH, N = 7, 11
Transported = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four particles a block, so that three blocks of unequal sizes make the eleven of a test; no program kept."""
    monkeypatch.setattr(fused, "_BLOCK", 4 * WIDTH)
    fused._spare.clear()
    yield
    fused._spare.clear()


def potential(
    d: int = 2, depth: int = 3, *, time_input: bool = True, seed: int = 0, width: int = WIDTH, dtype: torch.dtype = F64
) -> ResNetPotential:
    """With all of its terms."""
    generator = torch.Generator().manual_seed(1000 * seed + 100 * d + 10 * depth + time_input)
    result = ResNetPotential(d, width=width, depth=depth, time_input=time_input, generator=generator)
    with torch.no_grad():
        for parameter in (result.output, result.quadratic, result.linear):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=F64))
    return result.to(dtype)


def points(d: int = 2, n: int = N, seed: int = 5) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loss_of(transported: Transported, seed: int = 7) -> Tensor:
    """A scalar that depends on each entry of each output by a weight of its own, and not linearly."""
    generator = torch.Generator().manual_seed(seed)
    weighted = [(part.sin() * torch.randn(part.shape, generator=generator, dtype=F64)).sum() for part in transported]
    return torch.stack(weighted).sum()


def gradients(field: ResNetPotential, x: Tensor, loss: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in field.named_parameters()] + ["x"] * x.requires_grad
    inputs = [*field.parameters(), *([x] if x.requires_grad else [])]
    return dict(zip(names, torch.autograd.grad(loss, inputs), strict=True))


def both(field: ResNetPotential, x: Tensor, **settings: object) -> list[tuple[Transported, dict[str, Tensor]]]:
    """Values and gradients of the fused transport and of the plain one."""
    result = []
    for is_fused in (True, False):
        transported = ODEMap(field, fused=is_fused, **settings).transport(x)
        assert ("Transport" in str(transported[0].grad_fn)) == is_fused
        result.append((transported, gradients(field, x, loss_of(transported))))
    return result


def assert_same(found: tuple[Transported, dict[str, Tensor]], wanted: tuple[Transported, dict[str, Tensor]]) -> None:
    for name, a, b in zip(("positions", "log_det", "action"), found[0], wanted[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in found[1].items():
        message = lambda text, name=name: f"gradient in {name}: {text}"  # noqa: E731
        torch.testing.assert_close(gradient, wanted[1][name], rtol=1e-10, atol=1e-10, msg=message)
        # Nothing is compared with zero (but the rows of A and b that only the value of phi sees, at d and d x d).
        assert float(wanted[1][name].abs().max()) > 1e-3


class TestAgainstThePlainPath:
    @pytest.mark.parametrize("time_input", [False, True], ids=["x", "x,t"])
    @pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 6])
    @pytest.mark.parametrize("depth", [1, 2, 3, 4])
    def test_every_depth_and_dimension(self, depth: int, d: int, time_input: bool) -> None:
        field, x = potential(d, depth, time_input=time_input), points(d)
        assert_same(*both(field, x))
        assert_same(*both(field, x.requires_grad_(True)))

    @pytest.mark.parametrize("depth", [1, 3])
    @pytest.mark.parametrize("inner_steps", [1, 2, 3])
    @pytest.mark.parametrize("integrator", INTEGRATORS)
    def test_every_scheme(self, integrator: str, inner_steps: int, depth: int) -> None:
        settings = {"integrator": integrator, "inner_steps": inner_steps}
        field = potential(3, depth)
        assert_same(*both(field, points(3), **settings))
        assert_same(*both(field, points(3).requires_grad_(True), **settings))

    def test_a_scheme_whose_stages_use_all_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Kutta's rule of three eighths."""
        rule = ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
        monkeypatch.setitem(INTEGRATORS, "three eighths", rule)
        assert_same(*both(potential(3), points(3), integrator="three eighths", inner_steps=2))

    def test_more_layers(self) -> None:
        assert_same(*both(potential(3, 6), points(3)))

    @pytest.mark.parametrize("n", [1, 2, 4, 9, 40])
    def test_every_division_into_blocks(self, n: int) -> None:
        assert_same(*both(potential(3, 3), points(3, n).requires_grad_(True)))

    @pytest.mark.parametrize("part", [0, 1, 2], ids=["positions", "log_det", "action"])
    def test_losses_of_one_output(self, part: int) -> None:
        field, x = potential(), points().requires_grad_(True)
        found, wanted = (
            gradients(field, x, ODEMap(field, fused=is_fused).transport(x)[part].sin().sum())
            for is_fused in (True, False)
        )
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-10)

    def test_the_trace_of_the_quadratic_term(self) -> None:
        """With no output weights the flow is affine: `dl/ds = tr A`, so log det is the trace."""
        field = potential(3)
        with torch.no_grad():
            field.output.zero_()
        log_det = ODEMap(field).transport(points(3))[1]
        trace = torch.diagonal(field.quadratic)[:3].sum()
        torch.testing.assert_close(log_det, trace.expand(N), rtol=0, atol=1e-13)
        expected = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=F64))  # per particle; none for time
        (found,) = torch.autograd.grad(log_det.mean(), field.quadratic)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_float32(self, depth: int) -> None:
        """Ten thousand roundings or so of 6e-8 at worst, against the same in double precision."""
        single, double = potential(4, depth, dtype=torch.float32), potential(4, depth)
        double.load_state_dict(single.state_dict())
        x = points(4).float()
        transported = ODEMap(single).transport(x)
        found = transported, gradients(single, x, loss_of(tuple(part.double() for part in transported)))
        wanted = both(double, x.double())[1]
        assert {part.dtype for part in (*found[0], *found[1].values())} == {torch.float32}
        for a, b in zip((*found[0], *found[1].values()), (*wanted[0], *wanted[1].values()), strict=True):
            size = 1.0 + float(b.detach().abs().max())
            torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-5 * size)

    @pytest.mark.parametrize("scale", [1e2, 1e4])
    def test_saturated_units(self, scale: float) -> None:
        """Arguments beyond +-88, where float32's exponential underflows, on both sides."""
        field = potential(2, 3, dtype=torch.float32)
        with torch.no_grad():
            field.weights[0].mul_(scale)
            field.output.mul_(1.0 / scale)
        x = points().float()
        with torch.no_grad():
            arguments = field._arguments(torch.cat([x, torch.zeros(N, 1)], 1))[0]
        assert all(float(a.min()) < -88.0 and float(a.max()) > 88.0 for a in arguments)
        wanted = ODEMap(field, fused=False).transport(x)
        found = ODEMap(field).transport(x)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients(field, x, found[1].sum()).values())

    def test_training(self) -> None:
        """Adam goes the same way by both."""
        losses = []
        for is_fused in (True, False):
            field = potential()
            step, optimizer = ODEMap(field, fused=is_fused), torch.optim.Adam(field.parameters(), lr=0.01)
            for _ in range(5):
                optimizer.zero_grad()
                z, log_det, action = step.transport(points())
                loss = (0.5 * action - log_det + 0.5 * z.square().sum(1)).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(field.parameters(), 1.0)
                optimizer.step()
                losses.append(loss.item())
        assert losses[:5] == pytest.approx(losses[5:], abs=1e-10)
        assert losses[4] < losses[0] - 0.01


def test_gradcheck() -> None:
    """Finite differences of every output in every parameter and in x."""
    field = potential(2, 3, width=3)
    x = points(2, 2).requires_grad_(True)
    step = ODEMap(field, integrator="heun")
    assert torch.autograd.gradcheck(lambda *_: step.transport(x), (x, *field.parameters()), atol=1e-7, rtol=1e-6)


FAULTS = {
    "jacobian": ("_record_jacobian_sweep", 1),
    "velocity": ("_record_velocity_sweep", 2),
    "sums": ("_record_sum", 1),
    "rows": ("_record_rows", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_a_fault(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One operation left out of a tape."""
    name, left_out = FAULTS[fault]
    record = getattr(_stage.Stage, name)

    def faulty(self: _stage.Stage, tape: list, *rest: object) -> None:
        record(self, tape, *rest)
        del tape[-left_out]

    monkeypatch.setattr(_stage.Stage, name, faulty)
    with pytest.raises(AssertionError):
        assert_same(*both(potential(3, 3), points(3)))


class TestGraphs:
    """Calls share no buffers as long as their graphs are alive."""

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_two_graphs_at_once(self, order: tuple[int, int]) -> None:
        fields, xs = [potential(), potential(seed=1)], [points(), points(seed=6)]
        wanted = [both(field, x)[1][1] for field, x in zip(fields, xs, strict=True)]
        assert len(fused._spare) == 1  # which the first of the following takes
        losses = [loss_of(ODEMap(field).transport(x)) for field, x in zip(fields, xs, strict=True)]
        for i in order:
            for name, gradient in gradients(fields[i], xs[i], losses[i]).items():
                torch.testing.assert_close(gradient, wanted[i][name], rtol=1e-10, atol=1e-10)

    def test_results_outlive_their_buffers(self) -> None:
        field, x = potential(), points().requires_grad_(True)
        transported = ODEMap(field).transport(x)
        found = gradients(field, x, loss_of(transported))
        copies = [part.clone() for part in (*transported, *found.values())]
        both(potential(seed=1), points(seed=6).requires_grad_(True))
        for part, copy in zip((*transported, *found.values()), copies, strict=True):
            assert torch.equal(part, copy)

    def test_a_retained_graph(self) -> None:
        field, x = potential(), points()
        loss = loss_of(ODEMap(field).transport(x))
        first = torch.autograd.grad(loss, list(field.parameters()), retain_graph=True)
        both(potential(seed=1), points(seed=6))  # takes the first call's buffers
        second = torch.autograd.grad(loss, list(field.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, list(field.parameters()))

    def test_gradients_add_up(self) -> None:
        field, x = potential(), points()
        wanted = gradients(field, x, loss_of(ODEMap(field).transport(x)))
        for _ in range(2):
            loss_of(ODEMap(field).transport(x)).backward()
        for name, parameter in field.named_parameters():
            torch.testing.assert_close(parameter.grad, 2.0 * wanted[name])

    def test_parameters_that_changed_in_between_are_an_error(self) -> None:
        field = potential()
        loss = loss_of(ODEMap(field).transport(points()))
        with torch.no_grad():
            field.linear.add_(1.0)
        with pytest.raises(RuntimeError, match="inplace"):
            loss.backward()

    def test_frozen_parameters(self) -> None:
        field, x = potential(), points().requires_grad_(True)
        wanted = both(field, x)[1][1]
        field.linear.requires_grad_(False)
        loss_of(ODEMap(field).transport(x)).backward()
        assert field.linear.grad is None
        torch.testing.assert_close(x.grad, wanted["x"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(field.output.grad, wanted["output"], rtol=1e-10, atol=1e-10)

    def test_second_derivatives_are_left_to_the_plain_path(self) -> None:
        field, x = potential(), points().requires_grad_(True)
        for is_fused in (True, False):
            loss = loss_of(ODEMap(field, fused=is_fused).transport(x))
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            if is_fused:
                with pytest.raises(RuntimeError, match="once_differentiable"):
                    gradient.sum().backward()
            else:
                gradient.sum().backward()


class TestBuffers:
    def test_what_they_held_before_is_not_read(self) -> None:
        """A training that breaks down fills them with NaN."""
        field, x = potential(), points().requires_grad_(True)
        transported = ODEMap(field).transport(x)
        wanted = (*transported, *gradients(field, x, loss_of(transported)).values())
        broken = potential()
        with torch.no_grad():
            for parameter in broken.parameters():
                parameter.fill_(torch.nan)
        transported = ODEMap(broken).transport(x)
        assert all(bool(part.isnan().all()) for part in transported)
        assert all(bool(part.isnan().any()) for part in gradients(broken, x, loss_of(transported)).values())
        (program,) = fused._spare
        transported = ODEMap(field).transport(x)
        found = (*transported, *gradients(field, x, loss_of(transported)).values())
        assert fused._spare[0] is program
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    def test_one_small_program_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for n in (5, 6):
            both(potential(), points(n=n))
            assert [program.layout.n for program in fused._spare] == [n]
        monkeypatch.setattr(fused, "_KEPT", 1000)
        both(potential(), points())
        assert not fused._spare

    def test_threads(self) -> None:
        """Eight at once, each with its own parameters, on three layouts."""
        fields, xs = (
            [potential(seed=seed) for seed in range(8)],
            [points(n=4 + seed % 3, seed=seed) for seed in range(8)],
        )

        def work(i: int) -> list[Tensor]:
            return list(gradients(fields[i], xs[i], loss_of(ODEMap(fields[i]).transport(xs[i]))).values())

        wanted = [work(i) for i in range(8)]
        faults: list[int] = []
        barrier = threading.Barrier(8)

        def repeat(i: int) -> None:
            barrier.wait()
            for _ in range(10):
                if not all(torch.equal(a, b) for a, b in zip(work(i), wanted[i], strict=True)):
                    faults.append(i)

        threads = [threading.Thread(target=repeat, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults


OTHERS: dict[str, Callable[[], object]] = {
    "probes": lambda: ODEMap(potential(), probes=torch.ones(1, 2, dtype=F64)).transport(points()),
    "by choice": lambda: ODEMap(potential(), fused=False).transport(points()),
    "no layers": lambda: ODEMap(potential(depth=0)).transport(points()),
    "no gradient wanted": lambda: ODEMap(potential().requires_grad_(False)).transport(points()),
    "push": lambda: ODEMap(potential()).push(points(), points()),
    "forward": lambda: ODEMap(potential())(points()),
}


class TestWhereItIsUsed:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        result: list[str] = []

        def counted(*arguments: object) -> Transported:
            result.append("fused")
            return fused.fused_transport(*arguments)

        monkeypatch.setattr(jkosampler.maps.ode, "fused_transport", counted)
        return result

    def test_for_gradients_by_the_exact_trace(self, calls: list[str]) -> None:
        ODEMap(potential()).transport(points())
        frozen = potential().requires_grad_(False)
        ODEMap(frozen).transport(points().requires_grad_(True))
        assert len(calls) == 2

    @pytest.mark.parametrize("case", OTHERS)
    def test_nowhere_else(self, case: str, calls: list[str]) -> None:
        OTHERS[case]()
        assert not calls

    def test_not_without_grad(self, calls: list[str]) -> None:
        with torch.no_grad():
            ODEMap(potential()).transport(points())
        assert not calls


@pytest.mark.parametrize("x", [points(3), points(1), points().float(), points()[0]], ids=["3", "1", "float32", "(2,)"])
def test_points_that_do_not_fit(x: Tensor) -> None:
    with pytest.raises(ArgumentError, match=r"x must be a tensor \(n, 2\) of torch.float64"):
        ODEMap(potential()).transport(x)


def test_a_potential_without_layers() -> None:
    with pytest.raises(ArgumentError, match="depth is 0"):
        fused.fused_transport(potential(depth=0), points(), INTEGRATORS["rk4"], 1)
