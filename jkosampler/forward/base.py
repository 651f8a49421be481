"""What a forward model is, and how it becomes a posterior."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions import Distribution

from jkosampler.laws import Law
from jkosampler.targets import BayesianInverseProblem

__all__ = ["ForwardModel"]


class ForwardModel(ABC):
    """A map of parameters (n, d) to predicted observations (n, k); a subclass defines `__call__`.

    Any callable of that kind can be given to `BayesianInverseProblem`; this base class adds `posterior`, and
    attributes that save the user some arguments.

    Attributes
    ----------
    dim : int
        d.
    output_dim : int
        k.
    names : list of str, or None
        Names of the parameters.
    differentiable : bool
        False for a black box, which torch can't differentiate.
    rejects_failed_runs : bool
        Whether a row with NaN is a failed run, at which a posterior is zero; else NaN is an error.
    n_failed : int
        Failed runs so far.
    constant_data : dict of str to ndarray
        Constants of the model that belong to the record of a fit.
    """

    dim: int
    output_dim: int
    names: list[str] | None = None
    differentiable: bool = True
    rejects_failed_runs: bool = False
    n_failed: int = 0

    @property
    def constant_data(self) -> dict[str, np.ndarray]:
        """Constants of the model that belong to the record of a fit."""
        return {}

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Predicted observations (n, k) at parameters x (n, d)."""

    def posterior(
        self,
        y: Any,
        noise_std: Any = None,
        noise_cov: Any = None,
        prior_std: Any = None,
        prior: Law | Distribution | None = None,
    ) -> BayesianInverseProblem:
        """Posterior of the parameters given y = G(x) + noise; the arguments are `BayesianInverseProblem`'s.

        Parameters
        ----------
        y : array_like (k,)
        noise_std : array_like (k,) or float, optional
        noise_cov : array_like (k, k), optional
        prior_std : array_like (d,) or float, optional
        prior : Law or torch Distribution, optional

        Raises
        ------
        ArgumentError
            As `BayesianInverseProblem`.
        """
        return BayesianInverseProblem(
            self, y, noise_cov=noise_cov, noise_std=noise_std, prior=prior, prior_std=prior_std
        )
