"""What the export makes of a fit: groups for ArviZ."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jkosampler._export import arviz_groups
from jkosampler._user_space import UserFlow
from jkosampler.arviz_io import to_arviz
from jkosampler.energies import KL, EnergyEvaluator
from jkosampler.particles import Particles
from jkosampler.targets import Target

pytestmark = pytest.mark.filterwarnings("default")


def fitted_with(log_rho):
    """What the export reads of a fit: draws with these log densities, and a target that counts its evaluations."""
    x = torch.randn(len(log_rho), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = Target(lambda x: -0.5 * x.square().sum(dim=1), 2, names=["a", "b"])
    energy = EnergyEvaluator(KL(target), dim=2, dtype=torch.float64, device=torch.device("cpu"))
    setup = SimpleNamespace(target=target, problem=SimpleNamespace(energy=energy), space=None, names=target.names)
    flow = SimpleNamespace(particles=lambda n, generator: Particles(x[:n], log_rho[:n], None))
    return SimpleNamespace(setup=setup, flow=flow, seen=UserFlow(flow, None), history=[])


def test_draws_without_a_density_stay_nan_and_are_said(caplog):
    log_rho = torch.zeros(20, dtype=torch.float64)
    log_rho[[3, 7, 11]] = math.nan
    with caplog.at_level(logging.WARNING, logger="jkosampler"):
        groups = arviz_groups(fitted_with(log_rho), 10, 2, torch.Generator())
    assert [record.getMessage()[:41] for record in caplog.records] == ["log_q is NaN or infinite at 3 of 20 draws"]
    statistics = to_arviz(**groups)["sample_stats"]
    for name, missing in (("log_q", 3), ("log_weight", 3), ("lp", 0)):
        assert int(np.isnan(statistics[name].values).sum()) == missing


def test_export_counts_its_evaluations_and_is_silent_about_good_draws(caplog):
    fitted = fitted_with(torch.zeros(20, dtype=torch.float64))
    arviz_groups(fitted, 10, 2, torch.Generator())
    assert fitted.setup.problem.energy.n_evaluations == 20
    assert not caplog.records
