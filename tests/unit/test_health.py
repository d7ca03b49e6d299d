"""The accounts close, and what needs somebody is red: pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.bus.inspection import GroupView
from imsync.im.health import Accounting, account, judge_group, judge_outbox
from imsync.im.user_store import OutboxBacklog

OURS = "urn:ours"
VIEW = GroupView("group", "stream", True, 0, 0.0, 0, None, ("c1",), 0, 0, "1-0")
COUNTS = st.integers(min_value=0, max_value=50)


def closed() -> Accounting:
    return account(OURS, 0, 0, {}, 0, 0)


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_at_rest_the_accounts_close_whatever_else_was_settled(
    applied: int, superseded: int, dead: int, lost: int, repeats: int, foreign: int, conflicts: int
) -> None:
    tallies = {
        (OURS, "applied"): applied,
        (OURS, "superseded"): superseded,
        (OURS, "dead"): dead,
        (OURS, "duplicate"): repeats,
        (OURS, "conflict"): conflicts,
        ("", "lost"): lost,
        ("urn:theirs", "applied"): foreign,
        ("", "dead"): foreign,
    }
    published = applied + superseded + dead + lost
    accounts = account(OURS, published, published, tallies, 0, 0)
    assert accounts.unexplained == 0
    assert (accounts.foreign, accounts.duplicates, accounts.conflicts) == (2 * foreign, repeats, conflicts)


@given(COUNTS, st.integers(min_value=1, max_value=50))
def test_what_is_nowhere_is_unexplained(done: int, missing: int) -> None:
    tallies = {(OURS, "applied"): done}
    assert account(OURS, done + missing, done + missing, tallies, 0, 0).unexplained == missing
    assert account(OURS, done + missing, done + missing, tallies, missing - 1, 0).unexplained == 1
    assert account(OURS, done + missing, done + missing, tallies, missing - 1, 1).unexplained == 0
    assert account(OURS, done + missing, done + missing, tallies, 0, None).unexplained == 0, "lag unknown"


@given(COUNTS, st.integers(min_value=1, max_value=50))
def test_what_was_settled_and_never_published_is_unexplained(published: int, too_many: int) -> None:
    tallies = {(OURS, "applied"): published + too_many}
    assert account(OURS, published, published, tallies, 9, 9).unexplained == -too_many
    assert account(OURS, published, published + too_many, tallies, 0, 0).unexplained == 0, "published meanwhile"


@pytest.mark.parametrize(
    ("view", "words", "remedy"),
    [
        ({"lag": 5, "lag_seconds": 31.0, "alive": ()}, "5 entries wait for group group", "imsync consume group"),
        ({"lag": None, "lag_seconds": None, "alive": ()}, "entries wait for group group", "imsync consume group"),
        ({"lag": 5, "lag_seconds": 61.0}, "61 s late although 1 consumers live", "imsync replay pending --group group"),
        ({"pending": 1, "oldest_pending_seconds": 61.0}, "61 s late", "imsync replay pending --group group"),
        (
            {"pending": 3, "held_by_dead": 3, "oldest_pending_seconds": 31.0},
            "3 entries of group group are held by dead consumers",
            "imsync replay pending --group group",
        ),
        ({"dead": 2}, "2 dead letters", "imsync dead list --group group"),
    ],
)
def test_each_trouble_of_a_group_is_named_with_its_remedy(view: dict[str, object], words: str, remedy: str) -> None:
    (problem,) = judge_group(replace(VIEW, **view), closed())  # type: ignore[arg-type]
    assert words in problem.what
    assert remedy in problem.remedy


@pytest.mark.parametrize("field", ["lost", "conflicts", "unexplained"])
def test_accounts_that_do_not_close_are_red(field: str) -> None:
    (problem,) = judge_group(VIEW, replace(closed(), **{field: 1}))
    assert problem.remedy == "imsync verify"


@pytest.mark.parametrize(
    "view",
    [
        {},
        {"lag": 5, "lag_seconds": 29.0, "alive": ()},
        {"lag": 5, "lag_seconds": 59.0},
        {"pending": 5, "oldest_pending_seconds": 29.0, "held_by_dead": 5},
    ],
)
def test_ordinary_work_is_healthy(view: dict[str, object]) -> None:
    assert judge_group(replace(VIEW, **view), closed()) == ()  # type: ignore[arg-type]


def test_an_outbox_that_waits_for_long_is_red() -> None:
    assert judge_outbox(OutboxBacklog(0, None)) == judge_outbox(OutboxBacklog(5, 29.0)) == ()
    (problem,) = judge_outbox(OutboxBacklog(5, 31.0))
    assert (problem.what, problem.remedy) == ("5 events wait in the outbox", "imsync relay")
