"""
A posterior from two noisy pressures
====================================

The elliptic inverse problem of Lee, Wang, Li (arXiv 2311.06700, section 4.4): the log conductivity u1 and the right
boundary value u2 of -(exp(u1) p')' = 1 on (0, 1), p(0) = 0, p(1) = u2, from p(1/4) and p(3/4) with noise of standard
deviation 0.1. The particles start far away, spread over N(0, 1) x U(90, 110).
"""

from pathlib import Path

import matplotlib.pyplot as plt

from jkosampler import JKOSampler, forward, laws, plotting

problem = forward.EllipticBVP().posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])
sampler = JKOSampler(problem, metric="kalman", initial=start, random_state=0).fit()

# %%
# Can the fit be trusted? The last line says it in words.
print(sampler.diagnose(n=50_000))

# %%
# Figure 8 of the paper: the particles, coloured by their density, on their way to the posterior.
times = [sampler.times_[k] for k in (0, 1, 2, 3, 5, -1)]
particles = [sampler.sample(2000, t=t, random_state=1) for t in times]
densities = [sampler.density(x, t=t) for x, t in zip(particles, times, strict=True)]
evolution, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
plotting.plot_density_evolution(particles, densities, times, names=problem.names, axes=axes)

# %%
# Figure 9: the energy falls to its limit, minus the log evidence; the draws lie where the posterior does.
energy, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
steps = range(1, sampler.n_steps_ + 1)
plotting.plot_energy(
    steps, [record.energy for record in sampler.history_], reference=-sampler.log_evidence_, ax=axes[0]
)
draws = sampler.sample(4000, random_state=2)
plotting.plot_posterior_contours(problem, draws, names=problem.names, ax=axes[1])

# %%
# Marginals and pairs, with ArviZ's summary of the same law.
marginals, axes = plt.subplots(2, 2, figsize=(6, 6), layout="constrained")
plotting.plot_pairs(draws, names=problem.names, axes=axes)

# %%
# The figures are kept beside the report.
folder = Path("build/demo")
folder.mkdir(parents=True, exist_ok=True)
for name, figure in {"evolution": evolution, "energy": energy, "marginals": marginals}.items():
    figure.savefig(folder / f"{name}.png", dpi=120)
