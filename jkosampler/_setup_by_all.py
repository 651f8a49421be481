"""The setup of a fit by several processes: the same on all, with one random stream, and warned of once."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from jkosampler._distributed import team
from jkosampler._inputs import random_generator
from jkosampler._setup import Setup, checked
from jkosampler._setup_fields import FieldSetup
from jkosampler._surroundings import torch_scope

if TYPE_CHECKING:
    from jkosampler.estimator import JKOSampler

__all__ = ["checked_by_all", "is_silent"]


def is_silent() -> bool:
    """Whether another process of the group speaks to the user."""
    together = team()
    return together is not None and not together.leads


def checked_by_all(sampler: JKOSampler, X: Any) -> tuple[Setup | FieldSetup, torch.Generator]:
    """`checked`, and the random stream of the fit: rank 0's, where there are several processes.

    Raises
    ------
    ArgumentError
        A parameter can't be used, here or on another rank.
    """
    together = team()

    def stream() -> tuple[torch.Generator, Any]:
        return random_generator(sampler.random_state), None

    generator = stream()[0] if together is None else together.agreed(stream)

    def check() -> tuple[Setup | FieldSetup, Any]:
        with torch_scope(), warnings.catch_warnings() if is_silent() else nullcontext():
            if is_silent():
                warnings.simplefilter("ignore")
            setup = checked(sampler, X, generator)
        return setup, (type(setup.engine).__name__, setup.dim, str(setup.dtype), str(setup.target)[:500])

    if together is None:
        return check()[0], generator
    state = together.from_the_first(generator.get_state())
    generator.set_state(state)
    return together.agreed(check), generator
