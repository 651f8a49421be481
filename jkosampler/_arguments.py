"""Checks of arguments that several modules share: arrays, covariances, sample sizes, random generators; warnings."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jkosampler.errors import ArgumentError

__all__ = ["cholesky_factor", "draw_size", "float_tensor", "generator_or_fresh", "positive_number", "warn_user"]

_PACKAGE = str(Path(__file__).parent / "_")[:-1]  # with the separator at its end


def float_tensor(value: Any, name: str) -> Tensor:
    """Copy numbers (a number, list, array or tensor) into a finite float64 tensor, on a tensor's own device.

    Raises
    ------
    ArgumentError
        `value` is not numeric, or not finite everywhere.
    """
    if isinstance(value, Tensor) and not value.is_complex():
        tensor = value.detach().to(torch.float64).clone()
    else:
        try:
            tensor = torch.tensor(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{name} must be a number or an array of numbers, got {value!r}.") from error
    if not bool(tensor.isfinite().all()):
        raise ArgumentError(f"{name} must be finite, got {value!r}.")
    return tensor


def positive_number(value: Any, name: str) -> float:
    """Read one positive, finite number.

    Raises
    ------
    ArgumentError
        It is anything else.
    """
    number = float_tensor(value, name)
    if number.numel() != 1 or float(number) <= 0.0:
        raise ArgumentError(f"{name} must be one positive number, got {value!r}.")
    return float(number)


def cholesky_factor(matrix: Tensor, name: str) -> Tensor:
    """Lower Cholesky factor (d, d) of a covariance (d, d).

    Raises
    ------
    ArgumentError
        The matrix is not square, not symmetric or not positive definite.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ArgumentError(f"{name} must be a square matrix, got shape {tuple(matrix.shape)}.")
    if float((matrix - matrix.T).abs().max()) > 1e-8 * float(matrix.abs().max()):
        raise ArgumentError(f"{name} must be symmetric; (M + M.T) / 2 is the symmetric part of M.")
    factor, failed = torch.linalg.cholesky_ex((matrix + matrix.T) / 2)
    if int(failed):
        smallest = float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
        raise ArgumentError(
            f"{name} must be positive definite, but its smallest eigenvalue is {smallest:.3g}; "
            "take redundant coordinates out, or add a small multiple of the identity."
        )
    return factor


def draw_size(sample_shape: Any) -> int:
    """Read the `n` of `sample((n,))` or `sample(n)`.

    Raises
    ------
    ArgumentError
        Anything else than one non-negative whole number.
    """
    if isinstance(sample_shape, (int, np.integer)):
        sample_shape = (sample_shape,)
    sizes = tuple(sample_shape)
    if len(sizes) != 1 or int(sizes[0]) != sizes[0] or sizes[0] < 0:
        raise ArgumentError(f"sample_shape must be (n,) with n >= 0, got {sample_shape!r}.")
    return int(sizes[0])


def generator_or_fresh(generator: torch.Generator | None) -> torch.Generator:
    """Return the generator, or a new one with a seed of the operating system: never torch's global one."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return generator


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside this package that called it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
