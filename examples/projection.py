"""A projection with tables of your own: the chats in everybody's sidebar show the other one's name and picture.

python examples/projection.py redis://localhost:6379/0      # or, without an argument, on a server of its own

It follows the users by the group `sidebar`, next to imsync's own services. `verify` proves it right, and names what is
wrong when somebody has written to it; a repair touches those users at their source.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from imsync.bus import Bus, ConsumerOptions
from imsync.im.events import DESTINATION, USER_UPDATED, IMBaseEvent, NickName, UserDeleted
from imsync.im.flight import GroupFlight
from imsync.im.relay import Relay
from imsync.im.repair import Plan, recheck, touch
from imsync.im.user_store import Profile, ProfileEdit, UserStore
from imsync.im.verify import Verdict, verify
from imsync.store.inbox import Inbox
from imsync.store.projection import CopyState, SourceState

TABLES = [
    """
    CREATE TABLE person (
        id      INTEGER PRIMARY KEY,
        version INTEGER NOT NULL,
        deleted INTEGER NOT NULL,
        name    TEXT NOT NULL
    );
    CREATE TABLE chat (
        owner TEXT NOT NULL,
        peer  INTEGER NOT NULL,
        title TEXT NOT NULL,
        PRIMARY KEY (peer, owner)
    ) WITHOUT ROWID;
    """,
]

WRITE_PERSON = """
    INSERT INTO person (id, version, deleted, name) VALUES (?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET version = excluded.version, deleted = excluded.deleted, name = excluded.name
    WHERE excluded.version > person.version AND NOT person.deleted
"""
"""The version gate: versions only rise, and nothing comes after a deletion."""

OPEN_CHAT = """
    INSERT INTO chat (owner, peer, title)
    SELECT :owner, :peer, coalesce((SELECT name FROM person WHERE id = :peer), '')
"""

STATES = """
    SELECT ids.id, coalesce(p.version, 0), coalesce(p.deleted, 0), coalesce(p.name, ''), count(c.owner),
           count(CASE WHEN c.title <> coalesce(p.name, '') THEN 1 END)
    FROM (SELECT id FROM (SELECT id FROM person UNION SELECT peer FROM chat) WHERE id > ? ORDER BY id LIMIT ?) AS ids
    LEFT JOIN person AS p ON p.id = ids.id
    LEFT JOIN chat AS c ON c.peer = ids.id
    GROUP BY ids.id ORDER BY ids.id
"""


class Renamed(IMBaseEvent, type=USER_UPDATED, destination=DESTINATION):
    """What the sidebar needs of a profile."""

    nick_name: NickName


def follow(connection: sqlite3.Connection, event: IMBaseEvent) -> None:
    """Notes what a person is called now, and writes it into every chat with them. Called inside a transaction."""
    name = event.nick_name if isinstance(event, Renamed) else ""
    if connection.execute(WRITE_PERSON, (event.id, event.version, event.final, name)).rowcount:
        connection.execute("UPDATE chat SET title = ? WHERE peer = ?", (name, event.id))


class Sidebar(Inbox[IMBaseEvent]):
    """A projection: an inbox that feeds tables of its own, and five questions that `verify` asks of them."""

    events: ClassVar = (Renamed, UserDeleted)

    def __init__(self, path: Path) -> None:
        super().__init__(path, schema_sql=TABLES, effect=follow, name="sidebar")

    def open_chat(self, owner: str, peer: int) -> None:
        """Adds a chat. Its title comes from the copy at hand, in one statement: no event can slip in between."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(OPEN_CHAT, {"owner": owner, "peer": peer})

    def states(self, after: int, limit: int) -> list[CopyState]:
        """The state of each person, chats with unknown ones included."""
        return [
            CopyState(key, version, bool(deleted), (name,), rows, stale)
            for key, version, deleted, name, rows, stale in self.query(STATES, (after, limit))
        ]

    def state(self, key: int) -> CopyState | None:
        """The state of one person."""
        found = self.states(key - 1, 1)
        return found[0] if found and found[0].key == key else None

    def contents(self, key: int) -> dict[tuple[str, ...], int]:
        """What the chats with a person are called, and how many are called so."""
        rows = self.query("SELECT title, count(*) FROM chat WHERE peer = ? GROUP BY title", (key,))
        return {(title,): n for title, n in rows}

    def expected(self, source: SourceState) -> tuple[str, ...]:
        """What a chat with this person should be called."""
        return (source.content["nick_name"],)


def run(bus: Bus, folder: Path) -> None:
    """Feeds a sidebar, breaks it on purpose, finds out, and mends it."""
    users = UserStore(folder / "user.db", create=True)
    sidebar = Sidebar(folder / "sidebar.db")
    stream = bus.stream(DESTINATION)
    relay = Relay(users, bus.publisher(DESTINATION))
    options = ConsumerOptions(until_empty=True)

    def consume(seconds: float = 0.0) -> None:
        bus.consumer(DESTINATION, group="sidebar", events=sidebar.events, handler=sidebar, options=options).run()

    def flight_to(group: str) -> GroupFlight:
        return GroupFlight(stream, group, bus.dead_letters(DESTINATION, group))

    def look(plan: Plan | None = None) -> Verdict:
        verdict = verify(users, [sidebar], flight_to, on_drift=plan.add if plan else lambda drift: None)
        print(f"{verdict.users} users, {verdict.rows} chats: {verdict.drift} drifted, {verdict.in_flight} in flight")
        for drift in verdict.examples:
            print(f"  user {drift.user_id}: {drift.cause}")
        return verdict

    for number, name in enumerate(("Mia", "Noah", "Ada"), start=1):
        users.create_user(Profile(number, name.lower(), name, "", ""))
    relay.drain()
    consume()
    for owner, peer in (("noah", 1), ("ada", 1), ("mia", 2), ("mia", 3)):
        sidebar.open_chat(owner, peer)
    users.edit(ProfileEdit(user_id=1, nick_name="Mia Lee"))
    look()
    relay.drain()
    consume()
    look()

    with closing(sqlite3.connect(sidebar.path)) as somebody, somebody:
        somebody.execute("UPDATE chat SET title = 'Mia' WHERE owner = 'ada'")  # an old name, from a cache of their own
        somebody.execute("UPDATE person SET name = 'Nobody' WHERE id = 2")
        somebody.execute("INSERT INTO chat VALUES ('mia', 99, 'a ghost')")
    with Plan([sidebar.name]) as plan:
        look(plan)
        touched = touch(users, plan)
        relay.drain()
        # a consumer of your own would be at work meanwhile; here it works while the repair waits
        checked = recheck(users, [sidebar], flight_to, plan, patience_seconds=10, sleep=consume)
        print(f"{touched.users} touched, {checked.repaired} repaired")
    look()
    sidebar.close()
    users.close()


def main(arguments: Sequence[str]) -> None:
    """Runs against the Redis given as an argument, or on a temporary server."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments:
            with Bus.from_url(arguments[0]) as bus:
                run(bus, folder)
            return
        from imsync.embedded import EmbeddedServer

        try:
            with Bus.embedded(folder) as bus:
                run(bus, folder)
        finally:
            EmbeddedServer(folder).stop()


if __name__ == "__main__":
    main(sys.argv[1:])
