"""PyMC's models as targets: densities, gradients and transforms by PyTensor, for many points at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import Any

import numpy as np

from jkosampler.errors import ArgumentError
from jkosampler.targets.hosts import Host, HostTarget, host_package, in_batches

__all__ = ["from_pymc"]

logger = logging.getLogger(__name__)

Vectorised = Callable[[np.ndarray], list[np.ndarray]]  # points (n, d) to arrays (n, ...)

_AGREEMENT = 1e-8  # of a graph for many points with that for one: rounding, in sums of another order


def from_pymc(model: Any, *, mode: Any = None) -> HostTarget:
    """Make a target of a PyMC model.

    Parameters
    ----------
    model : pymc.Model
        Its free variables are continuous. Values of `pymc.Data` are those at this call.
    mode : str or pytensor mode, optional
        How PyTensor compiles; None: as it is configured. It takes seconds, and the first time of a kind of model up
        to a minute. "CVM" needs a C++ compiler and a BLAS library that it can link to.

    Returns
    -------
    HostTarget
        Over the free variables, in the model's order, with its dims, coords and data. `derived(x)` has the
        deterministic variables; a pointwise log likelihood is there for a single observed variable.

    Raises
    ------
    ArgumentError
        `model` is no PyMC model, has no free or has discrete variables, or no density at its initial point.
    MissingDependencyError
        PyMC is not installed.

    Examples
    --------
    >>> import pymc as pm  # doctest: +SKIP
    >>> with pm.Model() as model:  # doctest: +SKIP
    ...     sigma = pm.HalfNormal("sigma", 1.0)
    ...     pm.Normal("y", 0.0, sigma, observed=[0.3, -1.2, 0.8])
    >>> target = from_pymc(model)  # doctest: +SKIP
    >>> JKOSampler(target).fit()  # doctest: +SKIP
    """
    return HostTarget(_PyMC(model, mode))


class _PyMC(Host):
    def __init__(self, model: Any, mode: Any) -> None:
        pymc = host_package("pymc", "from_pymc")
        if not isinstance(model, pymc.Model):
            raise ArgumentError(f"model must be a pymc.Model, got {type(model).__name__}.")
        if not model.free_RVs:
            raise ArgumentError("model has no free random variables: there is nothing to sample.")
        if model.discrete_value_vars:
            names = [value.name for value in model.discrete_value_vars]
            raise ArgumentError(
                f"model has discrete variables, {names}: a gradient flow moves continuous ones. Sum them out of the "
                "model (pymc_extras.marginalize does, or a mixture distribution)."
            )
        self._model, self._mode = model, mode
        shapes = model.eval_rv_shapes()
        self.variables = {rv.name: tuple(map(int, shapes[rv.name])) for rv in model.free_RVs}
        self._start = model.initial_point()
        self._z_shapes = [np.shape(self._start[value.name]) for value in model.value_vars]
        self.dim = int(sum(np.prod(shape, dtype=int) for shape in self._z_shapes))
        self.observed_data = {rv.name: model.rvs_to_values[rv].eval() for rv in model.observed_RVs}
        data = {variable.name: variable.eval() for variable in model.data_vars}
        self.constant_data = {name: value for name, value in data.items() if name not in self._observed_names()}
        self.dims, self.coords = self._labels()
        self.pointwise = len(model.observed_RVs) == 1
        self._vectorises = True
        self._width = self.dim + sum(value.size for value in self.observed_data.values())
        self._check_start()

    def value(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._value_and_gradient, z)[0]  # a function of its own would take longer to compile

    def value_and_gradient(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, gradient = self._evaluate(self._value_and_gradient, z)
        return value, gradient

    def constrained(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._constrained, z)[0]

    def unconstrained(self, x: np.ndarray) -> np.ndarray:
        return self._evaluate(self._unconstrained, x)[0]

    def log_jacobian(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._log_jacobian, z)[0]

    def log_likelihood(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._log_likelihood, z)[0]

    def derived(self, z: np.ndarray) -> dict[str, np.ndarray]:
        names = [variable.name for variable in self._model.deterministics]
        return dict(zip(names, self._evaluate(self._derived, z), strict=True)) if names else {}

    def _evaluate(self, function: Vectorised, points: np.ndarray) -> list[np.ndarray]:
        return in_batches(function, points, self._width)

    # Compiled when first needed, which the first is at once.

    @cached_property
    def _value_and_gradient(self) -> Vectorised:
        from pytensor.gradient import grad

        z, (value,) = self._of_z([self._model.logp()])
        graphs, starts = [value, grad(value, z, disconnected_inputs="ignore")], self._starts()
        one = _looped(z, graphs, self._to_function)
        expected = one(starts)
        try:
            many = _vectorised(z, graphs, self._to_function)
            pairs = list(zip(many(starts), expected, strict=True))
        except Exception as error:  # a rule that an Op lacks fails in many ways, and a loop needs none
            return self._from_now_on_looped(one, error)
        if not all(np.allclose(a, b, _AGREEMENT, _AGREEMENT, equal_nan=True) for a, b in pairs):
            return self._from_now_on_looped(one, "the values are others than point by point")
        return many

    @cached_property
    def _constrained(self) -> Vectorised:
        z, values = self._of_z(self._model.replace_rvs_by_values(self._model.free_RVs))
        return self._compiled(z, [_joined(values)])

    @cached_property
    def _log_jacobian(self) -> Vectorised:
        model = self._model
        terms = [
            transform.log_jac_det(model.rvs_to_values[rv], *rv.owner.inputs).sum()
            for rv in model.free_RVs
            if (transform := model.rvs_to_transforms[rv]) is not None
        ]
        if not terms:
            return lambda z: [np.zeros(len(z))]
        z, terms = self._of_z(model.replace_rvs_by_values(terms))
        return self._compiled(z, [sum(terms)])

    @cached_property
    def _log_likelihood(self) -> Vectorised:
        z, values = self._of_z(self._model.logp(vars=self._model.observed_RVs, sum=False))
        return self._compiled(z, [_joined(values)])

    @cached_property
    def _derived(self) -> Vectorised:
        return self._compiled(*self._of_z(self._model.replace_rvs_by_values(self._model.deterministics)))

    @cached_property
    def _unconstrained(self) -> Vectorised:
        model = self._model
        # The bounds of a transform may depend on other variables, whose values are then columns of x as well.
        values = [
            rv if (transform := model.rvs_to_transforms[rv]) is None else transform.forward(rv, *rv.owner.inputs)
            for rv in model.free_RVs
        ]
        shapes = [self.variables[rv.name] for rv in model.free_RVs]
        x, values = _of_columns(values, model.free_RVs, shapes)
        return self._compiled(x, [_joined(values)])

    def _of_z(self, outputs: Sequence[Any]) -> tuple[Any, list[Any]]:
        z, graphs = _of_columns(outputs, self._model.value_vars, self._z_shapes)
        return _without_assertions(z, graphs, self._model.check_bounds)

    def _compiled(self, points: Any, outputs: Sequence[Any]) -> Vectorised:
        """A function of many points, from graphs of one; a loop where PyTensor makes no such graph."""
        looped = _looped(points, outputs, self._to_function)
        if not self._vectorises:
            return looped
        try:
            return _vectorised(points, outputs, self._to_function)
        except Exception as error:  # as of value and gradient
            return self._from_now_on_looped(looped, error)

    def _from_now_on_looped(self, looped: Vectorised, reason: Any) -> Vectorised:
        self._vectorises = False
        logger.warning("PyTensor makes no function of many points: the model is evaluated point by point. %r", reason)
        return looped

    def _to_function(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Callable[..., Any]:
        """Compiled with PyMC's own rewrites."""
        return self._model.compile_fn(
            list(outputs), inputs=list(inputs), mode=self._mode, point_fn=False, on_unused_input="ignore"
        )

    def _starts(self) -> np.ndarray:
        """The initial point and two beside it, (3, d)."""
        start = np.concatenate([np.ravel(self._start[value.name]) for value in self._model.value_vars])
        return start + 0.1 * np.random.default_rng(0).standard_normal((3, self.dim)) * np.arange(3)[:, None]

    def _check_start(self) -> None:
        value = self.value_and_gradient(self._starts()[:1])[0]
        if not np.isfinite(value[0]):
            raise ArgumentError(
                f"model has log density {value[0]} at its initial point: `model.debug()` says which variable is at "
                "fault; or give it another `initval`."
            )

    def _observed_names(self) -> set[str]:
        """Names of the `pymc.Data` that are observations."""
        from pytensor.graph.traversal import ancestors

        values = [self._model.rvs_to_values[rv] for rv in self._model.observed_RVs]
        return {variable.name for variable in ancestors(values) if variable.name is not None}

    def _labels(self) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """Names of dimensions and their labels: of parameters, constant data, and observed vectors."""
        shapes = self.variables | {name: value.shape for name, value in self.constant_data.items()}
        # The pointwise log likelihood has the observed variable's name, and is one vector.
        shapes |= {name: value.shape for name, value in self.observed_data.items() if value.ndim == 1}
        dims = {
            name: [f"{name}_dim_{i}" if dim is None else str(dim) for i, dim in enumerate(names)]
            for name, names in self._model.named_vars_to_dims.items()
            if name in shapes
        }
        used = {dim for names in dims.values() for dim in names}
        return dims, {d: labels for d, labels in self._model.coords.items() if d in used and labels is not None}


def _of_columns(outputs: Sequence[Any], variables: Sequence[Any], shapes: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Graphs as ones of a single vector of the variables' entries, with shared data as constants."""
    from pytensor import tensor as pt
    from pytensor.compile.sharedvalue import SharedVariable
    from pytensor.graph.replace import clone_replace
    from pytensor.graph.traversal import graph_inputs

    ends = np.cumsum([0, *(np.prod(shape, dtype=int) for shape in shapes)])
    points = pt.tensor("points", dtype="float64", shape=(int(ends[-1]),))
    replaced = {
        variable: points[first:last].reshape(shape).astype(variable.dtype)
        for variable, first, last, shape in zip(variables, ends[:-1], ends[1:], shapes, strict=True)
    }
    for variable in graph_inputs(list(outputs)):
        if isinstance(variable, SharedVariable) and hasattr(variable.type, "ndim"):  # not the state of a generator
            replaced[variable] = pt.constant(variable.get_value(), dtype=variable.dtype)
    return points, clone_replace(list(outputs), replaced, rebuild_strict=False)


def _without_assertions(points: Any, outputs: Sequence[Any], check_bounds: bool) -> tuple[Any, list[Any]]:
    """The graphs with -inf, where a distribution's parameter is illegal, for an exception.

    Before they are vectorised: then an assertion is one over all points.
    """
    from pymc.logprob.utils import local_check_parameter_to_ninf_switch, local_remove_check_parameter
    from pytensor.graph.basic import Constant
    from pytensor.graph.fg import FunctionGraph
    from pytensor.graph.rewriting.basic import EquilibriumGraphRewriter
    from pytensor.graph.traversal import graph_inputs

    others = [v for v in graph_inputs(list(outputs)) if v is not points and not isinstance(v, Constant)]
    graph = FunctionGraph([points, *others], list(outputs), clone=True)
    rule = local_check_parameter_to_ninf_switch if check_bounds else local_remove_check_parameter
    EquilibriumGraphRewriter([rule], max_use_ratio=100).rewrite(graph)
    return graph.inputs[0], list(graph.outputs)


def _joined(values: Sequence[Any]) -> Any:
    from pytensor import tensor as pt

    return pt.concatenate([value.flatten() for value in values])


def _looped(points: Any, outputs: Sequence[Any], compiler: Callable[..., Any]) -> Vectorised:
    """A loop over the points, compiled at its first call."""
    compiled = cache(lambda: compiler([points], outputs))

    def loop(batch: np.ndarray) -> list[np.ndarray]:
        rows = batch if len(batch) else np.zeros((1, batch.shape[1]))  # no points have outputs of some shape, too
        return [np.stack(values).astype(float)[: len(batch)] for values in zip(*map(compiled(), rows), strict=True)]

    return loop


def _vectorised(points: Any, outputs: Sequence[Any], compiler: Callable[..., Any]) -> Vectorised:
    from pytensor import tensor as pt
    from pytensor.graph.replace import vectorize_graph

    batch = pt.tensor("batch", dtype="float64", shape=(None, *points.type.shape))
    vectorised = vectorize_graph(list(outputs), {points: batch})
    compiled = compiler([batch], vectorised)
    # What does not depend on the points has no axis for them.
    lacks_axis = [many.ndim == one.ndim for many, one in zip(vectorised, outputs, strict=True)]

    def call(values: np.ndarray) -> list[np.ndarray]:
        found = zip(compiled(values), lacks_axis, strict=True)
        return [
            np.asarray(np.broadcast_to(a, (len(values), *a.shape)) if lacking else a, dtype=float)
            for a, lacking in found
        ]

    return call
