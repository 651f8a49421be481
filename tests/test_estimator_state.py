"""What a sampler holds at any moment: after a refit, a break, an interrupt, an error; its budgets, warnings, modes."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sklearn.exceptions
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from jkosampler import JKOSampler, energies, engines, laws
from jkosampler.engines import Lagrangian
from jkosampler.errors import ArgumentError, FitError, NotFittedError, StartError
from jkosampler.flow import FittedFlow
from jkosampler.particles import Particles

START = laws.Gaussian([2.0, -1.0], 2.0)
QUICK = {"dim": 2, "initial": START, "n_particles": 500, "progress": False, "random_state": 0}
LOG_Z = math.log(2.0 * math.pi)
FITTED = [
    "n_steps_", "times_", "history_", "particles_", "converged_", "stop_reason_", "start_note_", "log_evidence_",
    "log_evidence_se_", "pareto_k_", "ess_", "n_target_evaluations_", "n_target_calls_", "n_features_in_",
]  # fmt: skip


def normal(x):
    return -0.5 * x.square().sum(1)


def quartic(x):
    return -x.pow(4).sum(1)


def nowhere(x):
    return torch.full_like(x[:, 0], -torch.inf) + 0.0 * x[:, 0]


def fixed(target=normal, **changes):
    """A sampler of one-second steps that a network has nothing to do in, or hardly learns."""
    quick = {"step_size": 0.3, "n_steps": 2, "engine": engines.Lagrangian(n_iterations=3, width=8)}
    return JKOSampler(target, **(QUICK | quick | changes))


def refusing(monkeypatch, after, error=None):
    """Let the engine accept so many steps, and then none, or raise."""
    step = Lagrangian.step

    def limited(self, state):
        if len(state.maps) < after:
            return step(self, state)
        if error is not None:
            raise error
        return replace(state, stopped="no step lowers the energy", converged=False), None

    monkeypatch.setattr(Lagrangian, "step", limited)


# 1. a fit that ends early says so


def test_fewer_steps_than_asked_warn_at_the_users_line(monkeypatch):
    refusing(monkeypatch, after=1)
    sampler = fixed(n_steps=3)
    with pytest.warns(ConvergenceWarning, match=r"only 1 of 3 steps.*no step lowers.*diagnose\(\)") as caught:
        sampler.fit()
    assert Path(caught[0].filename) == Path(__file__)
    assert sampler.n_steps_ == 1
    assert sampler.stop_reason_ == "no step lowers the energy"


def test_zero_steps_warn_and_steps_and_extend_warn_too(monkeypatch):
    sampler = fixed(n_steps=1).fit()
    refusing(monkeypatch, after=1)
    with pytest.warns(ConvergenceWarning, match="only 0 of 2 steps") as caught:
        sampler.extend(2)
    assert Path(caught[0].filename) == Path(__file__)
    with pytest.warns(ConvergenceWarning, match="only 1 of 2 steps") as caught:
        assert len(list(fixed().steps())) == 1
    assert Path(caught[0].filename) == Path(__file__)


def test_adaptive_fit_warns_without_convergence_only(monkeypatch):
    JKOSampler(normal, n_steps=2, **QUICK).fit()  # as many as asked for: nothing to say
    refusing(monkeypatch, after=2)
    with pytest.warns(ConvergenceWarning, match="has not converged in 2 steps"):
        JKOSampler(normal, **QUICK).fit()


@pytest.mark.parametrize("budget", [{"max_time": 1e-9}, {"max_target_evaluations": 1}])
def test_a_budget_that_ends_the_fit_is_named(budget):
    with pytest.warns(ConvergenceWarning, match=next(iter(budget))):
        JKOSampler(normal, **budget, **QUICK).fit()


def test_n_steps_is_exact_with_step_size_and_an_upper_limit_without():
    start = {"initial": laws.Gaussian([0.1, 0.0], 1.1), "progress": False, "random_state": 0, "n_particles": 4000}
    adaptive = JKOSampler(normal, n_steps=60, **start).fit()
    assert adaptive.converged_
    assert adaptive.n_steps_ < 60
    assert "steps were made" not in adaptive.stop_reason_


# 2. one law at a time


def test_no_fitted_attribute_before_fit_and_all_of_them_after_a_break():
    sampler = fixed(n_steps=3)
    assert not any(hasattr(sampler, name) for name in FITTED)
    with pytest.raises(sklearn.exceptions.NotFittedError):
        check_is_fitted(sampler)
    for _ in sampler.steps():
        break
    check_is_fitted(sampler)
    assert all(hasattr(sampler, name) for name in FITTED)
    assert sampler.n_steps_ == 1
    assert sampler.stop_reason_ == "interrupted"
    assert abs(sampler.log_evidence_ - LOG_Z) < 5.0 * sampler.log_evidence_se_ + 1e-6


def test_a_refit_forgets_the_last_law():
    sampler = fixed().fit()
    before = sampler.log_evidence_
    sampler.set_params(log_target=lambda x: normal(x) + 100.0, n_steps=3)
    for _ in sampler.steps():
        break
    assert sampler.log_evidence_ == pytest.approx(before + 100.0, abs=0.5)
    sampler.set_params(log_target=None, energy=energies.Entropy(), n_steps=1).fit()
    assert all(
        math.isnan(getattr(sampler, name)) for name in ("log_evidence_", "log_evidence_se_", "pareto_k_", "ess_")
    )


def test_a_refit_that_fails_leaves_no_law():
    sampler = fixed().fit()
    with pytest.raises(StartError):
        sampler.set_params(log_target=nowhere).fit()
    for question in (sampler.sample, sampler.diagnose, sampler.extend, lambda: sampler.n_steps_):
        with pytest.raises(NotFittedError):
            question()
    assert not any(hasattr(sampler, name) for name in FITTED)
    with pytest.raises(ArgumentError, match="order"):
        fixed(order=3).fit()


def test_evidence_is_of_the_current_law_and_leaves_the_stream_alone():
    asked, unasked = fixed().fit(), fixed().fit()
    calls = asked.n_target_calls_
    first = asked.log_evidence_, asked.ess_
    assert asked.n_target_calls_ == calls + 1  # the four attributes share one evaluation
    assert (asked.log_evidence_, asked.ess_) == first
    np.testing.assert_array_equal(asked.sample(5), unasked.sample(5))
    asked.extend(1)
    assert asked.log_evidence_ != first[0]
    assert unasked.log_evidence_ == first[0]  # also after its draws


@pytest.mark.parametrize("after", [0, 1])
def test_an_interrupted_fit_can_be_used(monkeypatch, caplog, after):
    sampler = fixed(n_steps=3)
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO, "jkosampler"):
        refusing(patched, after=after, error=KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            sampler.fit()
    assert f"interrupted after {after} steps" in caplog.text
    assert sampler.n_steps_ == len(sampler.history_) == len(sampler.times_) - 1 == after
    assert sampler.stop_reason_ == "interrupted"
    assert np.isfinite(sampler.log_density(sampler.sample(10))).all()
    assert math.isfinite(sampler.log_evidence_)
    assert sampler.extend(3 - after).n_steps_ == 3


def test_interrupted_before_there_are_particles_is_not_fitted(monkeypatch):
    def interrupted(self, flow):
        raise KeyboardInterrupt

    monkeypatch.setattr(Lagrangian, "init", interrupted)
    sampler = fixed()
    with pytest.raises(KeyboardInterrupt):
        sampler.fit()
    assert not hasattr(sampler, "n_steps_")


def test_copies_of_a_fitted_sampler_are_fitted():
    sampler = fixed(n_steps=1).fit()
    np.testing.assert_array_equal(deepcopy(sampler).sample(3), sampler.sample(3))


def test_particles_are_a_copy():
    sampler = fixed(n_steps=1).fit()
    sampler.particles_[:] = 0.0
    assert np.abs(sampler.particles_).max() > 0.0


# 3. torch's modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fit_in_any_mode_of_torch(mode):
    def everything():
        engine = engines.Lagrangian(n_iterations=3, width=8, affine=False)
        x = torch.randn(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        sampler = fixed(quartic, engine=engine, n_steps=1, initial=laws.Gaussian([0.0, 0.0], 1.0))
        sampler.fit(x)
        report, idata = sampler.diagnose(100), sampler.to_arviz(draws=5, chains=1)
        y = sampler.sample(5, as_tensor=True)
        values = sampler.log_density(y).tolist()
        sampler.extend(1)  # also what was made while sampling must be fit for gradients
        return values, report.elbo, sampler.log_evidence_, float(idata.posterior["x"].sum()), sampler.sample(3).tolist()

    plain = everything()
    with mode():
        inside = everything()
        assert not torch.is_grad_enabled()
    assert plain == inside


# 4. budgets


def test_idle_time_between_steps_and_extensions_is_free():
    sampler = fixed(n_steps=3, max_time=5.0)
    clock = time.perf_counter
    offset = 0.0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: clock() + offset)
        for _ in sampler.steps():
            offset += 100.0
        assert sampler.n_steps_ == 3
        offset += 100.0
        assert sampler.extend(2).n_steps_ == 5


def test_extend_has_its_own_budget_of_evaluations():
    sampler = fixed(n_steps=1).fit()
    spent = sampler.n_target_evaluations_
    sampler.set_params(max_target_evaluations=spent)
    sampler.diagnose(4000)
    assert sampler.extend(1).n_steps_ == 2


def test_extend_until_it_stops_by_itself():
    sampler = JKOSampler(normal, n_steps=1, **(QUICK | {"n_particles": 4000})).fit()
    assert not sampler.converged_
    assert sampler.stop_reason_ == "the one step was made"
    sampler.extend()
    assert sampler.converged_
    assert sampler.n_steps_ > 1
    for wrong in (0, 1.5, True):
        with pytest.raises(ArgumentError, match="n_steps"):
            sampler.extend(wrong)


@pytest.mark.parametrize(("n_steps", "words"), [(0, "no step was asked for"), (2, "all 2 steps were made")])
def test_words_for_the_end(n_steps, words):
    assert fixed(n_steps=n_steps).fit().stop_reason_ == words


def test_a_flow_that_nothing_ends_is_refused():
    heat = {"energy": energies.Entropy(), "dim": 1, "progress": False, "n_particles": 200}
    for step_size in (0.1, None):
        with pytest.raises(ArgumentError, match=r"n_steps.*max_time"):
            JKOSampler(step_size=step_size, **heat).fit()
    with pytest.raises(ArgumentError, match="max_time"):
        JKOSampler(step_size=0.1, max_target_evaluations=100, **heat).fit()  # entropy evaluates nothing
    sampler = JKOSampler(step_size=0.1, n_steps=1, **heat).fit()
    with pytest.raises(ArgumentError, match="n_steps"):
        sampler.extend()
    with pytest.warns(ConvergenceWarning, match="max_time"):
        JKOSampler(step_size=0.1, max_time=1e-9, **heat).fit()


def test_step_size_without_n_steps_is_allowed_for_a_target(monkeypatch):
    refusing(monkeypatch, after=1)
    with pytest.warns(ConvergenceWarning, match="has not converged in 1 step "):
        fixed(n_steps=None).fit()


def test_step_size_without_n_steps_ends_by_itself_for_a_target():
    sampler = fixed(n_steps=None, initial=laws.Gaussian([0.1, 0.0], 1.0), n_particles=2000, max_time=60.0).fit()
    assert sampler.converged_
    assert 0 < sampler.n_steps_ < 60


# 9. folded maps, densities along the path


def fold(monkeypatch, folded):
    """Let the flow's draws have no density where `folded(x)`."""
    particles = FittedFlow.particles

    def folding(self, n, generator):
        p = particles(self, n, generator)
        return Particles(p.x, torch.where(folded(p.x), torch.nan, p.log_rho), p.score)

    monkeypatch.setattr(FittedFlow, "particles", folding)


def test_folded_draws_are_left_out_and_counted(monkeypatch):
    sampler = fixed().fit()
    fold(monkeypatch, lambda x: x[:, 0] > 2.0)
    report = sampler.diagnose(2000)
    assert 0 < report.n_undefined < 1000
    assert report.n + report.n_undefined == 2000
    assert math.isfinite(report.log_evidence)
    assert math.isfinite(sampler.log_evidence_)
    fold(monkeypatch, lambda x: x[:, 0] == x[:, 0])
    with pytest.raises(FitError, match="fold at 100 of 100"):
        sampler.diagnose(100)


def test_missing_evidence_reaches_the_report():
    sampler = fixed().fit()
    state = sampler._fitted.state
    sampler._fitted.state = replace(state, missing_evidence="An earlier law saw more.")
    assert sampler.diagnose(100).missing_evidence == "An earlier law saw more."


def test_draws_with_their_log_density():
    sampler = fixed(quartic, engine=engines.Lagrangian(n_iterations=20, width=8)).fit()
    for t in (None, 0.0, 0.3, 0.45):
        x, log_q = sampler.sample_with_log_density(200, t, random_state=3)
        assert x.dtype == log_q.dtype == np.float64
        np.testing.assert_allclose(x, sampler.sample(200, t, random_state=3), rtol=0, atol=1e-12)
        np.testing.assert_allclose(log_q, sampler.log_density(x, t), rtol=0, atol=1e-8)
    x, log_q = sampler.sample_with_log_density(0, as_tensor=True)
    assert x.shape == (0, 2)
    assert log_q.shape == (0,)


def test_every_evaluation_counts():
    sampler = fixed(n_steps=1).fit()
    before = sampler.n_target_evaluations_
    sampler.to_arviz(draws=50, chains=2)
    assert sampler.n_target_evaluations_ == before + 100
    sampler.diagnose(30)
    assert sampler.n_target_evaluations_ == before + 130 + 4 * 30  # and as many for each look from outside


@pytest.mark.parametrize("n", [24, 0, -1, 30.0, True, "many"])
def test_diagnose_names_n(n):
    with pytest.raises(ArgumentError, match="n must be a whole number of at least 25"):
        fixed(n_steps=0).fit().diagnose(n)


def test_a_target_that_raises_far_out_is_stepped_back_from():
    """As torch's distributions do where a scale underflows: a trial so far out is no reason to end the fit."""
    furthest = 0.0

    def log_density(x):
        nonlocal furthest
        furthest = max(furthest, float(x.detach().abs().max()))
        if furthest > 12.0 and float(x.detach().abs().max()) > 12.0:
            raise ValueError("the scale must be positive")
        return -0.5 * (x - 4.0).square().sum(1) / 0.25

    fit = JKOSampler(log_density, dim=2, random_state=0, progress=False).fit()
    assert furthest > 12.0
    assert fit.converged_
    assert fit.diagnose().trustworthy


def test_the_package_is_imported_without_torch():
    """So `import jkosampler` takes less time than `import torch`; the names are loaded when they are first used."""
    code = "import sys, jkosampler; print([name for name in ('torch', 'sklearn', 'arviz') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
