"""The group service's store: groups, and members with a copy of each member's nickname and thumb."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from imsync.im.events import User2GroupEvent, UserDeleted
from imsync.im.profile_projection import ProfileProjection, projection_schema
from imsync.im.user_store import Profile
from imsync.store.sql import load

SQL = load("imsync.im", "group_store.sql")


@dataclass(frozen=True, slots=True)
class Group:
    """A group to load."""

    id: int
    name: str
    owner_id: int


@dataclass(frozen=True, slots=True)
class Member:
    """A membership. `remark_nick_name` is the member's own override, empty for none."""

    group_id: int
    user_id: int
    remark_nick_name: str = ""
    quit: bool = False


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member as the group shows it: the copies, and the override that takes precedence over the nickname."""

    user_id: int
    user_nick_name: str
    head_image: str
    remark_nick_name: str
    quit: int


class GroupStore(ProfileProjection):
    """`im_group_member.user_nick_name` and `.head_image` (the thumb) follow the user's profile."""

    name: ClassVar[str] = "group"
    events: ClassVar = (User2GroupEvent, UserDeleted)
    schema: ClassVar = projection_schema("group store", "IMSG", SQL["schema"], "group")
    sql: ClassVar = SQL
    picture: ClassVar[str] = "head_image_thumb"

    def join(self, group_id: int, user_id: int, *, remark_nick_name: str = "") -> None:
        """Adds a user to a group, or brings back one that had quit. The copies come from the replica in the same
        statement, so an event that was consumed before the join cannot be missed.

        Raises:
            StoreUnusable: nothing was changed.
        """
        with self._database.atomic() as connection:
            connection.execute(SQL["join"], (remark_nick_name, user_id, group_id))

    def bootstrap(
        self, profiles: Iterable[Profile], groups: Iterable[Group], members: Iterable[Member], *, source: str = ""
    ) -> None:
        """Fills a fresh store from a snapshot of the users, in one transaction.

        Args:
            source: the CloudEvents source of the user store that the snapshot is of.
        """
        with self._database.atomic() as connection:
            self._bootstrap_replicas(connection, profiles, source)
            connection.executemany(SQL["load_group"], ((g.id, g.name, g.owner_id) for g in groups))
            connection.executemany(
                SQL["load_member"], ((m.group_id, m.remark_nick_name, m.quit, m.user_id) for m in members)
            )

    def members(self, group_id: int) -> list[MemberRow]:
        """The members of a group by user id, those that quit included."""
        return [MemberRow(*row) for row in self._database.query(SQL["members"], (group_id,))]

    def totals(self) -> tuple[int, int]:
        """How many groups and how many member rows there are."""
        groups, members = self._database.query(SQL["totals"])[0]
        return groups, members
