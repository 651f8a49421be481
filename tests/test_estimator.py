"""The estimator: scikit-learn's habits, numpy and torch in and out, randomness, steps, budgets, and clear errors."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from jkosampler import JKOSampler, energies, engines, laws
from jkosampler.errors import (
    ArgumentError,
    JKOSamplerError,
    NotFittedError,
    StartError,
    TargetGradientError,
    TargetShapeError,
    TargetValueError,
)

QUICK = {"n_particles": 1000, "progress": False, "random_state": 0}


def banana(x):
    return -0.5 * x[:, 0] ** 2 - 0.5 * (2.0 * (x[:, 1] - 0.5 * x[:, 0] ** 2)) ** 2


LOG_Z = math.log(2 * math.pi / 2.0)


@pytest.fixture(scope="module")
def fitted():
    return JKOSampler(banana, dim=2, progress=False, random_state=0).fit()


def test_fit_finds_law_and_evidence(fitted):
    assert fitted.converged_
    assert abs(fitted.log_evidence_ - LOG_Z) < 5 * max(fitted.log_evidence_se_, 1e-3)
    report = fitted.diagnose(4000)
    assert report.trustworthy
    assert LOG_Z - report.elbo < 0.01
    x = fitted.sample(20_000, random_state=3)
    np.testing.assert_allclose(x.mean(0), [0.0, 0.5], atol=0.05)
    np.testing.assert_allclose(x.std(0), [1.0, math.sqrt(0.25 + 0.5)], rtol=0.05)


def test_fitted_attributes(fitted):
    assert len(fitted.times_) == fitted.n_steps_ + 1
    assert len(fitted.history_) == fitted.n_steps_
    assert fitted.times_[0] == 0.0
    assert np.all(np.diff(fitted.times_) > 0)
    assert fitted.n_features_in_ == 2
    assert fitted.particles_.shape == (16_000, 2)
    assert fitted.n_target_evaluations_ > sum(record.target_evaluations for record in fitted.history_)
    for key in ("time", "step_size", "energy", "transport_cost", "loss", "n_iterations", "wall_s"):
        assert key in fitted.history_[0]
    assert fitted.history_[-1]["time"] == fitted.history_[-1].time == fitted.times_[-1]


def test_energy_never_rises_beyond_its_monte_carlo_error(fitted):
    for record in fitted.history_:
        assert record.energy_change <= 2.0 * record.energy_change_se


def test_numpy_in_numpy_out_torch_in_torch_out(fitted):
    x = fitted.sample(7, random_state=1)
    assert isinstance(x, np.ndarray)
    assert x.shape == (7, 2)
    assert x.dtype == np.float64
    tensor = fitted.sample(7, random_state=1, as_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(tensor.numpy(), x)
    log_q = fitted.log_density(x)
    assert isinstance(log_q, np.ndarray)
    assert log_q.shape == (7,)
    assert isinstance(fitted.log_density(tensor), torch.Tensor)
    np.testing.assert_allclose(fitted.density(x), np.exp(log_q))
    np.testing.assert_array_equal(fitted.score_samples(x), log_q)
    assert fitted.score(x) == pytest.approx(log_q.mean())


def test_density_integrates_to_one_at_every_time(fitted):
    grid = np.linspace(-9.0, 9.0, 181)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    times = [*fitted.times_[[0, 1, -2, -1]], 0.5 * (fitted.times_[-2] + fitted.times_[-1])]
    for t in times:
        inside = fitted.density(points, t=t).sum() * (grid[1] - grid[0]) ** 2
        draws = fitted.sample(20_000, t=t, random_state=0)
        escaped = np.mean(np.abs(draws).max(1) > 9.0)
        assert inside == pytest.approx(1.0 - escaped, abs=1e-3)


def test_pull_back_agrees_with_the_density_carried_along(fitted):
    particles = fitted._fitted.flow.particles(2000, torch.Generator().manual_seed(0))
    pulled = fitted.log_density(particles.x)
    assert float((pulled - particles.log_rho).abs().max()) < 1e-5


def test_same_seed_same_bits_and_no_global_state():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state is what is tested
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    runs = []
    for _ in range(2):
        sampler = JKOSampler(banana, dim=2, n_steps=5, engine=engines.Lagrangian(n_iterations=100), **QUICK).fit()
        runs.append((sampler.sample(50), sampler.sample(50), sampler.log_evidence_))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    np.testing.assert_array_equal(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2]
    assert not np.array_equal(runs[0][0], runs[0][1])
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(before_numpy, np.random.get_state()[1])  # noqa: NPY002
    assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())


@pytest.mark.parametrize(
    "make", [lambda: 5, lambda: np.random.default_rng(5), lambda: torch.Generator().manual_seed(5)]
)
def test_kinds_of_random_state(make):
    draws = [
        JKOSampler(banana, dim=2, n_steps=1, n_particles=500, progress=False, random_state=make()).fit().sample(3)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*draws)


def test_clone_params_repr():
    sampler = JKOSampler(banana, dim=2, engine=engines.Lagrangian(width=8), step_size=0.5)
    copy = clone(sampler)
    assert copy.get_params()["log_target"] is banana
    assert copy.get_params()["engine__width"] == 8
    copy.set_params(n_steps=3, engine__width=16)
    assert copy.n_steps == 3
    assert copy.engine.width == 16
    assert sampler.engine.width == 8
    assert "step_size=0.5" in repr(sampler)


def test_steps_iterates_and_extend_goes_on():
    quick = {"engine": engines.Lagrangian(n_iterations=3, width=8)}
    whole = JKOSampler(banana, dim=2, n_steps=4, **quick, **QUICK).fit()
    stepped = JKOSampler(banana, dim=2, n_steps=4, **quick, **QUICK)
    seen = []
    for record in stepped.steps():
        seen.append(record.time)
        assert stepped.n_steps_ == len(seen)
        assert stepped.sample(3, random_state=0).shape == (3, 2)
    assert seen == list(whole.times_[1:])
    np.testing.assert_array_equal(stepped.sample(5, random_state=0), whole.sample(5, random_state=0))
    extended = JKOSampler(banana, dim=2, n_steps=2, **quick, **QUICK).fit().extend(2)
    assert extended.n_steps_ == 4
    assert len(extended.history_) == 4


def test_budgets_end_the_fit_cleanly():
    quick = {"engine": engines.Lagrangian(n_iterations=3, width=8)}
    with pytest.warns(ConvergenceWarning, match="max_target_evaluations"):
        sampler = JKOSampler(banana, dim=2, max_target_evaluations=1, **quick, **QUICK).fit()
    assert sampler.n_steps_ == 0
    assert "max_target_evaluations" in sampler.stop_reason_
    with pytest.warns(ConvergenceWarning, match="max_time"):
        sampler = JKOSampler(banana, dim=2, max_time=1e-6, **quick, **QUICK).fit()
    assert "max_time" in sampler.stop_reason_
    assert sampler.sample(3).shape == (3, 2)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # some converge all the same
@pytest.mark.parametrize("affine", [True, False])
def test_a_budget_ends_a_step_in_its_midst(affine):
    """A network step has 2000 batches of 256; what is left of the budget is a fifth of that."""
    engine = engines.Lagrangian(affine=affine, n_ridges=0)
    sampler = JKOSampler(banana, dim=2, max_target_evaluations=100_000, engine=engine, **QUICK).fit()
    assert sampler.n_target_evaluations_ < 115_000  # those of the last judgement are beyond
    assert sampler.history_[-1].stage == "network"
    assert 50 < sampler.history_[-1].n_iterations < 500
    assert LOG_Z - sampler.diagnose(4000).elbo < 0.2


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_budget_ends_collocation_in_its_midst():
    sampler = JKOSampler(banana, dim=2, max_target_evaluations=100_000, **QUICK).fit()
    assert sampler.n_target_evaluations_ < 130_000  # without it 512 564
    assert LOG_Z - sampler.diagnose(4000).elbo < 0.5


def test_starting_particles_with_and_without_their_law():
    x = np.random.default_rng(0).normal(size=(2000, 2)) * 2.0
    quick = {"dim": 2, "n_steps": 2, "progress": False, "random_state": 0}
    known = JKOSampler(banana, initial=laws.Gaussian(np.zeros(2), scale=2.0), **quick).fit(x)
    assert known.particles_.shape == x.shape
    with pytest.warns(UserWarning, match="mixture fitted"):
        guessed = JKOSampler(banana, **quick).fit(x)
    assert abs(guessed.log_evidence_ - known.log_evidence_) < 0.5
    with pytest.raises(ArgumentError, match=r"X.*shape"):
        JKOSampler(banana, **quick).fit(x[:, 0])
    with pytest.raises(ArgumentError, match="outside the support"):
        JKOSampler(banana, initial=laws.Uniform([0.0, 0.0], [1.0, 1.0]), step_size=0.1, **quick).fit(x)


def test_box_start_is_smoothed_and_said_so(caplog):
    caplog.set_level(logging.WARNING, logger="jkosampler")
    box = laws.Uniform([-2.0, -2.0], [2.0, 2.0])
    sampler = JKOSampler(banana, initial=box, n_steps=1, **QUICK).fit()
    assert "jumps at its edge" in sampler.history_[0].note
    assert any("jumps at its edge" in record.message for record in caplog.records)
    inside, outside = np.zeros((1, 2)), np.full((1, 2), 3.0)
    assert sampler.log_density(inside, t=0)[0] == pytest.approx(-math.log(16.0))
    assert sampler.log_density(outside, t=0)[0] == -np.inf


def test_energy_instead_of_target():
    energy = energies.Entropy() + energies.Potential(lambda x: -banana(x))
    sampler = JKOSampler(energy=energy, dim=2, metric="kalman", n_steps=3, **QUICK).fit()
    assert sampler.score(sampler.sample(500)) < 0
    with pytest.raises(ArgumentError, match="log_target"):
        sampler.diagnose()


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (lambda x: torch.where(x[:, 0] > 1, torch.nan, banana(x)), TargetValueError, "x\\["),
        (lambda x: torch.where(x[:, 0] > 1, torch.inf, banana(x)), TargetValueError, "NaN or \\+inf"),
        (lambda x: -0.5 * x**2, TargetShapeError, "shape"),
        (lambda x: banana(x).sum(), TargetShapeError, "batch"),
        (lambda x: torch.from_numpy(banana(x.detach().numpy())), TargetGradientError, "numpy"),
        (lambda x: torch.full_like(x[:, 0], -torch.inf) + 0 * x[:, 0], StartError, "-inf"),
    ],
    ids=["nan", "inf", "shape", "scalar", "not-differentiable", "nowhere"],
)
def test_each_bad_target_has_its_own_clear_error(target, error, words):
    with pytest.raises(error, match=words) as caught:
        JKOSampler(target, dim=2, **QUICK).fit()
    assert isinstance(caught.value, JKOSamplerError)


def test_value_errors_carry_the_points():
    with pytest.raises(TargetValueError) as caught:
        JKOSampler(lambda x: torch.where(x[:, 0] > 1, torch.nan, banana(x)), dim=2, **QUICK).fit()
    assert (caught.value.points[:, 0] > 1).all()
    assert len(caught.value.indices) == len(caught.value.points)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"log_target": None}, "log_target"),
        ({"energy": energies.Entropy()}, "exactly one"),
        ({"dim": None}, "dim"),
        ({"metric": "euclid"}, "metric"),
        ({"mobility": "congestion"}, "mobility"),
        ({"order": 3}, "order"),
        ({"order": 2, "step_size": None}, "order=2 .* give step_size"),
        ({"checkpoint": "no/such/folder/run.safetensors"}, "checkpoint"),
        ({"step_size": -1.0}, "step_size"),
        ({"step_size": "big"}, "step_size"),
        ({"n_steps": 1.5}, "n_steps"),
        ({"n_particles": 1}, "n_particles"),
        ({"max_time": 0.0}, "max_time"),
        ({"random_state": "seed"}, "random_state"),
        ({"dtype": torch.int64}, "dtype"),
        ({"engine": "euler"}, "engine"),
        ({"initial": laws.Normal(0.0, 1.0)}, "dimensions contradict"),
        ({"engine": engines.Lagrangian(map="spline")}, "map"),
        ({"engine": engines.Lagrangian(coverage="everywhere")}, "coverage"),
    ],
)
def test_bad_arguments_are_named(changes, word):
    params = {"log_target": banana, "dim": 2} | QUICK | {"step_size": 0.5, "n_steps": 1} | changes
    with pytest.raises(ArgumentError, match=word):
        JKOSampler(**params).fit()


def test_not_fitted_and_bad_questions(fitted):
    with pytest.raises(NotFittedError, match="fit"):
        JKOSampler(banana, dim=2).sample(3)
    with pytest.raises(ArgumentError, match="t must lie"):
        fitted.sample(3, t=1e9)
    with pytest.raises(ArgumentError, match="n must be"):
        fitted.sample(-1)
    with pytest.raises(ArgumentError, match="method"):
        fitted.sample(3, method="gibbs")
    with pytest.raises(ArgumentError, match=r"\(n, 2\)"):
        fitted.log_density(np.zeros((3, 3)))
    with pytest.raises(ArgumentError, match="row 1"):
        fitted.log_density(np.array([[0.0, 0.0], [np.nan, 0.0]]))
    assert fitted.sample(0).shape == (0, 2)
