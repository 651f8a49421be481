"""What holds of all hosts: their packages are imported when needed, and only then."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from jkosampler.errors import MissingDependencyError
from jkosampler.targets import from_numpyro, from_pymc


def test_hosts_are_not_imported_with_the_package() -> None:
    hosts = ["pymc", "pytensor", "numpyro", "jax", "bridgestan"]
    code = f"import sys, jkosampler.targets; print([name for name in {hosts} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_missing_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("jkosampler.targets.hosts.import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"from_pymc needs pymc, .*pip install 'jkosampler\[pymc\]'"):
        from_pymc(None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'jkosampler\[numpyro\]'"):
        from_numpyro(print)
