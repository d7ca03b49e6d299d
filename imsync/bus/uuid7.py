"""UUID version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then randomness.

Event ids sort by the time of their creation, so a table keyed by them grows at its end.
"""

from __future__ import annotations

import os
import time
from uuid import UUID

_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)
_RANDOM_BITS = ((1 << 12) - 1) << 64 | ((1 << 62) - 1)


def uuid7(unix_ms: int | None = None, randomness: bytes | None = None) -> UUID:
    """A UUIDv7.

    Args:
        unix_ms: milliseconds since 1970 in UTC; now, when omitted.
        randomness: at least 10 bytes; from the operating system, when omitted.
    """
    stamp = time.time_ns() // 1_000_000 if unix_ms is None else unix_ms
    noise = int.from_bytes(os.urandom(10) if randomness is None else randomness[:10], "big")
    return UUID(int=stamp << 80 | _VERSION_AND_VARIANT | noise & _RANDOM_BITS)


def uuid7s(count: int) -> list[bytes]:
    """So many UUIDv7 of this moment, as their 16 bytes: the operating system is asked once."""
    stamp = time.time_ns() // 1_000_000 << 80 | _VERSION_AND_VARIANT
    noise, from_bytes = os.urandom(10 * count), int.from_bytes
    return [
        (stamp | from_bytes(noise[at : at + 10], "big") & _RANDOM_BITS).to_bytes(16, "big")
        for at in range(0, 10 * count, 10)
    ]
