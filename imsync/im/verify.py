"""Proof that the copies are right: the user store against every projection, user by user.

It runs while traffic flows. Both sides are read in short pages, so a difference may only mean that one side was
read earlier; every difference is therefore looked at again, and what the outbox, an undelivered or a pending
entry explains is in flight and not drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from typing import TypeVar

from imsync.bus.codec import Decoder
from imsync.errors import DataError
from imsync.im.causes import (
    Cause,
    Difference,
    Evidence,
    Finding,
    Mend,
    Place,
    Whereabouts,
    difference,
    mend_for,
    way_of,
    why_behind,
    why_buried,
    why_other_content,
    why_stale,
)
from imsync.im.events import PROFILE_FIELDS, IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.flight import Flight
from imsync.im.outbox import RememberedEvent
from imsync.im.user_store import UserStore
from imsync.store.projection import Copies, CopyState, SourceState
from imsync.store.settlement import Settlement, key_of

PAGE = 1000
MAX_EXAMPLES = 20
MAX_LOOKS = 5
FIRST_KEY = -(2**63)
"""Below every key that a row can have: ids that no event can carry are found too."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A user in a projection that is not as it should be.

    Args:
        cause: why.
        detail: one line of evidence.
        mend: what makes it right again.
        source_version: 0 when the source does not know the user.
        copy_version: 0 when the projection does not.
    """

    user_id: int
    projection: str
    cause: Cause
    detail: str
    mend: Mend
    source_version: int
    copy_version: int


@dataclass(slots=True)
class Verdict:
    """What a verification found.

    Args:
        users: users in the source that were compared.
        rows: rows in the projections that copy a compared user.
        ways: differences that an event on its way explains, by where it is.
        held_by: of these, the pending ones by (projection, consumer).
        unfinished: of these, those whose fan-out is under way, by projection.
        causes: the drift by cause.
        mends: the drift by (projection, what mends it).
        beyond: of the drift, what no touch helps with, by cause.
        examples: the first differences.
    """

    users: int = 0
    rows: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    held_by: Counter[tuple[str, str]] = field(default_factory=Counter)
    unfinished: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    mends: Counter[tuple[str, Mend]] = field(default_factory=Counter)
    beyond: Counter[str] = field(default_factory=Counter)
    examples: list[Drift] = field(default_factory=list)

    @property
    def drift(self) -> int:
        """How many (user, projection) pairs are wrong."""
        return self.causes.total()

    @property
    def unrepairable(self) -> int:
        """How many of the wrong pairs a touch of the user at the source does not make right."""
        return sum(n for (_, mend), n in self.mends.items() if mend is not Mend.TOUCH)

    @property
    def in_flight(self) -> int:
        """How many (user, projection) pairs differ and will not, once what is on its way has come."""
        return self.ways.total()


def verify(
    users: UserStore,
    projections: Sequence[Copies],
    flight_to: Callable[[str], Flight],
    *,
    keys: Iterable[int] | None = None,
    max_examples: int = MAX_EXAMPLES,
    on_page: Callable[[int], None] = lambda n: None,
    on_drift: Callable[[Drift], None] = lambda drift: None,
    on_way: Callable[[int, str], None] = lambda user_id, projection: None,
) -> Verdict:
    """Compares users with every projection. Reads only; memory does not grow with the number of users.

    Args:
        flight_to: gives what is on its way to a projection's group; asked only when there is a difference.
        keys: the ids to compare, in rising order; all without, those that only a projection knows among them.
        on_page: called with the number of users compared since the last call.
        on_drift: called with each user that is wrong in a projection.
        on_way: called with each (user, projection) that differs because something is on its way.

    Raises:
        StoreUnusable: a store cannot be read.
        RedisUnreachable, RedisRefused: there is a difference, and nobody knows what is on its way.
    """
    verdict = Verdict()
    sides = [_Side(each, users, flight_to, verdict, max_examples, on_drift, on_way) for each in projections]
    if keys is None:
        for page in _pages(users.states):
            verdict.users += len(page)
            for side in sides:
                side.compare(page)
            on_page(len(page))
    else:
        rising = iter(keys)
        while wanted := list(islice(rising, PAGE)):
            sources = {key: users.state(key) for key in wanted}
            verdict.users += sum(source is not None for source in sources.values())
            for side in sides:
                side.compare_some(sources)
            on_page(len(wanted))
    for side in sides:
        side.finish(rest=keys is None)
    return verdict


class _Side:
    """One projection, read in step with the source."""

    def __init__(
        self,
        projection: Copies,
        users: UserStore,
        flight_to: Callable[[str], Flight],
        verdict: Verdict,
        max_examples: int,
        on_drift: Callable[[Drift], None],
        on_way: Callable[[int, str], None],
    ) -> None:
        self._projection = projection
        self._users = users
        self._flight_to = flight_to
        self._flight: Flight | None = None
        self._verdict = verdict
        self._max_examples = max_examples
        self._on_drift = on_drift
        self._on_way = on_way
        self._states = (state for page in _pages(projection.states) for state in page)
        self._next: CopyState | None = None
        self._begun = False
        self._suspects: list[int] = []

    def compare(self, page: Sequence[SourceState]) -> None:
        """Compares the next users of the source, and the states before the last of them that have no user."""
        states, expected, rows = self._states, self._projection.expected, 0
        copy = self._first()
        for source in page:
            key = source.key
            while copy is not None and copy.key < key:
                rows += copy.rows
                self._suspect(copy.key)
                copy = next(states, None)
            if copy is None or copy.key != key:
                self._suspect(key)
                continue
            rows += copy.rows
            if (
                copy.version != source.version
                or copy.stale_rows
                or copy.content != expected(source)
                or copy.deleted != source.deleted
            ):
                self._suspect(key)
            copy = next(states, None)
        self._next = copy
        self._verdict.rows += rows

    def compare_some(self, sources: Mapping[int, SourceState | None]) -> None:
        """Compares single users."""
        for key, source in sources.items():
            copy = self._projection.state(key)
            self._verdict.rows += copy.rows if copy else 0
            if self._difference(source, copy) is not None:
                self._suspect(key)

    def finish(self, *, rest: bool) -> None:
        """Judges what is left to be judged.

        Args:
            rest: compares the states that come after the last user first.
        """
        copy = self._first() if rest else None
        while copy is not None:
            self._verdict.rows += copy.rows
            self._suspect(copy.key)
            copy = next(self._states, None)
        self._judge()

    def _first(self) -> CopyState | None:
        """The first state that was not compared yet."""
        if not self._begun:
            self._begun, self._next = True, next(self._states, None)
        return self._next

    def _suspect(self, key: int) -> None:
        self._suspects.append(key)
        if len(self._suspects) >= PAGE:
            self._judge()

    def _difference(self, source: SourceState | None, copy: CopyState | None) -> Difference | None:
        return difference(source, copy, self._projection.expected(source) if source else ())

    def _judge(self) -> None:
        """Looks at the suspects again, and once more at those that were edited meanwhile."""
        suspects, self._suspects = self._suspects, []
        for _ in range(MAX_LOOKS):
            if not suspects:
                return
            suspects = self._look_again(suspects)
        for key in suspects:  # edited at every look: there is always an event on its way
            self._is_on_its_way(key, Whereabouts(Place.EDITING))

    def _look_again(self, suspects: Sequence[int]) -> list[int]:
        """Judges users, and returns those whose source was edited while they were read.

        The order of the reads is what makes it right: the source and its outbox, then the group, then the settlement
        log, then the copies. What the group has settled by then is in the copies.
        """
        sources = {key: (self._users.state(key), self._newest(key)) for key in suspects}
        whereabouts = self._whereabouts([event.entry_id for _, event in sources.values() if event and event.entry_id])
        settled = self._projection.settled(
            [each for _, event in sources.values() if event for each in (event.event_id, _entry_key(event)) if each]
        )
        moved: list[int] = []
        for key, (source, event) in sources.items():
            copy = self._projection.state(key)
            kind = self._difference(source, copy)
            if kind is None:
                continue
            if kind is Difference.ROWS and copy is not None and copy.unvisited == copy.stale_rows:
                self._is_on_its_way(key, Whereabouts(Place.FAN_OUT))
                continue
            evidence = _evidence(event, whereabouts, settled)
            if source is not None and kind in (Difference.ABSENT, Difference.BEHIND):
                if event is not None and event.version > source.version:
                    moved.append(key)
                    continue
                if way := way_of(evidence) if event is not None and event.version == source.version else None:
                    self._is_on_its_way(key, way)
                    continue
            finding = self._why(kind, source, copy, evidence)
            if finding is None or self._users.state(key) != source or self._newest(key) != event:
                moved.append(key)
            else:
                self._found(key, finding, source, copy, evidence)
        return moved

    def _newest(self, key: int) -> RememberedEvent | None:
        return next(iter(self._users.events_of(key, 1)), None)

    def _whereabouts(self, entry_ids: Sequence[str]) -> dict[str, Whereabouts]:
        if not entry_ids:
            return {}
        if self._flight is None:
            self._flight = self._flight_to(self._projection.name)
        self._flight.refresh(entry_ids)
        return {entry_id: self._flight.look(entry_id) for entry_id in entry_ids}

    def _why(
        self, kind: Difference, source: SourceState | None, copy: CopyState | None, evidence: Evidence
    ) -> Finding | None:
        """Why a copy is wrong; None when it must be looked at again."""
        if source is None:
            rows = copy.rows if copy else 0
            copied = "1 row here copies it" if rows == 1 else f"{rows:,} rows here copy it"
            return Finding(Cause.ORPHAN, f"the source has no such user, and {copied}")
        if kind in (Difference.ABSENT, Difference.BEHIND) or copy is None:
            return why_behind(source, copy, evidence)
        if kind is Difference.BURIED:
            return why_buried(source, copy, evidence)
        if kind is Difference.RESURRECTED:
            return Finding(
                Cause.RESURRECTED, f"deleted at version {source.version}, and the copy lives at {copy.version}"
            )
        if kind is Difference.AHEAD:
            detail = f"the copy has version {copy.version}, and the source has come to {source.version}"
            return Finding(Cause.AHEAD, detail)
        if kind is Difference.CONTENT:
            said = self._said([evidence.event] if evidence.event else [])
            return why_other_content(source, evidence, next(iter(said), ()), self._projection.expected(source))
        return why_stale(copy, self._projection.contents(copy.key), self._said(self._users.events_of(copy.key)))

    def _said(self, events: Iterable[RememberedEvent]) -> set[tuple[str, ...]]:
        """What a right copy holds after each of these events."""
        states = (state_of(event) for event in events)
        return {self._projection.expected(state) for state in states if state is not None}

    def _is_on_its_way(self, key: int, way: Whereabouts) -> None:
        self._verdict.ways[way.place] += 1
        if way.place is Place.FAN_OUT:
            self._verdict.unfinished[self._projection.name] += 1
        if way.place is Place.PENDING:
            self._verdict.held_by[self._projection.name, way.holder] += 1
        self._on_way(key, self._projection.name)

    def _found(
        self, key: int, finding: Finding, source: SourceState | None, copy: CopyState | None, evidence: Evidence
    ) -> None:
        detail = finding.detail
        is_example = len(self._verdict.examples) < self._max_examples
        if is_example and finding.cause is Cause.DEAD_LETTERED and self._flight and evidence.event:
            reason = self._flight.reason(evidence.event.event_id, evidence.event.entry_id or "0-0")
            detail += f": {reason}" if reason else ""
        drift = Drift(
            key,
            self._projection.name,
            finding.cause,
            detail,
            mend_for(key, source, copy),
            source.version if source else 0,
            copy.version if copy else 0,
        )
        self._verdict.causes[drift.cause] += 1
        self._verdict.mends[drift.projection, drift.mend] += 1
        if drift.mend in (Mend.REBUILD, Mend.BY_HAND):
            self._verdict.beyond[drift.cause] += 1
        if is_example:
            self._verdict.examples.append(drift)
        self._on_drift(drift)


def _evidence(
    event: RememberedEvent | None, whereabouts: Mapping[str, Whereabouts], settled: Mapping[bytes, Settlement]
) -> Evidence:
    if event is None:
        return Evidence()
    where = whereabouts.get(event.entry_id) if event.entry_id else None
    return Evidence(event, where, settled.get(event.event_id), _entry_key(event) in settled)


def _entry_key(event: RememberedEvent) -> bytes:
    """Under which the projection notes that the event's entry was lost; empty when it was not published."""
    return key_of(None, event.entry_id) if event.entry_id else b""


@cache
def _decoder() -> Decoder[IMBaseEvent]:
    return Decoder((UserUpdated, UserDeleted))


def state_of(event: RememberedEvent) -> SourceState | None:
    """The source as it was at an event; None when that cannot be read."""
    try:
        said = _decoder().decode(event.body)
    except DataError:
        return None
    if said is None:
        return None
    content = {name: str(getattr(said, name, "")) for name in PROFILE_FIELDS}  # a tombstone has none of them
    return SourceState(said.id, event.version, said.final, content)


S = TypeVar("S", SourceState, CopyState)


def _pages(read: Callable[[int, int], list[S]]) -> Iterator[list[S]]:
    """All states, in short pages so that no transaction stays open."""
    after = FIRST_KEY
    while page := read(after, PAGE):
        yield page
        after = page[-1].key
