"""Engines solve the steps of a gradient flow.

`Lagrangian` moves particles by learned maps; `MinimizingMovement` makes a network the unknown itself.
"""

from __future__ import annotations

from jkosampler.engines.base import Engine, GradientFlow, State
from jkosampler.engines.field_flow import FieldFlow, FieldState
from jkosampler.engines.lagrangian import Lagrangian
from jkosampler.engines.minimizing_movement import MinimizingMovement

__all__ = ["Engine", "FieldFlow", "FieldState", "GradientFlow", "Lagrangian", "MinimizingMovement", "State"]
