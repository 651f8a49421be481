"""Engines solve the steps of a gradient flow; `Lagrangian` moves particles by learned maps."""

from __future__ import annotations

from jkosampler.engines.base import Engine, GradientFlow, State
from jkosampler.engines.lagrangian import Lagrangian

__all__ = ["Engine", "GradientFlow", "Lagrangian", "State"]
