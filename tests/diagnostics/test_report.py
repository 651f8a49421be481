"""The three verdicts, their reasons and remedies, and what the report admits not to see."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from math import inf, nan

import numpy as np
import pytest

from jkosampler.diagnostics import Report, Stationarity, report_from_log_weights
from jkosampler.diagnostics.evidence import evidence, tail_error
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
    stationarity_se=0.00456,
    converged=True,
)

BLIND = (
    " No number here sees a mode that nothing has reached: compare the log evidence of a fit with a wider `initial` "
    "or another `random_state`."
)

GOLDEN = """\
Diagnosis of 4000 draws in 2 dimensions
  Pareto k-hat           0.213   good below 0.70
  largest weight         3.210   times the mean weight
  effective draws         3922   98.0% of 4000
  log evidence         -60.594   +/- 0.00224
  ELBO                 -60.604   +/- 0.0021
  KL to the target      0.0099   log evidence - ELBO
  bias of means          0.141   about, in sd, without reweighting, if they reach all of the target
  stationarity          0.0312   +/- 0.0046, 0 at the target, good below 0.2
  converged                yes
Verdict: trust these draws. Where they look, the fitted law matches the target: unweighted means \
are off by about 0.14 sd or less. No number here sees a mode that nothing has reached: compare the log evidence of a \
fit with a wider `initial` or another `random_state`."""


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
            "Verdict: use with care: unweighted means may be off by about 0.82 sd. Try "
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
    assert report.verdict == verdict + BLIND
    assert str(report).splitlines()[-1] == report.verdict
    assert not report.trustworthy


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (
            {"pareto_k": 1.234},
            "Verdict: do not trust these draws: the tail of the weights is too heavy for 4000 draws (k-hat 1.234). Try "
            "`sampler.extend(10)` (more steps), a larger `n_particles` or a wider `initial`.",
        ),
        (
            {"ess": 40.0, "ess_fraction": 0.01, "converged": False},
            "Verdict: do not trust these draws: 4000 of them are worth only 40 of the target; "
            "the fit has not converged. Try `sampler.extend(10)` (more steps), a larger `n_particles` "
            "or a wider `initial`.",
        ),
        (
            {"missing_evidence": "A law before it had log evidence 3.1."},
            "Verdict: do not trust these draws: they lack mass that was seen elsewhere, see the "
            "warnings. Try another `random_state` or a larger `n_particles`.",
        ),
        (
            {"n_undefined": 500},
            "Verdict: do not trust these draws: the fitted law folds; the law's density is undefined at 500 more "
            "draws. Try another `random_state`, a larger `n_particles` or a smaller `step_size`.",
        ),
    ],
)
def test_do_not_trust(values, verdict):
    report = changed(**values)
    assert report.verdict == verdict + BLIND
    assert str(report).splitlines()[-1] == report.verdict
    assert not report.trustworthy


@pytest.mark.parametrize("k", [0.7, inf, nan])
def test_k_must_lie_below_the_threshold(k):
    assert "do not trust" in changed(pareto_k=k).verdict
    assert changed(pareto_k=0.699).trustworthy


def test_high_k_of_nearly_equal_weights_leaves_means_and_quantiles():
    report = changed(pareto_k=0.9, largest_weight=1.1)
    assert report.trustworthy
    assert report.verdict.startswith("Verdict: trust these draws for means and quantiles. ")
    assert "the error bar of the log evidence, are not certified (k-hat 0.9)" in report.verdict
    assert "+/- 0.00224, not certified: see k-hat\n" in str(report)
    assert "without reweighting, if they reach" in str(report)
    assert "do not trust" in changed(pareto_k=0.9, largest_weight=2.1).verdict
    assert "use with care" in changed(pareto_k=0.9, largest_weight=1.1, converged=False).verdict


def test_k_from_one_on_needs_weights_that_are_closer():
    assert changed(pareto_k=1.4, largest_weight=1.04).trustworthy
    assert "do not trust" in changed(pareto_k=1.4, largest_weight=1.06).verdict


def weights_with_a_hidden_tail(n, seed=0):
    """Weights of mean one, 1 + a s^(-3/2) up to a constant, s uniform, bounded below s = 1e-10.

    Of their mean, 3 % lies where s < 1e-7, which 4000 draws don't see: of those, hardly a weight differs from another.
    """
    a, floor = 1e-7, 1e-10
    mean = 1 + 2 * a * (floor**-0.5 - 1) + a * floor**-0.5
    s = np.maximum(np.random.default_rng(seed).uniform(size=n), floor)
    return np.log1p(a * s**-1.5) - np.log(mean)


def test_tails_that_the_draws_miss_are_said_and_the_error_of_the_evidence_is_withheld():
    """True log evidence 0: by the delta-method error it would be a hundred standard errors off."""
    log_weights = weights_with_a_hidden_tail(4000)
    report = report_from_log_weights(log_weights, stationarity=0.001, converged=True, dim=1)
    assert report.log_evidence < -100 * evidence(log_weights).log_evidence_se
    assert report.largest_weight < 1.05
    assert report.pareto_k > 1
    assert report.log_evidence_se == inf
    assert "+/- unknown, not certified: see k-hat\n" in str(report)
    assert report.trustworthy
    assert "for means and quantiles" in report.verdict
    assert len(report.warnings) == 1
    assert "tails beyond the draws" in report.warnings[0]


def test_error_of_the_evidence_grows_by_the_tail_only_above_the_threshold():
    rng = np.random.default_rng(2)
    for shape, heavy in ((0.2, False), (0.85, True)):
        log_weights = np.log1p(0.001 * rng.pareto(1 / shape, size=10_000))
        report = report_from_log_weights(log_weights, stationarity=0.0, converged=True, dim=1)
        assert (report.pareto_k > 0.7) == heavy
        tail = tail_error(report.largest_weight, report.pareto_k, report.n) if heavy else 0.0
        assert report.log_evidence_se == evidence(log_weights).log_evidence_se + tail


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
    for report in (GOOD, changed(converged=False), changed(pareto_k=2.0), changed(pareto_k=2.0, largest_weight=1.1)):
        assert str(report).endswith(BLIND)


def test_a_missed_mode_is_invisible_which_is_why_the_text_says_so():
    """One of two equal modes: constant weights 2, perfect numbers, evidence short by log 2."""
    report = report_from_log_weights(np.zeros(4000), stationarity=0.0, converged=True, dim=1)
    assert report.trustworthy
    assert "No number here sees" in report.verdict


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
    assert report.verdict == "Verdict: use with care: see the warnings above." + BLIND
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


@pytest.mark.parametrize("ess_fraction", [0.5, 0.98])
def test_stationarity_far_beyond_its_limit_condemns(ess_fraction):
    """A law that never reached the arms of a curved target: means 9.5 sd off, 27 where 0.2 is good."""
    report = changed(stationarity=27.0, stationarity_se=2.0, ess_fraction=ess_fraction)
    assert report.verdict.startswith(
        "Verdict: do not trust these draws: stationarity 27.000 is 1.4e+02 times its limit, so that they may miss"
    )
    text = str(report)
    assert "at most" not in text
    assert text.count("not certified: see stationarity\n") == 3
    assert "27.000   +/- 2, 0 at the target" in text


def test_limits_of_stationarity_are_per_dimension():
    starts = {0.99: "trust", 1.01: "use with care", 2.49: "use with care", 2.51: "do not trust"}
    for stationarity, start in starts.items():
        report = changed(dim=10, stationarity=stationarity, stationarity_se=0.01)
        assert report.verdict.startswith(f"Verdict: {start}")


def test_noise_in_the_stationarity_is_said_and_condemns_only_what_is_doubtful_anyway():
    noisy = {"stationarity": 47.4, "stationarity_se": 46.3}
    report = changed(**noisy)
    assert "47.400   +/- 46, noise: a few draws decide it, 0 at" in str(report)
    assert report.verdict.startswith(
        "Verdict: use with care: a few draws decide the stationarity, 47.400 +/- 46. Try `sampler.diagnose(n=40000)`."
    )
    assert "do not trust" in changed(**noisy, ess_fraction=0.85).verdict
    assert changed(stationarity=0.1, stationarity_se=0.08).trustworthy
    assert "noise" not in str(changed(stationarity=0.1, stationarity_se=0.05))


def test_builder_takes_the_error_of_the_stationarity():
    weights = 0.01 * np.random.default_rng(3).normal(size=100)
    known = report_from_log_weights(weights, stationarity=Stationarity(0.02, 0.0123), converged=True, dim=1)
    assert (known.stationarity, known.stationarity_se) == (0.02, 0.0123)
    assert "0.02   +/- 0.012, noise" in str(known)
    without = report_from_log_weights(weights, stationarity=0.02, converged=True, dim=1)
    assert np.isnan(without.stationarity_se)
    assert "0.02   0 at the target" in str(without)


def test_folded_draws_are_counted_and_never_trusted():
    log_weights = 0.01 * np.random.default_rng(4).normal(size=3997)
    report = report_from_log_weights(log_weights, stationarity=0.0, converged=True, dim=1, n_undefined=3)
    assert report.warnings == [
        "3 of 4000 draws are left out: a map of the flow folds there, and the law's density is undefined. More steps "
        "won't mend it: refit with another `random_state`, a larger `n_particles` or a smaller `step_size`."
    ]
    assert report.verdict.startswith("Verdict: use with care: the law's density is undefined at 3 more draws; ")
    assert report.n_undefined == 3
    assert report_from_log_weights(log_weights, stationarity=0.0, converged=True, dim=1).trustworthy


def test_missing_evidence_condemns_and_is_printed():
    sentence = "The law at t = 1 had log evidence -3.1, 0.7 above this one's."
    report = report_from_log_weights(
        0.01 * np.random.default_rng(5).normal(size=400),
        stationarity=0.0,
        converged=True,
        dim=1,
        missing_evidence=sentence,
    )
    assert report.warnings == [sentence]
    assert f"  Warning: {sentence}\n" in str(report)
    assert report.verdict.startswith("Verdict: do not trust")
    assert "not certified: see the warnings" in str(report)


@pytest.mark.parametrize("n", [2, 10, 24])
def test_too_few_draws_for_a_verdict(n):
    with pytest.raises(ArgumentError, match=f"n={n} is too few draws for a verdict: take at least 25, better 4000"):
        report_from_log_weights(np.zeros(n), stationarity=0.0, converged=True, dim=1)
    with pytest.raises(ArgumentError, match="7 more have no density"):
        report_from_log_weights(np.zeros(n), stationarity=0.0, converged=True, dim=1, n_undefined=7)


def test_fewest_draws_have_a_limit_that_can_be_met():
    log_weights = 0.01 * np.random.default_rng(6).normal(size=25)
    report = report_from_log_weights(log_weights, stationarity=0.0, converged=True, dim=1)
    assert "good below 0.28" in str(report)
    assert np.isfinite(report.pareto_k)
