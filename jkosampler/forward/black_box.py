"""Forward models that are numpy functions: simulators, with or without derivatives, whose runs may fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jkosampler._mapping import ChunkMap
from jkosampler._point_functions import PointFunction
from jkosampler.errors import ArgumentError
from jkosampler.forward.base import ForwardModel
from jkosampler.targets.base import one_dimension
from jkosampler.targets.external import as_numpy

__all__ = ["BlackBox"]

Function = Callable[..., Any]


class BlackBox(ForwardModel):
    """A numpy function as forward model.

    Parameters
    ----------
    function : callable
        Predicted observations of float64 parameters: (n, d) -> (n, k), or (d,) -> (k,).
    dim : int
        d.
    output_dim : int
        k.
    names : sequence of str, optional
        Names of the parameters.
    jacobian : callable, optional
        Its derivative, (n, d) -> (n, k, d) or (d,) -> (k, d).
    vjp : callable, optional
        Instead of `jacobian`: the derivative times sensitivities, s' dG/dx, of x (n, d) and s (n, k) -> (n, d), or of
        (d,) and (k,) -> (d,); what an adjoint solver computes. It is not called at points whose sensitivities are zero.
    vectorized : bool, optional
        Whether the functions take batches. None: found out at the first call with different points, for four
        evaluations of each; else they are looped.
    executor : concurrent.futures.Executor, optional
        Where the functions are evaluated: threads, processes (the functions must then be picklable), or dask's
        `client.get_executor()`.
    chunk_size : int, optional
        Points that go to a worker, or to a batched function, at a time.
    on_failure : {"raise", "reject"}
        What a run that raises an exception means. "raise": a `TargetCallError` that names the point. "reject": the
        posterior is zero there, as it is where the function returns NaN; `n_failed` counts such runs. A derivative
        that fails is an error in any case.

    Attributes
    ----------
    differentiable : bool
        Whether there is a `jacobian` or a `vjp`.
    n_failed : int
        Runs rejected so far.

    Raises
    ------
    ArgumentError
        An argument can't be used; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> model = BlackBox(lambda x: np.array([x[0] * x[1], x[0] + x[1]]), dim=2, output_dim=2, names=["a", "b"])
    >>> posterior = model.posterior(y=[1.0, 2.5], noise_std=0.1, prior_std=2.0)
    >>> posterior.differentiable
    False
    """

    def __init__(
        self,
        function: Function,
        dim: int,
        output_dim: int,
        *,
        names: Sequence[str] | None = None,
        jacobian: Function | None = None,
        vjp: Function | None = None,
        vectorized: bool | None = None,
        executor: Any = None,
        chunk_size: int | None = None,
        on_failure: Literal["raise", "reject"] = "raise",
    ) -> None:
        if on_failure not in ("raise", "reject"):
            raise ArgumentError(f'on_failure must be "raise" or "reject", got {on_failure!r}.')
        if jacobian is not None and vjp is not None:
            raise ArgumentError("Give one of jacobian and vjp, not both.")
        if isinstance(output_dim, bool) or not isinstance(output_dim, int | np.integer) or output_dim < 1:
            raise ArgumentError(f"output_dim must be a positive whole number, got {output_dim!r}.")
        self.dim = one_dimension({"dim": dim, "names": None if names is None else len(names)})
        self.output_dim = int(output_dim)
        self.names = None if names is None else list(names)
        self.rejects_failed_runs = on_failure == "reject"
        self.differentiable = jacobian is not None or vjp is not None
        self.n_failed = 0
        self._chunks = executor if isinstance(executor, ChunkMap) else ChunkMap(executor, chunk_size)
        n, k = self.dim, self.output_dim
        self._run = self._points(function, (k,), "The forward model", vectorized, self.rejects_failed_runs)
        self._vjp = None if vjp is None else self._points(vjp, (n,), "vjp", vectorized)
        self._jacobian = None if jacobian is None else self._points(jacobian, (k, n), "jacobian", vectorized)

    def _points(
        self, function: Function, unit: tuple[int, ...], name: str, vectorized: bool | None, reject: bool = False
    ) -> PointFunction:
        return PointFunction(
            function, [unit], name=name, vectorized=vectorized, chunks=self._chunks, reject=reject, always_ours=True
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Predicted observations (n, k) at parameters x (n, d); rows of NaN where a run failed and is rejected.

        Raises
        ------
        TargetCallError, TargetShapeError
            A run raises, or returns another shape, and `on_failure` is "raise".
        ResourceError
            The executor's workers are lost.
        """
        return _Bridge.apply(x, self) if self.differentiable else self._predicted(x)

    def _predicted(self, x: Tensor) -> Tensor:
        (predicted,) = self._run(as_numpy(x))
        if self.rejects_failed_runs:
            failed = np.isnan(predicted).any(axis=1)
            predicted[failed] = np.nan
            self.n_failed += int(failed.sum())
        return torch.as_tensor(predicted, dtype=x.dtype, device=x.device)

    def _pulled_back(self, x: np.ndarray, sensitivities: np.ndarray) -> np.ndarray:
        """Sensitivities (n, k) times the derivative, (n, d)."""
        if self._vjp is not None:
            return self._vjp(x, sensitivities)[0]
        assert self._jacobian is not None
        return np.einsum("nk,nkd->nd", sensitivities, self._jacobian(x)[0])


class _Bridge(torch.autograd.Function):
    """Runs in `forward`, derivatives in `backward`, each once a point."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, model: BlackBox) -> Tensor:
        ctx.model = model
        ctx.save_for_backward(x)
        return model._predicted(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        # a failed run has no derivative, and gets no sensitivity from the posterior
        used = (upstream != 0).any(dim=1)
        rows = ctx.model._pulled_back(as_numpy(x[used]), as_numpy(upstream[used]))
        result = torch.zeros_like(x)
        result[used] = torch.as_tensor(rows, dtype=x.dtype, device=x.device)
        return result, None
