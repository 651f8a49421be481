"""The network of a step: which map is trained, how long, and by which gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from jkosampler.engines.affine import AffineSolution, set_affine
from jkosampler.engines.step_size import Control
from jkosampler.engines.training import TrainingSettings
from jkosampler.maps import CouplingMap, GradientMap, Map, ODEMap, fewest_layers
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential

if TYPE_CHECKING:
    from jkosampler.engines.lagrangian import Lagrangian

__all__ = ["GRADIENT_MAP_LIMIT", "default_gradient", "is_like", "map_kind", "network_map", "training_settings"]

GRADIENT_MAP_LIMIT = 32  # the exact log det costs O(d^3) a particle: beyond, the trace of an ODE is cheaper
_WIDTH, _BATCH = 64, 512
_ITERATIONS_PER_DIMENSION, _COUPLING_ITERATIONS = 500, 2000  # of a coupling map, and at most
_COUPLING_BATCH, _COUPLING_WIDTH = 256, 32
_COUPLING_RESAMPLE = 200  # iterations on particles that none has seen before
_FEWEST_COUPLINGS = 6
_HUTCHINSON_LIMIT = 512  # the exact trace costs O(m^2 d) a particle: beyond, probes are cheaper


def map_kind(engine: Lagrangian, dim: int, *, exact: bool) -> str:
    """The map that networks make of a step: "gradient", "ode" or "coupling".

    An exact step is the gradient of a potential; one that need only lead on may be any map.
    """
    if engine.map is not None:
        return engine.map
    if not exact and dim > 1:
        return "coupling"
    return "ode" if dim > GRADIENT_MAP_LIMIT else "gradient"


def network_map(
    engine: Lagrangian,
    affine: AffineSolution,
    guess: nn.Module | None,
    generator: torch.Generator,
    *,
    kind: str,
    dtype: torch.dtype,
    effort: int,
) -> Map:
    """A map to train: the affine solution, and a network that is still zero, with the hidden layers of the last one.

    A coupling map starts from the identity: its layers have affine parts of their own.
    """
    d, like = len(affine.shift), affine.shift
    if kind == "coupling":
        return CouplingMap(
            d,
            max(_FEWEST_COUPLINGS, fewest_layers(d)),
            engine.width or _COUPLING_WIDTH,
            generator=generator,
            dtype=dtype,
            device=like.device,
        )
    ode = kind == "ode"
    potential = ResNetPotential(
        d,
        width=engine.width or _WIDTH,
        depth=engine.depth,
        time_input=ode,
        generator=generator,
        dtype=dtype,
        device=like.device,
    )
    if engine.warm_start and is_like(guess, potential):
        potential.load_state_dict(_hidden_layers(guess), strict=False)
    if not ode:
        set_affine(potential, *affine.displacement)
        return GradientMap(potential)
    set_affine(potential, affine.exponent, affine.velocity)
    probes = torch.randn(16, d, generator=generator).to(like) if d > _HUTCHINSON_LIMIT else None
    return ODEMap(potential, integrator=engine.integrator, inner_steps=engine.inner_steps * effort, probes=probes)


def training_settings(
    engine: Lagrangian, control: Control, kind: str, dim: int, discrepancy: float
) -> TrainingSettings:
    """How a network is trained for a law of this dimension and discrepancy."""
    usual = 300 if control.exact else 200
    if kind == "coupling":
        usual = min(_ITERATIONS_PER_DIMENSION * dim, _COUPLING_ITERATIONS)
    return TrainingSettings(
        n_iterations=control.effort * (engine.n_iterations or usual),
        batch_size=engine.batch_size or (_COUPLING_BATCH if kind == "coupling" else _BATCH),
        learning_rate=engine.learning_rate * _reach(discrepancy),
        optimizer=engine.optimizer,
        tolerance=engine.tolerance,
        resample_every=engine.resample_every or (_COUPLING_RESAMPLE if kind == "coupling" else None),
    )


def default_gradient(step: Map, points: Particles) -> str:
    """The estimate of the gradient that suits a map and the law of some points."""
    if points.score is None:
        return "plain"
    return "control-variate" if isinstance(step, ODEMap) else "path"


def is_like(guess: nn.Module | None, potential: ResNetPotential) -> TypeGuard[ResNetPotential]:
    """Whether two potentials have the same layers."""
    return isinstance(guess, ResNetPotential) and all(
        getattr(guess, name) == getattr(potential, name) for name in ("dim", "width", "depth", "time_input")
    )


def _hidden_layers(potential: ResNetPotential) -> dict[str, Tensor]:
    return {name: value for name, value in potential.state_dict().items() if name.startswith(("weights", "biases"))}


def _reach(discrepancy: float) -> float:
    """Fraction of the learning rate for a law this near: the way left is at most sqrt(2 KL), Adam's steps are not less.

    (Talagrand's inequality, in whitened coordinates of a Gaussian.)
    """
    return min(1.0, max(0.05, (discrepancy / 0.02) ** 0.5))
