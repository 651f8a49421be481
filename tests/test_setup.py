"""What users hand in: kinds of arguments that are taken, and refusals that name the argument and the remedy."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from jkosampler import JKOSampler, energies, engines, laws, targets
from jkosampler._arguments import warn_user
from jkosampler._inputs import flow_time, random_generator
from jkosampler._surroundings import torch_scope
from jkosampler.errors import ArgumentError

QUICK = {
    "step_size": 0.3, "n_steps": 1, "n_particles": 300, "progress": False, "random_state": 0,
    "engine": engines.Lagrangian(n_iterations=3, width=8),
}  # fmt: skip


def normal(x):
    return -0.5 * x.square().sum(1)


class MethodDim:
    """A target whose `dim` is a method, as a tensor's is."""

    def dim(self):
        return 2

    def __call__(self, x):
        return normal(x)


def quick(target=normal, **changes):
    return JKOSampler(target, **(QUICK | {"dim": 2} | changes))


@pytest.fixture(scope="module")
def fitted():
    return quick(initial=laws.Gaussian([2.0, -1.0], 2.0)).fit()


def test_float32_inside_is_float64_for_numpy():
    for dtype in (torch.float32, "float32"):
        sampler = quick(dtype=dtype, initial=laws.Gaussian([2.0, -1.0], 2.0)).fit()
        x = sampler.sample(4)
        assert x.dtype == sampler.particles_.dtype == sampler.log_density(x).dtype == np.float64
        assert sampler.sample_with_log_density(4)[1].dtype == np.float64
        assert sampler.sample(4, as_tensor=True).dtype == torch.float32
        idata = sampler.to_arviz(draws=5, chains=1)
        assert idata.posterior["x"].dtype == idata.sample_stats["log_q"].dtype == np.float64
    assert quick(dtype="float64", n_steps=0).fit().sample(1, as_tensor=True).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"initial": np.zeros((5, 2))}, r"initial.*fit\(X\)"),
        ({"initial": torch.zeros(5, 2)}, r"initial.*fit\(X\)"),
        ({"initial": [[0.0, 0.0]]}, r"initial.*fit\(X\)"),
        ({"device": "nonsense"}, "device='nonsense'"),
        ({"device": 2.5}, "device=2.5"),
        ({"mobility": np.ones(2)}, "mobility"),
        ({"domain": np.ones(2)}, "domain must be"),
        ({"checkpoint": np.ones(2)}, "checkpoint"),
        ({"order": np.ones(2)}, "order"),
        ({"order": True}, "order must be a whole number"),
        ({"order": 3}, "order must be 1 or 2"),
        ({"order": 2, "step_size": None}, "order=2 .* give step_size"),
        ({"engine": np.ones(2)}, "engine"),
        ({"metric": np.array(["kalman"])}, "metric"),
        ({"metric": "Kalman"}, "give 'kalman'"),
        ({"metric": "KULLBACK"}, "metric must be one of"),
        ({"step_size": np.array([0.1])}, "step_size"),
        ({"n_steps": True}, "n_steps"),
        ({"dtype": "float16"}, "dtype"),
        ({"log_target": MethodDim()}, "dim.*a method"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_that_are_refused_by_name(changes, words):
    params = {"log_target": normal, "dim": 2} | QUICK | changes
    with pytest.raises(ArgumentError, match=words):
        JKOSampler(**params).fit()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(ArgumentError, match="device='cuda'"):
        quick(device="cuda").fit()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((0, 2)), "has 0 rows"),
        (np.ones((1, 2)), "has 1 row,"),
        (np.eye(2), "has 2 rows"),
        (np.ones((50, 2)), "repeats one point"),
        (np.outer(np.arange(50.0), [1.0, 2.0]), "lies in a plane"),
        (np.column_stack([np.arange(50.0), np.zeros(50)]), "lies in a plane"),
    ],
    ids=["none", "one", "two", "equal", "line", "axis"],
)
@pytest.mark.parametrize("initial", [None, laws.Gaussian([0.0, 0.0], 100.0)], ids=["mixture", "law"])
def test_starting_particles_must_be_spread(x, words, initial):
    with pytest.raises(ArgumentError, match=f"X {words}.*not data.*y is ignored"):
        quick(initial=initial).fit(x)


def test_starting_particles_of_any_scale_and_their_warning_at_the_users_line():
    x = np.random.default_rng(0).normal(size=(300, 2)) * [1e-6, 1e6] + [0.0, 1e7]
    with pytest.warns(UserWarning, match="mixture fitted") as caught:
        quick(lambda x: normal(x / torch.tensor([1e-6, 1e6])), n_steps=0).fit(x)
    assert Path(caught[0].filename) == Path(__file__)


def test_starting_particles_are_copied():
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sampler = quick(initial=laws.Gaussian([0.0, 0.0], 1.0), n_steps=0).fit(x)
    x.zero_()
    assert np.abs(sampler.particles_).max() > 0.0


@pytest.mark.parametrize("t", ["a", "0.1", [0.1], np.array([0.1]), 1j])
def test_t_must_be_a_number(fitted, t):
    for question in (fitted.sample, fitted.sample_with_log_density):
        with pytest.raises(ArgumentError, match="t must be one number"):
            question(3, t)
    for question in (fitted.log_density, fitted.density):
        with pytest.raises(ArgumentError, match="t must be one number"):
            question(np.zeros((1, 2)), t)


@pytest.mark.parametrize("t", [0, 0.1, np.float32(0.1), np.array(0.1), torch.tensor(0.1)])
def test_numbers_that_are_times(t):
    assert flow_time(t) == pytest.approx(float(t))


@pytest.mark.parametrize("n", [2.0, True, "3", -1])
def test_n_must_be_a_whole_number(fitted, n):
    for question in (fitted.sample, fitted.sample_with_log_density):
        with pytest.raises(ArgumentError, match="n must be"):
            question(n)


def test_numpys_old_random_state():
    old = np.random.RandomState
    seeds = [random_generator(old(seed)).initial_seed() for seed in (5, 5, 6)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_energy_knows_the_dimension_of_its_target():
    target = targets.Target(normal, 2)
    sampler = JKOSampler(energy=0.5 * energies.KL(target) + energies.Entropy(), **(QUICK | {"n_steps": 0})).fit()
    assert sampler.n_features_in_ == 2
    with pytest.raises(ArgumentError, match="energy says 2"):
        JKOSampler(energy=energies.KL(target), dim=3, **QUICK).fit()


def test_a_replaced_start_is_logged_under_the_package(caplog):
    caplog.set_level(logging.WARNING, logger="jkosampler")
    box = laws.Uniform([-2.0, -2.0], [2.0, 2.0])
    quick(initial=box, step_size=None, n_steps=0).fit()
    assert [record.name.split(".")[0] for record in caplog.records] == ["jkosampler"]
    caplog.clear()
    package = logging.getLogger("jkosampler")
    before = package.level
    try:
        package.setLevel(logging.ERROR)
        quick(initial=box, step_size=None, n_steps=0).fit()
    finally:
        package.setLevel(before)
    assert not caplog.records


def test_torch_scope_puts_everything_back():
    threads = torch.get_num_threads()
    with torch.inference_mode():
        with torch_scope(2):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert torch.get_num_threads() == 2
        assert torch.is_inference_mode_enabled()
    assert torch.get_num_threads() == threads


def test_warnings_point_at_the_line_outside_the_package():
    with pytest.warns(UserWarning, match="here") as caught:
        warn_user("here")
    assert Path(caught[0].filename) == Path(__file__)
