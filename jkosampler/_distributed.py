"""Fits by all processes of `torch.distributed`: the first one leads, all of them evaluate the target.

Rank 0 runs the fit. The others follow: they evaluate the slices of points that it sends them, and in the end receive
what it has found, or the error that it has met. So there is one stream of random numbers, one clock and one place where
decisions are made; `docs/design.md` says why. Without a process group, or with one process, nothing here does anything.

Every message to the followers is a header, broadcast, and what it announces.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from jkosampler._portable import as_bytes, dumped, loaded, lost_processes, noted, portable
from jkosampler._timed_rows import attempted_rows, timed_rows
from jkosampler.errors import ArgumentError

if TYPE_CHECKING:
    from jkosampler.targets import TargetEvaluator

__all__ = ["Team", "team"]

T = TypeVar("T")

_EVALUATE, _RESULT, _ERROR = range(3)
_KINDS = ("density", "gradient", "outputs")
_HEADER = 7
_PINGS = 5
# A round is worth it that saves several times what it costs by itself: both are estimates, on a machine that may be
# busy with other work.
_WORTHWHILE = 5.0
_SECONDS_A_BYTE = 2e-9
_RECOVERY = 0.99  # after rounds that did not pay, for each batch
_FORGETTING = (
    1.05  # a batch may always be slower than the fastest one, by a disturbance; the point's cost may also rise
)

# weak: a group that outlives its `destroy_process_group` ends its threads too late, and the process aborts
_teams: weakref.WeakKeyDictionary[Any, Team] = weakref.WeakKeyDictionary()


def team() -> Team | None:
    """The processes of the default group of `torch.distributed`; None where it is not there, or has one process."""
    distributed = sys.modules.get("torch.distributed")  # whoever has set it up has imported it
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    if distributed.get_world_size() == 1:
        return None
    group = distributed.group.WORLD
    if group not in _teams:
        _teams[group] = Team(distributed)
    return _teams[group]


class Team:
    """The processes of a group, as one of them sees them; made, and asked for anything, by all of them together."""

    def __init__(self, distributed: Any) -> None:
        self._distributed = distributed
        backend = distributed.get_backend()
        # numbers travel from CPU to CPU, whatever the default group is for
        self._group = None if "gloo" in backend else distributed.new_group(backend="gloo")
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.n_rounds = 0
        self._own_failure: BaseException | None = None
        with lost_processes():
            self.round_trip = self._ping()
        self._cost = self.round_trip  # as it turns out to be

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def from_the_first(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor of this shape and kind."""
        tensor = tensor.clone()
        with lost_processes():
            self._broadcast(tensor)
        return tensor

    def agreed(self, check: Callable[[], tuple[T, Any]]) -> T:
        """What `check` returns first, if it raises on no rank and its second value is the same on all.

        Raises
        ------
        Exception
            What it has raised on this rank, or else on the first rank where it has.
        ArgumentError
            The second values differ.
        """
        own: BaseException | None = None
        found: tuple[Any, Any] = (None, None)
        try:
            found = check()
        except BaseException as error:
            own = error
        answers: list[Any] = [None] * self.size
        with lost_processes():
            mine = (None if own is None else portable(own), found[1])
            self._distributed.all_gather_object(answers, mine, group=self._group)
        if own is not None:
            raise own
        for rank, (failure, _) in enumerate(answers):
            if failure is not None:
                raise noted(loaded(as_bytes(failure)), rank)
        for rank, (_, what) in enumerate(answers):
            if what != answers[0][1]:
                raise ArgumentError(
                    f"torch.distributed: rank {rank} asks for {what}, rank 0 for {answers[0][1]}. All processes must "
                    "make the same calls of the sampler, with the same parameters."
                )
        return found[0]

    def led(
        self,
        what: str,
        evaluators: Sequence[TargetEvaluator],
        compute: Callable[[], T],
        *,
        known: Sequence[Any] = (),
        generators: Sequence[torch.Generator] = (),
    ) -> T:
        """What `compute` returns on rank 0, on all ranks; meanwhile all ranks evaluate.

        Parameters
        ----------
        what : str
            The same on all ranks, or it is an error.
        evaluators : sequence of TargetEvaluator
            Their batches are spread; their counters are those of rank 0 afterwards.
        compute : callable
            Called on rank 0 only; what it returns or raises is pickled for the others.
        known : sequence of objects
            What every rank has of its own, in the same order: references to these are sent, not they.
        generators : sequence of torch.Generator
            Random streams that `compute` takes from; they are where rank 0's are afterwards.
        """
        self.agreed(lambda: (None, what))
        if not self.leads:
            result, counters, states = self._follow(evaluators, known)
            for evaluator, (n_evaluations, n_calls) in zip(evaluators, counters, strict=True):
                evaluator.n_evaluations, evaluator.n_calls = n_evaluations, n_calls
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            return result
        for index, evaluator in enumerate(evaluators):
            evaluator.spread = partial(self._rows, index, evaluator)
        try:
            result = compute()
            counters = [(evaluator.n_evaluations, evaluator.n_calls) for evaluator in evaluators]
            states = [generator.get_state() for generator in generators]
            blob = dumped((result, counters, states), known)
        except BaseException as error:
            self._tell(_ERROR, portable(error))
            raise
        finally:
            for evaluator in evaluators:
                evaluator.spread = None
        self._tell(_RESULT, blob)
        return result

    def _rows(self, index: int, evaluator: TargetEvaluator, kind: str, x: Tensor) -> Tensor:
        """Rows (n, k) of an evaluator at x (n, d), by all ranks where that is worth it."""
        columns = {"density": 1, "gradient": 1 + x.shape[1]}.get(kind) or evaluator.n_outputs
        if columns == 0 or not self._is_worth_it(evaluator, kind, x, columns):
            return timed_rows(evaluator, kind, x)
        began = time.perf_counter()
        self.n_rounds += 1
        tag = self.n_rounds  # what an interrupt has left of an earlier round is not taken for an answer
        n, d = x.shape
        slices = [slice(n * rank // self.size, n * (rank + 1) // self.size) for rank in range(self.size)]
        others = [rank for rank in range(1, self.size) if slices[rank].start < slices[rank].stop]
        points = x.detach().cpu().double()
        with lost_processes():
            self._broadcast(torch.tensor([_EVALUATE, index, _KINDS.index(kind), n, d, columns, tag]))
            sent = [self._send(points[slices[rank]], rank, tag) for rank in others]
            replies = {rank: torch.empty(1 + (slices[rank].stop - slices[rank].start) * columns) for rank in others}
            replies = {rank: reply.double() for rank, reply in replies.items()}
            awaited = {rank: self._receive(reply, rank, tag) for rank, reply in replies.items()}
        own, failure = attempted_rows(evaluator, kind, x[slices[0]])
        failures = [] if failure is None else [(0, failure)]
        with lost_processes():
            for rank in others:
                awaited[rank].wait()
                size = int(replies[rank][0])
                if size:
                    blob = torch.empty(size, dtype=torch.uint8)
                    self._receive(blob, rank, tag).wait()
                    failures.append((rank, loaded(blob)))
            for sending in sent:
                sending.wait()
        # an interrupt before all else, else the first point's: as one process would meet it
        for rank, error in sorted(failures, key=lambda pair: isinstance(pair[1], Exception)):
            where = f"{slices[rank].start} to {slices[rank].stop - 1} of {n}"
            raise error if rank == 0 else noted(error, rank, f", which had points {where}")
        assert own is not None
        self._learn(time.perf_counter() - began, evaluator.seconds_a_point[kind] * n)
        answers = [replies[rank][1:].view(-1, columns).to(own) for rank in others]
        return torch.cat([own, *answers])

    def _is_worth_it(self, evaluator: TargetEvaluator, kind: str, x: Tensor, columns: int) -> bool:
        known = evaluator.seconds_a_point
        # before the first gradient: a value is known from the probes, and hardly costs more
        seconds = known.get(kind, known.get("density", 0.0)) * len(x) * (1.0 - 1.0 / self.size)
        cost = self._cost + _SECONDS_A_BYTE * 8.0 * len(x) * (x.shape[1] + columns)
        self._cost = max(self.round_trip, _RECOVERY * self._cost)
        return len(x) > 1 and seconds > _WORTHWHILE * cost

    def _learn(self, seconds: float, alone: float) -> None:
        """Rounds that take longer than rank 0 alone, on busy cores say, become rarer until some of them pay."""
        self._cost = 2.0 * self._cost if seconds > alone else 0.5 * self._cost

    def _follow(self, evaluators: Sequence[TargetEvaluator], known: Sequence[Any]) -> Any:
        """Evaluate what rank 0 sends, until it sends a result or an error."""
        self._own_failure = None
        while True:
            with lost_processes():
                header = torch.empty(_HEADER, dtype=torch.int64)
                self._broadcast(header)
            code, size, *_ = header.tolist()
            if code == _EVALUATE:
                self._serve(evaluators, *header.tolist()[1:])
                continue
            with lost_processes():
                blob = torch.empty(size, dtype=torch.uint8)
                self._broadcast(blob)
            if code == _RESULT:
                return loaded(blob, known)
            self._raise(loaded(blob))

    def _raise(self, error: BaseException) -> NoReturn:
        raise noted(error, 0) from self._own_failure

    def _serve(
        self, evaluators: Sequence[TargetEvaluator], index: int, kind: int, n: int, d: int, columns: int, tag: int
    ) -> None:
        first, last = n * self.rank // self.size, n * (self.rank + 1) // self.size
        if first == last:
            return
        with lost_processes():
            points = torch.empty(last - first, d, dtype=torch.float64)
            self._receive(points, 0, tag).wait()
        evaluator = evaluators[index]
        x = points.to(evaluator.device, evaluator.dtype)
        rows, failure = attempted_rows(evaluator, _KINDS[kind], x)
        if rows is not None and rows.shape[1] != columns:
            failure = ArgumentError(f"the target has {rows.shape[1]} outputs here, {columns} on rank 0.")
        reply = torch.zeros(1 + (last - first) * columns, dtype=torch.float64)
        if failure is None:
            assert rows is not None
            reply[1:] = rows.detach().cpu().double().flatten()
        else:
            self._own_failure = failure
            blob = as_bytes(portable(failure))
            reply[0] = len(blob)
        with lost_processes():
            self._send(reply, 0, tag).wait()
            if failure is not None:
                self._send(blob, 0, tag).wait()

    def _tell(self, code: int, blob: bytes) -> None:
        with lost_processes():
            self._broadcast(torch.tensor([code, len(blob), *[0] * (_HEADER - 2)]))
            self._broadcast(as_bytes(blob))

    def _ping(self) -> float:
        """Seconds that a round takes of which nothing is evaluated; on rank 0."""
        seconds = []
        for _ in range(_PINGS):
            began = time.perf_counter()
            self._broadcast(torch.zeros(_HEADER, dtype=torch.int64))
            word = torch.zeros(1, dtype=torch.float64)
            if self.leads:
                for awaited in [self._receive(word, rank, 0) for rank in range(1, self.size)]:
                    awaited.wait()
            else:
                self._send(word, 0, 0).wait()
            seconds.append(time.perf_counter() - began)
        return sorted(seconds)[_PINGS // 2]

    def _broadcast(self, tensor: Tensor) -> None:
        self._distributed.broadcast(tensor, 0, group=self._group)

    def _send(self, tensor: Tensor, rank: int, tag: int) -> Any:
        return self._distributed.isend(tensor.contiguous(), rank, group=self._group, tag=tag)

    def _receive(self, tensor: Tensor, rank: int, tag: int) -> Any:
        return self._distributed.irecv(tensor, rank, group=self._group, tag=tag)
