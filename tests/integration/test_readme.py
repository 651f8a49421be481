"""The README's code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from jkosampler import JKOSampler

README = Path(__file__).parents[2] / "README.md"


def test_the_examples_run(capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    assert "from_pymc(model)" in blocks.pop(3)  # which tests/targets/test_pymc.py does, where PyMC is installed
    names: dict[str, Any] = {}
    for block in blocks[:2]:
        exec(compile(block, "README.md", "exec"), names)
        sampler = names["sampler"]
        assert isinstance(sampler, JKOSampler)
        assert sampler.converged_
        assert capsys.readouterr().out.count("Verdict: trust these draws") == 1
    assert names["draws"].shape == (4000, 2)
    assert names["log_density"].shape == (4000,)
    exec(compile(blocks[2], "README.md", "exec"), names)
    assert names["sampler"].diagnose().trustworthy
    assert list(names["summary"].index) == ["mean", "sd"]
    assert 'class="verdict trust"' in (tmp_path / "report.html").read_text()
    exec(compile(blocks[3], "README.md", "exec"), names)
    assert names["u"].shape == (1000,)
    assert all(record.descends for record in names["ring"].history_)
