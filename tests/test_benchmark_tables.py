"""Tables of benchmarks are those of the figures that are kept beside them, and the README quotes them rightly."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from tables import SCRIPTS, TABLES, tables  # noqa: E402

SAMPLERS = json.loads((TABLES / "samplers.json").read_text())
TARGETS = {  # of the README's rows
    "kidiq, regression": "kidiq",
    "eight schools, non-centred": "eight_schools_noncentered",
    "Gaussian of condition 10^6": "gaussian100",
    "eight modes on a circle": "shifted8modes",
    "funnel": "funnel10",
    "funnel, d = 10": "funnel10",
    "many wells, 2^16 modes": "manywell32",
    "fifty modes": "gmm50",
    "ten bent dimensions": "bananas10",
}
MEASURES = {  # of the README's columns
    "KL(q‖p)": "KL",
    "log evidence, error": "log evidence error",
    "energy distance (two exact samples)": "energy distance",
    "CPU s": "CPU seconds of the fit",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_tables_are_what_the_script_makes_of_its_figures(name):
    """`python benchmarks/tables.py` writes them anew."""
    for file, text in tables(name).items():
        assert file.read_text() == text, file


def test_every_table_has_its_figures():
    files = {file for name in SCRIPTS for file in tables(name)}
    assert files == set(TABLES.glob("*.md"))


def rounds_to(quoted: str, value: float) -> bool:
    """Whether a number with as many digits as `quoted` has is that one."""
    decimals = len(quoted.partition(".")[2])
    return abs(float(quoted) - value) <= 0.5 * 10.0**-decimals * (1 + 1e-9)


def worst(experiment: str, what: str) -> dict[str, Any]:
    found = [one for one in SAMPLERS if (one["experiment"], one["what"]) == (experiment, what)]
    return max(found, key=lambda one: one["value"])


def readme_tables() -> list[list[dict[str, str]]]:
    """The tables between the marks for rows of `samplers.md`: rows as cells by the names of their columns."""
    part = re.search(r"<!-- samplers starts.*?<!-- samplers ends", (ROOT / "README.md").read_text(), re.DOTALL)
    assert part is not None
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", part[0], re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def test_the_readme_quotes_the_worst_seed():
    rows, _ = readme_tables()
    assert len(rows) >= 5
    for row in rows:
        name = TARGETS[row["target"]]
        for column, what in MEASURES.items():
            if not row[column]:
                continue
            value, *exact = re.findall(r"[\d.]+", row[column])
            record = worst(name, what)
            assert rounds_to(value, record["value"]), (row, column, record["value"])
            if exact:
                assert rounds_to(exact[0], float(record["note"].split()[-1])), (row, column, record["note"])
        verdicts = [one["value"] for one in SAMPLERS if one["experiment"] == name and "verdict" in one["what"]]
        assert row["trusted by its verdict"] == f"{sum(verdicts):.0f} of {len(verdicts)}", row


def test_the_readme_quotes_other_samplers():
    _, rows = readme_tables()
    for row in rows:
        name = f"peers-{TARGETS[row['target']]}"
        for column, cell in row.items():
            if column == "target":
                continue
            record = worst(name, f"energy distance of {column}")
            value, *seconds = re.findall(r"[\d.]+", cell)
            assert rounds_to(value, record["value"]), (row, column, record["value"])
            assert all(rounds_to(number, record["seconds"]) for number in seconds), (row, column, record["seconds"])


@pytest.mark.parametrize(
    ("quoted", "value", "agrees"), [("0.0018", 0.00182, 1), ("0.0018", 0.00186, 0), ("15", 14.6, 1)]
)
def test_rounding(quoted, value, agrees):
    assert rounds_to(quoted, value) == bool(agrees)
