"""From the sampler's parameters to an L2 flow of fields: checks and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from jkosampler._arguments import positive_number
from jkosampler._inputs import as_device, as_dtype, whole_number
from jkosampler.domains import Domain
from jkosampler.energies import Energy, FunctionalEvaluator, L2Functional
from jkosampler.engines import FieldFlow, FieldState, MinimizingMovement
from jkosampler.errors import ArgumentError
from jkosampler.fields import FittedFields, GivenField

if TYPE_CHECKING:
    from jkosampler.estimator import JKOSampler

__all__ = ["FieldSetup", "is_field_flow"]

_EXAMPLE = "domains.Box(-2, 2, dim=2)"


@dataclass(frozen=True)
class FieldSetup:
    """A checked L2 flow; what laws have and fields have not is None."""

    dim: int
    dtype: torch.dtype
    device: torch.device
    functional: Energy
    engine: MinimizingMovement
    problem: FieldFlow
    target: Any = None
    law: Any = None
    space: Any = None
    names: Any = None
    note: Any = None
    adaptive: bool = False

    @classmethod
    def of(cls, sampler: JKOSampler, X: Any, generator: torch.Generator) -> FieldSetup:
        """Check a sampler's parameters.

        Raises
        ------
        ArgumentError
            A parameter can't be used.
        """
        _refuse_what_fields_have_not(sampler, X)
        energy, domain, device = sampler.energy, sampler.domain, as_device(sampler.device)
        if not isinstance(energy, Energy):
            raise ArgumentError(f"energy must be an Energy for metric='l2', got {type(energy).__name__}.")
        if not isinstance(domain, Domain):
            raise ArgumentError(f"domain must be a Domain for metric='l2', such as {_EXAMPLE}, got {domain!r}.")
        if sampler.dim is not None and whole_number(sampler.dim, "dim", 1) != domain.dim:
            raise ArgumentError(f"dim={sampler.dim!r} is not that of the domain, {domain.dim}.")
        if sampler.initial is None or hasattr(sampler.initial, "log_prob") or not callable(sampler.initial):
            raise ArgumentError(
                "initial must be the field u at t = 0 for metric='l2', a callable (n, d) -> (n,), "
                f"got {type(sampler.initial).__name__}."
            )
        if sampler.step_size is None:
            raise ArgumentError("step_size: flows with metric='l2' need fixed steps; give step_size and n_steps.")
        if sampler.n_steps is None and sampler.max_time is None and sampler.max_target_evaluations is None:
            raise ArgumentError("n_steps: an L2 flow has no end of its own; give n_steps, or max_time.")
        if as_dtype(sampler.dtype) != torch.float64:
            raise ArgumentError(f"dtype={sampler.dtype!r}: fields are computed in float64; leave dtype out.")
        problem = FieldFlow(
            energy=FunctionalEvaluator(energy),
            domain=domain,
            initial=GivenField(sampler.initial, domain),
            step_size=positive_number(sampler.step_size, "step_size"),
            order=int(sampler.order),
            generator=generator,
            device=device,
        )
        return cls(domain.dim, torch.float64, device, energy, _engine(sampler.engine), problem)

    def begin(self) -> FieldState:
        """The engine's state before the first step."""
        return self.engine.init(self.problem)

    def solution(self, state: FieldState) -> FittedFields:
        """What a fit has found."""
        return FittedFields(self.problem.domain, state.fields, state.times)


def is_field_flow(sampler: JKOSampler) -> bool:
    """Whether an L2 flow is asked for, by the metric or, where that is left out, by the energy."""
    if sampler.metric is None and isinstance(sampler.energy, Energy):
        return all(isinstance(term, L2Functional) for _, term in sampler.energy.terms())
    return isinstance(sampler.metric, str) and sampler.metric.lower() == "l2"


def _refuse_what_fields_have_not(sampler: JKOSampler, X: Any) -> None:
    if sampler.log_target is not None:
        raise ArgumentError("log_target is for densities; metric='l2' takes an energy of fields, such as Dirichlet.")
    if X is not None:
        raise ArgumentError("X: the flow of a field has no particles; give initial=, a callable.")
    for name, alternative in (("mobility", "another energy"), ("n_particles", "MinimizingMovement(n_quadrature=)")):
        if getattr(sampler, name) is not None:
            raise ArgumentError(f"{name} is for flows of densities; with metric='l2' take {alternative}.")
    if sampler.n_steps is not None:
        whole_number(sampler.n_steps, "n_steps", 0)


def _engine(engine: Any) -> MinimizingMovement:
    if engine is None or (isinstance(engine, str) and engine == "minimizing-movement"):
        return MinimizingMovement()
    if isinstance(engine, MinimizingMovement):
        return engine
    raise ArgumentError(
        f"engine must be None, 'minimizing-movement' or an engines.MinimizingMovement for metric='l2', got {engine!r}."
    )
