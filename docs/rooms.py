"""The rooms of `jkosampler/`, and a drawing of what they import, whose arrows are read from the code.

`python docs/rooms.py` writes it into `docs/images/rooms.svg`. `tests/test_architecture.py` sees that it is the present
code's, and holds the code to the rows: a room imports rooms of lower rows only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from package_imports import PACKAGE, Import, imports_of, sources

__all__ = ["DRAWING", "ROOMS", "Room", "arrows", "drawing", "room_of"]

DRAWING = Path(__file__).parent / "images" / "rooms.svg"


class Room(NamedTuple):
    """Where it is drawn, its modules (in full, or how private ones begin), and a word on them."""

    row: float
    column: float
    modules: tuple[str, ...]
    about: str
    only_numpy: bool = False


FIT = ("estimator", "_run", "_result", "_questions", "_ask_tell", "_saved_fit", "_probes", "_corrected", "_user_space",
       "_export", "_readable")  # fmt: skip
FOR_ALL = ("errors", "_arguments", "_inputs", "_surroundings", "_whole_files")
ROOMS = {
    "command line": Room(0, 2, ("cli", "__main__", "_cli_"), "fit, diagnose, plot"),
    "sampler": Room(1, 2, FIT, "JKOSampler, a fit's loop"),
    "setting up": Room(2, 1.75, ("_setup", "_black_box_start", "_scout", "_mixture_fit"), "a problem, and a start"),
    "files": Room(2, 3, ("checkpoint", "_encoding"), "of fits"),
    "arviz_io": Room(2, 5, ("arviz_io",), "to ArviZ 0.x and 1.x", True),
    "engines": Room(3, 1.75, ("engines",), "how a step is solved"),
    "processes": Room(3, 3, ("_distributed", "_portable", "_timed_rows"), "of torch.distributed"),
    "mobility": Room(4, 0, ("mobility",), "of the density"),
    "flow, fields": Room(4, 1, ("flow", "fields"), "what is fitted"),
    "metrics": Room(4, 2, ("metrics",), "as coordinates"),
    "energies": Room(4, 3, ("energies",), "that add and scale"),
    "forward": Room(4, 4, ("forward",), "models y = G(x)"),
    "diagnostics": Room(4, 5, ("diagnostics",), "k-hat, evidence", True),
    "domains": Room(5, 0.5, ("domains", "_cut_cells"), "boxes, balls, regions"),
    "particles": Room(5, 1.75, ("particles",), "points with densities"),
    "targets": Room(5, 3.5, ("targets",), "log densities, spaces"),
    "plotting": Room(5, 5, ("plotting", "_plot_"), "figures", True),
    "maps": Room(6, 1.25, ("maps",), "with inverse, log det"),
    "laws": Room(6, 2.5, ("laws",), "that can be sampled"),
    "functions": Room(6, 4, ("_mapping", "_point_"), "of numpy, on workers", True),
    "potentials": Room(7, 1.25, ("potentials", "walled_potential", "tangent"), "networks, derivatives"),
    "used by all": Room(8, 2.5, FOR_ALL, "errors, arguments, inputs, whole files"),
}


def room_of(module: str) -> str | None:
    """The room of a module of the package; None: the package's own `__init__`, or of another package."""
    package, _, name = module.partition(".")
    top = name.split(".")[0]
    if package != PACKAGE.name or not top:
        return None
    of = [n for n, room in ROOMS.items() if any(top == m or (m[0] == "_" and top.startswith(m)) for m in room.modules)]
    assert len(of) == 1, f"{module} is in {of or 'no room'}"
    return of[0]


def arrows(found: list[Import]) -> set[tuple[str, str]]:
    """From room to room: what imports what when a program runs."""
    pairs = {(room_of(one.module), room_of(one.what)) for one in found if one.when != "types"}
    return {(a, b) for a, b in pairs if a is not None and b is not None and a != b}


def shown(found: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that do not follow from others, without those to what all may use."""
    below: dict[str, set[str]] = {}
    for name in sorted(ROOMS, key=lambda name: -ROOMS[name].row):
        below[name] = {b for a, b in found if a == name} | {c for a, b in found if a == name for c in below[b]}
    detours = {(a, c) for a, b in found for c in below[b]}
    return sorted((a, b) for a, b in found - detours if ROOMS[b].row < 8)


WIDTH, HEIGHT, ACROSS, DOWN = 148, 44, 164, 84  # of a box; from one to the next


def drawing(found: set[tuple[str, str]]) -> str:
    """The SVG: its colours can be read on white and on black."""
    size = 6 * ACROSS, 8 * DOWN + HEIGHT + 32
    pairs = shown(found)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" '
        f'height="{size[1]}" font-family="system-ui, sans-serif" text-anchor="middle" role="img">',
        "<title>Rooms of jkosampler, and what they import</title>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0.5 L8 4 L0 7.5 z" fill="#7f8c9d"/></marker>',
    ]
    for a, b in pairs:
        x, y = port(a, b, [one for one in pairs if one[0] == a])
        to, end = port(b, a, [(two, one) for one, two in pairs if two == b], above=True)
        bend = y + DOWN - HEIGHT - 2  # the curve ends above the next row, and goes straight down from there
        curve = (
            f"M{x:.0f} {y:.0f} C{x:.0f} {y + 22:.0f} {to:.0f} {bend - 26:.0f} {to:.0f} {bend:.0f} L{to:.0f} {end:.0f}"
        )
        parts.append(f'<path d="{curve}" fill="none" stroke="#7f8c9d" stroke-width="1.4" marker-end="url(#head)"/>')
    for name, room in ROOMS.items():
        x, y = place(name)
        width = size[0] - 16 if name == "used by all" else WIDTH
        fill, edge = ("#fdf1dc", "#c98a1b") if room.only_numpy else ("#e4eefb", "#3f73b5")
        parts.append(
            f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width}" height="{HEIGHT}" rx="8" fill="{fill}" '
            f'stroke="{edge}"/><text x="{x:.0f}" y="{y + 19:.0f}" font-size="14" font-weight="600" fill="#16202c">'
            f'{name}</text><text x="{x:.0f}" y="{y + 35:.0f}" font-size="11.5" fill="#3b4858">{room.about}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def place(name: str) -> tuple[float, float]:
    """The middle of a box's upper edge."""
    return (ROOMS[name].column + 0.5) * ACROSS, ROOMS[name].row * DOWN + 16


def port(name: str, other: str, pairs: list[tuple[str, str]], above: bool = False) -> tuple[float, float]:
    """Where the arrow between two rooms touches the first: side by side, in the order of the others."""
    x, y = place(name)
    order = sorted((two for _, two in pairs), key=lambda two: (ROOMS[two].column, -ROOMS[two].row))
    shift = (order.index(other) - (len(order) - 1) / 2) * 22
    return x + shift, y - 1 if above else y + HEIGHT


if __name__ == "__main__":
    DRAWING.write_text(drawing(arrows(imports_of(sources()))))
