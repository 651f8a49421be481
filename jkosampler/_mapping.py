"""Evaluations mapped over the workers of an executor: in chunks, in order, lost chunks once more.

Numpy only: a worker process that evaluates a numpy function need not import torch.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np

from jkosampler.errors import ArgumentError, JKOSamplerError, ResourceError

__all__ = ["ChunkMap"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
# Enough chunks that a worker which is done early finds another one; few enough that sending them costs little.
_CHUNKS_A_WORKER = 4
_WORKERS_IF_UNKNOWN = 8
# What dask raises of lost workers and cancelled tasks; by name, so that nobody has to import dask.
_LOST_BY_NAME = {"KilledWorker", "FutureCancelledError", "CommClosedError"}


class ChunkMap:
    """Applies a function to chunks of points, here or on an executor's workers.

    Copies share the executor. A pickle leaves it out, and evaluates in the process that loads it.

    Parameters
    ----------
    executor : concurrent.futures.Executor, optional
        Anything with its `submit`; `dask.distributed.Client.get_executor()` is one. None: in this thread.
    chunk_size : int, optional
        Points in a chunk. None: four chunks a worker; without an executor, batches are not cut.
    n_threads : int
        Instead of an executor: threads that live as long as a call of `map`.

    Raises
    ------
    ArgumentError
        `executor` has no `submit`, or `chunk_size` is not a positive whole number.
    """

    def __init__(self, executor: Any = None, chunk_size: int | None = None, n_threads: int = 0) -> None:
        if executor is not None and hasattr(executor, "get_executor"):
            raise ArgumentError("executor is a dask client: give executor=client.get_executor().")
        if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
            raise ArgumentError(
                f"executor must be a concurrent.futures.Executor, such as ThreadPoolExecutor(8), got {executor!r}."
            )
        if chunk_size is not None and (
            isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer) or chunk_size < 1
        ):
            raise ArgumentError(f"chunk_size must be a positive whole number of points, got {chunk_size!r}.")
        self.executor: Executor | None = executor
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.n_threads = n_threads

    def __deepcopy__(self, memo: dict[int, Any]) -> ChunkMap:
        return ChunkMap(self.executor, self.chunk_size, self.n_threads)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "executor": None}

    @property
    def parallel(self) -> bool:
        """Whether chunks leave this thread."""
        return self.executor is not None or self.n_threads > 1

    def chunks(self, n: int) -> list[slice]:
        """Consecutive slices of n points, as equal as can be; none of them empty."""
        if self.chunk_size is not None:
            count = math.ceil(n / self.chunk_size)
        elif self.parallel:
            workers = self.n_threads or getattr(self.executor, "_max_workers", None) or _WORKERS_IF_UNKNOWN
            count = min(n, _CHUNKS_A_WORKER * workers)
        else:
            count = min(n, 1)
        edges = [n * i // count for i in range(count + 1)] if count else [0]
        return [slice(a, b) for a, b in pairwise(edges)]

    def map(self, function: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Results of `function(*piece)`, in the order of the pieces.

        Raises
        ------
        ResourceError
            Workers were lost again and again, or the executor takes no more work.
        ArgumentError
            The function can't be sent to another process.
        """
        if not self.parallel:
            return [function(*piece) for piece in pieces]
        own = ThreadPoolExecutor(self.n_threads) if self.executor is None else nullcontext(self.executor)
        with own as executor:
            return _mapped(executor, function, pieces)


def _mapped(executor: Any, function: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
    results: list[Any] = [None] * len(pieces)
    missing = list(range(len(pieces)))
    for _ in range(_ATTEMPTS):
        lost, reason = _round(executor, function, pieces, missing, results)
        if not lost:
            return results
        logger.warning("%d of %d chunks were lost with their workers (%r).", len(lost), len(pieces), reason)
        missing = lost
    raise ResourceError(
        f"executor: {len(missing)} chunks of points were lost {_ATTEMPTS} times with their workers ({reason!r}). "
        "Evaluations that need more memory than a worker has, or that crash it, end so: see the workers' logs, "
        "give each more memory, or a smaller chunk_size."
    ) from reason


def _round(
    executor: Any, function: Callable[..., Any], pieces: Sequence[Any], missing: Sequence[int], results: list[Any]
) -> tuple[list[int], BaseException | None]:
    """One submission of the missing pieces into `results`: those whose worker was lost, and the last reason."""
    futures: dict[int, Future[Any]] = {}
    lost: list[int] = []
    reason: BaseException | None = None
    try:
        for i in missing:
            futures[i] = _submitted(executor, function, pieces[i])
        for i, future in futures.items():
            try:
                results[i] = future.result()
            except (Exception, CancelledError) as error:
                if not _is_loss(error):
                    _explain(error)
                    raise
                lost.append(i)
                reason = error
    finally:
        for future in futures.values():  # after an error or an interrupt nobody waits for the rest
            future.cancel()
    return lost, reason


def _submitted(executor: Any, function: Callable[..., Any], piece: tuple[Any, ...]) -> Future[Any]:
    try:
        return executor.submit(function, *piece)
    except BrokenExecutor as error:
        raise ResourceError(
            f"executor: a worker of {type(executor).__name__} died, and the executor takes no more work ({error}). "
            "Workers die of too little memory, of a crash in compiled code, or where they can't import the function "
            '(it must be in a module, not under `if __name__ == "__main__"`). Make a new executor and target.'
        ) from error
    except Exception as error:
        _explain(error)
        if isinstance(error, RuntimeError):
            raise ResourceError(
                f"executor: {type(executor).__name__} takes no more work ({error}). Keep it open, inside its `with`, "
                "as long as anything of the sampler is used: diagnose evaluates the target too."
            ) from error
        raise


def _is_loss(error: BaseException) -> bool:
    return isinstance(error, BrokenExecutor | CancelledError) or any(
        kind.__name__ in _LOST_BY_NAME for kind in type(error).__mro__
    )


def _explain(error: BaseException) -> None:
    """Raise an `ArgumentError` in place of what pickling raises; return otherwise."""
    text = f"{error} {error.__cause__ or ''}".lower()
    known = isinstance(error, AttributeError | TypeError) and ("pickle" in text or "serialize" in text)
    if not isinstance(error, JKOSamplerError) and (known or isinstance(error, pickle.PicklingError)):
        raise ArgumentError(
            f"executor: the function, or what it returns, can't be sent to another process ({error}). Define the "
            "function at the top of a module, without lambda and without open files, locks or connections; or give "
            "a ThreadPoolExecutor, whose threads share this process."
        ) from error
