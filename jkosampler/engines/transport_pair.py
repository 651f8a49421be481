"""The Wasserstein distance by a pair of input-convex networks, and how the pair is trained.

Section 2.3 of Park, Kim, Son, Hwang (arXiv 2109.14851): psi pushes the new density u back to the old one, rho, and
psi-bar is its conjugate. `W2^2 = int |x|^2 u + int |y|^2 rho - 2 Corr` with

    Corr = min_psi max_psibar int psi u + int [ <S(y), y> - psi(S(y)) ] rho,   S = grad psi-bar         (2.9)

The paper minimises over both, with a term `lam R`, `R = int |grad psi(S(y)) - y|^2 rho`, that is to hold psi-bar at the
conjugate, (2.12). Near it the bracket is `const - psi'' |S - S*|^2 / 2` and R is `|psi'' (S - S*)|^2`, so that the pair
runs away unless lam > 1 / (2 psi''), which is 1/2 in short steps: what the paper finds in its section 4.2.6. By default
psi-bar maximises the bracket less `lam R`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad

from jkosampler.domains import Box
from jkosampler.engines.levenberg_marquardt import levenberg_marquardt
from jkosampler.engines.network_fit import Tried, fit_gradients
from jkosampler.tangent import InputConvex, Tangent, gram

__all__ = ["PAIRS", "TransportPair"]

PAIRS = ("max-min", "joint")

_POINTS = 1024
_ITERATIONS, _FITTED = 60, 1e-13  # of the fit to |x|^2 / 2, and mean square of what it misses


@dataclass(frozen=True)
class TransportPair:
    """psi, psi-bar, and how the latter is trained.

    Parameters
    ----------
    psi, conjugate : Tangent
        Convex functions.
    lam : float
        Weight of the cycle term R.
    pair : {"max-min", "joint"}
        psi-bar maximises the bracket of (2.9), or minimises it as (2.12) is printed.
    """

    psi: Tangent
    conjugate: Tangent
    lam: float = 1.0
    pair: str = "max-min"

    @classmethod
    def identity(
        cls, box: Box, generator: torch.Generator, *, width: int, depth: int = 2, lam: float = 1.0,
        pair: str = "max-min", device: torch.device | str = "cpu",
    ) -> TransportPair:  # fmt: skip
        """Both potentials fitted to |x|^2 / 2, as where nothing moves."""
        x = box.quadrature(_POINTS, generator, "gauss" if box.dim <= 2 else "sobol").x.to(device)
        weights = torch.full_like(x[:, 0], 1.0 / len(x))

        def potential() -> Tangent:
            network = InputConvex(*box.frame(device), width=width, depth=depth, generator=generator)
            return fit_gradients(Tangent(network), x, x, weights, max_iterations=_ITERATIONS, enough=_FITTED)

        return cls(potential(), potential(), lam, pair)

    def displacement_potential(self, x: Tensor) -> Tensor:
        """`|x|^2 / 2 - psi(x)` (n,): the derivative of W2^2 / 2 in the new density."""
        return x.square().sum(-1) / 2.0 - self.psi(x)

    def back_cost(self, x: Tensor) -> Tensor:
        """`|x|^2 - 2 psi(x)` (n,), of which W2^2 has the mean under the new density,"""
        return 2.0 * self.displacement_potential(x)

    def forth_cost(self, y: Tensor) -> Tensor:
        """and `|y|^2 - 2 psi*(y)` (n,), of which it has that under the old one.

        (2.13) with the conjugate's own value, its terms so arranged that nothing large cancels.
        """
        ahead = self.conjugate.gradient(y)
        return (ahead - y).square().sum(-1) - 2.0 * self.displacement_potential(ahead)

    def squared_distance(self, x: Tensor, u: Tensor, y: Tensor, rho: Tensor) -> Tensor:
        """W2^2 of points x (n, d) with weights u (n,) and y with rho, both of sum one."""
        return u @ self.back_cost(x) + rho @ self.forth_cost(y)

    def cycle(self, y: Tensor, rho: Tensor) -> float:
        """R (2.11), at points y (n, d) with weights rho (n,)."""
        return float(rho @ (self.psi.gradient(self.conjugate.gradient(y)) - y).square().sum(-1))

    def conjugate_loss(self, ahead: Tensor, y: Tensor) -> Tensor:
        """What psi-bar is to minimise, (n,) at S(y) and y (n, d)."""
        sign = 1.0 if self.pair == "joint" else -1.0
        missed = self.psi.gradient(ahead) - y
        return sign * ((ahead * y).sum(-1) - self.psi(ahead)) + self.lam * missed.square().sum(-1)

    def conjugate_slope(self, ahead: Tensor, y: Tensor) -> Tensor:
        """Its derivative (n, d) in S(y)."""
        return grad(lambda ahead: self.conjugate_loss(ahead, y).sum())(ahead)

    def with_trained_conjugate(
        self, y: Tensor, rho: Tensor, thin: Tensor | float = 0.0, *, max_iterations: int = 3
    ) -> TransportPair:
        """psi-bar after natural-gradient steps, in the metric of its displacements at the curvature of both terms.

        `thin` (n,) is added to the weights in this metric, to hold psi-bar where there is no mass.
        """

        def at(theta: Tensor) -> Tried | None:
            conjugate = Tangent(self.conjugate.network, theta)
            loss = rho @ self.conjugate_loss(conjugate.gradient(y), y)
            return Tried(conjugate, float(loss)) if bool(loss.isfinite()) else None

        def model(now: Tried) -> tuple[Tensor, Tensor]:
            jacobian = now.network.gradient_jacobian(y)
            slope = self.conjugate_slope(now.network.gradient(y), y)
            gradient = torch.einsum("n,nd,ndp->p", rho, slope, jacobian)
            return gradient, (1.0 + 2.0 * self.lam) * gram(jacobian, rho + thin)

        start = at(self.conjugate.theta)
        if start is None:
            return self
        end, _ = levenberg_marquardt(start, at, model, lambda *_: False, max_iterations=max_iterations)
        return replace(self, conjugate=end.network)
