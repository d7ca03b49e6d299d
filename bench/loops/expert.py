"""The hand-written loop that a good engineer would write in an afternoon: what imsync is measured against.

    python -m bench.loops.expert consume URL FILE|dict
    python -m bench.loops.expert publish URL COUNT

It reads the same stream as imsync (COUNT 1000, hiredis, pydantic, one transaction and one XACK per batch) into the
table layout that comes to mind first, with SQLite's default settings, WAL and synchronous=NORMAL; or it publishes, 1000
XADD per pipeline. It keeps no version, no replica and no settlement log: a repeat or a reordered pair makes it wrong.
"""

from __future__ import annotations

import json
import sys
from typing import Any, cast

import redis

from bench.loops.shared import COUNT, STREAM, Clock, Envelope, cloud_events, sink

GROUP = "expert"


def consume(url: str, path: str) -> None:
    """Drains the stream once and prints what it did."""
    client = cast(Any, redis.Redis.from_url(url))
    store = sink(path)
    clock = Clock()
    events = 0
    while reply := client.xreadgroup(GROUP, "expert", {STREAM: ">"}, count=COUNT):
        entries = reply[0][1]
        store.apply([Envelope.model_validate_json(fields[b"event"]).data for _, fields in entries])
        client.xack(STREAM, GROUP, *[entry_id for entry_id, _ in entries])
        events += len(entries)
    print(json.dumps({"events": events, **clock.stop(), **store.told()}))


def publish(url: str, count: str) -> None:
    """Publishes so many events and prints how long it took."""
    client = cast(Any, redis.Redis.from_url(url))
    events = cloud_events(int(count))
    clock = Clock()
    for start in range(0, len(events), COUNT):
        pipeline = client.pipeline(transaction=False)
        for event in events[start : start + COUNT]:
            pipeline.xadd(STREAM, {"event": event.model_dump_json()})
        pipeline.execute()
    clock.report(len(events))


if __name__ == "__main__":
    {"consume": consume, "publish": publish}[sys.argv[1]](*sys.argv[2:])
