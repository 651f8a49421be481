"""`ask` and `tell`: a fit whose target is evaluated elsewhere, by a queueing system or by hand.

The fit runs in a thread of its own and waits for answers. With a checkpoint, all answers of the step that is being made
are kept in a second file: a process that ends while it waits asks the same question when it comes back, and what has
been told is not asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from jkosampler import checkpoint
from jkosampler._inputs import whole_number
from jkosampler._whole_files import file_to_be
from jkosampler.errors import ArgumentError, CheckpointError
from jkosampler.targets.told import Exchange, Stopped, Told

if TYPE_CHECKING:
    from jkosampler.estimator import JKOSampler

__all__ = ["AskTell"]


class AskTell:
    """The two methods of a sampler."""

    _asked: _AskedFit | None = None

    def ask(self, X: Any = None, *, gradient: bool = True, n_report: int = 1000) -> Iterator[np.ndarray]:
        """Fit to values that are told: yields points (n, d), whose values are due before the next ones.

        ::

            sampler = JKOSampler(dim=2, checkpoint="fit.safetensors", random_state=0)
            for x in sampler.ask():
                values, grads = submit_and_wait(x)
                sampler.tell(values, grads)

        `log_target` is None, or a `targets.Told` with names and a prior, or the posterior of a `forward.Told`, whose
        outputs are told instead. Between two points the sampler has the law that the fit has come to. A process that
        ends goes on where it was if it has a `checkpoint`: run the same lines again.

        Parameters
        ----------
        X : array (n, d), optional
            As of `fit`.
        gradient : bool
            Whether gradients are told too, for `log_target=None`.
        n_report : int
            Draws of the fitted law that are asked for at the end, for `report_`, `log_evidence_` and the like; 0: none.

        Raises
        ------
        ArgumentError
            A parameter can't be used, or the points before were not told.
        """
        if self._asked is not None and self._asked.began:
            raise ArgumentError("ask: another fit of this sampler is being asked for; end that loop first.")
        self._asked = _AskedFit(cast("JKOSampler", self), X, gradient, whole_number(n_report, "n_report", 0))
        return self._answered(self._asked)

    def tell(self, values: Any, grads: Any = None) -> None:
        """Values (n,) of the log density at the points that `ask` gave last, or outputs (n, k), and gradients (n, d).

        -inf is a legal log density.

        Raises
        ------
        ArgumentError
            No points are asked for, or a shape is wrong.
        CheckpointError
            What is told can't be kept.
        """
        if self._asked is None:
            raise ArgumentError("tell: no points are asked for; `for x in sampler.ask(): ...` gives some.")
        self._asked.tell(values, grads)

    def _answered(self, asked: _AskedFit) -> Iterator[np.ndarray]:
        fitted = vars(self)
        try:
            for x in asked.questions():
                if "_result" in vars(asked.sampler):
                    fitted["_result"] = vars(asked.sampler)["_result"]
                yield x
            fitted["_result"] = vars(asked.sampler)["_result"]
        finally:
            asked.stop()
            if self._asked is asked:
                self._asked = None


class _AskedFit:
    """A fit in its own thread, and the file of its answers."""

    def __init__(self, sampler: JKOSampler, X: Any, gradient: bool, n_report: int) -> None:
        given = sampler.log_target
        target = (
            Told(sampler.dim or getattr(sampler.initial, "dim", None), gradient=gradient) if given is None else given
        )
        exchange = getattr(target, "exchange", None)
        if not isinstance(exchange, Exchange):
            raise ArgumentError(
                "log_target: ask is for values that are told: leave it out, or give a targets.Told or the posterior of "
                "a forward.Told. What can be called is fitted by fit()."
            )
        self.exchange = exchange
        path = None if sampler.checkpoint is None else file_to_be(sampler.checkpoint, "checkpoint")
        self._file = None if path is None else path.with_name(f"{path.name}.told")
        self.began = False
        self._x: np.ndarray | None = None
        self._error: BaseException | None = None
        seed = sampler.random_state
        if seed is None:  # one that can be kept
            seed = int(torch.randint(2**31, (1,), generator=_fresh()))
        if self._file is not None and self._file.exists() and sampler.resume:
            seed = self._recall(self._file, seed, sampler.random_state is None)
        self._seed = seed
        # its own parameters, not copies: the target's exchange is the one that answers
        self.sampler = type(sampler)(**sampler.get_params(deep=False) | {"log_target": target, "random_state": seed})
        self._thread = threading.Thread(target=self._fit, args=(X, n_report), name="jkosampler fit", daemon=True)

    def questions(self) -> Iterator[np.ndarray]:
        """The points at which values are due."""
        self.began = True
        self.exchange.begin()
        self._thread.start()
        while (x := self.exchange.questions.get()) is not None:
            self._x = x
            yield x.copy()
            if self._x is not None:
                raise ArgumentError(
                    "ask: the values of the points before were not told; call tell(values, grads) first."
                )
        self._thread.join()
        if self._error is not None:
            raise self._error

    def tell(self, values: Any, grads: Any) -> None:
        """Keep the answers, and pass them on."""
        if self._x is None:
            raise ArgumentError("tell: these points were told already; the loop over ask() gives the next ones.")
        answers = self.exchange.checked(len(self._x), values, grads)
        x, self._x = self._x, None
        self.exchange.known[x.tobytes()] = answers
        self._keep()
        self.exchange.answers.put(answers)

    def stop(self) -> None:
        """End the fit where it waits."""
        if self._thread.is_alive():
            self.exchange.answers.put(None)
            self._thread.join()
        self.exchange.open = False

    def _fit(self, X: Any, n_report: int) -> None:
        try:
            for _ in self.sampler.steps(X):
                self.exchange.known.clear()  # the step is in the checkpoint now
                self._keep()
            fitted = self.sampler._fitted
            if n_report:
                vars(fitted)["final_report"] = fitted.spare_report(n_report)
        except Stopped:
            pass
        except BaseException as error:  # whatever it is, who asks meets it
            self._error = error
        finally:
            self.exchange.questions.put(None)

    def _keep(self) -> None:
        """Write the answers of the step that is being made, where there is a checkpoint."""
        if self._file is None:
            return
        tensors = {}
        for i, (x, answers) in enumerate(self.exchange.known.items()):
            tensors[f"{i} x"] = torch.frombuffer(bytearray(x), dtype=torch.uint8)
            tensors |= {f"{i} {j}": torch.from_numpy(answer) for j, answer in enumerate(answers)}
        seed = self._seed if isinstance(self._seed, int | np.integer) else None
        checkpoint.write(
            self._file, {"told": len(self.exchange.known), "seed": None if seed is None else int(seed)}, tensors
        )

    def _recall(self, path: Path, seed: Any, spare: bool) -> Any:
        """Take over what another process was told; returns the seed of its fit where the sampler has none."""
        content, tensors = checkpoint.read(path)
        try:
            for i in range(content["told"]):
                answers = tuple(tensors[f"{i} {j}"].numpy() for j in range(len(self.exchange.units)))
                self.exchange.known[tensors[f"{i} x"].numpy().tobytes()] = answers
            return content["seed"] if spare and content["seed"] is not None else seed
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{str(path)!r} is not a file of answers, or one for other questions.") from error


def _fresh() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator
