"""The interaction energy against a double loop over pairs, its memory, and kernels that can't be used."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jkosampler.energies import Interaction
from jkosampler.energies import interaction as module
from jkosampler.errors import ArgumentError, TargetCallError, TargetGradientError, TargetShapeError, TargetValueError

F64 = torch.float64
Kernel = Callable[[Tensor], Tensor]
KERNELS: dict[str, Kernel] = {
    "square": lambda z: z.square().sum(-1),
    "logarithm": lambda z: z.norm(dim=-1).log(),  # of Keller and Segel: -inf at zero
    "gaussian": lambda z: -torch.exp(-0.5 * z.square().sum(-1)),
    "power": lambda z: z.square().sum(-1) ** 2 / 4.0 - z.norm(dim=-1),  # with a cusp at zero
    "bent": lambda z: (z[..., 0] * z[..., -1]).sin() + z.cos().sum(-1),
}
every_kernel = pytest.mark.parametrize("name", KERNELS)


def points(n: int, d: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def weights_of(n: int) -> Tensor:
    weights = torch.linspace(1.0, 4.0, n, dtype=F64)
    return weights / weights.sum()


def by_pairs(kernel: Kernel, x: Tensor, crowd: Tensor, weights: Tensor, *, same: bool) -> tuple[Tensor, Tensor]:
    """`sum_j w_j W(x_i - y_j)` and its gradient in x_i, one pair at a time; without j = i if both are the `same`."""
    values, slopes = [], []
    for i, point in enumerate(x):
        at = point.clone().requires_grad_(True)
        others = [j for j in range(len(crowd)) if not same or j != i]
        value = sum(weights[j] * kernel(at - crowd[j]) for j in others)
        slopes.append(torch.autograd.grad(value, at)[0])
        values.append(value.detach())
    norm = 1.0 - float(weights.square().sum()) if same else 1.0
    return torch.stack(values) / norm, torch.stack(slopes) / norm


class Watched:
    """A kernel that keeps account of what it is asked."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.n_pairs, self.largest, self.closest = kernel, 0, 0, math.inf

    def __call__(self, z: Tensor) -> Tensor:
        self.n_pairs += z[..., 0].numel()
        self.largest = max(self.largest, z.numel())
        self.closest = min(self.closest, float(z.detach().norm(dim=-1).min()))
        return self.kernel(z)


@every_kernel
@pytest.mark.parametrize("d", [1, 2, 3])
class TestAgainstPairs:
    def test_among_particles(self, name: str, d: int) -> None:
        x, weights = points(9, d), weights_of(9)
        for found, exact in zip(
            Interaction(KERNELS[name]).among(x, weights), by_pairs(KERNELS[name], x, x, weights, same=True), strict=True
        ):
            torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-13)

    def test_of_a_crowd(self, name: str, d: int) -> None:
        x, crowd, weights = points(6, d), points(9, d, seed=1), weights_of(9)
        found = Interaction(KERNELS[name]).of(crowd, weights, x)
        exact = by_pairs(KERNELS[name], x, crowd, weights, same=False)
        for part, exact_part in zip(found, exact, strict=True):
            torch.testing.assert_close(part, exact_part, rtol=1e-12, atol=1e-13)

    def test_blocks_equal_all_at_once(self, name: str, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
        x, crowd = points(23, d), points(17, d, seed=1)
        interaction = Interaction(KERNELS[name])
        whole = [*interaction.among(x, weights_of(23)), *interaction.of(crowd, weights_of(17), x)]
        for side in (1, 5, 8, 22, 23, 24):
            monkeypatch.setattr(module, "_PAIR_NUMBERS", side * side * d)
            parts = [*interaction.among(x, weights_of(23)), *interaction.of(crowd, weights_of(17), x)]
            for found, exact in zip(parts, whole, strict=True):
                torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-13)


class TestLaw:
    def test_of_and_among_agree_on_the_rest_of_the_law(self) -> None:
        """Particle i among all others is the crowd without it, up to the common normalisation of weights."""
        x, weights = points(12), weights_of(12)
        interaction = Interaction(KERNELS["bent"])
        value, gradient = interaction.among(x, weights)
        rest = weights[1:] / (1.0 - weights.square().sum())
        one, slope = interaction.of(x[1:], rest, x[:1])
        torch.testing.assert_close(value[:1], one, rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient[:1], slope, rtol=1e-13, atol=1e-15)

    def test_a_constant_is_felt_whole(self) -> None:
        """Weights of pairs sum to one: an additive constant of W adds to the mean, and equal weights to every value."""
        interaction, x = Interaction(lambda z: 3.0 + 0.0 * z.sum(-1)), points(7)
        value, gradient = interaction.among(x, weights_of(7))
        assert float(weights_of(7) @ value) == pytest.approx(3.0, rel=1e-13)
        assert not bool(gradient.any())
        torch.testing.assert_close(interaction.of(x, weights_of(7), points(3))[0], torch.full((3,), 3.0, dtype=F64))
        torch.testing.assert_close(
            interaction.among(x, torch.full((7,), 1 / 7).double())[0], torch.full((7,), 3.0).double()
        )

    def test_equal_weights_are_unbiased(self) -> None:
        """1/2 E W of the mean over few particles: E |x - y|^2 = 2 d for a normal law; five standard errors."""
        equal = torch.full((4,), 0.25, dtype=F64)
        means = torch.stack(
            [Interaction(KERNELS["square"]).among(points(4, seed=s), equal)[0].mean() for s in range(400)]
        )
        assert abs(float(means.mean()) - 4.0) < 5.0 * float(means.std()) / 20.0
        assert float(means.std()) < 0.15 * 20.0  # or the error would hide the 25 % of the pairs left out

    def test_forces_of_pairs_cancel(self) -> None:
        x, weights = points(40), weights_of(40)
        for name in KERNELS:
            _, gradient = Interaction(KERNELS[name]).among(x, weights)
            assert float((weights @ gradient).abs().max()) < 1e-14 * float(gradient.abs().max()) * 40


class TestCost:
    def test_a_singular_kernel_never_sees_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PAIR_NUMBERS", 200)  # blocks on the diagonal and beside it
        kernel, x = Watched(KERNELS["logarithm"]), points(35)
        value, gradient = Interaction(kernel).among(x, weights_of(35))
        assert kernel.closest > 0.0
        assert bool(value.isfinite().all())
        assert bool(gradient.isfinite().all())

    def test_mirror_images_are_not_computed_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PAIR_NUMBERS", 200)  # 10 x 10 pairs of the plane
        kernel = Watched(KERNELS["square"])
        Interaction(kernel).among(points(100), weights_of(100))
        assert kernel.n_pairs == 100 * (10 * 11 // 2)

    @pytest.mark.parametrize("d", [1, 2, 10])
    def test_memory_is_bounded_whatever_the_number_of_points(self, d: int) -> None:
        kernel, x = Watched(KERNELS["square"]), torch.zeros(1, d, dtype=F64).expand(100_000, d)
        value, gradient = Interaction(kernel).of(points(8, d), weights_of(8), x)
        assert (value.shape, gradient.shape) == ((100_000,), (100_000, d))
        assert kernel.n_pairs == 800_000
        assert kernel.largest <= module._PAIR_NUMBERS
        blocks = list(module._blocks(100_000, 100_000, d))  # looked at, not computed
        pairs = [(rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in blocks]
        assert sum(pairs) == 10**10
        assert max(pairs) * d <= module._PAIR_NUMBERS < 1.2 * max(pairs) * d
        dense = Watched(KERNELS["square"])
        Interaction(dense).among(points(1600, d), weights_of(1600))
        assert dense.largest <= module._PAIR_NUMBERS

    def test_modes_of_torch_do_not_matter(self) -> None:
        x, weights = points(6), weights_of(6)
        exact = Interaction(KERNELS["gaussian"]).among(x, weights)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                found = Interaction(KERNELS["gaussian"]).among(x.clone(), weights.clone())
            for part, exact_part in zip(found, exact, strict=True):
                assert torch.equal(part, exact_part)
        assert not any(part.requires_grad for part in exact)

    def test_precision_is_that_of_the_points(self) -> None:
        x, weights = points(6).float(), weights_of(6).float()
        for parts in (
            Interaction(KERNELS["gaussian"]).among(x, weights),
            Interaction(KERNELS["gaussian"]).of(x, weights, x + 0.5),
        ):
            assert {part.dtype for part in parts} == {torch.float32}


REFUSED: dict[str, tuple[Kernel, type[Exception], str]] = {
    "odd": (lambda z: z[..., 0], ArgumentError, r"must be even, W\(-z\) = W\(z\); give the mean"),
    "nearly even": (lambda z: z.square().sum(-1) + 1e-3 * z[..., 0], ArgumentError, "must be even"),
    "number": (
        lambda z: z.square().sum(),
        TargetShapeError,
        r"to a tensor of shape \(20,\), got \(\); sum over the last",
    ),
    "vector": (lambda z: z.square(), TargetShapeError, r"got \(20, 2\)"),
    "column": (lambda z: z.square().sum(-1, keepdim=True), TargetShapeError, r"got \(20, 1\)"),
    "not a tensor": (lambda z: 1.0, TargetShapeError, "got float"),
    "second axis": (lambda z: z.square().sum(1), TargetShapeError, r"to a tensor of shape \(1, 20\), got \(1, 2\)"),
    "other rows": (lambda z: (z - z.mean(0)).square().sum(-1), TargetShapeError, "mixes the rows"),
    "all differences": (lambda z: (z - z.mean()).square().sum(-1), TargetShapeError, "mixes the rows"),
    "raises": (
        lambda z: z @ torch.ones(7, dtype=F64),
        TargetCallError,
        r"raised RuntimeError .* shape \(20, 2\): size",
    ),
    "nan": (
        lambda z: torch.where(z[..., 0].abs() < 1.0, z.square().sum(-1), torch.nan),
        TargetValueError,
        "not finite at",
    ),
    "infinite": (lambda z: (z[..., 0].abs() - 1.0).clamp(min=0.0).log(), TargetValueError, "not finite at"),
    "singular slope": (lambda z: (0.0 * z[..., 0]).abs().sqrt() + z.square().sum(-1), TargetValueError, "its gradient"),
    "detached": (lambda z: z.detach().square().sum(-1), TargetGradientError, "made of torch operations on z"),
    "constant": (lambda z: torch.ones(z.shape[:-1], dtype=F64), TargetGradientError, "made of torch operations on z"),
}


class TestRefused:
    @pytest.mark.parametrize("name", REFUSED)
    def test_kernels_that_cannot_be_used(self, name: str) -> None:
        kernel, error, words = REFUSED[name]
        with pytest.raises(error, match=words):
            Interaction(kernel).check(points(40))

    @every_kernel
    @pytest.mark.parametrize("n", [0, 1, 2, 3, 200])
    def test_others_pass(self, name: str, n: int) -> None:
        Interaction(KERNELS[name]).check(points(n))

    def test_nan_in_the_midst_of_a_fit_is_refused_too(self) -> None:
        broken = Interaction(lambda z: torch.where(z[..., 0].abs() < 3.0, z.square().sum(-1), torch.nan))
        x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]], dtype=F64)
        with pytest.raises(TargetValueError, match=r"not finite at the difference \[-5.0, 0.0\]"):
            broken.among(x, weights_of(3))
        with pytest.raises(TargetValueError, match=r"not finite at the difference \[5.0, 0.0\]"):
            broken.of(x[:1], torch.ones(1, dtype=F64), x)

    def test_particles_in_one_place_under_a_singular_kernel(self) -> None:
        x = torch.zeros(3, 2, dtype=F64)
        with pytest.raises(TargetValueError, match=r"not finite at the difference \[0.0, 0.0\]"):
            Interaction(KERNELS["logarithm"]).among(x, weights_of(3))

    def test_what_is_no_kernel(self) -> None:
        with pytest.raises(ArgumentError, match=r"kernel must be a callable .* got str"):
            Interaction("log")
