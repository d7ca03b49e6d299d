"""The plan of a replay: which pending entries, in which order, however many there are."""

from __future__ import annotations

from imsync.bus.replay import Planned, Selection, plan
from tests.consumers import GROUP, Rig


def planned(rig: Rig, group: str = GROUP, **selection: object) -> list[Planned]:
    return plan(rig.client, rig.stream, rig.keys, group, Selection(**{"min_idle_ms": 0, **selection}))  # type: ignore[arg-type]


def test_a_plan_holds_the_oldest_first_page_after_page(any_rig: Rig) -> None:
    first = any_rig.held_by("one", range(1, 1501))
    second = any_rig.held_by("two", range(1501, 2502))
    assert [each.entry.id for each in planned(any_rig)] == first + second
    assert [each.entry.id for each in planned(any_rig, limit=1700)] == (first + second)[:1700]
    assert [each.entry.id for each in planned(any_rig, consumer="two")] == second
    assert [each.entry.id for each in planned(any_rig, ids=[second[1], first[0], "1-0"])] == [second[1], first[0]]
    assert not any(each.owner_alive for each in planned(any_rig, limit=1))
    assert planned(any_rig, min_idle_ms=3_600_000) == []


def test_a_group_that_is_not_there_has_nothing_to_replay(any_rig: Rig) -> None:
    any_rig.publish([1])
    assert planned(any_rig, "nobody") == []
