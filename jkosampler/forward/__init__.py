"""Forward models: maps of parameters (n, d) to predicted observations (n, k), and their posteriors."""

from __future__ import annotations

from jkosampler.forward.base import ForwardModel
from jkosampler.forward.elliptic import EllipticBVP, solve_diffusion

__all__ = ["EllipticBVP", "ForwardModel", "solve_diffusion"]
