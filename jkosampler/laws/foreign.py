"""Laws made of things that are not ours: torch distributions and functions of the user; `as_law` converts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, constraints

from jkosampler._arguments import cholesky_factor, float_tensor
from jkosampler._surroundings import global_state
from jkosampler.errors import ArgumentError
from jkosampler.laws.elementary import Law

__all__ = ["CallableLaw", "TorchLaw", "as_law"]

MOMENT_DRAWS = 2**17
MOMENT_SEED = 20231


def as_law(law: Any, dim: int | None = None, name: str = "law") -> Law:
    """Turn a law or a torch distribution into a `Law`.

    Parameters
    ----------
    law : Law or torch.distributions.Distribution
    dim : int, optional
        The dimension that it must have.
    name : str
        The argument to name in errors.

    Raises
    ------
    ArgumentError
        It is neither, it is not over R^d, or its dimension is another.
    """
    if isinstance(law, Distribution):
        law = TorchLaw(law)
    if not isinstance(law, Law):
        raise ArgumentError(
            f"{name} must be a law of jkosampler.laws or a torch Distribution, got {type(law).__name__}; "
            "laws.CallableLaw(sampler, log_prob, dim) makes a law of your own functions."
        )
    if dim is not None and law.dim != dim:
        raise ArgumentError(f"{name} must be over R^{dim}, but {law.describe()} has dimension {law.dim}.")
    return law


class ForeignLaw(Law):
    """A law whose moments may have to be estimated: `_closed_moments` or else means of fixed draws."""

    @property
    def mean(self) -> Tensor:
        """Mean (d,)."""
        return self._moments[0]

    @property
    def covariance(self) -> Tensor:
        """Covariance (d, d)."""
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        moments = self._closed_moments()
        if moments is None:
            x = self.sample((MOMENT_DRAWS,), generator=torch.Generator().manual_seed(MOMENT_SEED))
            moments = x.mean(0), torch.atleast_2d(torch.cov(x.T))
        if not all(bool(moment.isfinite().all()) for moment in moments):
            raise ArgumentError(f"{self.describe()} has no finite mean and covariance; take a law with lighter tails.")
        return moments[0].to(self.device, self.dtype), moments[1].to(self.device, self.dtype)

    def _closed_moments(self) -> tuple[Tensor, Tensor] | None:
        return None


class TorchLaw(ForeignLaw):
    """A torch distribution over R^d.

    Parameters
    ----------
    distribution : torch.distributions.Distribution
        Event shape (d,); or batch shape (d,), taken as independent coordinates; or a scalar law, d = 1.
    has_jump : bool, optional
        Whether the density jumps at the edge of its support. None: whenever the support is not the whole
        space, which is right for a uniform or an exponential law and over-cautious for a log-normal one.

    Notes
    -----
    Torch distributions draw from torch's global generator: `sample` seeds it from its own `generator` and
    puts its state back. Draws have the precision of the distribution's parameters, so give it float64 ones.
    Moments that torch does not know in closed form are Monte Carlo means of 2^17 fixed draws.

    Raises
    ------
    ArgumentError
        The distribution is discrete, not over R^d, or lives on a simplex.
    """

    def __init__(self, distribution: Distribution, *, has_jump: bool | None = None) -> None:
        support = _support(distribution)
        if support.is_discrete or _scalar_constraint(support) is constraints.simplex:
            raise ArgumentError(f"{distribution} has no density over R^d: its support is {support}.")
        if len(distribution.batch_shape) + len(distribution.event_shape) > 1:
            raise ArgumentError(
                f"{distribution} must have event shape (d,) or batch shape (d,) alone; "
                "torch.distributions.Independent turns a batch axis into an event axis."
            )
        self.distribution = distribution
        draw = self._draw(1, torch.Generator().manual_seed(MOMENT_SEED))
        super().__init__(draw.shape[1], device=draw.device)
        everywhere = _scalar_constraint(support) is constraints.real
        self.has_jump = not everywhere if has_jump is None else has_jump
        self._inner = draw
        self._own_device = draw.device
        self._own_dtype = _working_dtype(distribution, self._shaped(draw))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self._draw(n, generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        x = x.to(self._own_device, self._own_dtype)
        inside = _support(self.distribution).check(self._shaped(x))
        if inside.ndim > 1:
            inside = inside.all(-1)
        # torch refuses, or extrapolates, points outside the support: an inner one stands in for them
        inner = self._inner.to(x.device, x.dtype)
        value = self.distribution.log_prob(self._shaped(torch.where(inside[:, None], x, inner)))
        if value.ndim > 1:
            value = value.sum(-1)
        return torch.where(inside, value, -math.inf).to(self.device, self.dtype)

    def _closed_moments(self) -> tuple[Tensor, Tensor] | None:
        return _moments_of(self.distribution)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        # torch's laws draw from the global generator: one thread at a time, or they would share a stream
        with global_state, torch.random.fork_rng(devices=gpus):
            torch.default_generator.manual_seed(seed)
            if gpus:
                torch.cuda.manual_seed_all(seed)
            draws = self.distribution.sample(torch.Size((n,)))
        return draws if draws.ndim == 2 else draws[:, None]

    def _shaped(self, x: Tensor) -> Tensor:
        """Points (n, d) as the distribution wants them: (n,) for a scalar law."""
        scalar = not self.distribution.batch_shape and not self.distribution.event_shape
        return x[:, 0] if scalar else x

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return f"torch {type(self.distribution).__name__} over R^{self.dim}"


class CallableLaw(ForeignLaw):
    """A law made of two functions.

    Parameters
    ----------
    sampler : callable (n, generator) -> (n, d)
        Independent draws; all randomness from the torch.Generator that it is given.
    log_prob : callable (n, d) -> (n,)
        Normalised log density, -inf outside the support, differentiable by torch.
    dim : int
        d.
    mean, covariance : array_like (d,) and (d, d), optional
        Exact moments; without them, Monte Carlo means of 2^17 fixed draws.
    has_jump : bool
        Whether the density jumps at the edge of its support.
    """

    def __init__(
        self,
        sampler: Callable[[int, torch.Generator], Tensor],
        log_prob: Callable[[Tensor], Tensor],
        dim: int,
        *,
        mean: Any = None,
        covariance: Any = None,
        has_jump: bool = False,
    ) -> None:
        super().__init__(dim)
        self._sampler, self._log_density = sampler, log_prob
        self.has_jump = has_jump
        if (mean is None) != (covariance is None):
            raise ArgumentError("Give both mean and covariance of a CallableLaw, or neither.")
        self._given: tuple[Tensor, Tensor] | None = None
        if mean is not None:
            self._given = float_tensor(mean, "mean"), float_tensor(covariance, "covariance")
            _check_shape(self._given[0], (dim,), "mean")
            _check_shape(self._given[1], (dim, dim), "covariance")
            cholesky_factor(self._given[1], "covariance")

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return _check_shape(self._sampler(n, generator), (n, self.dim), "the result of sampler")

    def _log_prob(self, x: Tensor) -> Tensor:
        return _check_shape(self._log_density(x), (x.shape[0],), "the result of log_prob")

    def _closed_moments(self) -> tuple[Tensor, Tensor] | None:
        return self._given


def _check_shape(value: Any, shape: tuple[int, ...], name: str) -> Tensor:
    found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if found != shape:
        raise ArgumentError(f"{name} must be a torch tensor of shape {shape}, got {found}.")
    return value


def _support(distribution: Distribution) -> constraints.Constraint:
    """Support of a distribution; the whole space where it doesn't say."""
    try:
        support = distribution.support
    except NotImplementedError:
        support = None
    if support is None:
        return constraints.real_vector if distribution.event_shape else constraints.real
    return support


def _scalar_constraint(support: constraints.Constraint) -> constraints.Constraint:
    """Constraint of one coordinate, without the wrappers that count axes."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _working_dtype(distribution: Distribution, draw: Tensor) -> torch.dtype:
    """float64 where the distribution takes it, its own precision where its matrices don't mix with it."""
    try:
        distribution.log_prob(draw.to(torch.float64))
    except RuntimeError:
        return draw.dtype
    return torch.float64


def _moments_of(distribution: Distribution) -> tuple[Tensor, Tensor] | None:
    """Mean (..., d) and covariance (..., d, d), or None where torch has no closed form."""
    try:
        if not distribution.event_shape:
            mean, variance = torch.atleast_1d(distribution.mean), torch.atleast_1d(distribution.variance)
            return mean, torch.diag_embed(variance)
        if hasattr(distribution, "covariance_matrix"):
            return distribution.mean, distribution.covariance_matrix
        if isinstance(distribution, Independent) and not distribution.base_dist.event_shape:
            return distribution.mean, torch.diag_embed(distribution.variance)
    except NotImplementedError:
        return None
    if isinstance(distribution, MixtureSameFamily):
        parts = _moments_of(distribution.component_distribution)
        return None if parts is None else mixture_moments(distribution.mixture_distribution.probs, *parts)
    return None


def mixture_moments(weights: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of a mixture: weights (k,), means (k, d), covariances (k, d, d)."""
    mean = weights @ means
    offsets = means - mean
    between = torch.einsum("k,ki,kj->ij", weights, offsets, offsets)
    return mean, torch.einsum("k,kij->ij", weights, covariances) + between
