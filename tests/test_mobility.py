"""Mobilities: values, limits, what users may give, and what is refused."""

from __future__ import annotations

import pytest
import torch

from jkosampler import JKOSampler, energies, laws
from jkosampler.errors import ArgumentError
from jkosampler.mobility import Exclusion, FunctionMobility, as_mobility

RHO = torch.tensor([1e-3, 0.25, 0.9], dtype=torch.float64)
ATTRACTION = energies.Interaction(lambda z: z.square().sum(-1))


def test_values() -> None:
    torch.testing.assert_close(RHO * Exclusion().per_density(RHO), RHO * (1.0 - RHO))
    square_root = as_mobility(lambda rho: rho.sqrt())
    assert square_root is not None
    torch.testing.assert_close(square_root.per_density(RHO), RHO.rsqrt())
    assert (Exclusion().limit, square_root.limit) == (1.0, float("inf"))


def test_names_functions_objects_and_nothing() -> None:
    assert as_mobility(None) is None
    assert isinstance(as_mobility("exclusion"), Exclusion)
    own = FunctionMobility(lambda rho: rho * (2.0 - rho), limit=2.0)
    assert as_mobility(own) is own
    with pytest.raises(ArgumentError, match="mobility must be None, 'exclusion'"):
        as_mobility("congestion")


def test_densities_that_are_not_allowed() -> None:
    Exclusion().check(RHO)
    with pytest.raises(ArgumentError, match=r"initial: its density reaches 1\.5, .* below 1"):
        Exclusion().check(torch.tensor([0.5, 1.5]))
    with pytest.raises(ArgumentError, match="positive and finite"):
        FunctionMobility(lambda rho: rho - 0.1).check(RHO)
    with pytest.raises(ArgumentError, match=r"shape \(3,\)"):
        FunctionMobility(lambda rho: rho.sum()).check(RHO)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"initial": laws.Parabola(1).with_mass(2.0)}, "initial: its density reaches 1.5"),
        ({"step_size": None, "n_steps": 2}, "fixed steps"),
        ({"order": 2}, "order=2 is for the linear mobility"),
        ({"mobility": 3}, "mobility must be"),
    ],
    ids=["too-dense", "adaptive", "order", "number"],
)
def test_refused_by_name(changes: dict[str, object], words: str) -> None:
    settings = {"initial": laws.Parabola(1), "mobility": "exclusion", "step_size": 0.02, "n_steps": 1}
    with pytest.raises(ArgumentError, match=words):
        JKOSampler(energy=ATTRACTION, progress=False, **(settings | changes)).fit()
