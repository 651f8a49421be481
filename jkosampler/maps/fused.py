"""The transport of an `ODEMap` with its gradient derived by hand, as one `autograd.Function`, for training.

Beside its matrix products such a step costs passes over memory, page faults of new memory and a microsecond or more
for each call of torch. So all operations are recorded once for a layout (shapes, scheme, dtype, device), bound to
buffers that they reuse, and replayed at every call. Module `_stage` has those of one evaluation of the potential and
the formulas; here they are put together to the stages of a Runge-Kutta scheme, which depend linearly on their
velocities, and so do the derivatives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jkosampler.errors import ArgumentError
from jkosampler.maps._network import Layout, Network, Tableau, Tape
from jkosampler.maps._stage import Scratch, Stage
from jkosampler.potentials import ResNetPotential

__all__ = ["fused_transport"]

_BLOCK = 1 << 16  # particles x units that are worked on at a time: more falls out of the caches, less is overhead
_KEPT = 1 << 26  # elements of the largest program that is kept for the next call


def fused_transport(
    potential: ResNetPotential, x: Tensor, tableau: Tableau, n_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`T(x)` (n, d), `log det DT` (n,) and the action (n,) of the flow of `grad phi`, as `ODEMap.transport`.

    Differentiable once, in x and in all parameters of the potential, whose depth is at least 1. `backward` releases
    what the call keeps for it; a second `backward` of a retained graph evaluates the transport anew.

    Parameters
    ----------
    potential : ResNetPotential
        phi, with or without time input.
    x : Tensor (n, d)
        Particles.
    tableau : tuple
        A scheme of `maps.INTEGRATORS`.
    n_steps : int
        Its steps in inner time [0, 1].

    Raises
    ------
    ArgumentError
        Where the potential has no layers, or x not its dimension or dtype.
    """
    if not potential.depth:
        raise ArgumentError("potential: its depth is 0; its map is affine and has no layers to fuse.")
    if x.dim() != 2 or x.shape[1] != potential.dim or x.dtype != potential.linear.dtype:
        wanted = f"(n, {potential.dim}) of {potential.linear.dtype}"
        raise ArgumentError(f"x must be a tensor {wanted} like the potential, got {tuple(x.shape)} of {x.dtype}.")
    sizes = (len(x), potential.dim, potential.dim + int(potential.time_input), potential.width, potential.depth)
    stream = torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0
    layout = Layout(*sizes, tableau, n_steps, x.requires_grad, x.dtype, x.device, stream)
    parameters = (*potential.weights, *potential.biases, potential.output, potential.quadratic, potential.linear)
    result: tuple[Tensor, Tensor, Tensor] = _Transport.apply(layout, x, *parameters)
    return result


class _Block:
    """A block of particles: the stages of the scheme, forward and backward. Positions are kept transposed (d, n)."""

    def __init__(self, layout: Layout, net: Network, scratch: Scratch, rows: slice) -> None:
        new, d, n, (scheme, weights) = layout.new, layout.d, rows.stop - rows.start, layout.tableau
        h, stages = 1.0 / layout.n_steps, layout.n_steps * len(weights)
        self.rows, self.net, self.scratch, self.layout, self.h = rows, net, scratch, layout, h
        self.x, self.log_det, self.action = new(layout.n_steps + 1, d, n), new(n), new(n)
        self.dx, self.d_log_det, self.d_action = new(d, n), new(n), new(n)
        self.velocities, self.traces = new(stages, d, n), new(stages, n)
        self.weights = torch.tensor([h * weight for weight in weights], dtype=layout.dtype, device=layout.device)
        times = [h * (step + sum(row)) for step in range(layout.n_steps) for row in scheme]
        self.stages = [
            Stage(layout, net, scratch, *parts) for parts in zip(self.velocities, self.traces, times, strict=True)
        ]
        self.forward, self.backward = Tape(), Tape()
        self._record_forward(self.forward)
        self._record_backward(self.backward)

    def _record_forward(self, tape: Tape) -> None:
        scheme, n_steps, v = self.layout.tableau[0], self.layout.n_steps, self.velocities
        steps = v.unflatten(0, (n_steps, len(scheme)))
        tape(self.scratch.layers[1][-1].copy_, self.net.output)
        for step in range(n_steps):
            for row, stage in zip(scheme, self.stages[step * len(scheme) :], strict=False):
                start = self.x[step]
                for a, velocity in zip(row, steps[step], strict=False):
                    if a:
                        tape(torch.add, start, velocity, alpha=self.h * a, out=stage.x)
                        start = stage.x
                if start is not stage.x:
                    tape(stage.x.copy_, start)
                stage.record_forward(tape)
            move = steps[step].flatten(1).mT
            tape(torch.addmv, self.x[step].flatten(), move, self.weights, out=self.x[step + 1].flatten())
        speeds, squares, weights = torch.empty_like(self.traces), torch.empty_like(v), self.weights.repeat(n_steps)
        tape(torch.mul, v, v, out=squares)
        tape(torch.sum, squares, 1, out=speeds)
        tape(torch.mv, speeds.mT, weights, out=self.action)
        tape(torch.mv, self.traces.mT, weights, out=self.log_det)
        tape(self.log_det.add_, self.net.trace)  # of the quadratic term: the weights sum to one

    def _record_backward(self, tape: Tape) -> None:
        scheme, n_steps, new, (d, n) = self.layout.tableau[0], self.layout.n_steps, self.layout.new, self.dx.shape
        size, twice = len(scheme), 2.0 * self.weights.repeat(n_steps)
        dv, g, slope, total = new(size * n_steps, d, n), new(size * n_steps, n, 1), new(size * n_steps, 1, n), new()
        dxs = new(size, d, n)
        tape(torch.sum, self.d_log_det, 0, out=total)
        tape(self.net.d_trace.add_, total)
        tape(torch.mul, twice.view(-1, 1), self.d_log_det, out=g.squeeze(2))
        tape(torch.mul, twice.view(-1, 1), self.d_action, out=slope.squeeze(1))
        tape(torch.mul, self.velocities, slope, out=dv)
        for step in reversed(range(n_steps)):
            of_step = slice(step * size, (step + 1) * size)
            tape(dv[of_step].addcmul_, self.dx, self.weights.view(-1, 1, 1))
            for j in reversed(range(size)):
                at = step * size + j
                for later in range(j + 1, size):
                    if scheme[later][j]:
                        tape(dv[at].add_, dxs[later], alpha=self.h * scheme[later][j])
                wanted = at > 0 or self.layout.x_gradient
                self.stages[at].record_backward(tape, dv[at], g[at], dxs[j] if wanted else None)
                if wanted:
                    tape(self.dx.add_, dxs[j])


class _Program:
    """All operations of a transport and its gradient, with their buffers, for one layout."""

    def __init__(self, layout: Layout) -> None:
        n, self.layout, self.net = layout.n, layout, Network(layout)
        size = n if layout.device.type != "cpu" else max(1, _BLOCK // layout.width)
        count = max(1, round(n / size))
        ends = [n * i // count for i in range(count + 1)]
        scratches = {rows: Scratch(layout, rows) for rows in {b - a for a, b in pairwise(ends)}}
        self.blocks = [_Block(layout, self.net, scratches[b - a], slice(a, b)) for a, b in pairwise(ends)]

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        torch.cat([parameter.reshape(-1) for parameter in parameters], out=self.net.values)
        self.net.load.run()
        for block in self.blocks:
            block.x[0].copy_(x[block.rows].mT)
            block.forward.run()
        z, log_det, action = zip(*((block.x[-1].mT, block.log_det, block.action) for block in self.blocks), strict=True)
        return torch.cat(z), torch.cat(log_det), torch.cat(action)

    def backward(self, dz: Tensor, d_log_det: Tensor, d_action: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """Derivatives in x, where wanted, and in the parameters."""
        self.net.clear()
        for block in reversed(self.blocks):  # the last is still in the cache
            block.dx.copy_(dz[block.rows].mT)
            block.d_log_det.copy_(d_log_det[block.rows])
            block.d_action.copy_(d_action[block.rows])
            block.backward.run()
        self.net.unload.run()
        dx = torch.cat([block.dx.mT for block in self.blocks]) if self.layout.x_gradient else None
        return dx, self.net.split(self.net.d_values.clone())


# The program of the last backward, for the next call of its layout: taken out while it is in use, so that no two
# calls share buffers (`pop` and `append` are atomic); its content is never read.
_spare: deque[_Program] = deque(maxlen=1)


def _take(layout: Layout) -> _Program:
    try:
        program = _spare.pop()
    except IndexError:
        return _Program(layout)
    return program if program.layout == layout else _Program(layout)


def _size(layout: Layout) -> int:
    """About the number of elements that a program holds."""
    stages = layout.n_steps * len(layout.tableau[1])
    return layout.n * stages * layout.width * (6 * layout.depth + max(2 * layout.depth - 3, 0) * layout.d)


class _Transport(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layout: Layout, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        program = _take(layout)
        ctx.layout, ctx.held = layout, [program]
        ctx.save_for_backward(x, *parameters)
        return program.forward(x, parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dz: Tensor, d_log_det: Tensor, d_action: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        if ctx.held:
            program = ctx.held.pop()
        else:  # the graph was retained
            program = _take(ctx.layout)
            program.forward(x, parameters)
        dx, d_parameters = program.backward(dz, d_log_det, d_action)
        if _size(ctx.layout) <= _KEPT:
            _spare.append(program)
        return None, dx, *d_parameters
