"""
1. A first posterior
====================

You have data and a model, and want the posterior: draws, their summary, and a reason to believe them. This page goes
from a table of eighteen fish to all three. It needs no knowledge of gradient flows: the sampler starts with particles
that follow the prior, and moves them, in a few steps, until they follow the posterior.
"""

import io
from contextlib import redirect_stderr

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.distributions import HalfNormal, LogNormal

from jkosampler import JKOSampler, laws, plotting, targets

# %%
# Data
# ----
#
# Ages in years, lengths in centimetres. They are made up here, of a known growth curve, so that we can look whether the
# posterior finds it.
rng = np.random.default_rng(2)
age = np.repeat([1.0, 2.0, 3.0, 4.0, 6.0, 8.0], 3)
length = np.round(62.0 * (1.0 - np.exp(-0.28 * age)) + rng.normal(0.0, 3.0, age.size), 1)
print(length.reshape(6, 3))

# %%
# Model
# -----
#
# A fish of age `a` has length `L (1 - exp(-k a))` plus a normal deviation of standard deviation `sigma`: it grows
# towards `L` at the rate `k`. All three parameters are positive. The log likelihood is a function of torch tensors: it
# takes n points at once, a row each, and returns a row of 18 terms for each of them.
names = ["L", "k", "sigma"]
age_, length_ = torch.from_numpy(age), torch.from_numpy(length)


def log_likelihood(x):
    """Terms (n, 18) of the data at points (n, 3)."""
    limit, rate, sigma = x.T.unsqueeze(-1)
    misfit = (length_ - limit * (1.0 - torch.exp(-rate * age_))) / sigma
    return -0.5 * misfit.square() - sigma.log() - 0.5 * np.log(2.0 * np.pi)


# %%
# The prior is a law over the same three columns: torch's distributions, or those of :mod:`jkosampler.laws`, side by
# side. Give their parameters in double precision, as everything here is.
prior = laws.Product(
    [
        LogNormal(torch.tensor(4.0, dtype=torch.float64), 0.5),
        LogNormal(torch.tensor(-1.0, dtype=torch.float64), 0.7),
        HalfNormal(torch.tensor(5.0, dtype=torch.float64)),
    ]
)

# %%
# The two make a :class:`~jkosampler.targets.Target`. `support` says which parameters are constrained. The density stays
# the one that you would write down, over `L`, `k` and `sigma`: the sampler takes logarithms where it needs them, and
# their Jacobian with them. (`"positive"` is one of several words, see the class. A function in numpy goes through
# :func:`jkosampler.targets.from_numpy`.)


def log_posterior(x):
    """Log prior plus log likelihood, (n, 3) -> (n,)."""
    return prior.log_prob(x) + log_likelihood(x).sum(1)


posterior = targets.Target(
    log_posterior,
    names=names,
    support=dict.fromkeys(names, "positive"),
    prior=prior,
    log_likelihood=log_likelihood,
    observed_data={"length": length},
)

# %%
# Fit
# ---
#
# Nothing has to be tuned. A progress bar goes to the terminal; here we catch it, to print its last state. It counts the
# steps made, and shows the time they took; `energy`, which falls towards minus the log evidence; `tau`, the size of the
# last step, which the sampler chooses; and `ess`, the share of the draws that would be left if they were weighted to
# follow the posterior exactly. Near 100 % they follow it already.
sampler = JKOSampler(posterior, random_state=0)
with redirect_stderr(io.StringIO()) as terminal:
    sampler.fit()
print(terminal.getvalue().split("\r")[-1])
print(f"ended because {sampler.stop_reason_}")
print(f"{sampler.n_target_evaluations_} evaluations of the log density in {sampler.n_target_calls_} calls")

# %%
# Ask for a verdict
# -----------------
#
# Before anything else: can this be trusted? :meth:`~jkosampler.JKOSampler.diagnose` compares the fitted law with the
# posterior, and ends in a sentence. What its rows mean is the matter of :doc:`the third tutorial
# <tutorial_3_is_it_right>`.
report = sampler.diagnose()
print(report)

# %%
# Draw
# ----
#
# Draws are independent and unweighted, as many as you like, and cost no evaluation of the posterior. They are in the
# order of `names`, on the original scale.
x = sampler.sample(4000, random_state=1)
for name, column, true in zip(names, x.T, (62.0, 0.28, 3.0), strict=True):
    low, high = np.quantile(column, [0.05, 0.95])
    print(f"{name:>6}: mean {column.mean():.3g}, 90 % between {low:.3g} and {high:.3g}; the data were made with {true}")

# %%
# Marginals and pairs: `L` and `k` can hardly be told apart by fish this young, and the posterior is bent and skewed.
_, axes = plt.subplots(3, 3, figsize=(7, 7), layout="constrained")
plotting.plot_pairs(x, names=names, axes=axes)

# %%
# What the posterior says of the curve: its median and 90 % band, beyond the data too.
ages = np.linspace(0.0, 12.0, 100)
curves = x[:, :1] * (1.0 - np.exp(-x[:, 1:2] * ages))
low, middle, high = np.quantile(curves, [0.05, 0.5, 0.95], axis=0)
_, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.fill_between(ages, low, high, alpha=0.3, linewidth=0)
ax.plot(ages, middle)
ax.plot(age, length, "k.")
ax.set(xlabel="age, years", ylabel="length, cm")

# %%
# The density
# -----------
#
# Other samplers leave you with draws; this one also knows the density that they have. It is normalised, so that it can
# be compared with the log posterior: the difference is the log evidence, at any point where the fit is right.
print("log posterior - log density:", posterior(x[:5]) - sampler.log_density(x[:5]))
print(f"log evidence: {report.log_evidence:.4f} +/- {report.log_evidence_se:.1e}")

# %%
# Hand it on
# ----------
#
# :meth:`~jkosampler.JKOSampler.to_arviz` gives the draws to ArviZ, with the prior's and the log likelihood of each
# observation. The draws are independent, in "chains" for ArviZ's sake alone: `r_hat` is near one and the effective
# sizes are near the number of draws, whether the fit is right or not. The verdict above is what tells.
idata = sampler.to_arviz(draws=1000, chains=4, random_state=2)
print(az.summary(idata, round_to=3).to_string())
print("groups:", ", ".join(idata))

# %%
# `sampler.save("fish.safetensors")` keeps the fit, and :meth:`~jkosampler.JKOSampler.load` brings it back. Next: the
# same for a model that is :doc:`a simulator <tutorial_2_forward_model>`.
