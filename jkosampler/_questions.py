"""What a fitted sampler answers about its laws: draws, densities, fields."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkosampler._corrected import METHODS, corrected_draws
from jkosampler._inputs import as_points, flow_time, like_caller, random_generator, whole_number
from jkosampler._result import FittedAttributes
from jkosampler._run import led
from jkosampler._surroundings import torch_scope
from jkosampler.errors import ArgumentError

__all__ = ["Questions"]


class Questions(FittedAttributes):
    """The questions; before `fit` they raise NotFittedError."""

    def sample(
        self,
        n: int = 1000,
        t: float | None = None,
        *,
        method: str = "flow",
        random_state: Any = None,
        as_tensor: bool = False,
    ) -> Any:
        """Unweighted draws (n, d): of the law at flow time t (None: the last), or of the target itself.

        Parameters
        ----------
        n : int
        t : float, optional
            Flow time; for `method="flow"` only.
        method : {"flow", "snis", "imh"}
            "flow": independent draws of the law. The others correct draws of the last law by importance weights, and
            are draws of the target as far as the law has mass wherever the target has. "snis" resamples four times as
            many draws by their weights: a draw may come twice. "imh" returns the ends of n independent Metropolis
            chains of 16 proposals each, with the law as the proposal.
        random_state : int, numpy Generator or RandomState, torch Generator, optional
            None: the sampler's own random stream goes on.
        as_tensor : bool
            A tensor on the sampler's device instead of an array.

        Raises
        ------
        ArgumentError
            There is no such method or time, or no `log_target` to correct for.
        FitError
            No draw has a weight under the target.
        """
        if not isinstance(method, str) or method not in METHODS:
            raise ArgumentError(f"method must be one of {METHODS}, got {method!r}.")
        if method != "flow" and t is not None:
            raise ArgumentError(f"t={t!r}: method={method!r} corrects draws of the last law; leave t out.")
        fitted, n, t = self._fitted, whole_number(n, "n", 0), flow_time(t)
        generator = self._stream(random_state)
        with torch_scope():
            if method == "flow":
                draws = fitted.seen.sample(n, t=t, generator=generator)
            else:
                found = led(
                    "sample",
                    fitted.setup,
                    lambda: corrected_draws(fitted, n, method, generator),
                    generators=[generator],
                )
                draws = fitted.seen.shown(found)
        return draws if as_tensor else _to_numpy(draws)

    def sample_with_log_density(
        self, n: int = 1000, t: float | None = None, *, random_state: Any = None, as_tensor: bool = False
    ) -> tuple[Any, Any]:
        """Draws (n, d) as `sample` makes them, and the log density (n,) of the law at each.

        The density is carried along from the start, so no map is inverted: much cheaper than `log_density` of the
        draws. NaN at draws where a map of the flow folds.
        """
        fitted, n, t = self._fitted, whole_number(n, "n", 0), flow_time(t)
        with torch_scope():
            draws, log_density = fitted.seen.sample_with_log_density(n, t=t, generator=self._stream(random_state))
        return (draws, log_density) if as_tensor else (_to_numpy(draws), _to_numpy(log_density))

    def log_density(self, x: Any, t: float | None = None) -> Any:
        """Log density (n,) of the law at flow time t (None: the last), at x (n, d), normalised to one.

        Pulls the points back through the inverse of every map; for the sampler's own draws
        `sample_with_log_density` is cheaper.

        Of constrained parameters: with respect to their free columns, all but the last of a simplex and those below the
        diagonal of a Cholesky factor. It is -inf on the boundary and outside.

        Raises
        ------
        MapInversionError
            At points where a map of the flow can't be inverted.
        """
        fitted, t = self._fitted, flow_time(t)
        with torch_scope():
            points = as_points(x, fitted.n_columns, fitted.setup.dtype, fitted.setup.device)
            return like_caller(fitted.seen.log_density(points, t=t), x)

    def density(self, x: Any, t: float | None = None) -> Any:
        """Density (n,) of the law at flow time t, at x (n, d): its mass times exp(log_density)."""
        log_density = self.log_density(x, t)
        exp = torch.exp if isinstance(log_density, Tensor) else np.exp
        return self._fitted.setup.law.mass * exp(log_density)

    def field(self, x: Any, t: float | None = None) -> Any:
        """u(t, x) (n,) of an L2 flow, at x (n, d) in the domain; t None: the last time.

        Raises
        ------
        UnavailableError
            The flow is one of densities.
        ArgumentError
            A point lies outside the domain.
        """
        fitted, t = self._fitted, flow_time(t)
        with torch_scope():
            points = as_points(x, fitted.setup.dim, fitted.setup.dtype, fitted.setup.device)
            return like_caller(fitted.flow.field(points, t=t), x)

    def score_samples(self, X: Any) -> Any:
        """`log_density(X)`, under scikit-learn's name."""
        return self.log_density(X)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log density of the fitted law at X (n, d)."""
        return float(self.log_density(X).mean())

    def _stream(self, random_state: Any) -> torch.Generator:
        return self._fitted.generator if random_state is None else random_generator(random_state)


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.cpu().double().numpy()
