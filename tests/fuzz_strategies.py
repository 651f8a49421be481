"""What users may hand in by mistake, as strategies of hypothesis: values, points, log densities that misbehave."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st

from jkosampler import JKOSampler, energies, laws

HUGE = 10**400  # a whole number that no float holds
SIZES = st.one_of(st.floats(-1.0, 1.0), st.sampled_from([0.0, math.nan, math.inf, -math.inf]))
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.floats(-2.0, 2.0), max_size=4),
    st.builds(lambda value: np.array(value), st.lists(st.floats(-2.0, 2.0), max_size=3)),
    st.builds(lambda value: torch.tensor(value), st.lists(st.floats(-2.0, 2.0), max_size=3)),
    st.sampled_from([HUGE, -HUGE, 2**64, 1j, np.nan, np.float32(2.5), np.int8(3), np.str_("l2"), pd.NA]),
    st.builds(object),
    st.builds(dict),
    st.sampled_from([JKOSampler, energies.Entropy, laws.Gaussian, torch.float16, int, len, lambda *_: None]),
)

SHAPES = [(1, 2), (3, 2), (5, 2), (40, 2), (0, 2), (3, 1), (1, 1), (3, 3), (2,), (), (1, 3, 2), (2, 0)]
DTYPES = ["f8", "f8", "f4", "f2", "i8", "u1", "?", "O", "c16", "U8", "M8[s]"]
BOXES = ["array", "fortran", "strided", "read-only", "list", "tensor", "graph", "frame", "masked"]


@st.composite
def points(draw):
    """Points of all kinds: most are (n, 2) numbers, of any type, layout and container."""
    shape = draw(st.sampled_from(SHAPES))
    scale = 10.0 ** draw(st.integers(-12, 12))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    values = scale * generator.standard_normal(shape)
    if values.size:
        values.flat[0] = scale * draw(SIZES)
    dtype = draw(st.sampled_from(DTYPES))
    with np.errstate(all="ignore"):
        kind = np.asarray(values.astype("i8").astype(dtype) if dtype == "M8[s]" else values.astype(dtype))
    box = draw(st.sampled_from(BOXES))
    if box in ("tensor", "graph") and kind.dtype.kind in "fiubc":
        made = torch.from_numpy(np.array(kind))
        return made.requires_grad_(True) * 1.0 if box == "graph" and made.is_floating_point() else made
    if box == "frame":
        return pd.DataFrame(kind) if kind.ndim == 2 else pd.Series(np.ravel(kind))
    if box == "masked":
        return np.ma.masked_invalid(kind) if kind.dtype.kind == "f" else kind
    if box == "fortran":
        return np.asfortranarray(kind)
    if box == "strided":
        return np.repeat(kind, 2, axis=0)[::2] if kind.ndim else kind
    if box == "read-only":
        kind.flags.writeable = False
    return kind.tolist() if box == "list" else kind


class UserError(Exception):
    """Of the user's own code: it passes through."""


def normal(x):
    return -0.5 * x.square().sum(1)


@dataclass
class Fickle:
    """A log density of some scale that misbehaves from its k-th call on, or at random points."""

    fault: str
    scale: float
    call: int
    seed: int

    def __post_init__(self):
        self.calls = itertools.count()
        self.generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, x):
        late = next(self.calls) >= self.call
        value = normal(x / self.scale)
        rarely = torch.rand(len(x), generator=self.generator) < 0.05
        return {
            "none": lambda: value,
            "raises": lambda: self.raising(UserError) if late else value,
            "ValueError": lambda: self.raising(ValueError) if late else value,
            "RuntimeError": lambda: self.raising(RuntimeError) if late else value,
            "KeyboardInterrupt": lambda: self.raising(KeyboardInterrupt) if late else value,
            "nan": lambda: torch.where(rarely & late, torch.nan, value),
            "+inf": lambda: torch.where(rarely & late, torch.inf, value),
            "-inf": lambda: torch.where(rarely & late, -torch.inf, value),
            "nowhere": lambda: torch.full_like(value, -torch.inf) if late else value,
            "shape": lambda: value[:, None] if late else value,
            "shorter": lambda: value[:-1] if late else value,
            "scalar": lambda: value.sum() if late else value,
            "no gradient": lambda: value.detach() if late else value,
            "numpy": lambda: value.detach().numpy() if late else value,
            "None": lambda: None if late else value,
            "complex": lambda: value * 1j if late else value,
            "single": lambda: value.float(),
            "steps": lambda: value.floor() + 0.0 * value,
            "cliff": lambda: torch.where(x[:, 0] > 0.0, value, value - 1e6),
            "root": lambda: -x.abs().sqrt().sum(1),
            "steep": lambda: -(x / self.scale).abs().exp().sum(1),
            "in place": lambda: normal(x.detach().zero_()) + value,
            "counts": lambda: value * (1.0 + next(self.calls)),
            "sleeps": lambda: time.sleep(0.002) or value,
            "constant": lambda: 0.0 * value,
            "no density": lambda: -value,
        }[self.fault]()

    def raising(self, kind):
        raise kind("by the user")


FAULTS = [
    "none", "raises", "ValueError", "RuntimeError", "nan", "+inf", "-inf", "nowhere", "shape", "shorter", "scalar",
    "no gradient", "numpy", "None", "complex", "single", "steps", "cliff", "root", "steep", "in place", "counts",
    "sleeps", "constant", "no density",
]  # fmt: skip
SCALES = st.integers(-12, 12).map(lambda power: 10.0**power)
