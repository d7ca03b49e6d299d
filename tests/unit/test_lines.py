"""Lines that fit a terminal, points in a stream, and what can be told of bytes that are no event."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imsync.bus.clock import time_of
from imsync.bus.entry import LAST_ID, id_before, is_entry_id
from imsync.bus.glimpse import MAX_TEXT, Glimpse, glimpse
from imsync.cli.lines import cells, fold, shorten
from imsync.cli.render import Grid, console, fitted, safe
from tests.acceptance.driver import hidden_characters

NOW_MS = 1_800_000_000_000


@given(st.text(), st.integers(40, 120))
def test_a_folded_text_loses_nothing_and_is_never_too_wide(text: str, columns: int) -> None:
    lines = list(fold(text, "    ", columns))
    assert all(line.startswith("    ") and cells(line) <= columns for line in lines)
    assert "".join(line[4:] for line in lines).replace(" ", "") == safe(text).replace(" ", "")
    assert not hidden_characters("".join(lines)) - {"\ufe0f"}


@given(st.text(), st.integers(3, 40))
def test_a_shortened_text_fits(text: str, columns: int) -> None:
    shown = shorten(text, columns)
    assert cells(shown) <= columns
    assert shown == safe(text) or shown.endswith("…")


def test_a_table_that_is_too_wide_has_one_column_cut() -> None:
    grid = Grid(("name", "#n", "what"), [("a", 1, "so " * 30), ("長", 1000, "short")], flexible="what")
    assert drawn(grid, columns=30) == [
        "name     n  what",
        "─" * 30,
        "a        1  so so so so so so…",
        "長    1000  short",
    ]
    assert len(drawn(replace(grid, flexible=""), columns=30)) > 4, "without one its cells wrap"


def drawn(grid: Grid, columns: int) -> list[str]:
    out = io.StringIO()
    terminal = console(out)
    terminal.width = columns
    terminal.print(fitted(grid, columns))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_times_and_neighbours_of_ids() -> None:
    assert time_of("1795420800000-5") == "2026-11-23T08:00:00.000+00:00"
    assert time_of(LAST_ID) is time_of(None) is None
    assert [id_before(each) for each in ("5-3", "5-0", "5", "0-1", "0-0")] == [
        "5-2",
        f"4-{2**64 - 1}",
        f"4-{2**64 - 1}",
        "0-0",
        "0-0",
    ]
    assert [is_entry_id(each) for each in ("5", "5-0", LAST_ID, f"{2**64}-0", "x", "", "5-", "-5")] == [True] * 3 + [
        False
    ] * 5


def body(**changes: Any) -> bytes:
    return json.dumps({"type": "t", "subject": "7", "sequence": "0000000000000000003"} | changes).encode()


def test_what_can_be_told_of_bytes() -> None:
    assert glimpse(body()) == Glimpse("t", 7, 3)
    assert glimpse(body(type="x" * 1000)) == Glimpse("x" * MAX_TEXT, 7, 3)
    assert glimpse(body(type=5, subject=7, sequence=True)) == Glimpse()
    for bad in ("0", "-1", "٣", str(2**63), "1" * 20, "", " 7", "7.0"):
        assert glimpse(body(subject=bad)).subject is None, bad
    for nothing in (None, b"", b"\xff", b"[1]", b"7", b"{", b"[" * 60_000, b'{"type":"t"}' + b" " * 70_000):
        assert glimpse(nothing) == Glimpse()


@given(st.binary(max_size=200))
def test_it_never_raises(raw: bytes) -> None:
    assert glimpse(raw) == Glimpse() or raw.strip().startswith(b"{")
