"""Scalar fields `u(x)` on a domain: networks, functions of the user, mixtures of two; and a fitted flow of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from jkosampler._inputs import step_at
from jkosampler.domains import Box, Domain
from jkosampler.errors import (
    ArgumentError,
    TargetError,
    TargetShapeError,
    TargetValueError,
    UnavailableError,
    describe_points,
)

__all__ = ["CosineField", "FittedFields", "GivenField", "MixedField", "NetworkField", "ScalarField", "SmoothField"]

_COMPARED = 64  # points at which torch's gradient is compared with differences
_MISMATCH = 0.05  # of the largest slope: differences of single precision are no better
_ROUNDING = 1e-6  # of the sides: a point that is not farther outside of a box is on its edge
_CHUNK = 16384  # points that are evaluated at a time: bounds the memory, whatever n


class ScalarField(Protocol):
    """A differentiable function of points."""

    def __call__(self, x: Tensor) -> Tensor:
        """u (n,) at x (n, d), differentiable by torch."""
        ...

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (n,) and grad u (n, d) at x (n, d), without graph."""
        ...


class SmoothField(ScalarField, Protocol):
    """A function of points with second derivatives."""

    def hessian(self, x: Tensor) -> Tensor:
        """Second derivatives (n, d, d) at x (n, d), without graph."""
        ...


class GivenField:
    """A function of the user, (n, d) -> (n,), on a domain.

    Its gradient is torch's, or made of differences where torch has none or a wrong one, as of what numpy computes.

    Raises
    ------
    TargetError
        When called: it fails, or returns another shape or a value that is not finite.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], domain: Domain, name: str = "initial") -> None:
        self.function, self.domain, self.name = function, domain, name

    def __call__(self, x: Tensor) -> Tensor:
        try:
            u = self.function(x)
        except Exception as error:
            raise TargetError(
                f"{self.name} fails when it is called with points of shape {tuple(x.shape)}: {error!r}."
            ) from error
        if not isinstance(u, Tensor) or u.shape != x.shape[:1]:
            found = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
            raise TargetShapeError(f"{self.name} must return a tensor of shape ({len(x)},), got {found}.")
        bad = ~u.detach().isfinite()
        if bool(bad.any()):
            points, rows = x.detach().cpu().double().numpy(), bad.nonzero()[:, 0].cpu().numpy()
            raise TargetValueError(
                f"{self.name} is not finite at {len(rows)} points: {describe_points(points, rows)}.",
                points[rows[:10]],
                rows,
            )
        return u.to(x)

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, few = self(x.detach()).detach(), x[:_COMPARED].detach()
        by_torch, by_differences = self._by_torch(few), self.domain.differences(self, few)
        size = float(by_differences.abs().max())
        # at kinks they differ rightly: most have to agree
        right = by_torch is not None and float((by_torch - by_differences).abs().amax(1).median()) <= _MISMATCH * size
        gradient = self._by_torch(x) if right else None
        return u, self.domain.differences(self, x.detach()) if gradient is None else gradient

    def _by_torch(self, x: Tensor) -> Tensor | None:
        """The gradient (n, d), None where torch has none."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            try:
                u = self(x)
            except TargetError:  # numpy refuses tensors with a graph
                return None
            if not u.requires_grad:
                return None
            return torch.autograd.grad(u.sum(), x)[0]


class CosineField:
    """`u(x) = sum_j c_j cos(w_j . y + b_j)` in the coordinates `y = (x - center) / scale`: a layer of cosine units.

    Parameters
    ----------
    center, scale : Tensor (d,)
    frequencies : Tensor (m, d)
        w; a row of zeros with phase zero makes the constant.
    phases : Tensor (m,)
        b.
    coefficients : Tensor (m,), optional
        c; None: zero.
    """

    def __init__(
        self, center: Tensor, scale: Tensor, frequencies: Tensor, phases: Tensor, coefficients: Tensor | None = None
    ) -> None:
        self.center, self.scale, self.frequencies, self.phases = center, scale, frequencies, phases
        self.coefficients = torch.zeros_like(phases) if coefficients is None else coefficients

    def with_coefficients(self, coefficients: Tensor) -> CosineField:
        """The same hidden layer with another last one."""
        return CosineField(self.center, self.scale, self.frequencies, self.phases, coefficients)

    def to(self, device: torch.device) -> CosineField:
        """The same on another device."""
        parts = (self.center, self.scale, self.frequencies, self.phases, self.coefficients)
        return CosineField(*[part.to(device) for part in parts])

    @property
    def slopes(self) -> Tensor:
        """Gradients (m, d) of the units' arguments in x."""
        return self.frequencies / self.scale

    def angles(self, x: Tensor) -> Tensor:
        """Arguments (n, m) of the units."""
        return ((x - self.center) / self.scale) @ self.frequencies.mT + self.phases

    def __call__(self, x: Tensor) -> Tensor:
        return self.angles(x).cos() @ self.coefficients

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = self.angles(x)
        return angles.cos() @ self.coefficients, -(angles.sin() * self.coefficients) @ self.slopes

    def hessian(self, x: Tensor) -> Tensor:
        slopes, d = self.slopes, x.shape[1]
        squares = (slopes[:, :, None] * slopes[:, None, :]).reshape(-1, d * d)
        return -(self.angles(x).cos() @ (self.coefficients[:, None] * squares)).reshape(-1, d, d)


class NetworkField(nn.Module):
    """A fully connected network, in the coordinates `(x - center) / scale`."""

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        center: Tensor,
        scale: Tensor,
        *,
        width: int,
        depth: int,
        activation: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)
        sizes = [len(center), *[width] * depth, 1]
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            layer = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=center.dtype, device=center.device)
            bound = inputs**-0.5
            with torch.no_grad():
                for parameter in (layer.weight, layer.bias):
                    draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.copy_(bound * (2.0 * draw - 1.0))
            layers += [layer] if i == len(sizes) - 2 else [layer, ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers)

    def __call__(self, x: Tensor) -> Tensor:
        return self.layers((x - self.center) / self.scale)[:, 0]

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            u = self(x)
            (gradient,) = torch.autograd.grad(u.sum(), x)
        return u.detach(), gradient

    def hessian(self, x: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
            columns = gradient.unbind(1)
            rows = [torch.autograd.grad(v.sum(), x, retain_graph=True, materialize_grads=True)[0] for v in columns]
        return torch.stack(rows, 1)


class _Cosine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cos()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh, "elu": nn.ELU, "relu": nn.ReLU, "softplus": nn.Softplus, "cos": _Cosine,
}  # fmt: skip


class MixedField:
    """`(1 - s) u + s v` for two fields."""

    def __init__(self, u: ScalarField, v: ScalarField, s: float) -> None:
        self.u, self.v, self.s = u, v, s

    def __call__(self, x: Tensor) -> Tensor:
        return torch.lerp(self.u(x), self.v(x), self.s)


class FittedFields:
    """The fields `u_t`, t in [0, times[-1]], of a fitted L2 flow; between two steps they are interpolated linearly.

    Parameters
    ----------
    domain : Domain
        Where they live.
    fields : sequence of K + 1 fields
        From the initial one on.
    times : sequence of K + 1 floats
        Their flow times, from 0.
    """

    def __init__(self, domain: Domain, fields: Sequence[ScalarField], times: Sequence[float]) -> None:
        self.domain, self.fields, self.times = domain, tuple(fields), tuple(times)

    def field(self, x: Tensor, *, t: float | None) -> Tensor:
        """u_t (n,) at x (n, d).

        Raises
        ------
        ArgumentError
            t is not a time of the fit, or a point lies outside the domain.
        """
        if isinstance(self.domain, Box):
            nearest = self.domain.nearest(x)
            room = _ROUNDING * (self.domain.upper - self.domain.lower).to(x)
            x = torch.where((x - nearest).abs() <= room, nearest, x)
        outside = ~self.domain.contains(x)
        if bool(outside.any()):
            points, rows = x.cpu().double().numpy(), outside.nonzero()[:, 0].cpu().numpy()
            raise ArgumentError(
                f"x: {len(rows)} points lie outside the domain, where there is no field: "
                f"{describe_points(points, rows)}."
            )
        field = self._at(t)
        with torch.no_grad():
            return torch.cat([field(part) for part in x.split(_CHUNK)])

    def _at(self, t: float | None) -> Callable[[Tensor], Tensor]:
        k, fraction = step_at(self.times, t)
        return self.fields[k] if fraction == 1.0 else MixedField(self.fields[k - 1], self.fields[k], fraction)

    def sample(self, *args: Any, **options: Any) -> NoReturn:
        """Raise: u is no density."""
        raise UnavailableError(
            "the flow with metric='l2' is one of a field u, which is no density and has no draws: field(x, t) is u."
        )

    sample_with_log_density = log_density = particles = sample
