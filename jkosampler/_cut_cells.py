"""Gauss's rule for plane regions that only a membership function describes.

The bounding box is divided into cells. Those inside get a tensor rule; those that the boundary cuts are divided twice
more, and what is still cut is integrated along parallel lines, which end where bisection finds the boundary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["cut_cell_rule"]

_CELLS = 16  # along each side of the box
_DIVISIONS = 2
_FEWEST_NODES = 3  # a direction, in the smallest cells
_LOOKS = 9  # points along a line or a side by which a cell counts as cut
_BISECTIONS = 40


def cut_cell_rule(
    contains: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor, per_axis: int
) -> tuple[Tensor, Tensor]:
    """Points (n, 2) and weights (n,) of a rule with about `per_axis` points along each side of the box."""
    size = (upper - lower) / _CELLS
    corner = lower + size * torch.cartesian_prod(*[torch.arange(_CELLS, dtype=lower.dtype)] * 2)
    nodes = max(_FEWEST_NODES, -(-per_axis // _CELLS))
    points, weights = [], []
    for division in range(_DIVISIONS + 1):
        inside = _looks(contains, corner, size)
        whole, cut = inside.flatten(1).all(1), inside.flatten(1).any(1) & ~inside.flatten(1).all(1)
        t, w = _gauss(nodes)
        grid = torch.cartesian_prod(t, t)
        points.append((corner[whole][:, None, :] + size * grid).reshape(-1, 2))
        weights.append((torch.cartesian_prod(w, w).prod(1) * size.prod()).repeat(int(whole.sum())))
        if division == _DIVISIONS:
            break
        size, nodes = size / 2.0, max(_FEWEST_NODES, nodes - 1)
        quarters = torch.cartesian_prod(*[torch.arange(2.0).to(size)] * 2)
        corner = (corner[cut][:, None, :] + size * quarters).reshape(-1, 2)
    x, w = _along_lines(contains, corner[cut], size, inside[cut], nodes)
    points.append(x)
    weights.append(w)
    return torch.cat(points), torch.cat(weights)


def _gauss(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (n,) on [0, 1]."""
    t, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(n))
    return (t + 1.0) / 2.0, w / 2.0


def _looks(contains: Callable[[Tensor], Tensor], corner: Tensor, size: Tensor) -> Tensor:
    """Which points of a grid on each cell (k, g, g) are inside; the grid keeps off the sides by a rounding error."""
    t = torch.linspace(1e-9, 1.0 - 1e-9, _LOOKS, dtype=corner.dtype)
    x = corner[:, None, :] + size * torch.cartesian_prod(t, t)
    return contains(x.reshape(-1, 2)).reshape(-1, _LOOKS, _LOOKS)


def _along_lines(
    contains: Callable[[Tensor], Tensor], corner: Tensor, size: Tensor, inside: Tensor, nodes: int
) -> tuple[Tensor, Tensor]:
    """A rule for cut cells, along the axis that crosses the boundary more often; pieces of lines between looks."""
    crossings = [(inside.diff(dim=1 + axis).flatten(1)).sum(1) for axis in (0, 1)]
    along = (crossings[1] >= crossings[0]).long()  # the axis of each cell's lines
    t, w = _gauss(nodes)
    looks = torch.linspace(1e-9, 1.0 - 1e-9, _LOOKS, dtype=corner.dtype)

    def at(across: Tensor, position: Tensor, cell: Tensor) -> Tensor:
        """Points (k, 2) of the cells at places in [0, 1] across and along their lines."""
        first = torch.where(along[cell] == 1, across, position)
        second = torch.where(along[cell] == 1, position, across)
        return corner[cell] + size * torch.stack([first, second], 1)

    k = len(corner)
    cell, line, look = (v.reshape(-1) for v in torch.meshgrid(
        torch.arange(k), torch.arange(nodes), torch.arange(_LOOKS), indexing="ij"))  # fmt: skip
    seen = contains(at(t[line], looks[look], cell)).reshape(k, nodes, _LOOKS)
    cell, line, look = (seen[:, :, :-1] | seen[:, :, 1:]).nonzero(as_tuple=True)  # pieces that are inside at one end
    starts, ends = seen[cell, line, look], seen[cell, line, look + 1]
    left, right = looks[look].clone(), looks[look + 1].clone()
    left[look == 0], right[look == _LOOKS - 2] = 0.0, 1.0
    low, high = left.clone(), right.clone()
    cuts = starts != ends
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        same = contains(at(t[line], middle, cell)) == starts
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    edge = (low + high) / 2.0
    right = torch.where(cuts & starts, edge, right)
    left = torch.where(cuts & ends, edge, left)
    few, v = _gauss(2)
    length = right - left
    position = (left[:, None] + length[:, None] * few).reshape(-1)
    weight = (w[line] * length * size.prod())[:, None] * v
    x = at(t[line].repeat_interleave(2), position, cell.repeat_interleave(2))
    kept = weight.reshape(-1) > 0.0
    return x[kept], weight.reshape(-1)[kept]
