"""Calls of a target by an engine: counted, checked, and with gradients.

Whatever a user's function may return, the engines see finite values or -inf, and finite gradients, or an
error that names the first offending points. Exceptions of the user's own code pass, with a note on the call, but for
two kinds that become a `TargetCallError`: those that a function not written for batches of torch points raises at once,
and later those of numbers that it can't compute with, which a fit takes as a bad step and tries a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from jkosampler.errors import (
    JKOSamplerError,
    StartError,
    TargetCallError,
    TargetError,
    TargetGradientError,
    TargetShapeError,
    TargetValueError,
    describe_points,
)
from jkosampler.targets.base import Target

__all__ = ["TargetEvaluator"]

# One of them differs from every d, and 1 finds a `squeeze()` that takes one axis too many.
PROBE_SIZES = (1, 3)
_REWRITE = "Write it in torch operations on x (torch.exp for np.exp or math.exp), or take targets.from_numpy"
# What torch raises of wrong dtypes and axes, of x[1] in a batch of one, and of float(x) or math.exp(x) in a larger one.
_USUAL = (RuntimeError, IndexError, TypeError, ValueError)
# What torch's distributions, math and factorisations raise of parameters that over- or underflow.
_NUMERICAL = (ValueError, ArithmeticError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


class TargetEvaluator:
    """A target as the engines call it.

    Parameters
    ----------
    target : Target
    dtype : torch.dtype
        Of the points handed to the target, and of what is returned.
    device : torch.device or str

    Attributes
    ----------
    differentiable : bool
        Whether gradients are the target's own.
    n_evaluations : int
        Points at which the target was evaluated.
    n_calls : int
        Batched calls.
    spread : callable, optional
        `spread(kind, x)` has the rows evaluated in its own way, by several processes say; None: here.
    """

    differentiable = True
    spread: Callable[[str, Tensor], Tensor] | None = None

    def __init__(self, target: Target, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        self.target = target
        self.dtype = dtype
        self.device = torch.device(device)
        self.n_evaluations = 0
        self.n_calls = 0
        # what `spread` has learnt: seconds by kind of rows, and the columns of the last ones
        self.seconds_a_point: dict[str, float] = {}
        self.n_outputs = 0
        self._probed = False
        self._differentiated = False

    def remember(self, other: TargetEvaluator) -> None:
        """Count on, and know what is known, where another evaluator of the same target has come to."""
        self.n_evaluations, self.n_calls, self.n_outputs = other.n_evaluations, other.n_calls, other.n_outputs
        self.seconds_a_point = dict(other.seconds_a_point)
        self._probed, self._differentiated = other._probed, other._differentiated

    def log_density(self, x: Tensor) -> Tensor:
        """Log density (n,) at x (n, d), without gradient.

        Raises
        ------
        TargetShapeError
            The target doesn't return a torch tensor of shape (n,).
        TargetValueError
            It returns NaN or +inf at some points; -inf is legal.
        TargetCallError
            It raises ValueError, ArithmeticError or LinAlgError, or, while `probe` has not passed yet, RuntimeError,
            IndexError or TypeError.
        """
        with torch.inference_mode(False), torch.no_grad(), _NoteOnError(self._shape(x), self.dtype, not self._probed):
            # a copy, since a function that works in place would move the particles
            x = x.detach().to(self.device, self.dtype, copy=True)
            return self._checked_value(self._log_density(x), x)

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (n,) and its gradient (n, d) at x (n, d); the gradient is zero where the density is.

        Raises
        ------
        TargetShapeError, TargetValueError
            As `log_density`.
        TargetCallError
            As `log_density`, or the gradient raises one of these; the last three until the first gradient has passed.
        TargetGradientError
            The result is cut off from x, or the gradient is not finite at some points, or there is none.
        """
        if not self.target.differentiable:
            raise TargetGradientError(
                "The target says differentiable=False: it has no gradient, and an emulator of it is what engines take."
            )
        first = not self._differentiated
        with torch.inference_mode(False), torch.enable_grad(), _NoteOnError(self._shape(x), self.dtype, first):
            x = x.detach().to(self.device, self.dtype, copy=True)
            rows = self._spread_rows("gradient", x)
            value, gradient = self._checked_value(rows[:, 0], x), rows[:, 1:]
        self._differentiated = True
        gradient = torch.where(value.isneginf()[:, None], 0.0, gradient)
        self._refuse_points(
            ~gradient.isfinite().all(dim=1),
            x,
            TargetGradientError,
            "The gradient of the log density is NaN or infinite",
            "Usual causes are sqrt, abs or a norm at 0, and torch.where around an overflow: "
            "clamp the argument before the function.",
        )
        return value, gradient

    def check_start(self, x: Tensor) -> Tensor:
        """Log density (n,) at the start of the particles.

        Raises
        ------
        StartError
            It is -inf at every particle.
        """
        value = self.log_density(x)
        if bool(value.isneginf().all()):
            self._refuse_points(
                value.isneginf(),
                x,
                StartError,
                "The target is zero (log density -inf) at every particle of the start",
                "Give an initial law that puts particles where the target is positive.",
            )
        return value

    def probe(self, x: Tensor) -> None:
        """Call the target with two batch sizes: a point must have one value, whatever its batch.

        A function that sums over the wrong axis passes as long as n = d. Costs four evaluations.

        Parameters
        ----------
        x : Tensor (n, d), n >= 1
            Different points, or a value that depends on the others can't be told.

        Raises
        ------
        TargetShapeError
            The shape is wrong in one of the calls, or the values of one point differ.
        TargetCallError
            The target raises RuntimeError, IndexError, TypeError or ValueError.
        """
        small, large = (x[torch.arange(size, device=x.device) % x.shape[0]] for size in PROBE_SIZES)
        self._probed = False
        alone, among = self.log_density(small), self.log_density(large)[: PROBE_SIZES[0]]
        self._probed = True
        tolerance = torch.finfo(self.dtype).eps ** 0.5
        if not torch.allclose(alone, among, rtol=tolerance, atol=tolerance):
            raise TargetShapeError(
                f"The log density of one point is {float(alone[0]):.6g} in a batch of {PROBE_SIZES[0]} and "
                f"{float(among[0]):.6g} in a batch of {PROBE_SIZES[1]}: it is random, or depends on the "
                "other points. Reduce over the coordinates only (dim=1), not over the batch.",
                points=small.detach().cpu(),
                indices=[0],
            )

    def rows(self, kind: str, x: Tensor) -> Tensor:
        """What the user's code says of each point x (n, d), not counted, and checked only for its shape.

        Parameters
        ----------
        kind : {"density", "gradient"}
            Log densities (n, 1); or these and their gradients, (n, 1 + d).
        x : Tensor (n, d)
        """
        if kind == "density":
            with torch.no_grad():
                return self._call(x).unsqueeze(1)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.requires_grad_(True)
            raw = self._call(x)
            value = raw.detach().to(self.device, self.dtype).unsqueeze(1)
            if bool((value.isnan() | value.isposinf()).any()):
                return torch.cat([value, torch.zeros_like(x)], dim=1)  # which is refused for its value
            gradient = torch.autograd.grad(raw.sum(), x, allow_unused=True)[0] if raw.requires_grad else None
        if gradient is None:
            raise TargetGradientError(
                "The log density does not depend on x for torch: a detour over numpy, .detach(), .item() or "
                f"torch.tensor(...) cuts the gradient off. {_REWRITE}."
            )
        return torch.cat([value, gradient], dim=1)

    def _log_density(self, x: Tensor) -> Tensor:
        return self._spread_rows("density", x)[:, 0]

    def _spread_rows(self, kind: str, x: Tensor) -> Tensor:
        """`rows`, counted."""
        self.n_calls += 1
        self.n_evaluations += x.shape[0]
        return self.rows(kind, x) if self.spread is None else self.spread(kind, x)

    def _call(self, x: Tensor) -> Tensor:
        return self._of_shape(self.target(x), x)

    def _of_shape(self, value: Any, x: Tensor) -> Tensor:
        if not isinstance(value, Tensor):
            raise TargetShapeError(
                f"The log density must return a torch tensor of shape (n,), got {type(value).__name__}: "
                f"{_REWRITE[0].lower()}{_REWRITE[1:]}."
            )
        if tuple(value.shape) != (x.shape[0],):
            raise TargetShapeError(_shape_message(tuple(value.shape), self._shape(x)))
        if value.is_complex():
            raise TargetError("The log density must be real, got a complex tensor; take its real part.")
        return value

    def _checked_value(self, value: Tensor, x: Tensor) -> Tensor:
        value = value.to(self.device, self.dtype)
        self._refuse_points(
            value.isnan() | value.isposinf(),
            x,
            TargetValueError,
            "The log density is NaN or +inf",
            "Return -inf where the density is zero, or say by Target(support=) what the parameters may be; guard "
            "logarithms and square roots of negative numbers, and look for NaN in the data.",
        )
        return value

    def _shape(self, x: Tensor) -> tuple[int, int]:
        """Shape of the points that the user's function has received for x (n, d)."""
        return len(x), self.target.user_points(x[:1]).shape[1]

    def _refuse_points(
        self, bad: Tensor, x: Tensor, error: type[TargetError | StartError], what: str, remedy: str
    ) -> None:
        """Raise `error` if any row is bad, with the first rows as data, as the user knows them."""
        if not bool(bad.any()):
            return
        indices = bad.nonzero()[:, 0].cpu().numpy()
        points = self.target.user_points(x.detach()).cpu().numpy()
        where = describe_points(points, indices)
        message = f"{what} at {len(indices)} of {len(points)} points: {where}. {remedy}"
        raise error(message, points=points[indices[:10]], indices=indices[:10])


def _shape_message(found: tuple[int, ...], points: tuple[int, ...]) -> str:
    n = points[0]
    message = f"The log density returned shape {found} for points of shape {points}, instead of ({n},): "
    if found == (n, 1):
        return message + "take the last axis away with .squeeze(-1)."
    if found == ():
        return message + "it must not reduce over the batch; sum over the coordinates with .sum(dim=1)."
    if found == points:
        return message + "sum over the coordinates with .sum(dim=1)."
    return message + "return one number for each row of x."


class _NoteOnError:
    """Adds the shape of the points to an exception of the user's code, which passes through.

    At the first calls the exceptions that a function not written for batches of torch points raises are explained.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, first: bool) -> None:
        self.points = f"a {dtype} tensor of shape {shape}".replace("torch.", "")
        self.first = first

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, TargetError):
            return
        if self.first and isinstance(error, _USUAL) and not isinstance(error, JKOSamplerError):
            raise TargetCallError(
                f"The log density raised {type(error).__name__}: {str(error).rstrip('.')}. It was called with "
                f"{self.points}, one point a row. Usual causes: it is written for a single point (take coordinates "
                "by x[:, 0], sum by .sum(dim=1), branch by torch.where); its constants have another dtype (make "
                "them float64, or pass dtype=torch.float32 to the sampler); it calls numpy or math (use torch, or "
                "hand a numpy function over by targets.from_numpy)."
            ) from error
        if isinstance(error, _NUMERICAL) and not isinstance(error, JKOSamplerError):
            raise TargetCallError(
                f"The log density raised {type(error).__name__}: {_shortened(str(error))}. It was called with "
                f"{self.points}. Where it can't be computed, return -inf; torch.distributions do without "
                "exceptions after torch.distributions.Distribution.set_default_validate_args(False)."
            ) from error
        error.add_note(f"While jkosampler evaluated the log density at {self.points}.")


def _shortened(text: str, most: int = 300) -> str:
    """The beginning of a message that may print whole tensors."""
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= most else f"{text[:most]} .."
