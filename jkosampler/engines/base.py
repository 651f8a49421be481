"""What every engine shares: the flow to compute, the state between steps, the record of a step.

`Engine.init(flow) -> state` and `Engine.step(state) -> (state, info)`: the state is all that the next step needs,
the info is what the history keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from sklearn.utils import Bunch
from torch import Tensor, nn

from jkosampler.diagnostics import Evidence
from jkosampler.domains import Box
from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.step_size import Control, StepControl
from jkosampler.laws import Law
from jkosampler.maps import Map
from jkosampler.metrics import Metric
from jkosampler.mobility import Mobility
from jkosampler.particles import Particles

__all__ = ["Engine", "GradientFlow", "State"]


@dataclass(frozen=True)
class GradientFlow:
    """What is to be computed, and where its randomness comes from.

    `law` is the start that the particles can carry: the user's law, or its smooth stand-in. `start` are the particles
    to begin with, where the user gave some. `order` is that of fixed steps in time; `mobility` None is the
    linear one; no mass passes the `walls`, if there are any.
    """

    energy: EnergyEvaluator
    metric: Metric
    law: Law
    control: StepControl
    n_particles: int
    generator: torch.Generator
    start: Particles | None = None
    order: int = 1
    mobility: Mobility | None = None
    walls: Box | None = None


@dataclass(frozen=True)
class State:
    """The flow after some steps.

    `pool` are the particles that steps are solved on. Held-out particles of the same law judge the steps: `check`,
    with the energy `values` (n,) at each, +inf where no mass may be; and many more `outposts`, at which a map must
    not fold. `claims` are what the importance weights of this law and those before it say of the evidence, where they
    say anything; `missing_evidence` is a sentence when one of them contradicts the last. `warm_start` is the last
    potential with ridges or a network, or the last field of a flow with a mobility. `far` are points out to the tails
    that the push-forward engine solves its steps on, beside the pool. `emulated` is the energy in which an explicit
    step is made.
    """

    flow: GradientFlow
    control: Control
    pool: Particles
    check: Particles
    values: Tensor
    outposts: Particles
    maps: tuple[Map, ...] = ()
    times: tuple[float, ...] = (0.0,)
    discrepancy: float = float("inf")
    dissipation: float = float("inf")
    stopped: str | None = None
    converged: bool = False
    claims: tuple[Evidence, ...] = ()
    missing_evidence: str | None = None
    warm_start: nn.Module | None = None
    far: Particles | None = None
    emulated: EnergyEvaluator | None = None

    @property
    def n_steps(self) -> int:
        """Steps made."""
        return len(self.maps)


class Engine(Protocol):
    """Solves the steps of a gradient flow."""

    def init(self, flow: GradientFlow) -> State:
        """The state before the first step."""
        ...

    def step(self, state: State) -> tuple[State, Bunch | None]:
        """One accepted step and its record; the record is None when no step could be accepted."""
        ...

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The engine's settings."""
        ...
