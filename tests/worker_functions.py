"""Numpy functions that worker processes can import: an elliptic forward model, faults, and crashes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

POINTS = np.array([0.25, 0.75])


def elliptic(u: np.ndarray) -> np.ndarray:
    """Closed form (k,) at u (2,)."""
    return u[1] * POINTS + np.exp(-u[0]) * (POINTS - POINTS**2) / 2


def elliptic_vjp(u: np.ndarray, s: np.ndarray) -> np.ndarray:
    return np.array([-np.exp(-u[0]) * (s @ (POINTS - POINTS**2)) / 2, s @ POINTS])


def quartic(x: np.ndarray) -> float:
    return -float(np.sum(x**4))


def quartic_gradient(x: np.ndarray) -> np.ndarray:
    return -4 * x**3


def failing(x: np.ndarray) -> float:
    if x[0] > 1.0:
        raise FloatingPointError("no convergence")
    return quartic(x)


class StubbornError(Exception):
    """An exception that no other process can read."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def stubborn(x: np.ndarray) -> float:
    raise StubbornError(1, 2)


def deadly(x: np.ndarray) -> float:
    os._exit(1)


def slow_square(x: np.ndarray) -> np.ndarray:
    time.sleep(0.05)
    return x**2


class DiesOnce:
    """The first process that gets to it ends; the file remembers that."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, x: np.ndarray) -> float:
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return quartic(x)
        os._exit(1)
