"""What each process of a torchrun does: fits of which it writes down what came out, `FOLDER/RANK.json`.

python -m torch.distributed.run --nproc-per-node 2 tests/distributed_fits.py FOLDER SCENARIO ...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jkosampler import JKOSampler, _distributed, forward, laws, targets
from jkosampler.errors import JKOSamplerError

# every batch is worth a round, however cheap its points
_distributed._WORTHWHILE = 0.0


def elliptic(**settings: Any) -> JKOSampler:
    problem = forward.EllipticBVP().posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
    start = laws.Gaussian([0.0, 100.0], np.diag([1.0, 25.0]))
    return JKOSampler(problem, metric="kalman", initial=start, progress=False, **settings)


def found(sampler: JKOSampler) -> dict[str, Any]:
    draws = sampler.sample(1000)
    return {
        "log_evidence": sampler.log_evidence_,
        "mean": draws.mean(0).tolist(),
        "sd": draws.std(0).tolist(),
        "evaluations": sampler.n_target_evaluations_,
        "steps": sampler.n_steps_,
        "verdict": str(sampler.diagnose()),
        "corrected": sampler.sample(5, method="imh").tolist(),
    }


def whole() -> dict[str, Any]:
    return found(elliptic(random_state=0).fit())


def short() -> dict[str, Any]:
    """Fresh entropy, a budget of time, one step after the other, and a few more."""
    sampler = elliptic(max_time=30.0, n_steps=2)
    records = list(sampler.steps())
    sampler.extend(1)
    return {**found(sampler), "records": len(records)}


def black_box() -> dict[str, Any]:
    """A simulator without gradient, whose outputs are gathered."""
    model = forward.BlackBox(lambda x: np.stack([x[:, 0], x[:, 0] + x[:, 1]], 1), 2, 2, vectorized=True)
    problem = model.posterior(y=[0.5, 1.0], noise_std=0.3, prior_std=1.0)
    return found(JKOSampler(problem, random_state=1, progress=False, n_steps=4).fit())


class ModelError(Exception):
    """Of the user's own."""


class Failing(targets.Target):
    """Raises on one rank, in the midst of the fit."""

    def __init__(self, rank: int, error: Exception) -> None:
        super().__init__(self._log_density_, 2)
        self.rank, self.error, self.calls = rank, error, 0

    def _log_density_(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > 8 and dist.get_rank() == self.rank:
            raise self.error
        return -0.5 * x.square().sum(1)


def failing() -> dict[str, Any]:
    said = {}
    for rank in (0, 1):
        for error in (ModelError("the solver diverged"), KeyboardInterrupt()):
            try:
                JKOSampler(Failing(rank, error), random_state=0, progress=False).fit()
            except BaseException as raised:
                said[f"{rank} {type(error).__name__}"] = [type(raised).__name__, str(raised)]
    return said


def nan() -> dict[str, Any]:
    """NaN at points of the second half of a batch, which rank 1 evaluates."""
    sampler = JKOSampler(lambda x: torch.where(x[:, 0] > 3.0, torch.nan, x[:, 0]), dim=1, progress=False)
    return refused(lambda: sampler.set_params(random_state=0).fit())


def unlike() -> dict[str, Any]:
    """Calls that are not the same on all ranks."""
    rank = dist.get_rank()
    fitted = JKOSampler(laws.Gaussian([0.0], [[1.0]]), random_state=0, progress=False, n_steps=1).fit()
    return {
        "dim": refused(lambda: JKOSampler(laws.Gaussian(np.zeros(1 + rank), np.eye(1 + rank))).fit()),
        "argument": refused(lambda: JKOSampler(lambda x: -x.sum(1), dim=2, n_steps=-rank).fit()),
        "call": refused(lambda: fitted.extend(1) if rank else fitted.diagnose()),
    }


def refused(call: Any) -> dict[str, Any]:
    try:
        call()
    except JKOSamplerError as error:
        return {"kind": type(error).__name__, "text": str(error)}
    return {}


def gone() -> dict[str, Any]:
    """One rank ends while the others go on."""
    sampler = JKOSampler(laws.Gaussian([0.0], [[1.0]]), random_state=0, progress=False, n_steps=1).fit()
    return refused(sampler.diagnose) if dist.get_rank() == 0 else {}


SCENARIOS = {f.__name__: f for f in (whole, short, black_box, failing, nan, unlike, gone)}


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {name: SCENARIOS[name]() for name in names}
    together = _distributed.team()
    rounds = 0 if together is None else together.n_rounds
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps({**results, "rounds": rounds}))
    os._exit(0) if "gone" in names else dist.destroy_process_group()


if __name__ == "__main__":
    main()
