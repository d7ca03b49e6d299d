"""Dead letters as people look for them: about whom, of which version, and whether anybody still needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from imsync.bus.codec import Decoder
from imsync.bus.dead_letter import DeadLetterRecord
from imsync.bus.entry import FIELD
from imsync.bus.event import Event
from imsync.bus.glimpse import glimpse
from imsync.bus.redrive import letters, original
from imsync.bus.stream import Stream
from imsync.im.prediction import Predicted, Prediction, Predictor
from imsync.store.projection import Projection


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Which dead letters are meant.

    Args:
        reasons: only with one of these reasons; any when empty.
        user: only about this user, as far as that can be read.
        since_ms: only those written since, in unix milliseconds of the server's clock.
        ids: only these, by their own ids or by the ids of the entries that they replace; any when empty.
    """

    reasons: Collection[str] = ()
    user: int | None = None
    since_ms: int | None = None
    ids: Collection[str] = ()

    @property
    def is_everything(self) -> bool:
        """Whether it leaves out nothing."""
        return not self.reasons and self.user is None and self.since_ms is None and not self.ids


@dataclass(frozen=True, slots=True)
class About:
    """What a dead letter is about.

    Args:
        type: its event's type; None when it cannot be read. Text from the outside, as is everything when `decoded` is
            false.
        superseded: whether its event cannot change anything any more, because its version, a newer one or a tombstone
            is applied; None when that cannot be told.
        applied_version: the version that the projection has of the user; 0 for none, None when that cannot be told.
        prediction: what would become of it if it were redriven alone; None without a projection.
    """

    type: str | None
    user: int | None
    version: int | None
    superseded: bool | None
    applied_version: int | None
    prediction: Prediction | None

    @property
    def decoded(self) -> bool:
        """Whether it is an event that the projection takes."""
        return self.prediction is not None and self.prediction.event is not None


@dataclass(frozen=True, slots=True)
class ReadLetter:
    """A dead letter, and what it is about."""

    letter: DeadLetterRecord
    about: About


def look(letter: DeadLetterRecord, projection: Projection | None, decoder: Decoder[Event] | None = None) -> About:
    """What a letter is about.

    Args:
        projection: its group's store; None where that cannot be read.
        decoder: see `Predictor`.
    """
    seen = glimpse(letter.raw.get(FIELD))
    if projection is None:
        return About(seen.type, seen.subject, seen.sequence, None, None, None)
    predictor = Predictor(projection, decoder)
    (prediction,) = predictor.predict([original(letter)])
    if prediction.event is not None:
        event = prediction.event
        superseded = prediction.outcome in (Predicted.DUPLICATE, Predicted.SUPERSEDED)
        return About(event.event_type, event.id, event.version, superseded, prediction.applied_version, prediction)
    applied = None if seen.subject is None else predictor.version(seen.subject)
    passed = (
        None if seen.subject is None or seen.sequence is None else predictor.supersedes(seen.subject, seen.sequence)
    )
    return About(seen.type, seen.subject, seen.sequence, passed, applied, prediction)


def select(dead: Stream, projection: Projection | None, wanted: LetterFilter) -> Iterator[ReadLetter]:
    """The dead letters that are meant, the oldest first. Reads them in pages."""
    decoder: Decoder[Event] | None = None if projection is None else Decoder(projection.events)
    digits = None if wanted.user is None else str(wanted.user).encode()
    start = "-" if wanted.since_ms is None else str(max(0, wanted.since_ms))
    for letter in letters(dead, start):
        if wanted.reasons and letter.reason not in wanted.reasons:
            continue
        if wanted.ids and letter.id not in wanted.ids and letter.source_id not in wanted.ids:
            continue
        if digits is not None and digits not in letter.raw.get(FIELD, b""):
            continue  # a number that is not there as such cannot be the user of a valid event either
        about = look(letter, projection, decoder)
        if wanted.user is None or about.user == wanted.user:
            yield ReadLetter(letter, about)
