"""Events in great number: made from a template, and put into a stream by packed round trips.

So ten million take minutes, where the user store and its relay would take hours.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

from imsync.bus.codec import encode
from imsync.im.events import UserUpdated
from imsync.im.simulator import SimulatedEdit

PER_ROUND_TRIP = 1000
PER_MS = 60
"""How many edits the events' times say that there were in a millisecond."""
_SCATTER = 0x9E3779B97F4A7C15


@dataclass(slots=True)
class State:
    """A user's profile, and its version."""

    nick_name: str
    head_image: str
    head_image_thumb: str
    version: int


def read_states(user_db: Path) -> dict[int, State]:
    """The users of a user store that are not deleted."""
    with closing(sqlite3.connect(user_db)) as store:
        return {
            row[0]: State(*row[1:])
            for row in store.execute(
                "SELECT id, nick_name, head_image, head_image_thumb, version FROM im_user WHERE deleted = 0"
            )
        }


def write_states(user_db: Path, states: dict[int, State]) -> None:
    """Makes a user store as it is after the edits, so that copies can be compared with it."""
    with closing(sqlite3.connect(user_db, isolation_level=None)) as store:
        store.execute("BEGIN")
        store.executemany(
            "UPDATE im_user SET nick_name = ?, head_image = ?, head_image_thumb = ?, version = ? WHERE id = ?",
            [(s.nick_name, s.head_image, s.head_image_thumb, s.version, user_id) for user_id, s in states.items()],
        )
        store.execute("COMMIT")


def uniform_edits(user_ids: Sequence[int], count: int, seed: int) -> Iterator[SimulatedEdit]:
    """Edits of both nickname and avatar, of all users alike."""
    uniform = random.Random(f"imsync bench/{seed}").random
    for number in range(count):
        user_id = user_ids[int(uniform() * len(user_ids))]
        avatar = f"https://cdn.example.com/avatars/{user_id}/{seed}-{number}"
        yield SimulatedEdit(user_id, f"Mia {seed}-{number}", f"{avatar}.webp", f"{avatar}_96.webp", 0.0)


def bodies(edits: Iterable[SimulatedEdit], states: dict[int, State], source: str, count: int) -> Iterator[bytes]:
    """The events of edits as they travel, in their order. `states` is kept up to date.

    Args:
        count: how many there will be: the last ones happen now, and the first ones earlier.

    Raises:
        SystemExit: imsync itself would write them otherwise.
    """
    first_ms = time.time_ns() // 1_000_000 - count // PER_MS
    moment = ""
    head = f'{{"specversion":"1.0","type":"{UserUpdated.event_type}","source":"{source}","id":"'
    for number, edit in enumerate(edits):
        ms = first_ms + number // PER_MS
        if number % PER_MS == 0:
            moment = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="microseconds")[:-6]
        state = states[edit.user_id]
        if edit.nick_name is not None:
            state.nick_name = edit.nick_name
        if edit.head_image is not None and edit.head_image_thumb is not None:
            state.head_image, state.head_image_thumb = edit.head_image, edit.head_image_thumb
        state.version += 1
        stamp, noise = f"{ms:012x}", (number * _SCATTER) & (2**60 - 1)
        event_id = f"{stamp[:8]}-{stamp[8:]}-7{number % PER_MS:03x}-8{noise >> 48:03x}-{noise & (2**48 - 1):012x}"
        body = (
            f'{head}{event_id}","time":"{moment}Z","subject":"{edit.user_id}","sequence":"{state.version:019d}",'
            f'"data":{{"id":{edit.user_id},"nickName":{json.dumps(state.nick_name, ensure_ascii=False)},'
            f'"headImage":{json.dumps(state.head_image)},"headImageThumb":{json.dumps(state.head_image_thumb)},'
            f'"destination":"user-update"}}}}'
        ).encode()
        if number == 0:
            _compare(body, event_id, ms, edit.user_id, state, source)
        yield body


def _compare(body: bytes, event_id: str, ms: int, user_id: int, state: State, source: str) -> None:
    event = UserUpdated(
        event_id=UUID(event_id),
        occurred_at=datetime.fromtimestamp(ms / 1000, UTC),
        id=user_id,
        version=state.version,
        nick_name=state.nick_name,
        head_image=state.head_image,
        head_image_thumb=state.head_image_thumb,
    )
    if json.loads(encode(event, source=source)) != json.loads(body):
        raise SystemExit("bench/traffic.py writes events otherwise than imsync does: change its template")


def add_all(client: Any, stream: str, items: Iterable[bytes]) -> int:
    """Adds bodies to a stream, a thousand per round trip; how many."""
    pool = client.connection_pool
    connection = pool.get_connection()
    total, pending = 0, iter(items)
    try:
        while chunk := list(islice(pending, PER_ROUND_TRIP)):
            connection.send_packed_command([_commands(stream, chunk)])
            for _ in chunk:
                connection.read_response()
            total += len(chunk)
    finally:
        pool.release(connection)
    return total


def add_at_once(client: Any, stream: str, items: Sequence[bytes]) -> None:
    """Adds bodies to a stream in one transaction: whoever waits there sees all of them or none."""
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        connection.send_packed_command([b"*1\r\n$5\r\nMULTI\r\n", _commands(stream, items), b"*1\r\n$4\r\nEXEC\r\n"])
        for _ in range(len(items) + 2):
            connection.read_response()
    finally:
        pool.release(connection)


def _commands(stream: str, items: Sequence[bytes]) -> bytes:
    key = stream.encode()
    head = b"*5\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$5\r\nevent\r\n$" % (len(key), key)
    return b"".join(b"%b%d\r\n%b\r\n" % (head, len(body), body) for body in items)
