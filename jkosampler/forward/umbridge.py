"""A running UM-Bridge server as forward model (protocol 1.0, https://um-bridge-benchmarks.readthedocs.io)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jkosampler._arguments import positive_number
from jkosampler._mapping import ChunkMap
from jkosampler.errors import ArgumentError
from jkosampler.forward._umbridge_client import RunError, Servers
from jkosampler.forward.black_box import BlackBox

__all__ = ["UMBridge"]


class UMBridge(BlackBox):
    """A model that a server evaluates, one point a request.

    The vectors that the model takes become one point, one after the other, and so do the vectors that it returns.

    Parameters
    ----------
    url : str or sequence of str
        Where the server listens, such as "http://127.0.0.1:4242"; several servers of the same model share the
        load, each with one request at a time.
    name : str
        Of the model on the server.
    config : mapping, optional
        Sent with every request.
    names : sequence of str, optional
        Names of the parameters.
    timeout : float
        Seconds that an evaluation may take. One that takes longer is a failed run, although the server may go on
        with it.
    retries : int
        Further attempts, after pauses of .1, .2, .4 .. 5 s, where no server answers at all.
    on_failure : {"raise", "reject"}
        What it means that the server answers with an error, with something else than numbers, or too late: see
        `BlackBox`. That no server answers is a `ResourceError` in any case.
    executor : concurrent.futures.Executor, optional
        Whose workers send requests at the same time: for one URL behind which there are many servers, or one that
        evaluates in parallel. None: a thread a URL.

    Attributes
    ----------
    dim, output_dim : int
        d and k, as the server says.
    differentiable : bool
        Whether the server offers gradients.
    n_failed : int
        Runs rejected so far.

    Raises
    ------
    ArgumentError
        An argument can't be used, no such model is there, or the servers' models differ.
    ResourceError
        A server does not answer.

    Examples
    --------
    >>> model = UMBridge("http://127.0.0.1:4242", "forward")  # doctest: +SKIP
    >>> posterior = model.posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str | Sequence[str],
        name: str = "forward",
        *,
        config: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        on_failure: Literal["raise", "reject"] = "raise",
        executor: Any = None,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ArgumentError("url must be one URL or a list of them, got an empty list.")
        if isinstance(retries, bool) or not isinstance(retries, int | np.integer) or retries < 0:
            raise ArgumentError(f"retries must be a whole number, 0 or more, got {retries!r}.")
        servers = Servers(urls, positive_number(timeout, "timeout"), int(retries))
        descriptions = [_described(servers, one, name, dict(config or {})) for one in servers.urls]
        if any(description != descriptions[0] for description in descriptions):
            raise ArgumentError(f"url: the servers' models {name!r} differ from each other: {descriptions}.")
        inputs, outputs, gradient = descriptions[0]
        remote = _Remote(servers, name, dict(config or {}), inputs, outputs)
        super().__init__(
            remote.evaluate,
            sum(inputs),
            sum(outputs),
            names=names,
            vjp=remote.pulled_back if gradient else None,
            vectorized=False,
            executor=ChunkMap(chunk_size=1, n_threads=len(urls)) if executor is None and len(urls) > 1 else executor,
            on_failure=on_failure,
        )


class _Remote:
    """The model as functions of one point; picklable, for workers in other processes."""

    def __init__(
        self, servers: Servers, name: str, config: dict[str, Any], inputs: list[int], outputs: list[int]
    ) -> None:
        self.servers, self.name, self.config = servers, name, config
        self.inputs, self.outputs = inputs, outputs

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """Outputs (k,) at x (d,)."""
        body = {"name": self.name, "input": _split(x, self.inputs), "config": self.config}
        output = self.servers.ask("/Evaluate", body).get("output")
        if not isinstance(output, list) or len(output) != len(self.outputs):
            raise RunError(f"the server should answer {len(self.outputs)} vectors, not {str(output)[:100]}")
        return np.concatenate([_numbers(part, size) for part, size in zip(output, self.outputs, strict=True)])

    def pulled_back(self, x: np.ndarray, sensitivities: np.ndarray) -> np.ndarray:
        """Sensitivities (k,) times the derivative at x (d,): (d,); a request for each pair of vectors."""
        result = [np.zeros(size) for size in self.inputs]
        for i, sens in enumerate(_split(sensitivities, self.outputs)):
            if not any(sens):
                continue
            for j, size in enumerate(self.inputs):
                body = {"name": self.name, "outWrt": i, "inWrt": j, "input": _split(x, self.inputs), "sens": sens}
                answer = self.servers.ask("/Gradient", {**body, "config": self.config})
                result[j] += _numbers(answer.get("output"), size)
        return np.concatenate(result)


def _described(servers: Servers, url: str, name: str, config: dict[str, Any]) -> tuple[list[int], list[int], bool]:
    """Sizes of a model's input and output vectors, and whether the server offers gradients."""
    try:
        models = servers.ask("/Info", url=url).get("models", [])
        if name not in models:
            raise ArgumentError(f"name: there is no model {name!r} at {url}, but {', '.join(map(repr, models))}.")
        support = servers.ask("/ModelInfo", {"name": name}, url).get("support", {})
        body = {"name": name, "config": config}
        inputs: Any = servers.ask("/InputSizes", body, url).get("inputSizes")
        outputs: Any = servers.ask("/OutputSizes", body, url).get("outputSizes")
    except RunError as error:
        raise ArgumentError(f"url: {url} does not answer like an UM-Bridge server of protocol 1.0: {error}") from error
    if not support.get("Evaluate", False):
        raise ArgumentError(f"name: the model {name!r} at {url} can't be evaluated, says the server.")
    if not _are_sizes(inputs) or not _are_sizes(outputs):
        raise ArgumentError(f"url: the sizes of the model {name!r} at {url} can't be used: {inputs!r}, {outputs!r}.")
    return list(inputs), list(outputs), bool(support.get("Gradient", False))


def _are_sizes(sizes: Any) -> bool:
    return isinstance(sizes, list) and all(isinstance(size, int) for size in sizes) and sum(sizes) > 0


def _split(x: np.ndarray, sizes: Sequence[int]) -> list[list[float]]:
    return [part.tolist() for part in np.split(x, np.cumsum(sizes)[:-1])]


def _numbers(part: Any, size: int) -> np.ndarray:
    """A vector of the answer; null, which is how some servers write NaN, is NaN."""
    try:
        vector = np.array(part, dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.empty(0)
    if not isinstance(part, list) or vector.shape != (size,):
        raise RunError(f"the server should answer a vector of {size} numbers, not {str(part)[:100]}")
    return vector
