"""Targets whose log density is a numpy function, with or without a gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution

from jkosampler._mapping import ChunkMap
from jkosampler._point_functions import PointFunction
from jkosampler.errors import ArgumentError
from jkosampler.laws import Law, as_law
from jkosampler.targets.base import Target, one_dimension
from jkosampler.targets.space import Space

__all__ = ["from_numpy"]


def from_numpy(
    log_density: Callable[[np.ndarray], Any],
    grad: Callable[[np.ndarray], Any] | None = None,
    dim: int | None = None,
    *,
    names: Sequence[str] | None = None,
    prior: Law | Distribution | None = None,
    value_and_grad: bool = False,
    vectorized: bool | None = None,
    executor: Any = None,
    chunk_size: int | None = None,
    observed_data: Mapping[str, Any] | None = None,
    constant_data: Mapping[str, Any] | None = None,
    support: Mapping[str, Any] | None = None,
    space: Space | None = None,
) -> Target:
    """Make a target of numpy functions.

    Parameters
    ----------
    log_density : callable
        Unnormalised log density of float64 points: (n, d) -> (n,), or (d,) -> a number; -inf where the density is zero.
    grad : callable, optional
        Its gradient, (n, d) -> (n, d) or (d,) -> (d,). It is called when torch asks for the gradient, and only at
        points where the density is positive.
    dim : int, optional
        d; may be left out where `names` or `prior` knows it.
    names : sequence of str, optional
        One name for each coordinate.
    prior : Law or torch Distribution, optional
        Prior of the posterior whose density this is.
    value_and_grad : bool
        `log_density` returns the pair (value, gradient), which is computed once for both.
    vectorized : bool, optional
        Whether the functions take batches. None: found out at the first call with different points, for four
        evaluations of each function; one that takes no batches is looped, and so is one whose value at a point
        depends on the other points, which the logger "jkosampler" notes.
    executor : concurrent.futures.Executor, optional
        Where the functions are evaluated: threads, processes (the functions must then be picklable), or dask's
        `client.get_executor()`. Keep it open as long as the sampler is used.
    chunk_size : int, optional
        Points that go to a worker, or to a batched function, at a time.
    observed_data, constant_data : mapping of str to array, optional
        Kept with the draws, for ArviZ.
    support, space
        Constraints on the named parameters, in the words of `Target`; the functions are called with the constrained
        ones only.

    Returns
    -------
    Target
        `differentiable` where a gradient is known.

    Raises
    ------
    ArgumentError
        A function can't be called, `grad` is given beside `value_and_grad=True`, or the dimension is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> target = from_numpy(lambda x: -0.5 * np.sum(x**2), grad=lambda x: -x, dim=3)
    >>> target(np.ones((2, 3)))
    array([-1.5, -1.5])
    """
    if value_and_grad and grad is not None:
        raise ArgumentError("grad: log_density returns the gradient already (value_and_grad=True); give one of them.")
    law = None if prior is None else as_law(prior, name="prior")
    opinions = {
        "dim": dim,
        "names": None if names is None else len(names),
        "prior": None if law is None else law.dim,
        "space": getattr(space, "n_columns", None),
    }
    d = one_dimension(opinions)
    chunks = ChunkMap(executor, chunk_size)
    units: list[tuple[int, ...]] = [(), (d,)] if value_and_grad else [()]
    value = PointFunction(log_density, units, name="log_density", vectorized=vectorized, chunks=chunks)
    slope = None
    if grad is not None:
        slope = PointFunction(grad, [(d,)], name="grad", vectorized=vectorized, chunks=chunks)
    return Target(
        NumpyDensity(value, slope, value_and_grad),
        d,
        names=names,
        prior=law,
        observed_data=observed_data,
        constant_data=constant_data,
        differentiable=value_and_grad or grad is not None,
        support=support,
        space=space,
    )


class NumpyDensity:
    """The functions behind torch's back: a tensor (n, d) to a tensor (n,)."""

    def __init__(self, value: PointFunction, slope: PointFunction | None, pair: bool) -> None:
        self.value, self.slope, self.pair = value, slope, pair

    def __call__(self, x: Tensor) -> Tensor:
        if self.pair or self.slope is not None:
            return _Bridge.apply(x, self)
        return torch.as_tensor(self.value(as_numpy(x))[0], dtype=x.dtype, device=x.device)


class _Bridge(torch.autograd.Function):
    """Values in `forward`; gradients in `backward`, where they did not come with the values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, density: NumpyDensity) -> Tensor:
        value, *slope = density.value(as_numpy(x))
        ctx.density = density
        ctx.positive = torch.as_tensor(~np.isneginf(value), device=x.device)
        ctx.save_for_backward(x, *(torch.as_tensor(part, dtype=x.dtype, device=x.device) for part in slope))
        return torch.as_tensor(value, dtype=x.dtype, device=x.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        x, *slope = ctx.saved_tensors
        # where the density is zero, or nothing depends on it, its gradient may not even exist
        used = ctx.positive & (upstream != 0)
        if slope:
            rows = slope[0][used]
        else:
            rows = torch.as_tensor(ctx.density.slope(as_numpy(x[used]))[0], dtype=x.dtype, device=x.device)
        result = torch.zeros_like(x)
        result[used] = upstream[used, None] * rows
        return result, None


def as_numpy(x: Tensor) -> np.ndarray:
    """A float64 copy, which the user's function may overwrite."""
    return np.array(x.detach().cpu().numpy(), dtype=np.float64)
