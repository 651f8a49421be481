"""
One equation, two engines
=========================

A Fokker-Planck equation (Park, Kim, Son, Hwang, arXiv 2109.14851, section 4.2.4) by both engines, through the same
call: the Lagrangian one learns where particles go, the minimizing-movement one where they came from. Then a flow
between walls, which only the second one knows.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import multivariate_normal

from jkosampler import JKOSampler, domains, energies, laws, plotting

mean = torch.full((2,), 1.0 / 3.0, dtype=torch.float64)
precision = torch.tensor([[2.5, 1.5], [1.5, 2.5]], dtype=torch.float64)


def potential(x):
    """V (n,) of the stationary law."""
    return 0.5 * (((x - mean) @ precision) * (x - mean)).sum(1)


flows = {
    engine: JKOSampler(
        energy=energies.Entropy() + energies.Potential(potential),
        initial=laws.Gaussian(np.zeros(2), np.eye(2)),
        engine=engine,
        step_size=0.005,
        n_steps=21,
        random_state=0,
        progress=False,
    ).fit()
    for engine in ("lagrangian", "minimizing-movement")
}

# %%
# The densities at the end, and how far they are apart: the engines share neither the equation that they solve nor the
# points on which they solve it.
axis = np.linspace(-3.0, 3.0, 80)
grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
densities = {engine: flow.density(grid) for engine, flow in flows.items()}
first, second = densities.values()
distance = np.linalg.norm(first - second) / np.linalg.norm(first)
_, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True, layout="constrained")
panels = [density.reshape(80, 80) for density in densities.values()]
plotting.plot_fields(panels, (-3, 3, -3, 3), list(densities), axes=axes, label="density")
axes[0].figure.suptitle(f"t = {flows['lagrangian'].times_[-1]:g}, relative L2 distance {distance:.1e}")

# %%
# The error against the exact solution over time is that of the scheme, for both.
_, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
for engine, flow in flows.items():
    errors = []
    for t in flow.times_[1::4]:
        covariance = 0.375 * np.exp(-8.0 * t) + np.array([[0.625, -0.375], [-0.375, 0.625]])
        law = multivariate_normal((1.0 - np.exp(-4.0 * t)) * mean.numpy(), covariance)
        errors.append(np.linalg.norm(flow.density(grid, t=t) - law.pdf(grid)) / np.linalg.norm(law.pdf(grid)))
    ax.plot(flow.times_[1::4], errors, label=engine)
ax.legend(frameon=False)
ax.set(xlabel="t", ylabel="relative L2 error")

# %%
# Between walls: a density that a function gives on a box, and no mass passes its sides. It spreads along the long side,
# and is reflected. (Level at the walls from the start, as every solution is a moment later.)
trough = JKOSampler(
    energy=energies.Entropy(),
    initial=lambda x: torch.exp(-2.0 * (torch.pi * x[:, 0] / 3.0).sin() + 0.5 * (torch.pi * x[:, 1]).cos()),
    domain=domains.Box([-1.5, -1.0], [1.5, 1.0]),
    step_size=0.02,
    n_steps=15,
    random_state=0,
    progress=False,
).fit()
first, second = np.linspace(-1.5, 1.5, 90), np.linspace(-1.0, 1.0, 60)
grid = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
times = (0.0, 0.1, 0.3)
_, axes = plt.subplots(1, 3, figsize=(10, 2.6), sharey=True, layout="constrained")
panels = [trough.density(grid, t=t).reshape(90, 60) / trough.density(grid, t=0.0).max() for t in times]
plotting.plot_fields(panels, (-1.5, 1.5, -1, 1), [f"t = {t:g}" for t in times], axes=axes, label="density, relative")
for ax, t in zip(axes, times, strict=True):
    ax.plot(*trough.sample(200, t=t, random_state=1).T, ".", color="white", markersize=1.5)
