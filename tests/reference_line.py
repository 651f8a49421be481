"""The exact W2 step of KL on the line, by Newton's method for the monotone map: shares no code with the package.

The step minimises `int rho (V(T) - log T' + (T - x)^2 / (2 tau)) dx`. The integral is a midpoint rule between the
nodes, T is linear there: unknowns are quantiles of the new law at the levels of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_banded

__all__ = ["LineStep", "bimodal", "skewed", "step_on_line"]


class LineStep(NamedTuple):
    """Points (n,) on the line between nodes, the mass at each, their images, and the new log density there."""

    x: np.ndarray
    mass: np.ndarray
    moved: np.ndarray
    log_rho: np.ndarray


Potential = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def skewed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V = 2 (x + e^-x) with its two derivatives: a skewed density."""
    tail = 2.0 * np.exp(-x)
    return 2.0 * x + tail, 2.0 - tail, tail


def bimodal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V = (x^2 - 1)^2 - x / 2 with its two derivatives: two modes of different weight."""
    return (x**2 - 1.0) ** 2 - 0.5 * x, 4.0 * x * (x**2 - 1.0) - 0.5, 12.0 * x**2 - 4.0


def step_on_line(
    potential: Potential, log_rho: Callable[[np.ndarray], np.ndarray], tau: float, nodes: np.ndarray
) -> LineStep:
    """Solve one step from the density exp(log_rho), which must be negligible beyond the nodes (n + 1,)."""
    middle, width = 0.5 * (nodes[1:] + nodes[:-1]), np.diff(nodes)
    mass = np.exp(log_rho(middle)) * width
    images = nodes.copy()
    for _ in range(200):
        gradient, bands = _newton_system(potential, middle, mass, tau, images)
        move = solve_banded((1, 1), bands, -gradient)
        size = 1.0
        while (
            np.min(np.diff(images + size * move)) <= 0.0
            or _value(potential, middle, mass, tau, images + size * move)
            > _value(potential, middle, mass, tau, images) + 1e-12
        ):
            size *= 0.5
            if size < 1e-10:
                raise ArithmeticError("the reference step does not converge")
        images = images + size * move
        if np.max(np.abs(move) * _at_nodes(mass)) < 1e-14:
            break
    moved = 0.5 * (images[1:] + images[:-1])
    return LineStep(middle, mass, moved, log_rho(middle) - np.log(np.diff(images) / width))


def _value(potential: Potential, x: np.ndarray, mass: np.ndarray, tau: float, images: np.ndarray) -> float:
    moved = 0.5 * (images[1:] + images[:-1])
    cost = (moved - x) ** 2 / (2.0 * tau)
    return float(mass @ (potential(moved)[0] - np.log(np.diff(images)) + cost))


def _newton_system(
    potential: Potential, x: np.ndarray, mass: np.ndarray, tau: float, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (n + 1,) in the images of the nodes, and the three diagonals of a positive Hessian."""
    moved, gap = 0.5 * (images[1:] + images[:-1]), np.diff(images)
    _, slope, curvature = potential(moved)
    force = 0.5 * mass * (slope + (moved - x) / tau)
    stiffness = 0.25 * mass * (np.maximum(curvature, 0.0) + 1.0 / tau)
    pressure, spring = mass / gap, mass / gap**2
    gradient = np.zeros_like(images)
    gradient[:-1] += force + pressure
    gradient[1:] += force - pressure
    bands = np.zeros((3, len(images)))
    bands[0, 1:] = bands[2, :-1] = stiffness - spring
    bands[1, :-1] += stiffness + spring
    bands[1, 1:] += stiffness + spring
    return gradient, bands


def _at_nodes(mass: np.ndarray) -> np.ndarray:
    return np.minimum(np.append(mass, mass[-1]), np.insert(mass, 0, mass[0]))
