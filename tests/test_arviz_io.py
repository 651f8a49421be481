"""Export to ArviZ, in whichever generation is installed: groups, labels, summary, plots and netCDF."""

from __future__ import annotations

import importlib
import warnings

import matplotlib
import numpy as np
import pytest

from jkosampler.arviz_io import split_chains, to_arviz
from jkosampler.errors import ArgumentError, MissingDependencyError

matplotlib.use("Agg")

with warnings.catch_warnings():
    # ArviZ 0.23 announces its refactoring at import; what it and matplotlib deprecate is not ours.
    warnings.simplefilter("ignore")
    az = pytest.importorskip("arviz")

pytestmark = pytest.mark.filterwarnings("default")
GENERATION = min(int(az.__version__.split(".")[0]), 1)
CHAINS, DRAWS, STEPS = 4, 250, 6


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(CHAINS, DRAWS, 3)) + np.array([1.0, 2.0, 3.0])
    sigma = rng.gamma(4.0, size=(CHAINS, DRAWS))
    return {
        "posterior": {"theta": theta, "sigma": sigma},
        "sample_stats": {name: rng.normal(size=(CHAINS, DRAWS)) for name in ("lp", "log_q", "log_weight")},
        "observed_data": {"y": np.array([27.5, 79.7])},
        "constant_data": {"noise_std": 0.1, "names": ["left", "right"]},
        "log_likelihood": {"y": rng.normal(size=(CHAINS, DRAWS, 2))},
        "prior": {"theta": rng.normal(size=(1, 500, 3)), "sigma": rng.gamma(4.0, size=(1, 500))},
        "step_history": {
            "time": np.cumsum(np.full(STEPS, 0.1)),
            "n_iterations": np.arange(STEPS),
            "accepted": np.ones(STEPS, dtype=bool),
            "residual": np.array([None, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=object),
            "stage": ["affine"] * 2 + ["flow"] * 4,
        },
        "dims": {"theta": ["component"], "y": ["observation"]},
        "coords": {"component": ["a", "b", "c"]},
        "attrs": {
            "converged": True,
            "step_size": None,
            "order": 1,
            "log_evidence": np.float64(-60.6),
            "engine": {"width": 64},
            "warnings": [],
            "names": ["a", "b"],
            "times": np.array([0.0, 0.1]),
        },
    }


@pytest.fixture
def close_figures():
    yield
    importlib.import_module("matplotlib.pyplot").close("all")


def groups_of(idata):
    return set(idata.groups()) if GENERATION == 0 else {name for name in idata.children}


def check_contents(idata, parts):
    assert groups_of(idata) == {
        "posterior",
        "sample_stats",
        "observed_data",
        "constant_data",
        "log_likelihood",
        "prior",
        "step_history",
    }
    for group in ("posterior", "sample_stats", "log_likelihood", "prior"):
        for name, values in parts[group].items():
            assert idata[group][name].dims[:2] == ("chain", "draw")
            np.testing.assert_allclose(idata[group][name].values, values)
    np.testing.assert_allclose(idata["observed_data"]["y"].values, [27.5, 79.7])
    assert idata["observed_data"]["y"].dims == ("observation",)
    assert idata["log_likelihood"]["y"].dims[2:] == ("observation",)
    assert idata["posterior"]["theta"].dims[2:] == ("component",)
    assert list(idata["posterior"]["component"].values) == ["a", "b", "c"]
    assert float(idata["constant_data"]["noise_std"]) == 0.1
    assert list(idata["constant_data"]["names"].values) == ["left", "right"]
    history = idata["step_history"]
    assert all(history[name].dims == ("step",) for name in parts["step_history"])
    assert list(history["step"].values) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(history["time"].values, parts["step_history"]["time"])
    np.testing.assert_allclose(history["residual"].values, [np.nan, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert list(history["stage"].values) == parts["step_history"]["stage"]
    assert history["accepted"].values.all()


def check_attrs(attrs):
    assert attrs["converged"] == 1
    assert attrs["step_size"] == "None"
    assert attrs["order"] == 1
    assert attrs["log_evidence"] == -60.6
    assert attrs["engine"] == '{"width": 64}'
    assert attrs["warnings"] == "[]"
    assert list(attrs["names"]) == ["a", "b"]
    np.testing.assert_allclose(attrs["times"], [0.0, 0.1])
    assert attrs["inference_library"] == "jkosampler"


def test_type_and_contents(parts):
    idata = to_arviz(**parts)
    expected = az.InferenceData if GENERATION == 0 else importlib.import_module("xarray").DataTree
    assert isinstance(idata, expected)
    check_contents(idata, parts)
    check_attrs(idata.attrs)


def test_netcdf_round_trip(parts, tmp_path):
    path = tmp_path / "posterior.nc"
    to_arviz(**parts).to_netcdf(str(path), engine="h5netcdf")
    back = az.from_netcdf(str(path), engine="h5netcdf")
    check_contents(back, parts)
    check_attrs(back.attrs)
    back.close()


def test_summary(parts):
    table = az.summary(to_arviz(**parts))
    assert list(table.index) == ["theta[a]", "theta[b]", "theta[c]", "sigma"]
    means = table["mean"].astype(float)
    # three significant digits are shown; 1000 draws of unit variance
    np.testing.assert_allclose(means[:3], [1.0, 2.0, 3.0], atol=4 / np.sqrt(1000) + 0.01)


def test_plots(parts, close_figures):
    idata = to_arviz(**parts)
    az.plot_pair(idata, var_names=["theta", "sigma"])
    if GENERATION == 0:
        az.plot_dist(idata["posterior"]["sigma"].values)
        az.plot_posterior(idata, var_names=["theta"])
    else:
        az.plot_dist(idata, var_names=["theta", "sigma"])


def test_loo_reads_the_log_likelihood(parts):
    assert np.isfinite(az.loo(to_arviz(**parts), var_name="y").se)


def test_only_a_posterior():
    idata = to_arviz(posterior={"x": np.zeros((2, 10, 3))}, observed_data={}, prior=None)
    assert groups_of(idata) == {"posterior"}
    assert idata["posterior"]["x"].dims == ("chain", "draw", "x_dim_0")
    assert list(idata["posterior"]["x_dim_0"].values) == [0, 1, 2]


def test_half_precision_is_written_as_single(tmp_path):
    idata = to_arviz(posterior={"x": np.ones((1, 5), dtype=np.float16)})
    assert idata["posterior"]["x"].dtype == np.float32
    idata.to_netcdf(str(tmp_path / "half.nc"), engine="h5netcdf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"posterior": {}}, "posterior must hold"),
        ({"posterior": {"x": np.zeros(5)}}, r"posterior\['x'\] must start with"),
        (
            {"posterior": {"u": np.zeros((2, 5)), "v": np.zeros((2, 6))}},
            r"posterior\['v'\] has length 6 along 'draw'",
        ),
        ({"posterior": {"a/b": np.zeros((2, 5))}}, "slash"),
        ({"posterior": {"chain": np.zeros((2, 5))}}, r"posterior\['chain'\] has the name of a dimension.*names="),
        ({"posterior": {"draw": np.zeros((2, 5)), "x": np.zeros((2, 5))}}, r"posterior\['draw'\].*names="),
        ({"posterior": {"u": np.zeros((2, 5, 3)), "u_dim_0": np.zeros((2, 5))}}, r"posterior\['u_dim_0'\].*names="),
        ({"step_history": {"step": np.zeros(3)}}, r"step_history\['step'\]"),
        ({"sample_stats": {"lp": np.zeros((4, 9))}}, "sample_stats has 9 draws, posterior 250"),
        (
            {"step_history": {"a": np.zeros(3), "b": np.zeros(4)}},
            r"step_history\['b'\] has length 4 along 'step'",
        ),
        ({"dims": {"theta": ["one", "two"]}}, r"dims\['theta'\] must name 1"),
        ({"coords": {"component": ["a"]}}, r"coords\['component'\] must have shape \(3,\)"),
    ],
)
def test_bad_arguments_are_named(parts, change, message):
    with pytest.raises(ArgumentError, match=message):
        to_arviz(**(parts | change))


def test_missing_arviz_says_how_to_install_it(parts, monkeypatch):
    real = importlib.import_module

    def absent(name, *args):
        if name == "arviz":
            raise ModuleNotFoundError("No module named 'arviz'", name="arviz")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingDependencyError, match="pip install arviz"):
        to_arviz(**parts)
    assert issubclass(MissingDependencyError, ImportError)


def test_split_chains_keeps_the_order_of_draws():
    draws = np.arange(24).reshape(12, 2)
    chains = split_chains(draws, 3)
    assert chains.shape == (3, 4, 2)
    np.testing.assert_array_equal(chains[1], draws[4:8])
    assert split_chains(np.arange(6), 2).shape == (2, 3)


@pytest.mark.parametrize("chains", [0, -1, 5])
def test_split_chains_needs_a_divisor(chains):
    with pytest.raises(ArgumentError, match="chains"):
        split_chains(np.zeros((12, 2)), chains)
