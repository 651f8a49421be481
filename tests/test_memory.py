"""Peak memory of many draws and of many particles, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

BENT = """
import numpy as np
import torch
from jkosampler import JKOSampler

def bent(x):
    return -0.125 * x[:, 0].square() - 0.5 * (x[:, 1:] - 0.3 * x[:, :1].square()).square().sum(1)

def sampler(**options):
    return JKOSampler(bent, dim=10, random_state=0, progress=False, **options)
"""
PEAK = """
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))  # kibibytes
"""  # getrusage's peak is that of the process that started this one too


def peak_in_gib(code: str) -> float:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BENT + code + PEAK], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
class TestPeak:
    def test_a_million_draws_and_their_densities(self) -> None:
        code = """
fitted = sampler(max_target_evaluations=600_000).fit()
assert fitted.n_steps_ > 3
x = fitted.sample(1_000_000)
assert np.isfinite(fitted.log_density(x)).all()
"""
        assert peak_in_gib(code) < 2.0

    def test_a_hundred_thousand_particles(self) -> None:
        code = """
fitted = sampler(n_particles=100_000, max_time=120).fit()
assert fitted.n_steps_ > 3
"""
        assert peak_in_gib(code) < 4.0
