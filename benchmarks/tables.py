"""The tables of docs/benchmarks, each from the figures beside it: nothing is measured.

    python benchmarks/tables.py

The figures of NAME.json are those that `benchmarks/NAME.py --json` has kept, and NAME.md is what that script makes of
them; other tables from the same figures are its `more_tables`. All are written anew, for whoever has changed figures or
a script. `tests/test_benchmark_tables.py` fails where they differ.
"""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
TABLES = HERE.parent / "docs" / "benchmarks"
SCRIPTS = (
    "deep_jko", "emulator", "ensemble_kalman", "minimizing_movement", "samplers", "scale_out", "step_cost", "verdict",
)  # fmt: skip


def script(name: str) -> ModuleType:
    """The module of `benchmarks/NAME.py`, beside which there may be a package of the same name."""
    spec = spec_from_file_location(f"benchmark_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tables(name: str) -> dict[Path, str]:
    """What is to stand in which file, by the figures of one script."""
    figures = json.loads((TABLES / f"{name}.json").read_text())
    module = script(name)
    makers = {f"{name}.md": module.markdown, **getattr(module, "more_tables", {})}
    return {TABLES / file: make(figures) for file, make in makers.items()}


if __name__ == "__main__":
    for name in SCRIPTS:
        for file, text in tables(name).items():
            if not file.exists() or file.read_text() != text:
                file.write_text(text)
                print(f"{file.name} is written anew", file=sys.stderr)
