"""
5. From ensemble Kalman samplers to JKO
=======================================

If you sample posteriors of inverse problems with ensembles, by EKS or ALDI, you know half of this package already: they
follow the same gradient flow as :class:`~jkosampler.JKOSampler` does by default. This page writes the ensemble Kalman
sampler in a dozen lines, shows on a Gaussian problem that the two are one flow, and on a bent one where they part.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from jkosampler import JKOSampler, forward, laws, targets

# %%
# The flow that both follow
# -------------------------
#
# Particles that follow Langevin dynamics have a density that lowers its Kullback-Leibler divergence from the posterior
# as fast as the Wasserstein metric allows. If the posterior is narrow in one direction and wide in another, that is
# slow: steps must suit the narrow one. The ensemble Kalman sampler (EKS, Garbuno-Inigo, Hoffmann, Li, Stuart, arXiv
# 1903.08866) therefore preconditions drift and noise by the covariance C of the ensemble itself,
#
# .. math:: \mathrm{d}x = C\, \nabla \log p(x \mid y)\, \mathrm{d}t + \sqrt{2 C}\, \mathrm{d}W .
#
# With many particles their density follows :math:`\partial_t \rho = \nabla \cdot (\rho\, C(\rho)\, \nabla
# \frac{\delta}{\delta\rho} \mathrm{KL}(\rho \,\|\, p))`, the gradient flow of the same divergence in the
# *Kalman-Wasserstein* metric: distances are measured in standard deviations of the law as it is now. No linear change
# of coordinates alters this flow, and it reaches every Gaussian at the same rate.
#
# EKS needs no gradient of the forward model G either. A regression of the outputs on the particles takes its place:


def eks(x, model, y, noise_std, n_steps, rng, step=None):
    """Ensembles (J, d) after each step, from particles x (J, d); the prior is N(0, I)."""
    for _ in range(n_steps):
        misfits = (model(x) - y) / noise_std
        products = (misfits - misfits.mean(0)) @ misfits.T / len(x)
        h = step or 1.0 / np.linalg.norm(products)
        centred = x - x.mean(0)
        covariance = centred.T @ centred / len(x)
        x = x - h * products.T @ centred
        x = np.linalg.solve(np.eye(x.shape[1]) + h * covariance, x.T).T  # the prior's part, implicit
        x = x + np.sqrt(2.0 * h) * rng.standard_normal(x.shape) @ np.linalg.cholesky(covariance).T
        yield x


# %%
# (ALDI, of Garbuno-Inigo, Nüsken and Reich, adds `(d + 1) / J` times `centred` to the drift, which makes small
# ensembles right, and may use gradients.)
#
# A linear problem: one flow
# --------------------------
#
# For a linear G the regression is exact and all is known: the posterior is a Gaussian with precision B, and along the
# flow, from the prior with precision I, the precision is :math:`e^{-2t} I + (1 - e^{-2t}) B`.
design = np.array([[1.0, 0.5], [1.0, 1.5], [1.0, 2.5]])
y, noise_std = np.array([0.7, 1.1, 2.2]), 0.5
precision = np.eye(2) + design.T @ design / noise_std**2
exact_mean = np.linalg.solve(precision, design.T @ y) / noise_std**2


def linear(x):
    """Predictions (n, 3) of straight lines (n, 2), for torch and numpy."""
    return x @ (torch.from_numpy(design.T) if isinstance(x, torch.Tensor) else design.T)


def covariance_at(t):
    """Of the exact flow."""
    return np.linalg.inv(np.exp(-2.0 * t) * np.eye(2) + (1.0 - np.exp(-2.0 * t)) * precision)


# %%
# EKS with many particles and small steps, and JKO steps in the metric "kalman", at the same times. The errors of their
# covariances are relative to the exact ones.
step, n_steps = 0.01, 200
rng = np.random.default_rng(0)
ensembles = list(eks(rng.standard_normal((1000, 2)), linear, y, noise_std, n_steps, rng, step))
problem = targets.BayesianInverseProblem(linear, y=y, noise_std=noise_std, prior_std=[1.0, 1.0])
settings = {"metric": "kalman", "random_state": 0, "progress": False}
flow = JKOSampler(problem, step_size=0.05, n_steps=40, order=2, **settings).fit()
for t in (0.1, 0.5, 1.0, 2.0):
    exact = covariance_at(t)
    found = {"EKS": np.cov(ensembles[round(t / step) - 1].T), "JKO": np.cov(flow.sample(50_000, t=t, random_state=1).T)}
    errors = [f"{name} {np.linalg.norm(c - exact) / np.linalg.norm(exact):.3f}" for name, c in found.items()]
    print(f"t = {t}: relative errors {', '.join(errors)}")

# %%
# If only the end matters, leave `step_size` out: the steps grow. What an ensemble has not comes with it: the density at
# any point, and the evidence, which is log p(y).
sampler = JKOSampler(problem, **settings).fit()
deviation = np.linalg.norm(sampler.sample(50_000, random_state=1).mean(0) - exact_mean)
in_data = laws.Gaussian(np.zeros(3), design @ design.T + noise_std**2 * np.eye(3))
log_evidence = float(in_data.log_prob(torch.from_numpy(y[None]))[0])
posterior = laws.Gaussian(exact_mean, np.linalg.inv(precision))
points = posterior.sample((5,), generator=torch.Generator().manual_seed(0))
print(f"{sampler.n_steps_} steps; the mean is off by {deviation:.4f}")
print(f"log evidence {sampler.log_evidence_:.6f}, exact {log_evidence:.6f}")
differences = sampler.log_density(points) - posterior.log_prob(points)
print(f"log densities at five draws of the exact posterior differ by at most {differences.abs().max():.1e}")

# %%
# A bent problem: where they part
# -------------------------------
#
# Someone stands at u, and two stations not far from each other measure how far away. That tells the distance much
# better than the direction, and the posterior is a crescent. Sums over a grid are the truth.
stations = np.array([[-0.4, -2.0], [0.4, -2.0]])
y, noise_std = np.array([3.0, 2.8]), 0.3
n_runs = 0


def distances(u):
    """Distances (n, 2) of points (n, 2) from both stations, in numpy; runs are counted."""
    global n_runs
    n_runs += len(u)
    return np.linalg.norm(u[:, None] - stations, axis=2)


model = forward.BlackBox(distances, dim=2, output_dim=2, names=["u1", "u2"], vectorized=True)
problem = model.posterior(y=y, noise_std=noise_std, prior_std=1.0)
axis = np.linspace(-6.0, 6.0, 1201)
grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
log_posterior = problem(grid)
total = np.exp(log_posterior).sum() * (axis[1] - axis[0]) ** 2
share = np.exp(log_posterior) / np.exp(log_posterior).sum()
mean = share @ grid
sd = np.sqrt(share @ (grid - mean) ** 2)
descending = np.argsort(-share)
enclosed = share[descending].cumsum()


def level(part):
    """The log posterior on the edge of the smallest region with this part of its mass."""
    return log_posterior[descending[np.searchsorted(enclosed, part)]]


def judged(draws):
    """Errors of the first two moments, and how many draws are in the region of 90 % of the posterior."""
    of_means, of_sds = (draws.mean(0) - mean) / sd, draws.std(0) / sd - 1.0
    inside = (problem(draws) > level(0.9)).mean()
    found = f"means off by {of_means.round(2)} sd, sds by {(100 * of_sds).round(1)} %"
    return f"{found}, {inside:.1%} in the region of 90 %"


# %%
# The fit, from values alone, as EKS has them. It takes the same kind of steps, but of a law rather than of particles.
# Their gradients are those of an emulator that learns the distances from all runs, and the runs themselves judge each
# step.
n_runs = 0
sampler = JKOSampler(problem, **settings).fit()
runs_of_fit = n_runs
report = sampler.diagnose()
print(f"{runs_of_fit} runs for the fit, {n_runs - runs_of_fit} for the report")
print(report.verdict)
print(f"log evidence {report.log_evidence:.4f} +/- {report.log_evidence_se:.1e}, by the grid {np.log(total):.4f}")
draws = sampler.sample(20_000, random_state=1)
print(judged(draws))

# %%
# EKS with about as many runs, by 200 particles, and with many more, by 2000. What is averaged is the second half of the
# steps.
ensembles = {}
for n_particles, n_steps in ((200, runs_of_fit // 200), (2000, 100)):
    rng = np.random.default_rng(1)
    walk = list(eks(rng.standard_normal((n_particles, 2)), distances, y, noise_std, n_steps, rng))
    ensembles[n_particles] = np.concatenate(walk[n_steps // 2 :])
    print(f"{n_particles} particles, {n_particles * n_steps} runs: {judged(ensembles[n_particles])}")

# %%
# More particles do not help: the error is not one of chance. The regression puts one straight line in the place of G
# for all particles, and the law that it leads to is nearly a Gaussian, which can't bend.
density = np.exp(log_posterior - log_posterior.max()).reshape(1201, 1201).T
levels = [np.exp(level(part) - log_posterior.max()) for part in (0.99, 0.9, 0.5)]
_, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True, sharey=True, layout="constrained")
panels = {"EKS, 2000 particles": ensembles[2000][-2000:], "JKO, 2000 draws": draws[:2000]}
for ax, (title, points) in zip(axes, panels.items(), strict=True):
    ax.plot(*points.T, ".", markersize=2.5)
    ax.contour(axis, axis, density, levels=levels, colors="0.3", linewidths=0.9)
    ax.set(title=title, xlabel="u1", xlim=(-3.2, 3.4), ylim=(-1.5, 2.2))
axes[0].set_ylabel("u2")

# %%
# What an ensemble has not: the density of the fitted law along a line through the crescent, over the posterior's own.
line = np.stack([np.linspace(-3.0, 3.4, 300), np.full(300, 0.5)], 1)
_, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(line[:, 0], np.exp(problem(line)) / total, color="0.6", linewidth=4, label="posterior, by the grid")
ax.plot(line[:, 0], sampler.density(line), label="fitted law")
ax.set(xlabel="u1", ylabel="density at u2 = 0.5")
ax.legend(frameon=False)

# %%
# When which? An ensemble is a fine way to a first answer: it is a few lines, and its first steps find the place and the
# size of the posterior. Where that may not be Gaussian, where its evidence is wanted, or where somebody will ask how
# you know, fit the law. :doc:`/benchmarks` has both on larger problems, and :doc:`/design` how the metric becomes
# coordinates of a step.
