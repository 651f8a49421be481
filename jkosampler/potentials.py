"""The potential `phi` of a step: a ResNet with a quadratic and a linear term, and its derivatives in closed form.

Section 3 of Lee, Wang, Li (arXiv 2311.06700) with the corrections of `docs/design.md`: the input is
`s = (x, t)` (or `x` alone), the activation is `sigma(a) = log(e^a + e^-a)`, so `sigma' = tanh`, and

    u_1 = sigma(W_0 s + b_0),   u_{l+1} = u_l + sigma(W_l u_l + b_l),   phi = w'u_L + s'A s / 2 + b's.

Gradient, Laplacian and Hessian follow from one sweep back (`z_l`) and one sweep forward (`J_l`), for every
depth L; no automatic differentiation is needed for them, so that one more differentiation of their result is cheap.
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from jkosampler._arguments import generator_or_fresh
from jkosampler.errors import ArgumentError

__all__ = ["ResNetPotential", "draw_ridges", "log_two_cosh"]


def log_two_cosh(a: Tensor) -> Tensor:
    """`log(e^a + e^-a)`, which neither overflows nor loses digits: `softplus(2a) - a`."""
    return nn.functional.softplus(2.0 * a, threshold=50.0) - a


@torch.no_grad()
def draw_ridges(
    weight: Tensor, bias: Tensor, slopes: tuple[float, float], kinks: float, generator: torch.Generator
) -> None:
    """Draw ridge functions of `weight @ x + bias`, (m, d) and (m,), in place: all directions, slopes log-uniform in a
    range, kinks uniform out to a distance from the origin.
    """
    normal = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    uniform = torch.rand(2, len(weight), generator=generator, dtype=torch.float64)
    low, high = (math.log(slope) for slope in slopes)
    slope = torch.exp(low + (high - low) * uniform[0])
    weight.copy_(slope.unsqueeze(-1) * normal / normal.norm(dim=1, keepdim=True))
    bias.copy_(slope * kinks * (2.0 * uniform[1] - 1.0))


class ResNetPotential(nn.Module):
    """Scalar potential `phi(x)` or `phi(x, t)` whose gradient is the velocity of a step.

    Parameters
    ----------
    dim : int
        Dimension d of x.
    width : int
        Units m of each layer.
    depth : int
        Layers L >= 0; with `depth=0` the potential is the quadratic and linear term alone, and its map is affine.
    time_input : bool
        Whether the potential depends on the inner time t as well.
    generator : torch.Generator, optional
        Source of the random first weights; None: fresh entropy, never torch's global generator.

    Notes
    -----
    At the start `w = 0`, `A = 0` and `b = 0`: zero velocity, so that a step begins at the identity.
    Shapes: x is (n, d), t a number or (n,); `value` and `laplacian` are (n,), `gradient` (n, d), `hessian` (n, d, d).
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 64,
        depth: int = 2,
        time_input: bool = False,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ArgumentError(f"dim must be at least 1, got {dim}.")
        if depth < 0 or (depth > 0 and width < 1):
            raise ArgumentError(f"depth must be >= 0 and width >= 1, got depth={depth}, width={width}.")
        self.dim, self.width, self.depth, self.time_input = dim, width, depth, time_input
        inputs = dim + int(time_input)
        generator = generator_or_fresh(generator)

        def uniform(*shape: int, bound: float) -> nn.Parameter:
            values = torch.rand(*shape, generator=generator, dtype=dtype) * (2.0 * bound) - bound
            return nn.Parameter(values.to(device))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(*shape, dtype=dtype, device=device))

        # Slopes of order one against inputs of order one (whitened particles), kinks spread over their range.
        self.weights = nn.ParameterList(
            [uniform(width, inputs if layer == 0 else width, bound=self._bound(layer)) for layer in range(depth)]
        )
        self.biases = nn.ParameterList([uniform(width, bound=2.0 if layer == 0 else 0.5) for layer in range(depth)])
        self.output = zeros(width) if depth else zeros(0)
        self.quadratic = zeros(inputs, inputs)
        self.linear = zeros(inputs)

    def _bound(self, layer: int) -> float:
        fan_in = self.dim + int(self.time_input) if layer == 0 else self.width
        return math.sqrt(3.0 / fan_in)

    def scaled(self, factor: float) -> ResNetPotential:
        """A copy whose values are so many times as large."""
        copy = deepcopy(self)
        with torch.no_grad():
            for parameter in (copy.output, copy.quadratic, copy.linear):
                parameter.mul_(factor)
        return copy

    def value(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """`phi`, shape (n,)."""
        s = self._inputs(x, t)
        result = 0.5 * ((s @ self.quadratic_form()) * s).sum(-1) + s @ self.linear
        if self.depth:
            a, u = self._arguments(s)
            last = log_two_cosh(a[-1])
            result = result + (last if self.depth == 1 else u + last) @ self.output
        return result

    def gradient(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """`grad_x phi`, shape (n, d)."""
        s = self._inputs(x, t)
        slopes = self._slopes(s)
        return self._gradient(s, slopes, self._backward(slopes))

    def laplacian(self, x: Tensor, t: Tensor | float | None = None, probes: Tensor | None = None) -> Tensor:
        """`tr hess_x phi`, shape (n,); see `gradient_and_laplacian`."""
        return self.gradient_and_laplacian(x, t, probes)[1]

    def hessian(self, x: Tensor, t: Tensor | float | None = None) -> Tensor:
        """`hess_x phi`, shape (n, d, d)."""
        return self.gradient_and_hessian(x, t)[1]

    def gradient_and_laplacian(
        self, x: Tensor, t: Tensor | float | None = None, probes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`grad_x phi` (n, d) and `tr hess_x phi` (n,) in one sweep; the Hessian is never formed.

        With `probes` (k, d), of mean zero and unit covariance, the trace is Hutchinson's estimate
        `mean_k e_k' hess phi e_k`, whose cost does not grow with d.
        """
        s = self._inputs(x, t)
        slopes = self._slopes(s)
        z = self._backward(slopes)
        quadratic = self.quadratic_form()[: self.dim, : self.dim]
        if probes is None:
            directions, scale, constant = None, 1.0, torch.diagonal(quadratic).sum()
        else:
            directions, scale = probes, 1.0 / len(probes)
            constant = scale * ((probes @ quadratic) * probes).sum()
        trace = constant.expand(len(x))
        for layer, (curvature, rows) in enumerate(self._curvatures(slopes, z, directions)):
            if layer == 0:  # W_0 is the same for every particle
                trace = trace + scale * (curvature @ rows.square().sum(0))
            else:
                trace = trace + scale * (curvature * rows.square().sum(1)).sum(-1)
        return self._gradient(s, slopes, z), trace

    def gradient_and_hessian(self, x: Tensor, t: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """`grad_x phi` (n, d) and `hess_x phi` (n, d, d) in one sweep."""
        s = self._inputs(x, t)
        slopes = self._slopes(s)
        z = self._backward(slopes)
        d = self.dim
        hessian = self.quadratic_form()[:d, :d].expand(len(x), d, d)
        for layer, (curvature, rows) in enumerate(self._curvatures(slopes, z)):
            if layer == 0:
                outer = (rows.unsqueeze(0) * rows.unsqueeze(1)).flatten(0, 1)
                hessian = hessian + (curvature @ outer.mT).unflatten(-1, (d, d))
            else:
                hessian = hessian + (curvature.unsqueeze(1) * rows) @ rows.mT
        return self._gradient(s, slopes, z), hessian

    def _inputs(self, x: Tensor, t: Tensor | float | None) -> Tensor:
        if not self.time_input:
            return x
        if t is None:
            raise ArgumentError("this potential depends on time: t must be given.")
        column = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x)).unsqueeze(-1)
        return torch.cat([x, column], dim=-1)

    def quadratic_form(self) -> Tensor:
        """The symmetric matrix A of the quadratic term, in the inputs (x, t)."""
        return 0.5 * (self.quadratic + self.quadratic.mT)

    def _arguments(self, s: Tensor) -> tuple[list[Tensor], Tensor]:
        """The arguments a_0..a_{L-1} of the activations, and u_{L-1} (s itself for L = 1)."""
        a = [torch.addmm(self.biases[0], s, self.weights[0].mT)]
        u = s
        for layer in range(1, self.depth):
            u = log_two_cosh(a[-1]) if layer == 1 else u + log_two_cosh(a[-1])
            a.append(torch.addmm(self.biases[layer], u, self.weights[layer].mT))
        return a, u

    def _slopes(self, s: Tensor) -> list[Tensor]:
        """sigma'(a_l) for all layers."""
        return [torch.tanh(a) for a in self._arguments(s)[0]] if self.depth else []

    def _backward(self, slopes: list[Tensor]) -> list[Tensor]:
        """z_1..z_L, the derivatives of phi in u_1..u_L: z_L = w, z_l = z_{l+1} + W_l'(sigma'(a_l) z_{l+1})."""
        if not self.depth:
            return []
        z = [self.output.expand_as(slopes[-1])]
        for layer in range(self.depth - 1, 0, -1):
            z.insert(0, torch.addmm(z[0], slopes[layer] * z[0], self.weights[layer]))
        return z

    def _gradient(self, s: Tensor, slopes: list[Tensor], z: list[Tensor]) -> Tensor:
        gradient = torch.addmm(self.linear, s, self.quadratic_form())
        if self.depth:
            gradient = torch.addmm(gradient, slopes[0] * z[0], self.weights[0])
        return gradient[:, : self.dim]

    def _curvatures(
        self, slopes: list[Tensor], z: list[Tensor], directions: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Layer by layer sigma''(a_l) z_{l+1}, (n, m), and (W_l J_{l-1})': (d, m) for l = 0, then (n, d, m).

        The Hessian is the sum over layers of `rows diag(curvature) rows'`, with J_0 = diag(sigma'(a_0)) W_0 and
        J_l = J_{l-1} + diag(sigma'(a_l)) W_l J_{l-1}; J is kept transposed, so that a layer is one product.
        With `directions` (k, d), J is applied to these instead of the unit vectors.
        """
        result = []
        jacobian = torch.empty(0)
        for layer in range(self.depth):
            if layer == 0:
                rows = self.weights[0][:, : self.dim].mT
                rows = rows if directions is None else directions @ rows
            else:
                rows = jacobian @ self.weights[layer].mT
            result.append(((1.0 - slopes[layer].square()) * z[layer], rows))
            if layer + 1 < self.depth:
                increment = slopes[layer].unsqueeze(1) * rows
                jacobian = increment if layer == 0 else jacobian + increment
        return result
