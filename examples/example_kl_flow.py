"""
Mass that parts: two Gaussians flow to four
===========================================

The gradient flow of the Kullback-Leibler divergence, a Fokker-Planck equation, from two Gaussians at (-1.2, 0) and
(1.2, 0) to four at (-2, -2), (-2, 2), (2, -2), (2, 2), all of standard deviation 0.5 (Lee, Wang, Li, arXiv 2311.06700,
section 4.1). Every step of size 0.025 is solved as a JKO step; the particles carry their density.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.linalg import expm

from jkosampler import JKOSampler, laws, plotting

spread = 0.25 * np.eye(2)
start = laws.Mixture([0.5] * 2, [laws.Gaussian([a, 0.0], spread) for a in (-1.2, 1.2)])
target = laws.Mixture([0.25] * 4, [laws.Gaussian([a, b], spread) for a in (-2.0, 2.0) for b in (-2.0, 2.0)])
flow = JKOSampler(
    target.log_prob, metric="wasserstein", initial=start, step_size=0.025, n_steps=20, random_state=0, progress=False
).fit()

# %%
# The same 4000 particles on their way, coloured by their density.
times = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
snapshots = [flow.sample_with_log_density(4000, t=t, random_state=1) for t in times]
particles, log_densities = zip(*snapshots, strict=True)
_, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
panels = plotting.plot_density_evolution(particles, [np.exp(value) for value in log_densities], times, axes=axes)
for ax in panels:
    ax.set_aspect("equal")

# %%
# Some of them through time, coloured by their height at the end: each half of the start divides.
paths = [flow.sample(300, t=t, random_state=2) for t in flow.times_[:15]]
figure = plt.figure(figsize=(6, 5.5))
ax = figure.add_subplot(projection="3d")
plotting.plot_paths(paths, flow.times_[:15], values=paths[-1][:, 1], ax=ax)

# %%
# The divergence falls nearly as that of the equation does. Steps of first order lag a little behind; those of second
# order do not: see the page on second order. The exact solution is a product of two on the line, by finite volumes.
x = np.linspace(-5.0, 5.0, 501)


def bumps(c):
    """-log of the equal mixture of N(-c, 0.25) and N(c, 0.25) on the line."""
    return 0.5 * np.log(2.0 * np.pi) - np.logaddexp(-2.0 * (x - c) ** 2, -2.0 * (x + c) ** 2)


rise = 0.5 * np.diff(bumps(2.0))
rates = (np.diag(np.exp(-rise), -1) + np.diag(np.exp(rise), 1)) / (x[1] - x[0]) ** 2
step = expm(0.025 * (rates - np.diag(rates.sum(axis=0))))
factors, exact = [np.exp(-bumps(1.2)), np.exp(-bumps(0.0))], []
for _ in flow.times_:
    exact.append(sum(np.sum(rho * (np.log(rho) + bumps(2.0))) * (x[1] - x[0]) for rho in factors))
    factors = [step @ rho for rho in factors]

divergence = []
for t in flow.times_:
    draws, log_density = flow.sample_with_log_density(10_000, t=t, random_state=3)
    divergence.append(np.mean(log_density - target.log_prob(torch.as_tensor(draws)).numpy()))
_, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
plotting.plot_energy(flow.times_, divergence, exact=exact, reference=0.0, ax=ax)
