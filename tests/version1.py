"""The stores of version 1, by the SQL that made them. They exist in the world: this text never changes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

SETTLED = """
CREATE TABLE settled (
    event_key BLOB PRIMARY KEY,
    outcome   TEXT NOT NULL,
    entry_id  TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE tally (
    source  TEXT NOT NULL,
    outcome TEXT NOT NULL,
    n       INTEGER NOT NULL,
    PRIMARY KEY (source, outcome)
) WITHOUT ROWID;

CREATE TABLE staleness (
    hour   INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (hour, bucket)
) WITHOUT ROWID;
"""

REPLICA = """
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE user_profile_replica (
    user_id     INTEGER PRIMARY KEY,
    version     INTEGER NOT NULL,
    nick_name   TEXT NOT NULL,
    head_image  TEXT NOT NULL,
    deleted     INTEGER NOT NULL,
    occurred_ms INTEGER NOT NULL
);
"""

GROUP = """
CREATE TABLE im_group (
    id       INTEGER PRIMARY KEY,
    name     TEXT NOT NULL,
    owner_id INTEGER NOT NULL
);

CREATE TABLE im_group_member (
    user_id          INTEGER NOT NULL,
    group_id         INTEGER NOT NULL,
    user_nick_name   TEXT NOT NULL,
    head_image       TEXT NOT NULL,
    remark_nick_name TEXT NOT NULL DEFAULT '',
    quit             INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, group_id)
) WITHOUT ROWID;
CREATE INDEX im_group_member_group ON im_group_member (group_id);
"""

FRIEND = """
CREATE TABLE im_friend (
    friend_id         INTEGER NOT NULL,
    user_id           INTEGER NOT NULL,
    friend_nick_name  TEXT NOT NULL,
    friend_head_image TEXT NOT NULL,
    remark_nick_name  TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (friend_id, user_id)
) WITHOUT ROWID;
CREATE INDEX im_friend_user ON im_friend (user_id);
"""

SCRIPTS = {"IMSG": SETTLED + REPLICA + GROUP, "IMSF": SETTLED + REPLICA + FRIEND}
"""By application_id."""


def make(path: Path, application_id: str) -> sqlite3.Connection:
    """A new store of version 1; its connection, to be filled and closed."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(SCRIPTS[application_id])
    connection.execute(f"PRAGMA application_id = {int.from_bytes(application_id.encode(), 'big')}")
    connection.execute("PRAGMA user_version = 1")
    return connection
