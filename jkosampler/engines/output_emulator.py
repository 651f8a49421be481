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
from scipy.optimize import brentq
from torch import Tensor

from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.base import State
from jkosampler.engines.normal_equations import NormalEquations
from jkosampler.engines.step_solver import covering
from jkosampler.particles import weighted_moments
from jkosampler.potentials import draw_ridges, log_two_cosh
from jkosampler.targets import BlackBoxEvaluator

__all__ = ["OutputEmulator", "emulated_outputs", "n_held_out", "usable_power"]

_RIDGES_PER_DIMENSION, _MOST_RIDGES = 100, 500  # of a forward model's outputs,
_RIDGES_OF_DENSITIES, _MOST_OF_DENSITIES = 250, 1000  # and of a log density, which is bent more
_DATA_PER_FUNCTION = 3  # points: fewer leave the emulator too much freedom
_MOST_DATA = 12  # a function; more, of small density, tell little
_ACTIVE, _LEAST_ACTIVE = 0.375, 0.1  # power of the outputs' sensitivity that ridges follow, and its least share
_SLOPES, _KINKS = (0.2, 1.5), 3.0  # of the ridge functions, per whitened unit; distance within which they bend
_HIGH = 10.0  # nats below the highest log density, and as many a dimension, from which on a point counts less and less;
_HIGH_PER_DIMENSION = 2.0  # where the log density itself is emulated, so many more a dimension,
_DEEP = 5.0  # and so many times as far below the highest, from which on all count as equally low
_POLYNOMIAL_PRICE = 1e-4  # of squared coefficients, beside the ridges': a polynomial is hardly held back
_CORRECTIONS = 3  # fits after the first
_SMALLEST = 1e-12  # relative, on the diagonal of a covariance
_NEW, _NEW_PER_DIMENSION = 200, 20  # points of the law that are evaluated before a step, and as many after it
_MORE = 3  # times as many, and
_AGAIN = 3  # times these where a log density was not known well enough, and
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
    equations: NormalEquations | None  # while it can learn more

    @classmethod
    def of(
        cls, black_box: BlackBoxEvaluator, generator: torch.Generator, *, beta: float = 1.0, corrected: bool = True
    ) -> OutputEmulator:
        """An emulator of all that was evaluated so far, as good as the target's density to the power beta needs it.

        `corrected`: points at which the first fit promises more than there is count as what it promises, so that they
        mend it. A population that goes where the most is promised needs that; near the law, where points are dense, it
        only spoils the fit to a log density.
        """
        x, outputs, log_density = black_box.data
        of_density = black_box.target.outputs_are_densities
        highest, high, depth = log_density.max(), _HIGH / beta, _depth(of_density, x.shape[1]) / beta
        if of_density:  # how low it is far below does not matter, and may be immense
            outputs = outputs.clamp(min=outputs[log_density.argmax()] - _DEEP * depth)
        found = cls(x, outputs, log_density, generator, beta=beta, of_density=of_density)
        weights = _weights(log_density, depth)
        for _ in range(_CORRECTIONS if corrected or not of_density else 0):
            with torch.no_grad():
                promised = found.believed(x, black_box.target.log_density_from(x, found(x))).nan_to_num(nan=-torch.inf)
            wrong = (promised > log_density + high) & (promised > highest - depth)
            if not bool(wrong.any()):
                break
            log_density = torch.where(wrong, promised, log_density).clamp(max=highest)
            more = _weights(log_density, depth) - weights
            found.learn(x[wrong], outputs[wrong], more[wrong])
            weights = weights + more
        found.equations = None  # large, and no part of a saved fit
        return found

    def __init__(
        self,
        x: Tensor,
        outputs: Tensor,
        log_density: Tensor,
        generator: torch.Generator,
        *,
        beta: float = 1.0,
        of_density: bool = False,
    ) -> None:
        d = x.shape[1]
        n_quadratic = 1 + d + d * (d + 1) // 2
        each, most = (_RIDGES_OF_DENSITIES, _MOST_OF_DENSITIES) if of_density else (_RIDGES_PER_DIMENSION, _MOST_RIDGES)
        n_ridges = min(each * d, most)
        weights = _weights(log_density, _depth(of_density, d) / beta)
        if len(x) > _MOST_DATA * (n_quadratic + n_ridges):  # of all that matter, not the best, which are close together
            some = torch.multinomial(weights.cpu(), _MOST_DATA * (n_quadratic + n_ridges), generator=generator)
            some = some.to(x.device)
            x, outputs, weights = x[some], outputs[some], weights[some].sqrt()
        shares = weights / weights.sum()
        effective = float(1.0 / shares.square().sum())
        self.centre, self.factor = _standardisation(x, shares)
        self.highest, self.steepness = float(log_density.max()) + _HIGH / beta, 1.0 / beta
        self.reach = float(self._whitened(x).square().sum(1).max())
        self.mean = shares @ outputs
        self.scale = (shares @ (outputs - self.mean).square()).sqrt().clamp(min=1e-300)
        self.i, self.j = torch.triu_indices(d, d, device=x.device)
        if effective < _DATA_PER_FUNCTION * n_quadratic / 2:
            self.i, self.j = self.i[:0], self.j[:0]
        self.n_polynomial = 1 + d + len(self.i)
        width = max(1, min(n_ridges, int((effective - self.n_polynomial) / _DATA_PER_FUNCTION)))
        directions, biases = torch.empty(width, d, dtype=x.dtype), torch.empty(width, dtype=x.dtype)
        draw_ridges(directions, biases, _SLOPES, _KINKS, generator)
        self.directions, self.biases = directions.to(x), biases.to(x)
        y = (outputs - self.mean) / self.scale
        self.equations = NormalEquations(self._polynomial, x, y, weights)
        if len(self.i):
            self._set(self.equations)
            self._turn_to_what_matters()
        self.equations.add_functions(self._polynomial, self._ridges, x, y, weights)
        self._set(self.equations)

    def learn(self, x: Tensor, outputs: Tensor, weights: Tensor) -> None:
        """Take in more weights (n,) of outputs (n, k) that are known at x (n, d)."""
        assert self.equations is not None
        self.equations.add_weight(self._functions, x, (outputs - self.mean) / self.scale, weights)
        self._set(self.equations)

    def _set(self, equations: NormalEquations) -> None:
        """Take over the solution of equations for the polynomial, or for all functions."""
        d = len(self.centre)
        price = torch.ones_like(equations.gram[0])
        price[: self.n_polynomial] = _POLYNOMIAL_PRICE
        coefficients = equations.solved(price)
        self.constant, self.linear, quadratic = coefficients[: self.n_polynomial].split([1, d, len(self.i)])
        self.quadratic = torch.zeros(d, d, coefficients.shape[1]).to(coefficients)
        self.quadratic[self.i, self.j] = quadratic
        self.outer = coefficients[self.n_polynomial :]

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
        y = self.constant + z @ self.linear + self._bent(z) @ self.outer
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
        return log_density.clamp(max=self.highest) - self.steepness * outside

    def _whitened(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, (x - self.centre).mT, upper=False).mT

    def _polynomial(self, x: Tensor) -> Tensor:
        z = self._whitened(x)
        return torch.cat([torch.ones_like(z[:, :1]), z, z[:, self.i] * z[:, self.j]], dim=1)

    def _ridges(self, x: Tensor) -> Tensor:
        return self._bent(self._whitened(x))

    def _functions(self, x: Tensor) -> Tensor:
        return torch.cat([self._polynomial(x), self._ridges(x)], dim=1)

    def _bent(self, z: Tensor) -> Tensor:
        return log_two_cosh(torch.addmm(self.biases, z, self.directions.mT))


def _weights(log_density: Tensor, depth: float) -> Tensor:
    """Weights (n,) of points in least squares: one each, and little far below the highest log density."""
    return 1.0 / (1.0 + ((log_density.max() - log_density) / depth).square()).square()


def _depth(of_density: bool, dim: int) -> float:
    """Nats below the highest log density from which on a point counts less and less."""
    return _HIGH + _HIGH_PER_DIMENSION * dim if of_density else _HIGH * (1 + dim)


def usable_power(black_box: BlackBoxEvaluator, n: int) -> float:
    """The largest power of the target's density, at most one, for which n of the points known count."""
    x, _, log_density = black_box.data
    depth = _depth(black_box.target.outputs_are_densities, x.shape[1])

    def missing(log_beta: float) -> float:
        weights = _weights(log_density, depth / math.exp(log_beta))
        return float(weights.sum().square() / weights.square().sum()) - min(n, 0.9 * len(log_density))

    if missing(0.0) >= 0.0:
        return 1.0
    spread = float(log_density.max() - log_density.min())
    return math.exp(brentq(missing, -math.log1p(spread) - 10.0, 0.0, rtol=1e-3))


def _standardisation(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and a factor (d, d) of the covariance of weighted points, regular also where these are too few."""
    mean, covariance = weighted_moments(x, weights)
    return mean, torch.linalg.cholesky(covariance + _SMALLEST * torch.diag(covariance.diagonal() + 1e-300))


def n_held_out(dim: int) -> int:
    """Particles that judge steps of a black box."""
    return 2 * (_NEW + _NEW_PER_DIMENSION * dim)


def emulated_outputs(state: State, method: str, *, again: bool) -> EnergyEvaluator:
    """The energy with an emulator in the black box's place, fitted to all that was evaluated, also at new particles.

    `method` is what the step is to be solved by, `again` whether another try of it has failed.
    """
    flow = state.flow
    black_box = flow.energy.black_box
    assert black_box is not None
    affine = method == "affine"
    if not (again and affine):
        n = _NEW + _NEW_PER_DIMENSION * flow.law.dim
        if not affine:
            n *= _MORE * (_AGAIN if again and black_box.target.outputs_are_densities else 1)
        some = state.pool.x[torch.randperm(len(state.pool), generator=flow.generator)[:n].to(state.pool.x.device)]
        far = covering(flow, 0, int(_TAIL_SHARE * n)).without_score().push_all(state.maps)
        black_box.log_density(torch.cat([some, far.x]))
    black_box.emulator = OutputEmulator.of(black_box, flow.generator, corrected=method != "collocation")
    return flow.energy.with_black_box(black_box.emulated(black_box.emulator))
