"""The part of Redis that imsync uses, in memory: made to be crashed into between any two commands.

Replies have the shapes that redis-py gives them. Deleted entries are answered as Redis 7 does. Time stands still
until `Memory.now_ms` is moved. What is not here is not used by the histories: an unknown command fails by name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

from redis import exceptions as redis_errors

from tests.faults.resp import Framer, arguments

Id: TypeAlias = tuple[int, int]
Seam: TypeAlias = Callable[[str], None]

NONE = range(0)
BEGAN_MS = 1_800_000_000_000
NEEDS_MEMORY = frozenset({"hincrby", "hset", "set", "xadd", "xgroup_create", "zadd"})
WRITES = NEEDS_MEMORY | {
    *("delete", "expire", "hdel"),
    *("eval", "pexpire", "xack", "xclaim", "xdel", "xgroup_delconsumer", "xgroup_destroy", "xreadgroup", "xtrim"),
}


def parsed(entry_id: str | bytes, default: int = 0) -> Id:
    """An id that is written in full, or only its milliseconds."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence) if sequence else default


def written(entry_id: Id) -> bytes:
    return b"%d-%d" % entry_id


def name_of(value: str | bytes) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def command_of(name: str, args: tuple[Any, ...]) -> str:
    """What a call of redis-py's carries out."""
    return str(args[0]).lower() if name == "execute_command" else name


@dataclass(slots=True)
class Pending:
    consumer: str
    delivered_ms: int
    deliveries: int = 1


@dataclass(slots=True)
class Group:
    last: Id
    pending: dict[Id, Pending] = field(default_factory=dict)
    consumers: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class StreamData:
    entries: dict[Id, dict[bytes, bytes]] = field(default_factory=dict)
    last: Id = (0, 0)
    groups: dict[str, Group] = field(default_factory=dict)


class Memory:
    """A server's data, and its commands under redis-py's names.

    Attributes:
        now_ms: the server's clock.
        refused: which of the next commands that need memory are refused for want of it, counted from 0.
        marks: how often each field of a hash was set, by key and field.
        denied: the kinds of commands that were refused when they were last given.
        written: the fields of every entry there ever was, by stream key and id. A server that lost entries may give
            an id again.
        acknowledged: the stream key, the id and the last fields of every entry that was acknowledged, in order.
    """

    def __init__(self) -> None:
        self.now_ms = BEGAN_MS
        self.refused: range = NONE
        self.marks: Counter[tuple[str, bytes]] = Counter()
        self.denied: set[str] = set()
        self._asked = 0
        self.streams: dict[str, StreamData] = {}
        self.values: dict[str, Any] = {}
        self.expires: dict[str, int] = {}
        self.writes: Counter[str] = Counter()
        self.written: defaultdict[tuple[str, str], list[dict[bytes, bytes]]] = defaultdict(list)
        self.acknowledged: list[tuple[str, str, dict[bytes, bytes]]] = []

    def run(self, name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """Carries out one command."""
        kind = command_of(name, args)
        if kind in NEEDS_MEMORY:
            self.ask_for_memory(kind)
        if kind in WRITES:
            self.writes[str(args[kind != name])] += 1
        return getattr(self, name)(*args, **options)

    def refuse(self, which: range) -> None:
        """Refuses some of the next commands that need memory."""
        self.refused, self._asked = which, 0

    def ask_for_memory(self, kind: str) -> None:
        """Counts a command that needs memory."""
        asked, self._asked = self._asked, self._asked + 1
        self.denied.discard(kind)
        if asked in self.refused:
            self.denied.add(kind)
            raise redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'")

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────────

    def _live(self, key: str, default: Any = None) -> Any:
        if self.expires.get(key, self.now_ms + 1) <= self.now_ms:
            self.values.pop(key, None)
            del self.expires[key]
            self.writes[key] += 1
        return self.values.get(key, default)

    def get(self, key: str) -> bytes | None:
        value: bytes | None = self._live(key)
        return value

    def mget(self, keys: Iterable[str]) -> list[bytes | None]:
        return [self.get(key) for key in keys]

    def set(self, key: str, value: Any, *, px: int | None = None, nx: bool = False, xx: bool = False) -> bool | None:
        if (nx and self._live(key) is not None) or (xx and self._live(key) is None):
            return None
        self.values[key] = raw(value)
        self.expires.pop(key, None)
        if px is not None:
            self.expires[key] = self.now_ms + px
        return True

    def delete(self, *keys: str) -> int:
        existed = sum(self._live(key) is not None or key in self.streams for key in keys)
        for key in keys:
            self.values.pop(key, None)
            self.expires.pop(key, None)
            self.streams.pop(key, None)
        return existed

    def exists(self, *keys: str) -> int:
        return sum(self._live(key) is not None or key in self.streams for key in keys)

    def expire(self, key: str, seconds: int) -> bool:
        if self._live(key) is None:
            return False
        self.expires[key] = self.now_ms + seconds * 1000
        return True

    def pexpire(self, key: str, milliseconds: int) -> bool:
        if self._live(key) is None:
            return False
        self.expires[key] = self.now_ms + milliseconds
        return True

    def pttl(self, key: str | bytes) -> int:
        name = name_of(key)
        if self._live(name) is None:
            return -2
        return self.expires[name] - self.now_ms if name in self.expires else -1

    def type(self, key: str) -> bytes:
        if key in self.streams:
            return b"stream"
        kinds = {bytes: b"string", dict: b"hash", Scores: b"zset", type(None): b"none"}
        return kinds[type(self._live(key))]

    def time(self) -> tuple[int, int]:
        return self.now_ms // 1000, self.now_ms % 1000 * 1000

    # ── hashes and sorted sets ───────────────────────────────────────────────────────────────────────

    def hset(self, key: str, name: Any, value: Any) -> int:
        self._live(key)
        fields = self.values.setdefault(key, {})
        added = raw(name) not in fields
        self.marks[key, raw(name)] += 1
        fields[raw(name)] = raw(value)
        return int(added)

    def hincrby(self, key: str, name: Any, amount: int = 1) -> int:
        count = int(self._live(key, {}).get(raw(name), 0)) + amount
        self.hset(key, name, count)
        return count

    def hget(self, key: str, name: Any) -> bytes | None:
        return self.hmget(key, [name])[0]

    def hmget(self, key: str, names: Iterable[Any]) -> list[bytes | None]:
        return [self._live(key, {}).get(raw(name)) for name in names]

    def hgetall(self, key: str) -> dict[bytes, bytes]:
        return dict(self._live(key, {}))

    def hkeys(self, key: str) -> list[bytes]:
        return list(self._live(key, {}))

    def hlen(self, key: str) -> int:
        return len(self._live(key, {}))

    def hdel(self, key: str, *names: Any) -> int:
        fields = self._live(key, {})
        removed = sum(fields.pop(raw(name), None) is not None for name in names)
        if not fields:
            self.values.pop(key, None)
        return removed

    def zadd(self, key: str, mapping: Mapping[Any, float], *, gt: bool = False, xx: bool = False) -> int:
        self._live(key)
        scores = self.values.get(key) or Scores()
        added = 0
        for member, score in mapping.items():
            before = scores.get(raw(member))
            if (before is None and xx) or (before is not None and gt and score <= before):
                continue
            added += before is None
            scores[raw(member)] = float(score)
        if scores:
            self.values[key] = scores
        return added

    def zrange(self, key: str, start: int, end: int, *, withscores: bool = False) -> list[Any]:
        assert (start, end) == (0, -1)
        rows = sorted(self._live(key, {}).items(), key=lambda row: (row[1], row[0]))
        return rows if withscores else [member for member, _ in rows]

    def zscore(self, key: str, member: Any) -> float | None:
        score: float | None = self._live(key, {}).get(raw(member))
        return score

    def execute_command(self, name: str, *args: Any) -> Any:
        """The raw commands that imsync writes itself."""
        match name, args:
            case "XADD", (key, "*", *pairs):
                return self.xadd(key, dict(zip(pairs[::2], pairs[1::2], strict=True)))
            case "ZADD", (key, *flags, score, member):
                return self.zadd(key, {member: float(score)}, gt="GT" in flags, xx="XX" in flags)
            case "XACK", (key, group, *ids):
                return self.xack(key, group, *ids)
            case "XTRIM", (key, "MINID", *more):
                bounds = [word for word in more if word not in ("~", "=")]
                return self.xtrim(key, minid=bounds[0], limit=int(bounds[2]) if len(bounds) > 2 else None)
        raise AssertionError(f"no such command here: {name} {args}")

    def eval(self, script: str, keys: int, stream: str, noted: str, *args: Any) -> int:
        """The script that acknowledges when memory is full: its first command needs none, so the second is allowed."""
        assert (keys, "XACK" in script) == (2, True), script
        group, command, count, *rest = args
        acknowledged = self.xack(stream, group, *rest[:count])
        self.execute_command(command, noted, *rest[count:])
        self.writes[noted] += 1
        return acknowledged

    # ── streams ──────────────────────────────────────────────────────────────────────────────────────

    def _group(self, key: str, group: str | bytes) -> tuple[StreamData, Group]:
        stream, name = self.streams.get(key), name_of(group)
        if stream is None or name not in stream.groups:
            raise redis_errors.ResponseError(f"NOGROUP No such key '{key}' or consumer group '{name}'")
        return stream, stream.groups[name]

    def xadd(self, key: str, fields: Mapping[Any, Any]) -> bytes:
        stream = self.streams.setdefault(key, StreamData())
        stream.last = max((self.now_ms, 0), (stream.last[0], stream.last[1] + 1))
        stream.entries[stream.last] = {raw(name): raw(value) for name, value in fields.items()}
        self.written[key, written(stream.last).decode()].append(stream.entries[stream.last])
        return written(stream.last)

    def xlen(self, key: str) -> int:
        return len(self.streams[key].entries) if key in self.streams else 0

    def xrange(self, key: str, min: str = "-", max: str = "+", count: int | None = None) -> list[Any]:
        return self._range(key, min, max)[:count]

    def xrevrange(self, key: str, max: str = "+", min: str = "-", count: int | None = None) -> list[Any]:
        return self._range(key, min, max)[::-1][:count]

    def _range(self, key: str, start: str, end: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        if key not in self.streams:
            return []
        entries = self.streams[key].entries
        ids = sorted(entries)
        first = 0
        if start != "-":
            exclusive = start.startswith("(")
            bound = parsed(start.lstrip("("))
            first = bisect_right(ids, bound if exclusive else (bound[0], bound[1] - 1))
        last = (2**63, 0) if end == "+" else parsed(end, 2**63)
        return [(written(i), entries[i]) for i in ids[first:] if i <= last]

    def xdel(self, key: str, *ids: str) -> int:
        entries = self.streams[key].entries if key in self.streams else {}
        return sum(entries.pop(parsed(entry_id), None) is not None for entry_id in ids)

    def xtrim(
        self,
        key: str,
        maxlen: int | None = None,
        approximate: bool = True,
        minid: str | None = None,
        limit: int | None = None,
    ) -> int:
        assert maxlen is None, "imsync never trims by length"
        entries = self.streams[key].entries if key in self.streams else {}
        doomed = sorted(i for i in entries if i < parsed(minid or "0"))[: limit or None]
        for i in doomed:
            del entries[i]
        return len(doomed)

    def xgroup_create(self, key: str, group: str | bytes, start: str = "$", mkstream: bool = False) -> bool:
        if key not in self.streams and not mkstream:
            raise redis_errors.ResponseError("The XGROUP subcommand requires the key to exist")
        stream = self.streams.setdefault(key, StreamData())
        if name_of(group) in stream.groups:
            raise redis_errors.ResponseError("BUSYGROUP Consumer Group name already exists")
        stream.groups[name_of(group)] = Group(stream.last if start == "$" else parsed(start))
        return True

    def xgroup_destroy(self, key: str, group: str | bytes) -> int:
        return int(key in self.streams and self.streams[key].groups.pop(name_of(group), None) is not None)

    def xgroup_delconsumer(self, key: str, group: str | bytes, consumer: str | bytes) -> int:
        _, data = self._group(key, group)
        name = name_of(consumer)
        held = [i for i, pending in data.pending.items() if pending.consumer == name]
        for i in held:
            del data.pending[i]
        data.consumers.pop(name, None)
        return len(held)

    def xinfo_groups(self, key: str) -> list[dict[str, Any]]:
        if key not in self.streams:
            raise redis_errors.ResponseError("no such key")
        stream = self.streams[key]
        return [
            {
                "name": name.encode(),
                "consumers": len(group.consumers),
                "pending": len(group.pending),
                "last-delivered-id": written(group.last),
                "entries-read": None,
                "lag": sum(i > group.last for i in stream.entries),
            }
            for name, group in stream.groups.items()
        ]

    def xinfo_consumers(self, key: str, group: str | bytes) -> list[dict[str, Any]]:
        _, data = self._group(key, group)
        held = Counter(pending.consumer for pending in data.pending.values())
        return [
            {"name": name.encode(), "pending": held[name], "idle": self.now_ms - seen}
            for name, seen in data.consumers.items()
        ]

    def xinfo_stream(self, key: str) -> dict[str, Any]:
        if key not in self.streams:
            raise redis_errors.ResponseError("no such key")
        stream, entries = self.streams[key], self._range(key, "-", "+")
        return {
            "length": len(entries),
            "first-entry": entries[0] if entries else None,
            "last-entry": entries[-1] if entries else None,
            "last-generated-id": written(stream.last),
        }

    def xreadgroup(
        self,
        group: str | bytes,
        consumer: str | bytes,
        streams: Mapping[str, str],
        count: int | None = None,
        block: int | None = None,
    ) -> list[Any]:
        ((key, start),) = streams.items()
        stream, data = self._group(key, group)
        name = name_of(consumer)
        data.consumers[name] = self.now_ms
        rows: list[tuple[bytes, dict[bytes, bytes] | None]] = []
        if start == ">":
            for i in sorted(i for i in stream.entries if i > data.last)[:count]:
                data.last = i
                data.pending[i] = Pending(name, self.now_ms)
                rows.append((written(i), stream.entries[i]))
            return [[key.encode(), rows]] if rows else []
        after = parsed(start)
        for i in sorted(i for i, held in data.pending.items() if held.consumer == name and i > after)[:count]:
            data.pending[i].deliveries += 1
            data.pending[i].delivered_ms = self.now_ms
            rows.append((written(i), stream.entries.get(i)))
        return [[key.encode(), rows]]

    def xack(self, key: str, group: str | bytes, *ids: str) -> int:
        if key not in self.streams or name_of(group) not in self.streams[key].groups:
            return 0
        data = self.streams[key].groups[name_of(group)]
        done = [entry_id for entry_id in ids if data.pending.pop(parsed(entry_id), None) is not None]
        self.acknowledged += [(key, entry_id, self.written[key, entry_id][-1]) for entry_id in done]
        return len(done)

    def xpending(self, key: str, group: str | bytes) -> dict[str, Any]:
        _, data = self._group(key, group)
        held = Counter(pending.consumer for pending in data.pending.values())
        return {
            "pending": len(data.pending),
            "min": written(min(data.pending)) if data.pending else None,
            "max": written(max(data.pending)) if data.pending else None,
            "consumers": [{"name": name.encode(), "pending": n} for name, n in held.items()],
        }

    def xpending_range(
        self,
        key: str,
        group: str | bytes,
        min: str,
        max: str,
        count: int,
        consumername: str | bytes | None = None,
        idle: int | None = None,
    ) -> list[dict[str, Any]]:
        _, data = self._group(key, group)
        name = None if consumername is None else name_of(consumername)
        exclusive = min.startswith("(")
        first = (0, 0) if min == "-" else parsed(min.lstrip("("))
        last = (2**63, 0) if max == "+" else parsed(max, 2**63)
        rows = [
            {
                "message_id": written(i),
                "consumer": pending.consumer.encode(),
                "time_since_delivered": self.now_ms - pending.delivered_ms,
                "times_delivered": pending.deliveries,
            }
            for i, pending in sorted(data.pending.items())
            if first <= i <= last
            and not (exclusive and i == first)
            and name in (None, pending.consumer)
            and self.now_ms - pending.delivered_ms >= (idle or 0)
        ]
        return rows[:count]

    def xclaim(
        self,
        key: str,
        group: str | bytes,
        consumer: str | bytes,
        min_idle_time: int,
        message_ids: Iterable[str],
        justid: bool = False,
    ) -> list[Any]:
        stream, data = self._group(key, group)
        name = name_of(consumer)
        data.consumers[name] = self.now_ms
        rows: list[Any] = []
        for i in map(parsed, message_ids):
            pending = data.pending.get(i)
            if pending is None or self.now_ms - pending.delivered_ms < min_idle_time:
                continue
            if i not in stream.entries:
                del data.pending[i]
                continue
            pending.consumer, pending.delivered_ms = name, self.now_ms
            pending.deliveries += not justid
            rows.append(written(i) if justid else (written(i), stream.entries[i]))
        return rows


class Scores(dict[bytes, float]):
    """A sorted set."""


class Client:
    """One process's connection: redis-py's methods, with a seam before and after each that changes something.

    Args:
        seam: called with the name of every place where something may go wrong.
    """

    def __init__(self, memory: Memory, seam: Seam) -> None:
        self._memory = memory
        self._seam = seam

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            kind = command_of(name, args)
            if kind not in WRITES:
                return self._memory.run(name, args, options)
            self._seam(f"before {kind}")
            reply = self._memory.run(name, args, options)
            self._seam(f"after {kind}")
            return reply

        return call

    @property
    def connection_pool(self) -> Pool:
        return Pool(self._memory, self._seam)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        return Pipeline(self._memory, self._seam, transaction)

    def close(self) -> None:
        pass


class Pool:
    """Gives connections to whoever sends commands and reads their replies later."""

    max_connections = 1  # few, so that each is given back after its round trip, and looked at

    def __init__(self, memory: Memory, seam: Seam) -> None:
        self._memory = memory
        self._seam = seam

    def get_connection(self) -> Connection:
        return Connection(self._memory, self._seam)

    def release(self, connection: Connection) -> None:
        assert not connection.replies, "whoever got it next would read them"


class Connection:
    """What is sent is carried out at once, but for events: any number of these may be in several pieces."""

    def __init__(self, memory: Memory, seam: Seam) -> None:
        self._memory = memory
        self._seam = seam
        self._framer = Framer()
        self._events = Pipeline(memory, seam, transaction=False)
        self._sent = 0
        self._what = ""
        self.replies: deque[Any] = deque()

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        words = [[raw(word) for word in command] for command in commands]
        return [
            b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)
            for command in words
        ]

    def send_packed_command(self, pieces: Iterable[bytes]) -> None:
        commands = [arguments(request) for request in self._framer.feed(b"".join(pieces))]
        match commands[0]:
            case [b"XADD", *_]:
                for name, key, entry_id, *pairs in commands:
                    self._events.execute_command(name.decode(), key.decode(), entry_id.decode(), *pairs)
                self._sent += len(commands)
            case [b"MULTI"]:
                self.replies += self._transaction(commands[1:-1])
            case [b"XACK", key, group, *ids]:
                self._before_reply("before xack")
                self.replies.append(self._memory.xack(key.decode(), group, *(each.decode() for each in ids)))
                self._before_reply("after xack")
            case [b"XREADGROUP", *_]:
                self._what = "xreadgroup"
                self._seam(f"before {self._what}")
                self.replies.append(self._read(commands[0]))
            case other:
                raise AssertionError(f"no such command here: {other}")

    def _before_reply(self, place: str) -> None:
        """A seam; one after the commands is met when the reply is read."""
        when, _, what = place.partition(" ")
        if when == "after":
            self._what = what
        else:
            self._seam(place)

    def _transaction(self, commands: Iterable[list[bytes]]) -> list[Any]:
        pipeline = Pipeline(self._memory, self._before_reply, transaction=True)
        queued = [pipeline.execute_command(*(word.decode() for word in words)) for words in commands]
        try:
            replies = pipeline.execute(raise_on_error=False)
        except redis_errors.OutOfMemoryError as error:
            return [b"OK", error, *[b"QUEUED"] * (len(queued) - 1), redis_errors.ExecAbortError("EXECABORT")]
        return [b"OK", *[b"QUEUED"] * len(queued), replies]

    def _read(self, words: list[bytes]) -> Any:
        _, _, group, consumer, _, count, *_, key, start = words
        streams = {key.decode(): start.decode()}
        try:
            reply = self._memory.run("xreadgroup", (name_of(group), name_of(consumer), streams), {"count": int(count)})
        except redis_errors.ResponseError as error:
            return error
        return [
            [name, [[entry_id, fields and list(chain.from_iterable(fields.items()))] for entry_id, fields in rows]]
            for name, rows in reply
        ]

    def read_response(self) -> Any:
        if self._sent:
            self._sent = 0
            self.replies.extend(self._events.execute(raise_on_error=False))
        what, self._what = self._what, ""
        if what:
            self._seam(f"after {what}")
        reply = self.replies.popleft()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def should_reconnect(self) -> bool:
        return False

    def disconnect(self) -> None:
        self.replies.clear()


class Pipeline:
    """Commands that travel together: all or none of them in a transaction, any number of the first otherwise."""

    def __init__(self, memory: Memory, seam: Seam, transaction: bool) -> None:
        self._memory = memory
        self._seam = seam
        self._transaction = transaction
        self._commands: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._watched: dict[str, int] = {}
        self._immediate = False

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self._commands, self._watched, self._immediate = [], {}, False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def queue(*args: Any, **options: Any) -> Any:
            if self._immediate:
                return self._memory.run(name, args, options)
            self._commands.append((name, args, options))
            return self

        return queue

    def watch(self, *keys: str) -> None:
        """What follows is carried out at once, until `multi`."""
        self._memory.exists(*keys)  # what has expired is gone before it is watched
        self._watched = {key: self._memory.writes[key] for key in keys}
        self._immediate = True

    def multi(self) -> None:
        self._immediate = False

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands, self._commands = self._commands, []
        watched, self._watched = self._watched, {}
        kinds = [command_of(name, args) for name, args, _ in commands]
        what = "+".join(dict.fromkeys(kinds))
        writes = not WRITES.isdisjoint(kinds)
        if writes:
            self._seam(f"before {what}")
        if any(self._memory.writes[key] != n for key, n in watched.items()):
            raise redis_errors.WatchError("Watched variable changed.")
        memory, refused = self._memory, self._memory.refused
        if self._transaction and not NEEDS_MEMORY.isdisjoint(kinds):
            memory.ask_for_memory("exec")  # a command that is refused on its way in takes all others with it
            memory.refused = NONE
        replies: list[Any] = []
        try:
            for number, (name, args, options) in enumerate(commands):
                if number and not self._transaction and kinds[number] in WRITES:
                    self._seam(f"amid {what}")
                try:
                    replies.append(memory.run(name, args, options))
                except redis_errors.ResponseError as error:
                    replies.append(error)
        finally:
            memory.refused = refused
        if writes:
            self._seam(f"after {what}")
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        return replies
