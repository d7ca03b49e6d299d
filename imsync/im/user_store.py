"""The user service's store: profiles and the outbox, always written in one transaction.

An edit that was accepted is an event that will be published, and an edit that was rolled back is none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from imsync.bus.clock import now_ms
from imsync.bus.telemetry import Telemetry
from imsync.errors import ImsyncError, UsageError
from imsync.im.announcing import announcements
from imsync.im.events import PROFILE_FIELDS
from imsync.im.outbox import Outbox, OutboxBacklog, OutboxRow
from imsync.im.profile import Edit, Profile, ProfileEdit, nobody
from imsync.store.database import Database, Schema
from imsync.store.projection import SourceState
from imsync.store.sql import load, look_up

__all__ = [
    "EditReport",
    "OutboxBacklog",
    "OutboxRow",
    "Profile",
    "ProfileEdit",
    "Rejection",
    "TouchReport",
    "UserStore",
]

SQL = load("imsync.im", "user_store.sql")
SCHEMA = Schema("user store", "IMSU", [SQL["schema"], SQL["schema_2"]])

_NOTHING = dict.fromkeys(PROFILE_FIELDS, "")


@dataclass(frozen=True, slots=True)
class Rejection:
    """An edit that was not applied: its position among those given, and why."""

    index: int
    error: ImsyncError


@dataclass(frozen=True, slots=True)
class EditReport:
    """What became of a number of edits. `last_seq` is the last row of the outbox that they wrote; 0 when none."""

    accepted: int
    unchanged: int
    rejected: Sequence[Rejection]
    last_seq: int


@dataclass(frozen=True, slots=True)
class TouchReport:
    """What became of users that were to be published anew.

    Args:
        touched: their new versions.
        refused: why others were not, by their ids.
        last_seq: the last row of the outbox that was written; 0 when none was.
    """

    touched: Mapping[int, int]
    refused: Mapping[int, str]
    last_seq: int


class UserStore(Outbox):
    """Profiles and their outbox in one SQLite file.

    Args:
        path: the file.
        create: make it; otherwise it must exist.
        telemetry: who may give the events of edits a place in a trace.

    Raises:
        StoreUnusable: it is missing, damaged, locked, of another kind or of a newer version.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        busy_timeout_ms: int = 5000,
        clock_ms: Callable[[], int] = now_ms,
        telemetry: Telemetry | None = None,
    ) -> None:
        super().__init__(Database(path, SCHEMA, busy_timeout_ms=busy_timeout_ms, create=create), clock_ms)
        if not self._meta("store_id"):
            with self._database.atomic() as connection:
                if not self._meta("store_id"):  # read again under the lock: another process may have set it
                    connection.execute(SQL["set_meta"], ("store_id", str(uuid4())))
        self._telemetry = telemetry or Telemetry()
        self.source = f"urn:imsync:user-store:{self._meta('store_id')}"

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @property
    def is_demo(self) -> bool:
        """Whether `imsync init` made the data: the only data that the simulator edits."""
        return self._meta("origin") == "demo"

    # ── edits ────────────────────────────────────────────────────────────────────────────────────────

    def create_user(self, profile: Profile) -> None:
        """Adds a user, at version 1, with the event that says so.

        Raises:
            UsageError: the id or the user name is taken.
        """
        with self._database.atomic() as connection:
            try:
                connection.execute(SQL["insert_user"], self._row(profile))
            except sqlite3.IntegrityError:
                raise UsageError(f"user {profile.id} or its user name exists already") from None
            self._announce(connection, [profile])
        self.filled.set()

    def edit(self, edit: ProfileEdit) -> bool:
        """Applies one edit; False when it changes nothing, in which case nothing is published.

        Raises:
            UsageError: there is no such user, or it is deleted.
        """
        report = self.edit_many([edit])
        if report.rejected:
            raise report.rejected[0].error
        return report.accepted == 1

    def edit_many(self, edits: Sequence[Edit], *, all_or_none: bool = False) -> EditReport:
        """Applies edits in their order, in one transaction.

        Args:
            edits: within the bounds of `ProfileEdit`.
            all_or_none: apply none when one is rejected.
        """
        with self._database.atomic() as connection:
            profiles = self.profiles({edit.user_id for edit in edits})
            before = dict(profiles)
            rejected: list[Rejection] = []
            history: list[Profile] = []
            unchanged = 0
            for index, edit in enumerate(edits):
                try:
                    current = _editable(profiles, edit.user_id)
                except UsageError as error:
                    rejected.append(Rejection(index, error))
                    continue
                # compared before it is overwritten: afterwards there is no telling what changed
                after = current.edited(edit)
                if after is current:
                    unchanged += 1
                    continue
                profiles[edit.user_id] = after
                history.append(after)
            if all_or_none and rejected:
                return EditReport(0, 0, rejected, 0)
            self._write(connection, [p for p in profiles.values() if p is not before[p.id]])
            last_seq = self._announce(connection, history)
        if history:
            self.filled.set()
        return EditReport(len(history), unchanged, rejected, last_seq)

    def delete_user(self, user_id: int) -> None:
        """Deletes a user for good: the row stays as a tombstone, its content is emptied.

        Raises:
            UsageError: there is no such user, or it is deleted.
        """
        with self._database.atomic() as connection:
            current = _editable(self.profiles([user_id]), user_id)
            gone = Profile(user_id, current.user_name, "", "", "", current.version + 1, deleted=1)
            self._write(connection, [gone])
            self._announce(connection, [gone])
        self.filled.set()

    def touch(self, above: Mapping[int, int]) -> TouchReport:
        """Publishes users anew as they are, in one transaction, each under the next version above its own and above a
        given one, so that every copy takes it.

        An id that nobody here knows becomes a tombstone: copies of such a user are emptied, as those of a deleted one.

        Args:
            above: by id, the highest version that any copy of the user has.

        Raises:
            StoreUnusable: nothing was changed.
        """
        refused: dict[int, str] = {}
        with self._database.atomic() as connection:
            known = self.profiles(above)
            after: list[Profile] = []
            for user_id, version in above.items():
                before = known.get(user_id) or nobody(user_id)
                try:
                    after.append(before.touched(version))
                    after[-1].event()
                except UsageError as error:
                    refused[user_id] = error.message
                except ValidationError as error:
                    place = error.errors(include_url=False, include_input=False)[0]["loc"][0]
                    refused[user_id] = f"its {place} breaks the bounds of an event"
                    after.pop()
            connection.executemany(SQL["insert_user"], [self._row(p) for p in after if p.id not in known])
            self._write(connection, [p for p in after if p.id in known])
            last_seq = self._announce(connection, after)
        self.filled.set()
        return TouchReport({p.id: p.version for p in after}, refused, last_seq)

    def bootstrap(self, profiles: Iterable[Profile], *, origin: str) -> None:
        """Fills a fresh store without publishing: the projections are filled from the same snapshot."""
        with self._database.atomic() as connection:
            connection.execute(SQL["set_meta"], ("origin", origin))
            connection.executemany(SQL["insert_user"], map(self._row, profiles))

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def profiles(self, ids: Iterable[int]) -> dict[int, Profile]:
        """The profiles of those of the ids that exist."""
        rows = look_up(self._database.query, SQL["profiles"], sorted(ids))
        return {row[0]: Profile._make(row) for row in rows}

    def states(self, after: int, limit: int) -> list[SourceState]:
        """At most `limit` users above the id `after`, in rising order, as `verify` compares them."""
        return [
            SourceState(
                key=user_id,
                version=version,
                deleted=bool(deleted),
                content=_NOTHING
                if deleted
                else {"nick_name": nick_name, "head_image": head_image, "head_image_thumb": thumb},
            )
            for user_id, nick_name, head_image, thumb, version, deleted in self._database.query(
                SQL["scan"], (after, limit)
            )
        ]

    def state(self, user_id: int) -> SourceState | None:
        """One user, as `verify` compares it; None when there is no such user."""
        rows = self.states(user_id - 1, 1)
        return rows[0] if rows and rows[0].key == user_id else None

    def edited_ms(self, user_id: int) -> int | None:
        """When a user's row was written last, in unix milliseconds; None when there is no such user."""
        rows = self._database.query(SQL["edited_ms"], (user_id,))
        return int(rows[0][0]) if rows else None

    def ids(self, after: int, limit: int) -> list[int]:
        """At most `limit` ids of users above the id `after`, in rising order."""
        return [user_id for (user_id,) in self._database.query(SQL["ids"], (after, limit))]

    def count_users(self) -> int:
        """How many users there are, deleted ones included."""
        return int(self._database.query(SQL["count_users"])[0][0])

    def active_ids(self) -> list[int]:
        """The ids of the users that are not deleted, in rising order."""
        return [user_id for (user_id,) in self._database.query(SQL["active_ids"])]

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    # ── inside a transaction ─────────────────────────────────────────────────────────────────────────

    def _write(self, connection: sqlite3.Connection, profiles: Iterable[Profile]) -> None:
        now = self.clock_ms()
        connection.executemany(
            SQL["write_profile"],
            [(p.nick_name, p.head_image, p.head_image_thumb, p.version, p.deleted, now, p.id) for p in profiles],
        )

    def _announce(self, connection: sqlite3.Connection, history: Sequence[Profile]) -> int:
        return self._enqueue(connection, announcements(history, self.source, self._telemetry))

    def _row(self, p: Profile) -> tuple[object, ...]:
        return (
            p.id, p.user_name, p.nick_name, p.head_image, p.head_image_thumb, p.version, p.deleted, self.clock_ms()
        )  # fmt: skip

    def _meta(self, key: str) -> str:
        rows = self._database.query(SQL["get_meta"], (key,))
        return str(rows[0][0]) if rows else ""


def _editable(profiles: dict[int, Profile], user_id: int) -> Profile:
    profile = profiles.get(user_id)
    if profile is None:
        raise UsageError(f"there is no user {user_id}", "the ids are in the table im_user of user.db")
    if profile.deleted:
        raise UsageError(f"user {user_id} is deleted", "deletion is final")
    return profile
