"""
Heat and phases: the unknown is a network
=========================================

The heat equation is the L2 gradient flow of the Dirichlet energy, the Allen-Cahn equation that of a double well beside
it. The minimizing-movement engine makes a network u(x) the unknown of every implicit step (Park, Kim, Son, Hwang, arXiv
2109.14851, section 4.1). No step knows the boundary: that nothing flows through it comes out by itself.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from jkosampler import JKOSampler, domains, energies, plotting

# %%
# The paper's heat equation on a square, of second order in time, beside its exact solution.
kappa, side = 0.1, np.pi / 4.0
modes = [(4.0, 0, 0), (-0.5, 4, 0), (0.6, 0, 4), (1.0, 8, 4), (1.0, 8, 8)]


def exact(x, t):
    """The sum of the modes (n,) at x (n, 2), each with its own decay."""
    decay = [np.exp(-kappa * (j**2 + k**2) * t) for _, j, k in modes]
    return sum(
        a * factor * (j * x[:, 0]).cos() * (k * x[:, 1]).cos() for (a, j, k), factor in zip(modes, decay, strict=True)
    )


heat = JKOSampler(
    energy=energies.Dirichlet(kappa),
    metric="l2",
    domain=domains.Box(-side, side, dim=2),
    initial=lambda x: exact(x, 0.0),
    step_size=0.005,
    n_steps=40,
    order=2,
    random_state=0,
    progress=False,
).fit()


def on_grid(sampler, n, t, low, high):
    """A field on a grid of the square, NaN outside the domain."""
    axis = np.linspace(low, high, n)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    inside = sampler.domain.contains(torch.from_numpy(x)).numpy()
    u = np.full(len(x), np.nan)
    u[inside] = sampler.field(x[inside], t=t)
    return u.reshape(n, n)


times = (0.01, 0.1, 0.2)
_, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
fields = [on_grid(heat, 80, t, -side, side) for t in times]
plotting.plot_fields(fields, (-side, side, -side, side), [f"t = {t:g}" for t in times], axes=axes)

# %%
# The relative error at fresh points, step by step. The paper's network has 3e-3 at the end; steps of first order,
# solved exactly, have 1e-3.
x = torch.from_numpy(np.random.default_rng(0).uniform(-side, side, (5000, 2)))
errors = [float((heat.field(x, t=t) - exact(x, t)).norm() / exact(x, t).norm()) for t in heat.times_[1:]]
_, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.semilogy(heat.times_[1:], errors)
ax.set(xlabel="t", ylabel="relative L2 error")

# %%
# Allen-Cahn: a ring of one phase shrinks by its curvature, until it is gone. The start is a function with kinks.
epsilon = 0.25


def ring(x):
    """About 1 in a ring of width .8, about -1 elsewhere."""
    return torch.tanh((0.4 - (x.norm(dim=1) - 1.1).abs()) / (2.0**0.5 * epsilon))


phases = JKOSampler(
    energy=energies.AllenCahn(epsilon),
    metric="l2",
    domain=domains.Box(-2, 2, dim=2),
    initial=ring,
    step_size=0.005,
    n_steps=40,
    random_state=0,
    progress=False,
).fit()
times = (0.0, 0.01, 0.1, 0.2)
_, axes = plt.subplots(1, 4, figsize=(11, 3), sharey=True, layout="constrained")
fields = [on_grid(phases, 80, t, -2.0, 2.0) for t in times]
plotting.plot_fields(fields, (-2, 2, -2, 2), [f"t = {t:g}" for t in times], axes=axes, colour_map="gray")

# %%
# `extend` goes on in time, by further steps; the energy falls at each.
phases.extend(40)
_, ax = plt.subplots(figsize=(5, 3), layout="constrained")
plotting.plot_energy(phases.times_[1:], [record.energy for record in phases.history_], ax=ax)

# %%
# A domain is whatever a function says: here a square without a quadrant, whose corner the heat has to go around.
corner = JKOSampler(
    energy=energies.Dirichlet(1.0),
    metric="l2",
    domain=domains.LShape(),
    initial=lambda x: torch.tanh(6.0 * (x[:, 1] - 0.4)),
    step_size=0.02,
    n_steps=15,
    random_state=0,
    progress=False,
).fit()
times = (0.0, 0.06, 0.3)
_, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
fields = [on_grid(corner, 81, t, -1.0, 1.0) for t in times]
plotting.plot_fields(fields, (-1, 1, -1, 1), [f"t = {t:g}" for t in times], axes=axes)
