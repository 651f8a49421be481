"""Export to ArviZ: `InferenceData` with ArviZ 0.x, xarray's `DataTree` with ArviZ 1.x.

The groups are built here as xarray datasets, which both generations share, by the ArviZ schema
(https://python.arviz.org, "InferenceData schema specification"); only the container differs. The history of
the fit is a group of its own, `step_history`, along the dimension `step`. Whatever is built can be written
to netCDF and read back. numpy only; ArviZ and xarray are imported when `to_arviz` is called.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np

from jkosampler.errors import ArgumentError, MissingDependencyError

__all__ = ["split_chains", "to_arviz"]

_CHAINS = ("chain", "draw")


def to_arviz(
    *,
    posterior: Mapping[str, Any],
    sample_stats: Mapping[str, Any] | None = None,
    observed_data: Mapping[str, Any] | None = None,
    constant_data: Mapping[str, Any] | None = None,
    log_likelihood: Mapping[str, Any] | None = None,
    prior: Mapping[str, Any] | None = None,
    step_history: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Pack draws and diagnostics into the container of the installed ArviZ.

    Parameters
    ----------
    posterior : dict of ndarray (chains, draws, ...)
        Draws by name of the parameter.
    sample_stats : dict of ndarray (chains, draws)
        Per draw: `lp` (log target), `log_q` (log density of the fitted law), `log_weight`.
    observed_data, constant_data : dict of array_like
        Data of the model, without sample dimensions.
    log_likelihood : dict of ndarray (chains, draws, ...)
        Pointwise log likelihood, by name of the observed variable.
    prior : dict of ndarray (chains, draws, ...)
        Draws of the prior.
    step_history : dict of ndarray (steps, ...)
        One record a step, numbered from 1.
    dims : dict of sequence of str
        Names of the dimensions of a variable after (chain, draw) or step; left out: `<variable>_dim_<i>`.
    coords : dict of array_like
        Labels along a dimension; left out: 0, 1, ...
    attrs : dict
        Attributes of the whole; what netCDF can't hold (None, bool, dict ...) becomes text or a number.

    Returns
    -------
    arviz.InferenceData or xarray.DataTree
        Groups that are None or empty are left out.

    Raises
    ------
    MissingDependencyError
        ArviZ is not installed.
    ArgumentError
        An array has too few dimensions, chains, draws or steps differ, `dims` or `coords` don't fit, or a
        name contains a slash or is that of a dimension (chain, draw, step).
    """
    groups: dict[str, tuple[Mapping[str, Any] | None, tuple[str, ...]]] = {
        "posterior": (posterior, _CHAINS),
        "sample_stats": (sample_stats, _CHAINS),
        "log_likelihood": (log_likelihood, _CHAINS),
        "prior": (prior, _CHAINS),
        "observed_data": (observed_data, ()),
        "constant_data": (constant_data, ()),
        "step_history": (step_history, ("step",)),
    }
    arviz = _import_arviz()
    labels = dict(coords or {})
    datasets = {
        name: _dataset(name, variables, leading, dims or {}, labels)
        for name, (variables, leading) in groups.items()
        if variables
    }
    _check_same_draws(datasets)
    return _container(arviz, datasets, _base_attrs() | _plain_attrs(attrs or {}))


def split_chains(draws: np.ndarray, chains: int) -> np.ndarray:
    """Cut iid draws (n, ...) into `chains` of equal length, (chains, n // chains, ...).

    Raises
    ------
    ArgumentError
        `chains` is not a positive divisor of n.
    """
    draws = np.asarray(draws)
    if chains < 1 or draws.ndim < 1 or len(draws) % chains:
        raise ArgumentError(f"chains must divide the number of draws, {draws.shape[:1]}, not {chains!r}.")
    return draws.reshape(chains, len(draws) // chains, *draws.shape[1:])


def _import_arviz() -> Any:
    try:
        return importlib.import_module("arviz")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "to_arviz needs ArviZ, which is not installed. Run `pip install arviz h5netcdf h5py`."
        ) from error


def _container(arviz: Any, datasets: Mapping[str, Any], attrs: dict[str, Any]) -> Any:
    """InferenceData up to ArviZ 0.x, DataTree from 1.0 on."""
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(attrs=attrs, **datasets)
    tree = importlib.import_module("xarray").DataTree.from_dict(dict(datasets))
    tree.attrs = attrs
    return tree


def _dataset(
    group: str,
    variables: Mapping[str, Any],
    leading: tuple[str, ...],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
) -> Any:
    """One group: every variable starts with the dimensions `leading`."""
    xarray = importlib.import_module("xarray")
    data: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    lengths: dict[str, int] = {}
    for name, value in variables.items():
        array = _plain_array(value)
        names = _dim_names(group, name, array, leading, dims)
        for dim, length in zip(names, array.shape, strict=True):
            if lengths.setdefault(dim, length) != length:
                raise ArgumentError(
                    f"{group}[{name!r}] has length {length} along {dim!r}, other variables {lengths[dim]}: "
                    f"it has shape {array.shape}."
                )
        data[name] = (names, array)
    for name in data:
        if name in lengths:
            raise ArgumentError(
                f"{group}[{name!r}] has the name of a dimension; dimensions are {tuple(lengths)}. Choose another name, "
                "by names= of the target where it is a coordinate's."
            )
    labels = {dim: _labels(dim, length, coords) for dim, length in lengths.items()}
    return xarray.Dataset(data, coords=labels, attrs=_base_attrs())


def _dim_names(
    group: str, name: str, array: np.ndarray, leading: tuple[str, ...], dims: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    where = f"{group}[{name!r}]"
    if "/" in name:
        raise ArgumentError(f"{where}: netCDF allows no slash in a name, rename the variable.")
    rest = array.ndim - len(leading)
    if rest < 0:
        raise ArgumentError(f"{where} must start with the dimensions {leading}, but has shape {array.shape}.")
    own = tuple(dims.get(name, (f"{name}_dim_{i}" for i in range(rest))))
    if len(own) != rest:
        raise ArgumentError(f"dims[{name!r}] must name {rest} dimensions of {where}, but has {own}.")
    return leading + own


def _labels(dim: str, length: int, coords: Mapping[str, Any]) -> np.ndarray:
    if dim not in coords:
        return np.arange(length) + (dim == "step")
    labels = _plain_array(coords[dim])
    if labels.shape != (length,):
        raise ArgumentError(f"coords[{dim!r}] must have shape ({length},), not {labels.shape}.")
    return labels


def _check_same_draws(datasets: Mapping[str, Any]) -> None:
    expected = {dim: datasets["posterior"].sizes[dim] for dim in _CHAINS} if "posterior" in datasets else {}
    if not expected:
        raise ArgumentError("posterior must hold at least one variable.")
    for group in ("sample_stats", "log_likelihood"):
        for dim, length in expected.items():
            if group in datasets and datasets[group].sizes[dim] != length:
                found = datasets[group].sizes[dim]
                raise ArgumentError(f"{group} has {found} {dim}s, posterior {length}: they must be of the same draws.")


def _plain_array(value: Any) -> np.ndarray:
    """Array of a type that netCDF can hold: None becomes NaN, half precision single, other objects text."""
    array = np.asarray(value)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype != object:
        return array
    flat = array.ravel().tolist()
    if all(item is None or isinstance(item, (bool, int, float, np.number)) for item in flat):
        return np.array([np.nan if item is None else float(item) for item in flat]).reshape(array.shape)
    return np.array(["" if item is None else str(item) for item in flat]).reshape(array.shape)


def _base_attrs() -> dict[str, Any]:
    attrs = {"created_at": datetime.now(UTC).isoformat(), "inference_library": "jkosampler"}
    with suppress(metadata.PackageNotFoundError):  # run from a checkout
        attrs["inference_library_version"] = metadata.version("jkosampler")
    return attrs


def _plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name): _plain_attr(value) for name, value in attrs.items()}


def _plain_attr(value: Any) -> Any:
    """Attribute that netCDF can hold: text, a number, an array of numbers or a list of texts; else JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size:
        return value.ravel()
    if isinstance(value, (list, tuple)) and value and _all_text(value):
        return list(value)
    if isinstance(value, (dict, list, tuple, np.ndarray)):
        return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, default=str)
    return str(value)


def _all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(item, str) for item in values)
