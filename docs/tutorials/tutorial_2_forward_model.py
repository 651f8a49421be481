"""
2. Your own forward model
=========================

A simulator predicts what would be observed if its parameters were known; the inverse problem is to find these from what
was observed. Here the simulator is an epidemic on an island, and it comes twice: in torch, which can be differentiated,
and as a black box in numpy, of which only values are known. The fit is called in the same way, and needs far fewer runs
of the black box than one may fear.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.integrate import odeint
from sklearn.exceptions import ConvergenceWarning
from torch.distributions import LogNormal

from jkosampler import JKOSampler, forward, laws, plotting, targets

# %%
# The simulator, in torch
# -----------------------
#
# On an island of 1000, the infected meet the susceptible at the rate `beta` and recover at the rate `gamma`, per day.
# The simulator returns how many are infected, every second day. A forward model takes n points at once, (n, 2), and
# returns (n, 10) predictions. All its operations are torch's; so torch can differentiate it.
population, days = 1000.0, np.arange(2.0, 21.0, 2.0)


def change(susceptible, infected, beta, gamma):
    """Time derivatives of both numbers."""
    new, recovered = beta * susceptible * infected / population, gamma * infected
    return -new, new - recovered


def infected_by_torch(x, h=0.1):
    """The infected (n, 10) at parameters (n, 2), by steps of Runge and Kutta's second order."""
    beta, gamma = x.T
    susceptible, infected = torch.full_like(beta, population - 3.0), torch.full_like(beta, 3.0)
    found = []
    for step in range(1, round(days[-1] / h) + 1):
        first = change(susceptible, infected, beta, gamma)
        middle = change(susceptible + 0.5 * h * first[0], infected + 0.5 * h * first[1], beta, gamma)
        susceptible, infected = susceptible + h * middle[0], infected + h * middle[1]
        if step % round(2.0 / h) == 0:
            found.append(infected)
    return torch.stack(found, 1)


# %%
# Data, noise, prior
# ------------------
#
# The observations are the simulator's at known parameters, with noise of standard deviation 12. The noise may have
# another deviation for each observation (`noise_std=` a vector), or be correlated (`noise_cov=`). Both rates are
# positive, with log-normal priors.
rng = np.random.default_rng(7)
true = torch.tensor([[1.1, 0.4]], dtype=torch.float64)
y = np.round(infected_by_torch(true)[0].numpy() + rng.normal(0.0, 12.0, 10))
print(y)


def log_normal(median, spread):
    """A log-normal law."""
    return LogNormal(torch.tensor(np.log(median)), torch.tensor(spread, dtype=torch.float64))


names = ["beta", "gamma"]
given = {
    "y": y,
    "noise_std": 12.0,
    "prior": laws.Product([log_normal(0.8, 0.5), log_normal(0.3, 0.5)]),
    "names": names,
    "support": dict.fromkeys(names, "positive"),
}

# %%
# :class:`~jkosampler.targets.BayesianInverseProblem` puts them together. It is a target like that of :doc:`the first
# tutorial <tutorial_1_first_posterior>`, with all constants; so the log evidence of the fit is log p(y).
problem = targets.BayesianInverseProblem(infected_by_torch, **given)
sampler = JKOSampler(problem, random_state=0, progress=False).fit()
sampler_runs = sampler.n_target_evaluations_
report = sampler.diagnose()
print(report.verdict)
print(f"log p(y) = {report.log_evidence:.4f} +/- {report.log_evidence_se:.1e}")

# %%
# The posterior in the plane, with the contours that the problem itself has.
x = sampler.sample(2000, random_state=1)
_, ax = plt.subplots(figsize=(5, 4), layout="constrained")
plotting.plot_posterior_contours(problem, x, names=names, ax=ax)
ax.plot(*true[0], "r*", markersize=10)

# %%
# And what it predicts: 200 epidemics, each with a draw's parameters.
_, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(days, infected_by_torch(torch.from_numpy(x[:200])).T, color="C0", alpha=0.05)
ax.plot(days, y, "k.")
ax.set(xlabel="day", ylabel="infected")

# %%
# The same as a black box
# -----------------------
#
# Most simulators can't be differentiated. This one runs scipy's solver, for one point at a time, and counts its runs.
runs = 0


def infected_by_scipy(u):
    """The infected (10,) at parameters (2,)."""
    global runs
    runs += 1
    path = odeint(lambda state, _: change(*state, *u), [population - 3.0, 3.0], [0.0, *days])
    return path[1:, 1]


# %%
# :class:`~jkosampler.forward.BlackBox` tells the sampler its sizes: 2 parameters, 10 observations. Without a derivative
# the fit takes its steps in an emulator, which learns from every run; the simulator itself judges them. (Evaluations in
# torch are taken to be cheap. Where they are not, `engine=engines.Lagrangian(potential="explicit")` makes do with
# fewer, too.)
model = forward.BlackBox(infected_by_scipy, 2, 10, vectorized=False)
black_box = targets.BayesianInverseProblem(model, **given)
from_values = JKOSampler(black_box, random_state=0, progress=False).fit()
runs_of_fit = from_values.n_target_evaluations_
print(f"{runs} runs of the black box, in {from_values.n_target_calls_} calls")
print(f"{sampler_runs} evaluations of the model in torch, with gradients")

# %%
# The report makes runs too, one for each of its draws and some to look elsewhere: `n=1000` saves some. Both fits agree,
# about as well as the two solvers do.
second = from_values.diagnose(n=1000)
print(f"{from_values.n_target_evaluations_ - runs_of_fit} runs for the report")
print(second.verdict)
print(f"log p(y) = {second.log_evidence:.4f} +/- {second.log_evidence_se:.1e}")
for name, fit in {"torch": sampler, "black box": from_values}.items():
    draws = fit.sample(20_000, random_state=2)
    print(f"{name:>10}: means {draws.mean(0).round(4)}, standard deviations {draws.std(0).round(4)}")
differences = infected_by_torch(true)[0].numpy() - infected_by_scipy(true[0].numpy())
print(f"the solvers differ by {np.abs(differences).max():.2g} infected at most, with a noise of {given['noise_std']:g}")

# %%
# It starts not from the prior, but from where the first thousand runs or so have seen the posterior, which it notes:
print(from_values.start_note_)

# %%
# When a run is costly
# --------------------
#
# Bound their number. A fit that meets its bound warns of it, and may be good all the same: the report tells. Here the
# budget is far too small.
few = JKOSampler(black_box, max_target_evaluations=1500, random_state=0, progress=False)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", ConvergenceWarning)
    few.fit()
print("Warning:", caught[0].message)
print(f"{few.n_target_evaluations_} runs: the batch that is under way is finished")
print(few.diagnose(n=1000).verdict)

# %%
# Nothing is lost, since all runs are kept: :meth:`~jkosampler.JKOSampler.extend` goes on from there, with a new budget.
few.set_params(max_target_evaluations=10_000).extend(None)
print(f"{few.n_target_evaluations_} runs, those of the first report included; {few.stop_reason_}")
print(few.diagnose(n=1000).verdict)

# %%
# For runs of seconds or minutes there is more, none of which changes the lines above:
#
# * `BlackBox(..., executor=ProcessPoolExecutor(8))`, or dask's executor, spreads the runs over processes or a cluster:
#   see :doc:`/scale_out`.
# * `JKOSampler(..., checkpoint="fit.safetensors")` writes the fit to a file after every step. After a crash the same
#   script goes on from there, to the same result.
# * `BlackBox(..., on_failure="reject")`: a run that raises, or returns NaN, counts as impossible, not as an error.
# * `BlackBox(..., vjp=)` or `jacobian=`: if the simulator has an adjoint, its derivatives are used. A model behind an
#   UM-Bridge server is :class:`~jkosampler.forward.UMBridge`.
# * :meth:`~jkosampler.JKOSampler.ask` and :meth:`~jkosampler.JKOSampler.tell`: where a queueing system makes the runs.
#
# What the verdict sees, and what it can't see: :doc:`the third tutorial <tutorial_3_is_it_right>`.
