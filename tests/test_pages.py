"""What the pages show runs as it stands there: `docs/how_to`, docstrings, the README's commands.

The README's Python is that of `integration/test_readme.py`.
"""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

import jkosampler
from jkosampler.errors import JKOSamplerError

ROOT = Path(jkosampler.__file__).parents[1]
HOW_TO = ROOT / "docs" / "how_to"
TROUBLES = (HOW_TO / "troubleshooting.md").read_text(encoding="utf-8")
PACKAGE = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "jkosampler").rglob("*.py"))}


def document(path: Path) -> Document:
    return Sybil([PythonCodeBlockParser()], path=str(path.parent)).parse(path)


def has_examples(path: Path) -> bool:
    return any(">>> " in line and "+SKIP" not in line for line in PACKAGE[path].splitlines())


@pytest.mark.parametrize("page", ["checkpoints", "choosing", "costly", "posterior"])
def test_how_to(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in document(HOW_TO / f"{page}.md").examples():
        example.evaluate()


@pytest.mark.parametrize("path", [path for path in PACKAGE if has_examples(path)], ids=lambda path: path.stem)
def test_docstrings(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    failed, tried = doctest.testmod(module)
    assert not failed
    assert tried


@pytest.mark.slow
def test_the_commands_of_the_readme(tmp_path):
    (tmp_path / "posterior.py").write_text("def log_target(x):\n    return -0.5 * (x - 1.0).square().sum(dim=1)\n")
    commands = re.findall(
        r"^    jkosampler (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert len(commands) == 5
    for command in commands:
        options = shlex.split(command, comments=True)
        subprocess.run([sys.executable, "-m", "jkosampler", *options], cwd=tmp_path, check=True, timeout=600)
    assert {"draws.csv", "jkosampler-elliptic", "pairs.png", "posterior.safetensors", "report.html"} <= {
        path.name for path in tmp_path.iterdir()
    }


def kinds(error: type[JKOSamplerError]) -> set[type[JKOSamplerError]]:
    return {error}.union(*map(kinds, error.__subclasses__()))


def test_each_error_is_explained():
    unsaid = {kind.__name__ for kind in kinds(JKOSamplerError) if f"`{kind.__name__}`" not in TROUBLES}
    assert unsaid == {"PointsError"}  # what those at points share


@pytest.mark.parametrize(
    "words",
    [
        "trust these draws",
        "for means and quantiles",
        "the tail of the weights is too heavy for",
        "of them are worth only",
        "so that they may miss part of the target",
        "they lack mass that was seen elsewhere",
        "the fitted law folds",
        "unweighted means may be off by about",
        "the fit has not converged",
        "the flow still moves",
        "a few draws decide the stationarity",
        "the law's density is undefined at",
    ],
)
def test_each_sentence_of_a_verdict_is_explained(words):
    assert words in PACKAGE[ROOT / "jkosampler" / "diagnostics" / "report.py"]
    assert words in " ".join(TROUBLES.lower().split())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("_run.py", "the fit has not converged in"),
        ("_setup.py", "the density of the starting particles X"),
        ("_saved_fit.py", "belongs to a fit with other parameters"),
        ("_saved_fit.py", "belongs to another target"),
        ("checkpoint.py", "another fit is writing to it"),
        ("checkpoint.py", "is damaged, or not a file of jkosampler"),
        ("checkpoint.py", "has schema"),
        ("engines/trial.py", "the particles have escaped or collapsed"),
        ("engines/field_step.py", "a step has no minimum"),
        ("targets/evaluation.py", "does not depend on x for torch"),
        ("targets/base.py", "The dimension is unknown"),
    ],
)
def test_words_of_messages_are_those_of_the_code(module, words):
    said = " ".join(re.sub(r'"\s*f?"', "", PACKAGE[ROOT / "jkosampler" / module]).split())
    assert words in said
    assert words.lower() in " ".join(TROUBLES.lower().split())
