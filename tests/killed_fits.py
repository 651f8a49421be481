"""Fits of 20 steps that are killed at random moments and resumed: `killed_fits.py PATH N`, run by a test.

Each is a process forked from this one, which has imported all but started nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from jkosampler import JKOSampler


def bent(x: torch.Tensor) -> torch.Tensor:
    return -0.125 * x[:, 0].square() - 0.5 * (x[:, 1] - 0.3 * x[:, 0].square()).square()


def fit(path: Path | None, digest_to: int) -> None:
    """A fit in a process of its own, which sends a digest of its result."""
    sampler = JKOSampler(
        bent, dim=2, step_size=0.1, n_steps=20, n_particles=1000, random_state=0, progress=False, checkpoint=path
    ).fit()
    found = hashlib.sha256(sampler.particles_.tobytes() + sampler.sample(100).tobytes()).hexdigest()
    os.write(digest_to, f"{found} {sampler.n_steps_} {sampler.n_target_evaluations_}".encode())


def forked(path: Path | None, kill_after: float | None = None) -> tuple[str, float]:
    """What a fit sends, empty where it was killed, and its seconds."""
    read_end, write_end = os.pipe()
    began, child = time.monotonic(), os.fork()
    if child == 0:
        status = 1
        try:
            fit(path, write_end)
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as pipe:
        return pipe.read(), time.monotonic() - began


def main(path: Path, n: int) -> int:
    torch.set_num_threads(1)  # a forked process has no threads but its own
    logging.disable(logging.WARNING)
    rng, good, killed = random.Random(5), 0, 0
    expected, seconds = forked(None)
    for _ in range(n):
        path.unlink(missing_ok=True)
        found, _ = forked(path, kill_after=rng.uniform(0.0, 1.1 * seconds))
        killed += not found
        good += forked(path)[0] == expected
    print(f"{killed} of {n} were killed before their end, {good} of {n} resumed with the same bits")
    return 0 if good == n and len(expected) > 64 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
