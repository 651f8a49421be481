"""Fixed steps in single precision: their equations are solved in double, their maps are single."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jkosampler import JKOSampler, laws
from jkosampler.energies import KL, Energy, Entropy, Interaction, Potential

WELLS = Potential(lambda x: (x.square().sum(1) - 1.0).square())
FLOWS: dict[str, tuple[Energy, dict[str, Any]]] = {
    "order 1": (0.5 * Entropy() + WELLS, {}),
    "order 2": (0.5 * Entropy() + WELLS, {"order": 2}),
    "exclusion": (Interaction(lambda z: z.square().sum(-1)), {"mobility": "exclusion"}),
    "kl": (KL(lambda x: -(x.square().sum(1) - 1.0).square()), {"metric": "kalman"}),
}


@pytest.mark.parametrize("name", FLOWS)
def test_two_steps(name: str) -> None:
    energy, settings = FLOWS[name]
    found = {}
    for dtype in ("float32", "float64"):
        sampler = JKOSampler(
            energy=energy,
            initial=laws.Gaussian([0.5], [[1.0]]),
            step_size=0.02,
            n_steps=2,
            n_particles=3000,
            dtype=dtype,
            random_state=0,
            progress=False,
            **settings,
        ).fit()
        assert len(sampler.history_) == 2
        assert all(record.stage != "network" for record in sampler.history_)
        assert sampler.sample(5, as_tensor=True).dtype == getattr(torch, dtype)
        found[dtype] = sampler.log_density(np.linspace(-1.0, 1.4, 7)[:, None])
    np.testing.assert_allclose(found["float32"], found["float64"], atol=0.02)
