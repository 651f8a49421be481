"""The minimizing-movement engine: the unknown of every implicit step is a network u(x) itself.

Park, Kim, Son, Hwang, "The deep minimizing movement scheme" (arXiv 2109.14851), section 3.1: L2 flows of fields on a
domain, `u_{k+1} = argmin F(u) + |u - u_k|^2 / (2 tau)`. The paper trains all weights of a network by Adam
(`MinimizingMovement.as_in_the_paper()`). By default the hidden layer is chosen once (`hidden_layers`) and each step is
solved in the last one (`field_step`), to the accuracy of double precision; a step that its units do not resolve
is solved again with more.
"""

from __future__ import annotations

import logging
import math
import time
from copy import deepcopy
from dataclasses import replace

import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from torch import Tensor

from jkosampler._arguments import positive_number
from jkosampler._inputs import whole_number
from jkosampler.domains import QUADRATURES, Box, Quadrature
from jkosampler.engines.density_networks import DensityNetworks
from jkosampler.engines.field_flow import FieldFlow, FieldState, Seen, judged
from jkosampler.engines.field_step import Basis, solve_step
from jkosampler.engines.field_training import train_step
from jkosampler.engines.hidden_layers import band_limited, band_of, pursued
from jkosampler.engines.push_forward import PushForward
from jkosampler.engines.transport_pair import PAIRS
from jkosampler.errors import ArgumentError
from jkosampler.fields import ACTIVATIONS, CosineField, NetworkField

__all__ = ["MinimizingMovement"]

logger = logging.getLogger(__name__)

_OPTIMIZERS = ("variable-projection", "adam")
_UNITS = {1: (128, 256, 512), 2: (600, 1200)}  # of a layer, and of wider ones
_UNITS_IN_MANY_DIMENSIONS = (193,)
_PURSUIT_POINTS = 8192
_CHECK_POINTS = 2048
_MORE_THAN_A_PERIOD = 12  # Gauss points an axis, beyond two for each period of the highest frequency
_POINTS_PER_UNIT = 16
_FEWEST_POINTS = 2**15  # Sobol points; quadrature errors of the same points add up from step to step
_ADAM_UNITS, _ADAM_POINTS, _ADAM_ITERATIONS = 256, 10_000, 2000
_CONVEX_WIDTH = 16
_ACTIVATION = "tanh"
_GAMMA = 1.0 - 0.5**0.5  # of the second-order method's two stages


class MinimizingMovement(BaseEstimator):
    """Steps as networks for the unknown itself: fields in the L2 metric, and densities in W2.

    Densities are represented by the potential of the map back, for which only `width` and `threads` are, or by
    networks as in the paper.

    Parameters
    ----------
    width : int, optional
        Units of the hidden layer (of each, with Adam); None: by dimension, and more where they do not resolve a step.
        For densities, the trained ridge functions of the potential; None: 64.
    depth : int
        Hidden layers of the network that Adam trains, and of that for a density; the default's has one.
    activation : {"tanh", "elu", "relu", "softplus", "cos"}, optional
        Of these networks; None: "tanh". (The default's units are cosines.)
    optimizer : {"variable-projection", "adam"}
        Each step solved in the last layer of a network, or all weights trained by Adam. For densities "adam" implies
        `representation="networks"`; without it these are solved by Newton's method.
    learning_rate : float
        Of Adam.
    n_iterations : int
        Of Adam, in each step.
    representation : {"push-forward", "networks"}, optional
        Of densities: the exact push-forward by one potential's map (`engines.push_forward`), or a positive network over
        its integral on a box, with a pair of input-convex networks for the distance, as the paper has it
        (`engines.density_networks`). None: "push-forward", or "networks" for Adam.
    convex_width : int
        Units of both layers of an input-convex network.
    lam : float
        Weight of the term that holds the pair together: lambda of equation (2.12). With `pair="max-min"` it hardly
        matters.
    pair : {"max-min", "joint"}
        How the pair is trained: correctly, or by joint minimisation as (2.12) is printed, which fails for
        small lam (1/2 and less in short steps); see `engines.transport_pair`.
    n_quadrature : int, optional
        Points to integrate by; None: by width, or the 10 000 of the paper for Adam.
    quadrature : {"gauss", "sobol", "monte-carlo"}, optional
        See `domains.Domain.quadrature`; None: "gauss" for boxes on the line and all domains of the plane, "sobol"
        elsewhere, "monte-carlo", with new points in each iteration, for Adam.
    tolerance : float
        A step whose equation is solved less accurately (`unresolved` in `history_`) is solved again with more units.
    threads : int, optional
        Threads of torch inside the fit. None: leave as is.
    """

    def __init__(
        self,
        *,
        width: int | None = None,
        depth: int = 2,
        activation: str | None = None,
        optimizer: str = "variable-projection",
        learning_rate: float = 1e-3,
        n_iterations: int = _ADAM_ITERATIONS,
        representation: str | None = None,
        convex_width: int = _CONVEX_WIDTH,
        lam: float = 1.0,
        pair: str = "max-min",
        n_quadrature: int | None = None,
        quadrature: str | None = None,
        tolerance: float = 1e-2,
        threads: int | None = 1,
    ) -> None:
        self.width = width
        self.depth = depth
        self.activation = activation
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.n_iterations = n_iterations
        self.representation = representation
        self.convex_width = convex_width
        self.lam = lam
        self.pair = pair
        self.n_quadrature = n_quadrature
        self.quadrature = quadrature
        self.tolerance = tolerance
        self.threads = threads

    @classmethod
    def as_in_the_paper(cls, **changes: object) -> MinimizingMovement:
        """Adam on a tanh network of two layers of 256 units, on 10 000 new points in each iteration.

        The paper does not print its number of iterations; any setting can be changed by name.
        """
        return cls(**({"optimizer": "adam", "width": _ADAM_UNITS, "activation": _ACTIVATION} | changes))  # type: ignore[arg-type]

    def for_densities(self) -> PushForward | DensityNetworks:
        """The engine of Wasserstein flows with these settings."""
        self._check_settings()
        adam = self.optimizer == "adam"
        if self.representation == "networks" or (self.representation is None and adam):
            shared = (
                "width", "depth", "convex_width", "lam", "pair", "learning_rate", "n_quadrature",
                "quadrature", "threads",
            )  # fmt: skip
            settings = {name: getattr(self, name) for name in shared} | {"activation": self.activation or _ACTIVATION}
            return DensityNetworks(**settings, adam_iterations=self.n_iterations if adam else None)
        if adam:
            raise ArgumentError("optimizer='adam' is for representation='networks'; leave one of them out.")
        return PushForward(threads=self.threads, **({} if self.width is None else {"n_ridges": self.width}))

    def init(self, flow: FieldFlow) -> FieldState:
        """Check the energy at the initial field, and choose the points to check by."""
        self._check_settings()
        if self.representation is not None:
            raise ArgumentError(f"representation={self.representation!r} is for densities; leave it out for L2 flows.")
        if self.optimizer == "adam" and flow.order != 1:
            raise ArgumentError("order=2 is not for optimizer='adam'; take the default optimizer, or order=1.")
        check = flow.quadrature(_CHECK_POINTS)
        u, gradient = flow.initial.with_gradient(check.x)
        flow.energy.check(check.x, u, gradient)
        seen = Seen(u, gradient, flow.energy.value(check.x, u, gradient))
        sizes = _UNITS.get(flow.domain.dim, _UNITS_IN_MANY_DIMENSIONS) if self.width is None else (self.width,)
        return FieldState(flow, (flow.initial,), check, seen, layers_left=sizes)

    def step(self, state: FieldState) -> tuple[FieldState, Bunch]:
        """One step and its record."""
        began, evaluations = time.perf_counter(), state.flow.energy.n_evaluations
        state, record = self._trained(state) if self.optimizer == "adam" else self._solved(state)
        record.wall_s = time.perf_counter() - began
        record.target_evaluations = state.flow.energy.n_evaluations - evaluations
        if not record.descends:
            logger.warning("step %d does not satisfy F(u') + d^2/(2 tau) <= F(u) on fresh points", state.n_steps)
        return state, record

    def _solved(self, state: FieldState) -> tuple[FieldState, Bunch]:
        """A step by variable projection; in wider layers while it is not resolved."""
        if state.layer is None:
            state = self._with_wider_layer(state, None)
        while True:
            if state.basis is None:
                state = self._with_basis(state)
            solved, record = _by_projection(state)
            if record.unresolved <= self.tolerance:
                return solved, record
            if not state.layers_left:
                if not any(isinstance(field, CosineField) for field in state.fields):  # say it once
                    left = f"{record.unresolved:.2g} of u"
                    logger.warning("the first step is not resolved, %s is left: give a larger width", left)
                return solved, record
            logger.info("step %d is not resolved (%.2g); a wider layer", solved.n_steps, record.unresolved)
            state = self._with_wider_layer(state, solved)

    def _with_wider_layer(self, state: FieldState, solved: FieldState | None) -> FieldState:
        """The state with the next layer: for its field, or one for what a solved step left of its equation."""
        flow, n_units = state.flow, state.layers_left[0]
        if flow.domain.dim in _UNITS:
            layer = band_limited(flow.domain, n_units, flow.generator).to(flow.device)
        else:
            points = [flow.quadrature(_PURSUIT_POINTS).x for _ in range(2)]
            values = [_to_resolve(state, solved, x) for x in points]
            known = None if solved is None or state.layer is None else _frequencies(state.layer)
            layer, misfit = pursued(
                flow.domain, points[0], values[0], points[1], values[1],
                n_units=n_units, generator=flow.generator, frequencies=known,
            )  # fmt: skip
            logger.info("a layer of %d units leaves %.2g of the field", len(layer.phases), misfit)
        return replace(state, layer=layer, basis=None, layers_left=state.layers_left[1:])

    def _with_basis(self, state: FieldState) -> FieldState:
        """The state with its layer's units on points, in coordinates that suit the present field."""
        assert state.layer is not None
        flow, before = state.flow, state.fields[-1]
        points = self._points(flow, len(state.layer.phases))
        basis = Basis(state.layer, points, _stage_size(flow), flow.energy, before)
        return replace(state, basis=basis, u=before(points.x).detach(), coordinates=None)

    def _points(self, flow: FieldFlow, n_units: int) -> Quadrature:
        d = flow.domain.dim
        method = self.quadrature or ("gauss" if d == 2 or (d == 1 and isinstance(flow.domain, Box)) else "sobol")
        n = self.n_quadrature
        if n is None and method == "gauss":
            n = math.ceil(2.0 * band_of(n_units, d) + _MORE_THAN_A_PERIOD) ** d
        elif n is None:
            n = max(_FEWEST_POINTS, 1 << (_POINTS_PER_UNIT * n_units).bit_length())
        return flow.quadrature(n, method)

    def _trained(self, state: FieldState) -> tuple[FieldState, Bunch]:
        """A step whose network is trained by Adam, from that of the step before."""
        flow, before = state.flow, state.fields[-1]
        width = self.width or _ADAM_UNITS
        network = NetworkField(
            *flow.domain.frame(flow.device), width=width, depth=self.depth, activation=self.activation or _ACTIVATION,
            generator=flow.generator,
        )  # fmt: skip
        if state.network is not None:
            network.load_state_dict(state.network.state_dict())
        n, method = self.n_quadrature or _ADAM_POINTS, self.quadrature or "monte-carlo"
        points = flow.quadrature(n, method)
        train_step(
            network, flow.energy, before, flow.step_size, self.n_iterations, self.learning_rate,
            lambda: flow.quadrature(n, method) if method == "monte-carlo" else points,
        )  # fmt: skip
        field = deepcopy(network).requires_grad_(False)
        u, gradient = field.with_gradient(points.x)
        moved = (u - before(points.x)).square()
        energy = float(points.weights @ flow.energy.value(points.x, u, gradient))
        cost = float(points.weights @ moved)
        state, record = judged(state, field, state.seen.u, flow.step_size)
        record.update(energy=energy, transport_cost=cost, loss=energy + cost / (2.0 * flow.step_size))
        record.update(n_iterations=self.n_iterations, width=width)
        return replace(state, network=network), record

    def _check_settings(self) -> None:
        choices = {
            "optimizer": _OPTIMIZERS,
            "quadrature": (None, *QUADRATURES),
            "activation": (None, *ACTIVATIONS),
            "representation": (None, "push-forward", "networks"),
            "pair": PAIRS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        least = {"width": 2, "depth": 1, "n_iterations": 1, "n_quadrature": 2, "convex_width": 1, "threads": 1}
        for name, bound in least.items():
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, bound)
        if self.activation is not None and self.optimizer == _OPTIMIZERS[0] and self.representation != "networks":
            raise ArgumentError(
                f"activation={self.activation!r} is for optimizer='adam' and representation='networks'; the default's "
                "units are cosines."
            )
        for name in ("learning_rate", "tolerance", "lam"):
            positive_number(getattr(self, name), name)


def _by_projection(state: FieldState) -> tuple[FieldState, Bunch]:
    """A step solved in the last layer."""
    flow, basis, u = state.flow, state.basis, state.u
    assert basis is not None
    assert u is not None
    solved = solve_step(basis, flow.energy, u, state.coordinates)
    n_iterations, before = solved.n_iterations, state.seen.u
    if flow.order == 2:
        # on along the first stage: u + (1 - gamma) / gamma (u_1 - u), and from there a second
        s = (1.0 - _GAMMA) / _GAMMA
        middle = basis.field(solved.coordinates)
        before = torch.lerp(before, middle(state.check.x), s)
        solved = solve_step(basis, flow.energy, torch.lerp(u, solved.u, s), solved.coordinates)
        n_iterations += solved.n_iterations
    cost = float(basis.points.weights @ (solved.u - u).square())
    d = flow.domain.dim
    highest = band_of(len(basis.layer.phases), d) / 2.0 / float(basis.layer.scale.max()) if d in _UNITS else 0.0
    state, record = judged(state, basis.field(solved.coordinates), before, basis.tau, basis.stiffness * highest**2)
    record.update(energy=solved.energy, transport_cost=cost, loss=solved.energy + cost / (2.0 * flow.step_size))
    record.update(n_iterations=n_iterations, width=len(basis.layer.phases))
    state = replace(state, u=solved.u, coordinates=solved.coordinates, basis=None if solved.slow else basis)
    return state, record


def _to_resolve(state: FieldState, solved: FieldState | None, x: Tensor) -> Tensor:
    """What a hidden layer has to span: the field before a step, or its solution less what that left of the equation."""
    before = state.fields[-1](x).detach()
    if solved is None:
        return before
    after = solved.fields[-1]
    assert isinstance(after, CosineField)
    u, gradient = after.with_gradient(x)
    return before + state.flow.step_size * state.flow.energy.equation(x, u, gradient, after.hessian(x))


def _frequencies(layer: CosineField) -> Tensor:
    """Frequencies of a pursued layer, each of which has a cosine and a sine."""
    return layer.frequencies[1 : (len(layer.phases) + 1) // 2]


def _stage_size(flow: FieldFlow) -> float:
    return flow.step_size * (_GAMMA if flow.order == 2 else 1.0)
