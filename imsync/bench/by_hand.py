"""The loop that a good engineer writes by hand in an afternoon: what imsync is measured against.

redis-py with hiredis, 1,000 entries per round trip, pydantic, one transaction and one XACK per batch, WAL,
`synchronous=NORMAL`, SQLite's default settings, the table layout that comes to mind first. It keeps no version, no
replica, no settlement log and no outbox: a repeat or a reordered pair makes it wrong, and what a crash stops between
its commit and its XADD is lost.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import redis
from pydantic import BaseModel

from imsync.bench.clock import paced, watch
from imsync.bench.place import BY_HAND, Place

COUNT = 1000
BLOCK_MS = 500
UPDATE = "UPDATE im_group_member SET user_nick_name = ?, head_image = ? WHERE user_id = ?"
EDIT = "UPDATE im_user SET nick_name = ?, head_image = ?, head_image_thumb = ? WHERE id = ?"


class Edited(BaseModel):
    """The event that it publishes."""

    id: str
    userId: int
    nickName: str
    headImage: str
    headImageThumb: str
    at: datetime


class Data(BaseModel):
    """The fields that the group service uses, of an event that imsync published."""

    id: int
    nickName: str
    headImageThumb: str


class Envelope(BaseModel):
    """The part of a CloudEvent that it needs."""

    id: str
    data: Data


def from_envelope(body: bytes) -> tuple[str, str, int]:
    """What an UPDATE takes of imsync's event."""
    data = Envelope.model_validate_json(body).data
    return data.nickName, data.headImageThumb, data.id


def from_edited(body: bytes) -> tuple[str, str, int]:
    """What an UPDATE takes of its own event."""
    event = Edited.model_validate_json(body)
    return event.nickName, event.headImageThumb, event.userId


class ByHand:
    """The jobs of a worker."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._events: list[Edited] = []

    def prepare(self, events: int, seed: int) -> Mapping[str, Any]:
        """Makes so many events, before the clock starts."""
        self._events = self._history(events, seed)
        return {}

    def publish(self) -> Mapping[str, Any]:
        """Publishes what was prepared."""
        with _client(self._place) as client, watch() as watched:
            for start in range(0, len(self._events), COUNT):
                pipeline = client.pipeline(transaction=False)
                for event in self._events[start : start + COUNT]:
                    pipeline.xadd(self._place.by_hand, {"event": event.model_dump_json()})
                pipeline.execute()
        return watched.work(len(self._events))

    def drain(self) -> Mapping[str, Any]:
        """Applies what is in imsync's stream."""
        stream, done = self._place.keys.stream, 0
        with _client(self._place) as client, _store(self._path) as store, watch() as watched:
            while reply := client.xreadgroup(BY_HAND, "by-hand", {stream: ">"}, count=COUNT):
                done += len(apply(client, store, stream, reply, from_envelope))
                watched.done(done)
        return watched.work(done)

    def edit(self, count: int, rate: float, seed: int, warm: int) -> Mapping[str, Any]:
        """Makes edits and publishes each: when which was committed."""
        stream, versions = self._place.by_hand, dict[int, int]()
        commits: list[tuple[int, int, float]] = []
        events = self._history(warm + count, seed)
        with _client(self._place) as client, _store(self._path) as store:
            for first, last in paced(warm, count, rate):
                due = events[first:last]
                store.execute("BEGIN")
                store.executemany(EDIT, [(e.nickName, e.headImage, e.headImageThumb, e.userId) for e in due])
                store.execute("COMMIT")
                now = time.monotonic()
                for event in due:
                    versions[event.userId] = versions.get(event.userId, 1) + 1
                    commits.append((event.userId, versions[event.userId], now))
                    client.xadd(stream, {"event": event.model_dump_json()})
        return {"commits": commits}

    def follow(self, count: int, ready: Callable[[], None]) -> Mapping[str, Any]:
        """Applies edits as they come: when the copies of which were committed."""
        stream, versions = self._place.by_hand, dict[int, int]()
        copies: list[tuple[int, int, float]] = []
        with _client(self._place) as client, _store(self._path) as store:
            ready()
            while len(copies) < count:
                if not (reply := client.xreadgroup(BY_HAND, "by-hand", {stream: ">"}, count=COUNT, block=BLOCK_MS)):
                    continue
                committed: list[float] = []
                for user_id in apply(client, store, stream, reply, from_edited, committed.append):
                    versions[user_id] = versions.get(user_id, 1) + 1
                    copies.append((user_id, versions[user_id], committed[0]))
        return {"copies": copies}

    @property
    def _path(self) -> Path:
        return self._place.round_ / "by-hand.db"

    def _history(self, count: int, seed: int) -> list[Edited]:
        from imsync.bench import scene

        profiles = scene.profiles_of(self._place.template / "user.db")
        after = scene.history(profiles, scene.edits(profiles, count=count, seed=seed))
        now = datetime.now(UTC)
        return [
            Edited(
                id=str(uuid4()),
                userId=each.id,
                nickName=each.nick_name,
                headImage=each.head_image,
                headImageThumb=each.head_image_thumb,
                at=now,
            )
            for each in after
        ]


def apply(
    client: Any,
    store: sqlite3.Connection,
    stream: str,
    reply: Any,
    parse: Callable[[bytes], tuple[str, str, int]],
    on_commit: Callable[[float], object] = lambda at: None,
) -> Sequence[int]:
    """One batch: parse, update, commit, acknowledge; the users' ids."""
    entries = reply[0][1]
    parsed = [parse(fields[b"event"]) for _, fields in entries]
    store.execute("BEGIN")
    store.executemany(UPDATE, parsed)
    store.execute("COMMIT")
    on_commit(time.monotonic())
    client.xack(stream, BY_HAND, *[entry_id for entry_id, _ in entries])
    return [user_id for _, _, user_id in parsed]


@contextmanager
def _client(place: Place) -> Iterator[Any]:
    options = {"username": place.username, "password": place.password, "ssl_ca_certs": place.tls_ca_file}
    client = redis.Redis.from_url(place.url, **{name: value for name, value in options.items() if value})
    with closing(client):
        yield cast(Any, client)


@contextmanager
def _store(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as store:
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("PRAGMA synchronous = NORMAL")
        yield store
