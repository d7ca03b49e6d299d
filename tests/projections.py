"""The group store and the friend store under one name each, so that one test is a proof for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from imsync.bus.codec import Decoder, encode
from imsync.bus.handler import Received
from imsync.bus.outcome import Outcome
from imsync.im.events import IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.friend_store import FriendStore
from imsync.im.group_store import GroupStore
from tests.stores import sql

Store: TypeAlias = GroupStore | FriendStore
Row: TypeAlias = tuple[int, int, str, str, str]
"""(user, container, nickname, picture, override); the container is the group, or the user who sees the friend."""

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Kind:
    """What differs between the two stores."""

    make: type[Store]
    decoder: Decoder[IMBaseEvent]
    table: str
    picture: Callable[[UserUpdated], str]
    columns: str

    def join(self, store: Store, user_id: int, container: int, remark: str = "") -> None:
        store.join(container, user_id, remark_nick_name=remark)

    def rows(self, store: Store) -> list[Row]:
        return sql(store.path, f"SELECT {self.columns} FROM {self.table} ORDER BY 1, 2")

    def received(self, event: IMBaseEvent, entry_id: str = "1-0") -> Received[IMBaseEvent]:
        """The event as it comes in: over the wire, through the store's own view."""
        view = self.decoder.decode(encode(event, source="urn:test"))
        assert view is not None
        return Received(view, entry_id)


GROUP = Kind(
    GroupStore,
    Decoder(GroupStore.events),
    "im_group_member",
    lambda event: event.head_image_thumb,
    "user_id, group_id, user_nick_name, head_image, remark_nick_name",
)
FRIEND = Kind(
    FriendStore,
    Decoder(FriendStore.events),
    "im_friend",
    lambda event: event.head_image,
    "friend_id, user_id, friend_nick_name, friend_head_image, remark_nick_name",
)


def update(user_id: int, version: int, nick_name: str | None = None, **changes: Any) -> UserUpdated:
    fields: dict[str, Any] = {
        "nick_name": f"name {version}" if nick_name is None else nick_name,
        "head_image": f"image {version}",
        "head_image_thumb": f"thumb {version}",
        "occurred_at": BEGAN + timedelta(seconds=min(version, 1000)),
    }
    return UserUpdated(id=user_id, version=version, **(fields | changes))


def tombstone(user_id: int, version: int, **changes: Any) -> UserDeleted:
    return UserDeleted(id=user_id, version=version, **({"occurred_at": BEGAN + timedelta(seconds=version)} | changes))


def deliver(kind: Kind, store: Store, *events: IMBaseEvent) -> Sequence[Outcome]:
    return store.apply([kind.received(event) for event in events])


def assert_rows_equal_the_replica(kind: Kind, store: Store) -> None:
    """The oracle: every row that copies a user shows what the replica says, or nothing where there is none."""
    replicas = {
        user_id: (nick_name, picture)
        for user_id, nick_name, picture in sql(
            store.path, "SELECT user_id, nick_name, head_image FROM user_profile_replica"
        )
    }
    for user_id, _, nick_name, picture, _ in kind.rows(store):
        assert (nick_name, picture) == replicas.get(user_id, ("", ""))
    assert all(state.stale_rows == 0 for state in store.states(0, 10_000))


def everything(store: Store) -> list[list[tuple[Any, ...]]]:
    """All tables, byte by byte, but for the number of repeats and of transactions."""
    tables = sql(store.path, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    return [
        [
            row
            for row in sql(store.path, f"SELECT * FROM {table}")
            if row[1:2] != ("duplicate",) and row[:1] != ("generation",)
        ]
        for (table,) in tables
    ]
