"""`jkosampler demo`: which files it writes."""

from __future__ import annotations

import pytest

from jkosampler.cli import main

FILES = {
    "elliptic": {"evolution.png", "contours.png", "pairs.png", "report.html", "draws.nc"},
    "gaussians": {"evolution.png", "energy.png", "report.html", "draws.nc"},
    "porous-medium": {"evolution.png", "energy.png", "profile.png", "draws.nc"},
    "allen-cahn": {"fields.png", "energy.png"},
}


def written(name, folder, *options):
    pytest.importorskip("h5netcdf")
    assert main(["demo", name, "--out", str(folder / "made"), "--quiet", *options]) == 0
    return {path.name for path in (folder / "made").iterdir()}


@pytest.mark.parametrize("name", ["porous-medium", pytest.param("elliptic", marks=pytest.mark.slow)])
def test_a_quick_demo_writes_its_files(name, tmp_path):
    assert written(name, tmp_path, "--quick") == FILES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_demo_writes_its_files(name, tmp_path, capsys):
    assert written(name, tmp_path) == FILES[name]
    assert ("Verdict: " in capsys.readouterr().out) == ("report.html" in FILES[name])


def test_without_the_netcdf_extra_draws_are_csv(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jkosampler._cli_draws.find_spec", lambda name: None)
    assert main(["demo", "porous-medium", "--quick", "--quiet", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "draws.csv").read_text().splitlines()[0] == "x1,x2"
    assert "jkosampler[netcdf]" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["demo", "elliptic", "--out", str(tmp_path / "file" / "made")]) == 1
    assert "can't be made" in capsys.readouterr().err
