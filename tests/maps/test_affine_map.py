"""The affine map against the gradient map of its potential, which evaluates every particle's Jacobian."""

from __future__ import annotations

import pytest
import torch
from small_problems import seeded
from torch import Tensor

from jkosampler.engines.affine import set_affine
from jkosampler.errors import MapInversionError
from jkosampler.maps import AffineMap, GradientMap
from jkosampler.potentials import ResNetPotential

D = torch.float64


def pair(d: int = 3) -> tuple[AffineMap, GradientMap, Tensor]:
    root = torch.randn(d, d, generator=seeded(0), dtype=D)
    linear, shift = 0.3 * (root + root.mT), torch.randn(d, generator=seeded(1), dtype=D)
    linear = linear - min(0.0, float(torch.linalg.eigvalsh(linear)[0]) + 0.9) * torch.eye(d, dtype=D)
    potential = ResNetPotential(d, depth=0, dtype=D)
    set_affine(potential, linear, shift)
    return AffineMap(linear, shift), GradientMap(potential), torch.randn(5, d, generator=seeded(2), dtype=D)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_it_is_the_gradient_map_of_its_potential(fraction: float) -> None:
    affine, gradient, x = pair()
    for found, exact in zip(affine(x, fraction), gradient(x, fraction), strict=True):
        torch.testing.assert_close(found, exact)
    for found, exact in zip(affine.inverse(x, fraction), gradient.inverse(x, fraction), strict=True):
        torch.testing.assert_close(found, exact, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(affine.scaled(0.5)(x, fraction)[0], gradient.scaled(0.5)(x, fraction)[0])


@pytest.mark.parametrize("method", ["transport", "initial_velocity"])
def test_what_steps_ask_of_it(method: str) -> None:
    affine, gradient, x = pair()
    for found, exact in zip(getattr(affine, method)(x), getattr(gradient, method)(x), strict=True):
        torch.testing.assert_close(found, exact)
    torch.testing.assert_close(affine.positions(x), gradient.positions(x))
    for found, exact in zip(affine.push(x, 2.0 * x), gradient.push(x, 2.0 * x), strict=True):
        torch.testing.assert_close(found, exact)


def test_where_it_folds() -> None:
    folding, x = (
        AffineMap(torch.diag(torch.tensor([-1.5, 0.1], dtype=D)), torch.zeros(2, dtype=D)),
        torch.ones(3, 2).to(D),
    )
    assert bool(folding(x)[1].isnan().all())
    with pytest.raises(MapInversionError):
        folding.inverse(x)
