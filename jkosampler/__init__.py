"""Posterior sampling and gradient-flow PDEs by neural JKO steps.

    >>> from jkosampler import JKOSampler, forward
    >>> problem = forward.EllipticBVP().posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
    >>> draws = JKOSampler(problem).fit().sample(4000)  # doctest: +SKIP

The names are loaded when they are first used: `jkosampler.diagnostics` and `jkosampler.arviz_io` work without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jkosampler import diagnostics, domains, energies, engines, errors, forward, laws, metrics, plotting, targets
    from jkosampler.estimator import JKOSampler

__all__ = [
    "JKOSampler",
    "__version__",
    "diagnostics",
    "domains",
    "energies",
    "engines",
    "errors",
    "forward",
    "laws",
    "metrics",
    "plotting",
    "targets",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "JKOSampler":
        return import_module("jkosampler.estimator").JKOSampler
    if name in __all__:
        return import_module(f"jkosampler.{name}")
    raise AttributeError(f"module 'jkosampler' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
