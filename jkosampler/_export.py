"""From a fitted sampler to the groups that ArviZ keeps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor

from jkosampler._inputs import whole_number
from jkosampler._result import FitResult
from jkosampler.arviz_io import split_chains
from jkosampler.energies import EnergyEvaluator
from jkosampler.errors import ArgumentError
from jkosampler.targets import Target

__all__ = ["arviz_groups"]

logger = logging.getLogger(__name__)

_TEXT = ("stage", "note")  # records that are not numbers


def arviz_groups(fitted: FitResult, draws: int, chains: int, generator: torch.Generator) -> dict[str, Any]:
    """The arguments of `arviz_io.to_arviz`: draws (chains, draws), their statistics, the target's data, the history.

    The evaluations of the target count in `setup.problem.energy`. A draw at which a map of the flow folds has no
    density: its `log_q` and `log_weight` are NaN, which a log message says.

    Raises
    ------
    ArgumentError
        `draws` or `chains` is not a positive whole number.
    """
    for name, value in (("draws", draws), ("chains", chains)):
        whole_number(value, name, 1)
    if int(draws) * int(chains) >= 2**63:
        raise ArgumentError(f"draws={draws} for each of chains={chains} are more than can be counted.")
    setup, seen = fitted.setup, fitted.seen
    particles = fitted.flow.particles(draws * chains, generator)
    _warn_of_folds(particles.log_rho)
    statistics = {"log_q": _chains(seen.log_density_shown(particles.log_rho, particles.x), chains)}
    groups: dict[str, Any] = {
        "posterior": _variables(particles.x, fitted, chains),
        "sample_stats": statistics,
        "step_history": _columns(fitted.history),
        "attrs": {"inference_library": "jkosampler"},
    }
    if setup.target is not None:
        energy = setup.problem.energy
        assert isinstance(energy, EnergyEvaluator)
        potential, _ = energy.potential(particles.x)
        statistics["lp"] = _chains(seen.log_density_shown(-potential, particles.x), chains)
        statistics["log_weight"] = _chains(-potential - particles.log_rho, chains)
        groups |= _of_target(setup.target, fitted, particles.x, chains, generator)
    if setup.space is not None:
        groups |= {"dims": setup.space.dims, "coords": setup.space.coords}
    return groups


def _warn_of_folds(log_rho: Tensor) -> None:
    undefined = int((~log_rho.isfinite()).sum())
    if undefined:
        logger.warning(
            "log_q is NaN or infinite at %d of %d draws, where a map of the flow folds: leave them out of "
            "sums over log_q and log_weight, and see diagnose() for whether to refit.",
            undefined,
            len(log_rho),
        )


def _of_target(target: Target, fitted: FitResult, x: Tensor, chains: int, generator: torch.Generator) -> dict[str, Any]:
    groups: dict[str, Any] = {
        "observed_data": target.observed_data or None,
        "constant_data": target.constant_data or None,
    }
    with torch.no_grad():
        log_likelihood = target.log_likelihood(x)
    if log_likelihood is not None:
        name = next(iter(target.observed_data), "y")
        groups["log_likelihood"] = {name: _chains(log_likelihood, chains)}
    if target.prior is not None:
        prior = target.prior.to(x.dtype, x.device).sample((len(x),), generator=generator)
        groups["prior"] = _variables(prior, fitted, chains)
    return groups


def _variables(x: Tensor, fitted: FitResult, chains: int) -> dict[str, np.ndarray]:
    """Draws by name: variables of their shapes, or a scalar for each named coordinate, else one vector "x"."""
    space, names = fitted.setup.space, fitted.setup.names
    draws = _chains(fitted.seen.shown(x), chains)
    if space is not None:
        return space.by_variable(draws)
    return {"x": draws} if names is None else {name: draws[..., i] for i, name in enumerate(names)}


def _chains(values: Tensor, chains: int) -> np.ndarray:
    return split_chains(values.cpu().double().numpy(), chains)


def _columns(history: Sequence[Bunch]) -> dict[str, np.ndarray] | None:
    if not history:
        return None
    columns = {key: [record[key] for record in history] for key in history[0]}
    return {
        key: np.array([value or "" for value in values] if key in _TEXT else values) for key, values in columns.items()
    }
