"""Deliberate faults in the formulas of the package; `mutations.py` tries them one by one."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """What is replaced by what, in a file of the package, and the test files that are to notice."""

    file: str
    old: str
    new: str
    sentence: str
    tests: tuple[str, ...]


FAULTS = [
    Fault(
        "maps/straight.py",
        "return x + shift, self.log_det(jacobian)",
        "return x - shift, self.log_det(jacobian)",
        "the velocity of a gradient map has the wrong sign",
        ("maps/test_maps.py",),
    ),
    Fault(
        "energies/evaluator.py",
        "gradient - coefficient * slope",
        "gradient + coefficient * slope",
        "the gradient of the potential has the wrong sign",
        ("energies/test_evaluator.py",),
    ),
    Fault(
        "engines/objectives.py",
        "potential + internal + 0.5 * self.problem.stiffness * action",
        "potential + internal + self.problem.stiffness * action",
        "the kinetic term of a step lacks its factor 1/2",
        ("engines/test_objectives.py",),
    ),
    Fault(
        "engines/objectives.py",
        "self.problem.energy.internal(batch.log_rho - log_det)",
        "self.problem.energy.internal(batch.log_rho)",
        "the objective of a step lacks the log determinant",
        ("engines/test_objectives.py",),
    ),
    Fault(
        "engines/objectives.py",
        "return self.stiffness * (pushed.x - z) + force + pressure",
        "return self.stiffness * (pushed.x - z) + force",
        "the Euler-Lagrange residual lacks the pressure",
        ("engines/test_objectives.py",),
    ),
    Fault(
        "engines/step_equation.py",
        "k * (potential.value(self.z) + 0.5 * gradient.square().sum(-1))",
        "k * (potential.value(self.z) + gradient.square().sum(-1))",
        "the step's integrated equation lacks the factor 1/2 of |grad phi|^2",
        ("engines/test_step_equation.py",),
    ),
    Fault(
        "particles.py",
        "x, log_det, score = step.push(part.x, part.score)\n        return Particles(x, part.log_rho - log_det, score)",
        "x, log_det, score = step.push(part.x, part.score)\n        return Particles(x, part.log_rho, score)",
        "particles keep their old density when a map moves them",
        ("test_particles.py",),
    ),
    Fault(
        "maps/composed.py",
        "return Pushed(self.to_outer(z), log_det, torch.linalg.solve(self.factor.mT, score.mT).mT)",
        "return Pushed(self.to_outer(z), log_det, torch.linalg.solve(self.factor, score.mT).mT)",
        "scores return from a step's coordinates by L instead of its transpose",
        ("maps/test_maps.py",),
    ),
    Fault(
        "metrics.py",
        "mean, covariance = weighted_moments(particles.x, weights)\n        deviation",
        "mean, covariance = vars(self).setdefault('kept', weighted_moments(particles.x, weights))\n        deviation",
        "the Kalman metric keeps the covariance of its first step",
        ("test_metrics.py", "engines/test_exact_steps.py"),
    ),
    Fault(
        "metrics.py",
        "return (left * values) @ left.mT",
        "return (left * values.square()) @ left.mT",
        "the Kalman metric takes C for its root",
        ("test_metrics.py",),
    ),
    Fault(
        "maps/ode.py",
        '"heun": (((), (1.0,)), (0.5, 0.5)),',
        '"heun": (((), (1.0,)), (0.6, 0.4)),',
        "the trapezoid rule of Heun's scheme has wrong weights",
        ("maps/test_maps.py",),
    ),
    Fault(
        "potentials.py",
        "None, 1.0, torch.diagonal(quadratic).sum()",
        "None, 1.0, 0.0 * torch.diagonal(quadratic).sum()",
        "the Laplacian lacks the quadratic term's trace",
        ("test_potentials.py",),
    ),
    Fault(
        "potentials.py",
        "trace = trace + scale * (curvature * rows.square().sum(1)).sum(-1)",
        "trace = trace + 0.0 * scale * (curvature * rows.square().sum(1)).sum(-1)",
        "the Laplacian lacks the deeper layers",
        ("test_potentials.py",),
    ),
    Fault(
        "targets/constraints.py",
        "(logsigmoid(z) + logsigmoid(-z) + math.log(self.high - self.low)).sum(1)",
        "(logsigmoid(z) + logsigmoid(-z)).sum(1)",
        "the Jacobian of an interval lacks its length",
        ("targets/test_constraints.py",),
    ),
    Fault(
        "_corrected.py",
        "log_weights[defined] = -potential - log_rho[defined]",
        "log_weights[defined] = potential + log_rho[defined]",
        "importance weights have the wrong sign",
        ("test_corrected.py",),
    ),
    Fault(
        "_result.py",
        "log_weights = (-potential - particles.log_rho)",
        "log_weights = (-potential + particles.log_rho)",
        "the report's weights multiply by the density of the law",
        ("test_estimator_state.py",),
    ),
    Fault(
        "diagnostics/evidence.py",
        "mean = float(relative.mean())",
        "mean = float(relative.sum())",
        "the evidence lacks -log n",
        ("diagnostics/test_evidence.py",),
    ),
    Fault(
        "laws/compact.py",
        "spread = d * (m - 1.0) + 2.0  # d / al",
        "spread = d * (m - 1.0) + 1.0  # d / al",
        "Barenblatt's profile spreads by a wrong exponent",
        ("test_laws_compact.py",),
    ),
    Fault(
        "energies/terms.py",
        "return self.pressure_per_mass(log_rho) / (self.m - 1.0)",
        "return self.pressure_per_mass(log_rho)",
        "the porous medium's energy lacks its factor 1 / (m - 1)",
        ("energies/test_terms.py", "energies/test_evaluator.py"),
    ),
    Fault(
        "energies/evaluator.py",
        "return Field(value + 0.5 * felt, value + felt, gradient)",
        "return Field(value + felt, value + felt, gradient)",
        "the interaction energy lacks its factor 1/2",
        ("energies/test_evaluator.py", "energies/test_interaction.py"),
    ),
    Fault(
        "energies/functionals.py",
        "(u.square() - 1.0).square() / (4.0 * self.epsilon**2)",
        "(u.square() - 1.0).square() / (2.0 * self.epsilon**2)",
        "the wells of Allen and Cahn's functional have a wrong factor",
        ("energies/test_functionals.py",),
    ),
    Fault(
        "engines/field_step.py",
        "(moved + self.first) / (2.0 * self.basis.tau)",
        "(moved + self.first) / self.basis.tau",
        "the L2 distance of a step lacks its factor 1/2",
        ("engines/test_field_step.py",),
    ),
    Fault(
        "engines/step_solver.py",
        "shares = [1.0 - _GAMMA, _GAMMA] * pieces",
        "shares = [0.5, 0.5] * pieces",
        "the stages of a step of second order have wrong lengths",
        ("engines/test_second_order.py",),
    ),
    Fault(
        "engines/minimizing_movement.py",
        "s = (1.0 - _GAMMA) / _GAMMA",
        "s = 1.0",
        "a second-order step of a field does not extrapolate",
        ("engines/test_minimizing_movement.py",),
    ),
    Fault(
        "tangent.py",
        "z = softplus(z @ softplus(layer).mT + entering)",
        "z = softplus(z @ layer.mT + entering)",
        "the convex network's inner weights may be negative",
        ("test_tangent.py",),
    ),
    Fault(
        "engines/transport_pair.py",
        "return x.square().sum(-1) / 2.0 - self.psi(x)",
        "return x.square().sum(-1) - self.psi(x)",
        "the derivative of the distance of networks lacks its factor 1/2",
        ("engines/test_transport_pair.py",),
    ),
    Fault(
        "engines/density_step.py",
        "left = variation + now.pair.displacement_potential(self.x) / self.tau",
        "left = variation - now.pair.displacement_potential(self.x) / self.tau",
        "a density network's step climbs in the distance",
        ("engines/test_density_networks.py",),
    ),
    Fault(
        "domains.py",
        "shares = (weights / (2.0 * panels)).repeat(panels)",
        "shares = (weights / panels).repeat(panels)",
        "the weights of Gauss's rule in a box are twice too large",
        ("test_domains.py",),
    ),
    Fault(
        "mobility.py",
        "return 1.0 - rho",
        "return 1.0 + rho",
        "the mobility of exclusion grows with the density",
        ("test_mobility.py",),
    ),
    Fault(
        "targets/inverse_problem.py",
        "columns = -0.5 * z.square() - factor.diagonal().log()",
        "columns = -0.5 * z.square() - 2.0 * factor.diagonal().log()",
        "the likelihood's constant takes variances for standard deviations",
        ("targets/test_inverse_problem.py",),
    ),
    Fault(
        "forward/elliptic.py",
        "resistance * (0.5 * (x - x.square()))",
        "resistance * (x - x.square())",
        "the elliptic problem's solution lacks the factor 1/2 of its source",
        ("forward/test_elliptic.py",),
    ),
]  # fmt: skip
