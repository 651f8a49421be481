"""Invertible maps of particles: what one step of the flow does to positions, densities and scores.

`GradientMap` is `T(x) = x + grad phi(x)`, `AffineMap` that of a quadratic potential, `DisplacementMap` has a
displacement that is no gradient, `ODEMap` is the neural ODE of Lee, Wang, Li (arXiv 2311.06700, section 3),
`CouplingMap` a composition of affine couplings. `Conjugated` runs a map in other affine coordinates, `Chain` several in
a row.
"""

from jkosampler.maps.base import Map, Pushed, cholesky_and_log_det, inversion_error
from jkosampler.maps.composed import Chain, Conjugated
from jkosampler.maps.coupling import CouplingMap, fewest_layers
from jkosampler.maps.displacement import DisplacementMap, RidgeField
from jkosampler.maps.inverted import Inverted
from jkosampler.maps.ode import INTEGRATORS, ODEMap
from jkosampler.maps.straight import AffineMap, GradientMap, StraightMap

__all__ = [
    "INTEGRATORS",
    "AffineMap",
    "Chain",
    "Conjugated",
    "CouplingMap",
    "DisplacementMap",
    "GradientMap",
    "Inverted",
    "Map",
    "ODEMap",
    "Pushed",
    "RidgeField",
    "StraightMap",
    "cholesky_and_log_det",
    "fewest_layers",
    "inversion_error",
]
