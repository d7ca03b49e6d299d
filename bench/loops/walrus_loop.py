"""The same with walrus, in batches.

python -m bench.loops.walrus_loop consume URL FILE|dict
python -m bench.loops.walrus_loop publish URL COUNT
"""

from __future__ import annotations

import json
import sys

from walrus import Database

from bench.loops.shared import COUNT, STREAM, Clock, Envelope, cloud_events, sink

GROUP = "walrus"


def consume(url: str, path: str) -> None:
    """Drains the stream once and prints what it did."""
    stream = Database.from_url(url).consumer_group(GROUP, [STREAM]).streams[STREAM]
    store = sink(path)
    clock = Clock()
    events = 0
    while entries := stream.read(count=COUNT):
        store.apply([Envelope.model_validate_json(fields[b"event"]).data for _, fields in entries])
        stream.ack(*[entry_id for entry_id, _ in entries])
        events += len(entries)
    print(json.dumps({"events": events, **clock.stop(), **store.told()}))


def publish(url: str, count: str) -> None:
    """Publishes so many events and prints how long it took."""
    database = Database.from_url(url)
    events = cloud_events(int(count))
    clock = Clock()
    for start in range(0, len(events), COUNT):
        pipeline = database.pipeline(transaction=False)
        for event in events[start : start + COUNT]:
            pipeline.xadd(STREAM, {"event": event.model_dump_json()})
        pipeline.execute()
    clock.report(len(events))


if __name__ == "__main__":
    {"consume": consume, "publish": publish}[sys.argv[1]](*sys.argv[2:])
