"""The accounts close, and what needs somebody is red: pure functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.bus.inspection import ConsumerView, GroupView, RetentionView
from imsync.bus.liveness import Life
from imsync.bus.retention import Retention
from imsync.bus.vitals import Vitals
from imsync.errors import StoreMismatch
from imsync.im.accounts import Accounting, Outcomes, account
from imsync.im.health import Problem, judge_group, judge_outbox, judge_retention
from imsync.im.outbox import OutboxBacklog
from imsync.im.relay_lock import Holder

OURS = "urn:ours"
VIEW = GroupView("group", "stream", True, 0, 0.0, 0, None, ("c1",), 0, 0, "1-0")
COUNTS = st.integers(min_value=0, max_value=50)


def closed() -> Accounting:
    return account(OURS, 0, 0, {}, 0, 0)


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_at_rest_the_accounts_close_whatever_else_was_settled(
    applied: int, superseded: int, dead: int, lost: int, covered: int, repeats: int, foreign: int, conflicts: int
) -> None:
    tallies = {
        (OURS, "applied"): applied,
        (OURS, "superseded"): superseded,
        (OURS, "dead"): dead,
        (OURS, "covered"): covered,
        (OURS, "duplicate"): repeats,
        (OURS, "conflict"): conflicts,
        ("", "lost"): lost,
        ("urn:theirs", "applied"): foreign,
        ("", "dead"): foreign,
    }
    published = applied + superseded + dead + lost + covered
    accounts = account(OURS, published, published, tallies, 0, 0)
    assert (accounts.unexplained, accounts.covered) == (0, covered)
    assert (accounts.foreign, accounts.duplicates, accounts.conflicts) == (2 * foreign, repeats, conflicts)


@given(COUNTS, st.integers(min_value=1, max_value=50))
def test_what_is_nowhere_is_unexplained(done: int, missing: int) -> None:
    tallies = {(OURS, "applied"): done}
    assert account(OURS, done + missing, done + missing, tallies, 0, 0).unexplained == missing
    assert account(OURS, done + missing, done + missing, tallies, missing - 1, 0).unexplained == 1
    assert account(OURS, done + missing, done + missing, tallies, missing - 1, 1).unexplained == 0
    assert account(OURS, done + missing, done + missing, tallies, 0, None).unexplained is None, "it may be undelivered"
    assert account(OURS, done + missing, done + missing, tallies, missing, None).unexplained == 0


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_what_was_lost_and_published_again_is_lost_no_more(applied: int, missing: int, lost: int, pending: int) -> None:
    tallies = {(OURS, "applied"): applied, ("", "lost"): lost}
    accounts = account(OURS, applied + missing, applied + missing, tallies, pending, 0)
    assert accounts.lost == min(lost, missing)
    assert accounts.unexplained == max(0, missing - lost - pending)


@given(COUNTS, st.integers(min_value=1, max_value=50))
def test_a_snapshot_covers_no_more_than_was_published(published: int, too_many: int) -> None:
    tallies = {(OURS, "covered"): published + too_many}
    assert account(OURS, published, published, tallies, 0, 0).unexplained == -too_many
    assert account(OURS, published, published, {("urn:theirs", "covered"): 9}, 0, 0).unexplained == published


@given(COUNTS, st.integers(min_value=1, max_value=50))
def test_what_was_settled_and_never_published_is_unexplained(published: int, too_many: int) -> None:
    tallies = {(OURS, "applied"): published + too_many}
    assert account(OURS, published, published, tallies, 9, 9).unexplained == -too_many
    assert account(OURS, published, published + too_many, tallies, 0, 0).unexplained == 0, "published meanwhile"


@pytest.mark.parametrize(
    ("view", "words", "remedy"),
    [
        ({"lag": 5, "lag_seconds": 31.0, "alive": ()}, "5 entries wait for the group service", "imsync consume group"),
        ({"lag": 1, "lag_seconds": 31.0, "alive": ()}, "1 entry waits for the group service", "imsync consume group"),
        ({"lag": None, "lag_seconds": None, "alive": ()}, "entries wait for the group service", "imsync consume group"),
        ({"lag": 5, "lag_seconds": 61.0}, "61 s late although 1 consumer lives", "imsync replay pending --group group"),
        ({"pending": 1, "oldest_pending_seconds": 61.0}, "61 s late", "imsync replay pending --group group"),
        (
            {"pending": 3, "held_by_dead": 3, "oldest_pending_seconds": 31.0},
            "dead consumers of the group service hold 3 entries",
            "imsync replay pending --group group --min-idle 0s",
        ),
        ({"dead": 2}, "the group service has 2 dead letters", "imsync dead list --group group"),
        ({"dead": 2}, "the group service has 2 dead letters", "imsync replay dead --group group; imsync dead purge"),
    ],
)
def test_each_trouble_of_a_group_is_named_with_its_remedy(view: dict[str, object], words: str, remedy: str) -> None:
    (problem,) = judge_group(replace(VIEW, **view), closed())  # type: ignore[arg-type]
    assert words in problem.what
    assert remedy in problem.remedy


def test_a_user_store_that_is_older_than_its_copies_is_named() -> None:
    (problem,) = judge_group(VIEW, replace(closed(), unexplained=-2))
    assert "settled 2 events more than were published: was the user store restored" in problem.what
    assert "imsync verify" in problem.remedy


def test_a_store_that_is_not_its_groups_comes_first() -> None:
    refused = StoreMismatch("this store has never been fed", "…")
    problems = judge_group(replace(VIEW, dead=2), closed(), refused)
    what = "the group service is stopped: this store has never been fed"
    assert problems[0] == Problem(what, "imsync rebuild group", "store_mismatch", "group")
    assert [each.kind for each in problems] == ["store_mismatch", "dead_letters"]


@pytest.mark.parametrize(
    ("field", "words", "remedy"),
    [
        ("lost", "lost 2 entries", "imsync rebuild group"),
        ("conflicts", "met 2 events that contradict", "imsync verify, then imsync rebuild group"),
        ("unexplained", "has 2 unexplained events", "imsync verify, then imsync rebuild group"),
    ],
)
def test_accounts_that_do_not_close_are_red(field: str, words: str, remedy: str) -> None:
    (problem,) = judge_group(VIEW, replace(closed(), **{field: 2}))
    assert words in problem.what
    assert problem.remedy == remedy


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


def test_without_the_user_store_what_is_known_is_judged_all_the_same() -> None:
    outcomes = Outcomes(applied=3, superseded=0, dead=0, duplicates=9, lost=4, conflicts=1)
    (problem,) = judge_group(VIEW, None, outcomes=outcomes)
    assert problem.kind == "conflicts", "what was lost may have been sent again: only the accounts tell"
    (problem,) = judge_group(replace(VIEW, dead=1), None, here=False)
    assert problem.remedy.endswith(", where group.db is")


def test_who_is_late_tells_what_its_last_trouble_was() -> None:
    members = [
        ConsumerView("group", name, 0, 0, Life("web", 1, 0, Vitals(last_error=error, last_error_ms=ms)))
        for name, error, ms in (("a", "redis_refused", 5), ("b", "store_unusable", 7), ("c", None, None))
    ]
    (problem,) = judge_group(replace(VIEW, lag=1, lag_seconds=61.0, members=tuple(members)), None)
    assert problem.what.endswith("although 1 consumer lives (last trouble: store_unusable)")


HERE = Holder(4711, "web-1", here=True)


@pytest.mark.parametrize(
    ("holders", "what", "remedy"),
    [
        ({}, "5 events wait in the outbox", "imsync relay"),
        ({"redis_away": True}, "5 events wait in the outbox", "imsync relay, when Redis is back"),
        ({"relay": HERE, "redis_away": True}, "5 events wait in the outbox", "none is needed before Redis is back"),
        (
            {"relay": HERE},
            "5 events wait in the outbox although a relay is at work on it (pid 4711)",
            "look at its messages; if it hangs, end it, kill -9 4711, and run imsync relay",
        ),
        (
            {"relay": replace(HERE, here=False)},
            "5 events wait in the outbox although a relay is at work on it (pid 4711 on web-1)",
            "look at its messages; if it hangs, end it, and run imsync relay",
        ),
        (
            {"relay": Holder()},
            "5 events wait in the outbox although a relay is at work on it (an unknown process)",
            "look at its messages; if it hangs, end it, and run imsync relay",
        ),
        (
            {"relay": replace(HERE, stopped=True)},
            "5 events wait in the outbox, and the relay that holds it is stopped (pid 4711)",
            "kill -CONT 4711; or kill -9 4711, and another takes over: imsync relay",
        ),
        (
            {"relay": HERE, "pause": Holder(12, "web-1", here=True)},
            "5 events wait in the outbox: relays pause for a rebuild (pid 12)",
            "wait for its end",
        ),
    ],
)
def test_an_outbox_that_waits_for_long_is_red(holders: dict[str, Holder], what: str, remedy: str) -> None:
    assert judge_outbox(OutboxBacklog(0, None), **holders) == judge_outbox(OutboxBacklog(5, 29.0), **holders) == ()  # type: ignore[arg-type]
    (problem,) = judge_outbox(OutboxBacklog(5, 31.0), **holders)  # type: ignore[arg-type]
    assert (problem.what, problem.remedy, problem.kind) == (what, remedy, "outbox")
    assert judge_outbox(OutboxBacklog(1, 31.0))[0].what == "1 event waits in the outbox"


# ── what the stream holds ────────────────────────────────────────────────────────────────────────────────

HOUR = 3600.0
HELD = RetentionView(
    Retention(hours=168, entries=1000, min_hours=24),
    length=1000,
    first_id="1-0",
    oldest_seconds=100 * HOUR,
    floor="1-0",
    floor_group="search",
    waiting_seconds=100 * HOUR,
    groups=("friend", "group", "search"),
)


@pytest.mark.parametrize(
    ("held", "pinned", "red"),
    [
        ({}, False, False),
        ({"waiting_seconds": None, "length": 9999}, False, False),  # everybody has acknowledged all
        ({"waiting_seconds": 168 * HOUR}, False, False),
        ({"waiting_seconds": 168 * HOUR + 1}, True, True),
        ({"length": 1001}, True, False),
        ({"length": 2000}, True, False),
        ({"length": 2001}, True, True),
        ({"length": 2001, "waiting_seconds": 23 * HOUR}, False, False),  # which would be kept anyway
        ({"floor_group": None, "floor": None, "waiting_seconds": None, "groups": ()}, False, False),
    ],
)
def test_a_group_that_holds_up_retention_is_named(held: dict[str, object], pinned: bool, red: bool) -> None:
    view = replace(HELD, **held)  # type: ignore[arg-type]
    assert view.pinned_by == ("search" if pinned else None)
    assert bool(judge_retention(view, ("group", "friend"))) is red


@pytest.mark.parametrize(
    ("group", "who", "remedy"),
    [
        ("group", "the group service", "imsync consume group"),
        ("search", "group search", "start a consumer of it, or imsync group drop search"),
        ("$(rm -rf /)", "group '$(rm -rf /)'", "start a consumer of it, or imsync group drop '$(rm -rf /)'"),
    ],
)
def test_what_helps_against_a_group_that_holds_up_retention(group: str, who: str, remedy: str) -> None:
    view = replace(HELD, floor_group=group, waiting_seconds=200 * HOUR, length=1234)
    (problem,) = judge_retention(view, ("group", "friend"))
    assert problem.what == f"{who} has not acknowledged an entry for 200.0 h, and the stream keeps 1,234 entries"
    assert problem.remedy == remedy


def test_a_stream_that_takes_no_more_is_red() -> None:
    last = f"{2**64 - 1}-{2**64 - 1}"
    (problem,) = judge_retention(replace(HELD, last_id=last), ("group", "friend"))
    assert problem.kind == "stream_full"
    assert "nothing can be published" in problem.what
    assert not judge_retention(replace(HELD, last_id=f"{2**64 - 1}-{2**64 - 2}"), ())
