"""imsync's library, as its users call it.

    python -m bench.loops.imsync_loop publish URL COUNT
    python -m bench.loops.imsync_loop dict URL [--go KEY]
    python -m bench.loops.imsync_loop layout URL FILE
    python -m bench.loops.imsync_loop store URL GROUP.DB [EVENTS]

`dict` and `layout` bring handlers of their own, `store` is the group store. With --go the consumer waits until somebody
pushes to the list KEY; with EVENTS it waits for more until it has taken so many.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.loops.shared import UPDATE, Clock, profile_fields
from imsync.bus import APPLIED, Bus, ConsumerOptions, Counts, Event, Outcome, Received, TelemetryEvent
from imsync.bus.garbage import collect_rarely
from imsync.bus.telemetry import BatchApplied
from imsync.im.events import DESTINATION, User2GroupEvent, UserUpdated

GROUP = "group"


class DictHandler:
    """Copies in a dict."""

    def __init__(self) -> None:
        self.copies: dict[int, tuple[str, str]] = {}

    def apply(self, batch: Sequence[Received[User2GroupEvent]]) -> list[Outcome]:
        """See `imsync.bus.Handler`."""
        for received in batch:
            event = received.event
            self.copies[event.id] = event.nick_name, event.head_image_thumb
        return [APPLIED] * len(batch)


class LayoutHandler:
    """Copies in the expert's tables, with its statement and its settings."""

    def __init__(self, path: str) -> None:
        self._store = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._store.execute("PRAGMA journal_mode = WAL")
        self._store.execute("PRAGMA synchronous = NORMAL")

    def apply(self, batch: Sequence[Received[User2GroupEvent]]) -> list[Outcome]:
        """See `imsync.bus.Handler`."""
        events = [received.event for received in batch]
        self._store.execute("BEGIN")
        self._store.executemany(UPDATE, [(each.nick_name, each.head_image_thumb, each.id) for each in events])
        self._store.execute("COMMIT")
        return [APPLIED] * len(batch)


class Timeline:
    """When batches ended, and how long the handler took in all. A listener."""

    def __init__(self) -> None:
        self.apply_seconds = 0.0
        self.points: list[tuple[float, int]] = []

    def __call__(self, event: TelemetryEvent) -> None:
        """See `imsync.bus.telemetry`."""
        if isinstance(event, BatchApplied):
            self.apply_seconds += event.apply_seconds

    def on_batch(self, counts: Counts) -> None:
        """After every batch."""
        self.points.append((time.monotonic(), counts.events))


def publish(url: str, count: str) -> None:
    """Publishes so many events and prints how long it took."""
    events = []
    for number in range(int(count)):
        user_id, nick_name, image, thumb = profile_fields(number)
        events.append(
            UserUpdated(id=user_id, version=number + 2, nick_name=nick_name, head_image=image, head_image_thumb=thumb)
        )
    with Bus.from_url(url) as bus:
        bus.ping()
        clock = Clock()
        bus.publish_many(events)
        clock.report(len(events))


def consume(
    url: str, handler: Any, events: Sequence[type[Event]], *, go: str | None = None, wanted: int | None = None
) -> dict[str, Any]:
    """Drains the stream once, or takes as many events as are wanted; what to print of it."""
    timeline = Timeline()

    def on_batch(counts: Counts) -> None:
        timeline.on_batch(counts)
        if counts.events == wanted:
            consumer.stop()

    with Bus.from_url(url, listeners=[timeline]) as bus:
        consumer = bus.consumer(
            DESTINATION,
            group=GROUP,
            events=events,
            handler=handler,
            options=ConsumerOptions(until_empty=wanted is None),
            on_batch=on_batch,
        )
        collect_rarely()  # as `imsync consume` does
        if go is not None:
            bus.client.blpop([go])
        began = time.monotonic()
        clock = Clock()
        counts = consumer.run()
        reading = clock.stop()
    if counts.dead or counts.left_pending:
        raise SystemExit(f"{counts.dead} dead letters, {counts.left_pending} left pending")
    return {
        "events": counts.events,
        **reading,
        "apply_seconds": timeline.apply_seconds,
        "began": began,
        "points": timeline.points,
    }


def into_dict(url: str, _option: str = "", go: str | None = None) -> None:
    """Into a dict, at once or when somebody says go."""
    handler = DictHandler()
    result = consume(url, handler, [User2GroupEvent], go=go)
    from bench.job import digest_of

    print(json.dumps({**result, "digest": digest_of(handler.copies)}))


def layout(url: str, path: str) -> None:
    """Into the expert's tables."""
    print(json.dumps(consume(url, LayoutHandler(path), [User2GroupEvent])))


def store(url: str, path: str, wanted: str = "") -> None:
    """Into the group store."""
    from imsync.im.group_store import GroupStore

    group_store = GroupStore(Path(path))
    result = consume(url, group_store, group_store.events, wanted=int(wanted) if wanted else None)
    group_store.close()
    print(json.dumps(result))


COMMANDS: dict[str, Callable[..., None]] = {"publish": publish, "dict": into_dict, "layout": layout, "store": store}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
