"""From the sampler's parameters to a problem that an engine can solve: checks and defaults."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from jkosampler._arguments import warn_user
from jkosampler._black_box_start import black_box_start
from jkosampler._inputs import as_device, as_dtype, starting_particles, whole_number
from jkosampler._scout import scout
from jkosampler._setup_fields import FieldSetup, is_field_flow
from jkosampler._surroundings import ignoring
from jkosampler.domains import Box, Domain
from jkosampler.energies import KL, Energy, EnergyEvaluator, InternalEnergy, L2Functional
from jkosampler.engines import GradientFlow, Lagrangian, MinimizingMovement, State
from jkosampler.engines.density_networks import DensityNetworks, DensityState
from jkosampler.engines.push_forward import PushForward
from jkosampler.engines.step_size import AdaptiveSteps, FixedSteps, StepControl
from jkosampler.errors import ArgumentError
from jkosampler.flow import FittedDensities, FittedFlow
from jkosampler.laws import DensityOnBox, Gaussian, Law, Mixture, as_law
from jkosampler.metrics import Metric, as_metric
from jkosampler.mobility import Mobility, as_mobility
from jkosampler.particles import Particles
from jkosampler.targets import Space, Target, as_target
from jkosampler.targets.base import one_dimension

if TYPE_CHECKING:
    from jkosampler.estimator import JKOSampler

__all__ = ["Setup", "check_that_it_ends", "checked"]

_PARTICLES = 16_000
_PARTICLES_PER_DIMENSION = 400
_MORE_WITH_MOBILITY = 4  # particles show where a step would leave the allowed densities
_FEWER_TO_PULL_BACK = 4  # each is moved by inverting a map, or drawn anew by rejection
_EXPLICIT_PARTICLES, _EXPLICIT_PER_DIMENSION = 1500, 100
# Collocation: dimensions where no other map is as good; elsewhere it is tried from so many nats on, and, in so many
# dimensions, from more where the emulator of a log density would lead a network astray.
_FEW_DIMENSIONS, _NEAR = 1, 0.1
_EMULATED_DIMENSIONS, _NEAR_BY_EMULATORS = 10, 1.0
_KL_PER_DIMENSION = 1.5e-4  # below, a law counts as stationary: 2 % of a standard deviation in location


_ENGINES = {"lagrangian": Lagrangian, "minimizing-movement": MinimizingMovement}


@dataclass(frozen=True)
class Setup:
    """A checked problem with everything that the sampler needs beside the engine's state.

    All of it is in R^d; `space` says what the user's parameters are, where these are not the coordinates. `functional`
    is the energy; `law` is the law at t = 0 as the user gave it, and `note` says what the particles start from
    instead, if they do. `adaptive` says whether the step sizes are the engine's to choose.
    """

    dim: int
    dtype: torch.dtype
    device: torch.device
    target: Target | None
    functional: Energy
    law: Law
    engine: Lagrangian | DensityNetworks
    problem: GradientFlow
    note: str | None
    adaptive: bool
    space: Space | None
    names: list[str] | None  # of coordinates, also where a file is read without its target

    @classmethod
    def of(cls, sampler: JKOSampler, X: Any, generator: torch.Generator) -> Setup:
        """Check a sampler's parameters and starting particles.

        Raises
        ------
        ArgumentError
            A parameter can't be used.
        """
        dtype, device, dim = as_dtype(sampler.dtype), as_device(sampler.device), _dimension(sampler, X)
        given = None if sampler.log_target is None else as_target(sampler.log_target, dim)
        space, target = (None, None) if given is None else (given.space, given.unconstrained)
        dim = dim if space is None else space.dim
        energy = sampler.energy if target is None else KL(target)
        _check_energy(energy)
        check_that_it_ends(sampler, energy, sampler.n_steps)
        particles = None if X is None else starting_particles(X, dim, dtype, device, space)
        engine = _engine(sampler)
        law = _initial_law(sampler, target, particles, dim, generator)  # over R^d
        law, outside = _inside(law, sampler.domain)
        law = law.to(dtype, device)
        adaptive = sampler.step_size is None
        start, note = _carried(law) if adaptive else (law, outside)
        n_particles = max(_PARTICLES, _PARTICLES_PER_DIMENSION * dim)
        if _is_explicit(engine):
            n_particles = _EXPLICIT_PARTICLES + _EXPLICIT_PER_DIMENSION * dim
        if sampler.mobility is not None:
            n_particles *= _MORE_WITH_MOBILITY
        if isinstance(engine, PushForward | DensityNetworks):
            n_particles //= _FEWER_TO_PULL_BACK
        problem = GradientFlow(
            energy=EnergyEvaluator(energy, dim=dim, dtype=dtype, device=device, mass=law.mass),
            metric=_metric(sampler.metric, "wasserstein" if target is None or sampler.domain is not None else "kalman"),
            law=start,
            control=_control(sampler, engine, dim, target),
            n_particles=n_particles if sampler.n_particles is None else int(sampler.n_particles),
            generator=generator,
            start=None if particles is None else _at(start, particles),
            order=int(sampler.order),
            mobility=_mobility(sampler),
            walls=law.box if isinstance(law, DensityOnBox) else None,
        )
        names = None if target is None else target.names
        return cls(dim, dtype, device, target, energy, law, engine, problem, note, adaptive, space, names)

    def scouted(self, generator: torch.Generator) -> Setup:
        """The same with a start on the target's separated modes, where there are any that a flow would not reach."""
        problem = self.problem
        if self.target is None or not self.adaptive or problem.start is not None or self.dtype != torch.float64:
            return self
        if _is_explicit(self.engine):  # a fit may cost less than to look for modes
            return self
        assert isinstance(problem.energy, EnergyEvaluator)
        if not self.target.differentiable:
            begun = black_box_start(problem.energy, problem.law, generator)
            if begun is None:
                return self
            law, what = begun
            note = (
                f"initial: the target has no gradient; the fit starts from {what} where an emulator, which learnt from "
                f"{problem.energy.n_evaluations} evaluations, sees the target, instead of the {self.law.describe()}. "
                "log_density(x, t=0) is still that of the law given."
            )
            assert isinstance(problem.control, AdaptiveSteps)
            # each step costs an emulator, and its rejected successor another
            near = replace(problem.control, first_tau=problem.control.largest_affine_tau, retries=1)
            return replace(self, problem=replace(problem, law=law, control=near), note=note)
        found = scout(problem.energy, problem.law, generator)
        if found is None:
            return self
        note = (
            f"initial: the target has separated modes, between which a flow moves no mass; it starts from "
            f"{found.mixtures.describe()} on them instead of the {self.law.describe()}. log_density(x, t=0) is still "
            "that of the law given."
        )
        return replace(self, problem=replace(problem, law=found.mixtures.law), note=note)

    def begin(self) -> State | DensityState:
        """The engine's state before the first step."""
        return self.engine.init(self.problem)

    def solution(self, state: State | DensityState) -> FittedFlow | FittedDensities:
        """What a fit has found."""
        if isinstance(state, DensityState):
            return FittedDensities(state.laws, state.times)
        return FittedFlow(self.law, self.problem.law, state.maps, state.times)


def checked(sampler: JKOSampler, X: Any, generator: torch.Generator) -> Setup | FieldSetup:
    """What a sampler's parameters ask for: a flow of densities, or one of fields."""
    _refuse_what_is_not_there(sampler)
    if not isinstance(sampler.domain, Domain | None):
        raise ArgumentError(f"domain must be one of jkosampler.domains, or None for R^d, got {sampler.domain!r}.")
    if is_field_flow(sampler):
        return FieldSetup.of(sampler, X, generator)
    _metric(sampler.metric, "wasserstein")
    if isinstance(sampler.energy, Energy) and any(isinstance(term, L2Functional) for _, term in sampler.energy.terms()):
        raise ArgumentError(f"metric={sampler.metric!r}: energies of fields have their flow in the L2 metric, 'l2'.")
    if sampler.initial is not None and isinstance(sampler.initial, Tensor | np.ndarray | list | tuple):
        raise ArgumentError(
            "initial must be a law of jkosampler.laws or a torch Distribution, got points or numbers; starting "
            "particles go to fit(X)."
        )
    return Setup.of(sampler, X, generator)


def check_that_it_ends(sampler: JKOSampler, energy: Energy, n_steps: int | None) -> None:
    """Refuse a fit that nothing would end.

    Raises
    ------
    ArgumentError
        The energy has no minimum, as the heat equation's has none, and neither steps nor budgets are limited.
    """
    internal = [isinstance(term, InternalEnergy) for _, term in energy.terms()]
    counted = not all(internal) and sampler.max_target_evaluations is not None
    if (all(internal) or not any(internal)) and n_steps is None and sampler.max_time is None and not counted:
        raise ArgumentError(
            f"n_steps: the flow of {energy!r} never becomes stationary; give n_steps"
            f"{' with step_size' if sampler.step_size is not None else ''}, or max_time."
        )


def _refuse_what_is_not_there(sampler: JKOSampler) -> None:
    if (sampler.log_target is None) == (sampler.energy is None):
        raise ArgumentError("give either log_target or energy: exactly one of them says where the flow goes.")
    if sampler.energy is not None and not isinstance(sampler.energy, Energy):
        raise ArgumentError(f"energy must be an Energy, got {type(sampler.energy).__name__}.")
    if whole_number(sampler.order, "order", 1) > 2:
        raise ArgumentError(f"order must be 1 or 2, got {sampler.order!r}.")
    if sampler.order == 2 and sampler.step_size is None:
        raise ArgumentError(
            "order=2 is that of fixed steps: give step_size; without it only the end of the flow matters."
        )
    for name in ("step_size", "max_time", "max_target_evaluations"):
        value = getattr(sampler, name)
        if value is not None and not _is_positive(value):
            raise ArgumentError(f"{name} must be positive and finite, or None, got {value!r}.")
    for name, least in (("n_steps", 0), ("n_particles", 2)):
        if getattr(sampler, name) is not None:
            whole_number(getattr(sampler, name), name, least)


def _is_positive(value: Any) -> bool:
    """Whether it is one real, positive number that a float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    # whole numbers may be too large for a float
    return bool(0 < value < math.inf and math.log(value) <= math.log(sys.float_info.max))


def _dimension(sampler: JKOSampler, X: Any) -> int:
    """The dimension that dim, target, initial law and starting particles agree on: columns of the user's points."""
    known: dict[str, int | None] = {"dim": sampler.dim, "log_target": _dim_of(sampler.log_target, "log_target")}
    for _, term in [] if sampler.energy is None else sampler.energy.terms():
        if isinstance(term, KL):
            known["energy"] = _dim_of(term.log_target, "log_target")
    if not _is_constrained(sampler.log_target):  # else they are over other coordinates
        known["domain"] = _dim_of(sampler.domain, "domain")
        known["initial"] = _dim_of(sampler.initial, "initial")
    elif sampler.domain is not None:
        raise ArgumentError("domain: the parameters of log_target have constraints of their own; leave domain out.")
    known["X"] = np.shape(X)[1] if X is not None and np.ndim(X) == 2 else None
    return one_dimension(known)


def _dim_of(thing: Any, name: str) -> int | None:
    """The dimension that a target or law knows of itself, if it does."""
    dim = getattr(thing, "dim", None)
    if dim is None:
        return as_law(thing, name=name).dim if hasattr(thing, "log_prob") else None
    if not isinstance(dim, int | np.integer):
        raise ArgumentError(
            f"{name}: its attribute `dim` must be a whole number, got {'a method' if callable(dim) else repr(dim)}; "
            f"give a function without it, such as {name}=lambda x: ..., and dim= to the sampler."
        )
    return int(dim)


def _is_constrained(target: Any) -> bool:
    return isinstance(target, Target) and target.space is not None


def _check_energy(energy: Energy) -> None:
    """Refuse constrained targets as a part of an energy."""
    for _, term in energy.terms():
        if isinstance(term, KL) and _is_constrained(term.log_target):
            raise ArgumentError("energy: KL of a constrained target is not in this version; give it as log_target=.")


def _initial_law(
    sampler: JKOSampler, target: Target | None, particles: Tensor | None, dim: int, generator: torch.Generator
) -> Law:
    if isinstance(sampler.domain, Box) and callable(sampler.initial) and not hasattr(sampler.initial, "log_prob"):
        return DensityOnBox(sampler.initial, sampler.domain)
    if sampler.initial is not None:
        law = as_law(sampler.initial, name="initial")
        if law.dim != dim and _is_constrained(sampler.log_target):
            raise ArgumentError(
                f"initial must be over the {dim} unconstrained coordinates of the target's parameters, but "
                f"{law.describe()} has dimension {law.dim}; particles with the parameters' columns go to fit(X)."
            )
        return as_law(law, dim, name="initial")
    if particles is not None:
        warn_user(
            "initial=None: the density of the starting particles X is that of a Gaussian mixture fitted to them; "
            "give initial= to say which law they come from."
        )
        return _fitted_mixture(particles, generator)
    if target is not None and target.prior is not None:
        prior = target.prior
        if not _is_constrained(sampler.log_target):
            return prior
        # a prior of z has tails like those of an exponential law, which a flow is long in making Gaussian
        return Gaussian(prior.mean, prior.covariance).with_mass(prior.mass)
    return Gaussian(torch.zeros(dim), torch.eye(dim))


def _inside(law: Law, domain: Any) -> tuple[Law, str | None]:
    """A law on a box, and a note of what is left out; elsewhere the law itself."""
    if not isinstance(domain, Box) or isinstance(law, DensityOnBox):
        return law, None
    restricted = DensityOnBox(lambda x: law.mass * law.log_prob(x).exp(), domain, law=law)
    left_out = max(0.0, 1.0 - restricted.mass / law.mass)
    return restricted, (
        f"initial: a share of {left_out:.2g} of the mass of the {law.describe()} lies outside the domain and is left "
        "out; no mass passes the walls of the domain."
    )


def _fitted_mixture(particles: Tensor, generator: torch.Generator) -> Law:
    """A Gaussian mixture of 1 to 5 components, by the Bayesian information criterion."""
    x = particles.cpu().double().numpy()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    most = max(1, min(5, len(x) // (10 * x.shape[1])))
    with ignoring(ConvergenceWarning):
        fits = [GaussianMixture(k, random_state=seed).fit(x) for k in range(1, most + 1)]
    best = min(fits, key=lambda fit: fit.bic(x))
    parts = [Gaussian(m, c) for m, c in zip(best.means_, best.covariances_, strict=True)]
    return Mixture(best.weights_, parts) if len(parts) > 1 else parts[0]


def _at(law: Law, x: Tensor) -> Particles:
    log_rho = law.log_prob(x)
    if not bool(log_rho.isfinite().all()):
        row = int((~log_rho.isfinite()).nonzero()[0])
        raise ArgumentError(f"X: row {row} lies outside the support of initial, {law.describe()}.")
    return Particles(x, log_rho, None if law.has_jump else law.score(x))


def _carried(law: Law) -> tuple[Law, str | None]:
    """The law that particles can carry, and a note where it is not the user's."""
    if not law.has_jump:
        return law, None
    smooth = law.smoothed()
    return smooth, (
        f"initial: the density of the {law.describe()} jumps at its edge, where it has no score; the particles start "
        f"from a smooth law of the same mean and covariance instead, {smooth.describe()}. log_density(x, t=0) is "
        "still that of the law given."
    )


def _metric(metric: Any, default: str) -> Metric:
    if isinstance(metric, str) and metric != metric.lower():
        known = as_metric(metric.lower())
        raise ArgumentError(f"metric={metric!r}: names of metrics are lower case, give {known.name!r}.")
    return as_metric(default if metric is None else metric)


def _mobility(sampler: JKOSampler) -> Mobility | None:
    mobility = as_mobility(sampler.mobility)
    if mobility is not None and sampler.step_size is None:
        raise ArgumentError("mobility: flows with a mobility need fixed steps; give step_size and n_steps.")
    if mobility is not None and sampler.order != 1:
        raise ArgumentError("order=2 is for the linear mobility; with mobility= take order=1 and a smaller step_size.")
    return mobility


def _control(sampler: JKOSampler, engine: Lagrangian | DensityNetworks, dim: int, target: Target | None) -> StepControl:
    threshold = _KL_PER_DIMENSION * dim
    if sampler.step_size is None:
        near = math.inf if dim <= _FEW_DIMENSIONS or _is_explicit(engine) else _NEAR
        control = AdaptiveSteps(threshold, collocation_below=near)
        if target is not None and not target.differentiable:
            # an emulator learns from failures, and leads less far astray in short steps
            if target.outputs_are_densities and dim <= _EMULATED_DIMENSIONS:
                control = replace(control, collocation_below=max(near, _NEAR_BY_EMULATORS))
            shortest = control.second_tau
            return replace(control, collocation_retries=2, shorter_network=1e-6, shortest_network=shortest)
        return control
    return FixedSteps(float(sampler.step_size), threshold, int(sampler.order))


def _is_explicit(engine: Lagrangian | DensityNetworks) -> bool:
    return isinstance(engine, Lagrangian) and engine.potential == "explicit"


def _engine(sampler: JKOSampler) -> Lagrangian | DensityNetworks:
    """The engine for a flow of densities; a domain asks for the minimizing-movement engine."""
    engine = sampler.engine
    if engine is None:
        engine = "lagrangian" if sampler.domain is None else "minimizing-movement"
    if isinstance(engine, str) and engine in _ENGINES:
        engine = _ENGINES[engine]()
    if isinstance(engine, MinimizingMovement):
        _check_pull_back(sampler)
        return engine.for_densities()
    if not isinstance(engine, Lagrangian):
        raise ArgumentError(
            f"engine must be None, one of {sorted(_ENGINES)}, an engines.Lagrangian or an engines.MinimizingMovement, "
            f"got {engine!r}."
        )
    if sampler.domain is not None:
        raise ArgumentError("domain: the Lagrangian engine moves particles in R^d; take engine='minimizing-movement'.")
    return engine


def _check_pull_back(sampler: JKOSampler) -> None:
    """Refuse what the minimizing-movement engine has not for densities."""
    if sampler.domain is not None and not isinstance(sampler.domain, Box):
        raise ArgumentError(
            f"domain must be a domains.Box or None (R^d) for a flow of densities, got {sampler.domain!r}."
        )
    if sampler.domain is not None and as_metric(sampler.metric or "wasserstein").name != "wasserstein":
        raise ArgumentError(f"metric={sampler.metric!r}: between walls it is 'wasserstein'; leave domain out for R^d.")
    if sampler.step_size is None:
        raise ArgumentError("step_size: engine='minimizing-movement' needs fixed steps; give step_size and n_steps.")
    if sampler.order != 1:
        raise ArgumentError("order=2 of engine='minimizing-movement' is for L2 flows; engine='lagrangian' has it here.")
    if sampler.mobility is not None:
        raise ArgumentError("mobility is not for engine='minimizing-movement'; engine='lagrangian' has it.")
