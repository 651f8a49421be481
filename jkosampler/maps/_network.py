"""The parameters of a potential as the recorded operations of module `fused` take them.

A potential's parameters lie one after the other in one vector, and what the products need of them (transposed, two
of them put together, multiplied) is arranged anew for every call. The sums of the derivatives, over particles, blocks
and stages, are collected for this arrangement and turned into those of the parameters at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Layout", "Network", "Tableau", "Tape"]

Tableau = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]


class Layout(NamedTuple):
    """All that the recorded operations depend on: sizes, the scheme, what is wanted, where."""

    n: int
    d: int
    inputs: int  # d, or d + 1 with time
    width: int
    depth: int
    tableau: Tableau
    n_steps: int
    x_gradient: bool
    dtype: torch.dtype
    device: torch.device
    stream: int  # of CUDA, whose operations on buffers are in order; 0 elsewhere

    def new(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the parameters: weights, biases, output, quadratic, linear."""
        m, p = self.width, self.inputs
        return [(m, p), *[(m, m)] * (self.depth - 1), *[(m,)] * (self.depth + 1), (p, p), (p,)]


class Tape(list[Callable[[], Any]]):
    """Operations on fixed tensors, to be done again and again."""

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.append(partial(function, *args, **kwargs))

    def run(self) -> None:
        for operation in self:
            operation()


class Network:
    """The parameters as the products take them, and the sums of their derivatives.

    Inputs are (x, t, 1), so that `first = 2 (W_0, b_0)'` and `affine = (A, b)` hold the constants too. As the arguments
    a and values u of layers, `biases` are doubled. `inner` is W_0' without time, `squares` q_0, `pair` the shared
    matrices of layer 1.
    """

    def __init__(self, layout: Layout) -> None:
        d, p, m, depth, new = layout.d, layout.inputs, layout.width, layout.depth, layout.new
        self.shapes = layout.shapes
        self.bounds = list(pairwise(accumulate(map(prod, self.shapes), initial=0)))
        self.values, self.d_values = new(self.bounds[-1][1]), new(self.bounds[-1][1])
        self.first, self.affine, self.inner, self.squares = new(p + 1, m), new(d, p + 1), new(d, m), new(m)
        self.pair, self.pair_t, self.trace, self.one = new(d, m, m), new(d, m, m), new(), new() + 1.0
        self.d_first, self.d_affine, self.d_inner, self.d_squares = new(p + 1, m), new(d, p + 1), new(d, m), new(m)
        self.d_pair, self.d_trace = new(m, d * m), new()  # d_pair[j, (k, i)] belongs to pair[k, i, j]
        values, d_values = self.split(self.values), self.split(self.d_values)
        layers = range(1, depth)
        self.hidden, self.d_hidden = {i: values[i] for i in layers}, {i: d_values[i] for i in layers}
        self.hidden_t = {i: new(m, m) for i in layers}
        self.biases, of_biases = new(depth - 1, m), slice(self.bounds[depth][1], self.bounds[-3][0])
        self.d_biases = self.d_values[of_biases].view(depth - 1, m)
        self.output, self.d_output = values[-3], d_values[-3]
        self.load, self.unload = Tape(), Tape()
        self.load(torch.mul, self.values[of_biases].view(depth - 1, m), 2.0 * self.one, out=self.biases)
        self._record_load(layout, values[0].mT, values[depth], *values[-2:])
        self._record_unload(layout, d_values[0].mT, d_values[depth], *d_values[-2:])

    def split(self, flat: Tensor) -> list[Tensor]:
        """The parameters that lie one after the other in a vector."""
        return [flat[a:b].view(shape) for (a, b), shape in zip(self.bounds, self.shapes, strict=True)]

    def clear(self) -> None:
        sums = (self.d_first, self.d_affine, self.d_inner, self.d_squares, self.d_trace, self.d_pair, self.d_values)
        for total in sums:
            total.zero_()

    def _record_load(self, layout: Layout, weight: Tensor, bias: Tensor, quadratic: Tensor, linear: Tensor) -> None:
        d, p, tape, half, product = layout.d, layout.inputs, self.load, 0.5 * self.one, torch.empty_like(self.inner)
        tape(torch.add, weight, weight, out=self.first[:p])
        tape(torch.add, bias, bias, out=self.first[p])
        tape(torch.add, quadratic[:d], quadratic.mT[:d], out=self.affine[:, :p])
        tape(self.affine[:, :p].mul_, half)
        tape(self.affine[:, p].copy_, linear[:d])
        tape(torch.sum, self.affine.diagonal(), 0, out=self.trace)
        tape(self.inner.copy_, weight[:d])
        tape(torch.mul, self.inner, self.inner, out=product)
        tape(torch.sum, product, 0, out=self.squares)
        for i, transposed in self.hidden_t.items():
            tape(transposed.copy_, self.hidden[i].mT)
        if self.hidden:
            tape(torch.mul, self.hidden[1], self.inner.unsqueeze(1), out=self.pair)
            tape(self.pair_t.copy_, self.pair.mT)

    def _record_unload(self, layout: Layout, weight: Tensor, bias: Tensor, quadratic: Tensor, linear: Tensor) -> None:
        d, p, m, tape = layout.d, layout.inputs, layout.width, self.unload
        half = layout.new(p, p)  # of the derivative in A, whose last row is zero with time
        tape(self.d_inner.addcmul_, self.inner, self.d_squares, value=2.0)
        if self.hidden:
            pair, product = self.d_pair.view(m, d, m).permute(1, 2, 0), torch.empty_like(self.pair)
            row_sums, column_sums = layout.new(m, m), layout.new(d, m)
            tape(torch.mul, pair, self.inner.unsqueeze(1), out=product)
            tape(torch.sum, product, 0, out=row_sums)
            tape(self.d_hidden[1].add_, row_sums)
            tape(torch.mul, pair, self.hidden[1], out=product)
            tape(torch.sum, product, 1, out=column_sums)
            tape(self.d_inner.add_, column_sums)
        tape(self.d_first[:d].add_, self.d_inner)
        tape(weight.copy_, self.d_first[:p])
        tape(bias.copy_, self.d_first[p])
        tape(torch.mul, self.d_affine[:, :p], 0.5 * self.one, out=half[:d])
        tape(half.diagonal()[:d].add_, self.d_trace, alpha=0.5)
        tape(torch.add, half, half.mT, out=quadratic)
        tape(linear[:d].copy_, self.d_affine[:, p])
