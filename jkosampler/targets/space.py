"""The user's parameters and the points of R^d that a flow moves: how one becomes the other.

A flow lives in R^d. A parameter that is positive, bounded, ordered or a simplex is therefore carried by unconstrained
coordinates z, and x = x(z) is what the user sees. Densities follow by the change of variables,

    log p(z) = log p(x(z)) + log |det dx/dz|(z).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError

__all__ = ["Space"]


class Space(ABC):
    """The user's parameters, laid out in columns, and a smooth bijection from R^d onto them.

    Parameters
    ----------
    dim : int
        d, of the unconstrained coordinates.
    variables : mapping of str to tuple of int
        Names of the user's variables with their shapes; the columns of a point are their entries, one variable after
        the other, each in C order.
    dims : mapping of str to sequence of str, optional
        Names of a variable's dimensions, for ArviZ.
    coords : mapping of str to array_like, optional
        Labels along these dimensions.

    Attributes
    ----------
    dim : int
        d.
    n_columns : int
        Columns of the user's points: more than d where a simplex is among them.
    variables, dims, coords : dict
    """

    def __init__(
        self,
        dim: int,
        variables: Mapping[str, tuple[int, ...]],
        *,
        dims: Mapping[str, Sequence[str]] | None = None,
        coords: Mapping[str, Any] | None = None,
    ) -> None:
        self.dim = dim
        self.variables = {name: tuple(shape) for name, shape in variables.items()}
        self.n_columns = sum(math.prod(shape) for shape in self.variables.values())
        self.dims = {name: list(names) for name, names in (dims or {}).items()}
        self.coords = {name: np.asarray(labels) for name, labels in (coords or {}).items()}

    @abstractmethod
    def to_user(self, z: Tensor) -> Tensor:
        """The user's parameters x (n, n_columns) of unconstrained points z (n, d)."""

    @abstractmethod
    def to_unconstrained(self, x: Tensor) -> Tensor:
        """The unconstrained points z (n, d) of the user's parameters x (n, n_columns).

        Raises
        ------
        ArgumentError
            A row of x violates a constraint; its boundary is not part of the space.
        """

    @abstractmethod
    def log_jacobian(self, z: Tensor) -> Tensor:
        """`log |det dx/dz|` (n,) at unconstrained points z (n, d).

        Of as many columns as are free: the first k - 1 of a simplex, those below the diagonal of a Cholesky factor.
        """

    def contains(self, x: Tensor) -> Tensor:
        """Whether each row of x (n, n_columns) is inside the space, which its boundary is not: bool (n,)."""
        try:
            self.to_unconstrained(x)
        except ArgumentError:
            if len(x) == 1:
                return torch.zeros(1, dtype=torch.bool, device=x.device)
            half = len(x) // 2  # few rows are outside, as a rule
            return torch.cat([self.contains(x[:half]), self.contains(x[half:])])
        return torch.ones(len(x), dtype=torch.bool, device=x.device)

    @property
    def column_names(self) -> list[str]:
        """A name for each column: that of a scalar variable, or the variable's with the entry's indices."""
        return [
            f"{name}[{','.join(map(str, index))}]" if shape else name
            for name, shape in self.variables.items()
            for index in np.ndindex(shape)
        ]

    def by_variable(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters (..., n_columns) as variables, each of `(..., *shape)`."""
        found, first = {}, 0
        for name, shape in self.variables.items():
            last = first + math.prod(shape)
            found[name] = x[..., first:last].reshape(*x.shape[:-1], *shape)
            first = last
        return found
