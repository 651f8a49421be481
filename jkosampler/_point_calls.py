"""What goes to a worker: a user's function, how it takes points, and the chunk of points; numpy only."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jkosampler.errors import ResourceError, TargetShapeError

__all__ = ["Call", "Failure", "Form"]

# How the function takes points: (n, d), one as (1, d), or one as (d,).
Form = Literal["batch", "row", "point"]


@dataclass
class Failure:
    """An exception of the user's function at one row."""

    index: int
    error: Exception


@dataclass
class Call:
    """A user's function with what is known of it; a pickle of it goes to the workers.

    Attributes
    ----------
    function : callable of arrays, each with a point in its first axis
    units : tuple of tuple of int
        Shapes of what it returns at one point; more than one where it returns a tuple.
    stop : bool
        End at the first failure; else what fails is NaN.
    """

    function: Callable[..., Any]
    units: tuple[tuple[int, ...], ...]
    stop: bool
    remote: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "remote": True}

    def chunk(self, form: Form, locate: bool, *arrays: np.ndarray) -> tuple[list[np.ndarray], list[Failure]]:
        """Outputs (n, ...) of a chunk and its failures; what a failing batch holds is looked for row by row."""
        n = len(arrays[0])
        if form == "batch":
            try:
                return self._outputs(arrays, (n,)), []
            except ResourceError:
                raise
            except Exception as error:
                if not locate or n == 1 or isinstance(error, TargetShapeError):
                    return self.nothing(n), [Failure(0, self._sent(error))]
                form = "row"
        outputs, failures = self.nothing(n), []
        for i in range(n):
            try:
                parts = [a[i] for a in arrays] if form == "point" else [a[i : i + 1] for a in arrays]
                lead = () if form == "point" else (1,)
                for whole, part in zip(outputs, self._outputs(parts, lead), strict=True):
                    whole[i] = part.reshape(whole[i].shape)
            except ResourceError:
                raise
            except Exception as error:
                failures.append(Failure(i, self._sent(error)))
                if self.stop:
                    break
        return outputs, failures

    def _outputs(self, arrays: Sequence[np.ndarray], lead: tuple[int, ...]) -> list[np.ndarray]:
        raw = self.function(*arrays)
        if len(self.units) == 1:
            raw = (raw,)
        elif not isinstance(raw, tuple | list) or len(raw) != len(self.units):
            raise TargetShapeError(f"It must return {len(self.units)} arrays, got {type(raw).__name__}.")
        return [_shaped(part, lead + unit) for part, unit in zip(raw, self.units, strict=True)]

    def _sent(self, error: Exception) -> Exception:
        """The exception; from another process in a form that this one can read, with the line that raised it."""
        if not self.remote:
            return error
        frame = traceback.extract_tb(error.__traceback__)[-1]
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        error.add_note(f"Raised in {frame.filename}, line {frame.lineno}, in {frame.name}.")
        return error

    def nothing(self, n: int) -> list[np.ndarray]:
        return [np.full((n, *unit), np.nan) for unit in self.units]


def _shaped(value: Any, wanted: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "c":
        raise TargetShapeError("It must return real numbers, got complex ones; take the real part.")
    array = np.asarray(array, dtype=np.float64)
    # an axis of length one at the end is no other thing
    if array.shape not in (wanted, (*wanted, 1)) and (*array.shape, 1) != wanted:
        raise TargetShapeError(f"It must return shape {wanted}, got {array.shape}.")
    return array.reshape(wanted)
