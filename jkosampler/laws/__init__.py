"""Laws of particles over R^d, after `torch.distributions`: `sample((n,), generator=...)` and `log_prob(x)`.

`as_law` turns any torch distribution over R^d into one; `CallableLaw` takes functions of your own.
`with_mass` gives any law another total mass than 1.
"""

from __future__ import annotations

from jkosampler.laws.compact import Ball, Barenblatt, Parabola
from jkosampler.laws.composite import Mixture, Product
from jkosampler.laws.elementary import Gaussian, Law, Normal, Uniform
from jkosampler.laws.foreign import CallableLaw, TorchLaw, as_law
from jkosampler.laws.on_box import DensityOnBox

__all__ = [
    "Ball",
    "Barenblatt",
    "CallableLaw",
    "DensityOnBox",
    "Gaussian",
    "Law",
    "Mixture",
    "Normal",
    "Parabola",
    "Product",
    "TorchLaw",
    "Uniform",
    "as_law",
]
