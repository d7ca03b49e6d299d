"""Users to edit, a look into the stores past the code under test, and talk with processes that use them."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imsync.bus.codec import Decoder
from imsync.im.events import IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.user_store import Profile, ProfileEdit, UserStore

MIA = Profile(1, "mia", "Mia", "mia.png", "mia_t.png")
NOAH = Profile(2, "noah", "Noah", "", "", version=41)
GONE = Profile(3, "gone", "", "", "", version=7, deleted=1)
PEOPLE = (MIA, NOAH, GONE)

_DECODER: Decoder[IMBaseEvent] = Decoder([UserUpdated, UserDeleted])


def sql(path: Path, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Runs a statement on a connection of its own; all its rows."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


def outbox_events(path: Path) -> list[IMBaseEvent]:
    """What the outbox of a user store holds, in order. Checks that its columns say what its bodies say."""
    read = []
    for event_id, user_id, version, body in sql(
        path, "SELECT event_id, user_id, version, body FROM outbox ORDER BY seq"
    ):
        event = _DECODER.decode(body)
        assert event is not None
        assert (event.event_id.bytes, event.id, event.version) == (event_id, user_id, version)
        read.append(event)
    return read


def nick(user_id: int, nick_name: str) -> ProfileEdit:
    """The edit of a nickname."""
    return ProfileEdit(user_id=user_id, nick_name=nick_name)


def hear(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def tell(process: subprocess.Popen[str], line: str = "go on") -> None:
    """Sends a line to a process that waits for one."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def latest_event(store: UserStore, user_id: int) -> tuple[int, str | None] | None:
    """The version and the entry id (None: not sent yet) of a user's newest event that the outbox remembers."""
    return next(((event.version, event.entry_id) for event in store.events_of(user_id, 1)), None)
