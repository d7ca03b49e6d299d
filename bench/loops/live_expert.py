"""The same by hand: commit, then XADD; a blocking XREADGROUP, commit, then XACK. Both with synchronous=NORMAL.

python -m bench.loops.live_expert edit URL USER.DB RATE COUNT
python -m bench.loops.live_expert follow URL EXPERT.DB COUNT
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast
from uuid import uuid4

import redis

from bench.loops.pacing import fields, now_us, paced
from bench.loops.shared import COUNT, STREAM, CloudEvent, Envelope, Profile, SqliteSink

GROUP = "expert"


def edit(url: str, path: str, rate: str, count: str) -> None:
    """Edits at a steady rate."""
    times: dict[str, int] = {}
    client = cast(Any, redis.Redis.from_url(url))
    store = sqlite3.connect(path, isolation_level=None)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = NORMAL")
    user_ids = [user_id for (user_id,) in store.execute("SELECT id FROM im_user WHERE NOT deleted ORDER BY id")]
    for number, user_id in paced(user_ids, float(rate), int(count), often=None):
        nick_name, image, thumb = fields(number)
        store.execute("BEGIN")
        store.execute(
            "UPDATE im_user SET nick_name = ?, head_image = ?, head_image_thumb = ?, version = version + 1 "
            "WHERE id = ?",
            (nick_name, image, thumb, user_id),
        )
        (version,) = store.execute("SELECT version FROM im_user WHERE id = ?", (user_id,)).fetchone()
        store.execute("COMMIT")
        times[nick_name] = now_us()
        event = CloudEvent(
            id=str(uuid4()),
            time=datetime.now(UTC).isoformat(),
            subject=str(user_id),
            sequence=f"{version:019d}",
            data=Profile(id=user_id, nickName=nick_name, headImage=image, headImageThumb=thumb),
        )
        client.xadd(STREAM, {"event": event.model_dump_json()})
    print(json.dumps({"times": times}))


def follow(url: str, path: str, count: str) -> None:
    """Applies so many events."""
    times: dict[str, int] = {}
    client = cast(Any, redis.Redis.from_url(url))
    store = SqliteSink(path)
    events = 0
    while events < int(count):
        if reply := client.xreadgroup(GROUP, "expert", {STREAM: ">"}, count=COUNT, block=500):
            entries = reply[0][1]
            parsed = [Envelope.model_validate_json(fields_[b"event"]).data for _, fields_ in entries]
            store.apply(parsed)
            now = now_us()
            times.update((each.nickName, now) for each in parsed)
            client.xack(STREAM, GROUP, *[entry_id for entry_id, _ in entries])
            events += len(entries)
    print(json.dumps({"times": times}))


COMMANDS: dict[str, Callable[..., None]] = {"edit": edit, "follow": follow}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
