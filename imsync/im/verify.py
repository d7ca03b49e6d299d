"""Proof that the copies are right: the user store against every projection, user by user.

It runs while traffic flows. Both sides are read in short pages, so a difference may only mean that one side was
read earlier; every difference is therefore looked at again, and what the outbox, an undelivered or a pending
entry explains is in flight and not drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar

from imsync.im.user_store import UserStore
from imsync.store.projection import CopyState, Projection, SourceState

PAGE = 1000
MAX_EXAMPLES = 20
MAX_LOOKS = 5


class Cause(StrEnum):
    """Why a projection differs from the source."""

    MISSING = "missing"
    """The projection has never heard of the user, and no event is on its way."""
    BEHIND = "behind"
    """It has an older version, and no event is on its way."""
    LOST = "lost"
    """The event was published and is no longer in the stream, and the group never got it."""
    AHEAD = "ahead"
    """It has a newer version than the source: the user store was restored from a backup."""
    EDITED = "edited"
    """It has the right version and other content: somebody wrote to it by hand."""
    STALE_ROWS = "stale_rows"
    """Rows differ from the projection's own state of the user: written by hand, or a join that bypassed it."""
    RESURRECTED = "resurrected"
    """The user is deleted, and the projection shows it as living."""
    ORPHAN = "orphan"
    """The projection knows a user that the source does not."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A user in a projection that is not as it should be."""

    user_id: int
    projection: str
    cause: Cause
    source_version: int
    copy_version: int


@dataclass(slots=True)
class Verdict:
    """What a verification found.

    Args:
        users: users in the source.
        rows: rows in the projections that copy a user.
        in_flight: differences that an event on its way explains.
        causes: the drift by cause.
        examples: the first differences.
    """

    users: int = 0
    rows: int = 0
    in_flight: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    examples: list[Difference] = field(default_factory=list)

    @property
    def drift(self) -> int:
        """How many (user, projection) pairs are wrong."""
        return self.causes.total()


class Flight(Protocol):
    """What is on its way to a group, as it was at the last `refresh`."""

    def refresh(self, entry_ids: Sequence[str]) -> None:
        """Looks at the group, and at these entries, again."""
        ...

    def is_undelivered(self, entry_id: str) -> bool:
        """Whether the group has not been given this entry yet."""
        ...

    def is_pending(self, entry_id: str) -> bool:
        """Whether a consumer holds this entry unacknowledged."""
        ...

    def is_gone(self, entry_id: str) -> bool:
        """Whether one of these entries is no longer in the stream: trimmed, deleted, or lost by the server."""
        ...


def difference(source: SourceState | None, copy: CopyState | None, expected: tuple[str, ...]) -> Cause | None:
    """How a copy differs from its source; None when it is right. Pure.

    Args:
        expected: the content that a right copy of the source has.
    """
    if source is None:
        return Cause.ORPHAN if copy is not None else None
    if copy is None or copy.version == 0:
        return Cause.MISSING
    if copy.version < source.version:
        return Cause.BEHIND
    if copy.version > source.version:
        return Cause.AHEAD
    if source.deleted and not copy.deleted:
        return Cause.RESURRECTED
    if copy.content != expected or copy.deleted != source.deleted:
        return Cause.EDITED
    return Cause.STALE_ROWS if copy.stale_rows else None


def verify(
    users: UserStore,
    projections: Sequence[Projection],
    flight_to: Callable[[str], Flight],
    *,
    on_page: Callable[[int], None] = lambda n: None,
) -> Verdict:
    """Compares every user with every projection. Reads only; memory does not grow with the number of users.

    Args:
        flight_to: gives what is on its way to a projection's group; asked only when there is a difference.
        on_page: called with the number of users compared since the last call.
    """
    verdict = Verdict()
    sides = [_Side(projection, users, flight_to, verdict) for projection in projections]
    for source in _paged(users.states):
        verdict.users += 1
        for side in sides:
            side.compare(source)
        if verdict.users % PAGE == 0:
            on_page(PAGE)
    for side in sides:
        side.finish()
    on_page(verdict.users % PAGE)
    return verdict


class _Side:
    """One projection, read in step with the source."""

    def __init__(
        self,
        projection: Projection,
        users: UserStore,
        flight_to: Callable[[str], Flight],
        verdict: Verdict,
    ) -> None:
        self._projection = projection
        self._users = users
        self._flight_to = flight_to
        self._flight: Flight | None = None
        self._verdict = verdict
        self._states = _paged(projection.states)
        self._next = next(self._states, None)
        self._suspects: list[int] = []

    def compare(self, source: SourceState) -> None:
        """Compares the next user of the source, and the states that come before it and have no user."""
        while self._next is not None and self._next.key < source.key:
            self._note(None, self._advance(self._next))
        if self._next is not None and self._next.key == source.key:
            self._note(source, self._advance(self._next))
        else:
            self._note(source, None)

    def finish(self) -> None:
        """Compares the states that come after the last user, and judges what is left to be judged."""
        while self._next is not None:
            self._note(None, self._advance(self._next))
        self._judge()

    def _advance(self, state: CopyState) -> CopyState:
        self._next = next(self._states, None)
        self._verdict.rows += state.rows
        return state

    def _note(self, source: SourceState | None, copy: CopyState | None) -> None:
        if self._difference(source, copy) is not None:
            self._suspects.append(source.key if source else copy.key if copy else 0)
        if len(self._suspects) >= PAGE:
            self._judge()

    def _difference(self, source: SourceState | None, copy: CopyState | None) -> Cause | None:
        return difference(source, copy, self._projection.expected(source) if source else ())

    def _judge(self) -> None:
        """Looks at the suspects again, and once more at those that were edited meanwhile."""
        for _ in range(MAX_LOOKS):
            if not self._suspects:
                return
            self._suspects = self._look_again(self._suspects)
        # edited at every look: there is always an event on its way
        self._verdict.in_flight += len(self._suspects)
        self._suspects = []

    def _look_again(self, suspects: Sequence[int]) -> list[int]:
        """Judges users, and returns those whose source was edited while they were read.

        The order of the reads is what makes it right: the source and its outbox, then the group, then the copies.
        What the group has settled by then is in the copies.
        """
        if self._flight is None:
            self._flight = self._flight_to(self._projection.name)
        sources = {key: (self._users.state(key), self._users.latest_event(key)) for key in suspects}
        self._flight.refresh([latest[1] for _, latest in sources.values() if latest and latest[1]])
        moved: list[int] = []
        for key, (source, latest) in sources.items():
            copy = self._projection.state(key)
            cause = self._difference(source, copy)
            if cause is None:
                continue
            if cause in (Cause.MISSING, Cause.BEHIND):
                cause = self._explain(cause, latest, self._flight)
            elif self._users.state(key) != source:
                moved.append(key)
                continue
            if cause is None:
                self._verdict.in_flight += 1
            else:
                self._found(Difference(key, self._projection.name, cause, _version(source), _version(copy)))
        return moved

    def _found(self, drift: Difference) -> None:
        self._verdict.causes[drift.cause] += 1
        if len(self._verdict.examples) < MAX_EXAMPLES:
            self._verdict.examples.append(drift)

    @staticmethod
    def _explain(cause: Cause, latest: tuple[int, str | None] | None, flight: Flight) -> Cause | None:
        """Why a copy is behind; None when the event is on its way."""
        if latest is None:
            return cause
        entry_id = latest[1]
        if entry_id is None:
            return None  # it waits in the outbox
        if flight.is_undelivered(entry_id) or flight.is_pending(entry_id):
            return Cause.LOST if flight.is_gone(entry_id) else None
        return cause


def _version(state: SourceState | CopyState | None) -> int:
    return state.version if state else 0


S = TypeVar("S", SourceState, CopyState)


def _paged(read: Callable[[int, int], list[S]]) -> Iterator[S]:
    """All states, read in short pages so that no transaction stays open."""
    after = 0
    while page := read(after, PAGE):
        yield from page
        after = page[-1].key
