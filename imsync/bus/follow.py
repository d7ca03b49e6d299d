"""Following a stream without a group: every entry from a place on, in order, as long as somebody looks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from imsync.bus.entry import Entry, id_before, id_parts
from imsync.bus.retention import NO_LIMIT
from imsync.bus.retry import Backoff
from imsync.bus.stream import Stream
from imsync.errors import RedisUnreachable

PAGE = 500
"""How many entries one read takes."""
BLOCK_MS = 1000
"""How long one read waits at the end of the stream."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The connection broke. `delay`: seconds until it is tried again."""

    error: RedisUnreachable
    delay: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """It works again. `after`: the entry after which is read on; None when the stream that is there now was made anew,
    and is read from its start.
    """

    after: str | None


def follow(
    stream: Stream,
    start: str,
    *,
    end: str = NO_LIMIT,
    wait: bool = True,
    on_trouble: Callable[[Interrupted | Resumed], None] = lambda what: None,
    backoff: Backoff | None = None,
    sleep: Callable[[float], object] = time.sleep,
    rng: random.Random | None = None,
) -> Iterator[list[Entry]]:
    """Pages of entries in the order of their ids, none of them empty. Moves nothing.

    Args:
        stream: of a client whose read timeout is longer than `BLOCK_MS`.
        start: the first id to read.
        end: the last id to read: ends behind it, or when the server's clock has passed it.
        wait: for entries that are not there yet. Otherwise ends where the stream ends.
        on_trouble: called when the connection breaks, once, and when it works again.

    Raises:
        RedisUnreachable: only without `wait`: somebody waits for the end, who had better know.
        RedisRefused: as it is told.
    """
    after, read = id_before(start), False
    delays, rng = backoff or Backoff(), rng or random.Random()
    failures = 0
    while id_parts(after) < id_parts(end):
        try:
            if failures:
                anew = read and _was_made_anew(stream, after)
                after, failures = "0-0" if anew else after, 0
                on_trouble(Resumed(None if anew else after))
            page = stream.read_after(after, PAGE, BLOCK_MS if wait else None)
            over = not page and (not wait or (end != NO_LIMIT and stream.server_time_ms() > id_parts(end)[0]))
        except RedisUnreachable as error:
            if not wait:
                raise
            failures += 1
            delay = delays.delay(failures, rng)
            if failures == 1:
                on_trouble(Interrupted(error, delay))
            sleep(delay)
            continue
        if over:
            return
        if page:
            after, read = page[-1].id, True
        if wanted := [entry for entry in page if id_parts(entry.id) <= id_parts(end)]:
            yield wanted


def _was_made_anew(stream: Stream, after: str) -> bool:
    """Whether the stream that is there now, if any, has never come as far as this entry, which was read from it."""
    info = stream.info()
    return info is None or id_parts(info.last_generated_id) < id_parts(after)
