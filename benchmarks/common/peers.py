"""What else one would take: other packages' samplers on the same torch density, with the same counters.

NumPyro's NUTS, emcee, pocoMC and zuko's flow as their users run them; full-rank Gaussian variational inference and
affine-invariant Langevin dynamics (ALDI, of `ensembles.py`), which need no package. Every evaluation goes through
`Counted`, also those of JAX, which calls it back: seconds of NUTS are therefore more than those of a density written in
JAX, its evaluations are what they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common import ensembles
from common.spline_flow import trained_spline_flow

__all__ = ["PEERS", "Counted", "PeerResult", "chains_of_nuts", "fitted_gaussian", "run_peer"]

_FLOW_SECONDS = 60.0
_WALKERS, _WALKER_STEPS = 4, 5000  # a dimension, at least 32; half of the steps are burn-in
_CHAINS, _WARM_UP = 4, 1000
_PRIOR = 10.0  # standard deviations of the start: pocoMC's prior
_PARTICLES, _TIME, _SNAPSHOTS = 1000, 20.0, 10  # of ALDI
_VI_ITERATIONS, _VI_BATCH = 4000, 256


class PeerResult(NamedTuple):
    """Draws (n, d), log evidence (NaN where the method has none), CPU seconds, evaluations, and batched calls."""

    x: np.ndarray
    log_z: float
    seconds: float
    n_evaluations: int
    n_calls: int


class Counted:
    """A torch log density that counts the points and calls it is asked for."""

    def __init__(self, log_density: Callable[[Tensor], Tensor], dim: int) -> None:
        self.log_density, self.dim = log_density, dim
        self.n_evaluations = self.n_calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        self.n_evaluations += len(x)
        return self.log_density(x)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Log density (n,) at x (n, d)."""
        with torch.no_grad():
            return self(torch.from_numpy(np.array(x, dtype=float))).numpy()

    def value_and_grad(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log density (n,) and gradient (n, d) at x (n, d)."""
        points = torch.from_numpy(np.array(x, dtype=float)).requires_grad_(True)
        value = self(points)
        return value.detach().numpy(), torch.autograd.grad(value.sum(), points)[0].numpy()


def nuts(target: Counted, n: int, seed: int) -> tuple[np.ndarray, float]:
    """NumPyro's NUTS: four chains in step, started from N(0, I)."""
    x = chains_of_nuts(target, n // _CHAINS, seed, n_chains=_CHAINS, n_warm_up=_WARM_UP)
    return x.reshape(-1, target.dim), math.nan


def chains_of_nuts(target: Counted, n: int, seed: int, *, n_chains: int, n_warm_up: int) -> np.ndarray:
    """Chains (n_chains, n, d) of NumPyro's NUTS, in step, from N(0, I)."""
    import jax
    from jax import numpy as jnp
    from numpyro.infer import MCMC, NUTS

    jax.config.update("jax_enable_x64", True)

    def called_back(z: Any) -> Any:
        def host(x: Any) -> tuple[np.ndarray, np.ndarray]:
            x = np.asarray(x)
            value, gradient = target.value_and_grad(x.reshape(-1, target.dim))
            return -value.reshape(x.shape[:-1]), -gradient.reshape(x.shape)

        shapes = jax.ShapeDtypeStruct(z.shape[:-1], z.dtype), jax.ShapeDtypeStruct(z.shape, z.dtype)
        return jax.pure_callback(host, shapes, z, vmap_method="broadcast_all")

    potential = jax.custom_vjp(lambda z: called_back(z)[0])
    potential.defvjp(called_back, lambda slope, seen: (seen * slope,))
    key, at = jax.random.split(jax.random.PRNGKey(seed))
    mcmc = MCMC(
        NUTS(potential_fn=potential),
        num_warmup=n_warm_up,
        num_samples=n,
        num_chains=n_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(key, init_params=jnp.asarray(jax.random.normal(at, (n_chains, target.dim))))
    return np.asarray(mcmc.get_samples(group_by_chain=True))


def emcee(target: Counted, n: int, seed: int) -> tuple[np.ndarray, float]:
    """emcee's stretch moves, from N(0, I)."""
    import emcee as package

    n_walkers = max(32, _WALKERS * target.dim)
    rng = np.random.default_rng(seed)
    sampler = package.EnsembleSampler(n_walkers, target.dim, target.value, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    sampler.run_mcmc(rng.standard_normal((n_walkers, target.dim)), _WALKER_STEPS)
    x = sampler.get_chain(discard=_WALKER_STEPS // 2, flat=True)
    return x[rng.choice(len(x), n, replace=len(x) < n)], math.nan


def pocomc(target: Counted, n: int, seed: int) -> tuple[np.ndarray, float]:
    """pocoMC with a Gaussian prior ten times as wide as N(0, I), divided out of the likelihood again."""
    import pocomc as package
    from scipy.stats import norm

    def log_likelihood(x: np.ndarray) -> np.ndarray:
        return target.value(x) - norm.logpdf(x, scale=_PRIOR).sum(1)

    prior = package.Prior([norm(0.0, _PRIOR)] * target.dim)
    sampler = package.Sampler(prior, log_likelihood, vectorize=True, random_state=seed)
    sampler.run(progress=False)
    x, weights, *_ = sampler.posterior()
    rows = np.random.default_rng(seed).choice(len(x), n, p=weights / weights.sum())
    return x[rows], float(sampler.evidence()[0])


def spline_flow(target: Counted, n: int, seed: int) -> tuple[np.ndarray, float]:
    """zuko's neural spline flow by reverse KL, for a minute; its evidence by importance weights."""
    flow = trained_spline_flow(target, target.dim, _FLOW_SECONDS, seed)
    with torch.no_grad():
        x = flow.sample(n)
        log_weights = target(x.double()) - flow.log_prob(x)
    return x.double().numpy(), float(torch.logsumexp(log_weights, 0)) - math.log(n)


def gaussian(target: Counted, n: int, seed: int) -> tuple[np.ndarray, float]:
    """Full-rank Gaussian variational inference; its evidence by importance weights."""
    drawn, log_q = fitted_gaussian(target, seed)
    with torch.no_grad():
        x = drawn(n)
        return x.numpy(), float(torch.logsumexp(target(x) - log_q(x), 0)) - math.log(n)


def fitted_gaussian(target: Counted, seed: int) -> tuple[Callable[[int], Tensor], Callable[[Tensor], Tensor]]:
    """The Gaussian of least reverse KL, how to draw from it and its log density: Adam, sticking the landing."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(target.dim, dtype=torch.float64, requires_grad=True)
    factor = torch.eye(target.dim, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([mean, factor], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _VI_ITERATIONS)

    def drawn(n: int) -> Tensor:
        noise = torch.randn(n, target.dim, generator=generator, dtype=torch.float64)
        return mean + noise @ factor.tril().mT

    def log_q(x: Tensor) -> Tensor:
        lower = factor.detach().tril()
        z = torch.linalg.solve_triangular(lower, (x - mean.detach()).mT, upper=False)
        constant = lower.diagonal().abs().log().sum() + 0.5 * target.dim * math.log(2.0 * math.pi)
        return -0.5 * z.square().sum(0) - constant

    for _ in range(_VI_ITERATIONS):
        x = drawn(_VI_BATCH)
        optimizer.zero_grad()
        (log_q(x) - target(x)).mean().backward()
        torch.nn.utils.clip_grad_norm_([mean, factor], 10.0)
        optimizer.step()
        schedule.step()
    return drawn, log_q


def aldi(target: Counted, n: int, seed: int) -> tuple[np.ndarray, float]:
    """Affine-invariant interacting Langevin dynamics with gradients, from N(0, I); ensembles of the second half."""
    rng = np.random.default_rng(seed)
    start, kept = rng.standard_normal((_PARTICLES, target.dim)), []
    for now, x in ensembles.aldi(start, lambda x: target.value_and_grad(x)[1], rng):
        if now >= 0.5 * _TIME + 0.5 * _TIME * len(kept) / _SNAPSHOTS:
            kept.append(x)
        if now >= _TIME:
            break
    x = np.concatenate(kept)
    return x[rng.choice(len(x), n, replace=len(x) < n)], math.nan


PEERS: dict[str, Callable[[Counted, int, int], tuple[np.ndarray, float]]] = {
    "NUTS": nuts,
    "emcee": emcee,
    "pocoMC": pocomc,
    "spline flow": spline_flow,
    "Gaussian VI": gaussian,
    "ALDI": aldi,
}


def run_peer(name: str, log_density: Callable[[Tensor], Tensor], dim: int, n: int, seed: int) -> PeerResult:
    """n draws by a peer, and what they cost."""
    target, began = Counted(log_density, dim), time.process_time()
    x, log_z = PEERS[name](target, n, seed)
    return PeerResult(x, log_z, time.process_time() - began, target.n_evaluations, target.n_calls)
