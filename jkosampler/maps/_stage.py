"""One evaluation of a potential and its derivative by hand, as operations that are recorded once and then replayed.

With the slopes `s_l = tanh a_l`, the sweep `z_l` and the Jacobians `J_l` of module `potentials`,

    v = A x + b + W_0' y_0,   y_l = s_l z_{l+1},   tr hess = tr A + sum_l c_l.q_l,   c_l = (1 - s_l^2) z_{l+1},

with `q_l = sum_k R_lk^2` of the rows `R_l = W_l J_{l-1}` (k: the columns of `J_{-1} = I`). Given the derivatives dv and
g in the velocity and in the trace (`dX` is the derivative in X of what is differentiated),

    dR_l = 2 g c_l R_l + s_l dJ_l,       dJ_{l-1} = dJ_l + W_l' dR_l,      (from the last layer down, dJ_{L-1} = 0)
    dy_l = W_l dz_l  (dy_0 = W_0 dv),    dz_{l+1} = dz_l + s_l dy_l + g q_l (1 - s_l^2),    (from layer 0 up)
    da_l = (1 - s_l^2) dJ_l.R_l + c_l (dy_l - 2 g q_l s_l) + s_l du_{l+1},    du_l = du_{l+1} + W_l' da_l,

`dW_l = da_l u_l' + y_l dz_l' + dR_l J_{l-1}'` and `dw = dz_L`, summed over particles. Since `J_0 = diag(s_0) W_0`, the
rows of layer 1 are `R_1k = (W_1 diag W_0k) s_0`, with matrices that all particles share, and J_0 is never formed.

torch's tanh is slow; the sigmoid that replaces it serves the value as well: `sigma(a) = |a| - log sigmoid(2|a|)`,
which neither overflows nor loses digits. Arrays of particles and units are (n, m), with axes for layers or for k in
front, so that every operation runs over whole arrays; positions and velocities are (d, n), since thin products are
faster with their short side first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.maps._network import Layout, Network, Tape

__all__ = ["Scratch", "Stage"]


class Scratch:
    """What a stage needs for a moment; forward and backward, and all stages, take turns."""

    def __init__(self, layout: Layout, rows: int) -> None:
        d, m, depth, new = layout.d, layout.width, layout.depth, layout.new
        self.layers = [new(depth, rows, m) for _ in range(4)]
        self.vectors = [new(rows, m) for _ in range(2)]
        self.sums = new(max(d, depth), m)
        self.rows = new(d if depth > 1 else 0, rows, m)
        self.jacobian = new(d if depth > 2 else 0, rows, m)


class Stage:
    """One evaluation of the potential at a block of particles, and what backward needs of it."""

    def __init__(
        self, layout: Layout, net: Network, scratch: Scratch, velocity: Tensor, trace: Tensor, time: float
    ) -> None:
        d, p, m, depth, rows, new = layout.d, layout.inputs, layout.width, layout.depth, len(trace), layout.new
        self.depth, self.net, self.scratch, self.velocity, self.trace = depth, net, scratch, velocity, trace
        self.inputs = new(p + 1, rows)
        self.inputs[d:] = time
        self.inputs[p] = 1.0
        self.x = self.inputs[:d]
        self.s, self.y, self.c = (new(depth, rows, m) for _ in range(3))
        self.u = {i: new(rows, m) for i in range(1, depth)}  # twice u_l
        self.rows = {i: new(d, rows, m) for i in range(1, depth)}
        self.jacobians = {i: new(d, rows, m) for i in range(1, depth - 1)}
        self.q = [net.squares.expand(rows, m), *(new(rows, m) for _ in range(1, depth))]

    def record_forward(self, tape: Tape) -> None:
        """From x to velocity and trace (but for that of the quadratic term)."""
        self._record_layers(tape)
        self._record_velocity(tape)
        self._record_rows(tape)
        product = self.scratch.vectors[0]
        tape(torch.mul, self.c[0], self.q[0], out=product)
        for i in range(1, self.depth):
            tape(product.addcmul_, self.c[i], self.q[i])
        tape(torch.sum, product, 1, out=self.trace)

    def _record_layers(self, tape: Tape) -> None:
        net, s, u, a, (magnitude, logarithm) = self.net, self.s, self.u, self.scratch.layers[0], self.scratch.vectors
        last = self.depth - 1
        tape(torch.mm, self.inputs.mT, net.first, out=a[0])
        for i in range(self.depth):
            if i > 0:
                tape(torch.addmm, net.biases[i - 1], u[i], net.hidden_t[i], out=a[i])
            if i == last:  # its value is not needed
                tape(torch.sigmoid, a[i], out=s[i])
                break
            tape(torch.abs, a[i], out=magnitude)
            tape(torch.sigmoid, magnitude, out=s[i])
            tape(torch.log, s[i], out=logarithm)
            if i == 0:
                tape(torch.sub, magnitude, logarithm, alpha=2.0, out=u[1])
            else:
                tape(torch.add, u[i], magnitude, out=u[i + 1])
                tape(u[i + 1].sub_, logarithm, alpha=2.0)
        tape(torch.add, -net.one, s, alpha=2.0, out=s)
        tape(s[:last].copysign_, a[:last])

    def _record_velocity(self, tape: Tape) -> None:
        net, s, y, z = self.net, self.s, self.y, self.scratch.layers[1]
        for i in range(self.depth - 1, -1, -1):  # z[i] is z_{i+1}
            tape(torch.mul, s[i], z[i], out=y[i])
            if i > 0:
                tape(torch.addmm, z[i], y[i], net.hidden[i], out=z[i - 1])
        tape(torch.mm, net.affine, self.inputs, out=self.velocity)
        tape(self.velocity.addmm_, net.inner, y[0].mT)
        tape(torch.addcmul, z, s, y, value=-1.0, out=self.c)

    def _record_rows(self, tape: Tape) -> None:
        net, s, jacobians = self.net, self.s, self.jacobians
        for i, rows in self.rows.items():
            if i == 1:
                tape(torch.bmm, s[0].expand_as(rows), net.pair_t, out=rows)
            else:
                tape(torch.mm, jacobians[i - 1].flatten(0, 1), net.hidden_t[i], out=rows.flatten(0, 1))
            _record_dot(tape, rows, rows, self.q[i])
            if i == self.depth - 1:
                break
            if i == 1:
                tape(torch.mul, s[0], net.inner.unsqueeze(1), out=jacobians[1])
            tape(torch.addcmul, jacobians[max(i - 1, 1)], rows, s[i], out=jacobians[i])

    def record_backward(self, tape: Tape, dv: Tensor, g: Tensor, dx: Tensor | None) -> None:
        """From dv (d, n) and 2 g (n, 1) to the sums of the parameters' derivatives, and dx (d, n) where it is given."""
        net, s, last = self.net, self.s, self.depth - 1
        (k, da, dy, _), du = self.scratch.layers, self.scratch.vectors[1]
        tape(torch.addcmul, net.one, s, s, value=-1.0, out=k)
        self._record_jacobian_sweep(tape, g)
        self._record_velocity_sweep(tape, dv, g)
        tape(da[:last].mul_, k[:last])
        tape(da[:last].addcmul_, self.c[:last], dy[:last])
        tape(torch.mul, self.c[last], dy[last], out=da[last])
        for i in range(last, 0, -1):
            tape(net.d_hidden[i].addmm_, da[i].mT, self.u[i], alpha=0.5)
            if i == last:
                tape(torch.mm, da[i], net.hidden[i], out=du)
            else:
                tape(du.addmm_, da[i], net.hidden[i])
            tape(da[i - 1].addcmul_, du, s[i - 1])
        self._record_sum(tape, da[1:], 1, net.d_biases)
        tape(net.d_first.addmm_, self.inputs, da[0])
        tape(net.d_affine.addmm_, dv, self.inputs.mT)
        if dx is not None:
            tape(torch.mm, net.affine[:, : len(dx)], dv, out=dx)
            tape(dx.addmm_, net.inner, da[0].mT)

    def _record_jacobian_sweep(self, tape: Tape, g: Tensor) -> None:
        """The part of da that comes by the rows, but for (1 - s^2); 2 g c."""
        net, s, (_, da, _, gc), scratch = self.net, self.s, self.scratch.layers, self.scratch
        dj, last, (d, n, m) = scratch.jacobian, self.depth - 1, scratch.rows.shape
        tape(torch.mul, self.c[1:], g, out=gc[1:])
        for i in range(last, 0, -1):
            # At layer 1 particle by particle, so that one product sums over all k.
            rows, d_rows = self.rows[i], scratch.rows.view(n, d, m).transpose(0, 1) if i == 1 else scratch.rows
            tape(torch.mul, rows, gc[i], out=d_rows)
            if i < last:
                _record_dot(tape, dj, rows, da[i])
                tape(d_rows.addcmul_, dj, s[i])
            if i == 1:
                tape(net.d_pair.addmm_, s[0].mT, scratch.rows.view(n, d * m))
                tape(torch.mm, scratch.rows.view(n, d * m), net.pair.view(d * m, m), out=da[0])
                continue
            tape(net.d_hidden[i].addmm_, d_rows.view(d * n, m).mT, self.jacobians[i - 1].view(d * n, m))
            if i == last:
                tape(torch.mm, d_rows.view(d * n, m), net.hidden[i], out=dj.view(d * n, m))
            else:
                tape(dj.view(d * n, m).addmm_, d_rows.view(d * n, m), net.hidden[i])
        if last > 1:  # what reaches J_0 past layer 1
            for column, weight in zip(dj, net.inner, strict=True):
                tape(da[0].addcmul_, column, weight)
            tape(torch.mul, dj, s[0], out=scratch.rows)
            self._record_sum(tape, scratch.rows, 1, net.d_inner)

    def _record_velocity_sweep(self, tape: Tape, dv: Tensor, g: Tensor) -> None:
        """`dy_l - 2 g q_l s_l`, in the place of dy."""
        net, s, (k, _, dy, gq), dz = self.net, self.s, self.scratch.layers, self.scratch.vectors[0]
        tape(net.d_squares.addmv_, self.c[0].mT, g.squeeze(1), alpha=0.5)
        tape(torch.mm, dv.mT, net.inner, out=dy[0])
        tape(net.d_inner.addmm_, dv, self.y[0])
        for i in range(self.depth):
            tape(torch.mul, self.q[i], g, out=gq[i])
            if i == 0:
                tape(torch.mul, s[0], dy[0], out=dz)
            else:
                tape(torch.mm, dz, net.hidden_t[i], out=dy[i])
                tape(net.d_hidden[i].addmm_, self.y[i].mT, dz)
                tape(dz.addcmul_, s[i], dy[i])
            tape(dz.addcmul_, gq[i], k[i], value=0.5)
        self._record_sum(tape, dz, 0, net.d_output)
        tape(dy.addcmul_, gq, s, value=-1.0)

    def _record_sum(self, tape: Tape, terms: Tensor, dim: int, total: Tensor) -> None:
        part = self.scratch.sums[: len(total)] if total.dim() == 2 else self.scratch.sums[0]
        tape(torch.sum, terms, dim, out=part)
        tape(total.add_, part)


def _record_dot(tape: Tape, left: Tensor, right: Tensor, out: Tensor) -> None:
    """`sum_k left_k right_k`, k the first axis, with no array for the products."""
    tape(torch.mul, left[0], right[0], out=out)
    for a, b in zip(left[1:], right[1:], strict=True):
        tape(out.addcmul_, a, b)
