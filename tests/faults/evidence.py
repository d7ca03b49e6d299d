"""What is there to be judged: the history, the stores and Redis, read from outside with plain SQL and plain commands.

Nothing of imsync is used, so that a defect of imsync cannot hide itself.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from redis import Redis

from tests.faults.changelog import TABLES
from tests.faults.history import FIELDS, Story

STREAM = "imsync:{user-update}:stream"
DEAD = "imsync:{user-update}:dead:"
PICTURES = {"group": "head_image_thumb", "friend": "head_image"}
"""Which picture a service copies."""


@dataclass(frozen=True)
class User:
    """A user as the user store has it; `values` by field."""

    version: int
    deleted: bool
    values: Mapping[str, str]


@dataclass(frozen=True)
class Published:
    """An event of the outbox. `values` are None for a tombstone; `entry_id` is None until it is noted as sent."""

    event_id: str
    user: int
    version: int
    values: Mapping[str, str] | None
    entry_id: str | None = None
    sent: bool = True


@dataclass(frozen=True)
class Source:
    """The user store."""

    users: Mapping[int, User]
    outbox: Sequence[Published] = ()
    published: int = 0
    name: str = ""


@dataclass(frozen=True)
class Effect:
    """A user in a projection, after a change. `version` is None where the row was removed."""

    user: int
    version: int | None
    nick_name: str
    head_image: str
    deleted: bool = False


@dataclass(frozen=True)
class Copy:
    """A row that copies a user."""

    user: int
    place: int
    nick_name: str
    head_image: str
    remark: str = ""


@dataclass(frozen=True)
class Change:
    """A change of the settlement log: of which event, by its id or `entry:` and an entry id; None: no row."""

    key: str
    entry_id: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Projection:
    """The store of a service. `effects` and `copied` begin with what the store was made with."""

    service: str
    replicas: Mapping[int, Effect]
    copies: Sequence[Copy]
    settled: Mapping[str, tuple[str, str]]
    """By event: the outcome, and the entry id."""
    tallies: Mapping[tuple[str, str], int]
    effects: Sequence[Effect]
    copied: Sequence[Copy]
    changes: Sequence[Change]


@dataclass(frozen=True)
class Letter:
    """A dead letter."""

    source_id: str
    event_id: str
    reason: str


@dataclass(frozen=True)
class Group:
    """A consumer group in Redis. `pending`: who holds which entry."""

    exists: bool = True
    last_delivered: str = "0-0"
    pending: Mapping[str, str] = field(default_factory=dict)
    letters: Sequence[Letter] = ()


@dataclass(frozen=True)
class Evidence:
    """All of it.

    Args:
        began: the users as they were before the first edit.
        remarks: by service, the overrides as they were then, by (user, place).
        stream: the event of each entry, in order; None where it is no event.
        acknowledged: by group, the ids of all entries that clients have acknowledged; None when nobody has listened.
        rebuilt: services whose projection was rebuilt: it has effects that it has not settled.
    """

    story: Story
    began: Mapping[int, User]
    source: Source
    projections: Mapping[str, Projection]
    groups: Mapping[str, Group]
    stream: Mapping[str, str | None]
    remarks: Mapping[str, Mapping[tuple[int, int], str]] = field(default_factory=dict)
    acknowledged: Mapping[str, Collection[str]] | None = None
    rebuilt: frozenset[str] = frozenset()


def parts(entry_id: str) -> tuple[int, int]:
    """An entry id as numbers that compare as Redis orders them."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


# ── the stores ───────────────────────────────────────────────────────────────────────────────────────


def rows(path: Path, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """All rows of a statement, on a connection of its own that cannot write."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute("PRAGMA query_only = ON")
        return connection.execute(statement, parameters).fetchall()


def load_source(path: Path) -> Source:
    """The user store in a file."""
    users = {
        user_id: User(version, bool(deleted), dict(zip(FIELDS, values, strict=True)))
        for user_id, version, deleted, *values in rows(
            path, f"SELECT id, version, deleted, {', '.join(FIELDS)} FROM im_user"
        )
    }
    outbox = [
        _published(body, entry_id, sent_ms is not None)
        for body, entry_id, sent_ms in rows(path, "SELECT body, entry_id, sent_ms FROM outbox ORDER BY seq")
    ]
    ((published,),) = rows(path, "SELECT n FROM counter WHERE name = 'published'")
    ((store_id,),) = rows(path, "SELECT value FROM meta WHERE key = 'store_id'")
    return Source(users, outbox, published, f"urn:imsync:user-store:{store_id}")


def _published(body: bytes, entry_id: str | None, sent: bool) -> Published:
    event = json.loads(body)
    data = event["data"]
    values = None
    if event["type"] == "im.user.updated.v1":
        values = {"nick_name": data["nickName"], "head_image": data["headImage"]} | {
            "head_image_thumb": data["headImageThumb"]
        }
    return Published(UUID(event["id"]).hex, data["id"], int(event["sequence"]), values, entry_id, sent)


def load_projection(path: Path, service: str) -> Projection:
    """The store of a service in a file, with its change log. See `changelog`."""

    def effects(source: str) -> list[Effect]:
        return [
            Effect(user_id, version, nick_name, head_image, bool(deleted))
            for user_id, version, nick_name, head_image, deleted in rows(
                path, f"SELECT user_id, version, nick_name, head_image, deleted FROM {source}"
            )
        ]

    return Projection(
        service,
        {effect.user: effect for effect in effects("user_profile_replica")},
        load_copies(path, service),
        {
            key_text(key): (outcome, entry_id)
            for key, outcome, entry_id in rows(path, "SELECT event_key, outcome, entry_id FROM settled")
        },
        {(source, outcome): n for source, outcome, n in rows(path, "SELECT source, outcome, n FROM tally")},
        effects("fault_replica_log ORDER BY seq"),
        [
            Copy(*row)
            for row in rows(
                path, "SELECT user_id, place_id, nick_name, head_image, remark FROM fault_copy_log ORDER BY seq"
            )
        ],
        [
            Change(key_text(key), entry_id, before, after)
            for key, entry_id, before, after in rows(
                path, "SELECT event_key, entry_id, before, after FROM fault_settled_log ORDER BY seq"
            )
        ],
    )


def load_copies(path: Path, service: str) -> list[Copy]:
    """The rows of a service that copy users."""
    table, user, place, nick, image = TABLES[service]
    return [Copy(*row) for row in rows(path, f"SELECT {user}, {place}, {nick}, {image}, remark_nick_name FROM {table}")]


def key_text(key: bytes) -> str:
    """What a settled event is called: its id without dashes, or `entry:` and the id of its entry."""
    return key.decode() if key.startswith(b"entry:") else key.hex()


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────────


def load_stream(client: Redis) -> dict[str, str | None]:
    """The event ids of all entries, by entry id, in order."""
    entries: Any = client.xrange(STREAM)
    return {entry_id.decode(): event_id_of(fields.get(b"event", b"")) for entry_id, fields in entries}


def event_id_of(body: bytes) -> str | None:
    """The id of the event in an entry; None when there is no telling."""
    try:
        return UUID(json.loads(body)["id"]).hex
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def load_group(client: Redis, name: str) -> Group:
    """A consumer group and its dead letters."""
    letters: Any = client.xrange(DEAD + name)
    read = [
        Letter(*(fields.get(key, b"").decode(errors="replace") for key in (b"source_id", b"event_id", b"reason")))
        for _, fields in letters
    ]
    known: Any = client.xinfo_groups(STREAM) if client.exists(STREAM) else []
    info = next((info for info in known if info["name"] == name.encode()), None)
    if info is None:
        return Group(exists=False, letters=read)
    pending: Any = client.xpending_range(STREAM, name, "-", "+", 1_000_000)
    return Group(
        True,
        info["last-delivered-id"].decode(),
        {row["message_id"].decode(): row["consumer"].decode(errors="replace") for row in pending},
        read,
    )
