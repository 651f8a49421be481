"""Stan's models as targets, through the interface of BridgeStan: one point at a time, by compiled code."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from jkosampler.errors import ArgumentError
from jkosampler.targets.hosts import Host, HostTarget

__all__ = ["from_bridgestan"]

logger = logging.getLogger(__name__)

_METHODS = (
    "param_unc_num",
    "param_names",
    "log_density",
    "log_density_gradient",
    "param_constrain",
    "param_unconstrain",
)
_NAME = re.compile(r"(.*?)((?:\.\d+)*)")  # "Sigma.1.2", and "pair.1:2.3", the third of a tuple's entries


def from_bridgestan(stan_model: Any) -> HostTarget:
    """Make a target of a Stan model.

    Parameters
    ----------
    stan_model : bridgestan.StanModel
        Or whatever has its methods `param_unc_num`, `param_names`, `log_density`, `log_density_gradient`,
        `param_constrain` and `param_unconstrain`.

    Returns
    -------
    HostTarget
        Over the variables of the block `parameters`, "beta.1", "beta.2" being entries of "beta". `derived(x)` has the
        transformed parameters. The log density keeps its constants (`propto=False`). It is -inf where Stan can't
        compute it, with a message of `logging` the first time; there the log Jacobian is NaN.

    Raises
    ------
    ArgumentError
        `stan_model` lacks one of these methods, or has no parameters.

    Examples
    --------
    >>> import bridgestan  # doctest: +SKIP
    >>> stan_model = bridgestan.StanModel("model.stan", data="data.json")  # doctest: +SKIP
    >>> target = from_bridgestan(stan_model)  # doctest: +SKIP
    >>> JKOSampler(target).fit()  # doctest: +SKIP
    """
    return HostTarget(_Stan(stan_model))


class _Stan(Host):
    def __init__(self, model: Any) -> None:
        missing = [name for name in _METHODS if not callable(getattr(model, name, None))]
        if missing:
            raise ArgumentError(
                f"stan_model must be a bridgestan.StanModel; {type(model).__name__} has no method {', '.join(missing)}."
            )
        self.dim = int(model.param_unc_num())
        if self.dim < 1:
            raise ArgumentError("stan_model has no parameters: there is nothing to sample.")
        self._model = model
        self.variables, self._order = _layout(model.param_names(include_tp=False, include_gq=False))
        self._told = False

    def value(self, z: np.ndarray) -> np.ndarray:
        return self._each(z, lambda point: self._log_density(point, jacobian=True), -np.inf)

    def value_and_gradient(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def both(point: np.ndarray) -> np.ndarray:
            value, gradient = self._model.log_density_gradient(point, propto=False, jacobian=True)
            return np.concatenate([[value], gradient])

        found = self._each(z, both, np.array([-np.inf, *np.zeros(self.dim)]))
        return found[:, 0], found[:, 1:]

    def constrained(self, z: np.ndarray) -> np.ndarray:
        return self._each(z, self._model.param_constrain, np.full(len(self._order), np.nan))[:, self._order]

    def unconstrained(self, x: np.ndarray) -> np.ndarray:
        columns = np.empty_like(x)
        columns[:, self._order] = x
        return self._each(columns, self._model.param_unconstrain, np.full(self.dim, np.nan), tell=False)

    def log_jacobian(self, z: np.ndarray) -> np.ndarray:
        # The interface has no other way to it. Rounding leaves some 1e-16 of the log density itself.
        def difference(point: np.ndarray) -> float:
            return self._log_density(point, jacobian=True) - self._log_density(point, jacobian=False)

        with np.errstate(invalid="ignore"):  # -inf less itself
            return self._each(z, difference, np.nan)

    def derived(self, z: np.ndarray) -> dict[str, np.ndarray]:
        names = self._model.param_names(include_tp=True, include_gq=False)
        variables, order = _layout(names[len(self._order) :])
        if not variables:
            return {}

        def transformed(point: np.ndarray) -> np.ndarray:
            return self._model.param_constrain(point, include_tp=True)[len(self._order) :][order]

        columns = self._each(z, transformed, np.full(len(order), np.nan))
        ends = np.cumsum([0, *(np.prod(shape, dtype=int) for shape in variables.values())])
        return {
            name: columns[:, first:last].reshape(len(z), *shape)
            for (name, shape), first, last in zip(variables.items(), ends[:-1], ends[1:], strict=True)
        }

    def _log_density(self, point: np.ndarray, jacobian: bool) -> float:
        return self._model.log_density(point, propto=False, jacobian=jacobian)

    def _each(
        self, points: np.ndarray, function: Callable[[np.ndarray], Any], instead: Any, tell: bool = True
    ) -> np.ndarray:
        """The function at each row; `instead` where Stan raises."""
        found = np.empty((len(points), *np.shape(instead)))
        for i, point in enumerate(np.ascontiguousarray(points)):
            try:
                found[i] = function(point)
            except RuntimeError as error:  # what BridgeStan makes of any exception of Stan's
                found[i] = instead
                if tell and not self._told:
                    self._told = True
                    logger.warning("Stan can't compute at a point, which counts as log density -inf: %s", error)
        return found


def _layout(names: list[str]) -> tuple[dict[str, tuple[int, ...]], np.ndarray]:
    """Variables with shapes, and the place in `names` of each entry in C order; Stan's first index runs fastest.

    Parameters
    ----------
    names : list of str
        Such as "mu", "theta.1", "theta.2", "L.1.1", "L.2.1", ...
    """
    places: dict[str, dict[tuple[int, ...], int]] = {}
    for place, name in enumerate(names):
        matched = _NAME.fullmatch(name)
        assert matched is not None  # any text matches
        index = tuple(int(number) - 1 for number in matched[2].split(".")[1:])
        places.setdefault(matched[1], {})[index] = place
    variables = {name: tuple(np.max(list(found), axis=0).astype(int) + 1) for name, found in places.items()}
    order = [places[name][index] for name, shape in variables.items() for index in np.ndindex(shape)]
    return {name: tuple(map(int, shape)) for name, shape in variables.items()}, np.array(order, dtype=int)
