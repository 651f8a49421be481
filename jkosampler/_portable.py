"""Results and errors on their way to other processes: pickles that leave out what is there already."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jkosampler.errors import ResourceError

__all__ = ["as_bytes", "dumped", "loaded", "lost_processes", "noted", "portable"]


def noted(error: BaseException, rank: int, more: str = "") -> BaseException:
    """The error with a note of where it comes from."""
    error.add_note(f"Raised on rank {rank}{more}.")
    return error


def portable(error: BaseException) -> bytes:
    """A pickle of the error, or of its text where another process could not read that."""
    try:
        blob = pickle.dumps(error)
        pickle.loads(blob)
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return blob


def as_bytes(blob: bytes) -> Tensor:
    """A tensor of bytes, which gloo can send."""
    return torch.frombuffer(bytearray(blob), dtype=torch.uint8)


def dumped(result: Any, known: Sequence[Any] = ()) -> bytes:
    """A pickle with references in the place of what the reader knows."""
    file = io.BytesIO()
    _Pickler(file, known).dump(result)
    return file.getvalue()


def loaded(blob: Tensor, known: Sequence[Any] = ()) -> Any:
    """What `dumped` was given, from a tensor of bytes; `known` are the reader's own."""
    return _Unpickler(io.BytesIO(blob.numpy().tobytes()), known).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, known: Sequence[Any]) -> None:
        super().__init__(file)
        self._names = {id(thing): name for name, thing in enumerate(known)}

    def persistent_id(self, obj: Any) -> int | None:
        return self._names.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: Sequence[Any]) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, pid: Any) -> Any:
        return self._known[pid]


@contextmanager
def lost_processes() -> Iterator[None]:
    """What gloo raises of processes that have ended, in words."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        raise ResourceError(
            f"torch.distributed: another process has ended, or takes part no more ({reason}). "
            "All processes must make the same calls of the sampler, diagnose() too; how long they wait for each other "
            "is init_process_group(timeout=)."
        ) from error
