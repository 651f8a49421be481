"""
An ensemble Kalman sampler and a fitted law
===========================================

The elliptic inverse problem, of which we now take values only: the solver is a black box. The ensemble Kalman sampler
(Garbuno-Inigo, Hoffmann, Li, Stuart, arXiv 1903.08866) moves particles with a regression of the solver's outputs in
place of its derivative. A fit learns the solver, and moves a law to the posterior that has a density and an evidence.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from jkosampler import JKOSampler, forward, laws

solver = forward.EllipticBVP()
y, noise_std, prior_std = np.array([27.5, 79.7]), 0.1, 10.0
start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])


def pressures(u):
    """Pressures (n, 2) at parameters u (n, 2), in numpy: nothing to differentiate."""
    return solver(torch.from_numpy(u)).numpy()


# %%
# A default fit, and what it took: it needs few runs of the solver, in few batches.
model = forward.BlackBox(pressures, dim=2, output_dim=2, names=["u1", "u2"], vectorized=True)
problem = model.posterior(y=y, noise_std=noise_std, prior_std=prior_std)
sampler = JKOSampler(problem, initial=start, random_state=0, progress=False).fit()
n_runs = sampler.n_target_evaluations_
print(f"{n_runs} runs in {sampler.n_target_calls_} batches, log evidence {sampler.log_evidence_:.3f}")
print(sampler.diagnose())

# %%
# The ensemble Kalman sampler with as many runs. Its step is one over the norm of the products by which particles
# attract each other; the prior's part is implicit; the noise has the covariance of the ensemble.
rng = np.random.default_rng(0)
n_particles = 500
particles = start.sample((n_particles,), generator=torch.Generator().manual_seed(0)).numpy()
for _ in range(n_runs // n_particles):
    outputs = pressures(particles) / noise_std
    products = (outputs - outputs.mean(0)) @ (outputs - y / noise_std).T / n_particles
    step = 1.0 / np.linalg.norm(products)
    centred = particles - particles.mean(0)
    covariance = centred.T @ centred / n_particles
    towards = particles - step * products.T @ centred
    towards = np.linalg.solve(np.eye(2) + step * covariance / prior_std**2, towards.T).T
    root = np.linalg.cholesky(2.0 * step * covariance)
    particles = towards + rng.standard_normal(particles.shape) @ root.T

# %%
# Both on the posterior, whose contours contain 50, 90 and 99 % of its mass. The regression stands for a derivative that
# is averaged over the ensemble, which tends to a Gaussian: what is curved about the posterior it does not see.
draws = sampler.sample(n_particles, random_state=1)
low, high = draws.mean(0) - 4.5 * draws.std(0), draws.mean(0) + 4.5 * draws.std(0)
first, second = np.linspace(low[0], high[0], 160), np.linspace(low[1], high[1], 160)
grid = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
log_posterior = problem(torch.from_numpy(grid)).numpy()
density = np.exp(log_posterior - log_posterior.max())
ordered = np.sort(density)[::-1]
levels = [ordered[np.searchsorted(ordered.cumsum() / ordered.sum(), share)] for share in (0.99, 0.9, 0.5)]
_, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharex=True, sharey=True, layout="constrained")
titles = f"ensemble Kalman sampler, {n_runs} runs", f"fitted law, {n_runs} runs"
for ax, points, title in zip(axes, (particles, draws), titles, strict=True):
    ax.plot(*points.T, ".", markersize=2.5)
    ax.contour(first, second, density.reshape(160, 160).T, levels=levels, colors="0.4", linewidths=0.8)
    ax.set(title=title, xlabel="u1", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
axes[0].set_ylabel("u2")

# %%
# The moments of the posterior, from 50 000 weighted draws, and the errors of both in its standard deviations.
x = sampler.sample(50_000, random_state=2)
log_weights = problem(torch.from_numpy(x)).numpy() - sampler.log_density(x)
weights = np.exp(log_weights - log_weights.max())
mean = np.average(x, axis=0, weights=weights)
sd = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
for name, points in {"ensemble Kalman sampler": particles, "fitted law": x}.items():
    print(f"{name}: means {np.abs(points.mean(0) - mean) / sd}, sds {points.std(0) / sd - 1.0}")
