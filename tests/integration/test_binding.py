"""A store belongs to its group: a second, an older or an empty one is refused, and nothing is consumed into it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from imsync.bus.binding import Binding
from imsync.bus.handler import Received, Rejected
from imsync.bus.outcome import Outcome
from imsync.errors import StoreMismatch
from tests.consumers import GROUP, Noted, Rig, Settling
from tests.servers import eventually


class Stored(Settling):
    """A handler with an identity, whose generation counts its transactions."""

    def __init__(self, store_id: str, generation: int = 0) -> None:
        super().__init__()
        self.store_id = store_id
        self.generation = generation

    def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
        self.generation += 1
        return super().apply(batch)

    def record_dead(self, dead: Sequence[Rejected]) -> None:
        self.generation += 1
        super().record_dead(dead)


def bound(rig: Rig) -> dict[bytes, float]:
    return dict(rig.client.zrange(rig.keys.store(GROUP), 0, -1, withscores=True))


def test_the_first_store_is_the_groups_and_its_generation_is_noted(any_rig: Rig) -> None:
    any_rig.publish(range(1, 26))
    store = Stored("one")
    any_rig.drain(store, batch=10)
    assert store.generation == 3
    assert bound(any_rig) == {b"one": 3}
    any_rig.stream.append(b"bad")
    any_rig.drain(store)
    assert bound(any_rig) == {b"one": 4}, "a dead letter is a transaction too"


def test_several_consumers_of_one_store_are_welcome(rig: Rig) -> None:
    store = Stored("one")
    rig.publish([1])
    running = rig.start(store)
    eventually(lambda: store.numbers == [1])
    rig.publish([2])
    rig.drain(store)
    running.stop()
    assert sorted(store.numbers) == [1, 2]


def test_a_second_store_is_refused_by_name(any_rig: Rig) -> None:
    any_rig.publish([1])
    any_rig.drain(Stored("one"))
    any_rig.publish([2])
    second = Stored("two", generation=9)
    with pytest.raises(StoreMismatch, match=r"group 'readers' feeds another store \(one\)") as refusal:
        any_rig.drain(second)
    assert "imsync rebuild readers" in refusal.value.hint
    assert second.numbers == []
    assert bound(any_rig) == {b"one": 1}
    third = Stored("one", generation=1)
    any_rig.drain(third)
    assert third.numbers == [2], "what it was refused is still there"


def test_an_older_copy_is_refused(rig: Rig) -> None:
    store = Stored("one")
    for number in (1, 2, 3):
        rig.publish([number])
        rig.drain(store)
    copy = Stored("one", generation=2)
    rig.publish([4])
    with pytest.raises(StoreMismatch, match=r"older than what group 'readers' has acknowledged \(generation 2 of 3\)"):
        rig.drain(copy)
    assert copy.numbers == []


def test_a_store_that_was_never_fed_is_refused_by_a_group_that_was(rig: Rig) -> None:
    rig.publish([1])
    rig.drain(Settling())
    with pytest.raises(StoreMismatch, match="group 'readers' was fed before"):
        rig.drain(Stored("fresh"))
    assert bound(rig) == {}
    store = Stored("known", generation=7)
    rig.drain(store)
    assert bound(rig) == {b"known": 7}, "one that was fed is taken: the binding itself was lost"


def test_a_copy_that_works_at_the_same_time_is_found_out(rig: Rig) -> None:
    """Both begin at one generation, and one falls behind the other: within a heartbeat it stops."""
    rig.publish([1])
    first = Stored("one")
    rig.drain(first)
    copy = Stored("one", generation=first.generation)
    running = rig.start(copy)
    eventually(lambda: rig.client.exists(rig.keys.alive(GROUP, running.consumer.name)))
    rig.client.zadd(rig.keys.store(GROUP), {"one": 5})  # the other one has committed
    with pytest.raises(StoreMismatch, match="a second copy is at work"):
        running.result()


def test_a_store_bound_elsewhere_meanwhile_stops_the_consumer(rig: Rig) -> None:
    store = Stored("one")
    running = rig.start(store)
    eventually(lambda: bound(rig) == {b"one": 0})
    binding = Binding(rig.client, rig.stream, rig.keys, GROUP, Stored("two", generation=4))
    binding.rebind(4)
    assert bound(rig) == {b"two": 4}
    with pytest.raises(StoreMismatch, match="another store"):
        running.result()
    assert bound(rig) == {b"two": 4}, "its acknowledgements bind nothing"


def test_an_acknowledgement_binds_no_store(rig: Rig) -> None:
    store = Stored("one")
    running = rig.start(store, heartbeat_ms=60_000)  # so that it does not look at the binding meanwhile
    eventually(lambda: bound(rig) == {b"one": 0})
    Binding(rig.client, rig.stream, rig.keys, GROUP, Stored("two", generation=4)).rebind(4)
    rig.publish([1])
    eventually(lambda: store.numbers == [1] and rig.pending() == {})
    assert bound(rig) == {b"two": 4}
    running.stop()


def test_the_binding_is_made_again_when_the_server_lost_everything(rig: Rig) -> None:
    store = Stored("one")
    running = rig.start(store)
    rig.publish([1])
    eventually(lambda: store.numbers == [1])
    rig.client.flushall()
    rig.publish([2])
    eventually(lambda: store.numbers == [1, 2])
    eventually(lambda: bound(rig) == {b"one": store.generation})
    running.stop()


def test_a_generation_never_falls(rig: Rig) -> None:
    rig.client.zadd(rig.keys.store(GROUP), {"one": 5})
    binding = Binding(rig.client, rig.stream, rig.keys, GROUP, Stored("one", generation=4))
    binding.note()
    assert bound(rig) == {b"one": 5}
