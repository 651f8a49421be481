"""Fits by two processes: they agree with each other and with one process, and an error of one ends both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jkosampler._distributed import team

HERE = Path(__file__).parent
SCRIPT = HERE / "distributed_fits.py"


def run(folder: Path, *scenarios: str, processes: int = 2) -> list[dict[str, Any]]:
    """What each rank has written down."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*torchrun, str(SCRIPT), str(folder), *scenarios], env=environment, timeout=300, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:6000]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def test_without_a_group_there_is_no_team() -> None:
    assert team() is None


@pytest.mark.slow
def test_two_processes_agree_and_errors_of_one_end_both(tmp_path: Path) -> None:
    first, second = run(tmp_path, "short", "black_box", "failing", "nan", "unlike")
    assert first.pop("rounds") > 20
    assert second.pop("rounds") == 0  # who follows counts none
    assert first == second
    assert first["short"]["records"] == 2
    assert first["short"]["steps"] == 3
    # exact: precision [[1 + 2/.09, 1/.09], [1/.09, 1 + 1/.09]], right side [1.5/.09, 1/.09]; 5 sd of the mean of 1000
    assert first["black_box"]["mean"] == pytest.approx([0.4968, 0.4616], abs=0.06)
    for rank in (0, 1):
        assert first["failing"][f"{rank} ModelError"] == ["ModelError", "the solver diverged"]
        assert first["failing"][f"{rank} KeyboardInterrupt"][0] == "KeyboardInterrupt"
    assert first["nan"]["kind"] == "TargetValueError"
    unlike = first["unlike"]
    assert {name: told["kind"] for name, told in unlike.items()} == dict.fromkeys(unlike, "ArgumentError")
    assert "rank 1 asks for" in unlike["dim"]["text"]
    assert "n_steps" in unlike["argument"]["text"]
    assert "rank 1 asks for a step, rank 0 for diagnose" in unlike["call"]["text"]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    first, second = run(tmp_path, "whole")
    (alone,) = run(tmp_path / "one", "whole", processes=1)
    assert first["whole"] == second["whole"]
    assert alone["rounds"] == 0
    two, one = first["whole"], alone["whole"]
    # the evidence of 4000 weights, whose standard error is below 1e-3 here; means of 1000 draws each: five of theirs
    assert two["log_evidence"] == pytest.approx(one["log_evidence"], abs=5e-3)
    for a, b, sd in zip(two["mean"], one["mean"], one["sd"], strict=True):
        assert abs(a - b) < 5 * sd * (2 / 1000) ** 0.5
    assert two["sd"] == pytest.approx(one["sd"], rel=5 * 1000**-0.5)


@pytest.mark.slow
def test_a_process_that_has_ended_is_an_error_and_no_wait(tmp_path: Path) -> None:
    first, _ = run(tmp_path, "gone")
    assert first["gone"]["kind"] == "ResourceError"
    assert "diagnose() too" in first["gone"]["text"]
