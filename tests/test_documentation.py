"""The pages in `docs` against the package: every public name, every formula's module and test, the citation."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from importlib import import_module
from inspect import isclass, isfunction, ismodule
from pathlib import Path

import pytest

import jkosampler

ROOT = Path(jkosampler.__file__).parents[1]
# what a fit is made of, and no user or extension needs by name
INTERNAL = {"checkpoint", "cli", "flow", "particles", "tangent", "walled_potential"}


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@cache
def documented() -> frozenset[int]:
    """Identities of the objects that the API page shows."""
    found = {id(getattr(jkosampler, name)) for name in re.findall(r"autoclass:: jkosampler\.(\w+)", page("api.md"))}
    for block in re.findall(r"automodule:: .*(?:\n +:.*)*", page("api.md")):
        module = import_module(block.split()[1])
        excluded = re.findall(r"[\w]+", "".join(re.findall(r":exclude-members:(.*)", block)))
        found |= {id(getattr(module, name)) for name in module.__all__ if name not in excluded}
    return frozenset(found)


def public_modules() -> list[str]:
    names = {path.stem for path in (ROOT / "jkosampler").iterdir() if path.suffix == ".py" or path.is_dir()}
    return sorted(name for name in names if not name.startswith("_") and name not in INTERNAL)


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_is_in_the_api_and_says_what_it_is(name: str) -> None:
    module = import_module(f"jkosampler.{name}")
    assert module.__doc__
    objects = {key: getattr(module, key) for key in module.__all__}
    objects = {key: value for key, value in objects.items() if isclass(value) or isfunction(value)}
    assert objects
    assert [key for key, value in objects.items() if not value.__doc__] == []
    assert [key for key, value in objects.items() if id(value) not in documented()] == []


def test_what_the_package_exports_is_in_the_api() -> None:
    modules = [name for name in jkosampler.__all__ if ismodule(getattr(jkosampler, name))]
    assert set(modules) <= set(public_modules())
    assert set(jkosampler.__all__) - set(modules) == {"JKOSampler", "__version__"}
    assert id(jkosampler.JKOSampler) in documented()


@cache
def names_of_tests(path: Path) -> str:
    """The names of a file's tests and of their classes, as `pytest -k` sees them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return "\n".join(name for name in names if name.lower().startswith("test"))


def test_formulas_name_modules_and_tests_that_exist() -> None:
    references = re.findall(r"`([\w/]+\.py)(?: -k (\w+))?`", page("mathematics.md"))
    assert len(references) > 100
    wrong = []
    for file, word in references:
        is_test = Path(file).name.startswith("test_")
        path = ROOT / ("tests" if is_test else "jkosampler") / file
        known = path.is_file() and is_test == bool(word)
        if not known or (word and word.lower() not in names_of_tests(path).lower()):
            wrong.append((file, word))
    assert wrong == []


def test_mathematics_is_balanced() -> None:
    text = re.sub(r"`[^`]*`", "", page("mathematics.md"))
    displays = re.findall(r"^\$\$\n(.*?)\n\$\$$", text, flags=re.DOTALL | re.MULTILINE)
    assert text.count("$$") == 2 * len(displays)
    inline = re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL))
    for formula in displays + inline:
        assert formula.replace(r"\{", "").count("{") == formula.replace(r"\}", "").count("}"), formula
        assert formula.count(r"\left") - formula.count(r"\leftarrow") == formula.count(r"\right"), formula
        assert "\n\n" not in formula


def test_the_citation_is_that_of_the_repository() -> None:
    cff = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = re.sub(r"\n {5,}", " ", re.sub(r"[{}]", "", page("citation.md")))
    titles = re.findall(r'title: "(.*?)"', cff)
    assert len(titles) == 3
    assert titles[0].startswith(f"{project['name']}: ")
    assert all(f"title   = {title}," in text for title in titles)
    assert re.findall(r"^version: (.*)", cff, flags=re.MULTILINE) == [project["version"]]
    assert re.findall(r"version = (.*),", text) == [project["version"]]
    for name in re.findall(r'- name: "(.*)"', cff):
        assert f"author  = {name}," in text
        assert name in (author["name"] for author in project["authors"])
    people = re.findall(r"family-names: (.*)\n +given-names: (.*)", cff)
    assert len(people) == 7
    assert all(f"{family}, {given}" in text for family, given in people)
    assert all(f"journal = {preprint}," in text for preprint in re.findall(r'value: "(arXiv:.*?)"', cff))
    assert re.findall(r"year    = (\d+)", text)[1:] == re.findall(r"year: (\d+)", cff)
