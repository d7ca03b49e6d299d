"""What a consumer tells of its work, for whoever looks from another machine: a few counters beside its heartbeat.

They are told on a best effort: a server at `maxmemory` refuses them, and nothing depends on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from imsync.bus.clock import now_ms

if TYPE_CHECKING:
    from imsync.bus.processor import Counts

MAX_BYTES = 4096
"""More than this no consumer writes, and nobody parses."""
LONGEST_NAME = 64
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Vitals:
    """The work of one consumer since it was started, by its own clock. None: not told.

    Args:
        events: deliveries that came to something.
        dead: of these, those that became dead letters.
        failing: entries on which the handler fails, and that it will be given again.
        troubles: how often Redis or the store was in trouble.
        last_batch_ms: when it settled its last batch, in unix milliseconds.
        last_error: the `kind` of the last trouble, or the name of the last exception of its handler.
        last_error_ms: when that was, in unix milliseconds.
    """

    events: int | None = None
    dead: int | None = None
    failing: int | None = None
    troubles: int | None = None
    last_batch_ms: int | None = None
    last_error: str | None = None
    last_error_ms: int | None = None

    def encoded(self) -> bytes:
        """As it is kept in Redis."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decoded(cls, value: bytes | None) -> Vitals | None:
        """From what is kept in Redis, which anybody may have written: what is not as it should be is None."""
        read = read_object(value)
        if not read:
            return None
        known = {field.name: read.get(field.name) for field in fields(cls)}
        return cls(
            last_error=name_in(known.pop("last_error")),
            **{name: number_in(each) for name, each in known.items()},
        )


class Journal:
    """What a consumer notes of its work. Written by its loop, read by the heartbeat's thread.

    Args:
        counts: its counts so far.
        clock_ms: this machine's clock, in unix milliseconds.
    """

    def __init__(self, counts: Counts, clock_ms: Callable[[], int] = now_ms) -> None:
        self._counts = counts
        self._clock_ms = clock_ms
        self._last_batch_ms: int | None = None
        self._last_error: tuple[str | None, int | None] = (None, None)

    def settled(self) -> None:
        """A batch came to its end."""
        self._last_batch_ms = self._clock_ms()

    def failed(self, error: str) -> None:
        """Something failed: the `kind` of an error of imsync's, or the name of the handler's exception."""
        self._last_error = name_in(error), self._clock_ms()

    def vitals(self) -> Vitals:
        """All of it."""
        counts, (error, error_ms) = self._counts, self._last_error
        return Vitals(counts.events, counts.dead, counts.failing, counts.troubles, self._last_batch_ms, error, error_ms)


def read_object(value: bytes | None) -> dict[str, Any]:
    """A small JSON object; empty when it is none."""
    try:
        read = json.loads(value) if value is not None and len(value) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        read = None
    return read if isinstance(read, dict) else {}


def number_in(value: object) -> int | None:
    """A count, or a time in unix milliseconds; None when it is neither."""
    return value if type(value) is int and 0 <= value <= _MAX_NUMBER else None


def name_in(value: object) -> str | None:
    """A short text; None when it is none."""
    return value[:LONGEST_NAME] if isinstance(value, str) and value else None
