"""Moments, evidence and best Gaussian of the posteriors of Darcy flow, by long chains.

NumPyro's NUTS on the torch density with its gradients. Shorter chains first, in coordinates in which a Gaussian about
the mode is standard; then the long ones, where a Gaussian with their moments is. The effective sample sizes of every
coordinate and of its square say how sure the moments are. The evidence is by bridge sampling (Meng and Wong 1996) from
these draws to a Gaussian with the moments of half of them, which the other half does not see. The best Gaussian is
full-rank variational inference, in the same coordinates.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from torch import Tensor

from common.inverse_problems import MOMENTS, InverseProblem, darcy
from common.peers import Counted, chains_of_nuts, fitted_gaussian

__all__ = ["write_references"]

N_CHAINS, N_PILOT, N_WARM_UP, N_DRAWS, SEED = 16, 500, 300, 3000, 7


def laplace(problem: InverseProblem) -> tuple[Tensor, Tensor]:
    """Mode (d,) of the posterior, and a root (d, d) of the inverse of its curvature there."""

    def descent(x: np.ndarray) -> tuple[float, np.ndarray]:
        points = torch.from_numpy(x)[None].requires_grad_(True)
        value = -problem.log_density(points).sum()
        return float(value.detach()), torch.autograd.grad(value, points)[0][0].numpy()

    mode = torch.from_numpy(minimize(descent, np.zeros(problem.dim), jac=True, method="L-BFGS-B").x)
    curvature = torch.autograd.functional.hessian(lambda x: -problem.log_density(x[None])[0], mode)
    return mode, torch.linalg.cholesky(torch.linalg.inv(curvature))


def whitened(problem: InverseProblem, centre: Tensor, root: Tensor, z: Tensor) -> Tensor:
    """Log density (n,) of z (n, d), where x = centre + root z; the evidence is the same."""
    return problem.log_density(centre + z @ root.mT) + root.diagonal().log().sum()


def bridged_evidence(log_density: Callable[[np.ndarray], np.ndarray], x: np.ndarray, rng: np.random.Generator) -> float:
    """Log evidence by bridge sampling, from draws x (n, d)."""
    seen, x = np.split(x, [len(x) // 2])
    mean, factor = seen.mean(0), np.linalg.cholesky(np.cov(seen.T))

    def log_gaussian(x: np.ndarray) -> np.ndarray:
        z = np.linalg.solve(factor, (x - mean).T)
        constant = np.log(factor.diagonal()).sum() + 0.5 * len(mean) * math.log(2.0 * math.pi)
        return -0.5 * np.square(z).sum(0) - constant

    drawn = mean + rng.standard_normal(x.shape) @ factor.T
    of_draws, of_gaussian = (log_density(at) - log_gaussian(at) for at in (x, drawn))
    log_z = float(np.median(of_draws))
    for _ in range(200):  # equal numbers of both, so that the bridge is 1 / (p / Z + q)
        upper = logsumexp(of_gaussian - np.logaddexp(of_gaussian - log_z, 0.0))
        log_z = float(upper - logsumexp(-np.logaddexp(of_draws - log_z, 0.0)))
    return log_z


def reference(dim: int) -> dict[str, Any]:
    """Mean and sd (d,), their standard errors, the evidence, the best Gaussian's KL, and what they cost."""
    from numpyro.diagnostics import effective_sample_size, gelman_rubin

    problem, began = darcy(dim), time.process_time()
    n_evaluations, centre, root = 0, *laplace(problem)
    for n_warm_up, n in ((N_PILOT, N_PILOT), (N_WARM_UP, N_DRAWS)):
        target = Counted(partial(whitened, problem, centre, root), dim)
        z = np.array(chains_of_nuts(target, n, SEED, n_chains=N_CHAINS, n_warm_up=n_warm_up))
        n_evaluations += target.n_evaluations
        x = (centre + torch.from_numpy(z) @ root.mT).numpy()
        if n == N_PILOT:
            flat = torch.from_numpy(x.reshape(-1, dim))
            centre, root = flat.mean(0), torch.linalg.cholesky(flat.T.cov())
    seconds = time.process_time() - began
    mean, sd = x.mean((0, 1)), x.std((0, 1))
    of_means, of_squares = effective_sample_size(x), effective_sample_size(np.square(x - mean))
    kurtosis = (((x - mean) / sd) ** 4).mean((0, 1))
    log_evidence = bridged_evidence(target.value, z.reshape(-1, dim), np.random.default_rng(SEED))
    draw, log_q = fitted_gaussian(target, SEED)
    with torch.no_grad():
        drawn = draw(50_000)
        elbo = float((target(drawn) - log_q(drawn)).mean())
    return {
        "mean": mean.tolist(),
        "sd": sd.tolist(),
        "log_evidence": log_evidence,
        "kl_gaussian": log_evidence - elbo,
        "largest_error_of_means_in_sd": float(np.max(1.0 / np.sqrt(of_means))),
        "largest_relative_error_of_sds": float(np.max(0.5 * np.sqrt((kurtosis - 1.0) / of_squares))),
        "least_effective_sample_size": float(min(of_means.min(), of_squares.min())),
        "largest_r_hat": float(np.max(gelman_rubin(x))),
        "n_draws": N_CHAINS * N_DRAWS,
        "n_evaluations": n_evaluations,
        "cpu_seconds": round(seconds, 1),
        "command": f"python benchmarks/ensemble_kalman.py --reference {dim}",
    }


def write_references(dims: list[int]) -> None:
    """Add those of `dims` terms to the file of `inverse_problems`."""
    for dim in dims:
        found = reference(dim)
        known = json.loads(MOMENTS.read_text()) if MOMENTS.exists() else {}
        MOMENTS.write_text(json.dumps(known | {str(dim): found}, indent=1) + "\n")
        print(dim, {key: value for key, value in found.items() if key not in ("mean", "sd")}, flush=True)
