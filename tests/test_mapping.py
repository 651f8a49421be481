"""Evaluations mapped over executors: in order, complete, also when workers are lost; a clear error where they can't."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from copy import deepcopy
from pickle import dumps, loads

import numpy as np
import pytest
import worker_functions

from jkosampler import JKOSampler
from jkosampler._mapping import ChunkMap
from jkosampler.errors import ArgumentError, ResourceError, TargetCallError
from jkosampler.forward import BlackBox
from jkosampler.targets import from_numpy

X = np.random.default_rng(0).normal(size=(23, 2))


def processes(n: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.parametrize(("n", "size"), [(10, 3), (10, 10), (1, 4), (0, 4), (7, None), (0, None)])
def test_chunks_are_all_points_once_and_in_order(n: int, size: int | None) -> None:
    for executor in (None, ThreadPoolExecutor(2)):
        parts = ChunkMap(executor, size).chunks(n)
        assert [i for part in parts for i in range(n)[part]] == list(range(n))
        assert all(0 < part.stop - part.start <= (size or n) for part in parts)


def test_threads_evaluate_all_points_in_order() -> None:
    seen: set[int] = set()

    def log_density(x: np.ndarray) -> float:
        seen.add(threading.get_ident())
        time.sleep(0.001 * abs(x[0]))
        return worker_functions.quartic(x)

    with ThreadPoolExecutor(3) as executor:
        target = from_numpy(log_density, dim=2, executor=executor)
        np.testing.assert_allclose(target(X), -np.sum(X**4, axis=1), rtol=1e-14)
    assert threading.get_ident() not in seen
    assert len(seen) > 1


def test_batched_functions_get_chunks() -> None:
    sizes: list[int] = []

    def log_density(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return -np.sum(x**4, axis=1)

    with ThreadPoolExecutor(2) as executor:
        for where in (None, executor):
            sizes.clear()
            target = from_numpy(log_density, dim=2, executor=where, chunk_size=5, vectorized=True)
            np.testing.assert_allclose(target(X), -np.sum(X**4, axis=1), rtol=1e-14)
            assert sorted(sizes) == [4, 4, 5, 5, 5]


def test_processes_evaluate_values_gradients_and_errors() -> None:
    with processes() as executor:
        target = from_numpy(worker_functions.quartic, worker_functions.quartic_gradient, dim=2, executor=executor)
        np.testing.assert_allclose(target(X), -np.sum(X**4, axis=1), rtol=1e-14)
        bad = from_numpy(worker_functions.failing, dim=2, executor=executor)
        with pytest.raises(TargetCallError, match=r"log_density failed at x\[4\] = .*no convergence") as caught:
            bad(np.array([[0.0, 0.0], [0.5, 0.0], [0.7, 0.0], [1.0, 0.0], [1.5, 0.0]]))
        assert caught.value.indices.tolist() == [4]
        assert "worker_functions.py" in caught.value.__cause__.__notes__[0]
        with pytest.raises(TargetCallError, match="StubbornError: 1 and 2"):
            from_numpy(worker_functions.stubborn, dim=2, executor=executor)(X)
        with pytest.raises(ArgumentError, match=r"can't be sent to another process.*ThreadPoolExecutor"):
            from_numpy(lambda x: -np.sum(x**4), dim=2, executor=executor)(X)


def test_a_pool_that_lost_a_process_is_a_clear_error() -> None:
    with processes() as executor:
        target = from_numpy(worker_functions.deadly, dim=2, vectorized=False, executor=executor)
        with pytest.raises(ResourceError, match=r"died.*Make a new executor"):
            target(X)


def test_a_closed_executor_is_a_clear_error() -> None:
    with ThreadPoolExecutor(1) as executor:
        target = from_numpy(worker_functions.quartic, dim=2, executor=executor)
    with pytest.raises(ResourceError, match="as long as anything of the sampler is used"):
        target(X)


class Losing(Executor):
    """Loses every third task, or each, so many times."""

    def __init__(self, error: type[BaseException], times: int, every: int = 3) -> None:
        self.error, self.times, self.every, self.count = error, times, every, 0

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        future: Future = Future()
        self.count += 1
        if self.times > 0 and self.count % self.every == 0:
            self.times -= 1
            future.set_exception(self.error("gone"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


class KilledWorker(Exception):  # noqa: N818 - dask's name
    """Named like dask's."""


@pytest.mark.parametrize("error", [BrokenExecutor, CancelledError, KilledWorker])
def test_lost_chunks_are_submitted_again(error: type[BaseException]) -> None:
    executor = Losing(error, times=7)
    target = from_numpy(worker_functions.quartic, dim=2, vectorized=False, executor=executor, chunk_size=1)
    np.testing.assert_allclose(target(X), -np.sum(X**4, axis=1), rtol=1e-14)
    assert executor.count == len(X) + 7
    hopeless = Losing(error, times=1000, every=1)
    with pytest.raises(ResourceError, match=r"23 chunks of points were lost 4 times with their workers.*chunk_size"):
        from_numpy(worker_functions.quartic, dim=2, vectorized=False, executor=hopeless, chunk_size=1)(X)


def test_an_interrupt_leaves_nothing_behind() -> None:
    calls: list[float] = []

    def interrupted(x: np.ndarray) -> float:
        calls.append(float(x[0]))
        if len(calls) == 1:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return 0.0

    with ThreadPoolExecutor(1) as executor, pytest.raises(KeyboardInterrupt):
        from_numpy(interrupted, dim=1, vectorized=False, executor=executor, chunk_size=1)(np.zeros((50, 1)))
    assert len(calls) < 25


@pytest.mark.parametrize("executor", [3, "threads", ThreadPoolExecutor])
def test_bad_executors_are_named(executor: object) -> None:
    with pytest.raises(ArgumentError, match="executor must be"):
        from_numpy(worker_functions.quartic, dim=2, executor=executor)


@pytest.mark.parametrize("size", [0, 2.5, True])
def test_bad_chunk_sizes_are_named(size: object) -> None:
    with pytest.raises(ArgumentError, match="chunk_size"):
        BlackBox(worker_functions.elliptic, 2, 2, chunk_size=size)


def test_copies_share_the_executor_and_pickles_go_without() -> None:
    from sklearn.base import clone

    with ThreadPoolExecutor(1) as executor:
        target = from_numpy(worker_functions.quartic, worker_functions.quartic_gradient, dim=2, executor=executor)
        twin = clone(JKOSampler(target)).log_target
        assert twin is not target
        np.testing.assert_array_equal(twin(X), target(X))
        model = BlackBox(worker_functions.elliptic, 2, 2, executor=executor)
        posterior = model.posterior(y=[1.0, 2.0], noise_std=0.1, prior_std=1.0)
        np.testing.assert_array_equal(deepcopy(posterior)(X), posterior(X))
        pickled = dumps((target, posterior))
    for copy, original in zip(loads(pickled), (-np.sum(X**4, axis=1), None), strict=True):
        value = copy(X)  # here, since the executor is closed
        if original is not None:
            np.testing.assert_allclose(value, original, rtol=1e-14)
    with pytest.raises(ResourceError):
        twin(X)  # the copy had the executor itself


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # dask's own
def test_dask_goes_on_when_a_worker_is_killed() -> None:
    """400 points of 50 ms on two workers: one is killed after a second, and all values are there."""
    distributed = pytest.importorskip("distributed")
    x = np.random.default_rng(1).normal(size=(400, 2))
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None, memory_limit=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        with pytest.raises(ArgumentError, match="get_executor"):
            BlackBox(worker_functions.slow_square, 2, 2, executor=client)
        victim = next(iter(client.run(os.getpid).values()))
        model = BlackBox(worker_functions.slow_square, 2, 2, executor=client.get_executor(), vectorized=False)
        posterior = model.posterior(y=[1.0, 2.0], noise_std=1.0, prior_std=1.0)
        killer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
        killer.start()
        value = posterior(x)
        assert not killer.is_alive()
        assert victim not in client.run(os.getpid).values()
    expected = BlackBox(np.square, 2, 2, vectorized=True).posterior(y=[1.0, 2.0], noise_std=1.0, prior_std=1.0)
    np.testing.assert_allclose(value, expected(x), rtol=1e-14)
