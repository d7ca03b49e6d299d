"""Mending what `verify` found: users that drifted are published anew by their source, so that every copy of them is
written once more, through the version gate as always.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from imsync.bus.event import MAX_INT
from imsync.im.causes import Mend
from imsync.im.flight import Flight
from imsync.im.user_store import UserStore
from imsync.im.verify import FIRST_KEY, Drift, verify
from imsync.store.projection import Copies
from imsync.store.sql import load

SQL = load("imsync.im", "repair.sql")

BATCH = 1000
"""How many users one transaction touches, and how many are looked at again at once."""
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """A user to publish anew.

    Args:
        above: the highest version that a copy of it has.
        mended: the projections whose copies will be right then, as bits.
    """

    user_id: int
    above: int
    mended: int


class Plan:
    """The users that drifted, and what will be done about each. It is kept in a temporary file: memory does not grow
    with the drift.

    Args:
        projections: the names of what is compared.
    """

    def __init__(self, projections: Sequence[str]) -> None:
        self._bits = {name: 1 << bit for bit, name in enumerate(projections)}
        self._connection = sqlite3.connect("", isolation_level=None)  # a file that has no name, and goes with it
        self._connection.execute(SQL["schema"])
        self._connection.execute("BEGIN")

    def add(self, drift: Drift) -> None:
        """Takes a finding of `verify`."""
        bit = self._bits[drift.projection]
        mended, others = (bit, 0) if drift.mend is Mend.TOUCH else (0, bit)
        is_touched = drift.mend in (Mend.TOUCH, Mend.TOUCH_REBUILD)
        values = (drift.user_id, drift.copy_version, drift.source_version, mended, others, is_touched)
        self._connection.execute(SQL["add"], values)

    @property
    def drifted(self) -> int:
        """How many users drifted."""
        return self._counts()[0]

    @property
    def to_touch(self) -> int:
        """How many of them will be touched."""
        return self._counts()[1]

    @property
    def left(self) -> int:
        """How many of them a touch does not make right everywhere."""
        return self._counts()[2]

    def new_version(self, user_id: int) -> int | None:
        """The version that a user will get; None when it will not be touched."""
        row = self._connection.execute(SQL["new_version"], (user_id,)).fetchone()
        return min(int(row[0]) + 1, MAX_INT) if row and row[0] is not None else None

    def targets(self, size: int = BATCH) -> Iterator[list[Target]]:
        """The users to touch in the order of their ids, a number of them at a time."""
        after = FIRST_KEY
        while rows := self._connection.execute(SQL["targets"], (after, size)).fetchall():
            yield [Target(*row) for row in rows]
            after = rows[-1][0]

    def mends(self, target: Target, projection: str) -> bool:
        """Whether a user's copy there drifted, and will be right after the touch."""
        return bool(target.mended & self._bits[projection])

    def close(self) -> None:
        """Forgets everything."""
        self._connection.close()

    def __enter__(self) -> Plan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _counts(self) -> tuple[int, int, int]:
        users, touched, others = self._connection.execute(SQL["counts"]).fetchone()
        return int(users), int(touched), int(others)


@dataclass(slots=True)
class Touched:
    """What was done.

    Args:
        users: how many were touched.
        refused: why others were not, by their ids.
        last_seq: the last row of the outbox that was written; 0 when none was.
    """

    users: int = 0
    refused: dict[int, str] = field(default_factory=dict)
    last_seq: int = 0


def touch(users: UserStore, plan: Plan, *, on_users: Callable[[int], None] = lambda n: None) -> Touched:
    """Touches the users of a plan, each batch in one transaction. Each gets the next version above its own and that of
    every copy. May be cut short: what was touched by then will be published.

    Args:
        on_users: called with the number of users handled since the last call.

    Raises:
        StoreUnusable: the batch at hand was not touched.
    """
    done = Touched()
    for batch in plan.targets():
        report = users.touch({target.user_id: target.above for target in batch})
        done.users += len(report.touched)
        done.refused |= report.refused
        done.last_seq = max(done.last_seq, report.last_seq)
        on_users(len(batch))
    return done


@dataclass(slots=True)
class Rechecked:
    """How the touched users were when they were looked at again, where a touch was to mend them.

    Args:
        repaired: how many are right.
        waiting: how many are not, because something is on its way.
        wrong: how many drift.
    """

    repaired: int = 0
    waiting: int = 0
    wrong: int = 0


def recheck(
    users: UserStore,
    projections: Sequence[Copies],
    flight_to: Callable[[str], Flight],
    plan: Plan,
    *,
    patience_seconds: float,
    on_users: Callable[[int], None] = lambda n: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Rechecked:
    """Waits until the copies of the touched users are right, and says of how many they are.

    Args:
        patience_seconds: how long to wait in all. What is on its way then counts as waiting.
        on_users: called with the number of users judged since the last call.

    Raises:
        StoreUnusable, RedisUnreachable, RedisRefused: as `verify`.
    """
    deadline = clock() + patience_seconds
    result = Rechecked()
    for batch in plan.targets():
        concerned = {target.user_id: target for target in batch if target.mended}
        pause = FIRST_PAUSE_SECONDS
        while True:
            wrong, late = _look(users, projections, flight_to, plan, concerned)
            left = deadline - clock()
            if not late or left <= 0:
                break
            sleep(min(pause, left))
            pause = min(1.5 * pause, LONGEST_PAUSE_SECONDS)
        result.wrong += len(wrong)
        result.waiting += len(late - wrong)
        result.repaired += len(concerned.keys() - wrong - late)
        on_users(len(batch))
    return result


def _look(
    users: UserStore,
    projections: Sequence[Copies],
    flight_to: Callable[[str], Flight],
    plan: Plan,
    targets: dict[int, Target],
) -> tuple[set[int], set[int]]:
    """Which of the users still drift, and of which something is on its way, where a touch was to mend them."""
    wrong: set[int] = set()
    late: set[int] = set()

    def on_drift(drift: Drift) -> None:
        if plan.mends(targets[drift.user_id], drift.projection):
            wrong.add(drift.user_id)

    def on_way(user_id: int, projection: str) -> None:
        if plan.mends(targets[user_id], projection):
            late.add(user_id)

    verify(users, projections, flight_to, keys=targets, on_drift=on_drift, on_way=on_way)
    return wrong, late
