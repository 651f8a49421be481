"""Models that live in another package, as targets: what a host has to know, and the torch side of it.

A host (PyMC, NumPyro, Stan) has the log density of its unconstrained coordinates z, Jacobian included, with its
gradient, and its own transforms between z and the user's parameters x. Nothing of it is differentiated by torch; the
gradient that the host returns with the value is.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jkosampler.errors import ArgumentError, MissingDependencyError
from jkosampler.targets.base import Target
from jkosampler.targets.space import Space

__all__ = ["Host", "HostSpace", "HostTarget", "host_package", "in_batches"]

logger = logging.getLogger(__name__)

# Numbers that an evaluation may hold for each node of the host's graph: 32 MB in double precision.
_BATCH_ELEMENTS = 2**22
# Of x there and back, relative to 1 + |x|: what rounding leaves of a point of the space, and no other point passes.
_ROUND_TRIP = 1e-6


class Host(ABC):
    """A model of another package over its unconstrained coordinates; numpy, float64, rows are points.

    Attributes
    ----------
    dim : int
        d, of the unconstrained coordinates.
    variables : dict of str to tuple of int
        The user's parameters with their shapes, in the order of the columns.
    dims, coords : dict
        Of parameters and data, for ArviZ.
    observed_data, constant_data : dict of str to array
    pointwise : bool
        Whether there is a pointwise log likelihood: of one observed variable.
    """

    dim: int
    variables: dict[str, tuple[int, ...]]
    dims: Mapping[str, Sequence[str]] = {}
    coords: Mapping[str, Any] = {}
    observed_data: Mapping[str, Any] = {}
    constant_data: Mapping[str, Any] = {}
    pointwise: bool = False

    @abstractmethod
    def value(self, z: np.ndarray) -> np.ndarray:
        """Log density (n,) of z (n, d), Jacobian included."""

    @abstractmethod
    def value_and_gradient(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same with its gradient (n, d)."""

    @abstractmethod
    def constrained(self, z: np.ndarray) -> np.ndarray:
        """The user's parameters x (n, n_columns) of z (n, d)."""

    @abstractmethod
    def unconstrained(self, x: np.ndarray) -> np.ndarray:
        """The coordinates z (n, d) of x (n, n_columns); anything, NaN too, where x is outside the space."""

    @abstractmethod
    def log_jacobian(self, z: np.ndarray) -> np.ndarray:
        """`log |det dx/dz|` (n,) at z (n, d)."""

    def log_likelihood(self, z: np.ndarray) -> np.ndarray:
        """Pointwise log likelihood (n, k) at z (n, d), where `pointwise` says so."""
        raise NotImplementedError

    def derived(self, z: np.ndarray) -> dict[str, np.ndarray]:
        """What the model computes from its parameters, each (n, ...)."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        return self  # it holds compiled functions and never changes


class HostSpace(Space):
    """The parameters of a host's model, by the host's own transforms; torch has no gradient of them."""

    def __init__(self, host: Host) -> None:
        super().__init__(host.dim, host.variables, dims=host.dims, coords=host.coords)
        self._host = host

    def to_user(self, z: Tensor) -> Tensor:
        return _through(self._host.constrained, z)

    def to_unconstrained(self, x: Tensor) -> Tensor:
        x = x.detach()
        with np.errstate(all="ignore"):
            z = _through(self._host.unconstrained, x)
            back = _through(self._host.constrained, z.nan_to_num())
        off = (back - x).abs() / (1.0 + x.abs())
        tolerance = max(_ROUND_TRIP, 100.0 * torch.finfo(x.dtype).eps)
        outside = ~(z.isfinite().all(dim=1) & (off <= tolerance).all(dim=1))
        if bool(outside.any()):
            row = int(outside.nonzero()[0, 0])
            first = self.by_variable(x[row : row + 1].cpu().numpy())
            shown = {name: values[0].tolist() for name, values in first.items()}
            raise ArgumentError(
                f"x violates a constraint of the model, or lies on its boundary, at {int(outside.sum())} of {len(x)} "
                f"points; the first is x[{row}]: {_shortened(str(shown))}. Give points inside the support."
            )
        return z

    def log_jacobian(self, z: Tensor) -> Tensor:
        return _through(self._host.log_jacobian, z)


class HostTarget(Target):
    """A host's model as a target over the user's parameters, in columns (n, n_columns).

    Called with them it returns the log density of the parameters, without Jacobian and without gradient;
    `unconstrained` is the same law over R^d, with the host's gradient.

    Parameters
    ----------
    host : Host

    Attributes
    ----------
    space : HostSpace
        Between both.
    """

    space: HostSpace

    def __init__(self, host: Host) -> None:
        space = HostSpace(host)
        names = [
            f"{name}[{','.join(map(str, index))}]" if shape else name
            for name, shape in host.variables.items()
            for index in np.ndindex(shape)
        ]
        super().__init__(
            self._log_density_of_x,
            space.n_columns,
            names=names,
            log_likelihood=self._log_likelihood_of_x if host.pointwise else None,
            observed_data=host.observed_data,
            constant_data=host.constant_data,
        )
        self.space = space
        self._host = host
        self._over_z = _Unconstrained(host, space)

    @property
    def unconstrained(self) -> Target:
        """The law over R^d, d = `space.dim`, that engines sample.

        Its log density is -inf, with a message of `logging` the first time, where the host computes NaN, as the
        hosts' own samplers have it.
        """
        return self._over_z

    def derived(self, x: Any) -> dict[str, np.ndarray]:
        """What the model computes from its parameters x (n, n_columns), such as deterministic variables: (n, ...) each.

        Raises
        ------
        ArgumentError
            A row of x violates a constraint.
        """
        z = self.space.to_unconstrained(torch.as_tensor(x, dtype=torch.float64))
        return self._host.derived(z.cpu().numpy())

    def _log_density_of_x(self, x: Tensor) -> Tensor:
        z = self.space.to_unconstrained(x)
        value = self._over_z(z)
        return torch.where(value.isneginf(), value, value - self.space.log_jacobian(z))

    def _log_likelihood_of_x(self, x: Tensor) -> Tensor:
        return _through(self._host.log_likelihood, self.space.to_unconstrained(x))


class _Unconstrained(Target):
    """A host's model over R^d."""

    def __init__(self, host: Host, space: HostSpace) -> None:
        super().__init__(
            self._log_density_of_z,
            host.dim,
            log_likelihood=(lambda z: _through(host.log_likelihood, z)) if host.pointwise else None,
            observed_data=host.observed_data,
            constant_data=host.constant_data,
        )
        self._host, self._over = host, space
        self._told = False

    def user_points(self, x: Tensor) -> Tensor:
        """Points (n, d) as the user knows them, for messages."""
        return self._over.to_user(x)

    def value(self, z: np.ndarray) -> np.ndarray:
        """Log density (n,) at z (n, d)."""
        values = self._host.value(z)
        return self._usable(values, np.isnan(values))

    def value_and_gradient(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same with its gradient (n, d), zero where there is no density."""
        values, gradients = self._host.value_and_gradient(z)
        bad = np.isnan(values) | (np.isfinite(values) & ~np.isfinite(gradients).all(axis=1))
        values = self._usable(values, bad)
        return values, np.where(np.isfinite(values)[:, None], gradients, 0.0)

    def _log_density_of_z(self, z: Tensor) -> Tensor:
        if torch.is_grad_enabled() and z.requires_grad:
            return _WithGradient.apply(z, self.value_and_gradient)
        return _through(self.value, z)

    def _usable(self, values: np.ndarray, bad: np.ndarray) -> np.ndarray:
        if bad.any() and not self._told:
            self._told = True
            logger.warning(
                "The model's log density or its gradient is NaN or overflows at %d of %d points: it counts as -inf "
                "there, here and later. If the draws lack a part of the posterior, look for the cause in the model.",
                bad.sum(),
                len(bad),
            )
        # At a scale of 1e-100, say, the gradient overflows long before the value does: there is no density there.
        return np.where(bad | (values < -(np.finfo(float).max ** 0.45)), -math.inf, values)


class _WithGradient(torch.autograd.Function):
    """A value whose gradient comes with it, from outside torch."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value_and_gradient: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Tensor:
        value, gradient = value_and_gradient(_as_numpy(z))
        ctx.save_for_backward(torch.as_tensor(gradient).to(z.device, z.dtype))
        return torch.as_tensor(value).to(z.device, z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output[:, None] * gradient, None


def in_batches(
    function: Callable[[np.ndarray], Sequence[np.ndarray]], z: np.ndarray, elements: int
) -> list[np.ndarray]:
    """Outputs (n, ...) of a function of points (n, d), a bounded number of points at a time.

    Parameters
    ----------
    function : callable
        From (m, d) to a sequence of arrays (m, ...).
    z : ndarray (n, d)
    elements : int
        Numbers that one point needs for a node of the graph, which bound m.
    """
    size = batch_size(elements)
    parts = [function(z[first : first + size]) for first in range(0, max(len(z), 1), size)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def batch_size(elements: int) -> int:
    """How many points of `elements` numbers each an evaluation takes at a time."""
    return max(1, _BATCH_ELEMENTS // max(elements, 1))


def host_package(name: str, needed_by: str) -> Any:
    """Import a host's package, or a module of it.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise MissingDependencyError(
            f"{needed_by} needs {package}, which is not installed. Run `pip install 'jkosampler[{package}]'`."
        ) from error


def _through(function: Callable[[np.ndarray], np.ndarray], points: Tensor) -> Tensor:
    """A host's function of points, on their device and in their dtype."""
    return torch.as_tensor(function(_as_numpy(points))).to(points.device, points.dtype)


def _as_numpy(points: Tensor) -> np.ndarray:
    return points.detach().to("cpu", torch.float64).contiguous().numpy()


def _shortened(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]} .."
