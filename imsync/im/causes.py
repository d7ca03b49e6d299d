"""Why a copy is not as its source: from the two states, and from what became of the event that should have made them
equal. Pure; `imsync.im.verify` gathers the evidence.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from imsync.bus.event import MAX_INT
from imsync.bus.outcome import Effect
from imsync.im.outbox import RememberedEvent
from imsync.store.projection import NO_ROOM, CopyState, SourceState
from imsync.store.settlement import DEAD, Settlement


class Cause(StrEnum):
    """Why a projection differs from the source."""

    DEAD_LETTERED = "dead_lettered"
    """The event could not be applied, and became a dead letter."""
    TRIMMED = "trimmed"
    """The event was trimmed from the stream before the group got it."""
    LOST_BY_SERVER = "lost_by_server"
    """The event was published, and the server has lost it, with all that was sent after it."""
    STALE_JOIN = "stale_join"
    """Rows show what was published earlier, or nothing: they were made past the projection's own state."""
    EDITED = "edited"
    """The projection shows what no event has written there: somebody wrote to it by hand."""
    AHEAD = "ahead"
    """The projection has what the source has not: the user store was restored from a backup."""
    MISSING = "missing"
    """The projection has never heard of the user, and no event is on its way."""
    ORPHAN = "orphan"
    """The projection knows a user that the source does not."""
    RESURRECTED = "resurrected"
    """The user is deleted, and the projection shows it as living."""
    UNKNOWN = "unknown"
    """The projection is behind, no event is on its way, and nobody remembers why."""


class Mend(StrEnum):
    """What makes a copy right again."""

    TOUCH = "touch"
    """The user is published anew by its source."""
    REBUILD = "rebuild"
    """The projection is rebuilt: the version gate lets no event through."""
    TOUCH_REBUILD = "touch_rebuild"
    """Both: the rebuild needs a source that is newer."""
    BY_HAND = "by_hand"
    """No event can carry this user's id."""


class Place(StrEnum):
    """Where an event is on its way. An event that has passed is on its way no more."""

    OUTBOX = "outbox"
    UNDELIVERED = "undelivered"
    PENDING = "pending"
    FAN_OUT = "fan_out"
    """It was applied, and its projection has not come to all rows of the user yet."""
    AFTER_EXPORT = "after_export"
    """It came, or was applied, after the copies were exported."""
    EDITING = "editing"
    """The user was edited each time that it was looked at."""
    PASSED = "passed"


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a published event is.

    Args:
        holder: the consumer that holds it, when it is pending.
        gone: `TRIMMED` or `LOST_BY_SERVER` when the stream does not hold it any more.
    """

    place: Place
    holder: str = ""
    gone: Cause | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a user besides its two states.

    Args:
        event: its newest event that the outbox remembers.
        whereabouts: of that event, when it was published.
        settled: how the projection settled that event, as far as it remembers.
        lost: whether it noted the event's entry as lost.
    """

    event: RememberedEvent | None = None
    whereabouts: Whereabouts | None = None
    settled: Settlement | None = None
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a copy is wrong, and one line of evidence for people."""

    cause: Cause
    detail: str


class Difference(Enum):
    """How a copy differs from its source."""

    ORPHAN = auto()
    ABSENT = auto()
    BURIED = auto()
    """The copy has a tombstone, and the source lives."""
    BEHIND = auto()
    RESURRECTED = auto()
    AHEAD = auto()
    CONTENT = auto()
    ROWS = auto()


def difference(source: SourceState | None, copy: CopyState | None, expected: tuple[str, ...]) -> Difference | None:
    """How a copy differs from its source; None when it is right.

    Args:
        expected: the content that a right copy of the source has.
    """
    if source is None:
        return Difference.ORPHAN if copy is not None else None
    if copy is None or copy.version == 0:
        return Difference.ABSENT
    if copy.deleted and not source.deleted:
        return Difference.BURIED
    if not copy.deleted:  # of two tombstones none is newer
        if copy.version < source.version:
            return Difference.BEHIND
        if source.deleted:
            return Difference.RESURRECTED
        if copy.version > source.version:
            return Difference.AHEAD
    if copy.content != expected:
        return Difference.CONTENT
    return Difference.ROWS if copy.stale_rows else None


def way_of(evidence: Evidence) -> Whereabouts | None:
    """Where a user's newest event is on its way; None when it is not, or when there is none."""
    if evidence.event is None:
        return None
    where = evidence.whereabouts
    if where is None:
        return Whereabouts(Place.OUTBOX)
    return None if where.place is Place.PASSED or where.gone else where


def why_behind(source: SourceState, copy: CopyState | None, evidence: Evidence) -> Finding:
    """Why a copy has an older version than its source, or none, when no event is on its way.

    The newest event alone decides: it carries everything, so it would have mended whatever its elders left undone.
    """
    absent = copy is None or copy.version == 0
    shown = "nothing" if copy is None or absent else f"version {copy.version}"
    nothing_known = Cause.MISSING if absent else Cause.UNKNOWN
    event, settled = evidence.event, evidence.settled
    if event is None or event.version < source.version:
        return Finding(nothing_known, f"the outbox remembers no event of version {source.version}")
    told = f"entry {event.entry_id}"
    if settled is not None and settled.outcome == DEAD:
        return Finding(Cause.DEAD_LETTERED, f"{told} became a dead letter")
    if settled is not None:
        resurrected = source.deleted and copy is not None and not absent and not copy.deleted
        cause = Cause.RESURRECTED if resurrected else Cause.EDITED
        return Finding(cause, f"{told} was settled as {settled.outcome}, and the copy shows {shown}")
    where = evidence.whereabouts
    if where is not None and (where.gone or evidence.lost):
        return Finding(where.gone or Cause.TRIMMED, f"{told} is not in the stream any more")
    return Finding(nothing_known, f"{told} was acknowledged, and this store has not settled it")


def why_buried(source: SourceState, copy: CopyState, evidence: Evidence) -> Finding:
    """Why a copy has the tombstone of a living user."""
    detail = f"the copy has a tombstone of version {copy.version}, and the source lives at {source.version}"
    outcome = _outcome_at(source, evidence)
    if copy.version > source.version or outcome == str(Effect.SUPERSEDED):
        return Finding(Cause.AHEAD, detail)
    # at its own version the source says that it lives, and so did its event
    by_hand = outcome == str(Effect.APPLIED) or copy.version == source.version
    return Finding(Cause.EDITED if by_hand else Cause.AHEAD, detail)


def why_other_content(
    source: SourceState, evidence: Evidence, said: tuple[str, ...], expected: tuple[str, ...]
) -> Finding:
    """Why a copy has the right version and other content.

    Args:
        said: what a right copy holds after the user's newest event; empty when that is not remembered.
        expected: what a right copy of the source holds.
    """
    detail = f"version {source.version} with other content"
    if _outcome_at(source, evidence) == str(Effect.SUPERSEDED):
        return Finding(Cause.AHEAD, f"{detail}, that was there before its event came")
    if said and said != expected and _is_at(source, evidence):
        detail = f"version {source.version}: the source is not as its own event says"
    return Finding(Cause.EDITED, detail)


def why_stale(
    copy: CopyState, contents: Mapping[tuple[str, ...], int], published: Collection[tuple[str, ...]]
) -> Finding | None:
    """Why rows differ from the projection's own state of the user; None when they do not any more.

    Args:
        contents: what the rows hold, and how many of them hold it.
        published: what a right copy held after each event that is remembered.
    """
    wrong = {content: n for content, n in contents.items() if content != copy.content}
    if not wrong:
        return None
    # what a fan-out under way has not come to yet is not wrong; the two were read one after the other
    rows = f"{max(1, sum(wrong.values()) - copy.unvisited):,} of {sum(contents.values()):,} rows"
    if any(any(content) and content not in published for content in wrong):
        return Finding(Cause.EDITED, f"{rows} show what no remembered event has said")
    older = "what was published earlier" if any(map(any, wrong)) else "nothing"
    return Finding(Cause.STALE_JOIN, f"{rows} show {older}")


def mend_for(key: int, source: SourceState | None, copy: CopyState | None) -> Mend:
    """What makes a wrong copy right again.

    An event passes the version gate when its version is higher, and nothing passes a tombstone. A rebuild writes what
    is newer, or as new and no resurrection; and whatever the source says over a version that leaves no room.
    """
    if not 1 <= key <= MAX_INT:
        return Mend.BY_HAND
    ours, theirs = source.version if source else 0, copy.version if copy else 0
    shut = copy is not None and (copy.deleted or theirs >= NO_ROOM)
    if not shut and ours < NO_ROOM:
        return Mend.TOUCH
    if source is None:
        is_empty = copy is not None and copy.deleted and not any(copy.content) and not copy.stale_rows
        return Mend.TOUCH if is_empty else Mend.TOUCH_REBUILD
    newer = ours > theirs or theirs >= NO_ROOM or (source.deleted and ours == theirs)
    return Mend.REBUILD if newer else Mend.TOUCH_REBUILD


def _is_at(source: SourceState, evidence: Evidence) -> bool:
    """Whether the newest event that is remembered is of the source's present version."""
    return evidence.event is not None and evidence.event.version == source.version


def _outcome_at(source: SourceState, evidence: Evidence) -> str | None:
    """How the event of the source's present version was settled."""
    return str(evidence.settled.outcome) if evidence.settled and _is_at(source, evidence) else None
