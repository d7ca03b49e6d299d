"""What is recorded of entries that make trouble: how often the handler failed on them, and who died on them.

Kept in Redis, so that the count goes on when the consumer is restarted or another one takes over. Nothing is
written for entries that are applied at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from imsync.bus.connection import translated
from imsync.bus.keys import Keys

if TYPE_CHECKING:
    from redis import Redis

FORGOTTEN_AFTER_SECONDS = 7 * 86_400
"""Records of entries that somebody else settled expire so long after the group's last trouble."""


class Attempts:
    """The records of one group, as one consumer keeps them.

    An attempt on a suspicious entry begins with a mark that names the consumer's incarnation, and ends by removing
    it. A mark whose incarnation has no heartbeat is a death: a consumer that merely lost its connection beats again,
    and removes its mark.

    Args:
        consumer: the consumer's name.
        token: what tells this process from others that had the name before: the value of its heartbeat.
    """

    def __init__(self, client: Redis, keys: Keys, group: str, consumer: str, token: str, where: str) -> None:
        self._client: Any = client
        self._keys = keys
        self._group = group
        self._consumer = consumer
        self._token = token
        self._where = where
        self._failures_key = keys.failures(group)
        self._attempting_key = keys.attempting(group)
        self._known: set[str] = set()

    # ── failures ─────────────────────────────────────────────────────────────────────────────────────

    def look_up(self, ids: Sequence[str]) -> None:
        """Learns which of these entries have records, so that settling them removes those."""
        if ids:
            with translated(self._where):
                counts = self._client.hmget(self._failures_key, ids)
            self._known.update(entry_id for entry_id, count in zip(ids, counts, strict=True) if count)

    def failed(self, entry_id: str) -> int:
        """Records a failure of the handler; how many there are by now."""
        with translated(self._where):
            count, _ = (
                self._client.pipeline(transaction=True)
                .hincrby(self._failures_key, entry_id, 1)
                .expire(self._failures_key, FORGOTTEN_AFTER_SECONDS)
                .execute()
            )
        self._known.add(entry_id)
        return int(count)

    # ── attempts alone ───────────────────────────────────────────────────────────────────────────────

    def deaths(self, ids: Iterable[str]) -> dict[str, int]:
        """On how many incarnations' ends each of these entries was being tried alone."""
        wanted = dict.fromkeys(ids, 0)
        with translated(self._where):
            fields = [field.decode().split("/") for field in self._client.hkeys(self._attempting_key)]
            marks = [(entry_id, name, token) for entry_id, name, token in fields if entry_id in wanted]
            names = sorted({name for _, name, _ in marks})
            beats = self._client.mget([self._keys.alive(self._group, name) for name in names]) if names else []
        alive = {(name, token_of(beat)) for name, beat in zip(names, beats, strict=True) if beat}
        for entry_id, name, token in marks:
            self._known.add(entry_id)
            wanted[entry_id] += (name, token) not in alive and token != self._token
        return wanted

    def begin(self, entry_id: str) -> None:
        """Marks the entry as being tried alone by this process. Must be there before the attempt."""
        self._known.add(entry_id)
        with translated(self._where):
            (
                self._client.pipeline(transaction=True)
                .hset(self._attempting_key, self._mark(entry_id), int(time.time() * 1000))
                .expire(self._attempting_key, FORGOTTEN_AFTER_SECONDS)
                .execute()
            )

    def survived(self, ids: Sequence[str]) -> None:
        """Removes this process's marks: whatever became of these attempts, it lives."""
        if ids:
            with translated(self._where):
                self._client.hdel(self._attempting_key, *map(self._mark, ids))

    def forget(self, ids: Iterable[str]) -> None:
        """Removes all records of entries that are settled."""
        settled = self._known and self._known.intersection(ids)
        if not settled:
            return
        with translated(self._where):
            marks = [
                field for field in self._client.hkeys(self._attempting_key) if field.decode().split("/")[0] in settled
            ]
            if marks:
                self._client.hdel(self._attempting_key, *marks)
            self._client.hdel(self._failures_key, *settled)
        self._known -= settled

    def _mark(self, entry_id: str) -> str:
        return f"{entry_id}/{self._consumer}/{self._token}"  # no name and no token can hold a slash


def token_of(heartbeat: bytes) -> str:
    """The token in a heartbeat's value; empty in one that imsync did not write."""
    try:
        return str(json.loads(heartbeat)["token"])
    except (ValueError, TypeError, KeyError):
        return ""
