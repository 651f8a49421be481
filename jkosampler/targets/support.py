"""`Target(support=...)`: from constraints in words to a `Space`.

Columns named "w[0]", "w[1]", ... are one variable w of shape (k,), "L[0,0]", ... a matrix; any other name is a scalar.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError, describe_points
from jkosampler.targets.constraints import (
    CholeskyCorrelation,
    Constraint,
    HalfLine,
    Interval,
    Ordered,
    Real,
    Simplex,
)
from jkosampler.targets.space import Space

__all__ = ["Support", "space_of"]

_INDEXED = re.compile(r"(.+)\[(\d+(?:, ?\d+)*)\]")
_KINDS = '"real", "positive", "negative", (low, high), "ordered", "positive ordered", "simplex", "cholesky correlation"'


class Support(Space):
    """Variables with a constraint each.

    Parameters
    ----------
    variables : mapping of str to tuple of int
        Names and shapes.
    constraints : mapping of str to Constraint
        One for each variable, of as many columns as its shape has entries.
    """

    def __init__(self, variables: Mapping[str, tuple[int, ...]], constraints: Mapping[str, Constraint]) -> None:
        super().__init__(sum(constraint.dim for constraint in constraints.values()), variables)
        self.constraints = {name: constraints[name] for name in self.variables}
        self._dims = [constraint.dim for constraint in self.constraints.values()]
        self._widths = [constraint.n_columns for constraint in self.constraints.values()]

    def to_user(self, z: Tensor) -> Tensor:
        return torch.cat([c.to_user(part) for c, part in self._parts(z)], 1)

    def to_unconstrained(self, x: Tensor) -> Tensor:
        parts = []
        for (name, constraint), part in zip(self.constraints.items(), x.split(self._widths, 1), strict=True):
            outside = (~constraint.inside(part)).nonzero()[:, 0]
            if len(outside):
                where = describe_points(part.detach().cpu().numpy(), outside.cpu().numpy())
                where = re.sub(r"x\[(\d+)\]", r"row \1", where)
                raise ArgumentError(
                    f"{name!r} must be {constraint.what}, its boundary left out, but {len(outside)} of {len(x)} "
                    f"rows are not: {where}. Leave these rows out, or give the support "
                    "that they have."
                )
            parts.append(constraint.to_unconstrained(part))
        return torch.cat(parts, 1)

    def log_jacobian(self, z: Tensor) -> Tensor:
        return torch.stack([c.log_jacobian(part) for c, part in self._parts(z)]).sum(0)

    def contains(self, x: Tensor) -> Tensor:
        parts = zip(self.constraints.values(), x.split(self._widths, 1), strict=True)
        return torch.stack([constraint.inside(part) for constraint, part in parts]).all(0)

    def __repr__(self) -> str:
        described = ", ".join(f"{name}: {constraint.what}" for name, constraint in self.constraints.items())
        return f"{type(self).__name__}({described})"

    def _parts(self, z: Tensor) -> list[tuple[Constraint, Tensor]]:
        return list(zip(self.constraints.values(), z.split(self._dims, 1), strict=True))


def space_of(support: Mapping[str, Any], names: Sequence[str] | None, dim: int) -> Space:
    """The space of named columns with constraints; variables that `support` leaves out are real.

    Parameters
    ----------
    support : mapping of str to constraint
        By variable, in the words of `Target`.
    names : sequence of str, or None
        Names of the columns; None: one vector "x".
    dim : int
        Number of columns.

    Raises
    ------
    ArgumentError
        A constraint is unknown or doesn't fit the shape, a variable is, or the columns of one are not complete.
    """
    if not isinstance(support, Mapping):
        raise ArgumentError(f'support must be a dict such as {{"sigma": "positive"}}, got {support!r}.')
    variables = {"x": (dim,)} if names is None else _variables(names)
    unknown = [name for name in support if name not in variables]
    if unknown:
        raise ArgumentError(f"support: there is no variable {unknown[0]!r}; the names make {list(variables)}.")
    constraints = {name: _constraint(name, shape, support.get(name, "real")) for name, shape in variables.items()}
    return Support(variables, constraints)


def _variables(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by variable: columns "w[0]", "w[1]", ... are one."""
    indices: dict[str, list[tuple[int, ...]]] = {}
    order = []
    for name in names:
        match = _INDEXED.fullmatch(name)
        variable, index = (match[1], tuple(map(int, match[2].split(",")))) if match else (name, ())
        indices.setdefault(variable, []).append(index)
        order.append(variable)
    shapes = {}
    for variable, found in indices.items():
        shape = tuple(max(index[axis] for index in found if len(index) > axis) + 1 for axis in range(len(found[0])))
        complete = len(found) == math.prod(shape) and found == list(np.ndindex(shape))
        runs = sum(after == variable != before for before, after in pairwise([None, *order]))
        if not complete or runs != 1:
            columns = [name for name, of in zip(names, order, strict=True) if of == variable]
            raise ArgumentError(
                f"names: the columns of {variable!r} must follow one another, indices from 0 on and the last one "
                f"fastest, but are {columns}."
            )
        shapes[variable] = shape
    return shapes


def _constraint(name: str, shape: tuple[int, ...], kind: Any) -> Constraint:
    """The constraint that a word or a pair of ends stands for, on a variable of this shape."""
    n = math.prod(shape)
    if isinstance(kind, tuple | list) and len(kind) == 2:
        return _interval(name, n, *kind)
    word = kind.lower().replace("_", " ").replace("-", " ") if isinstance(kind, str) else ""
    if word == "real":
        return Real(n)
    if word in ("positive", "negative"):
        return HalfLine(n, 0.0, 1 if word == "positive" else -1)
    if word in ("ordered", "positive ordered"):
        _check_shape(name, word, shape, len(shape) == 1, f'a vector: columns "{name}[0]", "{name}[1]", ...')
        return Ordered(n, positive=word != "ordered")
    if word == "simplex":
        several = len(shape) == 1 and n > 1
        _check_shape(name, word, shape, several, f'two or more columns "{name}[0]", "{name}[1]", ...')
        return Simplex(n)
    if word == "cholesky correlation":
        square = len(shape) == 2 and shape[0] == shape[1] > 1
        _check_shape(name, word, shape, square, f'a square matrix of columns "{name}[0,0]", "{name}[0,1]", ...')
        return CholeskyCorrelation(shape[0])
    raise ArgumentError(f"support: {name!r} is {kind!r}, but must be one of {_KINDS}.")


def _interval(name: str, n: int, low: Any, high: Any) -> Constraint:
    """An interval; ends that are None or infinite are none."""
    try:
        low, high = float(-math.inf if low is None else low), float(math.inf if high is None else high)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"support: the ends of {name!r} must be numbers or None, got {(low, high)!r}.") from error
    if not low < high:
        raise ArgumentError(f"support: {name!r} must have a low end below its high one, got ({low}, {high}).")
    if low == -math.inf:
        return Real(n) if high == math.inf else HalfLine(n, high, -1)
    return HalfLine(n, low) if high == math.inf else Interval(n, low, high)


def _check_shape(name: str, word: str, shape: tuple[int, ...], fits: bool, needed: str) -> None:
    if not fits:
        raise ArgumentError(f'support: "{word}" needs {needed}, but {name!r} has shape {shape}.')
