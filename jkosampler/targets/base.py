"""Targets: an unnormalised log density over R^d together with what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from jkosampler.errors import ArgumentError
from jkosampler.laws import Law, as_law

__all__ = ["Target", "as_target"]

LogDensity = Callable[[Tensor], Tensor]


class Target:
    """An unnormalised log density over R^d; call it with points (n, d) for values (n,).

    Parameters
    ----------
    log_density : callable (n, d) -> (n,)
        Takes a torch tensor and is differentiable by torch; -inf where the density is zero.
    dim : int, optional
        d; may be left out where `names` or `prior` knows it.
    names : sequence of str, optional
        One name for each coordinate. None: one vector variable "x".
    prior : Law or torch Distribution, optional
        Prior of the posterior whose density this is.
    log_likelihood : callable (n, d) -> (n, k), optional
        Pointwise log likelihood of k observations.
    observed_data, constant_data : mapping of str to array, optional
        Kept with the draws, for ArviZ.
    differentiable : bool
        False for a black box without gradient: its values alone are used, by emulators of them.

    Attributes
    ----------
    dim : int
    names : list of str, or None
    prior : Law or None
    observed_data, constant_data : dict of str to ndarray
    differentiable : bool

    Raises
    ------
    ArgumentError
        `log_density` can't be called, or `dim` is unknown or contradicts `names` or `prior`.
    """

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
    ) -> None:
        if not callable(log_density):
            raise ArgumentError(f"log_density must be a callable (n, d) -> (n,), got {type(log_density).__name__}.")
        self.names = _checked_names(names)
        self.prior = None if prior is None else as_law(prior, name="prior")
        self.dim = one_dimension(
            {
                "dim": dim,
                "names": None if self.names is None else len(self.names),
                "prior": None if self.prior is None else self.prior.dim,
            }
        )
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, names={self.names})"


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
    if len(set(known.values())) > 1:
        opinions = ", ".join(f"{name} says {value}" for name, value in known.items())
        raise ArgumentError(f"The dimensions contradict each other: {opinions}.")
    dim = next(iter(known.values()))
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or dim < 1:
        raise ArgumentError(f"dim must be a positive whole number, got {dim!r}.")
    return int(dim)


def _checked_names(names: Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"names must be a list of strings, one for each coordinate, got {names!r}.")
    if len(set(names)) < len(names):
        raise ArgumentError(f"names must differ from each other, got {list(names)}.")
    return list(names)
