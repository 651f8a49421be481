"""What may know what (docs/design.md): imports go down the rows of the drawing, and some are forbidden altogether."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_imports import PACKAGE, Import, imports_of, sources

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
from rooms import DRAWING, ROOMS, arrows, drawing, room_of  # noqa: E402

TEXTS = sources()
AT_LOAD = {  # of other packages, what may be imported as a module of ours is loaded; all else is for functions
    "torch", "numpy", "scipy", "safetensors", "filelock", "tqdm", "sklearn",
}  # fmt: skip
# Estimators, their parameters and Bunches are scikit-learn's; who brings an energy, a map or a law needs none of it.
ESTIMATORS = {"sampler", "setting up", "files", "engines"}
# Not even for a type checker: a new energy, metric, map or law is one file.
KNOW_NO_ENGINE = ("energies", "metrics", "mobility", "maps", "laws", "potentials", "particles", "domains", "targets")


def violations(texts: dict[str, str]) -> Iterator[str]:
    """Sentences on imports that must not be."""
    found = imports_of(texts)
    for one in found:
        here, there = room_of(one.module), room_of(one.what)
        if here is None:
            continue
        if there is None:
            yield from foreign(one, here)
        elif one.when != "types" and here != there and ROOMS[here].row >= ROOMS[there].row:
            yield f"{one.module} imports {one.what}: {there} is not below {here} in docs/rooms.py"
        elif there == "engines" and here in KNOW_NO_ENGINE:
            yield f"{one.module} knows an engine, {one.what}"
        elif one.what == "jkosampler.cli" and one.module != "jkosampler.__main__":
            yield f"{one.module} imports the command line"
    for module in texts:
        here = room_of(module)
        if module == PACKAGE.name or (here is not None and ROOMS[here].only_numpy):
            heavy = sorted(name for name in reached(module, found) if name.split(".")[0] in ("torch", "sklearn"))
            if heavy:
                yield f"{module} must load without torch, and reaches {', '.join(heavy)}"
    cycle = first_cycle(found)
    if cycle:
        yield f"cycle of imports: {' -> '.join(cycle)}"


def foreign(one: Import, here: str) -> Iterator[str]:
    """Of a package that is not ours."""
    package = one.what.split(".")[0]
    if package in sys.stdlib_module_names or package == PACKAGE.name:
        return
    if one.when == "load" and package not in AT_LOAD:
        yield f"{one.module} imports {one.what} outside a function"
    if package == "torch" and ROOMS[here].only_numpy:
        yield f"{one.module} imports torch"
    if package == "sklearn" and here not in ESTIMATORS:
        yield f"{one.module} imports scikit-learn"


def with_parents(one: Import) -> set[str]:
    """What Python loads for an import: the packages around the module too, but for those that it is part of itself."""
    parts = one.what.split(".")
    names = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
    return {name for name in names if name == one.what or not f"{one.module}.".startswith(f"{name}.")}


def reached(module: str, found: list[Import]) -> set[str]:
    """All that is imported once a module is, by any call, of the package and of others.

    But not what is loaded when the package is asked for its public names.
    """
    whens = {True: ("load",), False: ("load", "call")}
    follow = [one for one in found if one.when in whens[one.module == PACKAGE.name]]
    seen, waiting = set[str](), {module}
    while waiting:
        seen |= waiting
        waiting = {name for one in follow if one.module in waiting for name in with_parents(one)} - seen
    return seen


def first_cycle(found: list[Import]) -> list[str]:
    """Modules that import each other as they are loaded, the first one again at the end."""
    loads: dict[str, set[str]] = {}
    for one in found:
        if one.when == "load":
            loads.setdefault(one.module, set()).update(with_parents(one))
    done: set[str] = set()

    def search(path: list[str]) -> list[str]:
        for name in sorted(loads.get(path[-1], ())):
            if name in path:
                return [*path[path.index(name) :], name]
            if name not in done and (cycle := search([*path, name])):
                return cycle
        done.add(path[-1])
        return []

    return next((cycle for name in sorted(loads) if name not in done and (cycle := search([name]))), [])


def test_the_package_keeps_to_the_arrows():
    assert list(violations(TEXTS)) == []


@pytest.mark.parametrize(
    ("module", "line", "says"),
    [
        ("energies.terms", "from jkosampler.engines import Lagrangian", "engines is not below energies"),
        ("maps.base", "def f():\n    from jkosampler.engines.base import State", "engines is not below maps"),
        ("laws.on_box", "if TYPE_CHECKING:\n    from jkosampler.engines import Engine", "knows an engine"),
        ("metrics", "from jkosampler import estimator", "sampler is not below metrics"),
        ("laws.elementary", "from jkosampler.targets import Target", "targets is not below laws"),
        ("diagnostics.psis", "import torch", "psis imports torch"),
        ("plotting", "def f():\n    from torch import Tensor", "plotting imports torch"),
        ("arviz_io", "import_module('torch.func')", "arviz_io imports torch"),
        ("errors", "import torch", "jkosampler.plotting must load without torch"),
        ("_point_functions", "from jkosampler import _inputs", "_point_functions must load without torch"),
        ("_plot_data", "from jkosampler._arguments import positive", "_plot_data must load without torch"),
        ("", "from jkosampler import laws", "jkosampler must load without torch"),
        ("_export", "import arviz", "imports arviz outside a function"),
        ("_cli_figures", "from matplotlib import pyplot", "outside a function"),
        ("targets.pymc", "import pymc", "imports pymc outside a function"),
        ("targets.numpyro", "class A:\n    import jax.numpy", "imports jax.numpy outside a function"),
        ("laws.foreign", "def f():\n    import sklearn.mixture", "laws.foreign imports scikit-learn"),
        ("_run", "from jkosampler.cli import main", "command line is not below sampler"),
        ("_cli_draws", "from jkosampler.cli import main", "imports the command line"),
        ("maps.straight", "from jkosampler.maps.composed import ComposedMap", None),
        ("maps.base", "from jkosampler.maps import AffineMap", "cycle of imports: jkosampler.maps ->"),
        ("engines.base", "from jkosampler.engines.trial import Trial", "cycle of imports"),
        ("engines.base", "def f():\n    from jkosampler.engines.trial import Trial", None),
        ("engines.base", "if TYPE_CHECKING:\n    from jkosampler.estimator import JKOSampler", None),
    ],
)
def test_a_wrong_import_is_seen(module, line, says):
    name = f"{PACKAGE.name}.{module}".rstrip(".")
    found = list(violations({**TEXTS, name: f"{TEXTS[name]}\n{line}\n"}))
    assert any(says in sentence for sentence in found) if says else not found, found


def test_every_file_is_in_the_list_of_rooms():
    """And every file that the list names is there. A folder's files stand below it."""
    listed = re.search(r"^## Rooms\n(.*?)^Tests mirror", (DOCS / "design.md").read_text(), re.DOTALL | re.MULTILINE)
    assert listed is not None
    names, folder = set(), PACKAGE
    for line in listed[1].splitlines():
        if re.match(r" {6}\w", line):
            first = line.split()[0]
            folder = PACKAGE / first if first.endswith("/") else PACKAGE
            names |= {folder / "__init__.py"}
        if line.startswith(" " * 6):
            names |= {folder / name for name in re.findall(r"\w+\.(?:py|html)\b", line)}
    assert names == {path for kind in ("*.py", "*.html") for path in PACKAGE.rglob(kind)}


def test_the_drawing_is_that_of_the_code():
    """`python docs/rooms.py` draws it anew."""
    assert DRAWING.read_text() == drawing(arrows(imports_of(TEXTS)))


def test_each_room_is_that_of_some_module():
    assert {room_of(module) for module in TEXTS} == {None, *ROOMS}
