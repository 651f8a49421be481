"""A network as a function of its parameters: derivatives point by point, for methods of second order.

Natural gradient and Gauss-Newton steps ask how a network's values, and its gradients in x, move with each parameter.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vjp, vmap

__all__ = ["InputConvex", "Tangent", "gram"]

_SLOPES = 1.5  # of the units at first, in coordinates in which the box is a cube
_NEGATIVE = -3.0  # before the softplus: weights that start small
_QUADRATIC = 0.98  # root of the share of |x|^2 / 2 that starts in the quadratic term


class InputConvex(nn.Module):
    """A convex function of points, (..., d) -> (...): a fully input-convex network beside a convex quadratic.

    `z_1 = g(A_0 y + b_0)`, `z_{i+1} = g(W_i z_i + A_i y + b_i)`, `f = s^2 (w . z_L / m + c . y + |Q y|^2 / 2)` with the
    softplus for g (section 2.3 of arXiv 2109.14851), in coordinates y in which the box is the cube [-1, 1]^d. W_i and w
    are positive by construction, softplus of the parameters, where the paper clips after each update.

    Parameters
    ----------
    center, scale : Tensor (d,)
        Of the box; s is the mean of the scales.
    width, depth : int
        Units of a layer, m, and layers, L.
    generator : torch.Generator
        Draws the first parameters; f is near `|x|^2 / 2` then.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, center: Tensor, scale: Tensor, *, width: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        self.factor = float(scale.mean()) ** 2

        def drawn(rows: int, columns: int, size: float = 1.0, shift: float = 0.0) -> nn.Parameter:
            draws = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
            return nn.Parameter((shift + size * draws).to(center))

        sizes = [len(center)] + [width] * depth
        self.skips = nn.ParameterList([drawn(width, len(center), _SLOPES) for _ in range(depth)])
        self.biases = nn.ParameterList([drawn(width, 1) for _ in range(depth)])
        self.layers = nn.ParameterList([drawn(n, m, 1.0, _NEGATIVE) for m, n in pairwise(sizes[1:])])
        self.last = nn.Parameter(torch.full_like(center[:1].expand(width), _NEGATIVE))
        self.slope = nn.Parameter(center * scale / self.factor)
        self.root = nn.Parameter(_QUADRATIC * torch.diag(scale / scale.mean()))

    def forward(self, x: Tensor) -> Tensor:
        softplus = nn.functional.softplus
        y = (x - self.center) / self.scale
        inputs = [y @ skip.mT + bias[:, 0] for skip, bias in zip(self.skips, self.biases, strict=True)]
        z = softplus(inputs[0])
        for layer, entering in zip(self.layers, inputs[1:], strict=True):
            z = softplus(z @ softplus(layer).mT + entering)
        quadratic = (y @ self.root.mT).square().sum(-1) / 2.0
        return self.factor * (z @ softplus(self.last) / len(self.last) + y @ self.slope + quadratic)


class Tangent:
    """A network, (d,) -> () for a point, at parameters theta (p,), which may be moved.

    Parameters
    ----------
    network : torch.nn.Module
        Its own parameters are only where theta starts.
    theta : Tensor (p,), optional
        Other parameters, flattened.
    """

    def __init__(self, network: nn.Module, theta: Tensor | None = None) -> None:
        self.network = network
        parameters = dict(network.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self.theta = torch.cat([p.detach().flatten() for p in parameters.values()]) if theta is None else theta

    def moved(self, step: Tensor) -> Tangent:
        """The same network at theta + step."""
        return Tangent(self.network, self.theta + step)

    def at(self, theta: Tensor, x: Tensor) -> Tensor:
        """Values at points x (..., d) for other parameters; differentiable in both."""
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        named = {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
        return functional_call(self.network, named, (x,))

    def __call__(self, x: Tensor) -> Tensor:
        return self.at(self.theta, x)

    def gradient_at(self, theta: Tensor, x: Tensor) -> Tensor:
        """Gradients (n, d) in x (n, d)."""
        return vmap(grad(self.at, argnums=1), (None, 0))(theta, x)

    def gradient(self, x: Tensor) -> Tensor:
        """Gradients (n, d) in x (n, d)."""
        return self.gradient_at(self.theta, x)

    def jacobian(self, x: Tensor) -> Tensor:
        """Derivatives (n, p) in theta of the values at x (n, d)."""
        return vmap(grad(self.at), (None, 0))(self.theta, x)

    def gradient_jacobian(self, x: Tensor) -> Tensor:
        """Derivatives (n, d, p) in theta of the gradients at x (n, d)."""
        return vmap(jacrev(grad(self.at, argnums=1)), (None, 0))(self.theta, x)

    def pulled(self, x: Tensor, v: Tensor) -> Tensor:
        """`v @ jacobian(x)` (p,) for v (n,), without the matrix."""
        return vjp(lambda theta: self.at(theta, x), self.theta)[1](v)[0]

    def pulled_gradient(self, x: Tensor, v: Tensor) -> Tensor:
        """The same of `gradient_jacobian(x)`, (p,) for v (n, d)."""
        return vjp(lambda theta: self.gradient_at(theta, x), self.theta)[1](v)[0]


def gram(jacobian: Tensor, weights: Tensor) -> Tensor:
    """`sum_i w_i J_i' J_i` (p, p) of Jacobians (n, p) or (n, d, p) with weights (n,) >= 0."""
    rows = weights.sqrt().view(-1, *[1] * (jacobian.dim() - 1)) * jacobian
    rows = rows.reshape(-1, jacobian.shape[-1])
    return rows.mT @ rows
