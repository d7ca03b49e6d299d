"""Planted bugs: each is one that somebody could have written, and each must be caught by the name of a broken rule.

A bug is planted in a worker's process after it was forked, by replacing a piece of imsync there; nothing of this
reaches any other process. `test_mutants` runs a scenario with the bug, which must be caught, and without, which must
come to nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from imsync.bus import (
    binding,
    consumer,
    deferred,
    processor,
    publisher,
    retry,
    stream,
    suspicion,
    takeover,
    upkeep,
)
from imsync.bus.attempts import Attempts
from imsync.bus.codec import Decoder
from imsync.bus.outcome import Retry
from imsync.errors import DataError, InfrastructureError, RedisUnreachable
from imsync.im import fan_out, group_store, profile_projection, relay, user_store
from imsync.store import settlement, settling


@dataclass(frozen=True)
class Mutant:
    """A planted bug.

    Args:
        scenario: which scenario of `test_mutants` brings it to light.
        caught_by: the rules of which at least one must be found broken. Empty: no bug but a setting, which a scenario
            asks for.
        pieces: what is replaced: the owner, the attribute, and what makes the replacement of the original.
    """

    scenario: str
    caught_by: tuple[str, ...]
    pieces: tuple[tuple[Any, str, Callable[[Any], Any]], ...]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The bug is there while the block lasts."""
        with ExitStack() as stack:
            for owner, name, make in self.pieces:
                stack.enter_context(_replaced(owner, name, make))
            yield


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    if isinstance(owner, Mapping):
        original = owner[name]
        owner[name] = make(original)  # type: ignore[index]
    else:
        original = owner.__dict__[name]  # not inherited: what is replaced must be there
        setattr(owner, name, make(original))
    try:
        yield
    finally:
        if isinstance(owner, Mapping):
            owner[name] = original  # type: ignore[index]
        else:
            setattr(owner, name, original)


def _nothing(original: Any) -> Any:
    return lambda *args, **options: None


def _instead(value: Any) -> Callable[[Any], Any]:
    return lambda original: value


# ── the consumer ─────────────────────────────────────────────────────────────────────────────────────


def _acknowledges_first(original: Any) -> Any:
    def apply(self: Any, received: Any) -> Any:
        self._stream.acknowledge(self._group, [each.entry_id for each in received])
        return original(self, received)

    return apply


def _counts_infrastructure(original: Any) -> Any:
    def apply(self: Any, received: Any) -> Any:
        try:
            return original(self, received)
        except InfrastructureError as error:
            return [Retry(str(error)) for _ in received]

    return apply


def _after_batches_only(original: Any) -> Any:
    def look(self: Any) -> None:
        if sys._getframe(1).f_code.co_name == "_step":
            original(self)

    return look


def _retries_bad_data(original: Any) -> Any:
    def decode(self: Any, entry: Any) -> Any:
        try:
            return original(self, entry)
        except DataError as error:
            raise InfrastructureError(error.message) from error

    return decode


def _does_not_drain(original: Any) -> Any:
    def wait_out(self: Any, error: Any) -> None:
        original(self, error)
        self._own_after = None

    return wait_out


def _deletes_itself(original: Any) -> Any:
    def leave(self: Any) -> None:
        original(self)
        self._stream.delete_consumer(self.group, self.name)

    return leave


def _forgets_what_it_claimed(original: Any) -> Any:
    def entries_of_the_dead(self: Any) -> Any:
        original(self)
        return []

    return entries_of_the_dead


def _blames_by_delivery_count(original: Any) -> Any:
    def next_suspect(self: Any) -> Any:
        suspect = original(self)
        return suspect and (suspect[0], 99)

    return next_suspect


def _from_now_on(original: Any) -> Any:
    return lambda self, group, start="0": original(self, group, "$")


def _plain_pair(original: Any) -> Any:
    def bury(self: Any, group: str, consumer: str, dead_key: str, letters: Any) -> Any:
        for letter in letters:
            with suppress(Exception):
                self._client.xadd(dead_key, dict(letter.fields))
            self._client.xack(self.key, group, letter.source_id)
        return letters

    return bury


def _buries_without_looking(original: Any) -> Any:
    def bury(self: Any, group: str, consumer: str, dead_key: str, letters: Any) -> Any:
        transaction = self._client.pipeline(transaction=True)
        for letter in letters:
            transaction.xadd(dead_key, dict(letter.fields))
        transaction.xack(self.key, group, *(letter.source_id for letter in letters))
        transaction.execute()
        return letters

    return bury


def _first_holder_only(original: Any) -> Any:
    return lambda self: dict(list(original(self).items())[:1])


# ── the stores ───────────────────────────────────────────────────────────────────────────────────────


def _last_wins(original: Any) -> Any:
    return lambda events, applied: {event.id: event for event in events}


def _last_of_those_that_are_not_older(original: Any) -> Any:
    return lambda events, applied: {
        event.id: event
        for event in sorted(events, key=lambda event: event.version)
        if event.version >= applied.get(event.id, 0)
    }


def _without(text: str) -> Callable[[str], str]:
    return _with(text, "")


def _with(text: str, instead: str) -> Callable[[str], str]:
    def replaced(sql: str) -> str:
        assert text in sql, f"there is no {text!r} any more in {sql}"
        return sql.replace(text, instead)

    return replaced


_GATE = "\nWHERE excluded.version > user_profile_replica.version AND NOT user_profile_replica.deleted"


def _settles_afterwards(original: Any) -> Any:
    def apply(self: Any, batch: Any) -> Any:
        later: list[Any] = []
        self._record = lambda connection, *rest: later.append(rest)
        try:
            outcomes = original(self, batch)
        finally:
            del self._record
        with self._database.atomic() as connection:
            for rest in later:
                self._record(connection, *rest)
        return outcomes

    return apply


def _counts_only_what_is_applied(original: Any) -> Any:
    def count(self: Any, connection: Any, numbers: Any) -> None:
        original(self, connection, {key: n for key, n in numbers.items() if key[1] == "applied"})

    return count


def _prunes_everything(original: Any) -> Any:
    def prune(self: Any, first_id: str) -> int:
        with self._database.atomic() as connection:
            return int(connection.execute("DELETE FROM settled WHERE outcome <> 'dead'").rowcount)

    return prune


# ── publishing ───────────────────────────────────────────────────────────────────────────────────────


def _absent_is_empty(original: Any) -> Any:
    def edited(self: Any, edit: Any) -> Any:
        absent = {name: "" for name in ("nick_name", "head_image", "head_image_thumb") if getattr(edit, name) is None}
        return original(self, edit.model_copy(update=absent))

    return edited


def _announces_afterwards(original: Any) -> Any:
    def edit_many(self: Any, edits: Any, **options: Any) -> Any:
        later: list[Any] = []

        def note(connection: Any, history: Any) -> int:
            later.append(history)
            return 0

        self._announce = note
        try:
            report = original(self, edits, **options)
        finally:
            del self._announce
        with self._database.atomic() as connection:
            for history in later:
                self._announce(connection, history)
        return report

    return edit_many


def _marks_first(original: Any) -> Any:
    def send(self: Any, rows: Any, held_back: Any) -> Any:
        known = self._publisher.stream.info()
        noted = self._store.mark_sent([(row.seq, known.last_generated_id if known else "0-1") for row in rows])
        self._publisher.send([row.body for row in rows])
        return noted, None

    return send


def _swallows_errors(original: Any) -> Any:
    def send(self: Any, bodies: Any) -> Any:
        try:
            return original(self, bodies)
        except RedisUnreachable:
            return ["0-1"] * len(bodies)

    return send


@contextmanager
def _always_free(self: Any, *_: Any) -> Iterator[Any]:
    yield SimpleNamespace()


_LOOKS_NO_FURTHER = (consumer.Consumer, "_holds_more", _instead(lambda self: False))
"""A consumer that holds more than it knows of finds it within a heartbeat: what is forgotten is looked for twice."""

MUTANTS: dict[str, Mutant] = {
    "acknowledged before commit": Mutant(
        "consumer dies before commit",
        ("acknowledged_before_commit",),
        ((processor.Processor, "_apply", _acknowledges_first),),
    ),
    "no gate": Mutant(
        "events in reverse",
        ("version_fell",),
        (
            (profile_projection, "newest", _last_wins),
            (profile_projection.REPLICA_SQL, "write_replica", _without(_GATE)),
        ),
    ),
    "gate takes what is not older (>=)": Mutant(
        "two events of one version",
        ("version_fell",),
        (
            (profile_projection, "newest", _last_of_those_that_are_not_older),
            (profile_projection.REPLICA_SQL, "write_replica", _with("excluded.version >", "excluded.version >=")),
        ),
    ),
    "deletion is not final": Mutant(
        "late update after a tombstone",
        ("resurrected",),
        (
            (
                profile_projection.REPLICA_SQL,
                "versions",
                _with("CASE WHEN deleted THEN 9223372036854775807 ELSE version END", "version"),
            ),
            (
                profile_projection.REPLICA_SQL,
                "write_replica",
                _without(" AND NOT user_profile_replica.deleted"),
            ),
        ),
    ),
    "group created again at $": Mutant(
        "group destroyed under a reader",
        ("skipped_by_group",),
        ((stream.Stream, "create_group", _from_now_on),),
    ),
    "dead letter as a plain pair of XADD and XACK": Mutant(
        "no memory for dead letters",
        ("dead_letter_missing",),
        ((stream.Stream, "bury", _plain_pair),),
    ),
    "dead letter of what another has buried": Mutant(
        "stopped before it buries",
        ("buried_twice",),
        ((stream.Stream, "bury", _buries_without_looking),),
    ),
    "own entries not read again after a lost reply": Mutant(
        "reply to a read is lost",
        ("no_progress",),
        ((consumer.Consumer, "_wait_out", _does_not_drain), _LOOKS_NO_FURTHER),
    ),
    "trimmed ids ignored when claiming": Mutant(
        "trimmed while pending",
        ("entry_lost_silently",),
        ((processor.Processor, "give_up", _nothing),),
    ),
    "lost entries acknowledged and not recorded": Mutant(
        "trimmed while pending",
        ("entry_lost_silently",),
        ((settling.SettlingStore, "record_lost", _nothing),),
    ),
    "consumer deleted while it holds entries": Mutant(
        "stopped while an event waits for its retry",
        ("skipped_by_group",),
        ((consumer.Consumer, "_leave", _deletes_itself),),
    ),
    "only the first holder looked at": Mutant(
        "one dead behind one living",
        ("no_progress",),
        ((takeover.TakeOver, "_others", _first_holder_only),),
    ),
    "claimed entries forgotten": Mutant(
        "consumer dies before commit",
        ("no_progress",),
        ((consumer.Consumer, "_entries_of_the_dead", _forgets_what_it_claimed), _LOOKS_NO_FURTHER),
    ),
    "trouble with the store counts as a failure": Mutant(
        "store in trouble",
        ("innocent_dead_letter",),
        ((processor.Processor, "_apply", _counts_infrastructure),),
    ),
    "bad data retried for ever": Mutant(
        "plain",
        ("no_progress",),
        ((Decoder, "read", _retries_bad_data),),
    ),
    "failures not recorded": Mutant(
        "handler fails for ever",
        ("no_progress",),
        ((Attempts, "failed", _instead(lambda self, entry_id: 1)),),
    ),
    "deaths not counted": Mutant(
        "event that kills",
        ("no_progress",),
        ((Attempts, "deaths", _instead(lambda self, ids: dict.fromkeys(ids, 0))),),
    ),
    "blamed by delivery count": Mutant(
        "event that kills",
        ("innocent_dead_letter",),
        ((suspicion.Suspicion, "next", _blames_by_delivery_count),),
    ),
    "store not bound to its group": Mutant(
        "second store in the group",
        ("acknowledged_before_commit",),
        ((binding.Binding, "check", _nothing),),
    ),
    "no wait after trouble": Mutant(
        "server away",
        ("too_much_cpu", "too_many_log_lines"),
        ((retry.Backoff, "delay", _instead(lambda self, attempt, rng: 0.0)),),
    ),
    "stop not heard": Mutant(
        "plain",
        ("unclean_exit",),
        ((consumer.Consumer, "stop", _nothing),),
    ),
    "settled row outside the transaction": Mutant(
        "consumer dies at its second commit",
        ("outcome_contradicts_effect",),
        ((profile_projection.ProfileProjection, "apply", _settles_afterwards),),
    ),
    "superseded events not counted": Mutant(
        "events in reverse",
        ("accounting_open",),
        ((settlement.SettlementTable, "count", _counts_only_what_is_applied),),
    ),
    "settled rows pruned while repeats may come": Mutant(
        "everything twice",
        ("pruned_too_early",),
        ((settling.SettlingStore, "prune", _prunes_everything),),
    ),
    "copies not written": Mutant(
        "plain",
        ("copies_differ",),
        ((group_store.SQL, "write_copies", _with("WHERE", "WHERE 0 AND")),),
    ),
    "override overwritten": Mutant(
        "plain",
        ("override_touched",),
        ((group_store.SQL, "write_copies", _with("SET ", "SET remark_nick_name = '', ")),),
    ),
    "empty text for an absent field": Mutant(
        "plain",
        ("effect_without_edit",),
        ((user_store.Profile, "edited", _absent_is_empty),),
    ),
    "event outside the edit's transaction": Mutant(
        "producer dies at its second commit",
        ("edit_without_event",),
        ((user_store.UserStore, "edit_many", _announces_afterwards),),
    ),
    "marked as sent before it is sent": Mutant(
        "relay dies before it sends",
        ("entry_lost_silently",),
        ((relay.Relay, "_send", _marks_first),),
    ),
    "send error swallowed": Mutant(
        "connection cut while publishing",
        ("entry_lost_silently",),
        ((publisher.Publisher, "send", _swallows_errors),),
    ),
    "relay without a lock": Mutant(
        "two relays",
        ("published_twice",),
        ((relay.Relay, "_lock", _instead(_always_free)),),
    ),
    "fan-out forgets its job": Mutant(
        "edited again and again in many groups",
        ("copies_differ",),
        ((fan_out.SQL, "put_off", _with("VALUES (?1, ?2, ?2, 0, ?3, ?4)", "SELECT ?1, ?2, ?2, 0, ?3, ?4 WHERE 0")),),
    ),
    "newer version leaves the head of a fan-out stale": Mutant(
        "edited again and again in many groups",
        ("copies_differ",),
        ((fan_out.SQL, "put_off", _with("SET until = position, wrapped = 0, ", "SET ")),),
    ),
    "fan-out of the dead left to nobody": Mutant(
        "consumer dies in a fan-out",
        ("no_progress",),
        ((deferred.Deferred, "look", _after_batches_only),),
    ),
    "few rows are many": Mutant(
        "",
        (),
        ((fan_out, "FAN_OUT_ROWS", _instead(3)), (fan_out, "PIECE_ROWS", _instead(2))),
    ),
    "quick upkeep": Mutant(
        "",
        (),
        ((upkeep, "INTERVAL_SECONDS", _instead(0.02)), (upkeep, "BETWEEN_STEPS_SECONDS", _instead(0.02))),
    ),
}
"""By what people call them."""
