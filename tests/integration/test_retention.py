"""Trimming real streams: what is past retention goes, and what some group needs never does, on every kind of server."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from imsync.bus.entry import Entry, id_after, id_parts
from imsync.bus.retention import Floor, Retention, floor, trim
from imsync.bus.stream import Stream
from tests.consumers import GROUP, Rig
from tests.servers import eventually

HOUR_MS = 3_600_000
NODE = 100
"""How many entries a node of a stream holds, by the servers' default."""

ALL = Retention(hours=0, entries=1, min_hours=0)
"""All that the floor allows."""


def fill(rig: Rig, hours_ago: Sequence[float]) -> list[str]:
    """Adds entries of these ages, the oldest first; their ids."""
    now_ms = rig.stream.server_time_ms()
    pipeline = rig.client.pipeline(transaction=False)
    for number, hours in enumerate(hours_ago):
        pipeline.xadd(rig.keys.stream, {"event": b"x"}, id=f"{now_ms - int(hours * HOUR_MS)}-{number}")
    return [entry_id.decode() for entry_id in pipeline.execute()]


def ids_in(rig: Rig) -> list[str]:
    return [entry.id for entry in rig.stream.range()]


def read_all(rig: Rig, group: str = GROUP, acknowledge: bool = True) -> list[str]:
    """Has a group read what there is for it; the ids."""
    rig.stream.create_group(group)
    ids = [entry.id for entry in rig.stream.read_new(group, "ann", 100_000)]
    if acknowledge:
        rig.stream.acknowledge(group, ids)
    if ids:  # what was published in this very millisecond is too young for any trimming
        eventually(lambda: rig.stream.server_time_ms() > id_parts(ids[-1])[0])
    return ids


# ── the floor ────────────────────────────────────────────────────────────────────────────────────────────


def test_without_groups_there_is_no_floor_and_nothing_is_trimmed(any_rig: Rig) -> None:
    assert floor(any_rig.stream) is None
    assert trim(any_rig.stream, ALL, exact=True).removed == 0
    ids = fill(any_rig, [300, 200])
    assert floor(any_rig.stream) is None
    trimmed = trim(any_rig.stream, ALL, exact=True)
    assert (trimmed.removed, trimmed.up_to, trimmed.pinned_by) == (0, None, None)
    assert ids_in(any_rig) == ids


def test_the_floor_is_the_first_entry_that_a_group_has_not_acknowledged(any_rig: Rig) -> None:
    stream = any_rig.stream
    stream.create_group(GROUP)
    assert floor(stream) == Floor("0-1", GROUP)
    first, second, third, fourth = any_rig.publish(range(1, 5))
    assert floor(stream) == Floor("0-1", GROUP)
    stream.read_new(GROUP, "ann", 3)
    assert floor(stream) == Floor(first, GROUP)
    stream.acknowledge(GROUP, [first, third])
    assert floor(stream) == Floor(second, GROUP)
    stream.acknowledge(GROUP, [second])
    assert floor(stream) == Floor(id_after(third), GROUP)
    stream.acknowledge(GROUP, [entry.id for entry in stream.read_new(GROUP, "ann", 9)])
    assert floor(stream) == Floor(id_after(fourth), GROUP)


def test_the_floor_is_that_of_the_slowest_group_whoever_made_it(any_rig: Rig) -> None:
    first, second = any_rig.publish([1, 2])
    read_all(any_rig)
    any_rig.client.xgroup_create(any_rig.keys.stream, b"\xff\x1b[2J", first)
    lowest = floor(any_rig.stream)
    assert lowest is not None
    assert (lowest.id, lowest.group.encode(errors="surrogateescape")) == (id_after(first), b"\xff\x1b[2J")
    any_rig.stream.destroy_group(lowest.group)
    assert floor(any_rig.stream) == Floor(id_after(second), GROUP)


def test_a_group_that_is_set_back_lowers_the_floor(any_rig: Rig) -> None:
    first, _, third = any_rig.publish([1, 2, 3])
    read_all(any_rig, acknowledge=False)
    any_rig.stream.acknowledge(GROUP, [first])
    any_rig.client.xgroup_setid(any_rig.keys.stream, GROUP, first)
    any_rig.stream.acknowledge(GROUP, ids_in(any_rig)[1:2])
    assert floor(any_rig.stream) == Floor(id_after(first), GROUP), f"not {third}, the oldest pending one"


class Interrupted(Stream):
    """Something happens between the two reads that a floor takes, whichever comes first."""

    def __init__(self, rig: Rig, happens: Callable[[], object]) -> None:
        super().__init__(rig.client, rig.keys.stream)
        self._happens = happens
        self._reads = 0

    def _between(self) -> None:
        self._reads += 1
        if self._reads == 2:
            self._happens()

    def groups(self) -> Any:
        self._between()
        return super().groups()

    def pending_summary(self, group: str) -> Any:
        self._between()
        return super().pending_summary(group)


def test_what_is_delivered_while_one_looks_is_above_the_floor(any_rig: Rig) -> None:
    any_rig.stream.create_group(GROUP)
    first, second = any_rig.publish([1, 2])
    stream = Interrupted(any_rig, lambda: any_rig.stream.read_new(GROUP, "ann", 2))
    assert trim(stream, ALL, exact=True).removed == 0
    assert any_rig.stream.existing([first, second]) == {first, second}


def test_a_group_that_goes_while_one_looks_needs_nothing(any_rig: Rig) -> None:
    read_all(any_rig, "another")
    any_rig.publish([1, 2])
    read_all(any_rig)
    stream = Interrupted(any_rig, lambda: any_rig.stream.destroy_group("another"))
    assert trim(stream, ALL, exact=True).removed == 2


# ── trimming ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(), [167, 100, 20, 3]),
        (Retention(hours=99), [20, 3]),
        (Retention(entries=3), [100, 20, 3]),
        (Retention(entries=1), [20, 3]),
        (Retention(entries=1, min_hours=0), [3]),
        (Retention(hours=1, min_hours=101), [100, 20, 3]),
        (Retention(hours=500, entries=5), [169, 167, 100, 20, 3]),
        (Retention(hours=500, entries=6), [300, 169, 167, 100, 20, 3]),
    ],
)
def test_age_and_number_and_the_minimum(any_rig: Rig, retention: Retention, left: list[float]) -> None:
    ids = fill(any_rig, [300, 169, 167, 100, 20, 3])
    read_all(any_rig)
    trimmed = trim(any_rig.stream, retention, exact=True)
    assert ids_in(any_rig) == ids[-len(left) :]
    assert (trimmed.removed, trimmed.pinned_by, trimmed.more) == (6 - len(left), None, False)
    assert trim(any_rig.stream, retention, exact=True).removed == 0


@pytest.mark.parametrize(("hours", "removed"), [(-400, 0), (-200, 1), (0, 2)])
def test_ages_are_told_by_the_servers_clock(any_rig: Rig, hours: int, removed: int) -> None:
    fill(any_rig, [400, 200])
    read_all(any_rig)
    now_ms = any_rig.stream.server_time_ms()

    class Elsewhen(Stream):
        def server_time_ms(self) -> int:
            return now_ms + hours * HOUR_MS

    assert trim(Elsewhen(any_rig.client, any_rig.keys.stream), Retention(), exact=True).removed == removed


def test_the_floor_keeps_what_is_past_retention_and_its_group_is_named(any_rig: Rig) -> None:
    ids = fill(any_rig, [400, 300, 200, 100])
    read_all(any_rig)
    read_all(any_rig, "slow", acknowledge=False)
    any_rig.stream.acknowledge("slow", [ids[0], ids[2]])
    trimmed = trim(any_rig.stream, Retention(), exact=True)
    assert (trimmed.removed, trimmed.up_to, trimmed.pinned_by) == (1, ids[1], "slow")
    assert ids_in(any_rig) == ids[1:]
    any_rig.stream.acknowledge("slow", [ids[1]])
    trimmed = trim(any_rig.stream, Retention(), exact=True)
    assert (trimmed.removed, trimmed.pinned_by) == (2, None), "what is left pending is young enough"
    trimmed = trim(any_rig.stream, Retention(entries=1, min_hours=99), exact=True)
    assert (trimmed.removed, trimmed.pinned_by) == (0, None), "one is pending, and one may stay"
    fill(any_rig, [90])
    trimmed = trim(any_rig.stream, Retention(entries=1, min_hours=99), exact=True)
    assert (trimmed.removed, trimmed.pinned_by) == (0, "slow")


def test_a_group_that_has_read_all_pins_nothing(any_rig: Rig) -> None:
    fill(any_rig, [300, 200, 100])
    read_all(any_rig)
    assert trim(any_rig.stream, ALL, exact=True).pinned_by is None
    assert ids_in(any_rig) == []
    assert trim(any_rig.stream, ALL).removed == 0, "an empty stream is trimmed like any other"


def test_without_exact_whole_nodes_go(any_rig: Rig) -> None:
    fill(any_rig, [300] * (3 * NODE // 2) + [1] * NODE)
    read_all(any_rig)
    trimmed = trim(any_rig.stream, Retention())
    assert (trimmed.removed, any_rig.stream.length()) == (NODE, 3 * NODE // 2)
    assert trim(any_rig.stream, Retention()).removed == 0
    assert trim(any_rig.stream, Retention(), exact=True).removed == NODE // 2


def test_a_trim_goes_on_until_all_has_gone_in_steps_that_do_not_hold_up_the_server(any_rig: Rig) -> None:
    count = 250 * NODE
    fill(any_rig, [300] * count)
    read_all(any_rig)
    step = any_rig.stream.trim(floor(any_rig.stream).id)  # type: ignore[union-attr]
    assert step == 100 * NODE
    assert trim(any_rig.stream, Retention()).removed == count - step
    assert any_rig.stream.length() == 0


@pytest.mark.parametrize(
    ("retention", "limit"),
    [(Retention(), 100 * NODE), (Retention(hours=500, entries=1), 10 * NODE)],
    ids=["age", "number"],
)
def test_one_trim_does_not_take_for_ever(any_rig: Rig, retention: Retention, limit: int) -> None:
    fill(any_rig, [300] * (5 * limit // 2) + [1])
    read_all(any_rig)
    told = [trim(any_rig.stream, retention, exact=True, limit=limit) for _ in range(4)]
    assert [trimmed.removed for trimmed in told] == [limit, limit, limit // 2, 0]
    assert [trimmed.more for trimmed in told] == [True, True, False, False]
    assert any_rig.stream.length() == 1


def test_the_number_is_kept_when_two_trim_at_once(any_rig: Rig) -> None:
    ids = fill(any_rig, [300] * 30)
    read_all(any_rig)
    retention = Retention(hours=500, entries=10)

    class Overtaken(Stream):
        """While it walks, somebody else trims."""

        def range(self, start: str = "-", end: str = "+", count: int | None = None) -> list[Entry]:
            if any_rig.stream.length() > 10:
                trim(any_rig.stream, retention, exact=True)
            return super().range(start, end, count)

    trim(Overtaken(any_rig.client, any_rig.keys.stream), retention, exact=True)
    assert ids_in(any_rig) == ids[-10:]


def test_the_walk_for_the_number_ends_where_nothing_may_go(any_rig: Rig) -> None:
    fill(any_rig, [300] * 20 + [1] * 3000)
    read_all(any_rig)
    asked: list[int] = []

    class Counting(Stream):
        def range(self, start: str = "-", end: str = "+", count: int | None = None) -> list[Entry]:
            found = super().range(start, end, count)
            asked.append(len(found))
            return found

    trimmed = trim(Counting(any_rig.client, any_rig.keys.stream), Retention(hours=500, entries=1), exact=True)
    assert (trimmed.removed, sum(asked)) == (20, 20)


# ── whatever happens ─────────────────────────────────────────────────────────────────────────────────────


class History:
    """Random traffic on a stream, and what must then be in it, remembered apart from the server."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rng = random.Random(seed)
        self.rig = rig
        self.began_ms = rig.stream.server_time_ms()
        self.newest_ms = self.began_ms - 400 * HOUR_MS
        self.published: list[str] = []
        self.gone = 0
        self.groups: dict[str, tuple[int, set[str]]] = {}

    def add(self) -> None:
        room_ms = self.began_ms - HOUR_MS // 10 - self.newest_ms
        self.newest_ms += self.rng.randrange(max(1, min(room_ms, 20 * HOUR_MS)))
        for number in range(self.rng.randrange(1, 60)):
            entry_id = f"{self.newest_ms}-{len(self.published) + number}"
            self.rig.client.xadd(self.rig.keys.stream, {"event": b"x"}, id=entry_id)
            self.published.append(entry_id)

    def make_group(self) -> None:
        if len(self.groups) < 4:
            name = f"g{self.rng.randrange(10**9)}"
            read = self.rng.randrange(self.gone, len(self.published) + 1)
            self.rig.stream.create_group(name, self.published[read - 1] if read else "0")
            self.groups[name] = (read, set())

    def drop_group(self) -> None:
        if len(self.groups) > 2:
            name = self.rng.choice(sorted(self.groups))
            assert self.rig.stream.destroy_group(name)
            del self.groups[name]

    def read(self) -> None:
        for name in sorted(self.groups):
            read, pending = self.groups[name]
            count = self.rng.randrange(1, 80)
            ids = [entry.id for entry in self.rig.stream.read_new(name, f"c{self.rng.randrange(3)}", count)]
            assert ids == self.published[read : read + count], "an entry was trimmed before it was read"
            self.groups[name] = (read + len(ids), pending | set(ids))

    def acknowledge(self) -> None:
        for name, (_, pending) in self.groups.items():
            share = self.rng.choice([0.1, 0.9, 1.0])
            done = sorted(entry_id for entry_id in pending if self.rng.random() < share)
            assert self.rig.stream.acknowledge(name, done) == len(done)
            pending.difference_update(done)

    def trim(self) -> None:
        retention = Retention(
            hours=self.rng.choice([0.0, 1.0, 24.0, 168.0]),
            entries=self.rng.choice([1, 10, 100, 1_000_000]),
            min_hours=self.rng.choice([0.0, 0.0, 24.0, 200.0]),
        )
        before = len(self.published) - self.gone
        removed = trim(self.rig.stream, retention, exact=self.rng.random() < 0.7).removed
        left = ids_in(self.rig)
        self.gone += removed
        assert left == self.published[self.gone :]
        for name, (read, pending) in self.groups.items():
            assert pending <= set(left), f"{name}: trimmed while pending"
            assert self.gone <= read, f"{name}: trimmed before it was read"
        youngest_ms = id_parts(self.published[self.gone - 1])[0] if removed else 0
        assert youngest_ms < self.rig.stream.server_time_ms() - retention.min_hours * HOUR_MS
        if removed and retention.hours * HOUR_MS > self.began_ms - youngest_ms:
            assert len(left) >= min(before, retention.entries)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_group_needs_is_never_trimmed(any_rig: Rig, seed: int) -> None:
    history = History(any_rig, seed)
    history.add()
    history.make_group()
    steps = [history.add, history.read, history.acknowledge, history.trim, history.make_group, history.drop_group]
    for step in history.rng.choices(steps, weights=[3, 4, 4, 4, 1, 1], k=150):
        step()
    for name, (_, pending) in history.groups.items():
        any_rig.stream.acknowledge(name, sorted(pending) + read_all(any_rig, name))
    assert trim(any_rig.stream, ALL, exact=True).removed == len(history.published) - history.gone
    assert history.gone > 100, f"seed {seed} has trimmed next to nothing on the way"


def test_consumers_lose_nothing_while_others_trim(any_rig: Rig) -> None:
    """Nothing is kept but what is needed, and two trim without a pause."""
    count, groups = 6000, ("fast", "slow")
    for group in groups:
        any_rig.stream.create_group(group)
    ended = threading.Event()
    failures: list[BaseException] = []
    removed = [0, 0]

    def trimming(index: int) -> None:
        client = any_rig.bus.endpoint.connect()
        try:
            while not ended.is_set():
                removed[index] += trim(Stream(client, any_rig.keys.stream), ALL, exact=True).removed
        except BaseException as error:
            failures.append(error)
        finally:
            client.close()

    threads = [threading.Thread(target=trimming, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    try:
        ids: list[str] = []
        seen: dict[str, list[str]] = {group: [] for group in groups}
        held: list[str] = []
        while len(seen["slow"]) < count:
            if len(ids) < count:
                ids += any_rig.stream.append_many([b"x"] * 20)
            for group in groups:
                entries = any_rig.stream.read_new(group, "ann", 25 if group == "fast" else 15)
                assert all(entry.fields for entry in entries)
                seen[group] += [entry.id for entry in entries]
                done = [entry.id for entry in entries]
                if group == "slow":  # which acknowledges some of it late
                    held, done = done[::3], held + [each for each in done if each not in done[::3]]
                assert any_rig.stream.existing(done) == set(done), "trimmed while pending"
                any_rig.stream.acknowledge(group, done)
    finally:
        ended.set()
        for thread in threads:
            thread.join(10)
    assert failures == []
    assert seen == dict.fromkeys(groups, ids)
    assert sum(removed) > count // 2
