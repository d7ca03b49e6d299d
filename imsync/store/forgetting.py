"""Forgetting settled events: which rows of the settlement log are not needed any more."""

from __future__ import annotations

from imsync.bus import clock
from imsync.bus.entry import id_parts
from imsync.store.database import Database
from imsync.store.settlement import DEAD, SettlementTable

PRUNE_LIMIT = 1000
"""The most rows that are looked at at once, and so deleted."""

_HOUR_MS = 3_600_000
_CLOCKS_AHEAD_MS = 24 * _HOUR_MS
_PAST_EVERY_KEY = b"\xff" * 17


class Forgetting:
    """Goes round the settlement log, a few rows at a time.

    Args:
        settled_hours: for how long a settled event is remembered at least.
    """

    def __init__(self, database: Database, settlements: SettlementTable, settled_hours: float) -> None:
        self._database = database
        self._settlements = settlements
        self._settled_ms = int(settled_hours * _HOUR_MS)
        self._looked_up_to = b""

    def step(self, first_id: str) -> int:
        """Forgets some; how many. See `SettlingStore.prune`.

        Raises:
            StoreUnusable: nothing was changed.
        """
        first = id_parts(first_id)
        now_ms = clock.now_ms()
        old_ms = max(0, now_ms - self._settled_ms)
        rows = self._next_rows(_first_key_of(old_ms), _first_key_of(now_ms + _CLOCKS_AHEAD_MS))
        done = [
            row for row in rows if row[1] != DEAD and id_parts(row[2]) < first and _time_ms(row[0], row[2]) < old_ms
        ]
        if not done:
            return 0
        with self._database.atomic() as connection:
            return self._settlements.forget(connection, done)

    def _next_rows(self, young: bytes, ahead: bytes) -> list[tuple[bytes, str, str]]:
        """The rows to look at next. Keys are in the order of time, so what is old is in front; behind what is young
        there are keys that say nothing of time. When both were looked through, it begins again in front.
        """
        rows: list[tuple[bytes, str, str]] = []
        for _ in range(2):
            in_front = self._looked_up_to < young
            after = self._looked_up_to if in_front else max(self._looked_up_to, ahead)
            rows += self._settlements.look(after, young if in_front else _PAST_EVERY_KEY, PRUNE_LIMIT - len(rows))
            if len(rows) == PRUNE_LIMIT:
                self._looked_up_to = rows[-1][0]
                break
            self._looked_up_to = ahead if in_front else b""
        return rows


def _first_key_of(unix_ms: int) -> bytes:
    """What is below the keys of all events of this millisecond and later."""
    return unix_ms.to_bytes(6, "big")


def _time_ms(key: bytes, entry_id: str) -> int:
    """When an event came about, or when it was published if that was later: a UUID of another version, and an entry
    that could not be decoded, tell only that.
    """
    published_ms, _ = id_parts(entry_id)
    is_uuid7 = len(key) == 16 and key[6] >> 4 == 7 and key[8] >> 6 == 2
    return max(published_ms, int.from_bytes(key[:6], "big")) if is_uuid7 else published_ms
