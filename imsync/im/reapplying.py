"""What applying a part of the stream once more would do, and doing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from imsync.bus.binding import Binding
from imsync.bus.codec import Decoder
from imsync.bus.entry import Entry
from imsync.bus.handler import Received
from imsync.bus.history import pages, reapply
from imsync.bus.stream import Stream
from imsync.errors import DataError
from imsync.im.events import IMBaseEvent
from imsync.im.prediction import Predictor
from imsync.store.projection import Projection

EXACT = 100_000
"""How many entries a plan plays. Beyond them it only counts, so that its memory is bounded."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a stream.

    Args:
        start, end: the ids, both included, as `Stream.range` takes them.
        user: only the events about this user; all when None.
    """

    start: str
    end: str
    user: int | None = None


@dataclass(slots=True)
class PartPlan:
    """What is in a part of a stream, and what a projection would make of it.

    Args:
        entries: how many entries are in it, whomever they are about.
        predicted: how many of those that were played would come to which outcome, by `Predicted`.
        played: of how many entries, from the first, the predictions are.
    """

    entries: int = 0
    first_id: str | None = None
    last_id: str | None = None
    predicted: Counter[str] = field(default_factory=Counter)
    played: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether all entries were played."""
        return self.played == self.entries


def plan(
    stream: Stream,
    projection: Projection,
    part: Part,
    batch: int,
    *,
    exact: int = EXACT,
    on_entries: Callable[[int], None] = lambda n: None,
) -> PartPlan:
    """Reads the part and plays it against the projection, in the batches of a `run`. Changes nothing.

    Args:
        exact: how many entries are played, about.
        on_entries: called with the number of entries that were read since the last call.
    """
    found = PartPlan()
    predictor = Predictor(projection)
    for page in pages(stream, part.start, part.end, batch):
        found.first_id = found.first_id or page[0].id
        found.last_id = page[-1].id
        if found.is_exact and found.played < exact:
            predictions = predictor.predict(page) if part.user is None else predictor.predict_about(part.user, page)
            found.predicted.update(str(each.outcome) for each in predictions)
            found.played += len(page)
        found.entries += len(page)
        on_entries(len(page))
    return found


def run(
    stream: Stream, projection: Projection, part: Part, batch: int, binding: Binding
) -> Iterator[tuple[int, Counter[str]]]:
    """Applies the part, batch by batch. The group stands where it stood, and nothing is acknowledged or buried.

    Args:
        binding: of the projection and its group. It must have been checked.

    Yields:
        After each batch the number of its entries, and how many came to which effect; `bad` are those that are no
        event of the projection's, `failed` those that it did not take.

    Raises:
        InfrastructureError: Redis or the store is in trouble; what was yielded is done.
        StoreMismatch: the store is not the group's any more.
    """
    decoder: Decoder[IMBaseEvent] = Decoder(projection.events)  # type: ignore[arg-type]
    for page in pages(stream, part.start, part.end, batch):
        received: list[Received[IMBaseEvent]] = []
        bad = 0
        for entry in page:
            event = _decoded(decoder, entry)
            if event is None:
                bad += part.user is None
            elif part.user is None or event.id == part.user:
                received.append(Received(event, entry.id))
        done = reapply(projection, received, binding)
        done["bad"] += bad
        yield len(page), done


def _decoded(decoder: Decoder[IMBaseEvent], entry: Entry) -> IMBaseEvent | None:
    try:
        return decoder.read(entry)
    except DataError:
        return None
