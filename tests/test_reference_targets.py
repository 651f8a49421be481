"""The reference targets against printed values of their densities, and their draws against their densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_targets import TARGETS, sliced_energy_distance

CHECKS = {
    "funnel10": (-10.287997621, -11.943029000, -8.546502891),
    "shifted8modes": (0.687851578, -8.312148375, -11.812147549),
    "shifted8peaky": (1.380998758, -16.619001242, -23.619001242),
    "gmm20": (-223.686292930, -267.398638555, -286.876838365),
    "gmm50": (-612.300014574, -801.898260195, -566.681181986),
    "manywell32": (0.0, 10.1904, 6.943237305),
    "mos_2d": (-7.600869736, -7.873690926, -7.298439370),
}


@pytest.mark.parametrize("name", CHECKS)
def test_log_densities(name: str) -> None:
    target = TARGETS[name]()
    d = target.dim
    x = np.stack([np.zeros(d), np.full(d, 0.3), np.arange(d) / d - 0.5])
    np.testing.assert_allclose(target.log_density(torch.from_numpy(x)).numpy(), CHECKS[name], rtol=0.0, atol=2e-8)


def test_many_wells_constant() -> None:
    assert TARGETS["manywell32"]().log_z == pytest.approx(164.6956753132, abs=1e-8)


@pytest.mark.parametrize(
    "name",
    [*CHECKS, "banana", "bananas3", "bananas10", "chain5", "gaussian100", "bananas-chain100", "cauchy", "two-modes"],
)
def test_draws_have_the_density(name: str) -> None:
    """E[q / p] = 1 over draws of p, for the law q of the same target shifted a little."""
    target, rng = TARGETS[name](), np.random.default_rng(0)
    x, n = target.draw(40_000, rng), 40_000
    shift = 0.02 * x.std(0) if name == "gmm50" else np.full(target.dim, {"gaussian100": 6e-4}.get(name, 0.02))
    log_p = target.log_density(torch.from_numpy(x)).numpy()
    ratio = np.exp(np.minimum(target.log_density(torch.from_numpy(x + shift)).numpy() - log_p, 50.0))
    if name == "funnel10":  # its neck makes the ratio's variance infinite: the score has mean zero all the same
        v = x[:, 0]
        assert abs(v.mean()) < 4.0 * 3.0 / n**0.5
        np.testing.assert_allclose((x[:, 1:] * np.exp(-v / 2.0)[:, None]).std(0), 1.0, atol=4.0 / (2.0 * n) ** 0.5)
        return
    assert ratio.mean() == pytest.approx(1.0, abs=4.0 * ratio.std() / n**0.5)


def test_energy_distance() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((300, 2)), rng.standard_normal((200, 2)) + 0.5
    pairs = [np.linalg.norm(a[:, None] - b[None], axis=2).mean() for a, b in ((x, y), (x, x), (y, y))]
    exact = pairs[0] - 0.5 * pairs[1] - 0.5 * pairs[2]
    assert sliced_energy_distance(x, y, rng, 4000) == pytest.approx(exact, rel=0.05)
    assert sliced_energy_distance(x, x, rng, 10) == 0.0
