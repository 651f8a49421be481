"""From the sampler's parameters to a problem that an engine can solve: checks, defaults, random generators."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from jkosampler.energies import KL, Energy, EnergyEvaluator
from jkosampler.engines import GradientFlow, Lagrangian
from jkosampler.engines.step_size import AdaptiveSteps, FixedSteps, StepControl
from jkosampler.errors import ArgumentError
from jkosampler.flow import FittedFlow
from jkosampler.laws import Gaussian, Law, Mixture, as_law
from jkosampler.metrics import as_metric
from jkosampler.particles import Particles
from jkosampler.targets import Target, as_target
from jkosampler.targets.base import one_dimension

if TYPE_CHECKING:
    from jkosampler.estimator import JKOSampler

__all__ = ["Setup", "as_points", "like_caller", "random_generator", "torch_threads"]

_PARTICLES = 16_000
_PARTICLES_PER_DIMENSION = 400
_KL_PER_DIMENSION = 1.5e-4  # below, a law counts as stationary: 2 % of a standard deviation in location


@dataclass
class Setup:
    """A checked problem with everything that the sampler needs beside the engine's state."""

    dim: int
    dtype: torch.dtype
    device: torch.device
    target: Target | None
    law: Law
    engine: Lagrangian
    problem: GradientFlow
    note: str | None
    flow: FittedFlow = field(init=False)

    @classmethod
    def of(cls, sampler: JKOSampler, X: Any, generator: torch.Generator) -> Setup:
        """Check a sampler's parameters and starting particles.

        Raises
        ------
        ArgumentError
            A parameter can't be used.
        """
        _refuse_what_is_not_there(sampler)
        dtype = torch.float64 if sampler.dtype is None else sampler.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}.")
        device = torch.device(sampler.device or "cpu")
        dim = _dimension(sampler, X)
        target = None if sampler.log_target is None else as_target(sampler.log_target, dim)
        particles = None if X is None else as_points(X, dim, dtype, device, name="X")
        law = _initial_law(sampler, target, particles, dim, generator).to(dtype, device)
        adaptive = sampler.step_size is None
        start, note = _carried(law) if adaptive else (law, None)
        energy = KL(target) if target is not None else sampler.energy
        n_particles = max(_PARTICLES, _PARTICLES_PER_DIMENSION * dim)
        problem = GradientFlow(
            energy=EnergyEvaluator(energy, dim=dim, dtype=dtype, device=device),
            metric=as_metric(sampler.metric or ("wasserstein" if target is None else "kalman")),
            law=start,
            control=_control(sampler, dim),
            n_particles=n_particles if sampler.n_particles is None else int(sampler.n_particles),
            generator=generator,
            start=None if particles is None else _at(start, particles),
        )
        return cls(dim, dtype, device, target, law, _engine(sampler.engine), problem, note)


def random_generator(random_state: Any) -> torch.Generator:
    """A torch generator from an int, a numpy Generator, a torch Generator (used as it is), or None (fresh entropy)."""
    if isinstance(random_state, torch.Generator):
        return random_state
    generator = torch.Generator()
    if random_state is None:
        generator.seed()
    elif isinstance(random_state, np.random.Generator):
        generator.manual_seed(int(random_state.integers(2**63)))
    elif isinstance(random_state, int | np.integer) and not isinstance(random_state, bool) and random_state >= 0:
        generator.manual_seed(int(random_state))
    else:
        raise ArgumentError(
            "random_state must be a non-negative int, a numpy Generator, a torch Generator or None, "
            f"got {random_state!r}."
        )
    return generator


def as_points(x: Any, dim: int, dtype: torch.dtype, device: torch.device, name: str = "x") -> Tensor:
    """Points (n, d) of an array or tensor.

    Raises
    ------
    ArgumentError
        The shape is another one, or a value is not finite.
    """
    try:
        points = x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name} must be an array of numbers of shape (n, {dim}).") from error
    if points.ndim != 2 or points.shape[1] != dim:
        raise ArgumentError(f"{name} must have shape (n, {dim}), got {tuple(points.shape)}.")
    points = points.to(device, dtype)
    if not bool(points.isfinite().all()):
        row = int((~points.isfinite()).any(1).nonzero()[0])
        raise ArgumentError(f"{name} must be finite, but row {row} is {points[row].tolist()}.")
    return points


def like_caller(values: Tensor, x: Any) -> Any:
    """Values as the caller's x came: a tensor on its device, else numpy float64."""
    if isinstance(x, Tensor):
        return values.to(x.device, x.dtype if x.is_floating_point() else values.dtype)
    return values.cpu().double().numpy()


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Run torch on so many threads, and put back what was set."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_what_is_not_there(sampler: JKOSampler) -> None:
    if (sampler.log_target is None) == (sampler.energy is None):
        raise ArgumentError("give either log_target or energy: exactly one of them says where the flow goes.")
    if sampler.energy is not None and not isinstance(sampler.energy, Energy):
        raise ArgumentError(f"energy must be an Energy, got {type(sampler.energy).__name__}.")
    for name, allowed in (("mobility", None), ("domain", None), ("checkpoint", None), ("order", 1)):
        if getattr(sampler, name) != allowed:
            raise ArgumentError(f"{name}={getattr(sampler, name)!r} is not in this version; only {allowed!r} is.")
    for name in ("step_size", "max_time", "max_target_evaluations"):
        value = getattr(sampler, name)
        if value is not None and not (isinstance(value, int | float | np.number) and 0 < float(value) < np.inf):
            raise ArgumentError(f"{name} must be positive and finite, or None, got {value!r}.")
    for name, least in (("n_steps", 0), ("n_particles", 2)):
        value = getattr(sampler, name)
        if value is not None and not (isinstance(value, int | np.integer) and value >= least):
            raise ArgumentError(f"{name} must be a whole number of at least {least}, or None, got {value!r}.")


def _dimension(sampler: JKOSampler, X: Any) -> int:
    """The dimension that dim, target, initial law and starting particles agree on."""
    known: dict[str, int | None] = {"dim": sampler.dim, "log_target": _dim_of(sampler.log_target, "log_target")}
    known["initial"] = _dim_of(sampler.initial, "initial")
    known["X"] = np.shape(X)[1] if X is not None and np.ndim(X) == 2 else None
    return one_dimension(known)


def _dim_of(thing: Any, name: str) -> int | None:
    """The dimension that a target or law knows of itself, if it does."""
    if hasattr(thing, "dim"):
        return int(thing.dim)
    return as_law(thing, name=name).dim if hasattr(thing, "log_prob") else None


def _initial_law(
    sampler: JKOSampler, target: Target | None, particles: Tensor | None, dim: int, generator: torch.Generator
) -> Law:
    if sampler.initial is not None:
        return as_law(sampler.initial, dim, name="initial")
    if particles is not None:
        warnings.warn(
            "initial=None: the density of the starting particles X is that of a Gaussian mixture fitted to them; "
            "give initial= to say which law they come from.",
            UserWarning,
            stacklevel=4,
        )
        return _fitted_mixture(particles, generator)
    if target is not None and target.prior is not None:
        return target.prior
    return Gaussian(torch.zeros(dim), torch.eye(dim))


def _fitted_mixture(particles: Tensor, generator: torch.Generator) -> Law:
    """A Gaussian mixture of 1 to 5 components, by the Bayesian information criterion."""
    x = particles.cpu().double().numpy()
    seed = int(torch.randint(2**31, (1,), generator=generator))
    most = max(1, min(5, len(x) // (10 * x.shape[1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
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


def _control(sampler: JKOSampler, dim: int) -> StepControl:
    threshold = _KL_PER_DIMENSION * dim
    if sampler.step_size is None:
        return AdaptiveSteps(threshold)
    return FixedSteps(float(sampler.step_size), threshold)


def _engine(engine: Any) -> Lagrangian:
    if engine is None or engine == "lagrangian":
        return Lagrangian()
    if isinstance(engine, Lagrangian):
        return engine
    raise ArgumentError(f"engine must be None, 'lagrangian' or an engines.Lagrangian, got {engine!r}.")
