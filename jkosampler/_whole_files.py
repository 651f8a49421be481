"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jkosampler.errors import ArgumentError, WriteError

__all__ = ["file_to_be", "whole_file"]


def file_to_be(path: Any, name: str) -> Path:
    """The path of a file that can be written, as far as that is known before.

    Raises
    ------
    ArgumentError
        It is no path, or that of a folder, or its folder is not there.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ArgumentError(f"{name} must be the path of a file, got {path!r}.")
    path = Path(path)
    if path.is_dir():
        raise ArgumentError(f"{name}={str(path)!r} is a folder; give the path of a file in it.")
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"{name}={str(path)!r}: the folder {str(path.parent)!r} is not there; make it first.")
    return path


@contextlib.contextmanager
def whole_file(path: Any, name: str) -> Iterator[Path]:
    """A path beside that of the file, to write to; what is there takes the file's place when all went well.

    Raises
    ------
    ArgumentError
        See `file_to_be`.
    WriteError
        The file can't be written; what was there before still is.
    """
    path = file_to_be(path, name)
    # in the same folder, where a rename replaces the file at once, and with the same ending, which may name a format
    temporary = path.absolute().with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        _settle(temporary)
        os.replace(temporary, path)
        _settle(temporary.parent)
    except OSError as error:
        raise WriteError(
            f"{str(path)!r} can't be written: {error.strerror or error}. What was there before is unharmed; make room, "
            "or give another path."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _settle(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # only files can be opened there
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
