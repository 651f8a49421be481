"""What a fit finds around it and leaves as it was, other threads' fits too: torch's modes, filters of warnings.

Both the number of torch's threads and the filters of warnings belong to the process, or half so. Fits in two threads
that each put back what they have found would leave behind what the other had set.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["global_state", "ignoring", "torch_scope"]

global_state = threading.RLock()  # held by whoever changes a state of the whole process and puts it back

_own = threading.local()  # `depth`: scopes that this thread is inside
_entered: list[int] = []  # numbers that threads inside a scope have set
_outside = 1  # the number before the first of them


@contextmanager
def torch_scope(threads: int | None = None) -> Iterator[None]:
    """Run torch with gradients and outside inference mode, on so many threads, and put back what was set.

    Weights far below the largest underflow, which is no error here, even where numpy was told to raise one.
    """
    before, number = _enter(threads)
    try:
        with torch.inference_mode(False), torch.enable_grad(), np.errstate(under="ignore"):
            yield
    finally:
        with global_state:
            torch.set_num_threads(before)
            _entered.remove(number)
            _own.depth -= 1


def _enter(threads: int | None) -> tuple[int, int]:
    """The number of threads to put back, and the one that is set instead.

    torch keeps it for each thread, but gives a new one what was last set anywhere, by another thread's scope perhaps.
    """
    global _outside
    with global_state:
        before = torch.get_num_threads()
        depth = getattr(_own, "depth", 0)
        if not _entered:
            _outside = before
        elif depth == 0 and before in _entered:
            before = _outside
        number = before if threads is None else threads
        torch.set_num_threads(number)
        _entered.append(number)
        _own.depth = depth + 1
        return before, number


@contextmanager
def ignoring(category: type[Warning]) -> Iterator[None]:
    """Ignore warnings of this kind. The filters are the process's, so one thread at a time does that."""
    with global_state, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield
