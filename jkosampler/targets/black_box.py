"""Targets without gradient: every evaluation is kept, and gradients are those of an emulator fitted to them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from jkosampler.errors import TargetShapeError
from jkosampler.targets.base import Target
from jkosampler.targets.evaluation import TargetEvaluator

__all__ = ["BlackBoxEvaluator", "Emulator"]


class Emulator(Protocol):
    """Stands in for a black box: its outputs, and how much of a log density that is made of them is believed."""

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (n, k) at x (n, d), differentiable by torch."""
        ...

    def believed(self, x: Tensor, log_density: Tensor) -> Tensor:
        """The log density (n,) at x (n, d) as far as the data speak for it."""
        ...


class BlackBoxEvaluator(TargetEvaluator):
    """A target without gradient as the engines call it; see `TargetEvaluator`.

    Attributes
    ----------
    x, outputs, log_densities : Tensor (n, d), (n, k), (n,)
        What was evaluated so far, in the order of evaluation, where it was finite.
    emulator : Emulator, or None
        Stands in for the target's black box where gradients are asked for; None: gradients are zero.
    """

    differentiable = False

    def __init__(self, target: Target, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        super().__init__(target, dtype, device)
        self.emulator: Emulator | None = None
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def remember(self, other: TargetEvaluator) -> None:
        """As `TargetEvaluator.remember`; the evaluations and the emulator too."""
        super().remember(other)
        if not isinstance(other, BlackBoxEvaluator):
            raise TypeError("a target with gradient has kept no evaluations")
        self._kept, self.emulator = list(other._kept), other.emulator

    @property
    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points (n, d), outputs (n, k) and log densities (n,) of all evaluations so far that were finite."""
        if len(self._kept) > 1:
            self._kept = [tuple(torch.cat(parts) for parts in zip(*self._kept, strict=True))]  # type: ignore[list-item]
        return self._kept[0]

    def value_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (n,) at x (n, d), and its gradient (n, d) with the emulator in the black box's place.

        Raises
        ------
        TargetShapeError, TargetValueError, TargetCallError
            As `log_density`.
        """
        value = self.log_density(x)
        if self.emulator is None:
            return value, torch.zeros_like(x)
        gradient = self.emulated(self.emulator).value_and_grad(x)[1]
        return value, torch.where(value.isneginf().unsqueeze(1), 0.0, gradient)

    def emulated(self, emulator: Emulator) -> TargetEvaluator:
        """The evaluator of the target that has the emulator in the black box's place; its calls are not ours."""
        target = self.target

        def log_density(x: Tensor) -> Tensor:
            return emulator.believed(x, target.log_density_from(x, emulator(x)))

        return TargetEvaluator(Target(log_density, target.dim), self.dtype, self.device)

    def rows(self, kind: str, x: Tensor) -> Tensor:
        """The black box's outputs (n, k) at x (n, d); there is no other kind."""
        with torch.no_grad():
            outputs = self.target.black_box(x)
        if not isinstance(outputs, Tensor) or outputs.dim() != 2 or outputs.shape[0] != x.shape[0]:
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise TargetShapeError(
                f"The log density must return a number for each of {len(x)} points, a tensor ({len(x)},), got {found}."
            )
        return outputs

    def _log_density(self, x: Tensor) -> Tensor:
        outputs = self._spread_rows("outputs", x)
        value = self._of_shape(self.target.log_density_from(x, outputs), x)
        usable = value.isfinite() & outputs.isfinite().all(1)
        self._kept.append((x[usable].detach(), outputs[usable].detach().to(x), value[usable].detach()))
        return value
