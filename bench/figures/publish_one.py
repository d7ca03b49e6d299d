"""Publishing one event, against one bare XADD of as many bytes."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.figure import AT_MOST, Figure, Goal, Result, Row, Side
from bench.job import KEYS
from bench.loops.shared import profile_fields
from bench.run import Bench
from bench.stats import Spread
from imsync.bus import Bus
from imsync.bus.codec import encode
from imsync.im.events import UserUpdated

BLOCK = 100
"""Calls in a row of the same kind: short, so that both see the same moods of the machine."""


def measure(bench: Bench) -> Result:
    """Calls both in turn; the median time of a call, per round."""
    blocks = bench.size(40, 15)
    url, client = bench.scratch()
    events = []
    for number in range(BLOCK):
        user_id, nick_name, image, thumb = profile_fields(number)
        events.append(
            UserUpdated(id=user_id, version=number + 2, nick_name=nick_name, head_image=image, head_image_thumb=thumb)
        )
    bodies = [encode(event, source="imsync") for event in events]
    found: dict[str, list[float]] = {"redis.xadd": [], "bus.publish": []}
    with Bus.from_url(url) as bus:
        for _ in range(bench.rounds(7)):
            times: dict[str, list[float]] = {name: [] for name in found}
            for _ in range(blocks):
                for body in bodies:
                    times["redis.xadd"].append(_timed(lambda body=body: client.xadd(KEYS.stream, {"event": body})))  # type: ignore[misc]
                for event in events:
                    times["bus.publish"].append(_timed(lambda event=event: bus.publish(event)))  # type: ignore[misc]
            for name, values in times.items():
                found[name].append(1e6 * Spread.of(values).median)
    client.flushdb()
    bare, published = Spread.of(found["redis.xadd"]), Spread.of(found["bus.publish"])
    ratio = published.against(bare)
    return Result(
        [Row("publish against redis.xadd, time", Goal(AT_MOST, 1.3), ratio)],
        [Side("redis.xadd", bare), Side("bus.publish", published)],
        "µs",
        [f"Medians of {blocks * BLOCK:,} calls each per round, {BLOCK} of a kind in a row, equal bodies."],
    )


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


FIGURE = Figure("publish_one", "Publishing one event", measure, checked=True)
