"""`imsync check`: every bound with its verdict. What is unknown is never fine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from imsync.bus.inspection import GroupView, RetentionView
from imsync.bus.retention import Retention
from imsync.cli.check import _exit_code, exposition
from imsync.cli.verdicts import Bounds, Verdict, judge
from imsync.errors import ImsyncError, RedisUnreachable, StoreUnusable
from imsync.im.accounts import Outcomes, account
from imsync.im.health import judge_group, judge_outbox, judge_store
from imsync.im.outbox import OutboxBacklog
from imsync.im.overview import GroupOverview, OutboxOverview, Overview, Place
from imsync.store.settlement import Percentiles
from imsync.telemetry.names import CHECK

FINE = GroupView("group", "s", True, 0, 0.0, 0, None, ("c1",), 0, 0, "1-0")
HELD = RetentionView(Retention(), 7, "1-0", 1.0, "2-0", "group", None, ("group",))


def overview(
    view: GroupView = FINE,
    *,
    stored: bool = True,
    users: bool = True,
    redis: ImsyncError | None = None,
    stores: dict[str, ImsyncError] | None = None,
    unexplained: int = 0,
    undelivered: int | None = 0,
    backlog: OutboxBacklog | None = None,
) -> Overview:
    """What `look` gives, with one group."""
    accounting = account("us", unexplained, unexplained, {}, 0, undelivered) if stored and users else None
    outcomes = Outcomes.of({}) if stored else None
    problems = judge_group(view, accounting, outcomes=outcomes)
    place = Place.HERE if stored else Place.ELSEWHERE
    group = GroupOverview(view, place, outcomes, accounting, Percentiles(12.5, None), {}, problems)
    outbox = OutboxOverview(backlog or OutboxBacklog(0, None), 5, 0) if users else None
    found = (
        *(judge_store(name, error) for name, error in (stores or {}).items()),
        *(judge_outbox(outbox.backlog) if outbox else ()),
        *(() if redis else problems),
    )
    groups = () if redis else (group,)
    return Overview(1000, groups, outbox, None if redis else HELD, redis, stores or {}, (), found)


def verdicts(seen: Overview, **bounds: Any) -> tuple[dict[tuple[str | None, str], Verdict], int]:
    checks = judge(seen, Bounds(**bounds))
    assert len({(each.group, each.name) for each in checks}) == len(checks), "each of them once"
    return {(each.group, each.name): each.verdict for each in checks}, _exit_code(checks, seen)


@pytest.mark.parametrize(
    ("view", "bounds", "verdict"),
    [
        ({"lag": 5}, {"lag": 5}, "ok"),
        ({"lag": 6}, {"lag": 5}, "failed"),
        ({"lag": None, "lag_at_least": 6}, {"lag": 5}, "failed"),
        ({"lag": None, "lag_at_least": 5}, {"lag": 5}, "unknown"),
        ({"lag_seconds": 5.0}, {"lag_seconds": 5.0}, "ok"),
        ({"lag_seconds": 5.1}, {"lag_seconds": 5.0}, "failed"),
        ({"lag_seconds": None, "lag": 3}, {"lag_seconds": 5.0}, "unknown"),
        ({"pending": 1, "oldest_pending_seconds": 5.0}, {"pending_age": 5.0}, "ok"),
        ({"pending": 1, "oldest_pending_seconds": 5.1}, {"pending_age": 5.0}, "failed"),
        ({"pending": 0, "oldest_pending_seconds": None}, {"pending_age": 0.0}, "ok"),
        ({"pending": 1, "oldest_pending_seconds": None}, {"pending_age": 5.0}, "unknown"),
        ({"dead": 2}, {"dead": 2}, "ok"),
        ({"dead": 3}, {"dead": 2}, "failed"),
    ],
)
def test_a_bound_that_is_given(view: dict[str, Any], bounds: dict[str, Any], verdict: str) -> None:
    found, code = verdicts(overview(replace(FINE, **view)), **bounds)
    assert found == {("group", next(iter(bounds))): verdict}
    assert code == {"ok": 0, "failed": 3, "unknown": 4}[verdict]


def test_only_what_is_asked_for_is_judged() -> None:
    """So that a host without stores can watch what Redis knows."""
    seen = overview(replace(FINE, dead=9), stored=False, users=False)
    assert verdicts(seen, lag=5) == ({("group", "lag"): "ok"}, 0)
    assert verdicts(seen, lag=5, dead=0) == ({("group", "lag"): "ok", ("group", "dead"): "failed"}, 3)
    assert verdicts(seen, outbox_age=5) == ({(None, "outbox_age"): "unknown"}, 5)


@pytest.mark.parametrize(("seconds", "verdict"), [(None, "ok"), (5.0, "ok"), (5.1, "failed")])
def test_the_bound_of_the_outbox(seconds: float | None, verdict: str) -> None:
    seen = overview(backlog=OutboxBacklog(1, seconds))
    assert verdicts(seen, outbox_age=5.0)[0] == {(None, "outbox_age"): verdict}


def test_what_fails_says_what_helps() -> None:
    checks = judge(overview(replace(FINE, dead=3)), Bounds(dead=0, lag=0))
    assert [each.remedy.split(",")[0] for each in checks] == ["", "imsync dead list --group group"]
    (lag,) = judge(overview(replace(FINE, lag=3)), Bounds(lag=0))
    assert (lag.what, lag.remedy) == ("the lag of group is above the bound", "imsync consume group")


# ── without bounds ───────────────────────────────────────────────────────────────────────────────────────

ALL = {("group", name) for name in ("lag_seconds", "pending_age", "dead", "conflicts", "lost", "unexplained")}


def test_without_bounds_it_is_what_status_looks_at() -> None:
    found, code = verdicts(overview())
    assert found == dict.fromkeys([*ALL, (None, "outbox_age")], "ok")
    assert code == 0


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [
        (overview(replace(FINE, lag=5, lag_seconds=31.0, alive=())), {("group", "lag_seconds")}),
        (overview(replace(FINE, lag=5, lag_seconds=None, alive=())), {("group", "lag_seconds")}),
        (overview(replace(FINE, lag=5, lag_seconds=61.0)), {("group", "lag_seconds")}),
        (overview(replace(FINE, pending=1, oldest_pending_seconds=61.0)), {("group", "pending_age")}),
        (overview(replace(FINE, pending=1, oldest_pending_seconds=31.0, held_by_dead=1)), {("group", "pending_age")}),
        (overview(replace(FINE, dead=1)), {("group", "dead")}),
        (overview(replace(FINE, beyond_end=True)), {("group", "beyond_end")}),
        (overview(unexplained=2), {("group", "unexplained")}),
        (overview(backlog=OutboxBacklog(2, 31.0)), {(None, "outbox_age")}),
    ],
)
def test_what_is_red_in_status_fails(seen: Overview, wrong: set[tuple[str | None, str]]) -> None:
    assert not seen.healthy
    found, code = verdicts(seen)
    assert {key for key, verdict in found.items() if verdict != "ok"} == wrong
    assert {found[key] for key in wrong} == {"failed"}
    assert code == 3


def test_without_redis_nothing_is_fine() -> None:
    seen = overview(redis=RedisUnreachable("away", "wait"))
    assert verdicts(seen) == ({(None, "redis"): "unknown", (None, "outbox_age"): "ok"}, 4)
    found, code = verdicts(seen, lag=5)
    assert found == {("group", "lag"): "unknown", ("friend", "lag"): "unknown"}
    assert code == 4


@pytest.mark.parametrize("stored", [True, False])
def test_without_the_user_store_nothing_is_fine(stored: bool) -> None:
    found, code = verdicts(overview(stored=stored, users=False))
    assert {verdict for key, verdict in found.items() if key[1] in ("lost", "unexplained", "outbox_age")} == {"unknown"}
    assert code == 5


def test_accounts_that_may_close_or_not_are_unknown() -> None:
    seen = overview(replace(FINE, lag=None, lag_seconds=1.0), unexplained=20_000, undelivered=None)
    found, code = verdicts(seen)
    assert (found["group", "unexplained"], code) == ("unknown", 4)
    assert set(found.values()) == {"ok", "unknown"}


def test_a_store_that_cannot_be_used_is_unknown_and_not_failed() -> None:
    broken: dict[str, ImsyncError] = {"user": StoreUnusable("damaged", "restore it")}
    checks = judge(overview(users=False, stores=broken), Bounds())
    unknown = [each for each in checks if each.verdict != Verdict.OK]
    assert {(each.name, each.verdict, each.what) for each in unknown} == {
        (name, Verdict.UNKNOWN, "damaged") for name in ("lost", "unexplained", "outbox_age")
    }
    assert _exit_code(checks, overview(users=False, stores=broken)) == 5


def test_what_failed_counts_for_more_than_what_is_unknown() -> None:
    assert verdicts(overview(replace(FINE, dead=1), stored=False, users=False))[1] == 3


# ── for Prometheus ───────────────────────────────────────────────────────────────────────────────────────


def series(seen: Overview, *, healthy: bool = True) -> dict[str, float]:
    lines = exposition(seen, healthy=healthy).splitlines()
    return {name: float(value) for line in lines if line[0] != "#" for name, _, value in [line.rpartition(" ")]}


def test_every_gauge_is_told_with_its_help() -> None:
    text = exposition(overview(), healthy=True)
    gauges = {each.name: each.meaning for each in CHECK}
    for name, about in gauges.items():
        assert f"# HELP {name} {about}\n# TYPE {name} gauge\n" in text
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")} == set(gauges)
    found = series(overview(replace(FINE, lag=3, pending=2, oldest_pending_seconds=1.5)))
    assert found['imsync_group_lag_entries{group="group"}'] == 3
    assert found['imsync_group_oldest_pending_seconds{group="group"}'] == 1.5
    assert found['imsync_group_staleness_seconds{group="group",quantile="0.5"}'] == 0.0125
    assert (found["imsync_stream_entries"], found["imsync_healthy"]) == (7, 1)


def test_what_is_unknown_is_left_out() -> None:
    seen = overview(replace(FINE, lag=None, lag_seconds=None, pending=1), stored=False, users=False)
    names = {name.partition("{")[0] for name in series(seen, healthy=False)}
    assert names == {
        "imsync_group_pending_entries", "imsync_group_consumers_alive", "imsync_group_dead_letters",
        "imsync_group_staleness_seconds", "imsync_stream_entries", "imsync_healthy",
    }  # fmt: skip
    assert not any('quantile="0.99"' in name for name in series(overview()))
    away = series(overview(redis=RedisUnreachable("away")), healthy=False)
    assert away == {"imsync_outbox_unsent_rows": 0, "imsync_outbox_oldest_seconds": 0, "imsync_healthy": 0}
