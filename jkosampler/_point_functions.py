"""Numpy functions of points, called in the way that they can be: with batches, or point by point.

Nobody has to say which: the first call with different points finds out, with two batch sizes. A function that takes
no batches, or whose value at a point depends on the rest of its batch, is looped. Exceptions of the function come back
with the point at which they arose. What is sent to workers is in `_point_calls`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jkosampler._mapping import ChunkMap
from jkosampler._point_calls import Call, Failure, Form
from jkosampler.errors import (
    ArgumentError,
    JKOSamplerError,
    TargetCallError,
    TargetShapeError,
    describe_points,
)

__all__ = ["PointFunction"]

logger = logging.getLogger(__name__)

_PROBE_SIZE = 3
_ROWS_TRIED = 10
_TOLERANCE = 1e-8
# What a fit takes as a bad step, at any time; and what a function that is not meant so raises at its first call.
_NUMERICAL = (ValueError, ArithmeticError)
_USUAL = (RuntimeError, IndexError, TypeError, AttributeError)


class PointFunction:
    """A numpy function of points as the torch bridge calls it: always with batches.

    Parameters
    ----------
    function : callable
        Of one array (n, d) or (d,), or of several.
    units : sequence of tuple of int
        Shapes of what it returns at one point: () a number, (k,) a vector; two for a pair.
    name : str
        Of the argument, for errors.
    vectorized : bool, optional
        Whether it takes batches; None: find out, for four evaluations.
    chunks : ChunkMap
    reject : bool
        What fails is NaN; else it is an error.
    always_ours : bool
        Whether every exception of the function becomes a `TargetCallError`: those of forward models do.

    Raises
    ------
    ArgumentError
        `function` can't be called, or `vectorized` is none of True, False and None.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        units: Sequence[tuple[int, ...]],
        *,
        name: str,
        vectorized: bool | None = None,
        chunks: ChunkMap | None = None,
        reject: bool = False,
        always_ours: bool = False,
    ) -> None:
        if not callable(function):
            raise ArgumentError(f"{name} must be a callable, got {type(function).__name__}.")
        if vectorized not in (None, True, False):
            raise ArgumentError(f"vectorized must be True, False or None (find out), got {vectorized!r}.")
        self.name = name
        self._noted = False
        self._call = Call(function, tuple(units), stop=not reject)
        self._always_ours = always_ours
        self._chunks = chunks if chunks is not None else ChunkMap()
        self._form: Form | None = None if vectorized is None else "batch" if vectorized else "point"
        self._single: Form | None = None
        self._worked = False

    def __deepcopy__(self, memo: dict[int, Any]) -> PointFunction:
        # the user's function may hold what can't be copied; nothing here changes it
        other = PointFunction.__new__(PointFunction)
        other.__dict__.update(self.__dict__)
        return other

    def __call__(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs, each (n, ...), at arrays (n, ...); the first holds the points.

        Raises
        ------
        TargetCallError, TargetShapeError
            The function raises, or returns another shape; not where failures are rejected. Other exceptions than
            numerical ones pass, with a note, once the function has worked.
        ResourceError, ArgumentError
            As `ChunkMap.map`.
        """
        n = len(arrays[0])
        if n == 0:
            return tuple(self._call.nothing(0))
        form = self._form or self._find_form(arrays)
        pieces = [tuple(a[part] for a in arrays) for part in self._chunks.chunks(n)]
        chunks = self._chunks.map(partial(self._call.chunk, form, True), pieces)
        failures, start = [], 0
        for piece, (_, failed) in zip(pieces, chunks, strict=True):
            failures += [Failure(start + failure.index, failure.error) for failure in failed]
            start += len(piece[0])
        # a wrong shape is a fault of the function, not of the run
        errors = [failure for failure in failures if self._call.stop or isinstance(failure.error, TargetShapeError)]
        if errors:
            raise self._described(errors[0], arrays[0])
        self._note_first(failures, arrays[0])
        self._worked = self._worked or len(failures) < n
        return tuple(np.concatenate([outputs[i] for outputs, _ in chunks]) for i in range(len(self._call.units)))

    def _note_first(self, failures: list[Failure], points: np.ndarray) -> None:
        if failures and not self._noted:
            self._noted = True
            error = failures[0].error
            where = describe_points(points, np.array([failures[0].index]))
            reason = f"{type(error).__name__}: {_shortened(error)}"
            logger.warning(
                "%s failed at %s, which is rejected (%s); later ones are only counted.", self.name, where, reason
            )

    def _find_form(self, arrays: Sequence[np.ndarray]) -> Form:
        """How the function takes points; remembered as soon as the points differ from each other."""
        different = (arrays[0] != arrays[0][0]).any(axis=1)
        if self._single is not None and not different.any():
            return self._single
        reference, one, value = self._first_that_works(arrays)
        if reference is None or one is None:
            return "point"
        self._single = one
        others = np.flatnonzero((arrays[0] != arrays[0][reference]).any(axis=1))
        if len(others) == 0:
            return one
        if one == "row" and self._takes_batches(arrays, reference, others, value):
            self._form = "batch"
        else:
            single = self._attempt("point", arrays, [reference])
            self._form = one if isinstance(single, Failure) else "point"
            logger.info("%s takes no batches of points, or its values depend on them: it is looped.", self.name)
        return self._form

    def _first_that_works(self, arrays: Sequence[np.ndarray]) -> tuple[int | None, Form | None, Any]:
        """A row at which the function works alone, the form in which it does, and its outputs there."""
        tries = 1 if self._call.stop else min(_ROWS_TRIED, len(arrays[0]))
        for i in range(tries):
            row = self._attempt("row", arrays, [i])
            if not isinstance(row, Failure):
                return i, "row", row
            point = self._attempt("point", arrays, [i])
            if not isinstance(point, Failure):
                return i, "point", point
            if self._call.stop:
                raise self._refused(row.error, point.error, arrays[0])
        return None, None, None

    def _takes_batches(
        self, arrays: Sequence[np.ndarray], reference: int, others: np.ndarray, value: list[np.ndarray]
    ) -> bool:
        # the known one at the end, where neither a use of x[0] nor a sum over the batch gives its value
        mixed = [*others[np.arange(_PROBE_SIZE - 1) % len(others)], reference]
        for rows in (mixed, [reference] * _PROBE_SIZE):
            found = self._attempt("batch", arrays, rows)
            if not isinstance(found, Failure):
                return all(
                    np.allclose(many[-1], one[0], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
                    for many, one in zip(found, value, strict=True)
                )
        return False

    def _attempt(self, form: Form, arrays: Sequence[np.ndarray], rows: list[int]) -> list[np.ndarray] | Failure:
        piece = tuple(a[rows] for a in arrays)
        ((outputs, failures),) = self._chunks.map(partial(self._call.chunk, form, False), [piece])
        return failures[0] if failures else outputs

    def _described(self, failure: Failure, points: np.ndarray) -> Exception:
        """The error to raise of a failure: one of ours, or the user's own with a note of the point."""
        error, where = failure.error, describe_points(points, np.array([failure.index]))
        kinds = (Exception,) if self._always_ours else _NUMERICAL if self._worked else _NUMERICAL + _USUAL
        if isinstance(error, TargetShapeError) or (isinstance(error, kinds) and not isinstance(error, JKOSamplerError)):
            kind = TargetShapeError if isinstance(error, TargetShapeError) else TargetCallError
            message = f"{self.name} failed at {where}: {type(error).__name__}: {_shortened(error)}."
            ours = kind(message, points=points[[failure.index]], indices=[failure.index])
            ours.__cause__ = error
            return ours
        error.add_note(f"While jkosampler evaluated {self.name} at {where}.")
        return error

    def _refused(self, row: Exception, point: Exception, points: np.ndarray) -> Exception:
        """The error of a function that works neither with (1, d) nor with (d,)."""
        if not self._always_ours and not isinstance(point, (*_NUMERICAL, *_USUAL, TargetShapeError)):
            return self._described(Failure(0, point), points)
        returns = " and ".join(f"{('number' if unit == () else f'array {unit}')}" for unit in self._call.units)
        refused = TargetCallError(
            f"{self.name} works neither with a batch nor with one point (it should return one {returns} a point). At "
            f"{describe_points(points, np.array([0]))}, given as (1, {points.shape[1]}): {type(row).__name__}: "
            f"{_shortened(row)}; as ({points.shape[1]},): {type(point).__name__}: {_shortened(point)}.",
            points=points[:1],
            indices=[0],
        )
        refused.__cause__ = point
        return refused


def _shortened(error: Exception, most: int = 300) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= most else f"{text[:most]} .."
