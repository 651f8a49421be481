"""Forward models whose runs somebody else makes and tells."""

from __future__ import annotations

from collections.abc import Sequence

from jkosampler.forward.black_box import BlackBox
from jkosampler.targets.told import Exchange

__all__ = ["Told"]


class Told(BlackBox):
    """A forward model whose outputs are told, without derivatives, by `JKOSampler.ask` and `tell`.

    Where a run fails, tell NaN: the posterior is zero there.

    Parameters
    ----------
    dim, output_dim, names
        As of `BlackBox`.
    """

    def __init__(self, dim: int, output_dim: int, *, names: Sequence[str] | None = None) -> None:
        self.exchange = Exchange([(output_dim,)])
        super().__init__(self.exchange, dim, output_dim, names=names, vectorized=True, on_failure="reject")
