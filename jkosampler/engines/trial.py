"""A tried step, as particles see it that took no part in its training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.utils import Bunch
from torch import Tensor

from jkosampler.diagnostics.stationarity import stationarity, step_identities
from jkosampler.energies import EnergyEvaluator
from jkosampler.engines.base import State
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_size import Judgement
from jkosampler.engines.training import TrainingResult
from jkosampler.maps import Conjugated, Map, ODEMap
from jkosampler.particles import Particles

__all__ = ["Trial", "judge", "stationarity_of"]

_REFINEMENT = 4  # how much finer the integration is that checks a trained ODE


class Trial(NamedTuple):
    """A solved step, the fresh particles after it, and what they say.

    `residual` is that of the step's first-order identities, `optimality_gap` (nats) bounds what a better map could
    gain where the energy is displacement convex, `integration_error` (nats) is the change of the energy when an
    ODE is integrated more finely.
    """

    step: Conjugated
    check: Particles
    values: Tensor
    judgement: Judgement
    dissipation: float
    training: TrainingResult
    residual: float
    optimality_gap: float
    integration_error: float

    def record(self, tau: float, now: float) -> Bunch:
        """The step's line in the history."""
        n = len(self.values)
        return Bunch(
            time=now,
            step_size=tau,
            stage="network" if self.training.n_iterations else "affine",
            energy=float(self.values.mean()),
            energy_se=float(self.values.std()) / n**0.5,
            energy_change=self.judgement.energy_change,
            energy_change_se=self.judgement.standard_error,
            transport_cost=self.judgement.transport_cost,
            loss=self.training.loss,
            n_iterations=self.training.n_iterations,
            residual=self.residual,
            optimality_gap=self.optimality_gap,
            integration_error=self.integration_error,
            discrepancy=self.judgement.discrepancy,
            dissipation=self.dissipation,
        )

    def hidden_layers(self) -> dict[str, Tensor]:
        """The network's hidden layers, to start the next one from; empty after an affine step."""
        if not self.training.n_iterations:
            return {}
        state = self.step.inner.state_dict()
        hidden = {name.removeprefix("potential."): value for name, value in state.items()}
        return {name: value for name, value in hidden.items() if name.startswith(("weights", "biases"))}


def judge(state: State, problem: StepProblem, step: Map, training: TrainingResult) -> Trial:
    """Move the fresh particles by a trained map of the step's coordinates, and compare."""
    energy, frame = state.flow.energy, problem.frame
    outer = frame.conjugate(step)
    check = state.check.push(outer)
    if not bool(check.x.isfinite().all() & check.log_rho.isfinite().all()):
        return _hopeless(state, outer, check, training)
    potential, gradient = energy.potential(check.x)
    values = potential + energy.internal(check.log_rho)
    change = values - state.values
    before, after = frame.to_inner(state.check), frame.to_inner(check)
    shift = after.x - before.x
    discrepancy, dissipation = stationarity_of(energy, check, potential, gradient)
    judgement = Judgement(
        energy_change=float(change.mean()),
        standard_error=float(change.std()) / len(change) ** 0.5,
        transport_cost=frame.cost * float(shift.square().sum(-1).mean()),
        discrepancy=discrepancy,
    )
    inner_gradient = gradient @ frame.factor
    return Trial(
        outer,
        check,
        values,
        judgement,
        dissipation,
        training,
        residual=_identity_residual(energy, problem, shift, after, inner_gradient),
        optimality_gap=_optimality_gap(energy, problem, shift, after, inner_gradient),
        integration_error=_integration_error(step, before, after, values, problem),
    )


def stationarity_of(
    energy: EnergyEvaluator, particles: Particles, potential: Tensor, gradient: Tensor
) -> tuple[float, float]:
    """Half the variance of dE/drho, and its relative Fisher information E[g'Cg] (NaN without scores)."""
    variation = potential + energy.internal(particles.log_rho) + energy.pressure_per_mass(particles.log_rho)
    discrepancy = 0.5 * float(variation.var())
    if particles.score is None:
        return discrepancy, float("nan")
    force = gradient + energy.pressure_slope(particles.log_rho).unsqueeze(-1) * particles.score
    covariance = torch.cov(particles.x.mT).reshape(2 * particles.x.shape[1:])
    return discrepancy, stationarity(force.cpu().numpy(), covariance.cpu().numpy())


def _identity_residual(
    energy: EnergyEvaluator, problem: StepProblem, shift: Tensor, after: Particles, gradient: Tensor
) -> float:
    """Residual of the identities of the exact step; with pressure p they are those of the entropy at p tau, V / p."""
    pressure = float(energy.pressure_per_mass(after.log_rho).mean())
    if pressure <= 0.0 or len(shift) <= shift.shape[1]:
        return float("nan")
    arrays = [array.cpu().numpy() for array in (shift, after.x, gradient / pressure)]
    return step_identities(arrays[0], arrays[1], arrays[2], pressure / problem.stiffness).residual


def _optimality_gap(
    energy: EnergyEvaluator, problem: StepProblem, shift: Tensor, after: Particles, gradient: Tensor
) -> float:
    """tau / (2 cost) E |r|^2, r the Euler-Lagrange residual: the objective is (cost / tau)-convex along maps."""
    if after.score is None:
        return float("nan")
    pressure = energy.pressure_slope(after.log_rho).unsqueeze(-1) * after.score
    residual = problem.stiffness * shift + gradient + pressure
    return float(residual.square().sum(-1).mean()) / (2.0 * problem.stiffness)


def _integration_error(step: Map, before: Particles, after: Particles, values: Tensor, problem: StepProblem) -> float:
    """Change of the energy when the ODE of the step is integrated more finely; zero for other maps."""
    if not isinstance(step, ODEMap):
        return 0.0
    some = before[:500]
    with torch.no_grad():
        z, log_det, _ = step.integrate(some.x, 0.0, 1.0, refine=_REFINEMENT)
    fine = problem.potential(z)[0] + problem.energy.internal(some.log_rho - log_det)
    return float((fine - values[: len(some)]).mean())


def _hopeless(state: State, outer: Conjugated, check: Particles, training: TrainingResult) -> Trial:
    """A map that folds at, or loses, some of the fresh particles."""
    nan = float("nan")
    return Trial(outer, check, state.values, Judgement(nan, nan, nan, nan), nan, training, nan, nan, nan)
