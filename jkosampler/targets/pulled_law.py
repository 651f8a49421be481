"""A law of the user's parameters, as the law of their unconstrained coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.errors import ArgumentError
from jkosampler.laws import Law
from jkosampler.laws.foreign import ForeignLaw
from jkosampler.targets.space import Space

__all__ = ["PulledLaw", "pulled_law"]

_TRIED, _SEED = 2**16, 20231  # draws that tell whether a law lives in the space: else its density has another integral
_WIDE, _POINTS = 3.0, 1000  # standard deviation and number of the points that tell whether it lives in all of it
_ROUNDS = 100  # of new draws for those that rounding has put onto the boundary


def pulled_law(law: Law, space: Space) -> Law | None:
    """The law of z where x(z) has this law; None where x has draws outside the space, so that there is no such law."""
    generator = torch.Generator().manual_seed(_SEED)
    try:
        space.to_unconstrained(law.sample((_TRIED,), generator=generator))
    except ArgumentError:
        return None
    return PulledLaw(law, space)


class PulledLaw(ForeignLaw):
    """The law of z where x(z) has a given law, all of it inside the space.

    Parameters
    ----------
    law : Law
        Over the user's parameters.
    space : Space
        Of these.
    """

    def __init__(self, law: Law, space: Space) -> None:
        super().__init__(space.dim)
        self._law, self._space = law, space
        self.mass = law.mass
        # An edge of the law that is the space's is at infinity now, where densities vanish.
        z = _WIDE * torch.randn(_POINTS, space.dim, generator=torch.Generator().manual_seed(_SEED), dtype=torch.float64)
        self.has_jump = law.has_jump and bool(law.log_prob(space.to_user(z)).isneginf().any())

    def describe(self) -> str:
        """Say in a few words which law this is."""
        return f"{self._law.describe()}, in unconstrained coordinates"

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        x = self._law.sample((n,), generator=generator).clone()
        for _ in range(_ROUNDS):
            lost = ~self._space.contains(x)
            if not bool(lost.any()):
                break
            x[lost] = self._law.sample((int(lost.sum()),), generator=generator)
        return self._space.to_unconstrained(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        value = self._law.log_prob(self._space.to_user(x)) + self._space.log_jacobian(x)
        return value.to(self.device, self.dtype)
