"""What a page about a fit shows besides the numbers of its report: draws, weights, steps, settings. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["FitRecord"]


@dataclass(frozen=True, eq=False)
class FitRecord:
    """What `Report.to_html` draws; whatever is left out is left out of the page.

    Attributes
    ----------
    draws : ndarray (m, d) or None
        Unweighted draws of the law, some of those that were judged.
    names : sequence of d str, or None
        Of the coordinates.
    log_weights : ndarray (n,) or None
        log unnormalised target - log density of the law, at all draws that were judged.
    history : sequence of mappings
        One a step: energy, step_size, ess, residual and more.
    settings, defaults : mapping of str to str
        The sampler's parameters that differ from their defaults, and those that do not.
    facts : mapping of str to str
        About the fit: why it ended, what it took.
    """

    draws: np.ndarray | None = None
    names: Sequence[str] | None = None
    log_weights: np.ndarray | None = None
    history: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        shape = None if self.draws is None else self.draws.shape
        return f"FitRecord(draws {shape}, {len(self.history)} steps)"
