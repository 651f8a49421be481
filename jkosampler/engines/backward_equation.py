"""The equation of a Wasserstein step for the way back: `S = grad psi` pushes the new law to the old one.

With `psi = |x|^2 / 2 + phi` convex, the law `u'(x) = u(S(x)) det DS(x)` is the exact push-forward of u by `S^-1`, and
the step's optimality says that phi is the variation of the energy there:

    F(x) = k phi(x) - [V + W * u' + U'(u')](x),        k = cost / tau,

is the same everywhere. (Equations 2.6 to 2.8 and 3.8 of Park, Kim, Son, Hwang, arXiv 2109.14851: their psi, with the
new density a change of variables instead of a second network.) In x the equation is the identity less tau times an
elliptic operator, and as well posed as a step of an L2 flow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.engines.objectives import StepProblem
from jkosampler.engines.step_equation import Linearised, StepEquation
from jkosampler.errors import ArgumentError, MapInversionError
from jkosampler.maps import GradientMap
from jkosampler.particles import Particles
from jkosampler.potentials import ResNetPotential
from jkosampler.walled_potential import WalledPotential

__all__ = ["BackwardEquation", "way_back"]


class BackwardEquation(StepEquation):
    """F and its derivative at the points x whose images S(x) are given points of the old law.

    These keep their log densities and scores, whatever S is; x follows S by inversion, and the derivative is that at
    fixed x, which has the same solution.
    """

    def __init__(
        self, problem: StepProblem, points: Particles, weights: Tensor, potential: ResNetPotential, *, n_draws: int
    ) -> None:
        if points.score is None:
            raise ArgumentError(
                "initial: its density jumps, and engine='minimizing-movement' needs its score; take a smooth law, or "
                "engine='lagrangian'."
            )
        self.images, self.scores = points.x.double(), points.score.double()
        self.way = GradientMap(way_back(problem, potential))
        super().__init__(problem, points, weights, potential, hidden=True, n_draws=n_draws)
        if problem.walls is not None:  # beyond which there is nothing to keep from folding
            self.beyond, self.beyond_weights = self.z[:0], self.weights[:0]

    def derivative(self, now: Linearised) -> Tensor:
        if not isinstance(self.way.potential, WalledPotential):
            return super().derivative(now)
        # by the chain rule, in the coordinates of the functions
        c, slope, bend = self.way.potential.coordinates(now.z)
        force = slope * now.force - now.slope * bend * now.inverse.diagonal(dim1=1, dim2=2)
        inverse = slope.unsqueeze(2) * now.inverse * slope.unsqueeze(1)
        return super().derivative(now._replace(z=c, force=force, inverse=inverse))

    def _keep(self, rows: Tensor | slice) -> None:
        super()._keep(rows)
        self.images, self.scores = self.images[rows], self.scores[rows]

    @torch.no_grad()
    def _variation(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F (n,), NaN where S folds; the factor of grad in its derivative, the Cholesky factor of DS and P'."""
        self.set(parameters)
        potential, energy, k = self.way.potential, self.problem.energy, self.problem.stiffness
        try:
            self.z, _ = self.way.inverse(self.images)
        except MapInversionError:
            self.z = torch.full_like(self.images, torch.nan)
        factor, log_det = self._jacobian(potential.hessian(self.z))
        log_rho = self.log_rho + log_det
        variation = self._field(self.z).variation + energy.internal_variation(log_rho)
        slope = energy.pressure_slope(log_rho).unsqueeze(-1)
        return k * potential.value(self.z) - variation, -slope * self.scores, factor, slope


def way_back(problem: StepProblem, potential: ResNetPotential) -> ResNetPotential | WalledPotential:
    """The potential phi of the way back in the problem's coordinates, from one of depth 1."""
    if problem.walls is None:
        return potential
    centre, scale = problem.frame.centre, problem.frame.factor.diagonal()
    lower, upper = (problem.walls.lower.to(centre) - centre) / scale, (problem.walls.upper.to(centre) - centre) / scale
    return WalledPotential(potential, lower, upper)
