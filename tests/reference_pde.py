"""Solutions of three gradient-flow PDEs, exact or by finite volumes, in numpy: shares no code with the package.

* Porous medium, `d rho/dt = Lap rho^m`: Barenblatt's profile, and the exact JKO step from it, a dilation.
* Aggregation with mobility rho (1 - rho), `d rho/dt = 2 Mu div(x rho (1 - rho))` from rho0 = 3/4 (1 - |x|^2)_+ of mass
  Mu: exact by characteristics up to the front, and by Godunov's method, which knows nothing of these.
* Fokker-Planck, `d rho/dt = div(rho grad V) + Lap rho`: in the plane by finite volumes whose steady state is exactly
  exp(-V), of second order; on the line by a spectral method, which settles potentials that are sums over coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.interpolate import RectBivariateSpline
from scipy.linalg import eigh
from scipy.optimize import brentq
from scipy.sparse.linalg import splu
from scipy.special import betaln, exprel, gammaln

__all__ = [
    "AggregationSolution",
    "PlaneSolution",
    "aggregation_density",
    "aggregation_entropy_solution",
    "aggregation_front",
    "aggregation_mass",
    "barenblatt_density",
    "barenblatt_midpoint",
    "barenblatt_radius",
    "barenblatt_step",
    "extrapolated",
    "fokker_planck",
    "fokker_planck_line",
    "four_gaussians",
    "shock_time",
    "steady_radius",
    "two_bumps",
    "two_gaussians",
]

Function = Callable[[np.ndarray], np.ndarray]
LinePotential = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


# Porous medium


def barenblatt_radius(age: float, d: int, m: float) -> float:
    """Where the profile of this age ends."""
    alpha, beta, c = _barenblatt_constants(d, m)
    return float(np.sqrt(c / beta) * age ** (alpha / d))


def barenblatt_density(r: np.ndarray, age: float, d: int, m: float) -> np.ndarray:
    """Density of the profile of unit mass at distance r from its center."""
    alpha, beta, c = _barenblatt_constants(d, m)
    height = c - beta * np.asarray(r) ** 2 * age ** (-2.0 * alpha / d)
    return age**-alpha * np.maximum(height, 0.0) ** (1.0 / (m - 1.0))


def barenblatt_step(age: float, tau: float, d: int, m: float) -> tuple[float, float]:
    """The exact JKO step T(x) = lam x, `lam^(q-1) (lam - 1) = tau / (q age)`: lam, and the age s lam^q after it."""
    q = d * (m - 1.0) + 2.0
    size = tau / (q * age)
    factor = brentq(lambda lam: lam ** (q - 1.0) * (lam - 1.0) - size, 1.0, 1.0 + size, xtol=1e-15, rtol=1e-15)
    return float(factor), float(age * factor**q)


def barenblatt_midpoint(age: float, tau: float, d: int, m: float) -> tuple[float, float]:
    """Second order, T'' = 2 T - x with T the step of size tau / 2: its factor, and the age after it."""
    factor = 2.0 * barenblatt_step(age, 0.5 * tau, d, m)[0] - 1.0
    return factor, age * factor ** (d * (m - 1.0) + 2.0)


def _barenblatt_constants(d: int, m: float) -> tuple[float, float, float]:
    """The alpha, beta and C of `s^-alpha (C - beta |x|^2 s^(-2 alpha / d))_+^(1 / (m - 1))`."""
    alpha, p = d / (d * (m - 1.0) + 2.0), 1.0 / (m - 1.0)
    beta = (m - 1.0) * alpha / (2.0 * d * m)
    log_mass = 0.5 * d * np.log(np.pi / beta) + betaln(0.5 * d, p + 1.0) - gammaln(0.5 * d)  # where C = 1
    return alpha, beta, float(np.exp(-log_mass / (p + 0.5 * d)))


# Aggregation


class AggregationSolution(NamedTuple):
    """Cell centres (n,) along the radius; densities (k, n) and energies `Mu int |x|^2 rho` (k,) at each time."""

    centres: np.ndarray
    densities: np.ndarray
    energies: np.ndarray


def aggregation_mass(d: int) -> float:
    """Mass Mu of 3/4 (1 - |x|^2)_+: 1 on the line, 3 pi / 8 in the plane."""
    return 1.5 / (d + 2.0) * _ball_volume(d)


def shock_time(d: int) -> float:
    """When characteristics first cross, at the edge."""
    return float(np.log(1.0 + d / 3.0) / (2.0 * aggregation_mass(d) * d))


def steady_radius(d: int) -> float:
    """Radius of the ball that the whole mass fills with density one."""
    return float((aggregation_mass(d) / _ball_volume(d)) ** (1.0 / d))


def aggregation_front(t: float, d: int) -> float:
    """Radius at which the density ends; from the shock time on it ends with a jump."""
    growth = _growth(t, d)
    return float(_moved(np.array([_last_start(growth, d)]), growth, d)[0])


def aggregation_density(r: np.ndarray, t: float, d: int) -> np.ndarray:
    """Density at distance r: rho0 e / (1 - rho0 + rho0 e) on its characteristic; zero beyond the front."""
    r, growth = np.asarray(r, dtype=float), _growth(t, d)
    low, high = np.zeros_like(r), np.full_like(r, _last_start(growth, d))
    for _ in range(60):  # bisection: radii grow with the start, as far as the front
        middle = 0.5 * (low + high)
        beyond = _moved(middle, growth, d) > r
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    start = _start_density(low)
    return np.where(r < aggregation_front(t, d), start * growth / (1.0 + start * (growth - 1.0)), 0.0)


def aggregation_entropy_solution(d: int, times: Sequence[float], n_cells: int = 1000) -> AggregationSolution:
    """Godunov's method with linear reconstruction (minmod) and Heun's steps, on [0, 1]; times must increase."""
    faces, mass = np.linspace(0.0, 1.0, n_cells + 1), aggregation_mass(d)
    volume = np.diff(faces**d) / d
    primitive = 0.75 * (faces**d / d - faces ** (d + 2) / (d + 2))
    rho, now, densities = np.diff(primitive) / volume, 0.0, []
    for t in times:
        n_steps = int(np.ceil((t - now) * 2.0 * mass * n_cells / 0.45))
        dt = (t - now) / max(n_steps, 1)
        for _ in range(n_steps):
            middle = rho - dt * _outflow(rho, faces, d, mass) / volume
            rho = 0.5 * (rho + middle - dt * _outflow(middle, faces, d, mass) / volume)
        now = t
        densities.append(rho)
    moments = d * _ball_volume(d) * np.diff(faces ** (d + 2)) / (d + 2)
    energies = [mass * moments @ rho for rho in densities]
    return AggregationSolution(0.5 * (faces[1:] + faces[:-1]), np.array(densities), np.array(energies))


def _ball_volume(d: int) -> float:
    return float(np.exp(0.5 * d * np.log(np.pi) - gammaln(0.5 * d + 1.0)))


def _growth(t: float, d: int) -> float:
    return float(np.exp(2.0 * aggregation_mass(d) * d * t))


def _start_density(start: np.ndarray) -> np.ndarray:
    return 0.75 * (1.0 - start**2)


def _moved(start: np.ndarray, growth: float, d: int) -> np.ndarray:
    """Radius now of the characteristics that started at these radii."""
    return start * ((1.0 + _start_density(start) * (growth - 1.0)) ** 2 / growth) ** (1.0 / d)


def _last_start(growth: float, d: int) -> float:
    """Where the last characteristic that has not run into the shock started.

    Along a characteristic the mass within grows to M0(x0) + vol_d x0^d rho0^2 (e - 1): beyond the shock there is none,
    so there it is Mu. Both sides are divided by (1 - x0^2)^2, the zero that they share at the edge.
    """

    def excess(start: float) -> float:
        outside = 2.0 / (d + 2.0) - start**d + d / (d + 2.0) * start ** (d + 2)
        return 0.75 * outside / (1.0 - start**2) ** 2 - 0.5625 * start**d * (growth - 1.0)

    almost = 1.0 - 1e-5  # nearer to the edge the quotient is lost to rounding
    return 1.0 if excess(almost) > 0.0 else float(brentq(excess, 0.0, almost, xtol=1e-14))


def _outflow(rho: np.ndarray, faces: np.ndarray, d: int, mass: float) -> np.ndarray:
    """Flux out of each cell over the area of the unit sphere; none through the origin and through |x| = 1."""
    jumps = np.diff(rho)
    same_sign = jumps[1:] * jumps[:-1] > 0.0
    slope = np.zeros_like(rho)
    slope[1:-1] = np.where(same_sign, np.sign(jumps[1:]) * np.minimum(np.abs(jumps[1:]), np.abs(jumps[:-1])), 0.0)
    left, right = (rho + 0.5 * slope)[:-1], (rho - 0.5 * slope)[1:]
    # the flux 2 Mu r g(rho), g = -rho (1 - rho), is convex in rho with its minimum at 1/2
    left, right = np.maximum(left, 0.5), np.minimum(right, 0.5)
    flux = np.zeros_like(faces)
    flux[1:-1] = 2.0 * mass * faces[1:-1] ** d * np.maximum(-left * (1.0 - left), -right * (1.0 - right))
    return np.diff(flux)


# Fokker-Planck


class PlaneSolution(NamedTuple):
    """Cell centres (n,) of either axis; at each time the densities (k, n, n) and int rho (log rho + V) (k,)."""

    half_width: float
    centres: np.ndarray
    densities: np.ndarray
    energies: np.ndarray

    def density_at(self, points: np.ndarray, k: int = -1) -> np.ndarray:
        """Density (m,) at points (m, 2) and the k-th time: a cubic spline of its logarithm; zero outside the box."""
        rho = self.densities[k]
        spline = RectBivariateSpline(self.centres, self.centres, np.log(np.maximum(rho, 1e-40 * rho.max())))
        inside = (np.abs(points) <= self.half_width).all(axis=1)
        return np.where(inside, np.exp(spline.ev(points[:, 0], points[:, 1])), 0.0)


def fokker_planck(
    potential: Function, density0: Function, half_width: float, n: int, times: Sequence[float], step: float = 0.01
) -> PlaneSolution:
    """Solve on n x n cells of [-h, h]^2, no flux through the border; both functions take points (N, 2).

    Fluxes of Scharfetter and Gummel; in time a diagonally implicit Runge-Kutta method of order two that damps stiff
    modes (both stages solve with one matrix). Times must increase; steps are no longer than `step`.
    """
    width = 2.0 * half_width / n
    centres = -half_width + width * (np.arange(n) + 0.5)
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2)
    v = potential(points).reshape(n, n)
    generator = _plane_generator(v) / width**2
    gamma, solvers = 1.0 - np.sqrt(0.5), {}
    rho, now, densities = density0(points), 0.0, []
    for t in times:
        n_steps = int(np.ceil((t - now) / step - 1e-9))
        dt = round((t - now) / max(n_steps, 1), 12)  # equal but for rounding: one factorisation
        if n_steps and dt not in solvers:
            matrix = sparse.identity(n * n) - gamma * dt * generator
            options = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
            solvers[dt] = splu(matrix.tocsc(), **options)
        for _ in range(n_steps):
            stage = solvers[dt].solve(rho)
            rho = solvers[dt].solve(rho + (1.0 - gamma) / gamma * (stage - rho))
        now = t
        densities.append(rho.reshape(n, n))
    energies = [width**2 * np.sum(rho * (np.log(np.maximum(rho, 1e-300)) + v)) for rho in densities]
    return PlaneSolution(half_width, centres, np.array(densities), np.array(energies))


def fokker_planck_line(
    potential: LinePotential, density0: Function, half_width: float, n: int, times: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Points (n,) and densities (k, n) on the line, to rounding errors; `potential` gives V, V', V''.

    exp(V/2) rho solves a heat equation with the potential V'^2/4 - V''/2: in a basis of sinc functions its generator
    is a symmetric matrix. Both densities must be negligible at the ends of [-h, h].
    """
    width = 2.0 * half_width / n
    x = -half_width + width * (np.arange(n) + 0.5)
    v, slope, curvature = potential(x)
    apart = np.arange(n)[:, None] - np.arange(n)
    second = -2.0 * (-1.0) ** apart / np.where(apart == 0, 1, apart) ** 2
    np.fill_diagonal(second, -(np.pi**2) / 3.0)
    rates, modes = eigh(second / width**2 - np.diag(0.25 * slope**2 - 0.5 * curvature))
    content = modes.T @ (np.exp(0.5 * v) * density0(x))
    return x, np.array([np.exp(-0.5 * v) * (modes @ (np.exp(rates * t) * content)) for t in times])


def extrapolated(fine: np.ndarray, coarse: np.ndarray, ratio: float = 2.0) -> np.ndarray:
    """Richardson's extrapolation of two results of order two, one with all steps `ratio` times as long."""
    return fine + (fine - coarse) / (ratio**2 - 1.0)


def two_bumps(c: float) -> LinePotential:
    """V = -log of the equal mixture of N(-c, .5^2) and N(c, .5^2), with V' and V''."""

    def potential(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        side = np.tanh(4.0 * c * x)
        v = 2.0 * (np.abs(x) - c) ** 2 - np.log1p(np.exp(-8.0 * c * np.abs(x))) + 0.5 * np.log(2.0 * np.pi)
        return v, 4.0 * (x - c * side), 4.0 - 16.0 * c**2 * (1.0 - side**2)

    return potential


def two_gaussians(points: np.ndarray) -> np.ndarray:
    """Density (n,) of the equal mixture of N((-1.2, 0), .5^2 I) and N((1.2, 0), .5^2 I) at points (n, 2)."""
    return np.exp(-two_bumps(1.2)(points[:, 0])[0] - two_bumps(0.0)(points[:, 1])[0])


def four_gaussians(points: np.ndarray) -> np.ndarray:
    """Potential (n,) at points (n, 2): -log of the equal mixture of N((+-2, +-2), .5^2 I), normalised."""
    return two_bumps(2.0)(points[:, 0])[0] + two_bumps(2.0)(points[:, 1])[0]


def _plane_generator(v: np.ndarray) -> sparse.csc_matrix:
    """Rates between neighbouring cells, in units of 1 / width^2: columns sum to zero, and exp(-v) is in the kernel."""
    cell = np.arange(v.size).reshape(v.shape)
    total = sparse.csc_matrix((v.size, v.size))
    for a, b in ((np.s_[:-1, :], np.s_[1:, :]), (np.s_[:, :-1], np.s_[:, 1:])):
        i, j, rise = cell[a].ravel(), cell[b].ravel(), (v[b] - v[a]).ravel()
        out, back = 1.0 / exprel(rise), 1.0 / exprel(-rise)  # exprel(z) = (e^z - 1) / z
        values, rows, columns = (out, -out, back, -back), (j, i, i, j), (i, i, j, j)
        entries = (np.concatenate(rows), np.concatenate(columns))
        total = total + sparse.csc_matrix((np.concatenate(values), entries), shape=total.shape)
    return total
