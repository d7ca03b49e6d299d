"""The same with FastStream, one message per call of the handler or a batch of them.

    python -m bench.loops.faststream_loop consume|batch URL FILE|dict EVENTS
    python -m bench.loops.faststream_loop publish URL COUNT
    python -m bench.loops.faststream_loop copy URL

It reads what it has written itself, in its own format: `copy` publishes the events of the job's stream again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

import redis
from faststream.redis import RedisBroker, StreamSub

from bench.loops.shared import COUNT, STREAM, Clock, CloudEvent, Envelope, cloud_events, sink

GROUP = "faststream"
OWN_STREAM = "bench:{user-update}:faststream"


async def consume(url: str, path: str, events: str, *, in_batches: bool = False) -> None:
    """Reads so many events and prints what it did."""
    store, wanted, seen = sink(path), int(events), 0
    done = asyncio.Event()

    async def one(message: Envelope) -> None:
        nonlocal seen
        store.apply([message.data])
        seen += 1
        if seen >= wanted:
            done.set()

    async def many(messages: list[Envelope]) -> None:
        nonlocal seen
        store.apply([message.data for message in messages])
        seen += len(messages)
        if seen >= wanted:
            done.set()

    broker = RedisBroker(url, logger=None)
    source = StreamSub(
        OWN_STREAM, group=GROUP, consumer="bench", batch=in_batches, max_records=COUNT, polling_interval=1000
    )
    broker.subscriber(stream=source)(many if in_batches else one)
    clock = Clock()
    await broker.start()
    await done.wait()
    reading = clock.stop()
    await broker.stop()
    print(json.dumps({"events": seen, **reading, **store.told()}))


async def publish(url: str, count: str) -> None:
    """Publishes so many events and prints how long it took."""
    events = cloud_events(int(count))
    clock = Clock()
    await _publish(url, STREAM, events)
    clock.report(len(events))


async def copy(url: str) -> None:
    """Publishes what is in the job's stream into its own."""
    client = cast(Any, redis.Redis.from_url(url))
    last, copied = "-", 0
    while entries := client.xrange(STREAM, last, "+", count=COUNT):
        await _publish(url, OWN_STREAM, [CloudEvent.model_validate_json(fields[b"event"]) for _, fields in entries])
        last = f"({entries[-1][0].decode()}"
        copied += len(entries)
    print(json.dumps({"events": copied}))


async def _publish(url: str, stream: str, events: Iterable[CloudEvent]) -> None:
    listed = list(events)
    async with RedisBroker(url, logger=None) as broker:
        client = await broker.connect()
        for start in range(0, len(listed), COUNT):
            async with client.pipeline(transaction=False) as pipeline:
                for event in listed[start : start + COUNT]:
                    await broker.publish(event, stream=stream, pipeline=pipeline)
                await pipeline.execute()


async def batch(url: str, path: str, events: str) -> None:
    """As `consume`, in batches."""
    await consume(url, path, events, in_batches=True)


COMMANDS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "batch": batch,
    "consume": consume,
    "copy": copy,
    "publish": publish,
}

if __name__ == "__main__":
    logging.disable()
    asyncio.run(COMMANDS[sys.argv[1]](*sys.argv[2:]))
