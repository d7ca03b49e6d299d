"""The loop that tutorials show: ten entries per read, and for each of them an UPDATE, a commit and an XACK.

python -m bench.loops.naive consume URL FILE|dict
python -m bench.loops.naive publish URL COUNT
"""

from __future__ import annotations

import json
import sys
from typing import Any, cast

import redis

from bench.loops.shared import STREAM, Clock, Envelope, cloud_events, sink

GROUP = "naive"


def consume(url: str, path: str) -> None:
    """Drains the stream once and prints what it did."""
    client = cast(Any, redis.Redis.from_url(url))
    store = sink(path)
    clock = Clock()
    events = 0
    while reply := client.xreadgroup(GROUP, "naive", {STREAM: ">"}, count=10):
        for entry_id, fields in reply[0][1]:
            store.apply([Envelope.model_validate_json(fields[b"event"]).data])
            client.xack(STREAM, GROUP, entry_id)
            events += 1
    print(json.dumps({"events": events, **clock.stop(), **store.told()}))


def publish(url: str, count: str) -> None:
    """Publishes so many events, one by one, and prints how long it took."""
    client = cast(Any, redis.Redis.from_url(url))
    events = cloud_events(int(count))
    clock = Clock()
    for event in events:
        client.xadd(STREAM, {"event": event.model_dump_json()})
    clock.report(len(events))


if __name__ == "__main__":
    {"consume": consume, "publish": publish}[sys.argv[1]](*sys.argv[2:])
