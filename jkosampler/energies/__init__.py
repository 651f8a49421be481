"""Energies `E(rho)` whose gradient flow is computed; they add and scale.

Equation (2) of Lee, Wang, Li (arXiv 2311.06700): `E = int U(rho) + int V rho + 1/2 iint W(x - y) rho rho`.

Energies of fields, `int phi(x, u, grad u)`, have flows in the L2 metric: `Dirichlet`, `AllenCahn`, `L2Functional`.

    energy = 2.0 * Entropy() + Potential(V) + Interaction(W)

`KL(log_target)` is `Entropy() + Potential(-log_target)`: the relative entropy up to the log evidence. A new internal
energy is a subclass of `InternalEnergy`, or `Internal(U)` for a function of the density.
"""

from __future__ import annotations

from jkosampler.energies.evaluator import EnergyEvaluator, Field
from jkosampler.energies.functional_evaluator import FunctionalEvaluator, Integrand
from jkosampler.energies.functionals import AllenCahn, Dirichlet, L2Functional
from jkosampler.energies.interaction import Interaction
from jkosampler.energies.terms import KL, Energy, Entropy, Internal, InternalEnergy, Potential, Power

__all__ = [
    "KL",
    "AllenCahn",
    "Dirichlet",
    "Energy",
    "EnergyEvaluator",
    "Entropy",
    "Field",
    "FunctionalEvaluator",
    "Integrand",
    "Interaction",
    "Internal",
    "InternalEnergy",
    "L2Functional",
    "Potential",
    "Power",
]
