"""The network of a step: which map is trained, how long, and by which gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from jkosampler.engines.affine import AffineSolution, set_affine
from jkosampler.engines.step_size import Control
from jkosampler.engines.training import TrainingSettings
from jkosampler.maps import GradientMap, Map, ODEMap
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential

if TYPE_CHECKING:
    from jkosampler.engines.lagrangian import Lagrangian

__all__ = ["GRADIENT_MAP_LIMIT", "default_gradient", "is_like", "is_ode", "network_map", "training_settings"]

GRADIENT_MAP_LIMIT = 32  # the exact log det costs O(d^3) a particle: beyond, the trace of an ODE is cheaper
_HUTCHINSON_LIMIT = 512  # the exact trace costs O(m^2 d) a particle: beyond, probes are cheaper


def is_ode(engine: Lagrangian, dim: int) -> bool:
    """Whether the networks of an engine are those of an ODE."""
    return engine.map == "ode" or (engine.map is None and dim > GRADIENT_MAP_LIMIT)


def network_map(
    engine: Lagrangian,
    affine: AffineSolution,
    guess: nn.Module | None,
    generator: torch.Generator,
    *,
    dtype: torch.dtype,
    effort: int,
) -> Map:
    """A map to train: the affine solution, and a network that is still zero, with the hidden layers of the last one."""
    d, like = len(affine.shift), affine.shift
    ode = is_ode(engine, d)
    potential = ResNetPotential(
        d,
        width=engine.width,
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


def training_settings(engine: Lagrangian, control: Control, discrepancy: float) -> TrainingSettings:
    """How a network is trained for a law of this discrepancy."""
    return TrainingSettings(
        n_iterations=control.effort * (engine.n_iterations or (300 if control.exact else 200)),
        batch_size=engine.batch_size,
        learning_rate=engine.learning_rate * _reach(discrepancy),
        optimizer=engine.optimizer,
        tolerance=engine.tolerance,
        resample_every=engine.resample_every,
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
