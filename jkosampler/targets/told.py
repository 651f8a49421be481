"""Targets whose values somebody else computes and tells: the end of `JKOSampler.ask` and `tell` that a fit sees."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
from torch.distributions import Distribution

from jkosampler._point_functions import PointFunction
from jkosampler.errors import ArgumentError, ResourceError
from jkosampler.laws import Law, as_law
from jkosampler.targets.base import Target, one_dimension
from jkosampler.targets.external import NumpyDensity

__all__ = ["Exchange", "Stopped", "Told"]


class Stopped(BaseException):
    """Nobody answers any more; ends the fit that waits. No `Exception`: nothing in a fit is to mend it."""


class Exchange:
    """A function whose values come from another thread: points go out, answers come in.

    Parameters
    ----------
    units : sequence of tuple of int
        Shapes of the answers at one point; two for values with gradients.

    Attributes
    ----------
    known : dict
        Answers to points, by their bytes, which need not be asked for again.
    """

    def __init__(self, units: Sequence[tuple[int, ...]]) -> None:
        self.units = tuple(units)
        self.known: dict[bytes, tuple[np.ndarray, ...]] = {}
        self.questions: SimpleQueue[Any] = SimpleQueue()
        self.answers: SimpleQueue[tuple[np.ndarray, ...] | None] = SimpleQueue()
        self.open = False

    def begin(self) -> None:
        """Open it for a fit; what a fit before has left unread is gone."""
        self.questions, self.answers, self.open = SimpleQueue(), SimpleQueue(), True

    def __deepcopy__(self, memo: dict[int, Any]) -> Exchange:
        return self  # as any function of a user's: a copy of the target asks the same

    def __call__(self, x: np.ndarray) -> Any:
        """Answers (n, ...) at x (n, d), as soon as they are told.

        Raises
        ------
        ResourceError
            Nobody is asked at the moment.
        """
        found = self.known.get(x.tobytes())
        if found is None:
            if not self.open:
                raise ResourceError(
                    "the values of this target are told: `for x in sampler.ask(): sampler.tell(..)` fits it, and what "
                    "needs values later, such as diagnose(), has none; report_ is the report that ask() ends with."
                )
            self.questions.put(x)
            found = self.answers.get()
            if found is None:
                raise Stopped
        return found if len(self.units) > 1 else found[0]

    def checked(self, n: int, *answers: Any) -> tuple[np.ndarray, ...]:
        """Answers to n points as arrays of floats.

        Raises
        ------
        ArgumentError
            One is missing, or has another shape.
        """
        names = ("values", "grads")
        found = []
        for name, unit, answer in zip(names, self.units, answers, strict=False):
            if answer is None:
                raise ArgumentError(f"{name} must be given: the fit moves by it; ask(gradient=False) does without.")
            array = np.asarray(answer.detach().cpu() if hasattr(answer, "detach") else answer, dtype=np.float64)
            if array.shape != (n, *unit):
                raise ArgumentError(f"{name} must have the shape {(n, *unit)}, one row a point, got {array.shape}.")
            found.append(array)
        return tuple(found)


class Told(Target):
    """A log density whose values are told.

    Parameters
    ----------
    dim : int, optional
        d; may be left out where `names` or `prior` knows it.
    gradient : bool
        Whether gradients are told too.
    names, prior
        As of `Target`.
    """

    def __init__(
        self,
        dim: int | None = None,
        *,
        gradient: bool = True,
        names: Sequence[str] | None = None,
        prior: Law | Distribution | None = None,
    ) -> None:
        law = None if prior is None else as_law(prior, name="prior")
        d = one_dimension(
            {
                "dim": dim,
                "names": None if names is None else len(names),
                "prior": None if law is None else law.dim,
            }
        )
        self.exchange = Exchange([(), (d,)] if gradient else [()])
        function = PointFunction(self.exchange, self.exchange.units, name="told", vectorized=True)
        super().__init__(NumpyDensity(function, None, gradient), d, names=names, prior=law, differentiable=gradient)
