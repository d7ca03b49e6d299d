"""One user's way from the edit to every copy: what each place on it says, and what it adds up to. Prints nothing.

The places are read in the direction of the events, as `verify` does: the source and its outbox, the group, the copies.
So what a group has settled when it is looked at is in the copies that are looked at afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable
from uuid import UUID

from imsync.bus.bus import Bus
from imsync.bus.entry import id_parts
from imsync.bus.inspection import GroupView, view_group
from imsync.errors import GroupMissing, InfrastructureError, UsageError
from imsync.im.causes import difference
from imsync.im.events import DESTINATION
from imsync.im.letters import LetterFilter, select
from imsync.im.outbox import RememberedEvent
from imsync.im.user_store import Profile, UserStore
from imsync.im.verify import state_of
from imsync.im.wording import counted
from imsync.store.projection import CopyState, FanningOut, Projection, SourceState
from imsync.store.settlement import COVERED, DEAD, LOST, key_of

EVENTS = 20
"""How many of a user's newest events are looked at."""
MAX_LOOKS = 5


class Stage(StrEnum):
    """Where a user's newest event is, as one group sees it."""

    NONE = "none"
    """The outbox remembers no event of this user: it was never edited, or long ago."""
    WAITING = "waiting"
    """In the outbox, not published yet."""
    UNDELIVERED = "undelivered"
    """In the stream, not given to the group yet."""
    PENDING = "pending"
    """Given to a consumer, and not acknowledged."""
    APPLIED = "applied"
    SUPERSEDED = "superseded"
    DEAD = "dead"
    """Settled as dead, with or without its letter."""
    COVERED = "covered"
    """Never settled, and covered by the snapshot of a rebuild."""
    LOST = "lost"
    """It left the stream before it was applied."""
    UNSETTLED = "unsettled"
    """The group is past it, and nobody has settled it, or nobody remembers."""
    UNKNOWN = "unknown"
    """Redis or the store cannot be asked."""


class Standing(StrEnum):
    """How a projection stands to the source."""

    IN_STEP = "in_step"
    ON_ITS_WAY = "on_its_way"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class TracedEvent:
    """An event of the user. `in_stream`: whether the stream has its entry; None when that is not known, or not sent."""

    event: RememberedEvent
    in_stream: bool | None

    @property
    def event_id(self) -> str:
        """The event's id as people write it."""
        return str(UUID(bytes=self.event.event_id))


@dataclass(frozen=True, slots=True)
class Holder:
    """The consumer that holds the newest event."""

    consumer: str
    alive: bool
    idle_ms: int
    deliveries: int


@dataclass(frozen=True, slots=True)
class TracedLetter:
    """A dead letter about the user. `superseded`: see `imsync.im.letters.About`."""

    id: str
    source_id: str
    reason: str
    version: int | None
    superseded: bool | None


@dataclass(frozen=True, slots=True)
class RowsAt:
    """How many rows hold the content of a version; None for content that no version has that anybody remembers."""

    version: int | None
    rows: int


@dataclass(frozen=True, slots=True)
class TracedCopies:
    """What a projection has of the user.

    Args:
        version: the applied version; 0 for none.
        stale_rows: rows that differ from the projection's own state of the user.
        unvisited: how many of them a fan-out under way will come to.
        at: the rows by the version whose content they hold, most rows first.
        visited: how many of the rows the fan-out has come to that is under way; None when none is, or nobody can tell.
        overrides: rows with an override, which no event touches; None where the store cannot tell.
        right: whether all is as the source has it.
    """

    version: int
    deleted: bool
    rows: int
    stale_rows: int
    at: tuple[RowsAt, ...]
    visited: int | None
    unvisited: int
    overrides: int | None
    right: bool


@dataclass(frozen=True, slots=True)
class ServiceTrace:
    """The end of the way in one service.

    Args:
        alive: how many consumers have a heartbeat; None when Redis is away.
        letters: the user's dead letters; None when Redis is away.
        copies: None when the store cannot be read here.
        what, remedy: what is wrong or waited for, and what to type; empty when there is nothing.
    """

    name: str
    stage: Stage
    holder: Holder | None
    alive: int | None
    letters: tuple[TracedLetter, ...] | None
    copies: TracedCopies | None
    standing: Standing
    what: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """One user's way.

    Args:
        edited_ms: when the profile was written last.
        events: its newest events that the outbox remembers, the newest first.
        redis_error: why Redis cannot be asked; None when it was.
    """

    profile: Profile
    edited_ms: int
    events: tuple[TracedEvent, ...]
    redis_error: InfrastructureError | None
    services: tuple[ServiceTrace, ...]

    @property
    def standing(self) -> Standing:
        """The worst that is known of any service."""
        found = {service.standing for service in self.services}
        order = (Standing.WRONG, Standing.UNKNOWN, Standing.ON_ITS_WAY)
        return next((each for each in order if each in found), Standing.IN_STEP)


@runtime_checkable
class Overridable(Protocol):
    """A projection whose rows may have an override."""

    def overrides(self, key: int, /) -> int:
        """How many rows of a key have one."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """What Redis says of the user's newest event and letters in one group."""

    view: GroupView
    holder: Holder | None
    letters: tuple[TracedLetter, ...]


def trace(users: UserStore, projections: Mapping[str, Projection | None], bus: Bus, user_id: int) -> Trace:
    """Follows a user, once more if it is edited meanwhile. Reads only.

    Args:
        projections: by the names of their groups; None where the store cannot be read here.

    Raises:
        UsageError: there is no such user.
        StoreUnusable: a store cannot be read.
    """
    source = users.state(user_id)
    for _ in range(MAX_LOOKS):
        before, found = source, _follow(users, projections, bus, user_id, source)
        if (source := users.state(user_id)) == before:
            break
    return found


def _follow(
    users: UserStore, projections: Mapping[str, Projection | None], bus: Bus, user_id: int, source: SourceState | None
) -> Trace:
    profile = users.profiles([user_id]).get(user_id)
    if source is None or profile is None:
        raise UsageError(
            f"there is no user {user_id}", f"imsync verify --user {user_id} says whether a service has copies of one"
        )
    edited_ms = users.edited_ms(user_id) or 0
    events = users.events_of(user_id, EVENTS)
    newest = events[0] if events else None
    existing: set[str] | None
    seen: dict[str, _Seen]
    try:
        existing = bus.stream(DESTINATION).existing([event.entry_id for event in events if event.entry_id])
        seen = {name: _look(bus, name, store, user_id, newest) for name, store in projections.items()}
        error = None
    except InfrastructureError as trouble:
        if trouble.exit_code != 4:
            raise
        existing, seen, error = None, {}, trouble
    traced = tuple(
        TracedEvent(event, None if existing is None or event.entry_id is None else event.entry_id in existing)
        for event in events
    )
    services = tuple(_service(name, each, source, traced, seen.get(name), users) for name, each in projections.items())
    return Trace(profile, edited_ms, traced, error, services)


def _look(bus: Bus, group: str, store: Projection | None, user_id: int, newest: RememberedEvent | None) -> _Seen:
    stream = bus.stream(DESTINATION)
    view = view_group(bus, DESTINATION, group)
    holder = None
    if newest and newest.entry_id:
        try:
            held = stream.pending_among(group, [newest.entry_id])
        except GroupMissing:
            held = []
        for entry in held:
            holder = Holder(entry.consumer, entry.consumer in view.alive, entry.idle_ms, entry.deliveries)
    letters = select(bus.dead_letters(DESTINATION, group), store, LetterFilter(user=user_id))
    found = tuple(
        TracedLetter(each.letter.id, each.letter.source_id, each.letter.reason, each.about.version,
                     each.about.superseded)
        for each in letters
    )  # fmt: skip
    return _Seen(view, holder, found)


def _service(
    name: str,
    store: Projection | None,
    source: SourceState,
    events: Sequence[TracedEvent],
    seen: _Seen | None,
    users: UserStore,
) -> ServiceTrace:
    newest = events[0] if events else None
    stage = _stage(store, newest, seen)
    copies = None if store is None else _copies(store, source, [each.event for each in events])
    found = ServiceTrace(
        name, stage, seen.holder if seen else None, len(seen.view.alive) if seen else None,
        seen.letters if seen else None, copies, Standing.UNKNOWN,
    )  # fmt: skip
    if copies and copies.version > source.version and users.state(source.key) != source:
        standing, what, remedy = Standing.ON_ITS_WAY, "the user is being edited", ""
    else:
        standing, what, remedy = _judged(found, source, newest)
    return ServiceTrace(name, stage, found.holder, found.alive, found.letters, copies, standing, what, remedy)


def _stage(store: Projection | None, newest: TracedEvent | None, seen: _Seen | None) -> Stage:
    """Where the newest event is. What is settled and not acknowledged yet counts as settled."""
    if newest is None:
        return Stage.NONE
    event = newest.event
    if event.entry_id is None:
        return Stage.WAITING
    if store is not None:
        undecoded = key_of(None, event.entry_id)
        settled = store.settled([event.event_id, undecoded])
        how = settled.get(event.event_id) or settled.get(undecoded)
        if how is not None and not (how.outcome == DEAD and seen and seen.holder):
            return {DEAD: Stage.DEAD, LOST: Stage.LOST, COVERED: Stage.COVERED}.get(how.outcome) or Stage(how.outcome)
    if seen is None:
        return Stage.UNKNOWN
    if seen.holder is not None:
        return Stage.PENDING if newest.in_stream else Stage.LOST
    if not seen.view.exists or id_parts(event.entry_id) > id_parts(seen.view.last_delivered_id):
        return Stage.UNDELIVERED if newest.in_stream else Stage.LOST
    if any(letter.source_id == event.entry_id for letter in seen.letters):
        return Stage.DEAD
    return Stage.UNKNOWN if store is None else Stage.UNSETTLED


def _copies(store: Projection, source: SourceState, events: Sequence[RememberedEvent]) -> TracedCopies:
    state = store.state(source.key) or CopyState(source.key, 0, False, (), 0, 0)
    contents = store.contents(source.key)
    known = {version: store.expected(each) for version, each in _versions(source, events).items()}
    if state.version:
        known.setdefault(state.version, state.content)
    versions: dict[tuple[str, ...], int] = {}
    for version in sorted(known):  # of versions with one content the newest
        versions[known[version]] = version
    if known.get(state.version) == state.content and state.version:
        versions[state.content] = state.version  # or rather the one that is applied here
    rows: dict[int | None, int] = {}
    for content, number in contents.items():
        version_of = versions.get(content)
        rows[version_of] = rows.get(version_of, 0) + number
    progress = store.unvisited(source.key) if isinstance(store, FanningOut) else None
    visited = None if progress is None else progress[1] - progress[0]
    right = difference(source, state, store.expected(source)) is None
    at = sorted(rows.items(), key=lambda each: (-each[1], -(each[0] or 0)))
    overrides = store.overrides(source.key) if isinstance(store, Overridable) else None
    return TracedCopies(
        state.version, state.deleted, sum(contents.values()), state.stale_rows, tuple(RowsAt(*each) for each in at),
        visited, state.unvisited, overrides, right,
    )  # fmt: skip


def _versions(source: SourceState, events: Sequence[RememberedEvent]) -> dict[int, SourceState]:
    """The states of the user that are known, by their versions: those that the outbox remembers, and the one now."""
    states = map(state_of, events)
    return {state.version: state for state in states if state is not None} | {source.version: source}


def _judged(found: ServiceTrace, source: SourceState, newest: TracedEvent | None) -> tuple[Standing, str, str]:
    """How a service stands, what is wrong or waited for, and what to type."""
    name, copies, user = found.name, found.copies, source.key
    repair = f"imsync verify --repair --user {user}"
    if copies is None:
        return Standing.UNKNOWN, f"the {name} store is not here", f"imsync trace {user}, where {name}.db is"
    if copies.right:
        return _letters_left(found, user)
    if copies.deleted and not source.deleted:
        what = f"{name} has a tombstone of version {copies.version}, which no event passes, and the source lives"
        touched = "" if source.version > copies.version else f"{repair}, then "
        return Standing.WRONG, what, f"{touched}imsync rebuild {name}"
    if copies.version > source.version:
        what = f"{name} has version {copies.version}, newer than the source: was user.db restored from a backup?"
        return Standing.WRONG, what, "imsync verify"
    version = f"version {source.version}"
    if copies.visited is not None and copies.version == source.version and copies.unvisited == copies.stale_rows > 0:
        what = f"the fan-out of {version} in {name} has come to {copies.visited:,} of {copies.rows:,} rows"
        if found.alive == 0:
            return Standing.WRONG, f"{what}, and no consumer is alive", f"imsync consume {name}"
        return Standing.ON_ITS_WAY, what, ""
    if copies.version == source.version:
        wrong = sum(each.rows for each in copies.at if each.version != source.version)
        rows = f"1 row of {name} differs" if wrong == 1 else f"{wrong:,} rows of {name} differ"
        return Standing.WRONG, f"{rows if wrong else f'{name} differs'} from {version}, which is applied", repair
    entry_id = newest.event.entry_id if newest else None
    again = f"imsync replay from {entry_id} --to {entry_id} --user {user} --group {name}"
    match found.stage:
        case Stage.WAITING:
            return Standing.ON_ITS_WAY, f"{version} waits in the outbox", "imsync relay"
        case Stage.UNKNOWN:
            return Standing.UNKNOWN, f"{name} has version {copies.version}, and Redis cannot be asked why", ""
        case Stage.UNDELIVERED if found.alive:
            return Standing.ON_ITS_WAY, f"{version} waits in the stream for group {name}", ""
        case Stage.UNDELIVERED:
            what = f"{version} waits in the stream, and no consumer of group {name} is alive"
            return Standing.WRONG, what, f"imsync consume {name}"
        case Stage.PENDING if found.holder and found.holder.alive:
            return Standing.ON_ITS_WAY, f"{version} is with a consumer of group {name}", ""
        case Stage.PENDING:
            remedy = f"imsync replay pending --group {name} --id {entry_id} --min-idle 0s"
            return Standing.WRONG, f"{version} is with a dead consumer of group {name}", remedy
        case Stage.DEAD if found.letters:
            remedy = f"imsync replay dead --group {name} --user {user}"
            return Standing.WRONG, f"{version} is a dead letter of group {name}", remedy
        case (Stage.DEAD | Stage.UNSETTLED) as stage if newest and newest.in_stream:
            how = "was given up by" if stage is Stage.DEAD else "was never settled by"
            return Standing.WRONG, f"{version} {how} group {name}, and is still in the stream", again
        case Stage.DEAD:
            return Standing.WRONG, f"{version} was given up by group {name}, and its letter is gone", repair
        case Stage.LOST | Stage.UNSETTLED:
            return Standing.WRONG, f"{version} never reached group {name}, and the stream has lost it", repair
    return Standing.WRONG, f"{name} differs from {version}, and no event is on its way", repair


def _letters_left(found: ServiceTrace, user: int) -> tuple[Standing, str, str]:
    """What is left to do about a user whose copies are right."""
    if not found.letters:
        return Standing.IN_STEP, "", ""
    letters = counted(len(found.letters), "dead letter")
    if all(letter.superseded for letter in found.letters):
        remedy = f"imsync dead purge --superseded --group {found.name} --user {user}"
        return Standing.IN_STEP, f"{letters} of group {found.name}, safe to drop", remedy
    return Standing.IN_STEP, f"{letters} of group {found.name}", f"imsync dead list --group {found.name} --user {user}"
