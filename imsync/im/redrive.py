"""What a redrive would do: the dead letters that are meant, and what would become of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from imsync.bus.redrive import original
from imsync.bus.stream import Stream
from imsync.im.letters import LetterFilter, select
from imsync.im.prediction import Prediction, Predictor
from imsync.store.projection import Projection


@dataclass(frozen=True, slots=True)
class PlannedLetter:
    """A dead letter that would be redriven, without its contents.

    Args:
        user, version: as far as they can be read.
        prediction: what would become of it in its turn, without the event.
    """

    id: str
    source_id: str
    reason: str
    consumer: str
    deliveries: int
    user: int | None
    version: int | None
    prediction: Prediction


def plan(
    dead: Stream, projection: Projection, wanted: LetterFilter, *, batch: int, limit: int | None = None
) -> list[PlannedLetter]:
    """The letters that a redrive would take, the oldest first, with what would become of them when it applies them in
    batches of this size. Changes nothing.

    Raises:
        StoreUnusable: the projection cannot be read.
    """
    predictor = Predictor(projection)
    planned: list[PlannedLetter] = []
    chosen = islice(select(dead, projection, wanted), limit)
    while page := list(islice(chosen, batch)):
        predictions = predictor.predict([original(read.letter) for read in page])
        for read, prediction in zip(page, predictions, strict=True):
            letter, about = read.letter, read.about
            planned.append(
                PlannedLetter(
                    letter.id, letter.source_id, letter.reason, letter.consumer, letter.deliveries, about.user,
                    about.version, prediction.outline(),
                )
            )  # fmt: skip
    return planned


def batches(planned: list[PlannedLetter], size: int) -> Iterator[list[str]]:
    """The ids of the letters, batch by batch."""
    for start in range(0, len(planned), size):
        yield [each.id for each in planned[start : start + size]]
