"""The command line: what goes to stdout and to files, what is said on stderr, and the exit codes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jkosampler import JKOSampler, __version__, domains, energies
from jkosampler.cli import main
from jkosampler.diagnostics import report_from_log_weights

MODULE = """
import torch
from jkosampler import targets


def gaussian(x):
    return -0.5 * x.square().sum(1)


def far(x):
    return -0.5 * (x - 4.0).square().sum(1)


def broken(x):
    raise RuntimeError("no solution")


named = targets.Target(
    lambda x: -x[:, 0] - 0.5 * x[:, 1].square(), names=["a scale", "mean"], support={"a scale": "positive"}
)
number = 3
"""
QUICK = ["--n-particles", "500", "--seed", "0", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module of log densities, and two saved samplers."""
    path = tmp_path_factory.mktemp("cli")
    (path / "cli_posterior.py").write_text(MODULE)
    before = os.getcwd()
    os.chdir(path)
    here = os.getcwd()  # without links
    try:
        assert main(["fit", "cli_posterior:gaussian", "--dim", "2", "--n-steps", "2", *QUICK]) == 0
        assert main(["fit", "cli_posterior:named", "--n-steps", "2", "--out", "named.safetensors", *QUICK]) == 0
        yield path
    finally:
        os.chdir(before)
        sys.path.remove(here)


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


# ------------------------------------------------------------------------------------------ the real command


def test_version_is_said_without_loading_torch():
    code = "import sys, jkosampler.cli as c\ntry: c.main(['--version'])\nfinally: print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["jkosampler", __version__, "False"]


def test_a_closed_pipe_ends_the_command_in_silence(folder):
    argv = [sys.executable, "-m", "jkosampler", "sample", "posterior.safetensors", "-n", "100000", "--quiet"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout.readline() == "x1,x2\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.fixture
def heeded_interrupts():
    """Interrupts are not ignored, as a process in the background may have inherited and would pass on."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.usefixtures("heeded_interrupts")
def test_an_interrupt_ends_with_130_and_one_line(folder):
    (folder / "cli_slow.py").write_text(
        "import pathlib, time\n"
        "def log_target(x):\n"
        "    pathlib.Path('called').touch()\n"
        "    time.sleep(0.05)\n"
        "    return -0.5 * x.square().sum(1)\n"
    )
    argv = [sys.executable, "-m", "jkosampler", "fit", "cli_slow:log_target", "--dim", "2", "--out", "s.safetensors"]
    with subprocess.Popen([*argv, "--quiet"], stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        deadline = time.monotonic() + 60
        while not (folder / "called").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "jkosampler: error: interrupted"
    assert "Traceback" not in said


# --------------------------------------------------------------------------------------------------- commands


def test_csv_has_the_names_and_all_digits(capsys):
    assert main(["sample", "named.safetensors", "-n", "5", "--seed", "1"]) == 0
    head, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert head == ["a scale", "mean"]
    drawn = JKOSampler.load("named.safetensors").sample(5, random_state=1)
    np.testing.assert_array_equal(np.array(rows, dtype=float), drawn)


def test_json_goes_to_a_file_by_its_ending(folder):
    assert main(["sample", "posterior.safetensors", "-n", "4", "--seed", "1", "--out", "draws.json"]) == 0
    found = json.loads((folder / "draws.json").read_text())
    assert found["names"] == ["x1", "x2"]
    assert np.shape(found["draws"]) == (4, 2)


@pytest.mark.parametrize("method", ["flow", "imh"])
def test_netcdf(folder, method):
    az = pytest.importorskip("arviz")
    pytest.importorskip("h5netcdf")
    target = ["--target", "cli_posterior:named", "--method", method]
    assert main(["sample", "named.safetensors", "-n", "30", *target, "--out", "draws.nc", "--quiet"]) == 0
    posterior = az.from_netcdf(str(folder / "draws.nc"), engine="h5netcdf")["posterior"]
    assert posterior["a scale"].shape == (1, 30)
    assert float(posterior["a scale"].min()) > 0


def test_without_seed_each_call_draws_others_and_says_its_seed(capsys):
    drawn = []
    for _ in range(2):
        assert main(["sample", "posterior.safetensors", "-n", "3"]) == 0
        drawn.append(capsys.readouterr())
    assert drawn[0].out != drawn[1].out
    seed = drawn[0].err.split()[-1]
    assert main(["sample", "posterior.safetensors", "-n", "3", "--seed", seed]) == 0
    assert capsys.readouterr().out == drawn[0].out


@pytest.mark.parametrize(("spread", "code"), [(0.0, 0), (0.8, 3), (5.0, 4)])
def test_the_exit_code_of_diagnose_is_the_verdict(spread, code, monkeypatch, capsys):
    log_weights = spread * np.random.default_rng(0).standard_normal(1000)
    report = report_from_log_weights(log_weights, stationarity=0.0, converged=True, dim=2)
    monkeypatch.setattr(JKOSampler, "diagnose", lambda self, n: report)
    argv = ["diagnose", "posterior.safetensors", "--target", "cli_posterior:gaussian"]
    assert main(argv) == code
    assert capsys.readouterr().out == f"{report}\n"
    assert main([*argv, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["pareto_k"] == ("-inf" if spread == 0.0 else report.pareto_k)


def test_another_target_than_that_of_the_fit_is_an_error(capsys):
    assert main(["diagnose", "posterior.safetensors", "--target", "cli_posterior:far"]) == 1
    assert capsys.readouterr().err.startswith("jkosampler: error: ")


def test_diagnose_as_json_and_as_a_page(folder, capsys):
    argv = ["diagnose", "named.safetensors", "--target", "cli_posterior:named", "-n", "400"]
    main([*argv, "--json", "--html", "report.html"])
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 400
    assert found["verdict"].startswith("Verdict: ")
    assert "record" not in found
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "a scale" in page
    assert "log_target" in page


@pytest.mark.parametrize("kind", ["pairs", "evolution", "energy"])
def test_plot(folder, kind):
    assert main(["plot", "posterior.safetensors", "--kind", kind, "--out", f"{kind}.png", "-n", "200"]) == 0
    assert (folder / f"{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_a_saved_field_is_drawn_without_its_start(folder):
    sampler = JKOSampler(
        energy=energies.Dirichlet(0.1),
        metric="l2",
        domain=domains.Box(0, 1, dim=1),
        initial=lambda x: x[:, 0].square(),
        step_size=0.01,
        n_steps=1,
        random_state=0,
        progress=False,
    )
    sampler.fit().save("field.safetensors")
    assert main(["plot", "field.safetensors", "--out", "field.svg", "--quiet"]) == 0
    assert "<svg" in (folder / "field.svg").read_text(encoding="utf-8")
    assert main(["plot", "field.safetensors", "--out", "field.svg", "--kind", "pairs"]) == 2
    assert main(["sample", "field.safetensors"]) == 1


def test_fit_goes_on_from_a_checkpoint():
    argv = ["fit", "cli_posterior:far", "--dim", "1", "--initial-std", "2", "--out", "far.safetensors"]
    argv += ["--checkpoint", "run.safetensors", *QUICK]
    assert main([*argv, "--n-steps", "1"]) == 0
    assert JKOSampler.load("far.safetensors").n_steps_ == 1
    assert main([*argv, "--n-steps", "2"]) == 0
    whole = JKOSampler.load("far.safetensors")
    assert main([*argv, "--n-steps", "2", "--no-resume"]) == 0
    anew = JKOSampler.load("far.safetensors")
    np.testing.assert_array_equal(whole.sample(5, random_state=0), anew.sample(5, random_state=0))
    x = np.zeros((1, 1))
    np.testing.assert_allclose(whole.density(x, t=0.0), 1.0 / (2.0 * np.sqrt(2.0 * np.pi)))  # --initial-std 2


def test_an_interrupted_fit_is_saved(monkeypatch, capsys):
    def one_step(sampler):
        next(sampler.steps())
        raise KeyboardInterrupt

    monkeypatch.setattr(JKOSampler, "fit", one_step)
    assert main(["fit", "cli_posterior:far", "--dim", "2", "--out", "part.safetensors", *QUICK]) == 130
    assert "the steps made so far, 1, are saved to part.safetensors" in capsys.readouterr().err
    assert JKOSampler.load("part.safetensors").n_steps_ == 1


def test_progress_and_notes_go_to_stderr(capsys):
    assert main(["fit", "cli_posterior:gaussian", "--dim", "1", "--n-steps", "1", "--n-particles", "500"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "saved to posterior.safetensors" in said.err


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ("fit cli_posterior:broken --dim 2", 1, "no solution"),
        ("fit cli_posterior:gaussian", 2, "--dim"),
        ("fit cli_posterior:nothing --dim 2", 2, "no attribute 'nothing'"),
        ("fit cli_posterior:number --dim 2", 2, "is int, not a log density"),
        ("fit cli_posterior --dim 2", 2, "MODULE:NAME"),
        ("fit cli_posterior.py:gaussian --dim 2", 2, "without .py"),
        ("fit no_such_module:f --dim 2", 2, "no module 'no_such_module'"),
        ("fit cli_posterior:gaussian --dim -2", 2, "dim"),
        ("fit cli_posterior:gaussian --dim 2 --initial-std 0", 2, "--initial-std must be positive"),
        ("fit cli_posterior:gaussian --dim 2 --out none/fit.safetensors", 2, "make it first"),
        ("sample none.safetensors", 1, "is not there"),
        ("sample cli_posterior.py", 1, "not a file of jkosampler"),
        ("sample named.safetensors --method snis", 2, "--target"),
        ("sample named.safetensors --format netcdf", 2, "--out"),
        ("sample named.safetensors --out draws.xyz", 2, "--format"),
        ("plot named.safetensors --out figure", 2, "ending"),
        ("plot named.safetensors --kind fields --out figure.png", 2, "--kind fields"),
    ],
)
def test_errors_are_one_line_on_stderr(argv, code, words, capsys):
    assert main([*argv.split(), "--quiet"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.startswith("jkosampler: error: ")
    assert len(said.err.splitlines()) == 1


def test_debug_shows_the_traceback(capsys):
    assert main(["fit", "cli_posterior:broken", "--dim", "2", "--quiet", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_module_itself_is_no_wrong_usage(folder, capsys):
    (folder / "cli_needs.py").write_text("import no_such_package\n")
    assert main(["fit", "cli_needs:f", "--dim", "2"]) == 1
    assert "no_such_package" in capsys.readouterr().err


def test_missing_netcdf_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("jkosampler._cli_draws.find_spec", lambda name: None)
    assert main(["sample", "named.safetensors", "--out", "draws.nc"]) == 1
    assert "jkosampler[netcdf]" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["swim"], ["demo", "swim"], ["sample"], ["sample", "f", "-n", "many"]])
def test_wrong_usage_is_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage:")


@pytest.mark.parametrize("name", ["fit", "sample", "diagnose", "plot", "demo"])
def test_help_has_examples(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"examples:\n  jkosampler {name} " in capsys.readouterr().out
