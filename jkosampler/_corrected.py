"""Draws of the target itself, as far as importance weights can turn draws of the law into them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jkosampler.diagnostics import evidence
from jkosampler.energies import EnergyEvaluator
from jkosampler.errors import ArgumentError, FitError

if TYPE_CHECKING:
    from jkosampler._result import FitResult

__all__ = ["METHODS", "corrected_draws"]

logger = logging.getLogger(__name__)

METHODS = ("flow", "snis", "imh")

_PROPOSALS = 4  # draws of the law for each that is returned by "snis",
_FEWEST_PROPOSALS = 4000  # and at least so many: the bias falls with their number
_CHAIN = 16  # proposals of each chain of "imh"
_FEW_ACCEPTED = 0.25  # share of proposals below which a chain of this length may not have forgotten its start
_POOR = 0.1  # effective share of the proposals below which a warning is logged


def corrected_draws(fitted: FitResult, n: int, method: str, generator: torch.Generator) -> Tensor:
    """n draws (n, d) by "snis" or "imh"; see `JKOSampler.sample`.

    Raises
    ------
    ArgumentError
        There is no `log_target` to correct for.
    FitError
        No proposal has a weight.
    """
    if fitted.setup.target is None:
        raise ArgumentError(f"method={method!r} corrects for a log_target; this sampler has none, take method='flow'.")
    if n == 0:
        return fitted.flow.sample(0, t=None, generator=generator)
    return _resampled(fitted, n, generator) if method == "snis" else _accepted(fitted, n, generator)


def _proposals(fitted: FitResult, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws (n, d) of the law and their log weights (n,); -inf where a map folds."""
    energy = fitted.setup.problem.energy
    assert isinstance(energy, EnergyEvaluator)
    x, log_rho = fitted.flow.sample_with_log_density(n, t=None, generator=generator)
    log_weights = torch.full_like(log_rho, -torch.inf)
    defined = log_rho.isfinite() & x.isfinite().all(1)
    if bool(defined.any()):
        potential, _ = energy.potential(x[defined])
        log_weights[defined] = -potential - log_rho[defined]
    return x, log_weights


def _resampled(fitted: FitResult, n: int, generator: torch.Generator) -> Tensor:
    """Self-normalised importance sampling, resampled systematically: a draw is repeated only if its weight is large."""
    x, log_weights = _proposals(fitted, max(_PROPOSALS * n, _FEWEST_PROPOSALS), generator)
    if not bool((log_weights > -torch.inf).any()):
        raise FitError("no draw of the law has a weight under the target: look at diagnose(), and fit longer.")
    _warn_if_poor(log_weights)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    x, weights = x[order], (log_weights[order] - log_weights.max()).exp()
    cumulative = weights.cumsum(0) / weights.sum()
    offset = torch.rand(1, generator=generator, dtype=torch.float64).to(cumulative)
    marks = (torch.arange(n, device=x.device, dtype=cumulative.dtype) + offset) / n
    rows = torch.searchsorted(cumulative, marks).clamp(max=len(x) - 1)
    return x[rows[torch.randperm(n, generator=generator).to(x.device)]]


def _accepted(fitted: FitResult, n: int, generator: torch.Generator) -> Tensor:
    """The ends of n independent Metropolis chains whose proposals are draws of the law, and whose starts too."""
    x, log_weights = _proposals(fitted, n, generator)
    n_accepted = 0  # in the second half of the chains
    for i in range(_CHAIN):
        proposed, log_proposed = _proposals(fitted, n, generator)
        chance = torch.rand(n, generator=generator, dtype=torch.float64).log().to(log_weights)
        # whatever has a weight is better than what has none
        accepted = (log_proposed > -torch.inf) & (chance < log_proposed - log_weights)
        x = torch.where(accepted.unsqueeze(1), proposed, x)
        log_weights = torch.where(accepted, log_proposed, log_weights)
        n_accepted += int(accepted.sum()) if 2 * i >= _CHAIN else 0
    lost = int(log_weights.isneginf().sum())
    if lost:
        raise FitError(
            f"method='imh': {lost} of {n} chains have found no point where the target has mass, which is far from the "
            "law; look at diagnose(), fit longer, or take method='snis'."
        )
    share = 2 * n_accepted / (n * _CHAIN)
    if share < _FEW_ACCEPTED:
        logger.warning("sample: method='imh' accepts only %.1f%% of its proposals; look at diagnose()", 100.0 * share)
    return x


def _warn_if_poor(log_weights: Tensor) -> None:
    share = evidence(log_weights.cpu().double().numpy()).ess_fraction
    if share < _POOR:
        logger.warning("sample: method='snis': only %.1f%% of its proposals count; look at diagnose()", 100.0 * share)
