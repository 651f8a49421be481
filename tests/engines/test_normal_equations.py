"""Ridge regression from sums over points, beside dense least squares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jkosampler.engines.normal_equations import NormalEquations


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cubic(x: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(x[:, :1]), x, x**2, x**3], dim=1)


def waves(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), (2.0 * x).cos(), (x[:, :1] * torch.arange(1, 500).to(x)).tanh()], dim=1)


def both(x: Tensor) -> Tensor:
    return torch.cat([cubic(x), waves(x)], dim=1)


X, WEIGHTS = points(9000, 3), points(9000, 1, 1)[:, 0].square()  # more than are multiplied at once
Y = torch.stack([X[:, 0].exp(), X[:, 1] * X[:, 2], X.sum(1).tanh()], dim=1) + 0.1 * points(9000, 3, 2)


def dense(functions: Tensor, y: Tensor, weights: Tensor, level: float, price: Tensor) -> Tensor:
    """Coefficients at one price for all columns, by the QR decomposition of the augmented system."""
    weights = weights / weights.mean()
    rows = weights.sqrt().unsqueeze(1) * functions
    scale = rows.norm(dim=0) * price.sqrt()
    rows = rows / scale
    penalty = (level * torch.linalg.matrix_norm(rows, 2) ** 2).sqrt() * torch.eye(rows.shape[1]).to(rows)
    right = torch.cat([weights.sqrt().unsqueeze(1) * y, torch.zeros(rows.shape[1], y.shape[1]).to(y)])
    return torch.linalg.lstsq(torch.cat([rows, penalty]), right).solution / scale.unsqueeze(1)


def cross_validated(functions: Tensor, y: Tensor, weights: Tensor, price: Tensor) -> Tensor:
    """For each column the coefficients of the price with the least generalised cross-validation error."""
    weights = weights / weights.mean()
    rows = weights.sqrt().unsqueeze(1) * functions
    values = torch.linalg.svdvals(rows / (rows.norm(dim=0) * price.sqrt())).square()
    best, found = torch.full_like(y[0], float("inf")), torch.zeros(functions.shape[1], y.shape[1]).to(y)
    for level in (10.0**power for power in range(-15, 0)):
        coefficients = dense(functions, y, weights, level, price)
        misfit = weights @ (y - functions @ coefficients).square()
        error = misfit / (len(y) - float((values / (values + level * values.max())).sum())) ** 2
        found = torch.where(error < best, coefficients, found)
        best = torch.minimum(error, best)
    return found


@pytest.mark.parametrize("prices", [1.0, 1e-4])
def test_cross_validated_ridge_regression(prices: float) -> None:
    price = torch.ones(10, dtype=torch.float64)
    price[:4] = prices
    found = NormalEquations(cubic, X, Y, WEIGHTS).solved(price)
    expected = cross_validated(cubic(X), Y, WEIGHTS, price)
    torch.testing.assert_close(cubic(X) @ found, cubic(X) @ expected, rtol=1e-6, atol=1e-8)


def test_weights_and_functions_that_come_later_count_as_those_from_the_start() -> None:
    at_once, some = NormalEquations(both, X, Y, WEIGHTS), slice(2000, 8000)
    first = WEIGHTS.clone()
    first[some] *= 0.25
    later = NormalEquations(cubic, X, Y, first)
    later.add_functions(cubic, waves, X, Y, first)
    later.add_weight(both, X[some], Y[some], 0.75 * WEIGHTS[some])
    for name in ("gram", "moments", "squares"):
        torch.testing.assert_close(getattr(later, name), getattr(at_once, name), rtol=1e-10, atol=1e-9)
    assert (later.n, later.weight) == (at_once.n, pytest.approx(at_once.weight))


def test_products_are_those_of_the_weighted_functions() -> None:
    found, values = NormalEquations(both, X, Y, WEIGHTS), both(X)
    torch.testing.assert_close(found.gram, values.mT @ (WEIGHTS.unsqueeze(1) * values), rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(found.moments, values.mT @ (WEIGHTS.unsqueeze(1) * Y), rtol=1e-10, atol=1e-8)
