"""Targets: an unnormalised log density over R^d together with what is known about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from jkosampler.errors import ArgumentError
from jkosampler.laws import Law, as_law
from jkosampler.targets.pulled_law import pulled_law
from jkosampler.targets.space import Space
from jkosampler.targets.support import space_of

__all__ = ["Target", "as_target"]

LogDensity = Callable[[Tensor], Tensor]


class Target:
    """An unnormalised log density over R^d; call it with points (n, d) for values (n,).

    With constraints, by `support` or `space`, it is one over the parameters as the user has them, without a Jacobian:
    d counts their columns, and `unconstrained` is the density that a flow in R^d has for a target.

    Parameters
    ----------
    log_density : callable (n, d) -> (n,)
        Takes a torch tensor and is differentiable by torch; -inf where the density is zero.
    dim : int, optional
        d; may be left out where `names` or `prior` knows it.
    names : sequence of str, optional
        One name for each coordinate. None: one vector variable "x". With constraints, coordinates named "w[0]",
        "w[1]", ... are one variable "w" of shape (k,), and "L[0,0]", "L[0,1]", ... a matrix.
    prior : Law or torch Distribution, optional
        Prior of the posterior whose density this is, over the same d columns. It is not renormalised where constraints
        cut it off.
    log_likelihood : callable (n, d) -> (n, k), optional
        Pointwise log likelihood of k observations.
    observed_data, constant_data : mapping of str to array, optional
        Kept with the draws, for ArviZ.
    differentiable : bool
        False for a black box without gradient: its values alone are used, by emulators of them.
    support : mapping of str to constraint, optional
        By name of a variable: "positive", "negative", an interval (low, high) with None or an infinity for no end,
        "ordered" and "positive ordered" (increasing vectors), "simplex" (k columns of sum one; the density is that of
        the first k - 1), "cholesky correlation" (the lower factor of a correlation matrix, k * k columns; the density
        is that of the entries below the diagonal), or "real", as all others are. Boundaries are left out. The
        unconstrained coordinates z are log x of a positive x and log((x - low) / (high - x)) in an interval.
    space : Space, optional
        Instead of `support`: any other bijection from R^d onto the parameters.

    Attributes
    ----------
    dim : int
    names : list of str, or None
    space : Space or None
    prior : Law or None
    observed_data, constant_data : dict of str to ndarray
    differentiable : bool

    Raises
    ------
    ArgumentError
        `log_density` can't be called, or `dim` is unknown or contradicts `names`, `space` or `prior`, or `support`
        doesn't fit the names.
    """

    space: Space | None = None
    outputs_are_densities = True  # those of `black_box`; a forward model's are its predictions
    exchange: Any = None  # of those whose values are told

    def __init__(
        self,
        log_density: LogDensity,
        dim: int | None = None,
        *,
        names: Sequence[str] | None = None,
        prior: Law | Distribution | None = None,
        log_likelihood: LogDensity | None = None,
        observed_data: Mapping[str, Any] | None = None,
        constant_data: Mapping[str, Any] | None = None,
        differentiable: bool = True,
        support: Mapping[str, Any] | None = None,
        space: Space | None = None,
    ) -> None:
        if not callable(log_density):
            raise ArgumentError(f"log_density must be a callable (n, d) -> (n,), got {type(log_density).__name__}.")
        self.names = _checked_names(names)
        self.prior = None if prior is None else as_law(prior, name="prior")
        self.dim = one_dimension(
            {
                "dim": dim,
                "names": None if self.names is None else len(self.names),
                "space": getattr(space, "n_columns", None),
                "prior": None if self.prior is None else self.prior.dim,
            }
        )
        self.space = _space(support, space, self.names, self.dim)
        self.observed_data = {key: np.asarray(value) for key, value in (observed_data or {}).items()}
        self.constant_data = {key: np.asarray(value) for key, value in (constant_data or {}).items()}
        self.differentiable = bool(differentiable)
        self._log_density = log_density
        self._log_likelihood = log_likelihood

    def __call__(self, x: Any) -> Any:
        """Unnormalised log density (n,) at x (n, d): a tensor for a tensor, numpy float64 for numpy."""
        if isinstance(x, Tensor):
            return self._log_density(x)
        with torch.no_grad():
            return self._log_density(torch.tensor(x, dtype=torch.float64)).numpy()

    def black_box(self, x: Tensor) -> Tensor:
        """What has to be computed without gradient, (n, k), at x (n, d): here the log density itself."""
        value = self(x)
        return value.unsqueeze(1) if isinstance(value, Tensor) and value.dim() == 1 else value

    def log_density_from(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Log density (n,) from x and the outputs (n, k) of `black_box`, differentiable in both."""
        return outputs[:, 0]

    def log_likelihood(self, x: Tensor) -> Tensor | None:
        """Pointwise log likelihood (n, k) at x (n, d); None where the target doesn't know it."""
        return None if self._log_likelihood is None else self._log_likelihood(x)

    @cached_property
    def unconstrained(self) -> Target:
        """The target over R^d that a flow moves particles to: the target itself where there are no constraints.

        Of z with x = x(z): log density plus log Jacobian. A subclass that has this density from elsewhere overrides it.
        """
        return self if self.space is None else _Unconstrained(self, self.space)

    def user_points(self, x: Tensor) -> Tensor:
        """Points (n, d) of this target as the user knows them, for messages."""
        return x

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, names={self.names})"


class _Unconstrained(Target):
    """A constrained target as a density over R^d."""

    def __init__(self, constrained: Target, over: Space) -> None:
        super().__init__(
            self._log_density_of_z,
            over.dim,
            log_likelihood=self._log_likelihood_of_z,
            observed_data=constrained.observed_data,
            constant_data=constrained.constant_data,
            differentiable=constrained.differentiable,
        )
        self._constrained, self._over = constrained, over
        self.outputs_are_densities = constrained.outputs_are_densities
        self.prior = None if constrained.prior is None else pulled_law(constrained.prior, over)

    def user_points(self, x: Tensor) -> Tensor:
        return self._over.to_user(x)

    def black_box(self, z: Tensor) -> Tensor:
        return self._constrained.black_box(self._over.to_user(z).clone())

    def log_density_from(self, z: Tensor, outputs: Tensor) -> Tensor:
        return self._with_jacobian(self._constrained.log_density_from(self._over.to_user(z), outputs), z)

    def _log_density_of_z(self, z: Tensor) -> Tensor:
        # a copy, since a function that works in place would break the gradient of x(z)
        return self._with_jacobian(self._constrained(self._over.to_user(z).clone()), z)

    def _with_jacobian(self, value: Any, z: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or value.shape != z.shape[:1]:
            return value  # for the evaluator to refuse: a sum would hide the shape
        # At a scale of 1e-100, say, the gradient overflows long before the value does: there is no density there.
        value = torch.where(value < -(torch.finfo(z.dtype).max ** 0.45), -math.inf, value)
        return value + self._over.log_jacobian(z)

    def _log_likelihood_of_z(self, z: Tensor) -> Any:
        return self._constrained.log_likelihood(self._over.to_user(z))


def as_target(target: Any, dim: int | None = None) -> Target:
    """Turn a callable, a law or a torch distribution into a `Target`.

    Parameters
    ----------
    target : Target, Law, torch Distribution or callable (n, d) -> (n,)
    dim : int, optional
        d; needed for a plain callable without an attribute `dim`.

    Raises
    ------
    ArgumentError
        It is none of these, or its dimension is unknown or another one.
    """
    known: int | None
    log_density: LogDensity
    if isinstance(target, (Law, Distribution)):
        law = as_law(target, name="log_target")
        known, log_density = law.dim, law.log_prob
    elif callable(target):
        known, log_density = getattr(target, "dim", None), target
    else:
        raise ArgumentError(
            "log_target must be a callable (n, d) -> (n,), a Target, a law or a torch Distribution, "
            f"got {type(target).__name__}."
        )
    agreed = one_dimension({"dim": dim, "log_target": known})
    return target if isinstance(target, Target) else Target(log_density, agreed)


def one_dimension(candidates: Mapping[str, int | None]) -> int:
    """Return the dimension that the named arguments agree on; None is no opinion.

    Raises
    ------
    ArgumentError
        They contradict each other, or none has an opinion, or it is not a positive whole number.
    """
    known = {name: value for name, value in candidates.items() if value is not None}
    if not known:
        raise ArgumentError("The dimension is unknown: give dim=, the number of coordinates of a point.")
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            what = "dim" if name == "dim" else f"{name}: its dimension"
            raise ArgumentError(f"{what} must be a positive whole number, got {value!r}.")
    if len(set(known.values())) > 1:
        opinions = ", ".join(f"{name} says {value}" for name, value in known.items())
        raise ArgumentError(f"The dimensions contradict each other: {opinions}.")
    return int(next(iter(known.values())))


def _space(support: Mapping[str, Any] | None, space: Space | None, names: list[str] | None, dim: int) -> Space | None:
    if support is not None and space is not None:
        raise ArgumentError("support and space both say what the constraints are: give one of them.")
    if not isinstance(space, Space | None):
        raise ArgumentError(f"space must be a jkosampler.targets.Space, got {type(space).__name__}; or give support=.")
    return space if support is None else space_of(support, names, dim)


def _checked_names(names: Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"names must be a list of strings, one for each coordinate, got {names!r}.")
    if len(set(names)) < len(names):
        raise ArgumentError(f"names must differ from each other, got {list(names)}.")
    return list(names)
