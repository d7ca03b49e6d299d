"""The same work done by imsync, through the API that everybody has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imsync.bench import scene
from imsync.bench.clock import paced, watch
from imsync.bench.place import DESTINATION, GROUP, Place
from imsync.bench.scene import Stores
from imsync.bus import Bus, ConsumerOptions, Counts, Endpoint, Outcome, Received
from imsync.bus.deferred import finish
from imsync.bus.garbage import collect_rarely
from imsync.bus.telemetry import BatchApplied, TelemetryEvent
from imsync.im.events import IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.group_store import GroupStore
from imsync.im.relay import Relay
from imsync.im.user_store import UserStore


class Watched(GroupStore):
    """A group store that notes when the copies of which edits were committed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.copies: list[tuple[int, int, float]] = []

    def apply(self, batch: Sequence[Received[IMBaseEvent]]) -> list[Outcome]:
        """As every group store."""
        outcomes = super().apply(batch)
        now = time.monotonic()
        self.copies += [(received.event.id, received.event.version, now) for received in batch]
        return outcomes


class Library:
    """The jobs of a worker."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._endpoint = Endpoint(
            place.url,
            username=place.username,
            password=place.password,
            tls_ca_file=Path(place.tls_ca_file) if place.tls_ca_file else None,
        )
        self._stores = Stores(place.round_)
        self._events: list[UserUpdated | UserDeleted] = []

    def prepare(self, events: int, seed: int) -> Mapping[str, Any]:
        """Makes so many events, before the clock starts."""
        profiles = scene.profiles_of(self._place.template / "user.db")
        changes = scene.edits(profiles, count=events, seed=seed)
        self._events = [profile.event() for profile in scene.history(profiles, changes)]
        return {}

    def publish(self) -> Mapping[str, Any]:
        """Publishes what was prepared."""
        with self._bus() as bus, watch() as watched:
            bus.publish_many(self._events)
        return watched.work(len(self._events))

    def drain(self, name: str, with_phases: bool) -> Mapping[str, Any]:
        """Applies what is in the stream, as `imsync consume group --until-empty` does.

        Args:
            name: the consumer's.
            with_phases: ask where the time goes.
        """
        batches: list[tuple[float, float, float, float]] = []

        def listen(event: TelemetryEvent) -> None:
            if isinstance(event, BatchApplied):
                times = event.decode_seconds, event.apply_seconds, event.acknowledge_seconds, event.seconds
                batches.append(times)

        store = GroupStore(self._stores.group)
        with self._bus([listen] if with_phases else []) as bus:
            consumer = bus.consumer(
                DESTINATION,
                group=GROUP,
                events=store.events,
                handler=store,
                name=name,
                options=ConsumerOptions(until_empty=True),
                on_batch=lambda counts: watched.done(counts.events),
            )
            collect_rarely()  # as the command does
            with watch() as watched:
                counts = consumer.run()
        store.close()
        return {**watched.work(counts.events), "batches": batches, "settled": counts.applied + counts.superseded}

    def edit(self, count: int, rate: float, seed: int, warm: int) -> Mapping[str, Any]:
        """Makes edits and publishes each at once: when which was committed."""
        profiles = scene.profiles_of(self._place.template / "user.db")
        edits = scene.edits(profiles, count=warm + count, seed=seed)
        versions = {user_id: profile.version for user_id, profile in profiles.items()}
        commits: list[tuple[int, int, float]] = []
        users = UserStore(self._stores.user)
        with self._bus() as bus:
            relay = Relay(users, bus.publisher(DESTINATION), at_once=True)
            for first, last in paced(warm, count, rate):
                due = edits[first:last]
                with relay.standing_by():
                    made = users.edit_many(due)
                    now = time.monotonic()
                    relay.deliver(made.last_seq)
                for edit in due:
                    versions[edit.user_id] += 1
                    commits.append((edit.user_id, versions[edit.user_id], now))
        users.close()
        return {"commits": commits}

    def follow(self, count: int, name: str, ready: Callable[[], None]) -> Mapping[str, Any]:
        """Applies edits as they come: when the copies of which were committed."""
        store = Watched(self._stores.group)

        def on_batch(counts: Counts) -> None:
            if counts.events >= count:
                consumer.stop()

        with self._bus() as bus:
            consumer = bus.consumer(
                DESTINATION, group=GROUP, events=store.events, handler=store, name=name, on_batch=on_batch
            )
            collect_rarely()  # as the command does
            ready()
            consumer.run()
        finish(store)  # it was stopped behind the last event
        store.close()
        return {"copies": store.copies}

    def _bus(self, listeners: Sequence[Callable[[TelemetryEvent], None]] = ()) -> Bus:
        return Bus(self._endpoint, prefix=self._place.prefix, listeners=listeners)
