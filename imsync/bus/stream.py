"""The stream commands: the only module that issues `X…`, in the form that Redis 6.2 understands.

Every reply becomes a frozen dataclass, every error one of imsync's. Nothing here retries.
https://redis.io/docs/latest/commands/?group=stream
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors

from imsync.bus.acknowledgement import Acknowledgement
from imsync.bus.connection import behind, translated
from imsync.bus.entry import (
    AFTER_ALL,
    FIELD,
    ConsumerInfo,
    Entry,
    GroupInfo,
    Letter,
    PendingEntry,
    PendingSummary,
    StreamInfo,
)
from imsync.bus.replies import ReadAhead, name_of, parsed_entries, pending_entry, raw_name, read_entries
from imsync.bus.request import Command, Request
from imsync.bus.roundtrip import Line, RoundTrip
from imsync.errors import ImsyncError, RedisRefused

if TYPE_CHECKING:
    from redis import Redis

_XACK_WHEN_FULL = """
local ids, arguments, count = {}, {}, tonumber(ARGV[3])
for i = 4, #ARGV do
  if i < 4 + count then ids[#ids + 1] = ARGV[i] else arguments[#arguments + 1] = ARGV[i] end
end
local acknowledged = 0
for i = 1, #ids, 1000 do
  acknowledged = acknowledged + redis.call('XACK', KEYS[1], ARGV[1], unpack(ids, i, math.min(i + 999, #ids)))
end
redis.call(ARGV[2], KEYS[2], unpack(arguments))
return acknowledged
"""
"""At `maxmemory` a MULTI is refused for the one command in it that needs memory. In a script the first command that
writes is looked at, and XACK needs none: it frees some.
"""


class Stream:
    """The commands on one stream.

    Args:
        client: a client whose read timeout is longer than any BLOCK asked of it.
        key: the stream's key.
        where: what error messages call the server.
    """

    def __init__(self, client: Redis, key: str, where: str = "the server") -> None:
        self.key = key
        self.where = where
        self._client: Any = client
        self._line = Line(client)
        weakref.finalize(self, self._line.release).atexit = False

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────

    def append(self, body: bytes) -> str:
        """XADD one event; its entry id."""
        (result,) = self.start_append([body]).results()
        if isinstance(result, ImsyncError):
            raise result
        return result

    def append_many(self, bodies: Sequence[bytes]) -> list[str | ImsyncError]:
        """XADD many events in one round trip: for each its entry id, or the error the server answered with.

        Raises:
            RedisUnreachable: the connection broke; any number of them may have been written.
        """
        return self.start_append(bodies).results()

    def start_append(self, bodies: Sequence[bytes]) -> RoundTrip:
        """Begins what `append_many` does. The results are to be asked for."""
        return RoundTrip(self._line, self.where, (b"XADD", self.key.encode(), b"*", FIELD), bodies)

    def acknowledge(self, group: str, ids: Sequence[str]) -> int:
        """XACK; how many were pending until now."""
        return self.begin_acknowledge(group, ids).finish() if ids else 0

    def begin_acknowledge(self, group: str, ids: Sequence[str], *, noting: Command | None = None) -> Acknowledgement:
        """XACK whose reply is read later.

        Args:
            ids: at least one.
            noting: another command, as (name, key, arguments…), without which nothing is acknowledged: both are in
                one MULTI.

        Raises:
            RedisUnreachable: nobody knows whether the server got it.
        """
        xack = "XACK", self.key, group, *ids
        if noting is None:
            return Acknowledgement(Request(self._client, self.where, xack), self.where, ids)
        command, key, *arguments = noting

        def when_full() -> int:
            script = (_XACK_WHEN_FULL, 2, self.key, key, group, command, len(ids), *ids, *arguments)
            return int(self._client.eval(*script))

        request = Request(self._client, self.where, ("MULTI",), noting, xack, ("EXEC",))
        return Acknowledgement(request, self.where, ids, when_full)

    def bury(self, group: str, consumer: str, dead_key: str, letters: Sequence[Letter]) -> list[Letter]:
        """Moves those of the entries to the dead letters that the consumer still holds: XADD there and XACK here, in
        one MULTI; their letters.

        A plain pair would lose the entry under `maxmemory noeviction`, where XADD fails and XACK works. A MULTI is
        refused as a whole for that, but not when XADD meets a key of another type, so that is looked at first. And
        whoever else buries one of these entries writes the same key: then it begins again.

        Raises:
            RedisRefused: the dead letters cannot be written. The entries stay pending.
        """
        with translated(self.where), self._client.pipeline(transaction=True) as transaction:
            while True:
                transaction.watch(dead_key)
                kind: bytes = transaction.type(dead_key)
                if kind not in (b"none", b"stream"):
                    raise RedisRefused(
                        f"{dead_key} at {self.where} is a {kind.decode()}, not a stream of dead letters",
                        "rename or delete it",
                    )
                held = self.pending_among(group, [letter.source_id for letter in letters])
                ours = {entry.id for entry in held if entry.consumer == consumer}
                written = [letter for letter in letters if letter.source_id in ours]
                if not written:
                    return []
                transaction.multi()
                for letter in written:
                    transaction.xadd(dead_key, dict(letter.fields))
                transaction.xack(self.key, group, *(letter.source_id for letter in written))
                try:
                    transaction.execute()
                except redis_errors.WatchError as error:
                    if behind(error):
                        raise
                    continue
                return written

    # ── groups ───────────────────────────────────────────────────────────────────────────────────────

    def create_group(self, group: str, start: str = "0") -> bool:
        """XGROUP CREATE MKSTREAM; False when it exists. The default start reads all that the stream holds."""
        with translated(self.where):
            try:
                self._client.xgroup_create(self.key, group, start, mkstream=True)
            except redis_errors.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise
                return False
        return True

    def destroy_group(self, group: str) -> bool:
        """XGROUP DESTROY; False when there is none. What it had pending is forgotten, and what it had not read."""
        with translated(self.where):
            try:
                return bool(self._client.xgroup_destroy(self.key, raw_name(group)))
            except redis_errors.ResponseError as error:
                if not str(error).startswith("The XGROUP subcommand requires the key to exist"):
                    raise
                return False

    def set_position(self, group: str, last_delivered_id: str) -> None:
        """XGROUP SETID: the group is given what comes after this id."""
        with translated(self.where):
            self._client.xgroup_setid(self.key, group, last_delivered_id)

    def delete_consumer(self, group: str, consumer: str) -> int:
        """XGROUP DELCONSUMER; how many pending entries were dropped with it, for good."""
        with translated(self.where):
            return int(self._client.xgroup_delconsumer(self.key, raw_name(group), raw_name(consumer)))

    def groups(self) -> list[GroupInfo]:
        """XINFO GROUPS; empty when there is no stream."""
        with translated(self.where):
            return [
                GroupInfo(
                    name=name_of(row["name"]),
                    consumers=row["consumers"],
                    pending=row["pending"],
                    last_delivered_id=row["last-delivered-id"].decode(),
                    lag=row.get("lag"),
                )
                for row in self._info("xinfo_groups", self.key) or ()
            ]

    def consumers(self, group: str) -> list[ConsumerInfo]:
        """XINFO CONSUMERS."""
        with translated(self.where):
            return [
                ConsumerInfo(name_of(row["name"]), row["pending"], row["idle"])
                for row in self._client.xinfo_consumers(self.key, raw_name(group))
            ]

    def info(self) -> StreamInfo | None:
        """XINFO STREAM; None when there is no stream."""
        with translated(self.where):
            reply = self._info("xinfo_stream", self.key)
        if reply is None:
            return None
        first, last, added = reply["first-entry"], reply["last-entry"], reply.get("entries-added")
        return StreamInfo(
            length=reply["length"],
            first_id=first[0].decode() if first else None,
            last_id=last[0].decode() if last else None,
            last_generated_id=reply["last-generated-id"].decode(),
            removed=None if added is None else max(0, added - reply["length"]),
        )

    def _info(self, command: str, *args: str) -> Any:
        try:
            return getattr(self._client, command)(*args)
        except redis_errors.ResponseError as error:
            if str(error).lower().startswith("no such key"):
                return None
            raise

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def read_new(self, group: str, consumer: str, count: int, block_ms: int | None = None) -> list[Entry]:
        """XREADGROUP `>`: entries that no consumer of the group was given yet, at most `count`.

        Args:
            block_ms: how long to wait for the first one, in milliseconds; None does not wait.
        """
        return self._read_group(group, consumer, ">", count, block_ms)

    def read_own(self, group: str, consumer: str, after: str, count: int) -> list[Entry]:
        """XREADGROUP with an id: what this consumer holds unacknowledged, after the id. Raises the delivery
        counters.
        """
        return self._read_group(group, consumer, after, count, None)

    def begin_read_new(self, group: str, consumer: str, count: int, now: float) -> ReadAhead:
        """XREADGROUP `>` whose entries are taken later. The consumer holds them from now on. Does not wait for any.

        Args:
            now: the consumer's time.
        """
        return ReadAhead(self._request_read(group, consumer, ">", count, None), count, now)

    def _read_group(self, group: str, consumer: str, start: str, count: int, block_ms: int | None) -> list[Entry]:
        return read_entries(self._request_read(group, consumer, start, count, block_ms).reply())

    def _request_read(self, group: str, consumer: str, start: str, count: int, block_ms: int | None) -> Request:
        block = () if block_ms is None else ("BLOCK", block_ms)
        command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, *block, "STREAMS", self.key, start)
        return Request(self._client, self.where, command)

    def range(self, start: str = "-", end: str = "+", count: int | None = None) -> list[Entry]:
        """XRANGE: the entries between two ids, both included (`following(id)` excludes one)."""
        if start == AFTER_ALL:  # the server takes this for an error, and anybody may add an entry of the largest id
            return []
        with translated(self.where):
            return parsed_entries(self._client.xrange(self.key, start, end, count=count))

    def read_after(self, after: str, count: int, block_ms: int | None = None) -> list[Entry]:
        """XREAD: at most `count` entries after an id, for no group: nothing is moved or noted anywhere.

        Args:
            block_ms: how long to wait for the first one, in milliseconds; None does not wait. A stream that does not
                exist yet, or is deleted meanwhile, is waited for.
        """
        with translated(self.where):
            reply = self._client.xread({self.key: after}, count=count, block=block_ms)
        return parsed_entries(reply[0][1]) if reply else []

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that the stream holds, in one round trip."""
        return {entry.id for entry in self.fetch(ids) if entry.fields}

    def fetch(self, ids: Sequence[str]) -> list[Entry]:
        """The entries of these ids, in their order and in one round trip; without fields where there is none."""
        pipeline = self._client.pipeline(transaction=False)
        for entry_id in ids:
            pipeline.xrange(self.key, entry_id, entry_id, count=1)
        with translated(self.where):
            replies = pipeline.execute()
        return [Entry.of(entry_id, rows[0][1] if rows else {}) for entry_id, rows in zip(ids, replies, strict=True)]

    def length(self) -> int:
        """XLEN; 0 when there is no stream."""
        with translated(self.where):
            return int(self._client.xlen(raw_name(self.key)))

    # ── pending entries ──────────────────────────────────────────────────────────────────────────────

    def pending_summary(self, group: str) -> PendingSummary:
        """XPENDING without a range."""
        with translated(self.where):
            reply = self._client.xpending(self.key, raw_name(group))
        oldest = reply["min"]
        return PendingSummary(
            count=reply["pending"],
            oldest_id=oldest.decode() if oldest else None,
            by_consumer={name_of(row["name"]): row["pending"] for row in reply["consumers"]},
        )

    def pending(
        self,
        group: str,
        *,
        count: int,
        start: str = "-",
        end: str = "+",
        consumer: str | None = None,
        min_idle_ms: int = 0,
    ) -> list[PendingEntry]:
        """XPENDING with a range: at most `count` pending entries in the order of their ids."""
        if start == AFTER_ALL:
            return []
        holder = None if consumer is None else raw_name(consumer)
        with translated(self.where):
            rows = self._client.xpending_range(
                self.key, raw_name(group), start, end, count, consumername=holder, idle=min_idle_ms or None
            )
        return [pending_entry(row) for row in rows]

    def pending_among(self, group: str, ids: Sequence[str]) -> list[PendingEntry]:
        """Those of the ids that are pending, in one round trip."""
        pipeline = self._client.pipeline(transaction=False)
        for entry_id in ids:
            pipeline.xpending_range(self.key, group, entry_id, entry_id, 1)
        with translated(self.where):
            return [pending_entry(row) for rows in pipeline.execute() for row in rows]

    def claim(self, group: str, consumer: str, ids: Sequence[str], min_idle_ms: int) -> list[Entry]:
        """XCLAIM: makes the consumer the owner of those that are still pending and idle for so long.

        An id that is not among those returned was acknowledged, claimed by somebody else, or trimmed.
        """
        if not ids:
            return []
        with translated(self.where):
            rows = self._client.xclaim(self.key, group, consumer, min_idle_ms, list(ids))
        # Redis 6.2 answers (nil, nil) for a trimmed entry, later versions leave it out
        return parsed_entries(row for row in rows if row[0] is not None)

    def keep(self, group: str, consumer: str, ids: Sequence[str], min_idle_ms: int) -> list[str]:
        """XCLAIM JUSTID: resets the idle time of what the consumer holds, without raising the delivery counters.

        Args:
            min_idle_ms: must not be 0: a stalled consumer that resumes would steal its former entries back.
        """
        if not ids:
            return []
        with translated(self.where):
            rows = self._client.xclaim(self.key, group, consumer, min_idle_ms, list(ids), justid=True)
        return [row.decode() for row in rows]

    # ── removing ─────────────────────────────────────────────────────────────────────────────────────

    def delete(self, ids: Sequence[str]) -> int:
        """XDEL; how many there were."""
        with translated(self.where):
            return int(self._client.xdel(self.key, *ids)) if ids else 0

    def trim(self, min_id: str, *, exact: bool = False) -> int:
        """XTRIM MINID, whoever may still need what it removes: one step; how many entries went.

        Args:
            min_id: entries below this id go, the entry itself stays.
            exact: all of them at once. Otherwise (`~`) only whole nodes of the stream go, of 100 entries if the
                server is not told otherwise, and not more than 100 nodes: the server is held up for about a
                millisecond. 0 when no whole node is below the id.
        """
        with translated(self.where):
            return int(self._client.xtrim(self.key, minid=min_id, approximate=not exact))

    def server_time_ms(self) -> int:
        """TIME: the server's clock, which makes the entry ids, in unix milliseconds."""
        with translated(self.where):
            seconds, microseconds = self._client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000
