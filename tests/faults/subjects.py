"""What random histories are about: users as a plain model has them, and the stores that follow them."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from imsync.bus.codec import Decoder
from imsync.bus.handler import Received
from imsync.bus.outcome import Outcome
from imsync.im.events import IMBaseEvent, User2GroupEvent, UserDeleted
from imsync.im.friend_store import Friendship, FriendStore
from imsync.im.group_store import GroupStore, Member
from imsync.im.user_store import Profile, UserStore
from imsync.store.inbox import Inbox
from imsync.store.settlement import DEAD

USERS = (1, 2, 3, 4)
"""The last one is created only by a history."""
CONTAINERS = (10, 11, 12)
MANY = (1, 2, 3, 20, 21)
"""What the first user is in from the beginning, so that its fan-out takes some turns."""
"""Groups, or the people who have friends."""
FIELDS = ("nick_name", "head_image", "thumb")
SETTLED_HOURS = 72.0
FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())


# ── the model ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class State:
    """A user at one version."""

    version: int
    nick_name: str
    head_image: str
    thumb: str
    deleted: bool = False


class Model:
    """The edits that people were told are accepted, and nothing else."""

    def __init__(self) -> None:
        self.users = {user: State(1, f"user {user}", "", "") for user in USERS[:-1]}
        self.accepted = {(user, state.version): state for user, state in self.users.items()}

    def edit(self, user: int, **changes: str) -> bool:
        """Whether it changes anything."""
        before = self.users.get(user)
        if before is None or before.deleted or (after := replace(before, **changes)) == before:
            return False
        self._accept(user, replace(after, version=before.version + 1))
        return True

    def create(self, user: int) -> bool:
        if user in self.users:
            return False
        self._accept(user, State(1, f"user {user}", "", ""))
        return True

    def delete(self, user: int) -> bool:
        before = self.users.get(user)
        if before is None or before.deleted:
            return False
        self._accept(user, State(before.version + 1, "", "", "", deleted=True))
        return True

    def _accept(self, user: int, state: State) -> None:
        self.users[user] = self.accepted[user, state.version] = state


# ── the stores ───────────────────────────────────────────────────────────────────────────────────────


BY_THE_EVENT = "by the event"


class Crash(BaseException):
    """The process ends here, as by kill -9: nothing catches it."""


class Trouble(Protocol):
    """What a history has in store for handlers.

    Attributes:
        failing: how often more the handler fails on a user's event.
        failures: how often it has failed, by event id.
        deadly: the events that end every process that applies them.
    """

    failing: Counter[int]
    failures: Counter[str]
    deadly: set[bytes]


class Flaky:
    """A store whose events may be told to fail, or to end the process."""

    trouble: Trouble

    def apply(self, batch: Sequence[Received[Any]]) -> list[Outcome]:
        trouble = self.trouble
        if trouble.deadly or trouble.failing:
            # a repeat is recognised before anything is done that may fail
            known = self._settlements.known([received.event.event_id.bytes for received in batch])  # type: ignore[attr-defined]
            fresh = [r for r in batch if known.get(r.event.event_id.bytes, DEAD) == DEAD]
            if any(received.event.event_id.bytes in trouble.deadly for received in fresh):
                raise Crash(BY_THE_EVENT)
            for received in fresh:
                if trouble.failing[received.event.id]:
                    if len(batch) == 1:
                        trouble.failing[received.event.id] -= 1
                        trouble.failures[str(received.event.event_id)] += 1
                    raise ValueError("the handler fails on this user")
        return super().apply(batch)  # type: ignore[misc, no-any-return]


class FlakyGroupStore(Flaky, GroupStore):
    pass


class FlakyFriendStore(Flaky, FriendStore):
    pass


class FlakyInbox(Flaky, Inbox[IMBaseEvent]):
    """Somebody's own handler, which has no versions to go by: it notes every event that takes effect."""

    def __init__(self, path: Path, *, create: bool = False, settled_hours: float = SETTLED_HOURS) -> None:
        super().__init__(path, schema_sql=[EFFECTS], effect=self._note, create=create, settled_hours=settled_hours)

    def _note(self, connection: sqlite3.Connection, event: IMBaseEvent) -> None:
        content = ("", "") if event.final else (event.nick_name, event.head_image_thumb)  # type: ignore[attr-defined]
        connection.execute(
            "INSERT INTO test_effects (event_key, user_id, version, nick, image, deleted) VALUES (?, ?, ?, ?, ?, ?)",
            (event.event_id.bytes, event.id, event.version, *content, event.final),
        )


Store: TypeAlias = FlakyGroupStore | FlakyFriendStore | FlakyInbox

EFFECTS = """
CREATE TABLE test_effects (
    n INTEGER PRIMARY KEY, user_id INTEGER, version INTEGER, nick TEXT, image TEXT, deleted INTEGER, event_key BLOB
)
"""
REPLICA_TRIGGERS = """
CREATE TRIGGER test_replica_{event} AFTER {event} ON user_profile_replica BEGIN
    INSERT INTO test_effects (user_id, version, nick, image, deleted)
    VALUES (new.user_id, new.version, new.nick_name, new.head_image, new.deleted);
END;
"""
PUBLISHED = """
CREATE TABLE test_published (event_key BLOB, user_id INTEGER, version INTEGER);
CREATE TRIGGER test_enqueued AFTER INSERT ON outbox BEGIN
    INSERT INTO test_published (event_key, user_id, version) VALUES (new.event_id, new.user_id, new.version);
END;
"""
SETTLED = """
CREATE TABLE test_settled (n INTEGER PRIMARY KEY, event_key BLOB, outcome TEXT, entry_id TEXT, first INTEGER);
CREATE TRIGGER test_settled_first AFTER INSERT ON settled BEGIN
    INSERT INTO test_settled (event_key, outcome, entry_id, first) VALUES (new.event_key, new.outcome, new.entry_id, 1);
END;
CREATE TRIGGER test_settled_again AFTER UPDATE OF outcome ON settled BEGIN
    INSERT INTO test_settled (event_key, outcome, entry_id, first) VALUES (new.event_key, new.outcome, new.entry_id, 0);
END;
"""


@dataclass(frozen=True)
class Kind:
    """What differs between the stores.

    Args:
        rows: what selects the rows that copy users; empty where there are none, nor a replica.
        picture: which picture it keeps.
    """

    make: type[Store]
    name: str
    events: tuple[type[IMBaseEvent], ...]
    rows: str
    picture: Callable[[State], str]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name.upper())  # in the steps of a failing history

    def content(self, state: State) -> tuple[str, str]:
        return state.nick_name, self.picture(state)


GROUP = Kind(
    FlakyGroupStore,
    "group",
    tuple(GroupStore.events),
    "SELECT user_id, group_id AS place, user_nick_name AS nick, head_image AS image, remark_nick_name AS remark "
    "FROM im_group_member",
    lambda state: state.thumb,
)
FRIEND = Kind(
    FlakyFriendStore,
    "friend",
    tuple(FriendStore.events),
    "SELECT friend_id AS user_id, user_id AS place, friend_nick_name AS nick, friend_head_image AS image, "
    "remark_nick_name AS remark FROM im_friend",
    lambda state: state.head_image,
)
INBOX = Kind(FlakyInbox, "inbox", (User2GroupEvent, UserDeleted), "", lambda state: state.thumb)


@lru_cache
def templates() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    """A folder with the stores as every history finds them, and what removes it in the end."""
    owner = tempfile.TemporaryDirectory(prefix="im-histories-", dir=FOLDER)
    folder = Path(owner.name)
    profiles = [Profile(user, f"name{user}", f"user {user}", "", "") for user in USERS[:-1]]
    with closing(UserStore(folder / "user.db", create=True)) as users:
        users.bootstrap(profiles, origin="test")
        source = users.source
    with closing(sqlite3.connect(folder / "user.db")) as connection:
        connection.executescript(PUBLISHED)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for kind in (GROUP, FRIEND, INBOX):
        path = folder / f"{kind.name}.db"
        with closing(kind.make(path, create=True)) as store:
            if isinstance(store, GroupStore):
                store.bootstrap(profiles, [], [Member(each, USERS[0]) for each in MANY], source=source)
            elif isinstance(store, FriendStore):
                store.bootstrap(profiles, [Friendship(each, USERS[0]) for each in MANY], source=source)
        with closing(sqlite3.connect(path)) as connection:
            if kind is not INBOX:
                connection.executescript(EFFECTS)
                connection.executescript("".join(REPLICA_TRIGGERS.format(event=e) for e in ("INSERT", "UPDATE")))
            connection.executescript(SETTLED)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder, owner


@lru_cache
def decoder_of(
    events: Sequence[type[IMBaseEvent]], ignore: Sequence[str] = (), lean: bool = False
) -> Decoder[IMBaseEvent]:
    """Decoders have no state, and compiling one takes as long as a step."""
    return Decoder(events, ignore, lean=lean)
