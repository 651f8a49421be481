"""What the modules of the package import, and when: read from their text, nothing is imported for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["PACKAGE", "Import", "imports_of", "sources"]

PACKAGE = Path(__file__).parents[1] / "jkosampler"


class Import(NamedTuple):
    """What a module imports, and when: as it is loaded ("load"), in a call ("call"), for a type checker ("types")."""

    module: str
    what: str
    when: str


def sources(package: Path = PACKAGE) -> dict[str, str]:
    """The text of every module, by its name with dots; `jkosampler` is the package itself."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports_of(texts: dict[str, str]) -> list[Import]:
    """All imports, those by `import_module("name")` too; of `from a import b` it is a.b where that is in `texts`."""
    return [
        Import(module, full if full in texts else name, when)
        for module, text in texts.items()
        for name, full, when in _written(text)
    ]


@cache
def _written(text: str) -> list[tuple[str, str, str]]:
    """Of every import: the module, the same with the name that is taken from it, and when."""

    def walk(node: ast.AST, when: str) -> Iterator[tuple[str, str, str]]:
        for child in ast.iter_child_nodes(node):
            inner = when
            match child:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    inner = "call"
                case ast.If() if "TYPE_CHECKING" in ast.unparse(child.test):
                    inner = "types"
                case ast.Import():
                    yield from ((alias.name, alias.name, when) for alias in child.names)
                case ast.ImportFrom(module=str(name), level=0):
                    yield from ((name, f"{name}.{alias.name}", when) for alias in child.names)
                case ast.ImportFrom():
                    raise AssertionError("imports are absolute")
                case ast.Call(args=[ast.Constant(value=str(name)), *_]) if "import_module" in ast.unparse(child.func):
                    yield name, name, when
            yield from walk(child, inner)

    return list(dict.fromkeys(walk(ast.parse(text), "load")))
