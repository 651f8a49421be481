"""The fitted laws over the user's parameters: what a flow in R^d is to whoever has given a constrained target.

With x = x(z), log density of x = log density of z - log |det dx/dz|. Without constraints x is z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jkosampler.errors import MapInversionError
from jkosampler.fields import FittedFields
from jkosampler.flow import FittedDensities, FittedFlow
from jkosampler.maps import inversion_error
from jkosampler.targets import Space

__all__ = ["UserFlow"]


class UserFlow:
    """A fitted flow as the user sees it; a point on or beyond the boundary of the space has density zero.

    Parameters
    ----------
    flow : FittedFlow, FittedDensities or FittedFields
        In R^d.
    space : Space, or None
        None: the user's parameters are the coordinates.
    """

    def __init__(self, flow: FittedFlow | FittedDensities | FittedFields, space: Space | None) -> None:
        self.flow, self.space = flow, space

    def shown(self, z: Tensor) -> Tensor:
        """Points (n, d) as the user's parameters (n, n_columns)."""
        if self.space is None:
            return z
        with torch.no_grad():
            return self.space.to_user(z)

    def log_density_shown(self, log_rho: Tensor, z: Tensor) -> Tensor:
        """A log density (n,) of z (n, d) as that of x(z)."""
        if self.space is None:
            return log_rho
        with torch.no_grad():
            return log_rho - self.space.log_jacobian(z)

    def sample(self, n: int, *, t: float | None, generator: torch.Generator) -> Tensor:
        """n independent draws (n, n_columns) of the law at time t."""
        return self.shown(self.flow.sample(n, t=t, generator=generator))

    def sample_with_log_density(self, n: int, *, t: float | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The draws of `sample`, with the log density (n,) at each; NaN where a map folds."""
        z, log_rho = self.flow.sample_with_log_density(n, t=t, generator=generator)
        return self.shown(z), self.log_density_shown(log_rho, z)

    def log_density(self, x: Tensor, *, t: float | None) -> Tensor:
        """Normalised log density (n,) of the law at time t, at x (n, n_columns); -inf outside the space.

        Raises
        ------
        MapInversionError
            At points where a map can't be inverted.
        """
        if self.space is None:
            return self.flow.log_density(x, t=t)
        inside = self.space.contains(x)
        z = self.space.to_unconstrained(x[inside])
        log_density = torch.full_like(x[:, 0], -torch.inf)
        try:
            log_density[inside] = self.log_density_shown(self.flow.log_density(z, t=t), z)
        except MapInversionError as error:
            rows = inside.nonzero()[:, 0][torch.as_tensor(error.indices, device=x.device)]
            raise inversion_error(x, rows) from error
        return log_density
