"""Weighted ridge regression that keeps sums over points only, so that weights and functions can be added to it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["NormalEquations"]

Functions = Callable[[Tensor], Tensor]  # of points (n, d): values (n, p)

_LEVELS = tuple(10.0**power for power in range(-15, 0))  # of prices, relative to the largest eigenvalue
# Shares of the data: free ones at least, and what rounding leaves of their square.
_FEWEST_FREE, _ROUNDING = 1e-3, 1e-28
_ROWS, _COLUMNS = 4096, 400  # of a product at once: functions of all points need not be held, one half is the other's


class NormalEquations:
    """Least squares of p functions for data y (n, k) at points x (n, d) of weights (n,).

    Attributes
    ----------
    gram, moments, squares : Tensor (p, p), (p, k), (k,)
        Weighted sums over points: of products of functions, of functions and data, of the data's squares.
    n : int
        Points.
    weight : float
        Sum of their weights.
    """

    def __init__(self, functions: Functions, x: Tensor, y: Tensor, weights: Tensor) -> None:
        self.gram, self.moments = _products(functions, x, y, weights)
        self.squares = weights @ y.square()
        self.n, self.weight = len(y), float(weights.sum())

    def add_weight(self, functions: Functions, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Take in more weights (n,) of known points x (n, d)."""
        gram, moments = _products(functions, x, y, weights)
        self.gram, self.moments = self.gram + gram, self.moments + moments
        self.squares = self.squares + weights @ y.square()
        self.weight += float(weights.sum())

    def add_functions(self, functions: Functions, more: Functions, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Take in more functions, given the data so far."""
        own, moments = _products(more, x, y, weights)
        cross = self.gram.new_zeros(len(self.gram), len(own))
        for rows in torch.arange(len(x), device=x.device).split(_ROWS):
            cross += functions(x[rows]).mT @ (weights[rows].unsqueeze(1) * more(x[rows]))
        self.gram = torch.cat([torch.cat([self.gram, cross], 1), torch.cat([cross.mT, own], 1)])
        self.moments = torch.cat([self.moments, moments])

    def solved(self, price: Tensor) -> Tensor:
        """Coefficients (p, k), whose squares, times the mean square of their function, have relative prices (p,).

        Generalised cross-validation finds the price of each column of data on its own.
        """
        n = self.n
        unit = n / self.weight
        scale = (unit * self.gram.diagonal()).sqrt().clamp(min=1e-300) * price.sqrt()
        values, axes = torch.linalg.eigh(unit * self.gram / scale / scale.unsqueeze(1))
        values = values.clamp(min=0.0)
        projected = axes.mT @ (unit * self.moments / scale.unsqueeze(1))
        total = unit * self.squares
        best, found = torch.full_like(total, math.inf), torch.zeros_like(projected)
        for level in _LEVELS:
            kept = 1.0 / (values + level * values.max())
            coefficients = kept.unsqueeze(1) * projected
            misfit = total - ((2.0 * kept - kept.square() * values).unsqueeze(1) * projected.square()).sum(0)
            freedom = max(n - float((values * kept).sum()), _FEWEST_FREE * n)
            error = misfit.clamp(min=_ROUNDING * n) / freedom**2
            better = error < best
            best, found = torch.where(better, error, best), torch.where(better, coefficients, found)
        return (axes @ found) / scale.unsqueeze(1)


def _products(functions: Functions, x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over points of products of functions (p, p), and of functions and data (p, k)."""
    gram, moments = torch.zeros(0), torch.zeros(0)
    for rows in torch.arange(len(x), device=x.device).split(_ROWS):
        root = weights[rows].sqrt().unsqueeze(1)
        values = root * functions(x[rows])
        if not len(gram):
            gram = values.new_zeros(values.shape[1], values.shape[1])
            moments = values.new_zeros(values.shape[1], y.shape[1])
        moments += values.mT @ (root * y[rows])
        for start in range(0, values.shape[1], _COLUMNS):
            block = slice(start, start + _COLUMNS)
            gram[block, start:] += values[:, block].mT @ values[:, start:]
    upper = gram.triu()
    return upper + upper.triu(1).mT, moments
