"""A world for random histories: the real stores, relay and consumers on an in-memory Redis, beside a plain model.

Every place where a process can die, lose a reply or be overtaken by another one is a seam. A step of a history is one
call, in which at most one seam does harm. What must be true meanwhile is in `promises`.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from redis.exceptions import ConnectionError as ConnectionLost

from imsync.bus import consumer as consumer_module
from imsync.bus.binding import Binding
from imsync.bus.codec import encode
from imsync.bus.consumer import Consumer
from imsync.bus.dead_letter import read as read_letter
from imsync.bus.deferred import finish
from imsync.bus.handler import Received
from imsync.bus.keys import Keys
from imsync.bus.options import ConsumerOptions
from imsync.bus.publisher import Publisher
from imsync.bus.retention import Retention, trim
from imsync.bus.retry import Backoff, RetryPolicy
from imsync.bus.stream import Stream
from imsync.errors import DataError, InfrastructureError, StoreMismatch, StoreUnusable, UsageError
from imsync.im import fan_out
from imsync.im.events import DESTINATION, IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.outbox import ALL_PLACES, OutboxRow
from imsync.im.relay import Relay
from imsync.im.user_store import Profile, ProfileEdit, UserStore
from imsync.store import forgetting, settling
from imsync.store.inbox import Inbox
from tests.faults.in_memory import NONE, Client, Memory, StreamData, parsed, written
from tests.faults.promises import MAX_ATTEMPTS, MAX_DEATHS, Promises, event_key, holds
from tests.faults.subjects import (
    BY_THE_EVENT,
    CONTAINERS,
    MANY,
    SETTLED_HOURS,
    USERS,
    Crash,
    Kind,
    Model,
    Store,
    decoder_of,
    templates,
)

FOREIGN = "urn:test:somebody-else"
HEARTBEAT_MS = 1000
RETENTION = Retention(hours=168, entries=2, min_hours=24)
OPTIONS = ConsumerOptions(
    batch=4,
    heartbeat_ms=HEARTBEAT_MS,
    retry=RetryPolicy(MAX_ATTEMPTS, Backoff(first_seconds=0.1, longest_seconds=0.4), MAX_DEATHS),
    backoff=Backoff(first_seconds=0.01, longest_seconds=0.05),
    retention=RETENTION,
)
PROGRESS_STEPS = 400
"""So many steps of two consumers must do, once all is healed, for what a history leaves."""


def in_order(rows: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
    return rows


def backwards(rows: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
    return rows[::-1]


def three_times(rows: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
    return [*rows[1:], *rows[::-1], *rows]


# ── harm ─────────────────────────────────────────────────────────────────────────────────────────────

KINDS_OF_HARM = ("crash", "error", "overtaken")


@dataclass(frozen=True)
class Harm:
    """What goes wrong in a step: the process ends there, its command fails, or others act first.

    Args:
        place: where, one of `PLACES`.
        nth: at which seam of that place, counted from 0.
        variant: which others act.
    """

    place: str
    nth: int
    kind: str
    variant: int = 0


PLACES = ("transaction", "commit", "committed", "reading", "acknowledging", "burying", "publishing", "recording")
"""Where seams are: before a transaction, before and after its commit; before, amid and after commands."""

REACHED: Counter[str] = Counter()
"""How often each thing that goes wrong has happened: the proof that it does."""


STORE_SEAMS = {
    "transaction": "before a transaction",
    "commit": "before the commit",
    "committed": "after the commit",
}


def place_of(commands: str) -> str:
    """What these commands of one round trip are for."""
    kinds = set(commands.split("+"))
    if kinds & {"xack", "eval"}:
        return "burying" if "xadd" in kinds else "acknowledging"
    if "xadd" in kinds:
        return "publishing"
    return "reading" if kinds & {"xreadgroup", "xclaim"} else "recording"


class Told:
    """A stop flag that is never set, whose waiting moves the world's clock and takes no time."""

    def __init__(self, world: World) -> None:
        self._world = world

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        raise AssertionError("nobody stops a consumer here")

    def wait(self, seconds: float) -> bool:
        self._world.pass_time(seconds)
        return False


class Endpoint:
    """Where the in-memory server is, for one process."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __str__(self) -> str:
        return "memory"

    def connect(self, **options: object) -> Any:
        return Client(self._world.memory, self._world.redis_seam)


# ── the world ────────────────────────────────────────────────────────────────────────────────────────


class Worker:
    """One place where consumers run, one after the other: each lives until it crashes.

    Args:
        fixed: whether its consumers all have one name, and so wait for their predecessor's lease.
    """

    def __init__(self, world: World, name: str, *, fixed: bool) -> None:
        self._world = world
        self._name = name
        self._fixed = fixed
        self._lives = 0
        self._next_beat_ms = 0
        self._consumer: Consumer[IMBaseEvent] | None = None
        self._store: Store | None = None

    def step(self) -> None:
        """One turn of the consumer's loop, as `Consumer.run` does it, after a beat of its heartbeat."""
        try:
            with self._world.at_peace():
                consumer = self._consumer or self._start()
                if self._world.now_ms >= self._next_beat_ms:
                    self._next_beat_ms = self._world.now_ms + HEARTBEAT_MS
                    consumer._heartbeat._beat()
            try:
                consumer._step()
            except InfrastructureError as error:
                consumer._wait_out(error)
        except StoreMismatch:
            # a store that settled nothing cannot tell that nothing was acknowledged, once the server has forgotten it
            holds("own_store_refused", self._store is not None and self._store.generation == 0)
            self._world.rebind(self._store)
            self.die()
        except InfrastructureError:  # at the start: whoever runs it starts it again
            self.die()
        except Crash as crash:
            REACHED["an event that kills"] += str(crash) == BY_THE_EVENT
            self._world.crashes += 1
            self.die()

    def _start(self) -> Consumer[IMBaseEvent]:
        world, self._lives = self._world, self._lives + 1
        self._store = world.open_projection()
        self._consumer = consumer = Consumer(
            Endpoint(world),  # type: ignore[arg-type]
            world.keys,
            group=world.kind.name,
            events=world.kind.events,
            handler=self._store,
            name=self._name if self._fixed else f"{self._name}.{self._lives}",
            options=OPTIONS,
            clock=lambda: world.now_ms / 1000,
            rng=random.Random(0),
        )
        consumer._stop = Told(world)  # type: ignore[assignment]
        self._next_beat_ms = 0
        consumer._stream.create_group(consumer.group)
        return consumer

    def die(self) -> None:
        """As by kill -9: its heartbeat and what it held stay behind."""
        if self._store is not None:
            self._store.close()
        self._consumer = self._store = None


class World:
    """One history's world.

    Args:
        kind: which projection follows the users.
    """

    def __init__(self, kind: Kind) -> None:
        REACHED["a history"] += 1
        self.kind = kind
        self.memory = Memory()
        self.now_ms = self.memory.now_ms
        self.model = Model()
        self.keys = Keys("imsync", DESTINATION)
        self.failing: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        self.deadly: set[bytes] = set()
        self.crashes = 0
        self.remarks: dict[tuple[int, int], str] = {(USERS[0], each): "" for each in MANY} if kind.rows else {}
        self.poison: set[bytes] = set()
        self._harm: Harm | None = None
        self._seams_left = 0
        self.harmed = False
        """Whether the last step's harm was done."""
        self._on_commit: dict[Store | UserStore, Callable[[], object]] = {}
        self.disordered = self.shuffled = False
        self.missed: set[bytes] = set()
        self.trimmed: set[tuple[str, bytes]] = set()
        self.too_late = "too late"
        self._patches = ExitStack()
        # of one clock for everything that tells how old something is; and see `decoder_of`
        clock = SimpleNamespace(now_ms=lambda: self.now_ms)
        for module in (settling, forgetting):
            self._patches.enter_context(patch.object(module, "clock", clock))
        self._patches.enter_context(
            patch.object(consumer_module, "Decoder", lambda e, i, lean: decoder_of(tuple(e), tuple(i), lean))
        )
        # everybody in two groups is in very many
        self._patches.enter_context(patch.multiple(fan_out, FAN_OUT_ROWS=1, PIECE_ROWS=1))
        template, _ = templates()
        self.folder = Path(tempfile.mkdtemp(dir=template))
        self.projection_path = self.folder / "copies.db"
        shutil.copyfile(template / "user.db", self.folder / "user.db")
        shutil.copyfile(template / f"{kind.name}.db", self.projection_path)
        self.users = UserStore(self.folder / "user.db", clock_ms=lambda: self.now_ms)
        self._guard(self.users)
        peaceful: Any = Client(self.memory, lambda name: None)
        self.stream = Stream(peaceful, self.keys.stream, "memory")
        self.letters = Stream(peaceful, self.keys.dead(kind.name), "memory")
        self.stream.create_group(kind.name)
        self.workers = [Worker(self, "fixed", fixed=True), Worker(self, "unique", fixed=False)]
        self._running = self.workers[0]
        self._store = self.open_projection()  # of the service itself, where people join
        self._copy = self.folder / "copy.db"
        self._promises = Promises(self)

    def close(self) -> None:
        for worker in self.workers:
            worker.die()
        for each in (self._store, self.users, self._promises):
            each.close()
        shutil.rmtree(self.folder)
        self._patches.close()

    def open_projection(self) -> Store:
        store = self.kind.make(self.projection_path, settled_hours=SETTLED_HOURS)
        store.trouble = self
        self._guard(store)
        return store

    def pass_time(self, seconds: float) -> None:
        self.now_ms += max(1, round(seconds * 1000))
        self.memory.now_ms += max(1, round(seconds * 1000))

    def first_written_ms(self, key: bytes) -> int:
        """When an event came into the stream for the first time."""
        if key.startswith(b"entry:"):
            return parsed(key.removeprefix(b"entry:"))[0]
        return min(
            parsed(entry_id)[0]
            for (_, entry_id), copies in self.memory.written.items()
            if any(event_key(fields.get(b"event")) == key for fields in copies)
        )

    # ── seams ────────────────────────────────────────────────────────────────────────────────────────

    def _guard(self, store: Store | UserStore) -> None:
        """Puts seams around every transaction of a store."""
        original = store._database.atomic

        @contextmanager
        def atomic() -> Iterator[sqlite3.Connection]:
            self._store_seam("transaction")
            with original() as connection:
                yield connection
                self._store_seam("commit", locked=True)
            if hook := self._on_commit.get(store):
                hook()
            self._store_seam("committed", committed=True)

        store._database.atomic = atomic  # type: ignore[method-assign]

    def redis_seam(self, name: str) -> None:
        if self._harm is not None:
            when, _, commands = name.partition(" ")
            place = place_of(commands)
            self._seam(place, f"{when} {place}", ConnectionLost("the connection was cut"))

    def _store_seam(self, place: str, *, locked: bool = False, committed: bool = False) -> None:
        if self._harm is not None:
            error = None if committed else StoreUnusable("the store is in trouble")
            self._seam(place, STORE_SEAMS[place], error, locked=locked)

    def _seam(self, place: str, name: str, error: Exception | None, *, locked: bool = False) -> None:
        """A place where something may go wrong.

        Args:
            error: what the code under test meets when it is this place's turn to fail; None where it cannot fail.
            locked: whether nobody else can write into the store here.
        """
        harm = self._harm
        if harm is None or place != harm.place:
            return
        if self._seams_left:
            self._seams_left -= 1
            return
        if (harm.kind == "error" and error is None) or (harm.kind == "overtaken" and locked):
            return  # the next seam, then
        self._harm, self.harmed = None, True
        REACHED[f"{harm.kind} {name}"] += 1
        if harm.kind == "crash":
            raise Crash(name)
        if harm.kind == "error" and error is not None:
            raise error
        self._others_act(harm.variant)

    def _others_act(self, variant: int) -> None:
        if variant == 0:  # who is running was stopped for long, counts as dead, and goes on as a zombie
            self.pass_time(4 * HEARTBEAT_MS / 1000)
            for worker in self.workers:
                if worker is not self._running:
                    for _ in range(4):
                        worker.step()
        elif variant == 1:
            self.edit(USERS[0], nick_name="meanwhile")
        else:
            self.join(USERS[1], CONTAINERS[-1], "")

    @contextmanager
    def at_peace(self) -> Iterator[None]:
        harm, self._harm = self._harm, None
        refused, self.memory.refused = self.memory.refused, NONE
        try:
            yield
        finally:
            self._harm = harm
            self.memory.refuse(refused)

    @contextmanager
    def suffering(self, harm: Harm | None) -> Iterator[None]:
        """A step in which this harm is done, of a process that ends with the step."""
        self._harm, self._seams_left, self.harmed = harm, harm.nth if harm else 0, False
        try:
            yield
        except Crash:
            self.crashes += 1
        except InfrastructureError:
            pass
        finally:
            self._harm = None

    # ── what people and services do ──────────────────────────────────────────────────────────────────

    def edit(self, user: int, **changes: str) -> None:
        fields = {"head_image_thumb" if name == "thumb" else name: value for name, value in changes.items()}
        self._as_modelled(
            lambda: self.model.edit(user, **changes),
            lambda: self.users.edit(ProfileEdit(user_id=user, **fields)),  # type: ignore[arg-type]
        )

    def create(self, user: int) -> None:
        profile = Profile(user, f"name{user}", f"user {user}", "", "")
        self._as_modelled(lambda: self.model.create(user), lambda: self.users.create_user(profile))

    def delete(self, user: int) -> None:
        self._as_modelled(lambda: self.model.delete(user), lambda: self.users.delete_user(user))

    def _as_modelled(self, modelled: Callable[[], bool], done: Callable[[], bool | None]) -> None:
        changed: list[bool] = []
        try:
            with self._committing(self.users, lambda: changed.append(modelled())):
                accepted = done() is not False
        except UsageError:
            accepted = False
        holds("edit_disagrees", accepted == (changed == [True]), f"{accepted} {changed}")

    def join(self, user: int, container: int, remark: str) -> None:
        if isinstance(self._store, Inbox):
            return
        with self._committing(self._store, lambda: self.remarks.setdefault((user, container), remark)):
            self._store.join(container, user, remark_nick_name=remark)

    @contextmanager
    def _committing(self, store: Store | UserStore, hook: Callable[[], object]) -> Iterator[None]:
        """The model follows in the moment in which the store commits, and only then."""
        before = self._on_commit.get(store)
        self._on_commit[store] = hook
        try:
            yield
        finally:
            del self._on_commit[store]
            if before:
                self._on_commit[store] = before

    def relay(
        self, order: Callable[[Sequence[OutboxRow]], Sequence[OutboxRow]] = in_order, refused: range = NONE
    ) -> None:
        """Publishes the outbox, in that order, and Redis refuses some of it."""
        self.shuffled |= order is not in_order
        client: Any = Client(self.memory, self.redis_seam)
        publisher = Publisher(
            Stream(client, self.keys.stream, "memory"), self.users.source, attempts=2, sleep=self.pass_time
        )
        self.memory.refuse(refused)
        try:
            Relay(
                self.users,
                publisher,
                batch=3,
                order=order,
                history_hours=RETENTION.min_hours,
                keep_sent_hours=RETENTION.min_hours,
                clock=lambda: self.now_ms / 1000,
            ).deliver(ALL_PLACES)
        finally:
            self.memory.refuse(NONE)

    def work(self, number: int, refused: range = NONE) -> None:
        """A turn of a worker's consumer."""
        self._running = self.workers[number]
        self.memory.refuse(refused)
        try:
            self._running.step()
        finally:
            self.memory.refuse(NONE)

    # ── what goes wrong besides ──────────────────────────────────────────────────────────────────────

    def append_poison(self, body: bytes) -> None:
        REACHED["poison"] += 1
        self.poison.add(body)
        self.stream.append(body)

    def append_again(self, number: int) -> None:
        """A duplicate of an entry, by whomever."""
        if entries := self.stream.range():
            REACHED["a duplicate"] += 1
            self.stream.append(entries[number % len(entries)].body or b"")

    def append_foreign(self, number: int, *, late: bool) -> None:
        """An accepted edit, said once more by somebody else; or something that comes after a deletion."""
        said = sorted(self.model.accepted.items())
        late = late and any(state.deleted and user in self._promises.gone for (user, _), state in said)
        if late:
            said = [each for each in said if each[1].deleted and each[0][0] in self._promises.gone]
        (user, version), state = said[number % len(said)]
        event: IMBaseEvent = UserUpdated(
            id=user,
            version=version,
            nick_name=state.nick_name,
            head_image=state.head_image,
            head_image_thumb=state.thumb,
            source=FOREIGN,
        )
        if state.deleted:
            event = UserDeleted(id=user, version=version, source=FOREIGN)
        if late:
            event = UserUpdated(
                id=user,
                version=version + 1,
                nick_name=self.too_late,
                head_image="",
                head_image_thumb="",
                source=FOREIGN,
            )
        REACHED["an event after a tombstone" if late else "an edit in somebody else's words"] += 1
        self.stream.append(encode(event, source=FOREIGN))

    def restore_outbox(self, rows: int) -> None:
        """The rows that were sent last are unsent again, as in a backup of the last day from before they were sent."""
        since = self.now_ms - int(RETENTION.min_hours * 3_600_000)
        if sent := [row for row in self.users.sent_below(ALL_PLACES, rows) if row.sent_ms > since]:
            REACHED["a restored outbox"] += 1
            self.users.take_back(sent[-1].place, ALL_PLACES)
            self.disordered = True

    def fail(self, user: int, times: int) -> None:
        """Makes the handler fail on a user's events."""
        self.failing[user] += times

    def make_deadly(self) -> None:
        """Makes the event of the newest entry end every process that applies it."""
        if (entries := self.stream.range()) and (key := event_key(entries[-1].body)):
            self.deadly.add(key)

    def delete_group(self) -> None:
        REACHED["the group deleted"] += self.memory.xgroup_destroy(self.stream.key, self.kind.name)

    def trim(self, keep: int, days: int) -> None:
        """As the retention of imsync does it, days later. Somebody has relayed meanwhile, and looked for losses."""
        with self.at_peace():
            self.relay()
            self.pass_time(days * 25 * 3600)
            self.relay()
        REACHED["trimmed by retention"] += bool(trim(self.stream, replace(RETENTION, entries=keep), exact=True).removed)

    def lose_tail(self, entries: int, *, acknowledgements: bool) -> None:
        """A failover to a replica that was behind: the newest entries are gone, and perhaps what was acknowledged."""
        data = self.memory.streams.get(self.stream.key, StreamData())
        REACHED["a failover loses the newest entries"] += bool(data.entries)
        for entry_id in sorted(data.entries)[-entries:]:
            self._lose(entry_id, data.entries.pop(entry_id))
        self.pass_time(0.001)  # so that ids are given again only when the clock is set back
        data.last = max(data.entries, default=(0, 0))
        for group in data.groups.values():
            group.last = (0, 0) if acknowledgements else min(group.last, data.last)
            for entry_id in [i for i in group.pending if i > data.last]:
                del group.pending[entry_id]

    def flush(self) -> None:
        """FLUSHALL. The dead letters are nowhere else."""
        REACHED["FLUSHALL"] += bool(self.memory.streams)
        self.missed |= {event_key(read_letter(entry).raw.get(b"event")) or b"" for entry in self.letters.range()}
        for entry_id, fields in self.memory.streams.get(self.stream.key, StreamData()).entries.items():
            self._lose(entry_id, fields)
        self.pass_time(0.001)
        self.memory.streams.clear()
        self.memory.values.clear()
        self.memory.expires.clear()

    def copy_the_store(self) -> None:
        """As a backup does it."""
        with closing(sqlite3.connect(self.projection_path)) as source, closing(sqlite3.connect(self._copy)) as target:
            source.backup(target)

    def rebind(self, store: Store | None) -> None:
        """As a rebuild does it."""
        if store is not None:
            client: Any = Client(self.memory, lambda name: None)
            Binding(client, self.stream, self.keys, self.kind.name, store).rebind(store.generation)

    def offer_the_copy(self) -> None:
        """A restored copy asks whether it is the group's store. It is if it has all that was acknowledged."""
        key = self.keys.store(self.kind.name)
        if not self._copy.exists() or not self.memory.exists(key):
            return
        client: Any = Client(self.memory, lambda name: None)
        with closing(self.kind.make(self._copy, settled_hours=SETTLED_HOURS)) as store:
            try:
                Binding(client, self.stream, self.keys, self.kind.name, store).check()
            except StoreMismatch:
                REACHED["an old copy of the store, refused"] += 1
                return
        self._promises.check_copy(self._copy)

    def _lose(self, entry_id: tuple[int, int], fields: Mapping[bytes, bytes]) -> None:
        """What was sent so long ago is not certain to be sent again: it may have been trimmed."""
        if entry_id[0] < self.memory.now_ms - RETENTION.min_hours * 3_600_000 + 120_000:
            self.missed.add(event_key(fields[b"event"]) or b"")

    def move_server_clock(self, seconds: float) -> None:
        if seconds:
            REACHED["the server's clock set back" if seconds < 0 else "the server's clock set forward"] += 1
        self.memory.now_ms += round(seconds * 1000)

    def trim_too_far(self, entries: int) -> None:
        """As somebody does it who looks at no group: most of all what is pending."""
        data = self.memory.streams.get(self.stream.key, StreamData())
        group = data.groups.get(self.kind.name)
        pending = group.pending.keys() & data.entries.keys() if group else set()
        for entry_id in sorted(pending or data.entries)[:entries]:
            fields = data.entries.pop(entry_id)
            if group is None or entry_id > group.last or entry_id in group.pending:
                REACHED["trimmed although it was needed"] += 1
                self.trimmed.add((written(entry_id).decode(), fields[b"event"]))
                self.missed.add(event_key(fields[b"event"]) or b"")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        self._promises.check()
        REACHED["rows that a fan-out had not come to"] += self._promises.unvisited
        REACHED["fan-outs that a newer version found under way"] += self._promises.overtaken

    def heal(self) -> None:
        """Ends all harm, lets everybody work until nothing is left to do, and compares with the model."""
        self._drain()  # with the events that kill: they must end as dead letters
        self.failing.clear()
        self.deadly.clear()
        self.check()
        self._redrive()
        self.check()
        self._promises.check_end()

    def _drain(self) -> None:
        for turn in range(PROGRESS_STEPS):
            if turn > 1 and self._is_idle():  # the relay has looked for what was lost
                return
            with self.suffering(None):
                self.relay()
            self.work(turn % 2)
            self.pass_time(1.0)
            if turn % 8 == 0:
                self.check()
        holds("no_progress", self._is_idle(), f"after {PROGRESS_STEPS} turns: {self.stream.groups()}")

    def _is_idle(self) -> bool:
        data = self.memory.streams.get(self.stream.key, StreamData())
        group = data.groups.get(self.kind.name)
        undelivered = group is None or any(entry_id > group.last for entry_id in data.entries)
        return not (undelivered or (group and group.pending) or self.users.unsent(1) or self._promises.unfinished())

    def _redrive(self) -> None:
        """Applies the dead letters that can be applied once what made them fail is mended. Of some, a copy of the event
        was applied meanwhile.
        """
        for entry in self.letters.range():
            letter = read_letter(entry)
            with suppress(DataError):
                event = decoder_of(self.kind.events).decode(letter.raw[b"event"])
                assert event is not None
                if self._promises.is_dead(event.event_id.bytes):
                    self._store.apply([Received(event, letter.source_id)])
        finish(self._store)
