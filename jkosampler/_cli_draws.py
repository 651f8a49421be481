"""Draws on their way out of the command line: CSV, JSON, netCDF."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from jkosampler._whole_files import whole_file
from jkosampler.arviz_io import to_arviz
from jkosampler.errors import ArgumentError, MissingDependencyError, UnavailableError
from jkosampler.estimator import JKOSampler

__all__ = ["format_of", "names_of", "write_csv", "write_draws", "write_netcdf"]

_BY_ENDING = {".csv": "csv", ".json": "json", ".nc": "netcdf", ".netcdf": "netcdf"}


def format_of(out: str | None, wanted: str | None) -> str:
    """The format asked for, or that of the file's ending.

    Raises
    ------
    ArgumentError
        netCDF without a file, or an ending that says no format.
    MissingDependencyError
        What writes netCDF is not installed.
    """
    if wanted is None and out is not None:
        wanted = _BY_ENDING.get(Path(out).suffix.lower())
        if wanted is None:
            raise ArgumentError(f"--out {out!r}: give --format, or an ending among {', '.join(_BY_ENDING)}.")
    if wanted == "netcdf":
        if out is None:
            raise ArgumentError("--format netcdf: such a file can't go to stdout, give --out FILE.")
        if find_spec("h5netcdf") is None:
            raise MissingDependencyError(
                "netCDF files need h5netcdf: run `pip install 'jkosampler[netcdf]'`, or choose --format csv."
            )
    return wanted or "csv"


def names_of(sampler: JKOSampler) -> list[str]:
    """Names of the columns; x1, x2, ... where there are none, or the file of an unconstrained fit can't know them."""
    with contextlib.suppress(UnavailableError):
        if (names := sampler._fitted.names) is not None:
            return list(names)
    return [f"x{i + 1}" for i in range(sampler.n_features_in_)]


def write_draws(sampler: JKOSampler, options: argparse.Namespace, kind: str) -> None:
    """What `options` ask for: `n` draws by `method` with `seed`, to `out`."""
    if kind == "netcdf" and options.method == "flow" and options.target is not None:
        write_netcdf(sampler.to_arviz(options.n, 1, random_state=options.seed), options.out)
        return
    draws = sampler.sample(options.n, method=options.method, random_state=options.seed)
    names = names_of(sampler)
    if kind == "netcdf":
        space = sampler._fitted.setup.space
        chain = draws[np.newaxis]
        if space is not None:
            groups: dict[str, Any] = {"posterior": space.by_variable(chain), "dims": space.dims, "coords": space.coords}
        else:
            groups = {"posterior": {name: chain[..., i] for i, name in enumerate(names)}}
        write_netcdf(
            to_arviz(**groups, attrs={"inference_library": "jkosampler", "method": options.method}), options.out
        )
        return
    with _text_file(options.out) as file:
        if kind == "csv":
            write_csv(draws, names, file)
        else:
            json.dump({"names": names, "method": options.method, "draws": draws.tolist()}, file, ensure_ascii=False)
            file.write("\n")


def write_csv(draws: np.ndarray, names: Sequence[str], file: IO[str]) -> None:
    """A header with the names, and a row for each draw, with all digits."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(names)
    rows.writerows(draws.tolist())


def write_netcdf(idata: Any, out: Any) -> None:
    """The container of either ArviZ as a file."""
    with whole_file(out, "--out") as temporary:
        idata.to_netcdf(str(temporary), engine="h5netcdf")


@contextlib.contextmanager
def _text_file(out: str | None) -> Iterator[IO[str]]:
    if out is None:
        yield sys.stdout
        return
    with whole_file(out, "--out") as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file
