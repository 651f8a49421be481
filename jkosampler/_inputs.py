"""What users hand in, made ready: random states, points, counts, times, devices."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError

if TYPE_CHECKING:
    from jkosampler.targets import Space

__all__ = [
    "as_device",
    "as_dtype",
    "as_points",
    "flow_time",
    "like_caller",
    "random_generator",
    "starting_particles",
    "step_at",
    "whole_number",
]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def random_generator(random_state: Any) -> torch.Generator:
    """A torch generator from an int, a numpy generator, a torch Generator (used as it is), or None (fresh entropy)."""
    if isinstance(random_state, torch.Generator):
        return random_state
    generator = torch.Generator()
    if random_state is None:
        generator.seed()
    elif isinstance(random_state, np.random.Generator):
        generator.manual_seed(int(random_state.integers(2**63)))
    elif isinstance(random_state, np.random.RandomState):
        generator.manual_seed(int(random_state.randint(2**63 - 1, dtype=np.int64)))
    elif type(random_state) is not bool and isinstance(random_state, int | np.integer) and 0 <= random_state < 2**64:
        generator.manual_seed(int(random_state))
    else:
        raise ArgumentError(
            "random_state must be a non-negative int below 2^64, a numpy Generator or RandomState, a torch Generator "
            f"or None, got {random_state!r}."
        )
    return generator


def as_points(x: Any, dim: int, dtype: torch.dtype, device: torch.device, name: str = "x") -> Tensor:
    """A copy of the points (n, d) of an array or tensor.

    Raises
    ------
    ArgumentError
        The shape is another one, or a value is not finite.
    """
    if np.ma.is_masked(x):
        raise ArgumentError(f"{name} has masked entries: leave out the rows that hold them.")
    try:
        if not isinstance(x, Tensor):
            x = np.asarray(x)  # which a cast to float would make real, with a warning, where it is complex
            x = x if np.iscomplexobj(x) else torch.from_numpy(np.array(x, dtype=np.float64))
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"{name} must be an array of numbers of shape (n, {dim}).") from error
    if not isinstance(x, Tensor) or x.is_complex():
        raise ArgumentError(f"{name} must be real, got complex numbers.")
    points = x.detach().clone()
    if points.ndim != 2 or points.shape[1] != dim:
        raise ArgumentError(f"{name} must have shape (n, {dim}), got {tuple(points.shape)}.")
    points = points.to(device, dtype)
    if not bool(points.isfinite().all()):
        row = int((~points.isfinite()).any(1).nonzero()[0])
        raise ArgumentError(f"{name} must be finite, but row {row} is {points[row].tolist()}.")
    return points


def starting_particles(
    X: Any, dim: int, dtype: torch.dtype, device: torch.device, space: Space | None = None
) -> Tensor:
    """Particles (n, d) to start from, spread in every direction; X are their parameters where there is a space.

    Raises
    ------
    ArgumentError
        They can't be particles of a law with a density over R^d.
    """
    particles = as_points(X, dim if space is None else space.n_columns, dtype, device, name="X")
    if space is not None:
        try:
            particles = space.to_unconstrained(particles)
        except ArgumentError as error:
            raise ArgumentError(f"X: {error}") from error
    n = len(particles)
    flaw = None
    if n <= dim:
        flaw = f"has {n} row{'s' if n != 1 else ''}"
    elif bool((particles == particles[0]).all()):
        flaw = "repeats one point"
    else:
        deviation, centre = torch.std_mean(particles.double(), dim=0)
        scaled = (particles.double() - centre) / torch.where(deviation > 0, deviation, 1.0)
        if int(torch.linalg.matrix_rank(scaled)) < dim:
            flaw = "lies in a plane of fewer than d dimensions"
    if flaw is not None:
        raise ArgumentError(
            f"X {flaw}, but must hold at least d + 1 = {dim + 1} particles that are spread in every direction. X are "
            "the particles that the fit starts from, not data to fit (y is ignored); data belong into log_target."
        )
    return particles


def like_caller(values: Tensor, x: Any) -> Any:
    """Values as the caller's x came: a tensor on its device, else numpy float64."""
    if isinstance(x, Tensor):
        return values.to(x.device, x.dtype if x.is_floating_point() else values.dtype)
    return values.cpu().double().numpy()


def whole_number(value: Any, name: str, least: int) -> int:
    """A whole number of at least so much.

    Raises
    ------
    ArgumentError
        It is anything else.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value < 2**63:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def flow_time(t: Any) -> float | None:
    """A flow time, or None for the last.

    Raises
    ------
    ArgumentError
        It is not a number.
    """
    if t is None:
        return None
    try:
        if isinstance(t, str | bytes) or np.ndim(t) != 0:
            raise TypeError
        return float(t)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"t must be one number, a flow time of the fit, or None, got {t!r}.") from error


def step_at(times: Sequence[float], t: float | None) -> tuple[int, float]:
    """Which step of a fit leads to time t (None: the last), and the fraction of it made by then; step 0 is the start.

    Raises
    ------
    ArgumentError
        t is not among the times of the fit.
    """
    t = times[-1] if t is None else float(t)
    tolerance = 1e-9 * max(1.0, times[-1])  # times are sums of step sizes, users' are products
    if not -tolerance <= t <= times[-1] + tolerance:
        raise ArgumentError(f"t must lie in [0, {times[-1]:.6g}], the times of the fit, got {t!r}.")
    if t <= tolerance:
        return 0, 1.0
    k = min(bisect_left(times, t - tolerance), len(times) - 1)
    if abs(t - times[k]) <= tolerance:
        return k, 1.0
    return k, min(1.0, (t - times[k - 1]) / (times[k] - times[k - 1]))


def as_dtype(dtype: Any) -> torch.dtype:
    """float32 or float64, also by name; None is float64."""
    if dtype is None:
        return torch.float64
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in _DTYPES.values():
        raise ArgumentError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}.")
    return found


def as_device(device: Any) -> torch.device:
    """A device that torch can compute on here; None is the CPU."""
    try:
        found = torch.device("cpu" if device is None else device)
        torch.zeros(1, device=found).item()
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # the last: torch without CUDA
        reason = str(error).partition("\n")[0]
        raise ArgumentError(f"device={device!r} can't be used here: {reason}. device=None is the CPU.") from error
    return found
