"""Objects of this package as plain data with named tensors, and back: what the files of fits hold.

No pickle: reading makes objects of this package's and a few of torch's classes and fills in their attributes, and calls
nothing that a file names. What users have made, functions above all, is not written. The data name where it was found
in what the sampler's parameters gave, and who reads gives it again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from importlib import import_module
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor, nn

from jkosampler.errors import CheckpointError, UnavailableError
from jkosampler.targets import Target
from jkosampler.targets.hosts import Host

__all__ = ["Encoder", "decoded", "handed_in"]

_MODULES = (nn.Linear, nn.ModuleList, nn.ParameterList, nn.Sequential, nn.SiLU, nn.Softplus, nn.Tanh)
_OF_TORCH = {f"torch.nn:{kind.__name__}": kind for kind in _MODULES}
_ROOMS = "diagnostics|domains|energies|engines|fields|laws|maps|metrics|mobility|particles|potentials|tangent|targets"
_NAME = re.compile(rf"(?:{_ROOMS}|walled_potential|_setup|_setup_fields)(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_FRESH_MODULE = MappingProxyType(vars(nn.Module()))
_PARAMETERS = {
    "target": "log_target",
    "space": "log_target",
    "law": "initial",
    "initial": "initial",
    "functional": "energy",
}
_NUMBERS = "biuf"  # kinds of arrays that are written; labels and dates of coordinates come with the target
_USERS = (Target, Host)  # never written, not even in part


def handed_in(setup: Any, path: str = "") -> dict[str, Any]:
    """What users have made of a setup's parts, or of what is at `path` in it, by where it was found."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def look(thing: Any, path: str) -> None:
        if id(thing) in seen or _is_plain(thing):
            return
        seen.add(id(thing))
        if _is_ours(thing) or isinstance(thing, list | tuple | dict):
            for name, part in _parts(thing):
                look(part, f"{path}.{name}" if path else name)
        else:
            found[path] = thing

    look(setup, path)
    return found


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, dict):
        yield from ((str(name), part) for name, part in thing.items())
    elif isinstance(thing, list | tuple):
        yield from ((str(i), part) for i, part in enumerate(thing))
    else:
        yield from vars(thing).items()


def _is_plain(thing: Any) -> bool:
    plain = (bool, int, float, str, np.generic, Tensor, torch.dtype, torch.device, torch.Generator)
    return thing is None or isinstance(thing, plain) or (isinstance(thing, np.ndarray) and thing.dtype.kind in _NUMBERS)


def _is_ours(thing: Any) -> bool:
    """Whether the class of an object can be written."""
    kind = type(thing)
    if isinstance(thing, _USERS) or not hasattr(thing, "__dict__") or isinstance(thing, type):
        return False
    return kind.__module__.startswith("jkosampler.") or kind in _OF_TORCH.values()


class Encoder:
    """Turns objects into what JSON can hold; one for a file.

    Parameters
    ----------
    given : mapping
        What `handed_in` found.

    Attributes
    ----------
    tensors : dict
        Those of the objects encoded so far, by the names that the data have for them.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._given = {id(thing): path for path, thing in given.items()}
        self._numbers: dict[int, int] = {}  # of objects that may occur again
        self._alive: list[Any] = [given]  # else an id could be another's

    def __call__(self, thing: Any) -> Any:
        """The data of an object.

        Raises
        ------
        CheckpointError
            Something in it is neither this package's nor a part of what was handed in.
        """
        if thing is None or isinstance(thing, bool | str):
            return thing
        if isinstance(thing, int | np.integer):
            return int(thing)
        if isinstance(thing, float | np.floating):
            value = float(thing)
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(thing, torch.dtype | torch.device):
            return {type(thing).__name__: str(thing).removeprefix("torch.")}
        if type(thing) is list:
            return [self(part) for part in thing]
        if id(thing) in self._given:
            return {"given": self._given[id(thing)]}
        if id(thing) in self._numbers:
            return {"same": self._numbers[id(thing)]}
        self._alive.append(thing)
        number = self._numbers[id(thing)] = len(self._numbers)
        return {"number": number} | self._data(thing)

    def _data(self, thing: Any) -> dict[str, Any]:
        if isinstance(thing, Tensor | np.ndarray):
            return self._tensor(thing)
        if isinstance(thing, torch.Generator):
            return {"generator": self._named(thing.get_state()), "device": str(thing.device)}
        if type(thing) is torch.Size:
            return {"size": list(thing)}
        if type(thing) is tuple:
            return {"tuple": [self(part) for part in thing]}
        if isinstance(thing, Bunch):
            return {"bunch": {name: self(part) for name, part in thing.items()}}
        if type(thing) is dict:
            return {"dict": [[self(name), self(part)] for name, part in thing.items()]}
        kind = type(thing)
        if isinstance(thing, tuple) and hasattr(thing, "_fields") and kind.__module__.startswith("jkosampler."):
            return {"object": _name_of(kind), "items": [self(part) for part in thing]}
        if not _is_ours(thing):
            raise CheckpointError(f"a {kind.__module__}.{kind.__qualname__} can't be written to a file.")
        own = {
            name: part for name, part in vars(thing).items() if not (isinstance(thing, nn.Module) and _dull(name, part))
        }
        return {"object": _name_of(kind), "attributes": {name: self(part) for name, part in own.items()}}

    def _tensor(self, thing: Tensor | np.ndarray) -> dict[str, Any]:
        if isinstance(thing, np.ndarray):
            if thing.dtype.kind not in _NUMBERS:
                raise CheckpointError(f"an array of {thing.dtype} can't be written to a file.")
            return {"array": self._named(torch.from_numpy(np.ascontiguousarray(thing)))}
        x = thing.detach()
        # the layout too: a product of matrices is rounded differently where one is stored transposed
        order = sorted(range(x.dim()), key=lambda axis: -x.stride()[axis])
        data: dict[str, Any] = {"tensor": self._named(x.permute(order)), "device": str(x.device)}
        if order != sorted(order):
            data["axes"] = order
        if isinstance(thing, nn.Parameter):
            data["parameter"] = thing.requires_grad
        return data

    def _named(self, x: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = x.detach().cpu().clone(memory_format=torch.contiguous_format)
        return name


def _dull(name: str, part: Any) -> bool:
    """Whether an attribute of a module is as any has it at first: hooks above all."""
    return name in _FRESH_MODULE and name != "training" and not part and not isinstance(part, Tensor)


def _name_of(kind: type) -> str:
    for name, known in _OF_TORCH.items():
        if kind is known:
            return name
    return f"{kind.__module__.removeprefix('jkosampler.')}:{kind.__qualname__}"


def decoded(data: Any, tensors: dict[str, Tensor], given: dict[str, Any], device: torch.device | None = None) -> Any:
    """The object that an `Encoder` was given.

    Parameters
    ----------
    data, tensors
        From the encoder.
    given : mapping
        What `handed_in` finds where it is read. What is missing can be passed around, and raises when it is used.
    device : torch.device, optional
        Where tensors go; None: where they were.

    Raises
    ------
    CheckpointError
        The data are not an encoder's.
    """
    try:
        return _Decoder(tensors, given, device)(data)
    except CheckpointError:
        raise
    except (
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(f"its contents make no sense ({type(error).__name__}: {str(error)[:200]}).") from error


class _Decoder:
    def __init__(self, tensors: dict[str, Tensor], given: dict[str, Any], device: torch.device | None) -> None:
        self._tensors, self._given, self._device = tensors, given, device
        self._made: dict[int, Any] = {}

    def __call__(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self(part) for part in data]
        if not isinstance(data, dict):
            return data
        if "float" in data:
            return float(data["float"])
        if "dtype" in data:
            return _dtype(data["dtype"])
        if "same" in data:
            return self._made[data["same"]]
        if "given" in data:
            path = data["given"]
            return self._given[path] if path in self._given else Absent(path)
        if "number" not in data:  # a device has no more than its name
            return self._device or torch.device(data["device"])
        if "object" in data and "attributes" in data:
            return self._object(data)
        made = self._made[data["number"]] = self._simple(data)
        return made

    def _simple(self, data: dict[str, Any]) -> Any:
        if "tensor" in data:
            x = self._tensors[data["tensor"]]
            if "axes" in data:
                axes = data["axes"]
                x = x.permute([axes.index(axis) for axis in range(len(axes))])
            x = x.to(self._device or data["device"])
            return nn.Parameter(x, requires_grad=bool(data["parameter"])) if "parameter" in data else x
        if "array" in data:
            return self._tensors[data["array"]].numpy()
        if "generator" in data:
            generator = torch.Generator(device=data["device"])
            generator.set_state(self._tensors[data["generator"]])
            return generator
        if "size" in data:
            return torch.Size(data["size"])
        if "tuple" in data:
            return tuple(self(part) for part in data["tuple"])
        if "bunch" in data:
            return Bunch(**{name: self(part) for name, part in data["bunch"].items()})
        if "dict" in data:
            return {self(name): self(part) for name, part in data["dict"]}
        kind = _class_of(data["object"])
        if not issubclass(kind, tuple):
            raise CheckpointError(f"its contents make no sense: {data['object']} has no items.")
        return tuple.__new__(kind, [self(part) for part in data["items"]])

    def _object(self, data: dict[str, Any]) -> Any:
        kind = _class_of(data["object"])
        made: Any = object.__new__(kind)
        self._made[data["number"]] = made  # known before its parts, which may refer to it
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
        made.__dict__.update({name: self(part) for name, part in data["attributes"].items()})
        return made


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"its contents make no sense: {name!r} is no dtype.")
    return found


def _class_of(name: str) -> type:
    if isinstance(name, str) and name in _OF_TORCH:
        return _OF_TORCH[name]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CheckpointError(f"its contents make no sense: {name!r} is no class of this package.")
    module, _, attribute = name.partition(":")
    found = getattr(import_module(f"jkosampler.{module}"), attribute, None)
    if not isinstance(found, type) or found.__module__ != f"jkosampler.{module}" or issubclass(found, _USERS):
        raise CheckpointError(f"its contents make no sense: {name!r} is no class of this package.")
    return found


class Absent:
    """In the place of what a file can't hold and nobody gave again."""

    def __init__(self, path: str) -> None:
        self.__dict__["_path"] = path

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise self._error()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._error()

    def __repr__(self) -> str:
        return f"<{self._parameter()} that was not given to load>"

    def _parameter(self) -> str:
        path = self.__dict__["_path"].removeprefix("problem.")
        return _PARAMETERS.get(path.partition(".")[0], "a function of the sampler's parameters")

    def _error(self) -> UnavailableError:
        path, parameter = self.__dict__["_path"], self._parameter()
        return UnavailableError(
            f"this needs {parameter} ({path}), which a file can't hold: give it to JKOSampler.load(path, ...) again, "
            f"{'as ' + parameter + '=' if parameter in _PARAMETERS.values() else 'under the name of the parameter'}."
        )
