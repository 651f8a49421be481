"""Two test processes share two cores: torch's own threads would only slow both down."""

from __future__ import annotations

import contextlib

with contextlib.suppress(ImportError):  # the numpy-only tests also run where there is no torch
    import torch

    torch.set_num_threads(1)
