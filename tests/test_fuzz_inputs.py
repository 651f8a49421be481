"""Whatever users hand in: an answer without NaN, or an error of this package that says what is wrong; nothing else.

Each property is run twice: on few fixed examples, and on hundreds of random ones (`-m slow`).
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from fuzz_strategies import FAULTS, HUGE, JUNK, SCALES, Fickle, UserError, normal, points
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from jkosampler import JKOSampler, engines, laws, targets
from jkosampler.errors import ArgumentError, JKOSamplerError, TargetCallError

COMMON = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
FAST = settings(max_examples=15, derandomize=True, phases=[Phase.explicit, Phase.generate], **COMMON)
LONG = settings(max_examples=150, phases=[Phase.explicit, Phase.generate], **COMMON)
START = laws.Gaussian([0.5, -0.5], 1.5)
TINY = {"dim": 2, "initial": START, "n_particles": 40, "step_size": 0.2, "n_steps": 1, "progress": False}


def tiny(target, **changes):
    engine = engines.Lagrangian(n_iterations=2, width=4)
    return JKOSampler(target, **(TINY | {"engine": engine, "random_state": 0} | changes))


@contextmanager
def documented(*own):
    """Errors of this package and of the user's own code may come out, and warnings of a fit that ended early."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "initial=None")
        with suppress(JKOSamplerError, *own):
            yield


@pytest.fixture(scope="module")
def samplers():
    """A flow in R^2, one whose second parameter is positive, and one on the line."""
    positive = targets.Target(lambda x: -0.5 * x[:, 0].square() - x[:, 1], names=["a", "b"], support={"b": "positive"})
    plain = tiny(normal, n_steps=2).fit()
    constrained = tiny(positive, dim=None, initial=None).fit()
    return plain, constrained, tiny(normal, dim=1, initial=None).fit()


# 1. what is asked of a fitted sampler

TIMES = st.one_of(st.none(), st.none(), st.floats(-0.1, 0.5), JUNK)


def ask_points(samplers, which, x, t, question):
    before = np.array(x, dtype=object, copy=True) if isinstance(x, np.ndarray) else None
    with documented():
        found = getattr(samplers[which], question)(x, t)
        assert isinstance(found, torch.Tensor if isinstance(x, torch.Tensor) else np.ndarray)
        assert tuple(found.shape) == (len(x),)
        values = found.detach().double().numpy() if isinstance(found, torch.Tensor) else found
        assert not np.isnan(values).any()
        assert (values < np.inf).all()
        if question == "density":
            assert (values >= 0.0).all()
    if before is not None and before.dtype.kind == "O" and not isinstance(x, np.ma.MaskedArray):
        assert all(a is b or a == b or a != a for a, b in zip(before.flat, np.array(x, dtype=object).flat, strict=True))


def ask_draws(samplers, which, n, t, method, random_state):
    sampler = samplers[which]
    with documented():
        draws = sampler.sample(n, t, method=method, random_state=random_state)
        assert draws.shape == (n, sampler.n_features_in_)
        assert draws.dtype == np.float64
        assert np.isfinite(draws).all()
    with documented():
        draws, log_density = sampler.sample_with_log_density(n, t, random_state=random_state)
        assert log_density.shape == (n,)
        assert np.isfinite(draws).all()


def ask_reports(samplers, which, n, draws, chains):
    sampler = samplers[which]
    with documented():
        report = sampler.diagnose(n)
        assert not math.isnan(report.log_evidence + report.ess + report.elbo)
        assert str(report)
    with documented():
        posterior = sampler.to_arviz(draws=draws, chains=chains).posterior
        assert all(np.isfinite(posterior[name].to_numpy()).all() for name in posterior.data_vars)


WHICH = st.integers(0, 2)
COUNTS = st.one_of(st.integers(-1, 60), st.integers(0, 60).map(np.int32), JUNK)
STATES = st.one_of(st.integers(-1, 2**70), st.builds(np.random.default_rng), st.builds(torch.Generator), JUNK)
POINT_CASES = {
    "which": WHICH,
    "x": st.one_of(points(), points(), JUNK),
    "t": TIMES,
    "question": st.sampled_from(["log_density", "density"]),
}
DRAW_CASES = {
    "which": WHICH,
    "n": COUNTS,
    "t": TIMES,
    "method": st.one_of(st.just("flow"), st.sampled_from(["flow", "snis", "imh"]), JUNK),
    "random_state": STATES,
}
REPORT_CASES = {"which": WHICH, "n": COUNTS, "draws": COUNTS, "chains": st.one_of(st.integers(-1, 3), JUNK)}

test_points = FAST(given(**POINT_CASES)(ask_points))
test_draws = FAST(given(**DRAW_CASES)(ask_draws))
test_reports = FAST(given(**REPORT_CASES)(ask_reports))
test_many_points = pytest.mark.slow(LONG(given(**POINT_CASES)(ask_points)))
test_many_draws = pytest.mark.slow(LONG(given(**DRAW_CASES)(ask_draws)))
test_many_reports = pytest.mark.slow(LONG(given(**REPORT_CASES)(ask_reports)))


# 2. parameters and starting particles of a fit


def usable(sampler):
    """A fitted sampler gives finite draws, and densities that are numbers."""
    x = sampler.sample(5, random_state=0)
    assert x.shape == (5, sampler.n_features_in_)
    assert np.isfinite(x).all()
    with documented():  # maps of two iterations may fold
        assert not np.isnan(sampler.log_density(x)).any()


NAMES = sorted(set(JKOSampler().get_params(deep=False)) - {"progress", "resume"})


def fit_with_parameters(changes):
    target = None if changes.get("energy") is not None else normal
    sampler = tiny(target, max_time=0.3, max_target_evaluations=20_000)
    with documented(UserError):
        usable(sampler.set_params(**changes).fit())


def fit_from_points(x, initial):
    with documented():
        usable(tiny(normal, initial=initial).fit(x))


PARAMETERS = {"changes": st.dictionaries(st.sampled_from(NAMES), JUNK, min_size=1, max_size=2)}
STARTS = {"x": st.one_of(points(), points(), JUNK), "initial": st.sampled_from([None, START])}

test_parameters = FAST(given(**PARAMETERS)(fit_with_parameters))
test_starting_points = FAST(given(**STARTS)(fit_from_points))
test_many_parameters = pytest.mark.slow(LONG(given(**PARAMETERS)(fit_with_parameters)))
test_many_starting_points = pytest.mark.slow(LONG(given(**STARTS)(fit_from_points)))


# 3. targets that misbehave


def fit_of(fault, scale, call, seed, adaptive):
    own = (UserError, RuntimeError) if fault == "RuntimeError" else (UserError,)
    sampler = tiny(Fickle(fault, scale, call, seed))
    if adaptive:
        sampler.set_params(step_size=None, n_steps=2, max_target_evaluations=20_000, max_time=0.3)
    with documented(*own):
        sampler.fit()
        usable(sampler)
        assert not math.isnan(sampler.diagnose(30).log_evidence)


def interrupted(call, adaptive):
    target = Fickle("KeyboardInterrupt", 1.0, call, 0)
    sampler = tiny(target, n_steps=2)
    if adaptive:
        sampler.set_params(step_size=None, max_target_evaluations=20_000, max_time=0.5)
    with documented():
        try:
            sampler.fit()
        except KeyboardInterrupt:
            target.call = 10**9
            if hasattr(sampler, "n_steps_"):
                assert sampler.stop_reason_ == "interrupted"
                usable(sampler)
                sampler.diagnose(30)
                sampler.extend(1)
        target.call = 10**9
        if hasattr(sampler, "n_steps_"):
            usable(sampler)


FICKLE = {
    "fault": st.sampled_from(FAULTS),
    "scale": SCALES,
    "call": st.integers(0, 30),
    "seed": st.integers(0, 9),
    "adaptive": st.booleans(),
}
INTERRUPTS = {"call": st.integers(0, 40), "adaptive": st.booleans()}

test_targets = FAST(given(**FICKLE)(fit_of))
test_interrupts = FAST(given(**INTERRUPTS)(interrupted))
test_many_targets = pytest.mark.slow(LONG(given(**FICKLE)(fit_of)))
test_many_interrupts = pytest.mark.slow(LONG(given(**INTERRUPTS)(interrupted)))


# 4. what was found


@pytest.mark.parametrize(
    ("question", "name"),
    [
        (lambda sampler: sampler.log_density(np.array([[1.0 + 1.0j, 2.0]])), "x must be real"),
        (lambda sampler: sampler.log_density(torch.ones(1, 2) * 1j), "x must be real"),
        (
            lambda sampler: sampler.log_density(np.ma.masked_array([[1.0, 2.0]], [[True, False]])),
            "x has masked entries",
        ),
        (lambda sampler: sampler.log_density([[HUGE, 1]]), "x must be an array of numbers"),
        (lambda sampler: sampler.log_density([[0.0, 1.0]], t=HUGE), "t must be one number"),
        (lambda sampler: sampler.log_density([[0.0, 1.0]], t=[[1.0], 2.0]), "t must be one number"),
        (lambda sampler: sampler.sample(HUGE), "n must be"),
        (lambda sampler: sampler.sample(3, method=np.array(["flow", "imh"])), "method must be"),
        (lambda sampler: sampler.sample(3, random_state=2**64), "random_state must be"),
        (lambda sampler: sampler.to_arviz(draws=HUGE), "draws must be"),
        (lambda sampler: sampler.to_arviz(draws=2**40, chains=2**40), "draws=.*chains="),
    ],
)
def test_a_question_that_has_no_answer(samplers, question, name):
    with pytest.raises(ArgumentError, match=name):
        question(samplers[0])


@pytest.mark.parametrize(
    "changes", [{"dim": np.array([2.0])}, {"step_size": HUGE}, {"step_size": True}, {"max_time": 1j}, {"device": HUGE}]
)
def test_a_parameter_that_can_not_be_used(changes):
    with pytest.raises(ArgumentError, match=next(iter(changes))):
        tiny(normal, **changes).fit()


def test_any_number_of_numpy_may_be_a_budget():
    assert tiny(normal, max_time=np.float32(60.0), max_target_evaluations=10**6).fit().n_steps_ == 1


def test_a_mobility_that_raises_is_named():
    with pytest.raises(TargetCallError, match="mobility raised ZeroDivisionError"):
        tiny(normal, mobility=lambda rho: 1 / 0).fit()
