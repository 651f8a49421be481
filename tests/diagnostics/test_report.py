"""The three verdicts, their reasons and remedies, and what the report admits not to see."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from math import inf, nan

import numpy as np
import pytest

from jkosampler.diagnostics import Report, report_from_log_weights
from jkosampler.diagnostics.evidence import evidence
from jkosampler.diagnostics.psis import pareto_k
from jkosampler.errors import ArgumentError

GOOD = Report(
    n=4000,
    dim=2,
    pareto_k=0.213,
    ess=3921.6,
    ess_fraction=0.9804,
    log_evidence=-60.5939,
    log_evidence_se=0.00224,
    elbo=-60.6038,
    elbo_se=0.0021,
    largest_weight=3.21,
    stationarity=0.0312,
    converged=True,
)

GOLDEN = """\
Diagnosis of 4000 draws in 2 dimensions
  Pareto k-hat           0.213   good below 0.70
  largest weight         3.210   times the mean weight
  effective draws         3922   98.0% of 4000
  log evidence         -60.594   +/- 0.00224
  ELBO                 -60.604   +/- 0.0021
  KL to the target      0.0099   log evidence - ELBO
  bias of means          0.141   at most, in sd of the draws, without reweighting
  stationarity          0.0312   0 at the target, good below 0.2
  converged                yes
  What these numbers can't see: they are computed at the sampler's own draws, so a mode that no
  draw reached leaves no trace in them. To look from outside, fit again with a wider `initial` or
  another `random_state` and compare the log evidence.
Verdict: trust these draws. Wherever they look, the fitted law matches the target: unweighted means \
are off by at most about 0.14 sd."""


def changed(**values):
    return dataclasses.replace(GOOD, **values)


def test_golden_text():
    assert str(GOOD) == GOLDEN
    assert GOOD.trustworthy


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (
            {"ess": 2400.0, "ess_fraction": 0.6},
            "Verdict: use with care: unweighted means may be off by up to 0.82 sd. Try "
            "weighing the draws by exp(log_weight) of `to_arviz()`, `sampler.extend(10)` (more steps), "
            "a larger `n_particles` or a wider `initial`.",
        ),
        (
            {"converged": False, "stationarity": 0.5},
            "Verdict: use with care: the fit has not converged; the flow still moves (stationarity 0.5). "
            "Try `sampler.extend(10)` (more steps).",
        ),
        ({"warnings": ["odd"]}, "Verdict: use with care: see the warnings above."),
    ],
)
def test_use_with_care(values, verdict):
    report = changed(**values)
    assert report.verdict == verdict
    assert str(report).splitlines()[-1] == verdict
    assert not report.trustworthy


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (
            {"pareto_k": 1.234},
            "Verdict: do not trust these draws: a few draws carry most of the weight (k-hat 1.234). Try "
            "`sampler.extend(10)` (more steps), a larger `n_particles` or a wider `initial`.",
        ),
        (
            {"ess": 40.0, "ess_fraction": 0.01, "converged": False},
            "Verdict: do not trust these draws: 4000 of them are worth only 40 of the target; "
            "the fit has not converged. Try `sampler.extend(10)` (more steps), a larger `n_particles` "
            "or a wider `initial`.",
        ),
        (
            {"n": 20, "pareto_k": inf},
            "Verdict: do not trust these draws: 20 draws are too few to judge. Try `sampler.diagnose(n=4000)`.",
        ),
    ],
)
def test_do_not_trust(values, verdict):
    report = changed(**values)
    assert report.verdict == verdict
    assert str(report).splitlines()[-1] == verdict
    assert not report.trustworthy


@pytest.mark.parametrize("k", [0.7, inf, nan])
def test_k_must_lie_below_the_threshold(k):
    assert "do not trust" in changed(pareto_k=k).verdict
    assert changed(pareto_k=0.699).trustworthy


def test_k_of_weights_that_are_all_alike_is_shown_and_not_held_against_the_draws():
    report = changed(pareto_k=0.9, largest_weight=1.1)
    assert report.trustworthy
    assert "Pareto k-hat             0.9 " in str(report)
    assert not changed(pareto_k=0.9, largest_weight=2.1).trustworthy


@pytest.mark.parametrize(("n", "threshold"), [(10**6, 0.7), (1000, 2 / 3), (100, 0.5), (10, 0.0), (2, 0.0)])
def test_threshold_depends_on_the_number_of_draws(n, threshold):
    assert changed(n=n).pareto_k_threshold == pytest.approx(threshold)


def test_unknown_stationarity_is_said_and_not_held_against_the_draws():
    report = changed(stationarity=nan)
    assert report.trustworthy
    assert "stationarity         unknown" in str(report)


def test_kl_and_bias_bound():
    assert GOOD.kl_estimate == pytest.approx(0.0099)
    assert GOOD.bias_bound == pytest.approx(np.sqrt(1 / 0.9804 - 1))


def test_bias_bound_holds_for_a_shifted_gaussian():
    """Draws of N(0, 1), target N(s, 1): bias s, chi-square divergence e^(s^2) - 1."""
    s, n = 0.5, 100_000
    x = np.random.default_rng(0).normal(size=n)
    report = report_from_log_weights(s * x - s**2 / 2, stationarity=s**2, converged=True, dim=1)
    assert report.bias_bound == pytest.approx(np.sqrt(np.expm1(s**2)), rel=0.03)
    assert s <= report.bias_bound


def test_every_verdict_admits_the_blind_spot():
    for report in (GOOD, changed(converged=False), changed(pareto_k=2.0)):
        assert "a mode that no\n  draw reached" in str(report)


def test_a_missed_mode_is_invisible_which_is_why_the_text_says_so():
    """One of two equal modes: constant weights 2, perfect numbers, evidence short by log 2."""
    report = report_from_log_weights(np.zeros(4000), stationarity=0.0, converged=True, dim=1)
    assert report.trustworthy
    assert "can't see" in str(report)


def test_builder_collects_the_parts():
    log_weights = 0.1 * np.random.default_rng(0).normal(size=2000) - 60
    report = report_from_log_weights(log_weights, stationarity=0.01, converged=True, dim=3, warnings=("a", "b"))
    found = evidence(log_weights)
    for name in ("n", "elbo", "elbo_se", "log_evidence", "log_evidence_se", "ess", "ess_fraction"):
        assert getattr(report, name) == getattr(found, name)
    assert report.pareto_k == pareto_k(log_weights)
    assert (report.dim, report.stationarity, report.converged) == (3, 0.01, True)
    assert report.warnings == ["a", "b"]
    assert "  Warning: a\n  Warning: b\n" in str(report)


def test_builder_judges_good_and_bad_weights():
    rng = np.random.default_rng(1)
    verdicts = [
        report_from_log_weights(scale * rng.normal(size=4000), stationarity=0.0, converged=True, dim=2).verdict
        for scale in (0.1, 0.7, 4.0)
    ]
    for verdict, start in zip(verdicts, ("trust", "use with care", "do not trust"), strict=True):
        assert verdict.startswith(f"Verdict: {start}")


def test_draws_of_weight_zero_are_counted():
    log_weights = np.zeros(1000)
    log_weights[:3] = -inf
    report = report_from_log_weights(log_weights, stationarity=None, converged=True, dim=1)
    assert report.warnings[0].startswith("3 of 1000 draws lie where the target is zero")
    assert report.kl_estimate == inf
    assert np.isnan(report.stationarity)
    assert report.verdict == "Verdict: use with care: see the warnings above."
    assert "KL to the target         inf" in str(report)


def test_builder_rejects_bad_weights():
    with pytest.raises(ArgumentError, match="log_weights"):
        report_from_log_weights(np.array([0.0, nan]), stationarity=0.0, converged=True, dim=1)


def test_diagnostics_load_neither_torch_nor_arviz():
    code = (
        "import sys, jkosampler.diagnostics, jkosampler.arviz_io; "
        "print([name for name in ('torch', 'arviz', 'xarray') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
