"""Small steps to solve, shared by the tests of the engines: targets, particles, maps with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from oracles import WORKED, Problem
from torch import Tensor

from jkosampler.energies import KL, Energy, EnergyEvaluator, InternalEnergy
from jkosampler.engines import GradientFlow, Lagrangian, State
from jkosampler.engines.collocation import draw_ridge_functions
from jkosampler.engines.step_size import FixedSteps, StepControl
from jkosampler.laws import Gaussian, Law
from jkosampler.maps import GradientMap, Map, ODEMap
from jkosampler.metrics import Frame, as_metric
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential

__all__ = [
    "QUICK",
    "Square",
    "double_well",
    "draw",
    "evaluator",
    "exact_frame",
    "gaussian_law",
    "gaussian_log_target",
    "gradient_flow",
    "random_map",
    "ridge_potential",
    "seeded",
    "start",
]

QUICK: dict[str, Any] = {"n_iterations": 40, "width": 16, "n_ridges": 0}  # networks: n_ridges=None asks for ridges


class Square(InternalEnergy):
    """`int rho^2`, whose pressure is not the density's logarithm: the step must ask the energy for it."""

    def per_mass(self, log_rho: Tensor) -> Tensor:
        return log_rho.exp()

    def pressure_per_mass(self, log_rho: Tensor) -> Tensor:
        return log_rho.exp()

    def pressure_slope(self, log_rho: Tensor) -> Tensor:
        return 2.0 * log_rho.exp()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def evaluator(
    energy: Energy, dim: int = 2, *, dtype: torch.dtype = torch.float64, mass: float = 1.0
) -> EnergyEvaluator:
    return EnergyEvaluator(energy, dim=dim, dtype=dtype, device="cpu", mass=mass)


def double_well(x: Tensor) -> Tensor:
    """Two bent modes: no Gaussian, smooth, light tails."""
    bent = x[:, 1:] - 0.5 * x[:, :1].square()
    return -0.5 * (x[:, 0].square() - 1.0).square() - bent.square().sum(-1)


def gaussian_law(p: Problem) -> Gaussian:
    return Gaussian(p.m, p.S)


def gaussian_log_target(p: Problem) -> Callable[[Tensor], Tensor]:
    """Log density of N(b, A^-1) up to its constant."""
    precision, mean = torch.tensor(p.A), torch.tensor(p.b)
    return lambda x: -0.5 * (((x - mean) @ precision) * (x - mean)).sum(-1)


def gradient_flow(
    energy: Energy, law: Law, *, metric: str = "wasserstein", control: StepControl, n: int = 4000, seed: int = 0
) -> GradientFlow:
    """What an engine is given to solve."""
    return GradientFlow(evaluator(energy, law.dim), as_metric(metric), law, control, n, seeded(seed))


def start(
    log_target: Callable[[Tensor], Tensor] = double_well, tau: float = 0.2, **settings: Any
) -> tuple[Lagrangian, State]:
    """A quick engine for fixed Kalman steps, and the state that it starts in."""
    engine = Lagrangian(**(QUICK | settings))
    flow = gradient_flow(KL(log_target), gaussian_law(WORKED), metric="kalman", control=FixedSteps(tau, 1e-3), n=2500)
    return engine, engine.init(flow)


def draw(law: Law, n: int, seed: int = 0) -> Particles:
    return Particles.draw(law, n, seeded(seed))


def exact_frame(p: Problem, metric: str) -> Frame:
    """The frame of a metric at the start of a Gaussian problem, from its exact moments."""
    mean, covariance = torch.tensor(p.m), torch.tensor(p.S)
    if metric == "kalman":
        values, vectors = torch.linalg.eigh(covariance)
        return Frame(mean, (vectors * values.sqrt()) @ vectors.mT, 1.0)
    variance = float(covariance.trace()) / len(p.m)
    return Frame(mean, variance**0.5 * torch.eye(len(p.m), dtype=torch.float64), variance)


def random_map(kind: str, dim: int, seed: int = 0, *, size: float = 0.05, width: int = 6, depth: int = 2) -> Map:
    """A gradient map or ODE whose weights are all random, those of the last layer of the given size."""
    generator = seeded(seed)
    potential = ResNetPotential(dim, width=width, depth=depth, time_input=kind == "ode", generator=generator)
    with torch.no_grad():
        for parameter in (potential.output, potential.quadratic, potential.linear):
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return ODEMap(potential, inner_steps=2) if kind == "ode" else GradientMap(potential)


def ridge_potential(
    width: int = 8, seed: int = 0, size: float = 0.0, dim: int = 2, *, to_train: bool = False
) -> ResNetPotential:
    """A potential of depth 1 with random ridges; all other terms are of the given size."""
    generator = seeded(seed)
    potential = ResNetPotential(dim, width=width, depth=1, generator=generator)
    draw_ridge_functions(potential, generator, to_train=to_train)
    with torch.no_grad():
        potential.output += size * torch.randn(width, generator=generator, dtype=torch.float64)
        potential.quadratic += size * torch.eye(dim, dtype=torch.float64)
        potential.linear += size
    return potential
