"""
Aggregation of particles that can't overlap
===========================================

Particles attract each other with W(z) = |z|^2, the slower the denser they are: the mobility rho (1 - rho) keeps the
density below one (Lee, Wang, Li, arXiv 2311.06700, section 4.3). From rho = 3/4 (1 - |x|^2), of mass 3 pi / 8, the edge
steepens to a shock at t = 0.108, and in the end the mass fills a ball with density one.
"""

import matplotlib.pyplot as plt
import numpy as np

from jkosampler import JKOSampler, energies, laws, plotting

start = laws.Parabola(dim=2)
flow = JKOSampler(
    energy=energies.Interaction(lambda z: z.square().sum(-1)),
    mobility="exclusion",
    initial=start,
    step_size=0.02,
    n_steps=10,
    random_state=0,
    progress=False,
).fit()

# %%
# The exact density is known along characteristics. Those that have run into the shock are cut off where the mass within
# is the whole.
mass = start.mass


def solution(t):
    """Distances from the origin and the densities there."""
    r0 = np.linspace(0.0, 1.0, 2001)
    rho0, growth = 0.75 * (1.0 - r0**2), np.exp(4.0 * mass * t)
    rho = rho0 * growth / (1.0 - rho0 + rho0 * growth)
    r = r0 * (1.0 - rho0 + rho0 * growth) / np.sqrt(growth)
    within = np.cumsum(2.0 * np.pi * r * rho * np.gradient(r))
    inside = np.maximum.accumulate(within) < 0.9999 * mass
    return r[inside], rho[inside]


# %%
# From above, with the edge of the exact solution.
times = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2)
snapshots = [flow.sample_with_log_density(3000, t=t, random_state=1) for t in times]
particles = [x for x, _ in snapshots]
densities = [mass * np.exp(log_density) for _, log_density in snapshots]
_, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
panels = plotting.plot_density_evolution(particles, densities, times, axes=axes)
for ax, t in zip(panels, times, strict=True):
    plotting.plot_ring(solution(t)[0].max(), ax=ax)

# %%
# From the side, with the exact density along the axis.
_, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
for ax, x, rho, t in zip(axes.flat, particles, densities, times, strict=True):
    r, exact = solution(t)
    line = np.concatenate([[-r[-1]], -r[::-1], r, [r[-1]]])
    plotting.plot_profile(x[:, 0], rho, exact=(line, np.concatenate([[0.0], exact[::-1], exact, [0.0]])), ax=ax)
    ax.set_title(f"t = {t:g}")

# %%
# The energy, half the mean of |x - y|^2 over pairs, times the squared mass: with the centre at rest, that of |x|^2.
exact = [mass * np.trapezoid(2.0 * np.pi * r**3 * rho, r) for r, rho in map(solution, flow.times_)]
energy = [mass**2 * np.square(flow.sample(20_000, t=t, random_state=2)).sum(1).mean() for t in flow.times_]
_, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
plotting.plot_energy(flow.times_, energy, exact=exact, ax=ax)
