"""SQL lives in files beside the code that uses it, one named statement after another:

-- name: edit
-- what it is for
UPDATE …;
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

ROWS_PER_STATEMENT = 100
"""How many rows one INSERT takes. One statement for each row takes half as long again."""

LOOK_UP_AT_ONCE = (1, 10, 100, 500)
"""For how many values one statement looks. Few different numbers, because each makes a statement of its own, and
connections keep the last hundred that they saw: 30 KiB each, for the largest."""

_VALUES = re.compile(r"\bVALUES (\([?, ]+\))")
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(package: str, file_name: str) -> Mapping[str, str]:
    """The named statements of a file, without their comments (which would only slow down the statement cache)."""
    text = files(package).joinpath(file_name).read_text(encoding="utf-8")
    _, *named = _NAME.split(text)
    return {
        name: "\n".join(line for line in body.splitlines() if line and not line.lstrip().startswith("--"))
        for name, body in zip(named[::2], named[1::2], strict=True)
    }


def insert_many(connection: sqlite3.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> int:
    """Executes an `INSERT … VALUES (?, …)` for each row, as `executemany` does, many rows at a time; how many rows were
    inserted or changed.

    Args:
        rows: one sequence of parameters for each row. As in one statement, none may depend on another.
    """
    changed = 0
    rest = iter(rows)
    while len(block := list(islice(rest, ROWS_PER_STATEMENT))) == ROWS_PER_STATEMENT:
        changed += connection.execute(_repeated(statement), list(chain.from_iterable(block))).rowcount
    return changed + connection.executemany(statement, block).rowcount if block else changed


def look_up(
    query: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]], statement: str, values: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    """The rows of a reading statement that ends in `IN`, for any number of values.

    Args:
        query: such as `Database.query`.
    """
    for start in range(0, len(values), LOOK_UP_AT_ONCE[-1]):
        some = list(values[start : start + LOOK_UP_AT_ONCE[-1]])
        room = next(room for room in LOOK_UP_AT_ONCE if room >= len(some))
        some += some[-1:] * (room - len(some))  # what is looked for twice is found once
        yield from query(f"{statement} ({','.join('?' * room)})", some)


@lru_cache(maxsize=64)
def _repeated(statement: str) -> str:
    repeated, n = _VALUES.subn(lambda found: f"VALUES {', '.join([found[1]] * ROWS_PER_STATEMENT)}", statement)
    if n != 1:
        raise ValueError("no INSERT of one row")
    return repeated
