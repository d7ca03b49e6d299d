"""Redriving dead letters: what was buried is given to its own group's handler again.

A letter is never added to the shared stream: the other groups have settled its event long ago. It is applied and
committed, and only then deleted; a process that dies in between leaves a letter whose event is a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from imsync.bus.binding import Binding
from imsync.bus.codec import Decoder
from imsync.bus.dead_letter import DeadLetterRecord, read
from imsync.bus.entry import Entry, following, id_parts, is_entry_id
from imsync.bus.event import Event
from imsync.bus.handler import Handler, Received, RedrivenLog
from imsync.bus.outcome import Ack, DeadLetter, Effect
from imsync.bus.processor import apply_apart
from imsync.bus.stream import Stream
from imsync.errors import DataError

E = TypeVar("E", bound=Event)

PAGE = 100
"""How many letters are read at once: each may be as large as the server lets it be."""


def letters(dead: Stream, start: str = "-") -> Iterator[DeadLetterRecord]:
    """The dead letters of a stream of them, the oldest first, read in pages.

    Args:
        start: where to begin, as `Stream.range` takes it.
    """
    while page := dead.range(start, count=PAGE):
        yield from map(read, page)
        if len(page) < PAGE:
            return
        start = following(page[-1].id)


def original(letter: DeadLetterRecord) -> Entry:
    """The entry that a letter replaces. Where the letter does not say its id, it has the letter's own: an event is
    remembered at least until the stream has passed that.
    """
    if not is_entry_id(letter.source_id):
        return Entry.of(letter.id, letter.raw)
    milliseconds, sequence = id_parts(letter.source_id)
    return Entry.of(f"{milliseconds}-{sequence}", letter.raw)


@dataclass(frozen=True, slots=True)
class Redriven:
    """What became of a dead letter.

    Args:
        effect: what it did; None when the letter stays, or was gone already.
        gone: somebody else has redriven or purged it.
        reason: for one that stays, why: as in `DeadLetter`, or `failed` when the handler failed again.
        message: one line that says so.
    """

    id: str
    effect: Effect | None = None
    gone: bool = False
    reason: str = ""
    message: str = ""


class Redrive(Generic[E]):
    """Applies dead letters of a group.

    Args:
        dead: the stream of the group's dead letters.
        handler: the group's.
        binding: the handler's store and its group, when it has one. It must have been checked.
    """

    def __init__(
        self, dead: Stream, *, decoder: Decoder[E], handler: Handler[E], binding: Binding | None = None
    ) -> None:
        self._dead = dead
        self._decoder = decoder
        self._handler = handler
        self._binding = binding

    def run(self, ids: Sequence[str]) -> list[Redriven]:
        """Applies a batch, in one call of the handler, and deletes the letters that went.

        Raises:
            InfrastructureError: Redis or the store is in trouble. No letter is deleted whose effect is not committed.
            StoreMismatch: the store is not the group's any more.
        """
        done: dict[str, Redriven] = {}
        received: list[Received[E]] = []
        owners: list[str] = []
        sources: dict[str, str] = {}  # of the letters that could not be decoded when they died
        for entry in self._dead.fetch(ids):
            if not entry.fields:
                done[entry.id] = Redriven(entry.id, gone=True)
                continue
            letter = read(entry)
            source = original(letter)
            if not letter.event_id:
                sources[entry.id] = source.id
            try:
                event = self._decoder.read(source)
            except DataError as error:
                done[entry.id] = Redriven(entry.id, reason=error.reason, message=error.message)
                continue
            if event is None:
                done[entry.id] = Redriven(entry.id, reason="ignored", message="an event type that is ignored here")
                continue
            received.append(Received(event, source.id))
            owners.append(entry.id)
        for letter_id, outcome in zip(owners, apply_apart(self._handler, received), strict=True):
            match outcome:
                case Ack(effect):
                    done[letter_id] = Redriven(letter_id, effect)
                case DeadLetter(reason, message):
                    done[letter_id] = Redriven(letter_id, reason=reason, message=message)
                case retry:
                    done[letter_id] = Redriven(letter_id, reason="failed", message=retry.error)
        applied = [each.id for each in done.values() if each.effect]
        undecoded = [sources[each] for each in applied if each in sources]
        if undecoded and isinstance(self._handler, RedrivenLog):
            self._handler.record_redriven(undecoded)  # before the letters go: whoever dies in between finds them again
        if applied and self._binding:
            self._binding.note()
        self._dead.delete(applied)
        return [done[each] for each in ids]
