"""Whether the tests notice faults in the formulas of the package, those of `faults.py`.

    python tests/mutations.py [word of the sentence ...]

copies package and tests into a temporary folder, puts one fault at a time into the copy, runs the named test files
there, and prints which test has noticed it. A fault that survives is a formula without a test: write it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]


def occurrences(fault: Fault, root: Path = ROOT) -> int:
    """How often the text to replace is found in the file: once, or the fault is not what it was."""
    return (root / "jkosampler" / fault.file).read_text(encoding="utf-8").count(fault.old)


def run_tests(root: Path, tests: tuple[str, ...]) -> str | None:
    """The first test that fails in the copy at `root`, None if all pass."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    imported = [sys.executable, "-c", "import jkosampler; print(jkosampler.__file__)"]
    found = subprocess.run(imported, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout
    if root not in Path(found.strip()).resolve().parents:
        raise RuntimeError(f"not the copy is imported, but {found.strip()}")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    command += [f"tests/{test}" for test in tests]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1 and failed is None):
        raise RuntimeError(f"pytest could not run: {done.stdout}{done.stderr}")
    return failed.group(1) if failed else None


def main(words: list[str]) -> int:
    """Try the faults whose sentence has one of the words, or all; 1 if one survives."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.sentence for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        leave = shutil.ignore_patterns("__pycache__")
        for part in ("jkosampler", "tests"):
            shutil.copytree(ROOT / part, root / part, ignore=leave)
        shutil.copy(ROOT / "pyproject.toml", root)
        broken = run_tests(root, tuple(sorted({test for fault in chosen for test in fault.tests})))
        if broken is not None:
            print(f"fails without any fault: {broken}")
            return 1
        for fault in chosen:
            path = root / "jkosampler" / fault.file
            sound = path.read_text(encoding="utf-8")
            if occurrences(fault) != 1:
                caught: str | None = None
                verdict = f"NOT FOUND ONCE in {fault.file}: {fault.old!r}"
            else:
                path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
                caught = run_tests(root, fault.tests)
                path.write_text(sound, encoding="utf-8")
                verdict = caught or "SURVIVED"
            survivors += caught is None
            print(f"{fault.sentence:<72}  {verdict}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults are caught")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
