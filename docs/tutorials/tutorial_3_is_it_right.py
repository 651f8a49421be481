"""
3. Is my result right?
======================

:meth:`~jkosampler.JKOSampler.diagnose` says whether the draws can be used. This page shows what its numbers mean, on
posteriors in the plane whose truth is known from quadrature: a fit that is right, one that was stopped too early, one
that weights can mend, and one that is wrong although the report does not see it. And what to do about each.
"""

import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from jkosampler import JKOSampler, laws, plotting

# %%
# The truth
# ---------
#
# The first posterior is bent: given the first coordinate, the second lies about a parabola. Sums over a fine grid give
# its evidence, means and standard deviations, with which we compare whatever a fit says.
first, second = np.linspace(-12.0, 16.0, 1401), np.linspace(-12.0, 40.0, 2601)
grid = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)


def bent(x):
    """Unnormalised log density, (n, 2) -> (n,)."""
    return -0.5 * (x[:, 0] / 1.5) ** 2 - 0.5 * ((x[:, 1] - 0.5 * x[:, 0] ** 2) / 0.4) ** 2


class Truth:
    """What the grid knows of a log density."""

    def __init__(self, log_density):
        density = log_density(torch.from_numpy(grid)).exp().numpy()
        self.log_evidence = np.log(density.sum() * (first[1] - first[0]) * (second[1] - second[0]))
        share = density / density.sum()
        self.mean = share @ grid
        self.sd = np.sqrt(share @ (grid - self.mean) ** 2)

    def errors_of(self, draws):
        """Errors of means, and of standard deviations, in words."""
        means, sds = (draws.mean(0) - self.mean) / self.sd, draws.std(0) / self.sd - 1.0
        of_means, of_sds = (" and ".join(f"{value:+.1%}" for value in pair) for pair in (means, sds))
        return f"means off by {of_means} of a standard deviation, standard deviations by {of_sds}"


truth = Truth(bent)
print(f"log evidence {truth.log_evidence:.5f}")
print(f"means {truth.mean.round(3) + 0.0}, standard deviations {truth.sd.round(3)}")

# %%
# A fit that is right
# -------------------
sampler = JKOSampler(bent, dim=2, random_state=0, progress=False).fit()
report = sampler.diagnose(n=10_000)
print(report)

# %%
# Read it from below. The **verdict** is the whole in a sentence, with a remedy where one is needed. The rows above it
# are its reasons. The report draws from the fitted law, and gives each draw the weight target / law. Where the two are
# proportional, all weights are equal:
#
# * **Pareto k-hat** is the tail of these weights. Below its limit their averages mean something; above, a few draws the
#   sampler has not yet met may outweigh all others.
# * **effective draws** is how many draws of the target they are worth. The **bias of means** follows from it: a bound
#   on the error of any mean, in standard deviations, provided that the draws reach all of the target.
# * **log evidence** is the log of the weights' mean, with its error bar: the log of the target's normalising constant.
#   It is at least the **ELBO**, the mean of the log weights, and what lies between is the **KL** divergence.
# * **stationarity** measures with gradients instead of weights how hard the flow would still pull at the draws.
# * **converged**: the fit ended because it found nothing more to do.
#
# The truth agrees.
error = report.log_evidence - truth.log_evidence
print(f"log evidence off by {error:+.1e}, with an error bar of {report.log_evidence_se:.1e}")
print(truth.errors_of(sampler.sample(20_000, random_state=1)))

# %%
# A fit that was stopped too early
# --------------------------------
#
# The same with a budget that is far too small. (The warning that says so is silenced here, not in your scripts.)


def fit_in_haste(log_density, budget):
    """A fit with so many evaluations of the log density."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        settings = {"max_target_evaluations": budget, "random_state": 0, "progress": False}
        return JKOSampler(log_density, dim=2, **settings).fit()


hasty = fit_in_haste(bent, 20_000)
early = hasty.diagnose(n=10_000)
print(early)

# %%
# Nearly every row objects, and the verdict is plain. The draws sit in the bend and know nothing of the arms:
_, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
for ax, fit, title in zip(axes, (sampler, hasty), ("right", "stopped too early"), strict=True):
    plotting.plot_posterior_contours(bent, sampler.sample(2000, random_state=1), ax=ax, max_points=1)
    ax.plot(*fit.sample(2000, random_state=1).T, ".", markersize=2)
    ax.set_title(title)

# %%
# Can weights mend it? `method="snis"` draws anew in proportion to the weights, `method="imh"` runs Metropolis chains
# that propose draws of the law. Both need draws where the target is, and a k-hat above its limit says that these are
# missing.
for method in ("flow", "snis", "imh"):
    print(f"{method:>5}: {truth.errors_of(hasty.sample(20_000, method=method, random_state=1))}")

# %%
# So do what the verdict proposes: go on. :meth:`~jkosampler.JKOSampler.extend` continues the same fit.
hasty.set_params(max_target_evaluations=None).extend(None)
print(hasty.diagnose().verdict)
print(truth.errors_of(hasty.sample(20_000, random_state=1)))

# %%
# A fit that weights can mend
# ---------------------------
#
# Two hills that run into each other, and again a small budget. The verdict is the same, but not its reasons: k-hat is
# far below its limit. No weight is much larger than the others, since the law covers the target; it is only not yet in
# proportion to it.


def hills(x):
    """Unnormalised log density, (n, 2) -> (n,)."""
    return -0.05 * (x[:, 0] ** 2 - 4.0) ** 2 - 0.5 * ((x[:, 1] - 0.5 * x[:, 0]) / 0.7) ** 2


truth = Truth(hills)
covering = fit_in_haste(hills, 50_000)
report = covering.diagnose(n=10_000)
print(report.verdict)
print(f"k-hat {report.pareto_k:.2f}, largest weight {report.largest_weight:.2f}, effective {report.ess_fraction:.0%}")
print(f"log evidence off by {report.log_evidence - truth.log_evidence:+.3f} +/- {report.log_evidence_se:.3f}")
for method in ("flow", "snis", "imh"):
    print(f"{method:>5}: {truth.errors_of(covering.sample(20_000, method=method, random_state=1))}")

# %%
# The rule: with a k-hat below its limit and no warning of missing mass, weighted draws and the log evidence can be used
# even where unweighted draws can't. Otherwise, fit longer.
#
# A fit that is wrong, and the report does not see it
# ---------------------------------------------------
#
# Half of this posterior is a narrow mode far away from where the fit starts, N(0, I) by default. The sampler looks for
# separated modes before it sets out, but this one it does not find.
far_mode = laws.Gaussian([12.0, 12.0], 0.15**2 * np.eye(2))
two_modes = laws.Mixture([0.5, 0.5], [laws.Gaussian([0.0, 0.0], [[1.0, 0.6], [0.6, 1.0]]), far_mode])
blind = JKOSampler(two_modes.log_prob, dim=2, random_state=0, progress=False).fit()
missed = blind.diagnose()
print(missed)

# %%
# All is well, it says: where the draws look, law and target agree perfectly. The last sentence of the verdict stands
# there for this case. The density is normalised, so that its log evidence is 0. The fit, which has half of the mass,
# finds minus the log of 2, and its error bar knows nothing of the rest.
truth = Truth(two_modes.log_prob)
print(f"log evidence {missed.log_evidence:.4f} +/- {missed.log_evidence_se:.1e}")
print(f"by the grid   {abs(truth.log_evidence):.4f}")
print(truth.errors_of(blind.sample(20_000, random_state=1)))

# %%
# Nobody can find a mode that nothing points to. What you can do is look from elsewhere: start wider, and compare the
# evidence. More evidence is more mass; two fits that disagree by more than their error bars can't both be right.
for width in (3.0, 10.0):
    start = laws.Gaussian(np.zeros(2), width**2 * np.eye(2))
    wide = JKOSampler(two_modes.log_prob, initial=start, random_state=0, progress=False).fit()
    found = wide.diagnose()
    share = (np.linalg.norm(wide.sample(10_000, random_state=1) - 12.0, axis=1) < 3.0).mean()
    print(
        f"start of width {width:2g}: log evidence {found.log_evidence:+.4f} +/- {found.log_evidence_se:.1e}, "
        f"{share:.1%} of the draws at the far mode"
    )

# %%
# The best start is one that is sure to cover the target. A posterior's prior is such a law, and it is what the fit of a
# :class:`~jkosampler.targets.Target` with a `prior` starts from; where there is none, choose `initial=` wide rather
# than narrow.
#
# A report to keep
# ----------------
#
# :meth:`~jkosampler.diagnostics.Report.to_html` writes the report with figures of the draws, the weights and the steps,
# and all settings: a page of one file, for those who were not there.
with tempfile.TemporaryDirectory() as folder:
    page = early.to_html(Path(folder) / "report.html")
    print(page.name, f"{page.stat().st_size / 1e3:.0f} kB")

# %%
# In programs, ask for `judgement`: "trust", "care" or "distrust".
print(f"stopped too early: {early.judgement}; with a mode missing: {missed.judgement}")
