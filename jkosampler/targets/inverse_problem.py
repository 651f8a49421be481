"""Posterior of an inverse problem with Gaussian noise, y = G(x) + noise, with all its constants.

    log p(x, y) = log prior(x) - 1/2 (y - G(x))' Gamma^-1 (y - G(x)) - 1/2 log det(2 pi Gamma)

so that the log evidence of this target is log p(y). (The potential Phi of the Deep JKO paper, arXiv
2311.06700, eq. (37), leaves the constants out.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from jkosampler._arguments import cholesky_factor, float_tensor
from jkosampler.errors import ArgumentError, TargetShapeError
from jkosampler.laws import Gaussian, Law, as_law
from jkosampler.targets.base import Target, one_dimension

__all__ = ["BayesianInverseProblem"]


class BayesianInverseProblem(Target):
    """Posterior of x given y = G(x) + N(0, Gamma).

    Parameters
    ----------
    forward_model : callable (n, d) -> (n, k)
        G. Its attributes `dim`, `output_dim`, `names`, `differentiable`, `rejects_failed_runs`, `n_failed` and
        `constant_data` are used where it has them (`jkosampler.forward.ForwardModel` says what they are). It is
        called only at points in the prior's support.
    y : array_like (k,)
        The observations.
    noise_cov : array_like (k, k), optional
        Gamma, symmetric positive definite.
    noise_std : array_like (k,) or float, optional
        Standard deviations of independent noise, instead of `noise_cov`.
    prior : Law or torch Distribution, optional
        Prior of x.
    prior_std : array_like (d,) or float, optional
        Instead of `prior`: the prior N(0, prior_std^2), coordinates independent.
    names : sequence of str, optional
        Names of the coordinates; None: those of the forward model.
    support : mapping of str to constraint, optional
        Constraints on x, in the words of `Target`. The prior is over the constrained x, and taken as it is: where
        constraints cut it off, log p(y) has the mass that is left of it as a factor.

    Raises
    ------
    ArgumentError
        Noise or prior is given twice or not at all, a shape doesn't fit, or `noise_cov` is not positive
        definite.
    """

    prior: Law
    outputs_are_densities = False

    def __init__(
        self,
        forward_model: Callable[[Tensor], Tensor],
        y: Any,
        *,
        noise_cov: Any = None,
        noise_std: Any = None,
        prior: Law | Distribution | None = None,
        prior_std: Any = None,
        names: Sequence[str] | None = None,
        support: Mapping[str, Any] | None = None,
    ) -> None:
        if not callable(forward_model):
            raise ArgumentError(f"forward_model must be a callable (n, d) -> (n, k), got {forward_model!r}.")
        self.forward_model = forward_model
        self.exchange = getattr(forward_model, "exchange", None)
        self._y = _observations(y, getattr(forward_model, "output_dim", None))
        covariance = _noise_covariance(noise_cov, noise_std, self._y)
        self._noise_factor = cholesky_factor(covariance, "noise_cov")
        self._independent = bool((covariance == torch.diag(covariance.diagonal())).all())
        names = names if names is not None else getattr(forward_model, "names", None)
        known = {
            "forward_model": getattr(forward_model, "dim", None),
            "names": None if names is None else len(names),
        }
        prior = _prior(prior, prior_std, known)
        super().__init__(
            self._log_joint,
            one_dimension({**known, "prior": prior.dim}),
            names=names,
            prior=prior,
            log_likelihood=self._log_likelihood_columns,
            observed_data={"y": self._y.cpu()},
            constant_data={"noise_cov": covariance.cpu(), **getattr(forward_model, "constant_data", {})},
            differentiable=getattr(forward_model, "differentiable", True),
            support=support,
        )

    @property
    def n_failed(self) -> int:
        """Runs of the forward model that failed so far, where it rejects these: the density is zero there."""
        return int(getattr(self.forward_model, "n_failed", 0))

    def black_box(self, x: Tensor) -> Tensor:
        """The forward model's predictions (n, k) at x (n, d), zero outside the prior's support."""
        inside = ~self.prior.log_prob(x).to(x.device).isneginf()
        if bool(inside.all()):
            return self._predicted(x)
        # there the forward model may well fail, by an exception even: it is not asked
        outputs = (0.0 * x[:, :1]).expand(-1, self._y.shape[0])
        if not bool(inside.any()):
            return outputs
        found = self._predicted(x[inside])
        return outputs.to(found.dtype).masked_scatter(inside.unsqueeze(1), found)

    def log_density_from(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Log density (n,) from x (n, d) and predictions (n, k) there, differentiable in both."""
        log_prior = self.prior.log_prob(x).to(x.device)
        log_likelihood = self._log_likelihood_of(outputs).sum(dim=1)
        return torch.where(log_prior.isneginf(), log_prior, log_prior + log_likelihood)

    def _log_joint(self, x: Tensor) -> Tensor:
        return self.log_density_from(x, self.black_box(x))

    def _log_likelihood_columns(self, x: Tensor) -> Tensor:
        """Log likelihood (n, k) of each observation; (n, 1) of all together where the noise is correlated."""
        return self._log_likelihood_of(self._predicted(x))

    def _log_likelihood_of(self, predicted: Tensor) -> Tensor:
        residual = self._y.to(predicted.device) - predicted
        factor = self._noise_factor.to(residual)
        lost = _beyond_range(residual, factor, predicted.dtype)
        if getattr(self.forward_model, "rejects_failed_runs", False):
            lost = lost | residual.isnan().any(dim=1, keepdim=True)
        z = _whitened(torch.where(lost, 0.0, residual), factor)
        columns = -0.5 * z.square() - factor.diagonal().log() - 0.5 * math.log(2 * math.pi)
        columns = torch.where(lost, -math.inf, columns)
        return columns if self._independent else columns.sum(dim=1, keepdim=True)

    def _predicted(self, x: Tensor) -> Tensor:
        """Predictions (n, k), after a look at what the forward model returned."""
        predicted = self.forward_model(x)
        wanted = (x.shape[0], self._y.shape[0])
        found = tuple(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
        if found != wanted:
            raise TargetShapeError(
                f"The forward model must return a torch tensor of shape {wanted}, one row for each of the "
                f"{wanted[0]} points and one column for each of the {wanted[1]} observations y, got {found}."
            )
        return predicted


def _whitened(residual: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, residual.T, upper=False).T


def _beyond_range(residual: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows (n, 1) whose misfit, or its gradient, overflows `dtype`. NaN is not among them."""
    limit = torch.finfo(dtype).max ** 0.45
    with torch.no_grad():
        beyond = ~(_whitened(residual, factor).abs() <= limit).all(dim=1, keepdim=True)
        return beyond & ~residual.isnan().any(dim=1, keepdim=True)


def _observations(y: Any, output_dim: int | None) -> Tensor:
    y = torch.atleast_1d(float_tensor(y, "y"))
    if y.ndim != 1:
        raise ArgumentError(f"y must have shape (k,), got {tuple(y.shape)}; flatten repeated observations.")
    if output_dim is not None and y.shape[0] != output_dim:
        raise ArgumentError(f"y has {y.shape[0]} observations, but the forward model returns {output_dim}.")
    return y


def _noise_covariance(noise_cov: Any, noise_std: Any, y: Tensor) -> Tensor:
    """Covariance (k, k) from whichever of the two is given; whether it is positive definite is seen later."""
    k = y.shape[0]
    if (noise_cov is None) == (noise_std is None):
        raise ArgumentError("Give exactly one of noise_cov (k, k) and noise_std (standard deviations).")
    if noise_cov is not None:
        covariance = float_tensor(noise_cov, "noise_cov")
        if tuple(covariance.shape) != (k, k):
            raise ArgumentError(
                f"noise_cov must have shape ({k}, {k}) for {k} observations, got {tuple(covariance.shape)}; "
                "noise_std takes standard deviations."
            )
        return covariance
    std = float_tensor(noise_std, "noise_std")
    if tuple(std.shape) not in ((), (k,)) or not bool((std > 0).all()):
        raise ArgumentError(f"noise_std must be positive, one number or one for each of {k} observations, got {std}.")
    return torch.diag(std.square().expand(k))


def _prior(prior: Any, prior_std: Any, known: dict[str, int | None]) -> Law:
    """Prior from whichever of the two is given; one number as `prior_std` takes the known dimension."""
    if (prior is None) == (prior_std is None):
        raise ArgumentError("Give exactly one of prior (a law) and prior_std (standard deviations of N(0, .)).")
    if prior is not None:
        return as_law(prior, name="prior")
    std = float_tensor(prior_std, "prior_std")
    if std.ndim == 0:
        dims = [dim for dim in known.values() if dim is not None]
        if not dims:
            raise ArgumentError(
                "prior_std is one number, but the dimension is unknown: give one number for each coordinate, "
                "names=, or a forward model with an attribute `dim`."
            )
        std = std.expand(dims[0])
    if std.ndim != 1 or not bool((std > 0).all()):
        raise ArgumentError(f"prior_std must be positive, one number or one for each coordinate, got {std}.")
    return Gaussian(torch.zeros_like(std), scale=std)
