"""An emulator of a black box, by least squares for its values: what steps of targets without gradient are made in.

A forward model's statistical linearisation over the ensemble, which ensemble Kalman methods go along
(Garbuno-Inigo, Hoffmann, Li, Stuart, 2020, arXiv 1903.08866), is the affine least-squares fit to its values at the
particles. Here the fit has quadratic terms and ridge functions too, uses all points that were evaluated so far, those
of small potential more than others, and a step is made in the posterior that has the emulator in the forward model's
place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.base import State
from jkosampler.engines.step_solver import covering
from jkosampler.particles import weighted_moments
from jkosampler.potentials import draw_ridges, log_two_cosh
from jkosampler.targets import BlackBoxEvaluator

__all__ = ["OutputEmulator", "emulated_outputs", "n_held_out"]

_RIDGES_PER_DIMENSION, _MOST_RIDGES = 100, 500
_DATA_PER_FUNCTION = 3  # points: fewer leave the emulator too much freedom
_MOST_DATA = 8  # a function; more, of small density, tell little
_ACTIVE, _LEAST_ACTIVE = 0.375, 0.1  # power of the outputs' sensitivity that ridges follow, and its least share
_SLOPES, _KINKS = (0.2, 1.5), 3.0  # of the ridge functions, per whitened unit; distance within which they bend
_HIGH = 10.0  # nats below the highest log density, and as many a dimension, from which on a point counts less and less
_POLYNOMIAL_PRICE = 1e-4  # of squared coefficients, beside the ridges': a polynomial is hardly held back
_LEVELS = tuple(10.0**power for power in range(-15, 0))  # of prices, relative to the largest eigenvalue
# Shares of the data: free ones at least, and what rounding leaves of their square.
_FEWEST_FREE, _ROUNDING = 1e-3, 1e-28
_CORRECTIONS = 3  # fits after the first
_SMALLEST = 1e-12  # relative, on the diagonal of a covariance
_NEW, _NEW_PER_DIMENSION = 200, 20  # points of the law that are evaluated before a step, and as many after it
_MORE = 3  # times as many, and
_TAIL_SHARE = 0.5  # of them as many out to the tails, where an affine map is not the whole step


class OutputEmulator:
    """Outputs (n, k) as functions of x (n, d), by weighted least squares for values at points.

    In the whitened coordinates of the points: a polynomial of degree two (one, where there are too few points), and
    ridge functions, which generalised cross-validation keeps small. Their directions are random, more of them where the
    polynomial changes most: outputs that depend on a few directions of many, the active subspace (Constantine, Dow,
    Wang, 2014), are bent along these.
    """

    directions: Tensor  # (m, d) of the ridges, and their
    biases: Tensor  # (m,)

    @classmethod
    def of(cls, black_box: BlackBoxEvaluator, generator: torch.Generator) -> OutputEmulator:
        """An emulator of all that was evaluated so far.

        Points at which the first fit promises more than there is count as what it promises, so that they mend it.
        """
        x, outputs, log_density = black_box.data
        found = cls(x, outputs, log_density, generator)
        for _ in range(_CORRECTIONS):
            with torch.no_grad():
                promised = found.believed(x, black_box.target.log_density_from(x, found(x))).nan_to_num(nan=-torch.inf)
            wrong = promised > log_density + _HIGH
            if not bool((wrong & (promised > log_density.max() - _HIGH * (1 + x.shape[1]))).any()):
                break
            log_density = torch.where(wrong, promised, log_density).clamp(max=log_density.max())
            found = cls(x, outputs, log_density, generator, like=found)
        return found

    def __init__(
        self,
        x: Tensor,
        outputs: Tensor,
        log_density: Tensor,
        generator: torch.Generator,
        *,
        like: OutputEmulator | None = None,
    ) -> None:
        d = x.shape[1]
        n_quadratic = 1 + d + d * (d + 1) // 2
        n_ridges = min(_RIDGES_PER_DIMENSION * d, _MOST_RIDGES)
        weights = 1.0 / (1.0 + ((log_density.max() - log_density) / (_HIGH * (1 + d))).square()).square()
        if len(x) > _MOST_DATA * (n_quadratic + n_ridges):  # of all that matter, not the best, which are close together
            some = torch.multinomial(weights.cpu(), _MOST_DATA * (n_quadratic + n_ridges), generator=generator)
            some = some.to(x.device)
            x, outputs, weights = x[some], outputs[some], weights[some].sqrt()
        weights = weights / weights.sum()
        effective = float(1.0 / weights.square().sum())
        self.centre, self.factor = _standardisation(x, weights)
        self.highest = float(log_density.max()) + _HIGH
        self.i, self.j = torch.triu_indices(d, d, device=x.device)
        if effective < _DATA_PER_FUNCTION * n_quadratic / 2:
            self.i, self.j = self.i[:0], self.j[:0]
        n_polynomial = 1 + d + len(self.i)
        width = max(1, min(n_ridges, int((effective - n_polynomial) / _DATA_PER_FUNCTION)))
        reused = like is not None and len(like.biases) >= width
        if like is not None and reused:
            self.directions, self.biases = like.directions[:width], like.biases[:width]
        else:
            weights_of_ridges, biases = torch.empty(width, d, dtype=x.dtype), torch.empty(width, dtype=x.dtype)
            draw_ridges(weights_of_ridges, biases, _SLOPES, _KINKS, generator)
            self.directions, self.biases = weights_of_ridges.to(x), biases.to(x)
        self.mean = weights @ outputs
        self.scale = (weights @ (outputs - self.mean).square()).sqrt().clamp(min=1e-300)
        z = self._whitened(x)
        self.reach = float(z.square().sum(1).max())
        root = (weights * len(x)).sqrt().unsqueeze(1)
        polynomial = torch.cat([torch.ones_like(z[:, :1]), z, z[:, self.i] * z[:, self.j]], dim=1)
        price = torch.ones(n_polynomial + width, dtype=x.dtype, device=x.device)
        price[:n_polynomial] = _POLYNOMIAL_PRICE
        data = root * (outputs - self.mean) / self.scale
        if len(self.i) and not reused:
            some = torch.randperm(len(x), generator=generator)[: _DATA_PER_FUNCTION * n_polynomial].to(x.device)
            self._set_polynomial(_fitted((root * polynomial)[some], data[some], price[:n_polynomial]))
            self._turn_to_what_matters()
        found = _fitted(root * torch.cat([polynomial, self._ridges(z)], dim=1), data, price)
        self._set_polynomial(found[:n_polynomial])
        self.outer = found[n_polynomial:]

    def _set_polynomial(self, coefficients: Tensor) -> None:
        """Take over coefficients (p, k)."""
        d = len(self.centre)
        self.constant, self.linear, quadratic = coefficients.split([1, d, len(self.i)])
        self.quadratic = torch.zeros(d, d, coefficients.shape[1]).to(coefficients)
        self.quadratic[self.i, self.j] = quadratic

    def _turn_to_what_matters(self) -> None:
        """Turn the ridges, whose directions are all alike, to where the polynomial has its slopes.

        In whitened coordinates the mean of g g', g the gradient l + (Q + Q') z of an output, is l l' + (Q + Q')^2.
        """
        bend = self.quadratic + self.quadratic.transpose(0, 1)
        sensitivity = self.linear @ self.linear.mT + torch.einsum("ijk,ljk->il", bend, bend)
        values, axes = torch.linalg.eigh(sensitivity)
        values = values.clamp(min=_LEAST_ACTIVE * float(values.mean()) + 1e-300)
        turned = self.directions @ (axes * values**_ACTIVE) @ axes.mT
        lengths = self.directions.norm(dim=1, keepdim=True)
        self.directions = lengths * turned / turned.norm(dim=1, keepdim=True)

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs (n, k) at x (n, d), differentiable by torch."""
        z = self._whitened(x)
        y = self.constant + z @ self.linear + self._ridges(z) @ self.outer
        if len(self.i):
            d, _, k = self.quadratic.shape
            y = y + (z.unsqueeze(2) * (z @ self.quadratic.reshape(d, d * k)).view(-1, d, k)).sum(1)
        return self.mean + self.scale * y

    def believed(self, x: Tensor, log_density: Tensor) -> Tensor:
        """An emulated log density (n,) as far as the data speak for it.

        Polynomials promise everything where there are no data: no density is far above all that was seen, and it is the
        less the farther a point lies outside.
        """
        outside = (self._whitened(x).square().sum(1) - self.reach).clamp(min=0.0)
        return log_density.clamp(max=self.highest) - outside

    def _whitened(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, (x - self.centre).mT, upper=False).mT

    def _ridges(self, z: Tensor) -> Tensor:
        return log_two_cosh(torch.addmm(self.biases, z, self.directions.mT))


def _standardisation(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a factor (d, d) of the covariance of weighted points, regular also where these are too few."""
    mean, covariance = weighted_moments(x, weights)
    return mean, torch.linalg.cholesky(covariance + _SMALLEST * torch.diag(covariance.diagonal() + 1e-300))


def _fitted(functions: Tensor, y: Tensor, price: Tensor) -> Tensor:
    """Coefficients (p, k) of functions (n, p) for data y (n, k), whose squares have relative prices (p,).

    Generalised cross-validation finds the price of each column of data on its own.
    """
    n = len(y)
    scale = functions.norm(dim=0).clamp(min=1e-300) * price.sqrt()
    functions = functions / scale
    values, axes = torch.linalg.eigh(functions.mT @ functions)
    values = values.clamp(min=0.0)
    projected = axes.mT @ (functions.mT @ y)
    total = y.square().sum(0)
    best, found = torch.full_like(total, math.inf), torch.zeros_like(projected)
    for level in _LEVELS:
        kept = 1.0 / (values + level * values.max())
        coefficients = kept.unsqueeze(1) * projected
        misfit = total - ((2.0 * kept - kept.square() * values).unsqueeze(1) * projected.square()).sum(0)
        freedom = max(n - float((values * kept).sum()), _FEWEST_FREE * n)
        error = misfit.clamp(min=_ROUNDING * n) / freedom**2
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, coefficients, found)
    return (axes @ found) / scale.unsqueeze(1)


def n_held_out(dim: int) -> int:
    """Particles that judge steps of a black box."""
    return 2 * (_NEW + _NEW_PER_DIMENSION * dim)


def emulated_outputs(state: State, *, evaluate: bool, affine: bool) -> EnergyEvaluator:
    """The energy with an emulator in the black box's place, fitted to all that was evaluated, also at new particles."""
    flow = state.flow
    black_box = flow.energy.black_box
    assert black_box is not None
    if evaluate:
        n = _NEW + _NEW_PER_DIMENSION * flow.law.dim
        n *= 1 if affine else _MORE
        some = state.pool.x[torch.randperm(len(state.pool), generator=flow.generator)[:n].to(state.pool.x.device)]
        far = covering(flow, 0, int(_TAIL_SHARE * n)).without_score().push_all(state.maps)
        black_box.log_density(torch.cat([some, far.x]))
    black_box.emulator = OutputEmulator.of(black_box, flow.generator)
    return flow.energy.with_black_box(black_box.emulated(black_box.emulator))
