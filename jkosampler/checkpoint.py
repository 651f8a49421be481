"""Files of fits: safetensors whose metadata hold JSON, replaced as a whole or not at all.

Reading runs nothing that a file names, and takes memory in proportion to the file's size. A digest tells a damaged file
from a good one.
"""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from jkosampler._whole_files import whole_file
from jkosampler.errors import CheckpointError, WriteError

__all__ = ["locked", "read", "write"]

SCHEMA = 1
_FORMAT = "jkosampler fit"


def locked(path: Path) -> FileLock:
    """A lock on the file for this process, which ends with it at the latest; release it with `.release()`.

    Raises
    ------
    CheckpointError
        Another process or sampler writes to it.
    """
    lock = FileLock(f"{path}.lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise CheckpointError(
            f"checkpoint {str(path)!r}: another fit is writing to it; let that end, or give another path."
        ) from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {str(path)!r} can't be written: {error.strerror or error}.") from error
    return lock


def write(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Replace the file as a whole.

    Raises
    ------
    CheckpointError
        The file can't be written; what was there is still there.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    metadata = {"format": _FORMAT, "schema": str(SCHEMA), "content": text, "digest": _digest(text, tensors)}
    try:
        blob = save(tensors, metadata)
        with whole_file(path, "checkpoint") as temporary:
            temporary.write_bytes(blob)
    except (WriteError, SafetensorError) as error:
        raise CheckpointError(f"{error} The sampler keeps its steps.") from error


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The content and the tensors of a file.

    Raises
    ------
    CheckpointError
        The file is not there, not one of ours, of a later version, or damaged.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{str(path)!r} is no regular file.")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"{str(path)!r} is not a file of jkosampler.")
            if metadata.get("schema") != str(SCHEMA):
                raise CheckpointError(
                    f"{str(path)!r} has schema {metadata.get('schema', '?')[:20]}, this version reads {SCHEMA}: "
                    "read it with the version of jkosampler that wrote it."
                )
            # copies: a view of a mapped file would change, or crash, when the file does
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if _digest(metadata["content"], tensors) != metadata["digest"]:
            raise CheckpointError(f"{str(path)!r} is damaged: its digest is another.")
        content = json.loads(metadata["content"])
    except FileNotFoundError:
        raise CheckpointError(f"{str(path)!r} is not there.") from None
    except OSError as error:
        raise CheckpointError(f"{str(path)!r} can't be read: {error.strerror or error}.") from error
    except CheckpointError:
        raise
    except (SafetensorError, KeyError, ValueError, RecursionError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged, or not a file of jkosampler: {str(error)[:200]}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} is damaged, or not a file of jkosampler.")
    return content, tensors


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
