"""The interaction energy `1/2 iint W(x - y) rho(x) rho(y)`, over pairs of particles.

Equation (14) of Lee, Wang, Li (arXiv 2311.06700) with its missing factor 1/2, and without the pairs of a particle with
itself, so that singular kernels have a meaning and equal weights give an unbiased estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jkosampler.energies.terms import Energy
from jkosampler.errors import ArgumentError, TargetCallError, TargetGradientError, TargetShapeError, TargetValueError

__all__ = ["Interaction"]

_PAIR_NUMBERS = 2**17  # numbers in a block of differences: bounds the memory, and blocks stay in the cache
_EVEN = 1e-6  # relative difference of W(z) and W(-z) that rounding may make


class Interaction(Energy):
    """`1/2 iint W(x - y) rho(x) rho(y)` for an even kernel W.

    Parameters
    ----------
    kernel : callable
        W(z), differences (..., d) -> (...), differentiable by torch, W(-z) = W(z); it may be singular at zero.
    """

    def __init__(self, kernel: Callable[[Tensor], Tensor]) -> None:
        if not callable(kernel):
            raise ArgumentError(f"kernel must be a callable (..., d) -> (...), got {type(kernel).__name__}.")
        self.kernel = kernel

    def check(self, x: Tensor) -> None:
        """Try the kernel on differences of particles x (n, d).

        Raises
        ------
        TargetCallError, TargetShapeError, TargetValueError, TargetGradientError
            It raises, returns a wrong shape or NaN, or has no gradient.
        ArgumentError
            It is not even.
        """
        z = (x[: len(x) // 2] - x[len(x) // 2 : 2 * (len(x) // 2)])[:64]
        value, _ = self._value_and_slope(z)
        mirrored, _ = self._value_and_slope(-z)
        single, _ = self._value_and_slope(z.unsqueeze(0))
        part, _ = self._value_and_slope(z[: (len(z) + 1) // 2])
        same = all(torch.allclose(other, value[: len(other)], rtol=_EVEN, atol=0.0) for other in (single[0], part))
        if not same:
            raise TargetShapeError("energy: the kernel of Interaction mixes the rows of its argument (..., d).")
        if bool(((mirrored - value).abs() > _EVEN * (value.abs() + mirrored.abs())).any()):
            raise ArgumentError(
                "energy: the kernel of Interaction must be even, W(-z) = W(z); give the mean of W(z) and W(-z)."
            )

    def among(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """`W * rho` (n,) and its gradient (n, d) at particles x of weights (n,) that make up rho, each without itself.

        Blocks of pairs above the diagonal serve their mirror images as well.
        """
        value, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for rows, columns in _blocks(len(x), len(x), x.shape[1]):
            if columns.start < rows.start:
                continue
            diagonal = rows.start == columns.start
            pairs, slopes = self._pairs(x[rows], x[columns], without_diagonal=diagonal)
            value[rows] += pairs @ weights[columns]
            gradient[rows] += (slopes @ weights[columns]).mT
            if not diagonal:
                value[columns] += weights[rows] @ pairs
                gradient[columns] -= (weights[rows] @ slopes).mT
        norm = 1.0 - weights.square().sum()
        return value / norm, gradient / norm

    def of(self, crowd: Tensor, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """`W * rho` (n,) and its gradient (n, d) at other points x, for rho made up of a crowd (m, d), weights (m,)."""
        value, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for rows, columns in _blocks(len(x), len(crowd), x.shape[1]):
            pairs, slopes = self._pairs(x[rows], crowd[columns], without_diagonal=False)
            value[rows] += pairs @ weights[columns]
            gradient[rows] += (slopes @ weights[columns]).mT
        return value, gradient

    def _pairs(self, x: Tensor, y: Tensor, *, without_diagonal: bool) -> tuple[Tensor, Tensor]:
        """W (n, m) and its gradient (d, n, m) of the differences x_i - y_j."""
        # Coordinates outermost in memory: sums over a last axis of length d are slow where it is the innermost.
        z = x.mT.contiguous().unsqueeze(2) - y.mT.contiguous().unsqueeze(1)
        if not without_diagonal:
            value, slope = self._value_and_slope(z.movedim(0, -1))
            return value, slope.movedim(-1, 0)
        z.diagonal(dim1=1, dim2=2).fill_(1.0)  # W may be singular at zero
        value, slope = self._value_and_slope(z.movedim(0, -1))
        value.fill_diagonal_(0.0)
        slope = slope.movedim(-1, 0)
        slope.diagonal(dim1=1, dim2=2).zero_()
        return value, slope

    def _value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            z = z.detach().clone().requires_grad_(True)  # a tensor made in inference mode can't have a gradient
            try:
                value = self.kernel(z)
            except Exception as error:
                raise TargetCallError(
                    f"energy: the kernel of Interaction raised {type(error).__name__} for differences of shape "
                    f"{tuple(z.shape)}: {error}"
                ) from error
            if not isinstance(value, Tensor) or value.shape != z.shape[:-1]:
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TargetShapeError(
                    f"energy: the kernel of Interaction must map differences {tuple(z.shape)} to a tensor of shape "
                    f"{tuple(z.shape[:-1])}, got {found}; sum over the last axis, as in z.square().sum(-1)."
                )
            if not value.requires_grad:
                raise TargetGradientError("energy: the kernel of Interaction must be made of torch operations on z.")
            (slope,) = torch.autograd.grad(value.sum(), z)
        if not bool((value.detach().sum() + slope.sum()).isfinite()):  # NaN or infinite where one of them is
            wrong = ~(value.isfinite() & slope.isfinite().all(-1))
            worst = z.detach()[wrong][0] if bool(wrong.any()) else z.detach().flatten(0, -2)[0]
            raise TargetValueError(
                f"energy: the kernel of Interaction or its gradient is not finite at the difference {worst.tolist()}."
            )
        return value.detach(), slope.detach()


def _blocks(n: int, m: int, d: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of square blocks of pairs, each of bounded size."""
    size = max(1, int((_PAIR_NUMBERS / d) ** 0.5))
    for i in range(0, n, size):
        for j in range(0, m, size):
            yield slice(i, min(i + size, n)), slice(j, min(j + size, m))
