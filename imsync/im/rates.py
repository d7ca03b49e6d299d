"""How fast things go: what two overviews tell when they are compared. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from imsync.bus.inspection import ConsumerView
from imsync.im.overview import GroupOverview, Overview
from imsync.store.settlement import Histogram, Percentiles, percentiles


@dataclass(frozen=True, slots=True)
class GroupRates:
    """How fast a group was. None: unknown.

    Args:
        events_per_second: deliveries that came to an end, repeats included.
        staleness: how old the edits were that took effect meanwhile.
    """

    events_per_second: float | None = None
    staleness: Percentiles = field(default_factory=lambda: Percentiles(None, None))


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast all of it was, over so many seconds."""

    seconds: float | None = None
    edits_per_second: float | None = None
    groups: Mapping[str, GroupRates] = field(default_factory=dict)


def rates(before: Overview | None, after: Overview) -> Rates:
    """What happened between two overviews, per second. Unknown is None: without the store, without Redis, and when a
    number has fallen because a store was replaced.
    """
    seconds = (after.at_ms - before.at_ms) / 1000 if before else 0.0
    if before is None or seconds <= 0:
        return Rates()
    earlier = {group.view.group: group for group in before.groups}
    groups = {
        group.view.group: _group(earlier[group.view.group], group, before.at_ms, seconds)
        for group in after.groups
        if group.view.group in earlier
    }
    return Rates(seconds, _per_second(_edits(before), _edits(after), seconds), groups)


def _edits(overview: Overview) -> int | None:
    """How many events were ever written: by the outbox, or where that is elsewhere, by the stream."""
    if overview.outbox:
        return overview.outbox.edits
    return overview.retention.added if overview.retention else None


def _group(before: GroupOverview, after: GroupOverview, before_ms: int, seconds: float) -> GroupRates:
    if before.outcomes and after.outcomes:
        speed = _per_second(before.outcomes.settled, after.outcomes.settled, seconds)
    else:
        done = _by_members(before.view.members, after.view.members, before_ms)
        speed = None if done is None else round(done / seconds, 3)
    return GroupRates(speed, percentiles(_between(before.histogram, after.histogram)))


def _per_second(before: int | None, after: int | None, seconds: float) -> float | None:
    if before is None or after is None or after < before:
        return None
    return round((after - before) / seconds, 3)


def _by_members(before: tuple[ConsumerView, ...], after: tuple[ConsumerView, ...], before_ms: int) -> int | None:
    """What living consumers have done meanwhile, by what they tell; None when none of them tells."""
    known = {(each.name, each.life.since_ms): _events(each) for each in before if each.life}
    done: int | None = None if any(each.alive for each in after) else 0
    for each in after:
        events = _events(each)
        if each.life is None or events is None:
            continue
        start = known.get((each.name, each.life.since_ms))
        if start is None and (each.life.since_ms or 0) >= before_ms:
            start = 0  # it was started meanwhile
        if start is not None:
            done = (done or 0) + max(0, events - start)
    return done


def _events(member: ConsumerView) -> int | None:
    return member.life.vitals.events if member.life and member.life.vitals else None


def _between(before: Histogram, after: Histogram) -> Counter[int]:
    """What was added to a histogram."""
    added: Counter[int] = Counter()
    for hour, buckets in after.items():
        added.update(buckets)
        added.subtract(before.get(hour, {}))
    return +added
