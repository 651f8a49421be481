"""Forward models: maps of parameters (n, d) to predicted observations (n, k), and their posteriors."""

from __future__ import annotations

from jkosampler.forward.base import ForwardModel
from jkosampler.forward.black_box import BlackBox
from jkosampler.forward.darcy import Darcy1D
from jkosampler.forward.elliptic import EllipticBVP, solve_diffusion
from jkosampler.forward.told import Told
from jkosampler.forward.umbridge import UMBridge

__all__ = ["BlackBox", "Darcy1D", "EllipticBVP", "ForwardModel", "Told", "UMBridge", "solve_diffusion"]
