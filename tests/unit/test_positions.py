"""Places in a stream, as people type them."""

from __future__ import annotations

import pytest

from imsync.cli.positions import position
from imsync.errors import UsageError

NOW_MS = 1_795_413_835_783
LARGEST = 2**64 - 1


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("start", "0-0", "0-0"),
        ("now", "1795413835783-0", f"1795413835783-{LARGEST}"),
        ("1795413835783-7", "1795413835783-7", "1795413835783-7"),
        ("1795413835783", "1795413835783-0", f"1795413835783-{LARGEST}"),
        ("0", "0-0", f"0-{LARGEST}"),
        ("5-0", "5-0", "5-0"),
        (f"{LARGEST}-{LARGEST}", f"{LARGEST}-{LARGEST}", f"{LARGEST}-{LARGEST}"),
        ("10m", "1795413235783-0", f"1795413235783-{LARGEST}"),
        ("500ms", "1795413835283-0", f"1795413835283-{LARGEST}"),
        ("1.5h", "1795408435783-0", f"1795408435783-{LARGEST}"),
        ("0s", "1795413835783-0", f"1795413835783-{LARGEST}"),
        ("999999d", "0-0", f"0-{LARGEST}"),
        ("2026-11-23T02:30:00Z", "1795401000000-0", f"1795401000000-{LARGEST}"),
        ("2026-11-23T02:30:00", "1795401000000-0", f"1795401000000-{LARGEST}"),
        (" 2026-11-23 02:30 ", "1795401000000-0", f"1795401000000-{LARGEST}"),
        ("2026-11-23T10:30:00.007+08:00", "1795401000007-0", f"1795401000007-{LARGEST}"),
        ("2026-11-23T02:30:00.0079Z", "1795401000007-0", f"1795401000007-{LARGEST}"),
        ("2026-11-23", "1795392000000-0", f"1795392000000-{LARGEST}"),
        ("1969-12-31", "0-0", f"0-{LARGEST}"),
    ],
)
def test_a_place_is_an_entry_id(text: str, first: str, last: str) -> None:
    assert position(text, NOW_MS) == first
    assert position(text, NOW_MS, end=True) == last


@pytest.mark.parametrize(
    "text",
    ["", "end", "-", "+", "$", "5x", "m", "-5m", "5-", "-5", "1-2-3", "20261123", "2026-13-01", "02:30", "٣-٠",
     "1e3s", "0001-01-01T00:00:00+99:00", f"{LARGEST + 1}-0", f"1-{LARGEST + 1}", "5" * 21, "2026-11-23T02:30:00Zulu"],
)  # fmt: skip
def test_what_is_no_place_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        position(text, NOW_MS)
    assert refused.value.hint


def test_seconds_are_not_taken_for_milliseconds() -> None:
    with pytest.raises(UsageError) as refused:
        position("1795413835", NOW_MS)
    assert "1795413835000" in refused.value.hint


def test_earliest_moment_with_an_offset_is_the_start() -> None:
    assert position("0001-01-01T00:00:00+14:00", NOW_MS) == "0-0"
