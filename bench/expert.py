"""The hand-written loop that a good engineer would write in an afternoon: what imsync is measured against.

    python bench/expert.py unix:///path/redis.sock /path/expert.db

Reads the same stream as imsync (COUNT 1000, hiredis, pydantic, one transaction and one XACK per batch) into the table
layout that comes to mind first, with SQLite's default settings, WAL and synchronous=NORMAL. It keeps no version, no
replica and no settlement log: a repeat or a reordered pair makes it wrong.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from typing import Any, cast

import redis
from pydantic import BaseModel

STREAM = "imsync:{user-update}:stream"
GROUP = "expert"
COUNT = 1000


class Data(BaseModel):
    """The fields that the group service uses."""

    id: int
    nickName: str
    headImageThumb: str


class Envelope(BaseModel):
    """The part of a CloudEvent that the loop needs."""

    id: str
    data: Data


def main() -> None:
    """Drains the stream once and prints what it did."""
    url, path = sys.argv[1:]
    client = cast(Any, redis.Redis.from_url(url))
    store = sqlite3.connect(path, isolation_level=None)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA synchronous = NORMAL")
    began = time.perf_counter()
    events = 0
    while reply := client.xreadgroup(GROUP, "expert", {STREAM: ">"}, count=COUNT):
        entries = reply[0][1]
        parsed = [Envelope.model_validate_json(fields[b"event"]).data for _, fields in entries]
        store.execute("BEGIN")
        store.executemany(
            "UPDATE im_group_member SET user_nick_name = ?, head_image = ? WHERE user_id = ?",
            [(each.nickName, each.headImageThumb, each.id) for each in parsed],
        )
        store.execute("COMMIT")
        client.xack(STREAM, GROUP, *[entry_id for entry_id, _ in entries])
        events += len(entries)
    print(json.dumps({"events": events, "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
