"""The friend service's store: friendships, with a copy of the friend's nickname and picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from imsync.im.events import User2FriendEvent, UserDeleted
from imsync.im.profile_projection import ProfileProjection, projection_schema
from imsync.im.user_store import Profile
from imsync.store.sql import load

SQL = load("imsync.im", "friend_store.sql")


@dataclass(frozen=True, slots=True)
class Friendship:
    """What `user_id` sees of `friend_id`. `remark_nick_name` is the user's own name for the friend."""

    user_id: int
    friend_id: int
    remark_nick_name: str = ""


@dataclass(frozen=True, slots=True)
class FriendRow:
    """A friend as a user's list shows it."""

    friend_id: int
    friend_nick_name: str
    friend_head_image: str
    remark_nick_name: str


class FriendStore(ProfileProjection):
    """`im_friend.friend_nick_name` and `.friend_head_image` follow the friend's profile."""

    name: ClassVar[str] = "friend"
    events: ClassVar = (User2FriendEvent, UserDeleted)
    schema: ClassVar = projection_schema("friend store", "IMSF", SQL["schema"], "friend")
    sql: ClassVar = SQL
    picture: ClassVar[str] = "head_image"

    def join(self, user_id: int, friend_id: int, *, remark_nick_name: str = "") -> None:
        """Makes `friend_id` a friend that `user_id` sees (one direction). The copies come from the replica in the
        same statement, so an event that was consumed before cannot be missed.

        Raises:
            StoreUnusable: nothing was changed.
        """
        with self._database.atomic() as connection:
            connection.execute(SQL["join"], (remark_nick_name, friend_id, user_id))

    def bootstrap(self, profiles: Iterable[Profile], friendships: Iterable[Friendship], *, source: str = "") -> None:
        """Fills a fresh store from a snapshot of the users, in one transaction.

        Args:
            source: the CloudEvents source of the user store that the snapshot is of.
        """
        with self._database.atomic() as connection:
            self._bootstrap_replicas(connection, profiles, source)
            connection.executemany(
                SQL["load_friend"], ((f.user_id, f.remark_nick_name, f.friend_id) for f in friendships)
            )

    def friends(self, user_id: int) -> list[FriendRow]:
        """What a user sees of each friend, by the friend's id."""
        return [FriendRow(*row) for row in self._database.query(SQL["friends"], (user_id,))]

    def totals(self) -> int:
        """How many rows there are."""
        return int(self._database.query(SQL["totals"])[0][0])
