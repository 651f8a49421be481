"""The command line `jkosampler`: what can be asked for, and what an exit code says.

What the commands do is in `_cli_commands` and `_cli_demos`, which are imported when they are needed: `--help` and
`--version` load no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from jkosampler import __version__
from jkosampler.errors import ArgumentError, JKOSamplerError

__all__ = ["main"]

FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141  # the last two as shells count signals

_CODES = """exit codes:
  0    all went well; diagnose: the draws can be trusted
  1    the run failed, for the reason on stderr
  2    wrong usage, or an argument that can't be used
  3    diagnose: use the draws with care
  4    diagnose: do not trust the draws
  130  interrupted (Ctrl-C)
  141  whoever read the output has closed it"""

_FIT = """examples:
  jkosampler fit posterior:log_target --dim 3
  jkosampler fit posterior:target --max-time 600 --checkpoint run.safetensors --out fit.safetensors

posterior.py, in the current directory, has a function from a torch tensor (n, d) to log densities (n,), or a Target.
Ctrl-C saves the steps made so far. Run the same command again to go on from a checkpoint."""

_SAMPLE = """examples:
  jkosampler sample posterior.safetensors -n 4000 --out draws.csv
  jkosampler sample posterior.safetensors -n 10 --format json | python -m json.tool
  jkosampler sample posterior.safetensors -n 4000 --method imh --target posterior:log_target --out draws.nc"""

_DIAGNOSE = f"""examples:
  jkosampler diagnose posterior.safetensors --target posterior:log_target --html report.html
  jkosampler diagnose posterior.safetensors --target posterior:log_target --json && echo trusted

In JSON an infinite number is the string "inf" or "-inf", and an unknown one is null.

{_CODES}"""

_PLOT = """examples:
  jkosampler plot posterior.safetensors --out pairs.png
  jkosampler plot posterior.safetensors --kind evolution --out evolution.pdf"""

_DEMO = """examples:
  jkosampler demo elliptic
  jkosampler demo allen-cahn --out figures --quick

elliptic       an inverse problem of two parameters: its posterior, a report, draws
gaussians      two Gaussians flow to four: a Fokker-Planck equation
porous-medium  a gas spreads from a point, beside its exact solution
allen-cahn     a ring of one phase shrinks by its curvature"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code, see `jkosampler --help`."""
    options = _parser().parse_args(argv)
    with _heard_on_stderr(options):
        try:
            module, _, function = options.run.partition(":")
            code: int = getattr(import_module(module), function)(options)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return _complain(options, "interrupted", INTERRUPTED)
        except BrokenPipeError:
            _close_stdout()
            return PIPE_CLOSED
        except ArgumentError as error:
            return _complain(options, str(error), USAGE)
        except JKOSamplerError as error:
            return _complain(options, str(error), FAILED)
        except Exception as error:
            return _complain(options, f"{type(error).__name__}: {error} (--debug shows where)", FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jkosampler",
        description="Sample a posterior, or solve a PDE, by neural JKO steps.",
        epilog=f"`jkosampler COMMAND --help` has examples.\n\n{_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jkosampler {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    fit = _command(commands, "fit", "fit a sampler to a log density, and save it", _FIT)
    fit.add_argument("target", metavar="MODULE:NAME", help="log density, a function or a Target")
    fit.add_argument("--dim", type=int, help="number of parameters; a Target knows it")
    fit.add_argument(
        "--initial-std", type=float, metavar="S", help="start from N(0, S^2 I) instead of prior or N(0, I)"
    )
    fit.add_argument("--metric", choices=["kalman", "wasserstein"], help="default: kalman")
    fit.add_argument("--step-size", type=float, metavar="TAU", help="flow time of a step; default: adaptive")
    fit.add_argument("--n-steps", type=int, metavar="K", help="steps at most; default: until the law is stationary")
    fit.add_argument("--max-time", type=float, metavar="SECONDS", help="budget of the fit")
    fit.add_argument("--max-target-evaluations", type=int, metavar="N", help="budget of the fit, in points")
    fit.add_argument("--n-particles", type=int, metavar="N", help="particles that the fit carries")
    fit.add_argument("--seed", type=int, help="of all randomness")
    fit.add_argument("--checkpoint", metavar="PATH", help="written after every step; gone on from if it is there")
    fit.add_argument("--no-resume", action="store_true", help="begin anew in spite of a checkpoint, and replace it")
    fit.add_argument("--out", default="posterior.safetensors", metavar="FILE", help="default: %(default)s")

    sample = _command(commands, "sample", "draw from a saved sampler", _SAMPLE)
    _add_file(sample)
    sample.add_argument("-n", type=int, default=1000, help="number of draws; default: %(default)s")
    sample.add_argument("--seed", type=int, help="default: another one at each call, which is said on stderr")
    sample.add_argument("--method", choices=["flow", "snis", "imh"], default="flow", help="the last two correct draws")
    _add_target(sample, required=False)
    sample.add_argument("--out", metavar="FILE", help="default: stdout")
    sample.add_argument("--format", choices=["csv", "json", "netcdf"], help="default: by the file's ending, or csv")

    diagnose = _command(commands, "diagnose", "say whether a saved sampler can be trusted", _DIAGNOSE)
    _add_file(diagnose)
    _add_target(diagnose, required=True)
    diagnose.add_argument("-n", type=int, default=4000, help="number of draws; default: %(default)s")
    diagnose.add_argument("--json", action="store_true", help="numbers and verdict as JSON")
    diagnose.add_argument("--html", metavar="FILE", help="write a page with figures, too")

    plot = _command(commands, "plot", "draw a figure of a saved sampler", _PLOT)
    _add_file(plot)
    plot.add_argument("--out", required=True, metavar="FIG", help="the ending names the format: .png, .pdf, .svg")
    plot.add_argument(
        "--kind",
        choices=["pairs", "evolution", "energy", "fields"],
        help="marginals and pairs of draws, particles at six times, energy by step, a field at four times; "
        "default: pairs, or fields for an L2 flow",
    )
    plot.add_argument("-n", type=int, default=4000, help="number of draws; default: %(default)s")
    plot.add_argument("--seed", type=int, default=0, help="of the draws; default: %(default)s")

    demo = _command(commands, "demo", "run an example, and write its figures", _DEMO, module="_cli_demos")
    demo.add_argument("name", choices=["elliptic", "gaussians", "porous-medium", "allen-cahn"], metavar="NAME")
    demo.add_argument("--out", metavar="DIR", help="default: jkosampler-NAME")
    demo.add_argument("--quick", action="store_true", help="few steps and particles: to see that it runs")
    demo.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return parser


def _command(commands: Any, name: str, what: str, epilog: str, module: str = "_cli_commands") -> Any:
    parser = commands.add_parser(
        name,
        help=what,
        description=what[0].upper() + what[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quiet", action="store_true", help="no progress; warnings and errors alone")
    parser.add_argument("--debug", action="store_true", help="tracebacks, and all log messages")
    parser.set_defaults(run=f"jkosampler.{module}:{name}")
    return parser


def _add_file(parser: Any) -> None:
    parser.add_argument("file", metavar="FILE", help="what `fit` has saved, or a checkpoint")


def _add_target(parser: Any, *, required: bool) -> None:
    parser.add_argument("--target", required=required, metavar="MODULE:NAME", help="log density that was fitted")


@contextlib.contextmanager
def _heard_on_stderr(options: argparse.Namespace) -> Iterator[None]:
    """Log messages and warnings, one line each; as they were afterwards, since tests call `main`."""
    logger, handler = logging.getLogger("jkosampler"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("jkosampler: %(message)s"))
    level = logger.level
    logger.setLevel(logging.DEBUG if options.debug else logging.WARNING if options.quiet else logging.INFO)
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, category, *where: print(
            f"jkosampler: warning: {_one_line(str(message))}", file=sys.stderr
        )
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


def _complain(options: argparse.Namespace, message: str, code: int) -> int:
    if options.debug:
        traceback.print_exc()
    print(f"jkosampler: error: {_one_line(message)}", file=sys.stderr)
    return code


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _close_stdout() -> None:
    """Nobody listens: what is still to be written goes nowhere, so that the interpreter ends in silence."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
