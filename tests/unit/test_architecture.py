"""The arrows between the rooms of the package point down, as docs/architecture.md says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "imsync"


@dataclass(frozen=True)
class Room:
    """What the modules of a room may import: rooms, and packages that are not part of Python."""

    rooms: frozenset[str]
    packages: frozenset[str]


def _room(rooms: str, packages: str = "") -> Room:
    return Room(frozenset(rooms.split()), frozenset(packages.split()))


ROOMS = {
    "errors": _room(""),
    "settings": _room("errors", "pydantic platformdirs"),
    "embedded": _room("errors", "redis"),
    "bus": _room("errors embedded", "redis pydantic pydantic_core"),
    "telemetry": _room("bus errors", "prometheus_client opentelemetry"),
    "store": _room("bus errors"),
    "im": _room("store bus errors", "pydantic"),
    "bench": _room("im store bus embedded errors", "redis pydantic"),
    "cli": _room("bench im store telemetry bus settings embedded errors", "typer rich prometheus_client"),
}

STREAM_COMMAND = re.compile(
    r"(XACK(DEL)?|XADD|XAUTOCLAIM|XCLAIM|XDEL(EX)?|XGROUP|XINFO|XLEN|XNACK|XPENDING|XRANGE|XREAD(GROUP)?|XREVRANGE"
    r"|XSETID|XTRIM)([ _]\w+)*",
    re.IGNORECASE,
)
"""A Redis command on streams, as a string or as the name of redis-py's method."""


@dataclass(frozen=True)
class Import:
    """One import. `function`: the function that it runs in, empty at the top."""

    module: str
    function: str
    place: str


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 40, "these are not all modules of the package"
    return found


def room_of(path: Path) -> str:
    """The room of a file: the folder in the package, or the module directly in it."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[Import]:
    """Everything a file imports, also inside functions and for type checkers."""

    def walk(node: ast.AST, function: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            place = f"{path.relative_to(ROOT)}:{getattr(child, 'lineno', 0)}"
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, function, place)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{place}: relative import"
                # `from imsync import errors` names a room, `from imsync import __version__` does not
                in_package = child.module == "imsync"
                for alias in child.names if in_package else child.names[:1]:
                    module = f"imsync.{alias.name}" if in_package else child.module or ""
                    yield Import(module, function, place)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, child.name if inner else function)  # type: ignore[attr-defined]

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def violations(path: Path) -> Iterator[str]:
    """The imports of a file that its room may not have."""
    room = room_of(path)
    rules = ROOMS[room]
    for each in imports(path):
        top, _, rest = each.module.partition(".")
        target = rest.partition(".")[0]
        if top == "imsync":
            if target in ROOMS and target != room and target not in rules.rooms:
                yield f"{each.place}: {room} imports {each.module}"
        elif top not in sys.stdlib_module_names and top not in rules.packages:
            yield f"{each.place}: {room} imports {each.module}"


def test_every_module_is_in_a_room() -> None:
    assert {room_of(path) for path in modules()} == ROOMS.keys() | {"__init__", "__main__"}


def test_python_dash_m_is_the_command_line_and_nothing_else() -> None:
    assert {each.module for each in imports(PACKAGE / "__main__.py")} - {"__future__"} == {"imsync.cli"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    found = [each for path in modules() if room_of(path) == room for each in violations(path)]
    assert found == []


def test_the_rooms_have_an_order() -> None:
    """Nothing imports a room that may import it back."""
    order = list(ROOMS)
    for room, rules in ROOMS.items():
        assert all(order.index(below) < order.index(room) for below in rules.rooms), room


def test_the_public_names_are_imported_on_first_use() -> None:
    at_import = {each.module for each in imports(PACKAGE / "__init__.py") if not each.function}
    assert {module for module in at_import if module.startswith("imsync.")} <= {"imsync.bus", "imsync.errors"}
    code = "import sys, imsync; print(sorted(name for name in sys.modules if name.startswith('imsync')))"
    assert run(code) == "['imsync']"


def test_who_asks_the_bus_for_a_name_loads_what_that_name_needs_and_no_more() -> None:
    import imsync.bus

    assert all(getattr(imsync.bus, name).__class__ for name in imsync.bus.__all__)
    assert sorted(imsync.bus._HOME_OF) == sorted(imsync.bus.__all__)
    code = "import sys; from imsync.bus import Event, Received; print('redis' in sys.modules)"
    assert run(code) == "False"


def test_comparing_stores_needs_no_redis() -> None:
    code = "import sys, imsync.im.verify, imsync.im.workspace, imsync.im.export; print('redis' in sys.modules)"
    assert run(code) == "False"


def test_the_bus_knows_the_embedded_server_only_when_asked_for_one() -> None:
    found = [
        (path.name, each.function)
        for path in modules()
        if room_of(path) == "bus"
        for each in imports(path)
        if each.module == "imsync.embedded"
    ]
    assert found == [("bus.py", "embedded")]


def test_only_stream_issues_stream_commands() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and STREAM_COMMAND.fullmatch(node.attr))
        or (isinstance(node, ast.Constant) and isinstance(node.value, str) and STREAM_COMMAND.fullmatch(node.value))
    }
    assert found == {"bus/stream.py", "bench/by_hand.py"}, "the hand-written loop uses redis-py as everybody does"


def test_only_render_knows_rich() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules()
        for each in imports(path)
        if each.module.split(".")[0] == "rich"
    }
    assert found == {"cli/render.py"}


def test_sqlite_is_known_to_the_stores_alone() -> None:
    found = {room_of(path) for path in modules() for each in imports(path) if each.module.startswith("sqlite3")}
    assert found == {"store", "im", "bench"}


def test_the_hand_written_loop_loads_nothing_of_imsync_that_could_make_it_slower_or_larger() -> None:
    code = "import sys, imsync.bench.by_hand; print(sorted(name for name in sys.modules if name.startswith('imsync.')))"
    own = ["by_hand", "clock", "figures", "machine", "place", "results"]
    expected = [
        "imsync.bench",
        *(f"imsync.bench.{name}" for name in own),
        "imsync.bus",
        "imsync.bus.keys",
        "imsync.errors",
    ]
    assert run(code) == str(expected)


def test_loading_the_command_line_loads_nothing_heavy() -> None:
    packages = ["redis", "pydantic", "rich", "platformdirs", "sqlite3", "prometheus_client", "opentelemetry"]
    heavy = packages + [f"imsync.{room}" for room in ROOMS if room not in ("cli", "errors")]
    code = f"import sys, imsync.cli.app; print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"


def run(code: str) -> str:
    """What a program prints in a process of its own."""
    # coverage.py would import modules of its own
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    return process.stdout.strip()


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────


def boundary_table() -> dict[str, Room]:
    """The table of the rooms in docs/architecture.md: names in backquotes, columns by their titles."""
    lines = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("| room |"))
    titles = cells(lines[header])
    rooms = {}
    for line in takewhile(lambda line: line.startswith("|"), lines[header + 2 :]):
        row = dict(zip(titles, cells(line), strict=True))
        names = {title: frozenset(re.findall(r"`([^`]+)`", row[title])) for title in titles}
        (room,) = names["room"]
        rooms[room] = Room(names["may import"], names["packages"])
    return rooms


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]


def test_the_page_says_the_same() -> None:
    assert boundary_table() == ROOMS
