"""Everything that can be seen from this host at one moment: the groups, the outbox, the stream, and what is wrong.

A host need not have every store: of a group whose store is on another one, Redis knows most.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from imsync.bus.bus import Bus
from imsync.bus.clock import now_ms
from imsync.bus.inspection import GroupView, RetentionView, view_group, view_retention
from imsync.bus.retention import Retention
from imsync.errors import GroupMissing, ImsyncError, RedisRefused, RedisUnreachable, StoreMismatch, StoreUnusable
from imsync.im.accounts import Accounting, Outcomes, Tallies, account
from imsync.im.events import DESTINATION
from imsync.im.fan_out import Left
from imsync.im.health import Problem, Unfinished, is_stalled, judge_group, judge_outbox, judge_retention, judge_store
from imsync.im.outbox import OutboxBacklog
from imsync.im.profile_projection import ProfileProjection
from imsync.im.relay_lock import LOCK, PAUSE, Holder, holder
from imsync.im.user_store import UserStore
from imsync.im.workspace import PROJECTIONS, Workspace
from imsync.store.settlement import Histogram, Percentiles

T = TypeVar("T")


class Place(StrEnum):
    """Where a store is, as far as this host can tell."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    """Not in the data folder, which may be right: each service may have a host of its own."""
    UNUSABLE = "unusable"
    """Missing where it must be, locked, damaged, or of a newer version."""


@dataclass(frozen=True, slots=True)
class GroupOverview:
    """One group. What only its store knows is None where that is not here.

    Args:
        accounting: None also without the user store.
        histogram: the ages of edits when they took effect, by hour.
        fan_out: what its store has put off.
    """

    view: GroupView
    store: Place
    outcomes: Outcomes | None = None
    accounting: Accounting | None = None
    staleness: Percentiles | None = None
    histogram: Histogram = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    fan_out: Unfinished | None = None


@dataclass(frozen=True, slots=True)
class OutboxOverview:
    """The outbox.

    Args:
        published: events that were ever noted as sent, those that were lost again not among them.
        resent: events that were ever lost, and became due again.
        relay: who holds the relay's lock. Looked at only when events wait for too long.
    """

    backlog: OutboxBacklog
    published: int
    resent: int
    relay: Holder | None = None
    pause: Holder | None = None

    @property
    def edits(self) -> int:
        """How many events were ever written."""
        return self.backlog.unsent + self.published


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at one moment.

    Args:
        at_ms: when, in unix milliseconds, by this machine's clock.
        groups: empty without Redis.
        outbox: None where the user store is not here, or unusable.
        retention: None without Redis.
        redis: why Redis cannot be asked; None when it answers.
        stores: why a store cannot be used, by its name; not those that may be elsewhere.
        elsewhere: the names of stores that are not here.
        problems: what needs somebody.
    """

    at_ms: int
    groups: tuple[GroupOverview, ...]
    outbox: OutboxOverview | None
    retention: RetentionView | None
    redis: ImsyncError | None
    stores: dict[str, ImsyncError]
    elsewhere: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing that is seen needs somebody. What is not seen is not judged."""
        return not self.problems and self.redis is None


def look(
    bus: Bus,
    workspace: Workspace,
    retention: Retention,
    *,
    whole: bool,
    shown: Callable[[str], str] = str,
    clock_ms: Callable[[], int] = now_ms,
) -> Overview:
    """Looks at everything. Changes nothing, and fails for nothing that an operator could want to see: trouble with
    Redis or a store is part of what is returned.

    Args:
        retention: the bounds of the stream.
        whole: whether every store must be in the data folder, as with a server that is started for it. Otherwise one
            that is missing may be on another host.
        shown: how a name from the server is shown; it need not be text.
    """
    at_ms = clock_ms()
    with ExitStack() as closing:
        stores = _Stores(workspace, whole, closing)
        users = stores.users()
        groups, held, away = _ask(bus, retention, users, stores, shown, clock_ms)
        outbox = stores.asked("user", partial(_outbox, users)) if users else None
    problems = (
        *(judge_store(name, error) for name, error in stores.errors.items()),
        *(judge_outbox(outbox.backlog, outbox.relay, outbox.pause, redis_away=away is not None) if outbox else ()),
        *(problem for group in groups for problem in group.problems),
        *(judge_retention(held, PROJECTIONS) if held else ()),
    )
    return Overview(at_ms, groups, outbox, held, away, stores.errors, tuple(stores.elsewhere), problems)


def view_stream(bus: Bus, retention: Retention, shown: Callable[[str], str]) -> RetentionView:
    """What the stream holds, with names of groups that may be shown."""
    view = view_retention(bus, DESTINATION, retention)
    group = None if view.floor_group is None else shown(view.floor_group)
    return replace(view, floor_group=group, groups=tuple(map(shown, view.groups)))


class _Stores:
    """The stores of the data folder, as far as they are here and can be used."""

    def __init__(self, workspace: Workspace, whole: bool, closing: ExitStack) -> None:
        self._workspace = workspace
        self._whole = whole
        self._closing = closing
        self.errors: dict[str, ImsyncError] = {}
        self.elsewhere: list[str] = []

    def users(self) -> UserStore | None:
        path = self._workspace.path_of("user")
        # where a relay was at work there was a user store
        if self._may_be_elsewhere(path) and not Path(f"{path}{LOCK}").exists():
            self.elsewhere.append("user")
            return None
        store = self.asked("user", self._workspace.user_store)
        if store:
            self._closing.callback(store.close)
        return store

    def projection(self, name: str) -> ProfileProjection | None:
        if self._may_be_elsewhere(self._workspace.path_of(name)):
            self.elsewhere.append(name)
            return None
        store = self.asked(name, lambda: self._workspace.projection(name))
        if store:
            self._closing.callback(store.close)
        return store

    def place_of(self, name: str) -> Place:
        if name in self.errors:
            return Place.UNUSABLE
        return Place.ELSEWHERE if name in self.elsewhere else Place.HERE

    def asked(self, name: str, ask: Callable[[], T]) -> T | None:
        """The answer; None when the store cannot be used, which is noted."""
        if name in self.errors:
            return None
        try:
            return ask()
        except (StoreUnusable, StoreMismatch) as error:
            self.errors[name] = error
            return None

    def _may_be_elsewhere(self, path: Path) -> bool:
        return not self._whole and not path.exists()


def _ask(
    bus: Bus,
    retention: Retention,
    users: UserStore | None,
    stores: _Stores,
    shown: Callable[[str], str],
    clock_ms: Callable[[], int],
) -> tuple[tuple[GroupOverview, ...], RetentionView | None, ImsyncError | None]:
    """What needs Redis: the groups and the stream; or why it cannot be asked."""
    try:
        groups = tuple(_group(bus, service, users, stores, shown, clock_ms) for service in PROJECTIONS)
        return groups, view_stream(bus, retention, shown), None
    except (RedisUnreachable, RedisRefused, GroupMissing) as error:
        for service in PROJECTIONS:  # which stores are here can be told all the same
            if service not in stores.errors and service not in stores.elsewhere:
                stores.projection(service)
        return (), None, error


def _group(
    bus: Bus,
    service: str,
    users: UserStore | None,
    stores: _Stores,
    shown: Callable[[str], str],
    clock_ms: Callable[[], int],
) -> GroupOverview:
    projection = stores.projection(service)
    # What was published by now is undelivered, pending or settled when the rest is looked at, in this order; what
    # is settled by then was published, or waits to be noted, when the outbox is looked at last.
    published = stores.asked("user", users.published) if users else None
    view = view_group(bus, DESTINATION, service)
    view = replace(view, members=tuple(replace(each, name=shown(each.name)) for each in view.members))
    known = stores.asked(service, partial(_known, projection)) if projection else None
    at_most = stores.asked("user", users.written) if users else None
    refused = stores.asked(service, partial(_refused, bus, service, projection)) if projection else None
    if known is None:
        place = stores.place_of(service)
        return GroupOverview(view, place, problems=judge_group(view, None, here=place is not Place.ELSEWHERE))
    tallies, staleness, histogram, put_off = known
    since = put_off.oldest_ms
    fan_out = Unfinished(put_off.users, None if since is None else max(0.0, (clock_ms() - since) / 1000))
    accounting = None
    if users and published is not None and at_most is not None:
        accounting = account(users.source, published, at_most, tallies, view.pending, view.lag)
    outcomes = Outcomes.of(tallies)
    problems = judge_group(view, accounting, refused, outcomes=outcomes, fan_out=fan_out)
    return GroupOverview(view, stores.place_of(service), outcomes, accounting, staleness, histogram, problems, fan_out)


def _known(projection: ProfileProjection) -> tuple[Tallies, Percentiles, Histogram, Left]:
    return projection.tallies(), projection.staleness(), projection.staleness_by_hour(), projection.put_off


def _refused(bus: Bus, service: str, projection: ProfileProjection) -> StoreMismatch | None:
    return bus.binding(DESTINATION, service, projection).mismatch()


def _outbox(users: UserStore) -> OutboxOverview:
    backlog = users.backlog()
    seen = OutboxOverview(backlog, users.published(), users.resent())
    if not is_stalled(backlog):
        return seen
    return replace(seen, relay=holder(f"{users.path}{LOCK}"), pause=holder(f"{users.path}{PAUSE}"))
