"""Numbers in sentences are in good English."""

from __future__ import annotations

import pytest

from imsync.im.wording import counted, times


@pytest.mark.parametrize(("number", "words"), [(0, "0 entries"), (1, "1 entry"), (2000, "2,000 entries")])
def test_things_are_counted(number: int, words: str) -> None:
    assert counted(number, "entry", "entries") == words


def test_most_plurals_are_made_with_an_s() -> None:
    assert [counted(number, "user") for number in (1, 2)] == ["1 user", "2 users"]


def test_how_often() -> None:
    assert [times(number) for number in (1, 2, 1000)] == ["once", "2 times", "1,000 times"]
