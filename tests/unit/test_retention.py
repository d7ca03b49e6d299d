"""What may be trimmed: the pure part, against the definition and against a model of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.bus.entry import id_after, id_parts
from imsync.bus.retention import NO_LIMIT, Retention

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
IDS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


def id_of(parts: tuple[int, int]) -> str:
    return "{}-{}".format(*parts)


def hours_ago(hours: float) -> str:
    return f"{NOW_MS - int(hours * HOUR_MS)}-0"


# ── ids ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("entry_id", "next_id"),
    [
        ("0-0", "0-1"),
        ("7-8", "7-9"),
        (f"7-{2**64 - 1}", "8-0"),
        (f"{2**64 - 1}-{2**64 - 2}", NO_LIMIT),
        (NO_LIMIT, NO_LIMIT),
    ],
)
def test_the_id_after(entry_id: str, next_id: str) -> None:
    assert id_after(entry_id) == next_id


@given(IDS, IDS)
def test_nothing_is_between_an_id_and_the_one_after(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (other > one) is (other >= id_parts(id_after(id_of(one))) and other != one)


# ── the bounds ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("floor", "keep_from", "goes_below"),
    [
        (hours_ago(1), "0-0", hours_ago(168)),  # by age alone
        (hours_ago(1), hours_ago(200), hours_ago(168)),  # the number asks for less
        (hours_ago(1), hours_ago(100), hours_ago(100)),  # the number asks for more
        (hours_ago(1), hours_ago(2), hours_ago(24)),  # and for more than is allowed
        (hours_ago(1), NO_LIMIT, hours_ago(24)),
        (hours_ago(300), hours_ago(2), hours_ago(300)),  # the floor stops everything
        (hours_ago(100), hours_ago(50), hours_ago(100)),
        ("0-1", NO_LIMIT, "0-1"),
    ],
)
def test_the_floor_is_stronger_than_the_minimum_and_that_than_age_and_number(
    floor: str, keep_from: str, goes_below: str
) -> None:
    assert Retention().trim_id(NOW_MS, floor, keep_from) == goes_below


def test_a_minimum_beyond_the_hours_wins() -> None:
    assert Retention(hours=1, min_hours=5).trim_id(NOW_MS, hours_ago(0), "0-0") == hours_ago(5)


def test_the_numbers_are_compared_as_numbers() -> None:
    assert Retention(hours=0, min_hours=0).trim_id(10_000, "9999-11", "9999-2") == "9999-11"
    assert Retention(hours=0, min_hours=0).trim_id(10_000, "10000-0", "9-0") == "10000-0"


def test_before_the_first_hours_of_time_nothing_goes() -> None:
    assert Retention().trim_id(HOUR_MS, NO_LIMIT, "0-0") == "0-0"


@pytest.mark.parametrize(
    "values",
    [
        {"hours": -1.0},
        {"hours": float("nan")},
        {"hours": float("inf")},
        {"min_hours": -0.1},
        {"min_hours": float("nan")},
        {"entries": 0},
    ],
)
def test_bounds_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Retention(**values)  # type: ignore[arg-type]


# ── a model ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class ModelGroup:
    """What a group has read, and what of that it has not acknowledged."""

    read: int = 0
    pending: set[tuple[int, int]] = field(default_factory=set)


@dataclass
class ModelStream:
    """A stream as Redis documents it: entries in order, and its groups."""

    entries: list[tuple[int, int]]
    groups: list[ModelGroup]

    def floor(self) -> str:
        """By the definition: the first id that some group has not acknowledged, in the ids of the whole stream."""
        unread = [
            (self.entries[group.read - 1][0], self.entries[group.read - 1][1] + 1) if group.read else (0, 1)
            for group in self.groups
        ]
        return id_of(min([*unread, *(entry for group in self.groups for entry in group.pending)]))


@st.composite
def streams(draw: st.DrawFn) -> ModelStream:
    """Entries of the last 20 hours, and groups that have read and acknowledged some of them."""
    ages = draw(st.lists(st.integers(0, 20 * HOUR_MS), min_size=1, max_size=30))
    entries = sorted({(NOW_MS - age, draw(st.integers(0, 2))) for age in ages})
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        read = draw(st.integers(0, len(entries)))
        pending = draw(st.sets(st.sampled_from(entries[:read]))) if read else set()
        groups.append(ModelGroup(read, pending))
    return ModelStream(entries, groups)


RETENTIONS = st.builds(
    Retention, hours=st.floats(0, 21), entries=st.integers(1, 31), min_hours=st.floats(0, 21) | st.just(0.0)
)


@given(streams(), RETENTIONS)
def test_what_goes_is_past_retention_and_needed_by_no_group(stream: ModelStream, retention: Retention) -> None:
    keep_from = id_of(stream.entries[-retention.entries]) if len(stream.entries) > retention.entries else "0-0"
    bound = id_parts(retention.trim_id(NOW_MS, stream.floor(), keep_from))
    gone = [entry for entry in stream.entries if entry < bound]
    kept = [entry for entry in stream.entries if entry >= bound]
    for group in stream.groups:
        assert not group.pending.intersection(gone), "trimmed while pending"
        assert len(gone) <= group.read, "trimmed before it was read"
    assert all(NOW_MS - ms > int(retention.min_hours * HOUR_MS) for ms, _ in gone)
    for number, (ms, _) in enumerate(gone):
        newer = len(stream.entries) - number - 1
        assert NOW_MS - ms > int(retention.hours * HOUR_MS) or newer >= retention.entries
    if kept and id_of(kept[0]) < stream.floor():  # acknowledged by all: what keeps it is its age and its number
        age_ms, newer = NOW_MS - kept[0][0], len(kept) - 1
        young = age_ms <= int(retention.min_hours * HOUR_MS)
        assert young or (age_ms <= int(retention.hours * HOUR_MS) and newer < retention.entries)
