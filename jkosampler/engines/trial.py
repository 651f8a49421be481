"""A tried step, as particles see it that took no part in solving it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from sklearn.utils import Bunch
from torch import Tensor, nn

from jkosampler.diagnostics import Evidence, evidence
from jkosampler.diagnostics.stationarity import stationarity, step_identities
from jkosampler.energies import EnergyEvaluator, Field
from jkosampler.engines.base import State
from jkosampler.engines.least_action import path_resistance
from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_size import Judgement
from jkosampler.engines.step_solver import Solution, trained_part
from jkosampler.engines.training import TrainingResult
from jkosampler.errors import FitError
from jkosampler.maps import Map, ODEMap
from jkosampler.particles import Particles

__all__ = ["Trial", "claim", "contradiction", "escaped", "judge", "stationarity_of"]

_REFINEMENT = 4  # how much finer the integration is that checks a trained ODE
_CLAIMS_FROM = 50.0  # effective draws: fewer don't know the error of their evidence
_CONTRADICTION = 4.0  # standard errors
_BROKEN = 1e6  # nats: a rise of the energy that says that a network's training broke down; a shorter step may mend it
_NOWHERE = 1e30  # no target is there: particles that come so far have escaped


class Trial(NamedTuple):
    """A solved step of flow time tau, the held-out particles after it, and what they say.

    `slack` is E(rho) - E(rho') - d^2 / (2 tau), with its standard error: not negative for a step that is solved.
    `residual` is that of the step's first-order identities, `optimality_gap` (nats) bounds what a better map could
    gain where the energy is displacement convex; of a step of several stages, those of the last. `claim`,
    `missing_evidence` and `warm_start` are for `State`.
    """

    step: Map
    tau: float
    method: str
    check: Particles
    values: Tensor
    outposts: Particles
    judgement: Judgement
    dissipation: float
    slack: tuple[float, float]
    training: TrainingResult
    residual: float
    optimality_gap: float
    claim: Evidence | None
    missing_evidence: str | None
    warm_start: nn.Module | None
    solved: bool

    def record(self, now: float, mass: float = 1.0) -> Bunch:
        """The step's line in the history, for a law of this mass."""
        inside = self.values[self.values.isfinite()]
        return Bunch(
            time=now,
            step_size=self.tau,
            stage=self.method,
            energy=mass * float(inside.mean()),
            energy_se=mass * float(inside.std()) / len(inside) ** 0.5,
            outside=1.0 - len(inside) / len(self.values),
            energy_change=mass * self.judgement.energy_change,
            energy_change_se=mass * self.judgement.standard_error,
            transport_cost=mass * self.judgement.transport_cost,
            slack=mass * self.slack[0],
            slack_se=mass * self.slack[1],
            descends=self.slack[0] >= -3.0 * self.slack[1] - self.judgement.relief,
            loss=self.training.loss,
            n_iterations=self.training.n_iterations,
            solved=self.solved,
            residual=self.residual,
            optimality_gap=self.optimality_gap,
            integration_error=self.judgement.integration_error,
            discrepancy=self.judgement.discrepancy,
            dissipation=self.dissipation,
        )


def judge(state: State, solution: Solution) -> Trial | None:
    """Move the held-out particles by a solved step, and compare; None where it folds or loses some.

    Means are over the particles at which the energy is finite before and after.

    Raises
    ------
    FitError
        The particles have escaped.
    """
    energy, problem = state.flow.energy, solution.problem
    frame, step = problem.frame, solution.step
    outer = solution.map()
    start = state.check.push_all([stage for stage, _ in solution.stages])
    check, outposts = start.push(frame.conjugate(step)), state.outposts.push(outer)
    trained = solution.method == "network" and not state.control.exact
    if float(check.x.abs().max()) > _NOWHERE:
        if trained or state.emulated is not None:
            return None
        raise escaped(state, "the energy falls without end")
    if not all(bool(tensor.isfinite().all()) for tensor in (check.x, check.log_rho, outposts.x, outposts.log_rho)):
        return None
    if problem.mobility is not None:
        highest = max(float(check.log_rho.max()), float(outposts.log_rho.max())) + math.log(energy.mass)
        if highest >= math.log(problem.mobility.limit):
            return None
    field = energy.field(check.x)
    values = field.energy + energy.internal(check.log_rho)
    inside = values.isfinite() & state.values.isfinite()
    if int(inside.sum()) <= check.x.shape[1]:
        return None
    change = (values - state.values)[inside]
    if trained and float(change.mean()) > _BROKEN:
        return None
    relief = torch.zeros_like(change)
    if solution.barrier is not None:
        relief = (solution.barrier.at(start.log_rho) - solution.barrier.at(check.log_rho))[inside]
    before, after = frame.to_inner(start[inside]), frame.to_inner(check[inside])
    shift, whole_shift = after.x - before.x, after.x - frame.to_inner(state.check[inside]).x
    tau = state.control.tau if state.control.exact else problem.tau
    moved = frame.cost * _resistance(problem, step, before) * whole_shift.square().sum(-1)
    gain = -change - moved / (2.0 * tau)
    discrepancy, dissipation = stationarity_of(energy, check, field, inside)
    n_outside, n_outside_before = (int((~v.isfinite()).sum()) for v in (values, state.values))
    seen = claim(energy, values)
    missing = contradiction(state.claims, seen)
    judgement = Judgement(
        energy_change=float(change.mean()),
        standard_error=float((change - relief).std()) / len(change) ** 0.5,
        transport_cost=float(moved.mean()),
        discrepancy=discrepancy,
        integration_error=_integration_error(step, before, problem),
        lost_mass=missing is not None,
        relief=float(relief.mean()) + solution.negligible,
        left_support=n_outside > n_outside_before + 3.0 * n_outside**0.5,
    )
    inner_gradient = field.gradient[inside] @ frame.factor
    return Trial(
        outer,
        tau,
        solution.method,
        check,
        values,
        outposts,
        judgement,
        dissipation,
        (float(gain.mean()), float(gain.std()) / len(gain) ** 0.5),
        solution.training,
        residual=_identity_residual(energy, problem, shift, after, inner_gradient),
        optimality_gap=_optimality_gap(energy, problem, shift, after, inner_gradient),
        claim=seen,
        missing_evidence=missing,
        warm_start=trained_part(step),
        solved=solution.solved,
    )


def _resistance(problem: StepProblem, step: Map, before: Particles) -> Tensor | float:
    """`rho / M(rho)` along the paths of particles (n,); one for the linear mobility."""
    if problem.mobility is None:
        return 1.0
    with torch.no_grad():
        halfway, end = (step(before.x, s)[1] for s in (0.5, 1.0))
    return path_resistance(problem.mobility, before.log_rho + math.log(problem.energy.mass), halfway, end)


def stationarity_of(energy: EnergyEvaluator, particles: Particles, field: Field, inside: Tensor) -> tuple[float, float]:
    """Half the variance of dE/drho, and its relative Fisher information E[g'Cg] (NaN without scores), where finite."""
    particles, (_, variation, gradient) = particles[inside], (values[inside] for values in field)
    variation = variation + energy.internal_variation(particles.log_rho)
    discrepancy = 0.5 * float(variation.var())
    if particles.score is None:
        return discrepancy, float("nan")
    d = particles.x.shape[1]
    force = gradient + energy.pressure_slope(particles.log_rho).unsqueeze(-1) * particles.score
    covariance = torch.cov(particles.x.mT).reshape(d, d)
    return discrepancy, stationarity(force.cpu().numpy(), covariance.cpu().numpy())


def claim(energy: EnergyEvaluator, values: Tensor) -> Evidence | None:
    """What a law's importance weights say of the evidence; None where they are too unequal, or there is none."""
    if not energy.is_relative_entropy or not bool(values.isfinite().any()):
        return None
    found = evidence(-values.cpu().numpy())
    return found if found.ess >= _CLAIMS_FROM else None


def contradiction(claims: tuple[Evidence, ...], last: Evidence | None) -> str | None:
    """A sentence when an earlier law has seen significantly more mass than the last one sees."""
    if last is None:
        return None
    for seen in claims:
        excess = seen.log_evidence - last.log_evidence
        if excess > _CONTRADICTION * (seen.log_evidence_se**2 + last.log_evidence_se**2) ** 0.5:
            return (
                f"an earlier law of the fit estimated the log evidence as {seen.log_evidence:.3f} +- "
                f"{seen.log_evidence_se:.3f}, the last one as {last.log_evidence:.3f} +- {last.log_evidence_se:.3f}: "
                "the flow has lost a mode or a tail on the way."
            )
    return None


def escaped(state: State, error: Exception | str) -> FitError:
    """The error that says so, and what may be the reason."""
    deviation = state.check.x.std(dim=0)
    return FitError(
        f"the particles have escaped or collapsed after {len(state.maps)} steps: their standard deviations are "
        f"between {float(deviation.min()):.3g} and {float(deviation.max()):.3g}. Does log_target have the right sign "
        f"(it is the log density, not its negative), and a finite integral? ({error})"
    )


def _identity_residual(
    energy: EnergyEvaluator, problem: StepProblem, shift: Tensor, after: Particles, gradient: Tensor
) -> float:
    """Residual of the identities of the exact step; with pressure p they are those of the entropy at p tau, V / p."""
    pressure = float(energy.pressure_per_mass(after.log_rho).mean())
    if pressure <= 0.0 or len(shift) <= shift.shape[1] or problem.mobility or problem.walls:
        return float("nan")
    arrays = [array.cpu().numpy() for array in (shift, after.x, gradient / pressure)]
    return step_identities(arrays[0], arrays[1], arrays[2], pressure / problem.stiffness).residual


def _optimality_gap(
    energy: EnergyEvaluator, problem: StepProblem, shift: Tensor, after: Particles, gradient: Tensor
) -> float:
    """tau / (2 cost) E |r|^2, r the Euler-Lagrange residual: the objective is (cost / tau)-convex along maps."""
    if after.score is None or problem.mobility is not None:
        return float("nan")
    pressure = energy.pressure_slope(after.log_rho).unsqueeze(-1) * after.score
    residual = problem.stiffness * shift + gradient + pressure
    return float(residual.square().sum(-1).mean()) / (2.0 * problem.stiffness)


def _integration_error(step: Map, before: Particles, problem: StepProblem) -> float:
    """Change of the energy when the ODE of the step is integrated more finely; zero for other maps."""
    if not isinstance(step, ODEMap):
        return 0.0
    some = before[:500]
    energies = []
    for refine in (1, _REFINEMENT):
        with torch.no_grad():
            z, log_det, _ = step.integrate(some.x, 0.0, 1.0, refine=refine)
        energies.append(problem.field(z).energy + problem.energy.internal(some.log_rho - log_det))
    change = energies[1] - energies[0]
    return float(change[change.isfinite()].mean())
