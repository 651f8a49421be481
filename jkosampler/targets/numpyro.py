"""NumPyro's models as targets: densities, gradients and transforms by JAX, compiled for many points at once.

JAX computes in single precision unless told otherwise. Everything here runs in double precision, in a context of its
own: the user's setting stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from jkosampler.errors import ArgumentError
from jkosampler.targets.hosts import Host, HostTarget, batch_size, host_package

__all__ = ["from_numpyro"]

# Points of a compiled function: each size is compiled anew, so that a batch is cut into these, the last one padded.
_SIZES = tuple(4**k for k in range(3, 9))

Variables = dict[str, Any]


def from_numpyro(model: Callable[..., Any], *args: Any, **kwargs: Any) -> HostTarget:
    """Make a target of a NumPyro model.

    Parameters
    ----------
    model : callable
        With NumPyro's primitives; its latent variables are continuous.
    *args, **kwargs
        What the model is called with: data, for instance. Give floating-point data as numpy arrays in double precision;
        a JAX array that was made in single precision has the digits of single precision.

    Returns
    -------
    HostTarget
        Over the latent variables in the order of the model, plates as dims, with the observed data. `derived(x)` has
        the deterministic variables; a pointwise log likelihood is there for a single observed variable.

    Raises
    ------
    ArgumentError
        `model` can't be called, has no latent or has discrete variables or a plate with subsamples, or NumPyro finds
        no point where it has a density.
    MissingDependencyError
        NumPyro is not installed.

    Examples
    --------
    >>> import numpyro, numpyro.distributions as dist  # doctest: +SKIP
    >>> def model(y):  # doctest: +SKIP
    ...     sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    ...     numpyro.sample("y", dist.Normal(0.0, sigma), obs=y)
    >>> target = from_numpyro(model, np.array([0.3, -1.2, 0.8]))  # doctest: +SKIP
    >>> JKOSampler(target).fit()  # doctest: +SKIP
    """
    if not callable(model):
        raise ArgumentError(f"model must be a function with NumPyro's primitives, got {type(model).__name__}.")
    return HostTarget(_NumPyro(model, args, kwargs))


class _NumPyro(Host):
    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        host_package("numpyro", "from_numpyro")
        import jax
        import numpyro

        self._args, self._kwargs = args, kwargs
        self._model = numpyro.handlers.seed(model, rng_seed=0)
        with _double_precision():
            # values by NumPyro's own rule: an improper prior has no draws
            begun = numpyro.handlers.substitute(self._model, substitute_fn=numpyro.infer.init_to_uniform)
            trace = numpyro.handlers.trace(begun).get_trace(*args, **kwargs)
            latent = _checked_latent(trace)
            try:
                found = numpyro.infer.util.initialize_model(
                    jax.random.PRNGKey(0), model, model_args=args, model_kwargs=kwargs
                )
            except (RuntimeError, ValueError) as error:
                raise ArgumentError(f"model can't be used; NumPyro says: {str(error).rstrip('.')}.") from error
            self._potential = found.potential_fn
            self._z_shapes = {name: np.shape(found.param_info.z[name]) for name in latent}
            observed = {
                name: site
                for name, site in trace.items()
                if site["type"] == "sample" and site["is_observed"] and not isinstance(site["fn"], _unit())
            }
            self.variables = {name: np.shape(trace[name]["value"]) for name in latent}
            self.observed_data = {name: np.asarray(site["value"]) for name, site in observed.items()}
        self._observed = list(observed)
        self.pointwise = len(observed) == 1
        self.dim = int(sum(np.prod(shape, dtype=int) for shape in self._z_shapes.values()))
        # The pointwise log likelihood has the observed variable's name, and is one vector.
        named = latent + [name for name, value in self.observed_data.items() if value.ndim == 1]
        self.dims = {name: dims for name in named if (dims := _plates(name, trace))}
        width = self.dim + sum(np.size(value) for value in self.observed_data.values())
        most = batch_size(width)
        self._sizes = [size for size in _SIZES if size <= most] or [most]

    def value(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._value, z)

    def value_and_gradient(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._evaluate(self._value_and_gradient, z)

    def constrained(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._constrained, z)

    def unconstrained(self, x: np.ndarray) -> np.ndarray:
        return self._evaluate(self._unconstrained, x)

    def log_jacobian(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._log_jacobian, z)

    def log_likelihood(self, z: np.ndarray) -> np.ndarray:
        return self._evaluate(self._log_likelihood, z)

    def derived(self, z: np.ndarray) -> dict[str, np.ndarray]:
        return self._evaluate(self._derived, z)

    def _evaluate(self, function: Callable[[Any], Any], points: np.ndarray) -> Any:
        """A compiled function's outputs (n, ...), in whichever container it has them."""
        import jax

        parts: list[Any] = []
        first = 0
        with _double_precision():
            while first < len(points) or not parts:
                left = len(points) - first
                size = max((size for size in self._sizes if size <= left), default=self._sizes[0])
                part = points[first : first + size]
                if len(part):
                    padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
                else:
                    padded = np.zeros((size, points.shape[1]))
                kept = slice(len(part))
                parts.append(jax.tree.map(lambda output, kept=kept: np.asarray(output)[kept], function(padded)))
                first += size
        return jax.tree.map(lambda *values: np.concatenate(values), *parts)

    @cached_property
    def _value(self) -> Callable[[Any], Any]:
        return _compiled(self._log_density)

    @cached_property
    def _value_and_gradient(self) -> Callable[[Any], Any]:
        import jax

        return _compiled(jax.value_and_grad(self._log_density))

    @cached_property
    def _constrained(self) -> Callable[[Any], Any]:
        return _compiled(lambda z: _flat(self._user(z)))

    @cached_property
    def _unconstrained(self) -> Callable[[Any], Any]:
        def z(columns: Any) -> Any:
            x = _split(columns, self.variables)
            transforms = self._transforms(x)
            return _flat({name: transforms[name].inv(value) for name, value in x.items()})

        return _compiled(z)

    @cached_property
    def _log_jacobian(self) -> Callable[[Any], Any]:
        def total(point: Any) -> Any:
            z, x = _split(point, self._z_shapes), self._user(point)
            transforms = self._transforms(x)
            return sum(transforms[name].log_abs_det_jacobian(z[name], x[name]).sum() for name in z)

        return _compiled(total)

    @cached_property
    def _log_likelihood(self) -> Callable[[Any], Any]:
        def pointwise(z: Any) -> Any:
            trace = self._trace(self._user(z))
            return _flat({name: trace[name]["fn"].log_prob(trace[name]["value"]) for name in self._observed})

        return _compiled(pointwise)

    @cached_property
    def _derived(self) -> Callable[[Any], Any]:
        def deterministic(z: Any) -> Variables:
            trace = self._trace(self._user(z))
            return {name: site["value"] for name, site in trace.items() if site["type"] == "deterministic"}

        return _compiled(deterministic)

    def _log_density(self, z: Any) -> Any:
        return -self._potential(_split(z, self._z_shapes))

    def _user(self, z: Any) -> Variables:
        """The latent variables by name, of one point z (d,)."""
        from numpyro.infer.util import constrain_fn

        found = constrain_fn(self._model, self._args, self._kwargs, _split(z, self._z_shapes))
        return {name: found[name] for name in self.variables}

    def _trace(self, x: Variables) -> Mapping[str, Any]:
        from numpyro import handlers

        return handlers.trace(handlers.substitute(self._model, data=x)).get_trace(*self._args, **self._kwargs)

    def _transforms(self, x: Variables) -> dict[str, Any]:
        """From z to x, by variable: a bound may depend on the other variables of x."""
        from numpyro.distributions import biject_to

        trace = self._trace(x)
        return {name: biject_to(trace[name]["fn"].support) for name in self.variables}


def _double_precision() -> AbstractContextManager[Any]:
    """A context in which JAX computes in double precision."""
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before JAX 0.8

    return enable_x64()


def _compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import jax

    return jax.jit(jax.vmap(function))


def _split(point: Any, shapes: Mapping[str, tuple[int, ...]]) -> Variables:
    """Variables of their shapes, from one point (d,)."""
    found, first = {}, 0
    for name, shape in shapes.items():
        last = first + int(np.prod(shape, dtype=int))
        found[name] = point[first:last].reshape(shape)
        first = last
    return found


def _flat(variables: Variables) -> Any:
    import jax.numpy as jnp

    return jnp.concatenate([jnp.ravel(value) for value in variables.values()])


def _unit() -> type:
    """The law of `numpyro.factor`, which is no observation."""
    from numpyro.distributions import Unit

    return Unit


def _checked_latent(trace: Mapping[str, Any]) -> list[str]:
    """Names of the latent variables."""
    for name, site in trace.items():
        if site["type"] == "plate" and site["args"][1] not in (None, site["args"][0]):
            raise ArgumentError(f"model: plate {name!r} takes a random subsample; a density needs all of the data.")
    latent = [name for name, site in trace.items() if site["type"] == "sample" and not site["is_observed"]]
    discrete = [name for name in latent if trace[name]["fn"].support.is_discrete]
    if discrete:
        raise ArgumentError(
            f"model has discrete variables, {discrete}: a gradient flow moves continuous ones. Sum them out of the "
            "model, with MixtureSameFamily for instance."
        )
    if not latent:
        raise ArgumentError("model has no latent variables with these arguments: there is nothing to sample.")
    return latent


def _plates(name: str, trace: Mapping[str, Any]) -> list[str]:
    """Names of a variable's dimensions where it is in plates; those of its event are numbered."""
    site = trace[name]
    ndim, event = np.ndim(site["value"]), site["fn"].event_dim
    plates = {ndim - event + frame.dim: frame.name for frame in site["cond_indep_stack"]}
    plates = {axis: plate for axis, plate in plates.items() if 0 <= axis < ndim - event}
    return [plates.get(axis, f"{name}_dim_{axis}") for axis in range(ndim)] if plates else []
