"""What the hand-written loops and those of other libraries have in common: the model, the stores, the clock.

Knows nothing of imsync: it runs where other libraries are installed, too.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

from pydantic import BaseModel

STREAM = "imsync:{user-update}:stream"
COUNT = 1000
"""Entries per read, and per round trip."""
UPDATE = "UPDATE im_group_member SET user_nick_name = ?, head_image = ? WHERE user_id = ?"


class Data(BaseModel):
    """The fields that the group service uses."""

    id: int
    nickName: str
    headImageThumb: str


class Envelope(BaseModel):
    """The part of a CloudEvent that a reader needs."""

    id: str
    data: Data


class Profile(BaseModel):
    """The data of an event to publish."""

    id: int
    nickName: str
    headImage: str
    headImageThumb: str
    destination: str = "user-update"


class CloudEvent(BaseModel):
    """An event to publish, with what imsync writes into one."""

    specversion: str = "1.0"
    type: str = "im.user.updated.v1"
    source: str = "urn:imsync:user-store:bench"
    id: str
    time: str
    subject: str
    sequence: str
    data: Profile


def profile_fields(number: int) -> tuple[int, str, str, str]:
    """The id, nickname, picture and thumb of the event number so-and-so, the same for everybody who publishes."""
    user_id = 7280009836970909185 + (number * 7919) % 10_000 * 4099
    avatar = f"https://cdn.example.com/avatars/{user_id}/7-{number}"
    return user_id, f"Mia 7-{number}", f"{avatar}.webp", f"{avatar}_96.webp"


def cloud_events(count: int) -> list[CloudEvent]:
    """Events to publish, at hand before the clock starts."""
    made = []
    for number in range(count):
        user_id, nick_name, image, thumb = profile_fields(number)
        data = Profile(id=user_id, nickName=nick_name, headImage=image, headImageThumb=thumb)
        made.append(
            CloudEvent(
                id=str(uuid4()),
                time=datetime.now(UTC).isoformat(),
                subject=str(user_id),
                sequence=f"{number + 2:019d}",
                data=data,
            )
        )
    return made


class Sink(Protocol):
    """Where the copies are."""

    def apply(self, batch: Iterable[Data]) -> None:
        """Writes, and commits."""

    def told(self) -> dict[str, Any]:
        """What the result says of it."""


class DictSink:
    """Copies in a dict."""

    def __init__(self) -> None:
        self.copies: dict[int, tuple[str, str]] = {}

    def apply(self, batch: Iterable[Data]) -> None:
        """See `Sink`."""
        for each in batch:
            self.copies[each.id] = each.nickName, each.headImageThumb

    def told(self) -> dict[str, Any]:
        """A hash of all copies."""
        lines = "\n".join(f"{user_id} {self.copies[user_id]!a}" for user_id in sorted(self.copies))
        return {"digest": hashlib.sha256(lines.encode()).hexdigest()}


class SqliteSink:
    """Copies in the tables of `bench.job.expert_store`, with SQLite's default settings, WAL and synchronous=NORMAL."""

    def __init__(self, path: str) -> None:
        self._store = sqlite3.connect(path, isolation_level=None)
        self._store.execute("PRAGMA journal_mode = WAL")
        self._store.execute("PRAGMA synchronous = NORMAL")

    def apply(self, batch: Iterable[Data]) -> None:
        """See `Sink`."""
        self._store.execute("BEGIN")
        self._store.executemany(UPDATE, [(each.nickName, each.headImageThumb, each.id) for each in batch])
        self._store.execute("COMMIT")

    def told(self) -> dict[str, Any]:
        """Nothing: the file is there to be compared."""
        return {}


def sink(path: str) -> Sink:
    """A sink for a file, or for `dict`."""
    return DictSink() if path == "dict" else SqliteSink(path)


class Clock:
    """Measures from now on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def report(self, events: int, **more: object) -> None:
        """Prints the result. To be called with the clock's reading still right: first of all."""
        seconds, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        print(json.dumps({"events": events, "seconds": seconds, "cpu": cpu, **more}))

    def stop(self) -> dict[str, float]:
        """The reading, for a report that takes time to make."""
        return {"seconds": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}
