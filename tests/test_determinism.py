"""The same seed gives the same bits, whatever ran before or runs beside; what a fit finds around it stays as it was."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from jkosampler import JKOSampler, engines, laws
from jkosampler._surroundings import ignoring, torch_scope


def banana(x):
    return -0.5 * x[:, 0].square() - 0.5 * (x[:, 1] - x[:, 0].square()).square()


def cloud():
    generator = np.random.default_rng(3)
    return np.concatenate([generator.normal(-2.0, 1.0, (150, 2)), generator.normal(2.0, 0.5, (150, 2))])


def fitted(kind, target=banana):
    """A small fit of some kind: fixed steps by a network, adaptive ones, a start that torch draws, particles."""
    common = {"dim": 2, "n_particles": 300, "random_state": 7, "progress": False}
    fixed = {"step_size": 0.2, "n_steps": 2, "engine": engines.Lagrangian(n_iterations=5, width=8)}
    gaussian = laws.Gaussian([0.0, 1.0], 1.5)
    if kind == "adaptive":
        return JKOSampler(target, n_steps=2, initial=gaussian, max_target_evaluations=100_000, **common).fit()
    if kind == "torch":
        start = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), 2.0 * torch.eye(2).double())
        return JKOSampler(target, initial=start, **common, **fixed).fit()
    if kind == "particles":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "initial=None")
            return JKOSampler(target, **common, **fixed).fit(cloud())
    return JKOSampler(target, initial=gaussian, **common, **fixed).fit()


KINDS = ["fixed", "adaptive", "torch", "particles"]


def bits(kind):
    """A digest of whatever a fit has found, and of what it draws."""
    sampler = fitted(kind)
    draws, log_density = sampler.sample_with_log_density(500)
    found = [sampler.particles_, sampler.times_, draws, log_density, sampler.sample(100, method="snis")]
    found += [sampler.log_density(draws[:50]), np.array([sampler.log_evidence_, sampler.diagnose(200).elbo])]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in found)).hexdigest()


@pytest.fixture(scope="module")
def alone():
    return {kind: bits(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_ran_before(alone, kind):
    fitted("fixed", lambda x: -x.pow(4).sum(1)).sample(17)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.manual_seed(5)
        np.random.seed(6)  # noqa: NPY002
        random.seed(7)
        assert bits(kind) == alone[kind]
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def test_in_a_fresh_process(alone):
    kinds = ["adaptive", "torch"]
    environment = os.environ | {"PYTHONHASHSEED": "11", "OMP_NUM_THREADS": "2"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, __file__, *kinds], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == [alone[kind] for kind in kinds]


@pytest.mark.parametrize("pair", [("fixed", "fixed"), ("torch", "torch"), ("particles", "adaptive")])
def test_two_threads_do_not_disturb_each_other(alone, pair):
    ready = threading.Barrier(2)

    def together(kind):
        ready.wait()
        return bits(kind)

    before = surroundings()
    with warnings.catch_warnings():  # filters are the process's: here, not in the threads
        warnings.filterwarnings("ignore", "initial=None")
        inside = list(warnings.filters)
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(together, pair))
        assert warnings.filters == inside
    assert found == [alone[kind] for kind in pair]
    assert surroundings() == before


# what is around


def in_a_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def surroundings():
    """Whatever a library could change behind its user's back."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        str(np.random.get_state()),  # noqa: NPY002
        random.getstate(),
        torch.get_num_threads(),
        in_a_new_thread(torch.get_num_threads),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        list(warnings.filters),
        np.geterr(),
        str(np.get_printoptions()),
    )


def failing(kind, after):
    """A log density that raises from this call on."""
    calls = 0

    def log_density(x):
        nonlocal calls
        calls += 1
        if calls > after:
            raise kind
        return banana(x)

    return log_density


@pytest.fixture
def unusual():
    """Settings that are not the defaults, which a reset would not give back by chance."""
    threads, errors = torch.get_num_threads(), np.geterr()
    torch.set_num_threads(2)
    np.seterr(divide="raise", invalid="raise", under="raise")
    yield
    np.seterr(**errors)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("unusual")
def test_surroundings_are_left_as_found(kind, error):
    before = surroundings()
    if error is None:
        sampler = fitted(kind)
        sampler.diagnose(100)
        sampler.to_arviz(draws=10, chains=2)
    else:
        for after in (0, 6):
            with pytest.raises(error):
                fitted(kind, failing(error, after))
    assert surroundings() == before


@pytest.mark.usefixtures("unusual")
def test_a_scope_that_ends_after_the_one_it_began_in():
    """The second thread meets torch for the first time while the first one has set the number for itself."""
    entered, left = threading.Event(), threading.Event()

    def second():
        with torch_scope(1):
            with torch_scope(1):  # nested, as a report in a fit
                entered.set()
                assert left.wait(10.0)
            assert torch.get_num_threads() == 1
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        with torch_scope(1):
            found = pool.submit(second)
            assert entered.wait(10.0)
        left.set()
        assert torch.get_num_threads() == 2
        assert found.result() == 2
    assert in_a_new_thread(torch.get_num_threads) == 2


def test_filters_of_warnings_after_two_threads():
    before, trying, left = list(warnings.filters), threading.Event(), threading.Event()

    def second():
        trying.set()
        with ignoring(ConvergenceWarning):
            assert left.wait(10.0)

    with ThreadPoolExecutor(1) as pool:
        with ignoring(ConvergenceWarning):
            found = pool.submit(second)
            assert trying.wait(10.0)
            time.sleep(0.05)  # where nothing kept it out, it would be inside by now
        left.set()
        found.result()
    assert list(warnings.filters) == before


def test_laws_of_torch_drawn_in_two_threads():
    class Slow(torch.distributions.Normal):
        def sample(self, sample_shape=()):
            time.sleep(0.02)  # between the seed and the draws
            return super().sample(sample_shape)

    law = laws.as_law(Slow(torch.zeros(2).double(), torch.ones(2).double()))

    def draws(seed):
        return law.sample((5,), generator=torch.Generator().manual_seed(seed)).tolist()

    expected = [draws(seed) for seed in range(6)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(draws, range(6))) == expected


if __name__ == "__main__":  # in a fresh process
    print(*(bits(kind) for kind in sys.argv[1:]))
