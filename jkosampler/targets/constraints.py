"""Constraints on parameters: smooth bijections from R^d, with logarithms of Jacobians that neither overflow nor cancel.

Each has coordinates z in which it is no constraint. Where the rounding of x(z) would fall onto the boundary, x is the
nearest number inside instead: a log density that has a pole or a wall there stays finite, and so does its gradient.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

__all__ = ["CholeskyCorrelation", "Constraint", "HalfLine", "Interval", "Ordered", "Real", "Simplex"]

_SUM_TOLERANCE = 1e-6  # of sums and norms that must be one: single precision in, double precision here


class Constraint(ABC):
    """Columns x (n, n_columns) of one variable, and coordinates z (n, dim) without constraint.

    Attributes
    ----------
    dim, n_columns : int
    what : str
        The constraint in words.
    """

    what: str

    def __init__(self, dim: int, n_columns: int) -> None:
        self.dim, self.n_columns = dim, n_columns

    @abstractmethod
    def to_user(self, z: Tensor) -> Tensor:
        """x (n, n_columns) at z (n, dim), strictly inside."""

    @abstractmethod
    def to_unconstrained(self, x: Tensor) -> Tensor:
        """z (n, dim) of x (n, n_columns), all of them inside."""

    @abstractmethod
    def log_jacobian(self, z: Tensor) -> Tensor:
        """`log |det dx/dz|` (n,) at z (n, dim), of as many columns as are free."""

    @abstractmethod
    def inside(self, x: Tensor) -> Tensor:
        """Whether each row of x (n, n_columns) is strictly inside: bool (n,)."""


class Real(Constraint):
    """No constraint."""

    what = "real"

    def __init__(self, n: int) -> None:
        super().__init__(n, n)

    def to_user(self, z: Tensor) -> Tensor:
        return z

    def to_unconstrained(self, x: Tensor) -> Tensor:
        return x

    def log_jacobian(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z).sum(1)

    def inside(self, x: Tensor) -> Tensor:
        return x.isfinite().all(1)


class HalfLine(Constraint):
    """n columns above `edge`, x = edge + e^z; below it, x = edge - e^z, where `sign` is -1."""

    def __init__(self, n: int, edge: float, sign: int = 1) -> None:
        super().__init__(n, n)
        self.edge, self.sign = edge, sign
        self.what = f"{'above' if sign > 0 else 'below'} {edge:g}"

    def to_user(self, z: Tensor) -> Tensor:
        return _clamped_from(self.edge, self.edge + self.sign * _exp(z), self.sign)

    def to_unconstrained(self, x: Tensor) -> Tensor:
        return (self.sign * (x - self.edge)).log()

    def log_jacobian(self, z: Tensor) -> Tensor:
        return z.sum(1)

    def inside(self, x: Tensor) -> Tensor:
        return ((self.sign * (x - self.edge) > 0) & x.isfinite()).all(1)


class Interval(Constraint):
    """n columns between `low` and `high`, x = low + (high - low) / (1 + e^-z)."""

    def __init__(self, n: int, low: float, high: float) -> None:
        super().__init__(n, n)
        self.low, self.high = low, high
        self.what = f"in ({low:g}, {high:g})"

    def to_user(self, z: Tensor) -> Tensor:
        width = self.high - self.low
        # each half from its own end, which keeps the digits of small distances from it
        x = torch.where(z < 0, self.low + width * torch.sigmoid(z), self.high - width * torch.sigmoid(-z))
        return _clamped_from(self.high, _clamped_from(self.low, x, 1), -1)

    def to_unconstrained(self, x: Tensor) -> Tensor:
        return (x - self.low).log() - (self.high - x).log()

    def log_jacobian(self, z: Tensor) -> Tensor:
        return (logsigmoid(z) + logsigmoid(-z) + math.log(self.high - self.low)).sum(1)

    def inside(self, x: Tensor) -> Tensor:
        return ((x > self.low) & (x < self.high)).all(1)


class Ordered(Constraint):
    """k increasing columns, x_1 = z_1 (e^z_1 where all are `positive`) and x_i = x_{i-1} + e^z_i."""

    def __init__(self, k: int, positive: bool = False) -> None:
        super().__init__(k, k)
        self.positive = positive
        self.what = "positive and increasing" if positive else "increasing"

    def to_user(self, z: Tensor) -> Tensor:
        gaps = _exp(z, summands=self.dim)
        columns = [_clamped_from(0.0, gaps[:, 0], 1) if self.positive else z[:, 0]]
        for i in range(1, self.dim):
            before = columns[-1]
            above = torch.nextafter(before.detach(), torch.full_like(before, math.inf))
            columns.append(torch.maximum(before + gaps[:, i], above))
        return torch.stack(columns, 1)

    def to_unconstrained(self, x: Tensor) -> Tensor:
        first = x[:, :1].log() if self.positive else x[:, :1]
        return torch.cat([first, x.diff(dim=1).log()], 1)

    def log_jacobian(self, z: Tensor) -> Tensor:
        return z[:, 0 if self.positive else 1 :].sum(1)

    def inside(self, x: Tensor) -> Tensor:
        rising = x.isfinite().all(1) & (x.diff(dim=1) > 0).all(1)
        return rising & (x[:, 0] > 0) if self.positive else rising


class Simplex(Constraint):
    """k positive columns of sum one, the softmax of an isometry of z (k - 1) into the plane of sum zero.

    Densities are those of the first k - 1 columns. No component is another's remainder, as it is where a stick is
    broken: the law of z is as symmetric as that of x.
    """

    what = "a simplex: positive, with sum one"

    def __init__(self, k: int) -> None:
        super().__init__(k - 1, k)
        # column j: (1, ..., 1, -j, 0, ..., 0) / sqrt(j (j + 1)), with j ones
        basis = torch.ones(k, k - 1, dtype=torch.float64).triu()
        steps = torch.arange(1, k, dtype=torch.float64)
        basis[torch.arange(1, k), torch.arange(k - 1)] = -steps
        self._basis = basis / (steps * (steps + 1)).sqrt()

    def to_user(self, z: Tensor) -> Tensor:
        return self._log(z).clamp(min=math.log(torch.finfo(z.dtype).tiny)).exp()

    def to_unconstrained(self, x: Tensor) -> Tensor:
        return x.log() @ self._basis.to(x)

    def log_jacobian(self, z: Tensor) -> Tensor:
        return self._log(z).sum(1) + 0.5 * math.log(self.n_columns)

    def inside(self, x: Tensor) -> Tensor:
        return (x > 0).all(1) & _is_one(x.sum(1), self.n_columns)

    def _log(self, z: Tensor) -> Tensor:
        return (z @ self._basis.to(z).T).log_softmax(1)


class CholeskyCorrelation(Constraint):
    """k * k columns, in C order, of the lower Cholesky factor L of a correlation matrix.

    With one z for each entry below the diagonal, L_ij = tanh z_ij / (cosh z_i1 ... cosh z_i(j-1)), and what is left of
    the row's unit length is L_ii. Densities are those of the entries below the diagonal, as in torch's `LKJCholesky`.
    """

    what = "the Cholesky factor of a correlation matrix: lower triangular, positive diagonal, rows of length one"

    def __init__(self, k: int) -> None:
        super().__init__(k * (k - 1) // 2, k * k)
        self.k = k
        self._row, self._column = torch.tril_indices(k, k, -1)

    def to_user(self, z: Tensor) -> Tensor:
        below, log_left = self._matrices(z)
        lengths = log_left.clamp(min=math.log(torch.finfo(z.dtype).tiny)).exp()
        return (below.tanh() * lengths + torch.diag_embed(lengths.diagonal(dim1=1, dim2=2))).flatten(1)

    def to_unconstrained(self, x: Tensor) -> Tensor:
        factor = x.unflatten(1, (self.k, self.k))
        # what is left of a row's length from its end on: no difference of nearly equal numbers
        left, columns = factor.diagonal(dim1=1, dim2=2), []
        for j in reversed(range(self.k - 1)):
            entry = factor[:, :, j]
            below = torch.arange(self.k, device=x.device) > j
            columns.append(torch.where(below, (entry / left).asinh(), 0.0))
            left = torch.where(below, torch.hypot(entry, left), left)
        z = torch.stack(columns[::-1], 2)
        return z[:, self._row.to(z.device), self._column.to(z.device)]

    def log_jacobian(self, z: Tensor) -> Tensor:
        below, log_left = self._matrices(z)
        return (2.0 * _log_sech(below) + log_left.tril(-1)).sum((1, 2))

    def inside(self, x: Tensor) -> Tensor:
        factor = x.unflatten(1, (self.k, self.k))
        lengths = _is_one(factor.square().sum(2), self.k).all(1)
        return lengths & (factor.diagonal(dim1=1, dim2=2) > 0).all(1) & (factor.triu(1) == 0).all(2).all(1)

    def _matrices(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z below the diagonal (n, k, k), zero elsewhere; and the log of the length that is left for each entry."""
        below = z.new_zeros(len(z), self.k, self.k)
        below[:, self._row.to(z.device), self._column.to(z.device)] = z
        return below, pad(_log_sech(below).cumsum(2)[:, :, :-1], (1, 0))


def _exp(z: Tensor, summands: int = 1) -> Tensor:
    """e^z, of which so many can be added without overflow."""
    return z.clamp(max=math.log(torch.finfo(z.dtype).max) - 1.0 - math.log(summands)).exp()


def _clamped_from(edge: float, x: Tensor, sign: int) -> Tensor:
    """x no nearer to an edge than the first number above it (`sign` 1), or below (-1).

    At zero that is the first normal number, whose reciprocal doesn't overflow.
    """
    at = torch.tensor(edge, dtype=x.dtype, device=x.device)
    nearest = torch.nextafter(at, torch.full_like(at, sign * math.inf))
    if edge == 0.0:
        nearest = torch.full_like(at, sign * torch.finfo(x.dtype).tiny)
    return torch.maximum(x, nearest) if sign > 0 else torch.minimum(x, nearest)


def _log_sech(z: Tensor) -> Tensor:
    return 0.5 * (logsigmoid(2.0 * z) + logsigmoid(-2.0 * z)) + math.log(2.0)


def _is_one(values: Tensor, summands: int) -> Tensor:
    return (values - 1.0).abs() <= max(_SUM_TOLERANCE, 8 * summands * torch.finfo(values.dtype).eps)
