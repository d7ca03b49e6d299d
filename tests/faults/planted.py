"""Bugs planted into imsync, which random histories must find. Each is what somebody might well write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partialmethod
from typing import Any
from unittest.mock import patch

from imsync.bus import retention
from imsync.bus.attempts import Attempts
from imsync.bus.binding import Binding
from imsync.bus.connection import translated
from imsync.bus.consumer import Consumer
from imsync.bus.deferred import Deferred
from imsync.bus.outcome import Retry
from imsync.bus.processor import Processor
from imsync.bus.retention import NO_LIMIT, Floor
from imsync.bus.stream import Stream
from imsync.bus.takeover import TakeOver
from imsync.errors import ImsyncError
from imsync.im import fan_out, friend_store, group_store, profile_projection
from imsync.im.loss import LossCheck
from imsync.im.profile_projection import ProfileProjection
from imsync.im.relay import Relay
from imsync.store import settlement
from imsync.store.inbox import Inbox
from imsync.store.settlement import SettlementTable
from imsync.store.settling import SettlingStore


@dataclass(frozen=True)
class Planted:
    """A bug, and the names under which it may be found."""

    plant: Callable[[], AbstractContextManager[object]]
    found_as: frozenset[str]


PLANTED: dict[str, Planted] = {}


def planted(name: str, *found_as: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    def register(plant: Callable[[], Iterator[None]]) -> None:
        PLANTED[name] = Planted(contextmanager(plant), frozenset(found_as))

    return register


def replaced(statements: Mapping[str, str], name: str, old: str, new: str) -> AbstractContextManager[object]:
    """A statement with another part."""
    assert old in statements[name], f"{name} does not say {old!r} any more"
    return patch.dict(statements, {name: statements[name].replace(old, new)})  # type: ignore[arg-type]


def in_all_stores(name: str, make: Callable[[Any], Any]) -> AbstractContextManager[object]:
    """A method of the projections and of the inbox, replaced by what `make` makes of it."""
    stack = ExitStack()
    for store in (ProfileProjection, Inbox):
        stack.enter_context(patch.object(store, name, make(getattr(store, name))))
    return stack


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────────

NEWER = "WHERE excluded.version > user_profile_replica.version AND NOT user_profile_replica.deleted"
REPLICA_SQL = profile_projection.REPLICA_SQL


@planted("no version gate", "version_fell", "resurrected")
def no_gate() -> Iterator[None]:
    def last(events: Iterable[Any], applied: Mapping[int, int]) -> dict[int, Any]:
        return {event.id: event for event in events}

    with patch.object(profile_projection, "newest", last), replaced(REPLICA_SQL, "write_replica", NEWER, ""):
        yield


@planted("a gate that lets equal versions through", "version_fell")
def gate_at_or_above() -> Iterator[None]:
    def newest(events: Iterable[Any], applied: Mapping[int, int]) -> dict[int, Any]:
        winners: dict[int, Any] = {}
        for event in events:
            best = winners.get(event.id)
            if event.version >= applied.get(event.id, 0) and (best is None or event.version >= best.version):
                winners[event.id] = event
        return winners

    with (
        patch.object(profile_projection, "newest", newest),
        replaced(REPLICA_SQL, "write_replica", "excluded.version >", "excluded.version >="),
    ):
        yield


@planted("a tombstone is a version like others", "resurrected")
def tombstone_not_final() -> Iterator[None]:
    def newest(events: Iterable[Any], applied: Mapping[int, int]) -> dict[int, Any]:
        winners: dict[int, Any] = {}
        for event in sorted(events, key=lambda event: event.version):
            if event.version > applied.get(event.id, 0):
                winners[event.id] = event
        return winners

    with (
        patch.object(profile_projection, "newest", newest),
        replaced(REPLICA_SQL, "write_replica", " AND NOT user_profile_replica.deleted", ""),
        replaced(REPLICA_SQL, "versions", "CASE WHEN deleted THEN 9223372036854775807 ELSE version END", "version"),
    ):
        yield


@planted("joining does not look at the replica", "copies_differ")
def join_without_replica() -> Iterator[None]:
    by_user = "r.user_id = input."
    with (
        replaced(group_store.SQL, "join", by_user, "0 * " + by_user),
        replaced(friend_store.SQL, "join", by_user, "0 * " + by_user),
    ):
        yield


@planted("a fan-out forgets its job", "copies_differ")
def fan_out_forgotten() -> Iterator[None]:
    with replaced(fan_out.SQL, "put_off", "VALUES (?1, ?2, ?2, 0, ?3, ?4)", "SELECT ?1, ?2, ?2, 0, ?3, ?4 WHERE 0"):
        yield


@planted("a newer version during a fan-out leaves the head stale", "copies_differ")
def head_left_stale() -> Iterator[None]:
    with replaced(fan_out.SQL, "put_off", "UPDATE SET until = position, wrapped = 0, ", "UPDATE SET "):
        yield


@planted("a fan-out moves on without its rows", "copies_differ")
def rows_in_a_transaction_of_their_own() -> Iterator[None]:
    """The place is committed first, and a crash in between loses the rows."""
    go_on = ProfileProjection.go_on

    def apart(self: Any) -> bool:
        later: list[Any] = []

        class First:
            def __init__(self, connection: Any) -> None:
                self._connection = connection

            def execute(self, statement: str, parameters: Any = ()) -> Any:
                if statement == self_sql["heal_between"]:
                    return later.append(parameters)
                return self._connection.execute(statement, parameters)

        self_sql = self.sql
        original = self._fan_out.go_on
        with patch.object(self._fan_out, "go_on", lambda connection, now_ms: original(First(connection), now_ms)):
            more = go_on(self)
        for parameters in later:
            with self._database.atomic() as connection:
                connection.execute(self.sql["heal_between"], parameters)
        return more

    with patch.object(ProfileProjection, "go_on", apart):
        yield


@planted("what a killed consumer has put off is nobody's", "no_progress", "copies_differ")
def nothing_gone_on_with() -> Iterator[None]:
    with patch.object(Deferred, "look", lambda self: None):
        yield


# ── settling ─────────────────────────────────────────────────────────────────────────────────────────


@planted("acknowledged before the commit", "acknowledged_before_commit", "dead_letter_missing")
def ack_before_commit() -> Iterator[None]:
    process = Processor.process

    def early(self: Any, entries: Sequence[Any], **options: Any) -> Any:
        self._stream.acknowledge(self._group, [entry.id for entry in entries])
        return process(self, entries, **options)

    with patch.object(Processor, "process", early):
        yield


@planted("no settled table", "pruned_too_early", "two_effects_of_one_event")
def no_settled_table() -> Iterator[None]:
    with (
        patch.object(SettlementTable, "known", lambda self, keys: {}),
        replaced(settlement.SQL, "record", "INSERT INTO", "INSERT OR REPLACE INTO"),
    ):
        yield


@planted(
    "settled in a transaction of its own", "accounting_open", "two_effects_of_one_event", "acknowledged_before_commit"
)
def settled_apart() -> Iterator[None]:
    record = SettlingStore._record

    def apart(apply: Any) -> Any:
        def applied(self: Any, batch: Sequence[Any]) -> Any:
            kept: list[tuple[Any, ...]] = []
            with patch.object(SettlingStore, "_record", lambda self, connection, *rest: kept.append(rest)):
                outcomes = apply(self, batch)
            for rest in kept:
                with self._settling() as connection:
                    record(self, connection, *rest)
            return outcomes

        return applied

    with in_all_stores("apply", apart):
        yield


@planted("dead letters are recorded after they are written", "acknowledged_before_commit", "old_copy_accepted")
def recorded_after_the_letter() -> Iterator[None]:
    bury = Processor.bury

    def late(self: Any, dead: Sequence[Any], entries: Any) -> None:
        kept: list[Any] = []
        with patch.object(self._handler, "record_dead", kept.append):
            bury(self, dead, entries)
        for each in kept:
            self._handler.record_dead(each)

    with patch.object(Processor, "bury", late):
        yield


@planted("a dead letter as a plain pair of commands", "dead_letter_missing")
def plain_pair() -> Iterator[None]:
    def bury(self: Any, group: str, consumer: str, dead_key: str, letters: Sequence[Any]) -> Sequence[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for letter in letters:
            pipeline.xadd(dead_key, dict(letter.fields))
        pipeline.xack(self.key, group, *(letter.source_id for letter in letters))
        with translated(self.where):
            pipeline.execute(raise_on_error=False)
        return letters

    with patch.object(Stream, "bury", bury):
        yield


@planted("one bad event fails its batch", "innocent_dead_letter")
def batch_fails_as_one() -> Iterator[None]:
    def apply(self: Any, received: Sequence[Any]) -> Any:
        try:
            return self._handler.apply(received) if received else []
        except ValueError as error:
            return [Retry.after(error) for _ in received]

    with patch.object(Processor, "_apply", apply):
        yield


@planted("the delivery counter is taken for a proof", "innocent_dead_letter")
def delivery_counter_condemns() -> Iterator[None]:
    with patch.object(Attempts, "deaths", lambda self, ids: dict.fromkeys(ids, 99)):
        yield


@planted("the settled table is pruned by age alone", "pruned_too_early", "two_effects_of_one_event")
def pruned_by_age() -> Iterator[None]:
    prune = SettlingStore.prune
    with patch.object(SettlingStore, "prune", lambda self, first_id: prune(self, NO_LIMIT)):
        yield


@planted("the generation is not noted", "old_copy_accepted")
def generation_not_noted() -> Iterator[None]:
    with patch.object(Binding, "advance", lambda self: ("ZADD", self._key, "XX", "GT", 0, self._store.store_id)):
        yield


# ── reading and sending ──────────────────────────────────────────────────────────────────────────────


@planted(
    "a deleted group is created again at the end", "copies_differ", "accepted_edit_without_outcome", "accounting_open"
)
def recreated_at_the_end() -> Iterator[None]:
    with patch.object(Stream, "create_group", partialmethod(Stream.create_group, start="$")):
        yield


@planted("what the dead hold is left to them", "no_progress")
def nothing_taken_over() -> Iterator[None]:
    with patch.object(TakeOver, "take", lambda self, *a: []):
        yield


@planted("own pending entries are not read again", "no_progress")
def own_entries_forgotten() -> Iterator[None]:
    with patch.object(Consumer, "_own_entries", lambda self: []):
        yield


@planted("trimmed entries stay pending", "no_progress")
def lost_entries_ignored() -> Iterator[None]:
    with patch.object(Processor, "give_up", lambda self, lost: None):
        yield


@planted(
    "trimming looks at no group",
    "copies_differ",
    "accepted_edit_without_outcome",
    "accounting_open",
    "dead_letter_missing",
)
def trimmed_past_the_floor() -> Iterator[None]:
    with patch.object(retention, "floor", lambda stream: Floor(NO_LIMIT, "")):
        yield


@planted(
    "what the server has lost is not sent again", "copies_differ", "accepted_edit_without_outcome", "accounting_open"
)
def nothing_sent_again() -> Iterator[None]:
    with patch.object(LossCheck, "look", lambda self: 0):
        yield


@planted("a later edit overtakes one that was refused", "overtaken")
def refused_row_overtaken() -> Iterator[None]:
    def send(self: Any, rows: Sequence[Any], held_back: set[int]) -> Any:
        ordered = self._order(rows)
        results = self._publisher.send([row.body for row in ordered])
        refused = next((result for result in results if isinstance(result, ImsyncError)), None)
        sent = [(row.seq, r) for row, r in zip(ordered, results, strict=True) if not isinstance(r, ImsyncError)]
        return self._store.mark_sent(sent) if sent else 0, refused

    with patch.object(Relay, "_send", send):
        yield
