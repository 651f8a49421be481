"""The commands `fit`, `sample`, `diagnose` and `plot`; each takes parsed options and returns an exit code."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import secrets
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from jkosampler._cli_draws import format_of, names_of, write_draws
from jkosampler._whole_files import file_to_be, whole_file
from jkosampler.diagnostics import Report
from jkosampler.errors import ArgumentError, JKOSamplerError
from jkosampler.estimator import JKOSampler
from jkosampler.laws import Gaussian
from jkosampler.targets import Target

__all__ = ["diagnose", "fit", "imported", "plot", "sample"]

logger = logging.getLogger(__name__)

_EXIT_CODES = {"trust": 0, "care": 3, "distrust": 4}


def fit(options: argparse.Namespace) -> int:
    """Fit, and save; what an interrupted or failed fit has made is saved too."""
    out = file_to_be(options.out, "--out")
    target = imported(options.target)
    if options.dim is None and not isinstance(target, Target):
        raise ArgumentError("--dim: a function does not say the number of its parameters; give it.")
    sampler = JKOSampler(
        target,
        options.metric,
        dim=options.dim,
        initial=None if options.initial_std is None else _start(target, options),
        step_size=options.step_size,
        n_steps=options.n_steps,
        max_time=options.max_time,
        max_target_evaluations=options.max_target_evaluations,
        n_particles=options.n_particles,
        random_state=options.seed,
        checkpoint=options.checkpoint,
        resume=not options.no_resume,
        progress=not options.quiet,
    )
    try:
        sampler.fit()
    except (KeyboardInterrupt, JKOSamplerError):
        if "_result" in vars(sampler) and sampler.n_steps_:
            sampler.save(out)
            logger.warning("the steps made so far, %d, are saved to %s", sampler.n_steps_, out)
        raise
    sampler.save(out)
    logger.info("%d steps: %s", sampler.n_steps_, sampler.stop_reason_)
    logger.info("saved to %s; `jkosampler diagnose %s --target %s` says whether to trust it", out, out, options.target)
    return 0


def _start(target: Any, options: argparse.Namespace) -> Gaussian:
    dim = target.unconstrained.dim if isinstance(target, Target) else options.dim
    if not 0.0 < options.initial_std < math.inf:
        raise ArgumentError(f"--initial-std must be positive and finite, got {options.initial_std:g}.")
    return Gaussian(np.zeros(dim), scale=options.initial_std)


def sample(options: argparse.Namespace) -> int:
    """Draws to a file or stdout."""
    kind = format_of(options.out, options.format)
    if options.out is not None:
        file_to_be(options.out, "--out")
    if options.method != "flow" and options.target is None:
        raise ArgumentError(f"--method {options.method} weighs draws by the log density: give --target MODULE:NAME.")
    sampler = _loaded(options)
    if options.seed is None:  # the file's own stream would begin where it is each time, with the same draws
        options.seed = secrets.randbits(31)
        logger.info("--seed %d", options.seed)
    write_draws(sampler, options, kind)
    return 0


def diagnose(options: argparse.Namespace) -> int:
    """The report to stdout, and the verdict as the exit code."""
    if options.html is not None:
        file_to_be(options.html, "--html")
    report = _loaded(options).diagnose(options.n)
    if options.html is not None:
        logger.info("wrote %s", report.to_html(options.html))
    print(json.dumps(_as_json(report), indent=2, ensure_ascii=False, allow_nan=False) if options.json else report)
    return _EXIT_CODES[report.judgement]


def _as_json(report: Report) -> dict[str, Any]:
    derived = ("kl_estimate", "pareto_k_threshold", "bias_bound", "trustworthy", "judgement", "verdict")
    names = [*(field.name for field in fields(report) if field.name != "record"), *derived]
    return {name: _json_value(getattr(report, name)) for name in names}


def _json_value(value: Any) -> Any:
    """JSON knows neither infinite nor undefined numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def plot(options: argparse.Namespace) -> int:
    """A figure to a file."""
    from matplotlib.backend_bases import FigureCanvasBase

    ending = Path(options.out).suffix.lstrip(".").lower()
    known = FigureCanvasBase.get_supported_filetypes()
    if ending not in known:
        raise ArgumentError(f"--out {options.out!r}: the ending must be one of {', '.join(sorted(known))}.")
    file_to_be(options.out, "--out")
    figure = _figure(_loaded(options), options)
    with whole_file(options.out, "--out") as temporary:
        figure.savefig(temporary, format=ending)
    logger.info("wrote %s", options.out)
    return 0


def _figure(sampler: JKOSampler, options: argparse.Namespace) -> Any:
    from jkosampler import _cli_figures as figures

    kind = options.kind or ("fields" if figures.is_field(sampler) else "pairs")
    if (kind == "fields") != figures.is_field(sampler) and kind != "energy":
        raise ArgumentError(f"--kind {kind}: this fit is one of {'a field' if kind != 'fields' else 'a density'}.")
    if kind == "fields":
        return figures.fields(sampler)
    if kind == "energy":
        return figures.energy(sampler)
    names = names_of(sampler)
    if kind == "evolution":
        return figures.evolution(sampler, options.n, options.seed, names)
    return figures.pairs(sampler.sample(options.n, random_state=options.seed), names)


def _loaded(options: argparse.Namespace) -> JKOSampler:
    """The saved sampler, with its log density where the command has one."""
    spec = getattr(options, "target", None)
    return JKOSampler.load(options.file, log_target=None if spec is None else imported(spec), progress=False)


def imported(spec: str) -> Any:
    """What "module:name" names; modules of the current directory are found.

    Raises
    ------
    ArgumentError
        There is no such module or name, or it is nothing that can be called.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise ArgumentError(
            f"{spec!r}: write MODULE:NAME, such as posterior:log_target for log_target in posterior.py."
        )
    if module_name.endswith(".py") or "/" in module_name:
        raise ArgumentError(f"{spec!r}: write the name of a module, without a folder and without .py.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # what the module itself imports
        raise ArgumentError(f"{spec!r}: there is no module {module_name!r} here ({here}) or installed.") from error
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise ArgumentError(f"{spec!r}: {error}.") from error
    if not callable(found):
        raise ArgumentError(f"{spec!r} is {type(found).__name__}, not a log density: a function or a Target.")
    return found
