"""SQL lives in files beside the code that uses it, one named statement after another:

-- name: edit
-- what it is for
UPDATE …;
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

ROWS_PER_STATEMENT = 100
"""How many rows one INSERT takes. One statement for each row takes half as long again."""

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


def insert_many(connection: sqlite3.Connection, statement: str, rows: Iterable[Sequence[Any]]) -> None:
    """Executes an `INSERT … VALUES (?, …)` for each row, as `executemany` does, many rows at a time.

    Args:
        rows: one sequence of parameters for each row. As in one statement, none may depend on another.
    """
    rest = iter(rows)
    while len(block := list(islice(rest, ROWS_PER_STATEMENT))) == ROWS_PER_STATEMENT:
        connection.execute(_repeated(statement), list(chain.from_iterable(block)))
    connection.executemany(statement, block)


@lru_cache(maxsize=64)
def _repeated(statement: str) -> str:
    repeated, n = _VALUES.subn(lambda found: f"VALUES {', '.join([found[1]] * ROWS_PER_STATEMENT)}", statement)
    if n != 1:
        raise ValueError("no INSERT of one row")
    return repeated
