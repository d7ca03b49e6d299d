"""The user service's store: profiles and the outbox, always written in one transaction.

An edit that was accepted is an event that will be published, and an edit that was rolled back is none.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imsync.bus.codec import encode
from imsync.bus.event import PositiveInt
from imsync.bus.telemetry import Telemetry
from imsync.errors import ImsyncError, UsageError
from imsync.im.events import (
    IMAGE_URL_MAX,
    NICK_NAME_MAX,
    ImageUrl,
    NickName,
    UserDeleted,
    UserUpdated,
)
from imsync.im.outbox import Outbox, OutboxBacklog, OutboxRow
from imsync.store.database import Database, Schema, placeholders
from imsync.store.projection import SourceState
from imsync.store.sql import load

__all__ = [
    "EditReport",
    "OutboxBacklog",
    "OutboxRow",
    "Profile",
    "ProfileEdit",
    "Rejection",
    "UserStore",
]

SQL = load("imsync.im", "user_store.sql")
SCHEMA = Schema("user store", "IMSU", [SQL["schema"], SQL["schema_2"]])

_LOOKUP_CHUNK = 500


class ProfileEdit(BaseModel):
    """What a person changes: the fields that are None stay as they are.

    Raises:
        pydantic.ValidationError: an id out of range, a text too long or with a NUL, an empty nickname.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    user_id: PositiveInt
    nick_name: NickName | None = Field(default=None, min_length=1)
    head_image: ImageUrl | None = None
    head_image_thumb: ImageUrl | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self.nick_name is None and self.head_image is None and self.head_image_thumb is None

    @classmethod
    def checked(cls, **values: Any) -> ProfileEdit:
        """An edit from outside.

        Raises:
            UsageError: it breaks a bound or changes nothing; the message names the field and never the input.
        """
        try:
            edit = cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = str(first["loc"][0])
            raise UsageError(f"bad {field}: {first['msg'][0].lower()}{first['msg'][1:]}", _bounds(field)) from None
        if edit.is_empty:
            raise UsageError("an edit that changes nothing", "give a nick name, a head image or a thumb")
        return edit


def _bounds(field: str) -> str:
    return {
        "user_id": "ids are whole numbers from 1 to 9223372036854775807",
        "nick_name": f"nicknames have 1 to {NICK_NAME_MAX} characters",
        "head_image": f"picture URLs have at most {IMAGE_URL_MAX} characters; empty for no picture",
        "head_image_thumb": f"picture URLs have at most {IMAGE_URL_MAX} characters; empty for no picture",
    }.get(field, "the fields are user_id, nick_name, head_image, head_image_thumb")


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's row."""

    id: int
    user_name: str
    nick_name: str
    head_image: str
    head_image_thumb: str
    version: int = 1
    deleted: int = 0

    def edited(self, edit: ProfileEdit) -> Profile:
        """This profile after the edit: itself when nothing changes, else with the next version."""
        after = replace(
            self,
            nick_name=self.nick_name if edit.nick_name is None else edit.nick_name,
            head_image=self.head_image if edit.head_image is None else edit.head_image,
            head_image_thumb=self.head_image_thumb if edit.head_image_thumb is None else edit.head_image_thumb,
        )
        return self if after == self else replace(after, version=self.version + 1)

    def event(self) -> UserUpdated | UserDeleted:
        """The event that tells everybody of this state."""
        if self.deleted:
            return UserDeleted(id=self.id, version=self.version)
        return UserUpdated(
            id=self.id,
            version=self.version,
            nick_name=self.nick_name,
            head_image=self.head_image,
            head_image_thumb=self.head_image_thumb,
        )


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
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
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

    def edit(self, edit: ProfileEdit) -> bool:
        """Applies one edit; False when it changes nothing, in which case nothing is published.

        Raises:
            UsageError: there is no such user, or it is deleted.
        """
        report = self.edit_many([edit])
        if report.rejected:
            raise report.rejected[0].error
        return report.accepted == 1

    def edit_many(self, edits: Sequence[ProfileEdit], *, all_or_none: bool = False) -> EditReport:
        """Applies edits in their order, in one transaction.

        Args:
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

    def bootstrap(self, profiles: Iterable[Profile], *, origin: str) -> None:
        """Fills a fresh store without publishing: the projections are filled from the same snapshot."""
        with self._database.atomic() as connection:
            connection.execute(SQL["set_meta"], ("origin", origin))
            connection.executemany(SQL["insert_user"], map(self._row, profiles))

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def profiles(self, ids: Iterable[int]) -> dict[int, Profile]:
        """The profiles of those of the ids that exist."""
        wanted = sorted(ids)
        found: dict[int, Profile] = {}
        for start in range(0, len(wanted), _LOOKUP_CHUNK):
            chunk = wanted[start : start + _LOOKUP_CHUNK]
            for row in self._database.query(SQL["profiles"] + placeholders(len(chunk)), chunk):
                found[row[0]] = Profile(*row)
        return found

    def states(self, after: int, limit: int) -> list[SourceState]:
        """At most `limit` users above the id `after`, in rising order, as `verify` compares them."""
        return [
            SourceState(
                key=user_id,
                version=version,
                deleted=bool(deleted),
                content={"nick_name": nick_name, "head_image": head_image, "head_image_thumb": thumb},
            )
            for user_id, nick_name, head_image, thumb, version, deleted in self._database.query(
                SQL["scan"], (after, limit)
            )
        ]

    def state(self, user_id: int) -> SourceState | None:
        """One user, as `verify` compares it; None when there is no such user."""
        rows = self.states(user_id - 1, 1)
        return rows[0] if rows and rows[0].key == user_id else None

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
        events = self._telemetry.traced([profile.event() for profile in history])
        return self._enqueue(connection, [(event, encode(event, source=self.source)) for event in events])

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
