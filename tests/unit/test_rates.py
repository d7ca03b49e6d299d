"""How fast things go: two overviews compared."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from imsync.bus.inspection import ConsumerView, GroupView
from imsync.bus.liveness import Life
from imsync.bus.vitals import Vitals
from imsync.errors import RedisUnreachable
from imsync.im.accounts import Outcomes
from imsync.im.outbox import OutboxBacklog
from imsync.im.overview import GroupOverview, OutboxOverview, Overview, Place
from imsync.im.rates import Rates, rates


def group(
    settled: int | None,
    members: Mapping[str, tuple[int, int | None]] | None = None,
    ages: Mapping[int, int] | None = None,
) -> GroupOverview:
    """A group. `members`: since when, and how many events, by name."""
    views = tuple(
        ConsumerView("group", name, 0, 0, Life("h", 1, since, None if events is None else Vitals(events=events)))
        for name, (since, events) in (members or {}).items()
    )
    alive = tuple(each.name for each in views)
    view = GroupView("group", "s", True, 0, 0.0, 0, None, alive, 0, 0, "1-0", views)
    outcomes = None if settled is None else Outcomes(settled, 0, 0, 0, 5, 5)
    return GroupOverview(view, Place.HERE, outcomes, histogram={1: ages or {}})


def overview(at_ms: int, each: GroupOverview | None, edits: int | None = None) -> Overview:
    outbox = None if edits is None else OutboxOverview(OutboxBacklog(edits % 7, None), edits - edits % 7, 0)
    away = RedisUnreachable("away") if each is None else None
    return Overview(at_ms, (each,) if each else (), outbox, None, away, {}, (), ())


def test_what_a_store_settled_per_second() -> None:
    told = rates(overview(1000, group(10), 100), overview(3000, group(35), 103))
    assert (told.seconds, told.edits_per_second) == (2.0, 1.5)
    assert told.groups["group"].events_per_second == 12.5


def test_without_a_look_before_nothing_is_known() -> None:
    now = overview(1000, group(10), 100)
    assert rates(None, now) == rates(now, now) == rates(overview(2000, group(1)), now) == Rates()


def test_while_redis_is_away_edits_are_counted_all_the_same() -> None:
    told = rates(overview(1000, None, 100), overview(2000, group(10), 130))
    assert (told.edits_per_second, told.groups) == (30.0, {})


def test_numbers_that_fall_are_of_another_store() -> None:
    told = rates(overview(1000, group(10), 100), overview(2000, group(9), 99))
    assert (told.edits_per_second, told.groups["group"].events_per_second) == (None, None)


@pytest.mark.parametrize(
    ("before", "after", "speed"),
    [
        ({"a": (1, 10), "b": (1, 20)}, {"a": (1, 14), "b": (1, 21)}, 5.0),
        ({"a": (1, 10)}, {"a": (1, 10), "new": (1500, 7)}, 7.0),
        ({"a": (1, 10)}, {"a": (1600, 3)}, 3.0),  # started again under its name
        ({"a": (1, 10), "gone": (1, 99)}, {"a": (1, 12)}, 2.0),
        ({"a": (1, None)}, {"a": (1, 500)}, None),  # it has not told before: since when, nobody knows
        ({"a": (1, 10)}, {"a": (1, None)}, None),
        ({}, {}, 0.0),
    ],
)
def test_where_the_store_is_elsewhere_the_consumers_tell(
    before: dict[str, tuple[int, int | None]], after: dict[str, tuple[int, int | None]], speed: float | None
) -> None:
    told = rates(overview(1000, group(None, before)), overview(2000, group(None, after)))
    assert told.groups["group"].events_per_second == speed


def test_staleness_is_that_of_what_took_effect_meanwhile() -> None:
    before, after = group(0, ages={20: 5, 60: 100}), group(0, ages={20: 8, 40: 1, 60: 100})
    told = rates(overview(1000, before), overview(2000, after)).groups["group"].staleness
    assert (told.p50_ms, told.p99_ms) == (pytest.approx(11.2), pytest.approx(112.2))
    told = rates(overview(1000, after), overview(2000, after)).groups["group"].staleness
    assert (told.p50_ms, told.p99_ms) == (None, None)
