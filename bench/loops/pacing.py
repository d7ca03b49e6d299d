"""A steady stream of edits, and the times of their commits, for the two that are compared at low load.

Times are of the monotonic clock, which the processes of one machine share.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence


def now_us() -> int:
    """Microseconds of the clock that all processes share."""
    return time.monotonic_ns() // 1000


def paced(user_ids: Sequence[int], rate: float, count: int, *, often: int | None) -> Iterator[tuple[int, int]]:
    """Yields (number, user id) when it is time for the edit.

    Args:
        often: this user is edited once a second besides, under numbers from `count` on.
    """
    uniform = random.Random(7).random
    began, extra = time.monotonic(), count
    for number in range(count):
        if often is not None and number % int(rate) == int(rate) // 2:
            yield extra, often
            extra += 1
        wait = began + number / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield number, user_ids[int(uniform() * len(user_ids))]


def fields(number: int) -> tuple[str, str, str]:
    """A nickname, a picture and a thumb that no other edit has."""
    avatar = f"https://cdn.example.com/avatars/live/{number}"
    return f"Mia live-{number}", f"{avatar}.webp", f"{avatar}_96.webp"
