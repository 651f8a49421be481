"""What the file of a fit holds, and how a fit goes on from it.

The whole of a `FitResult` is written but for what users have made, with the parameters that it belongs to. Who reads it
to go on checks its own parameters as for any fit, and takes the place of the one who wrote: what is computed from there
has the same bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor

from jkosampler import checkpoint
from jkosampler._encoding import Encoder, decoded, handed_in
from jkosampler._readable import readable
from jkosampler._result import FitResult
from jkosampler._setup import Setup, checked
from jkosampler._setup_fields import FieldSetup
from jkosampler._surroundings import torch_scope
from jkosampler._whole_files import file_to_be
from jkosampler.diagnostics import Report
from jkosampler.energies import EnergyEvaluator
from jkosampler.energies.evaluator import nothing_used
from jkosampler.engines import State
from jkosampler.errors import ArgumentError, CheckpointError, JKOSamplerError
from jkosampler.laws import as_law
from jkosampler.particles import Particles
from jkosampler.targets import as_target

if TYPE_CHECKING:
    from jkosampler._run import Budget
    from jkosampler.estimator import JKOSampler

__all__ = ["Checkpoint", "loaded_fit", "write_fit"]

logger = logging.getLogger(__name__)

# what a fit may be resumed with another value of: budgets, and what has no influence on the numbers
_FREE = {"n_steps", "max_time", "max_target_evaluations", "progress", "checkpoint", "resume", "device"}
_N_COMPARED = 3  # points at which a target must have the values that it had
_CLOSE = 1e-6
_ADVICE = "Give the same to go on, resume=False to begin anew, or another path."


class Saved(NamedTuple):
    """A fit as it was when it was written."""

    setup: Setup | FieldSetup
    state: Any
    history: list[Bunch]
    stop_reason: str
    seconds: float
    evaluations: int
    spare_seed: int
    report: Report | None


def write_fit(path: Path, sampler: JKOSampler, fitted: FitResult, budget: Budget | None = None) -> None:
    """Write a fit with its sampler's parameters.

    Raises
    ------
    CheckpointError
        The file can't be written, or the fit holds what can't be.
    """
    encoder = Encoder(handed_in(fitted.setup) | {"generator": fitted.generator})
    told, values = _parameters(sampler)
    content = {
        "parameters": told,
        "values": encoder(values),  # first: what refers to another part refers to one before it
        "setup": encoder(fitted.setup),
        "state": encoder(fitted.state),
        "history": encoder(list(fitted.history)),
        "stop_reason": fitted.stop_reason,
        "report": encoder([fitted.spare_seed, _bare(vars(fitted).get("final_report"))]),
        "stream": encoder(fitted.generator.get_state()),
        "spent": [budget.seconds, budget.evaluations] if budget is not None else [0.0, 0],
    }
    checkpoint.write(path, content, encoder.tensors)


def _bare(report: Report | None) -> Report | None:
    """Without the draws behind it, which a file of a fit can make again."""
    return None if report is None else replace(report, record=None)


def _saved(
    content: dict[str, Any],
    tensors: dict[str, Tensor],
    given: dict[str, Any],
    generator: torch.Generator,
    device: torch.device | None = None,
) -> Saved:
    """A fit from what a file holds; `generator` becomes its stream, and `device` where it is, None: where it was.

    Raises
    ------
    CheckpointError
        The file does not hold a fit.
    """
    data = [content[name] for name in ("values", "setup", "state", "history", "stop_reason", "stream", "report")]
    seconds, evaluations = content["spent"]
    # one call, since parts refer to each other
    _, setup, state, history, stop_reason, stream, known = decoded(
        data, tensors, given | {"generator": generator}, device
    )
    if not isinstance(setup, Setup | FieldSetup) or not isinstance(history, list) or not isinstance(stream, Tensor):
        raise CheckpointError("its contents make no sense: it holds no fit.")
    generator.set_state(stream)
    return Saved(setup, state, history, stop_reason, float(seconds), int(evaluations), *known)


def loaded_fit(path: Path, parameters: dict[str, Any], kind: type[JKOSampler]) -> tuple[JKOSampler, FitResult]:
    """The sampler of a file and its fit; `parameters` are given anew.

    Raises
    ------
    ArgumentError
        A parameter that is given can't be used.
    CheckpointError
        The file can't be read, or belongs to another target.
    """
    content, tensors = checkpoint.read(path)
    generator, setup = torch.Generator(), None
    given = {name: value for name, value in parameters.items() if value is not None}
    with _sense_of(path, given):
        kept, told = decoded(content["values"], tensors, {}), content["parameters"]
        sampler = kind(**kept | given)
        missing = set(told) - set(kept) - set(given) - {"checkpoint", "resume", "random_state"}
        device = None if torch.cuda.is_available() else torch.device("cpu")
        if missing:
            saved = _saved(content, tensors, _given_alone(given, kept), generator, device)
        else:
            setup = checked(sampler, None, generator)
            saved = _saved(content, tensors, handed_in(setup), generator, setup.device)
        seen = _seen(saved.state, saved.setup.dim)
    if setup is not None:
        _compare_values(path, setup, seen)
    with _sense_of(path):
        saved = saved if setup is None else _in_place_of(saved, setup)
        fitted = FitResult(saved.setup, generator, saved.state, saved.history, saved.stop_reason)
        fitted.spare_seed = int(saved.spare_seed)
        if isinstance(saved.report, Report):
            vars(fitted)["final_report"] = saved.report
        return sampler, fitted


@contextmanager
def _sense_of(path: Path, given: Iterable[str] = ()) -> Iterator[None]:
    """Errors as those of the file, but for what is wrong with a parameter that was given."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error}") from error
    except (
        JKOSamplerError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, ArgumentError) and str(error).startswith(tuple(given)):
            raise
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(f"{str(path)!r}: its contents make no sense ({what}).") from error


def _given_alone(given: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """What users have made of a fit's parts where only some of it is given."""
    users: dict[str, Any] = {"problem.energy.budget_used": nothing_used}
    if "log_target" in given:
        target = as_target(given["log_target"], kept.get("dim"))
        users |= {"target": target.unconstrained} | handed_in(target.space, "space")
    if "initial" in given and hasattr(given["initial"], "log_prob"):
        users |= handed_in(as_law(given["initial"], name="initial"), "law")
    elif "initial" in given:
        users |= {"problem.initial.function": given["initial"], "law.density": given["initial"]}
    return users


class Checkpoint:
    """The file that a fit is written to after each step, for itself alone as long as it runs.

    Parameters
    ----------
    sampler : JKOSampler
        Whose `checkpoint` is the path.

    Raises
    ------
    ArgumentError
        There can't be such a file.
    CheckpointError
        Another fit is writing to it.
    """

    def __init__(self, sampler: JKOSampler) -> None:
        self.path = file_to_be(sampler.checkpoint, "checkpoint")
        self._sampler = sampler
        self._lock = checkpoint.locked(self.path)

    def close(self) -> None:
        """Let others write to the file."""
        self._lock.release()

    def write(self, fitted: FitResult, budget: Budget) -> None:
        """Write the fit as it is now."""
        write_fit(self.path, self._sampler, fitted, budget)

    def read(self, setup: Setup | FieldSetup, generator: torch.Generator) -> Saved | None:
        """The fit in the file, in the place of the one that `setup` would begin; None where there is none to resume.

        Raises
        ------
        CheckpointError
            The file is damaged, or belongs to other parameters or another target.
        """
        if not self._sampler.resume or not self.path.exists():
            return None
        content, tensors = checkpoint.read(self.path)
        self._compare(content.get("parameters"))
        with _sense_of(self.path):
            saved = _saved(content, tensors, handed_in(setup), generator, setup.device)
            _compare_starts(setup, saved.setup)
            seen = _seen(saved.state, saved.setup.dim)
        _compare_values(self.path, setup, seen)
        with _sense_of(self.path):
            saved = _in_place_of(saved, setup)
        logger.info("%s: going on after step %d", self.path, saved.state.n_steps)
        return saved

    def _compare(self, theirs: Any) -> None:
        """Refuse a file that was written with other parameters."""
        if not isinstance(theirs, dict):
            raise CheckpointError(f"checkpoint {str(self.path)!r}: its contents make no sense.")
        other = []
        for name, mine in _parameters(self._sampler)[0].items():
            told = theirs.get(name, {})
            if name not in _FREE and told.get("digest") != mine["digest"]:
                other.append(f"{name} is {mine['text']} here and was {str(told.get('text', '?'))[:200]} there")
        if other:
            raise CheckpointError(
                f"checkpoint {str(self.path)!r} belongs to a fit with other parameters: {'; '.join(other)}. {_ADVICE}"
            )


def _parameters(sampler: JKOSampler) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    """Each parameter in words, with a digest to compare it by, and the values of those that a file can hold."""
    told, values = {}, {}
    for name, value in sampler.get_params(deep=False).items():
        encoder = Encoder({})
        text = readable(value)
        try:
            if name == "random_state" and not isinstance(value, int | np.integer | None):
                raise CheckpointError("its state goes on")
            data = encoder(value)
            content = json.dumps(data).encode() + b"".join(x.numpy().tobytes() for x in encoder.tensors.values())
            if name not in ("checkpoint", "resume"):
                values[name] = value
        except CheckpointError:
            content = text.encode()
        told[name] = {"text": text, "digest": hashlib.sha256(content).hexdigest()}
    return told, values


def _in_place_of(saved: Saved, setup: Setup | FieldSetup) -> Saved:
    """The saved fit with the energy of this process, which counts on."""
    energy: Any = setup.problem.energy
    theirs: Any = saved.setup
    energy.remember(theirs.problem.energy)
    problem = replace(theirs.problem, energy=energy)
    return saved._replace(setup=replace(theirs, problem=problem), state=replace(saved.state, flow=problem))


def _compare_starts(setup: Setup | FieldSetup, theirs: Setup | FieldSetup) -> None:
    """Refuse starting particles that are not those of the file."""
    given, known = (getattr(one.problem, "start", None) for one in (setup, theirs))
    if given is not known and (given is None or known is None or not torch.equal(given.x, known.x)):
        raise CheckpointError(f"it belongs to a fit with other starting particles X. {_ADVICE}")


def _seen(state: Any, dim: int) -> tuple[Particles, Tensor] | None:
    """Some particles and the energy (n,) at each, where a state knows it."""
    if not isinstance(state, State):
        return None
    some, values = state.check[:_N_COMPARED], state.values[:_N_COMPARED]
    n = len(values)
    if not isinstance(some, Particles) or some.x.shape != (n, dim) or some.log_rho.shape != (n,) or values.dim() != 1:
        raise CheckpointError("its contents make no sense: particles have no energies.")
    return some, values


def _compare_values(path: Path, setup: Setup | FieldSetup, seen: tuple[Particles, Tensor] | None) -> None:
    """Refuse a target that is not the one of the file, by its values where these are known; that is not counted."""
    energy = setup.problem.energy
    if seen is None or not isinstance(energy, EnergyEvaluator) or energy.has_interaction:
        return
    if any(evaluator.target.exchange is not None for evaluator in energy.evaluators):
        return  # whoever tells values should not be asked for these again
    some, known = seen
    with torch_scope():
        found = energy.field(some.x).energy + energy.internal(some.log_rho)
    other = ~(torch.isclose(found, known, rtol=_CLOSE, atol=_CLOSE) | (found == known))
    if bool(other.any()):
        row = int(other.nonzero()[0])
        raise CheckpointError(
            f"{str(path)!r} belongs to another target: at {some.x[row].tolist()} the energy is {float(found[row]):.8g} "
            f"and was {float(known[row]):.8g}. {_ADVICE}"
        )
