"""
4. A PDE as a gradient flow
===========================

Many equations of densities say that mass moves so as to lower an energy, as fast as the transport metric allows. Write
the energy down, and the same estimator that samples posteriors solves the equation, with particles that carry their
density. Here it is a gas in a porous medium, which spreads by its pressure and is pulled back to the origin, beside its
exact solution.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from jkosampler import JKOSampler, domains, energies, laws, plotting

# %%
# From equation to energy
# -----------------------
#
# The equation is
#
# .. math:: \partial_t \rho = \Delta \rho^2 + \nabla \cdot (\rho\, x).
#
# It has the form :math:`\partial_t \rho = \nabla \cdot (\rho\, \nabla \frac{\delta E}{\delta \rho})` with the energy
# :math:`E = \int \rho^2 + \int \tfrac12 |x|^2 \rho`: the derivative of the first term is :math:`2 \rho`, and
# :math:`\rho\, \nabla (2 \rho) = \nabla \rho^2`. Energies add, as they do on paper; the building blocks are in
# :mod:`jkosampler.energies`. (The Fokker-Planck equation would be `Entropy() + Potential(V)`.)


def pull(x):
    """Potential (n,) at positions (n, 2)."""
    return 0.5 * x.square().sum(1)


energy = energies.Power(m=2) + energies.Potential(pull)

# %%
# The start is a Barenblatt profile, the density of gas that was let out at one point some time ago. Laws are normalised
# for sampling, but have a mass; that of the gas is 2.
mass, age = 2.0, 0.1
start = laws.Barenblatt(dim=2, m=2, age=age).with_mass(mass)

# %%
# The exact solution stays such a profile, shrunk by `exp(-t)`, at an age that runs ahead of the time. (Put
# :math:`\rho(t, x) = e^{2t} w(s, e^t x)` with :math:`s = (e^{4t} - 1) / 4` into the equation: w solves
# :math:`\partial_s w = \Delta w^2`.)


def exact(x, t):
    """Density (n,) at positions (n, 2)."""
    profile = laws.Barenblatt(dim=2, m=2, age=age + mass * (np.exp(4.0 * t) - 1.0) / 4.0)
    log_density = profile.log_prob(torch.from_numpy(np.exp(t) * x)).numpy()
    return mass * np.exp(2.0 * t + log_density)


# %%
# Solve it
# --------
#
# With a `step_size`, every step is solved as an implicit step (JKO) of that size: it minimises the energy plus the
# squared distance from the step before. `order=2` makes two such stages, and is worth it whenever the path matters.
settings = {"energy": energy, "initial": start, "random_state": 0, "progress": False}
flow = JKOSampler(step_size=0.05, n_steps=20, order=2, **settings).fit()
print(f"{flow.n_steps_} steps to t = {flow.times_[-1]:g}, {sum(step.wall_s for step in flow.history_):.1f} s")

# %%
# :meth:`~jkosampler.JKOSampler.density` answers anywhere, with the mass as a factor;
# :meth:`~jkosampler.JKOSampler.sample` draws as many particles as you like. No mesh was used, and the edge is sharp.
line = np.zeros((400, 2))
line[:, 0] = np.linspace(-2.0, 2.0, 400)
times = (0.0, 0.05, 0.2, 1.0)
_, axes = plt.subplots(1, 4, figsize=(11, 2.8), sharex=True, sharey=True, layout="constrained")
for ax, t in zip(axes, times, strict=True):
    plotting.plot_profile(line[:, 0], flow.density(line, t=t), exact=(line[:, 0], exact(line, t)), name="x1", ax=ax)
    ax.set_title(f"t = {t:g}")

# %%
# Mass, and times between steps
# -----------------------------
#
# Particles carry their mass along, so that it is conserved up to the error of the density. Any time up to the last may
# be asked for: between two steps each particle is on its straight way from one to the other. Sums over a grid tell
# both, at times of which two lie between steps.
axis = np.linspace(-2.0, 2.0, 161)
grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
cell = (axis[1] - axis[0]) ** 2


def error_at(solution, t):
    """Relative L2 error of the density."""
    true = exact(grid, t)
    return np.linalg.norm(solution.density(grid, t=t) - true) / np.linalg.norm(true)


for t in (0.05, 0.125, 0.2, 0.625, 1.0):
    print(f"t = {t:5.3f}: mass {flow.density(grid, t=t).sum() * cell:.4f}, relative error {error_at(flow, t):.1e}")

# %%
# The energy falls, as it must, to that of the profile at rest. `history_` has a record of every step; its `energy` is a
# mean over the particles.
fine = np.linspace(-2.0, 2.0, 801)
fine_grid = np.stack(np.meshgrid(fine, fine, indexing="ij"), -1).reshape(-1, 2)
height = 0.5 * np.square(fine_grid).sum(1)
exact_energy = []
for t in flow.times_[1:]:
    rho = exact(fine_grid, t)
    exact_energy.append(np.sum(rho**2 + height * rho) * (fine[1] - fine[0]) ** 2)
_, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
plotting.plot_energy(flow.times_[1:], [step.energy for step in flow.history_], exact=exact_energy, ax=ax)

# %%
# How small must the steps be?
# ----------------------------
#
# There is no exact solution when you need one. Then solve with halved steps, and look what changes; here we can look at
# the error itself. It falls in proportion to the step for order 1, and to its square for order 2.
step_sizes = np.array([0.2, 0.1, 0.05, 0.025])
_, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
for order, marker in ((1, "o"), (2, "s")):
    errors = []
    for tau in step_sizes:
        solution = JKOSampler(step_size=tau, n_steps=round(0.4 / tau), order=order, **settings).fit()
        errors.append(error_at(solution, 0.4))
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    shown = ", ".join(f"{error:.1e}" for error in errors), ", ".join(f"{rate:.1f}" for rate in rates)
    print(f"order {order}: errors {shown[0]}; powers of the step {shown[1]}")
    ax.loglog(step_sizes, errors, marker, linestyle="-", label=f"order {order}")
ax.set(xlabel="step size", ylabel="relative L2 error at t = 0.4")
ax.legend(frameon=False)

# %%
# A field instead of a density
# ----------------------------
#
# Other flows have a field for their unknown, which may be negative and has no particles: the heat equation
# :math:`\partial_t u = \kappa \Delta u` is the L2 gradient flow of the Dirichlet energy :math:`\frac{\kappa}{2} \int
# |\nabla u|^2`. Say so with `metric="l2"` and a :mod:`domain <jkosampler.domains>`; the unknown is then a network,
# fitted step by step. A function of two cosines decays, each at its own rate, and nothing flows through the walls.


def temperature(x, t):
    """The exact field (n,) on the unit square."""
    x = torch.pi * x
    slow, fast = np.exp(-0.1 * np.pi**2 * t), np.exp(-0.5 * np.pi**2 * t)
    return slow * x[:, 0].cos() + fast * (2.0 * x[:, 0]).cos() * x[:, 1].cos()


heat = JKOSampler(
    energy=energies.Dirichlet(kappa=0.1),
    metric="l2",
    domain=domains.Box(0, 1, dim=2),
    initial=lambda x: temperature(x, 0.0),
    step_size=0.05,
    n_steps=10,
    order=2,
    random_state=0,
    progress=False,
).fit()
x = torch.from_numpy(np.random.default_rng(0).uniform(size=(5000, 2)))
for t in (0.05, 0.125, 0.5):
    true = temperature(x, t)
    print(f"t = {t:5.3f}: relative error {(heat.field(x, t=t) - true).norm() / true.norm():.1e}")

# %%
# :meth:`~jkosampler.JKOSampler.field` is for fields what `density` is for densities.
axis = np.linspace(0.0, 1.0, 80)
square = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
times = (0.0, 0.1, 0.5)
_, axes = plt.subplots(1, 3, figsize=(9, 3), sharey=True, layout="constrained")
fields = [heat.field(square, t=t).reshape(80, 80) for t in times]
plotting.plot_fields(fields, (0, 1, 0, 1), [f"t = {t:g}" for t in times], axes=axes)

# %%
# More equations are in the :doc:`gallery </gallery/index>`: aggregation with a mobility, densities between walls, phase
# separation; and :doc:`/design` says how a step is solved. A posterior is the flow of one energy more, the
# Kullback-Leibler divergence: how ensemble Kalman samplers follow it, and what the JKO steps add, is the :doc:`last
# tutorial <tutorial_5_from_ensembles_to_jko>`.
