"""What is counted: phases of work, each closed by a call that valgrind knows. `python -m bench.instructions.workload`.

Nothing here depends on the time, on a server or on luck: the same machine code runs every time.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

from imsync.bus.codec import Decoder, encode
from imsync.bus.entry import Entry
from imsync.bus.handler import Received
from imsync.im.events import UserUpdated
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.profile import Profile

EVENTS = 400
USERS = 200
GROUPS = 5
PHASES = ("start", "json.loads", "encode", "decode", "apply")
"""In their order. `start` is whatever comes before."""


def mark() -> None:
    """Ends a phase: callgrind dumps its counters, and begins anew, where the C library's getsid is entered."""
    os.getsid(0)


def events(first_version: int) -> list[UserUpdated]:
    """Edits of users in turn, two of each."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    made = []
    for number in range(EVENTS):
        user_id = 7280009836970909185 + number * 37 % USERS * 4099
        serial = first_version * EVENTS + number
        avatar = f"https://cdn.example.com/avatars/{user_id}/7-{serial}"
        made.append(
            UserUpdated(
                event_id=UUID(int=0x019B76DAA80070008000000000000000 + serial),
                occurred_at=began + timedelta(milliseconds=serial),
                id=user_id,
                version=first_version + number // USERS,
                nick_name=f"さくら 7-{serial}",
                head_image=f"{avatar}.webp",
                head_image_thumb=f"{avatar}_96.webp",
            )
        )
    return made


def main() -> None:
    """Runs every phase once to warm up, and once to be counted."""
    with tempfile.TemporaryDirectory(prefix="imsync-instructions-") as folder:
        store = GroupStore(Path(folder) / "group.db", create=True)
        ids = [7280009836970909185 + number * 4099 for number in range(USERS)]
        store.bootstrap(
            [Profile(user_id, str(user_id), "", "", "") for user_id in ids],
            [Group(number, f"group {number}", ids[0]) for number in range(GROUPS)],
            [Member(group, user_id) for user_id in ids for group in range(GROUPS)],
        )
        decoder = Decoder(store.events, lean=store.lean)
        for first_version in (2, 4):
            made = events(first_version)
            bodies = [encode(event, source="urn:imsync:bench") for event in made]
            entries = [
                Entry(f"{1_767_225_600_000 + first_version}-{number}", body) for number, body in enumerate(bodies)
            ]
            gc.collect()
            gc.disable()
            mark()
            for body in bodies:
                json.loads(body)
            mark()
            for event in made:
                encode(event, source="urn:imsync:bench")
            mark()
            decoded, _ = decoder.read_all(entries)
            mark()
            batch = [Received(event, entry.id) for event, entry in zip(decoded, entries, strict=True)]
            outcomes = store.apply(batch)
            mark()
            gc.enable()
            if len(outcomes) != EVENTS:
                raise SystemExit("not every event was applied")
        store.close()


if __name__ == "__main__":
    main()
