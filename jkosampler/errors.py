"""Every error that `jkosampler` raises on purpose.

All of them are `JKOSamplerError`; each message names the argument or the first offending points and says
what to do next. Errors about points carry them as data (`points`, `indices`), so that a caller can look.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "FitError",
    "JKOSamplerError",
    "MapInversionError",
    "MissingDependencyError",
    "NotFittedError",
    "PointsError",
    "ResourceError",
    "StartError",
    "TargetCallError",
    "TargetError",
    "TargetGradientError",
    "TargetShapeError",
    "TargetValueError",
    "UnavailableError",
    "WriteError",
    "describe_points",
]


class JKOSamplerError(Exception):
    """Base class of all errors of this package."""


class ArgumentError(JKOSamplerError, ValueError):
    """An argument has a value or a type that can't be used; the message names it."""


class NotFittedError(JKOSamplerError, ValueError, AttributeError):
    """The sampler was asked for a result before `fit`."""


class UnavailableError(JKOSamplerError, AttributeError, TypeError):
    """A question that this kind of fit has no answer to: a field has no draws, a density is no field."""


class MissingDependencyError(JKOSamplerError, ImportError):
    """A package that only this call needs is not installed; the message says how to install it."""


class FitError(JKOSamplerError, RuntimeError):
    """The fit can't go on; the sampler keeps the steps that it accepted so far."""


class ResourceError(JKOSamplerError):
    """What carries the evaluations out is gone: workers of an executor are lost, a server does not answer.

    No fault of the points: no step is tried again for it, and no run counts as failed.
    """


class CheckpointError(JKOSamplerError):
    """The file of a fit can't be read or written, or belongs to another fit; a good file stays as it is."""


class WriteError(JKOSamplerError, OSError):
    """A page, a figure or draws can't be written; what was at the path before is still there."""


class PointsError(JKOSamplerError, ValueError):
    """An error at some points.

    Attributes
    ----------
    points : ndarray (k, d)
        The offending points, at most the first ten.
    indices : ndarray (k,)
        Their rows in the batch.
    """

    def __init__(self, message: str, points: Any = None, indices: Any = None) -> None:
        super().__init__(message)
        self.points = None if points is None else np.asarray(points)
        self.indices = None if indices is None else np.asarray(indices)


class TargetError(PointsError):
    """The log density (or forward model) of the user misbehaves."""


class TargetCallError(TargetError):
    """The log density can't be called with these points: the user's own code raises; see `__cause__`."""


class TargetShapeError(TargetError):
    """The log density returns something that is not one number for each point."""


class TargetValueError(TargetError):
    """The log density is NaN or +inf at some points."""


class TargetGradientError(TargetError):
    """The log density is not differentiable by torch, or its gradient is not finite at some points."""


class StartError(PointsError):
    """The particles can't start where the initial law puts them."""


class MapInversionError(PointsError):
    """A map of the flow can't be inverted at some points."""


def describe_points(points: np.ndarray, indices: np.ndarray, limit: int = 3) -> str:
    """Say in words which points of a batch offend: a count and the first few, rounded."""
    shown = []
    for i in indices[:limit]:
        coordinates = ", ".join(f"{value:.6g}" for value in points[i][:6])
        shown.append(f"x[{i}] = ({coordinates}{', ...' if points.shape[1] > 6 else ''})")
    rest = len(indices) - len(shown)
    return "; ".join(shown) + (f"; and {rest} more" if rest > 0 else "")
