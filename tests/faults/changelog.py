"""A change log that the stores cannot see: triggers, put into a projection's file from outside.

They run in the store's own transactions, so the log holds what was committed and nothing else. Nothing can be taken
back: its rows can be neither changed nor removed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

TABLES = {
    "group": ("im_group_member", "user_id", "group_id", "user_nick_name", "head_image"),
    "friend": ("im_friend", "friend_id", "user_id", "friend_nick_name", "friend_head_image"),
}
"""For each service: the table of the copies, whose they are, where they are, and what is copied."""

_LOGS = """
CREATE TABLE IF NOT EXISTS fault_replica_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, user_id, version, nick_name, head_image, deleted
);
CREATE TABLE IF NOT EXISTS fault_copy_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, user_id, place_id, nick_name, head_image, remark
);
CREATE TABLE IF NOT EXISTS fault_settled_log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, event_key, entry_id, before, after
);
"""

_REPLICA = """
CREATE TRIGGER IF NOT EXISTS fault_replica_{event} AFTER {event} ON user_profile_replica BEGIN
    INSERT INTO fault_replica_log (user_id, version, nick_name, head_image, deleted)
    VALUES ({row}.user_id, {version}, {row}.nick_name, {row}.head_image, {row}.deleted);
END;
"""

_COPY = """
CREATE TRIGGER IF NOT EXISTS fault_copy_{event} AFTER {event} ON {table} BEGIN
    INSERT INTO fault_copy_log (user_id, place_id, nick_name, head_image, remark)
    VALUES (new.{user}, new.{place}, new.{nick}, new.{image}, new.remark_nick_name);
END;
"""

_SETTLED = """
CREATE TRIGGER IF NOT EXISTS fault_settled_insert AFTER INSERT ON settled BEGIN
    INSERT INTO fault_settled_log (event_key, entry_id, before, after)
    VALUES (new.event_key, new.entry_id, NULL, new.outcome);
END;
CREATE TRIGGER IF NOT EXISTS fault_settled_update AFTER UPDATE OF outcome ON settled BEGIN
    INSERT INTO fault_settled_log (event_key, entry_id, before, after)
    VALUES (new.event_key, new.entry_id, old.outcome, new.outcome);
END;
CREATE TRIGGER IF NOT EXISTS fault_settled_delete AFTER DELETE ON settled BEGIN
    INSERT INTO fault_settled_log (event_key, entry_id, before, after)
    VALUES (old.event_key, old.entry_id, old.outcome, NULL);
END;
"""

_APPEND_ONLY = """
CREATE TRIGGER IF NOT EXISTS {log}_no_{event} BEFORE {event} ON {log} BEGIN
    SELECT RAISE(ABORT, 'the change log is append-only');
END;
"""


def install(path: Path, service: str) -> None:
    """Puts the change log into a projection's file, beginning with what it holds now. Once is enough."""
    table, user, place, nick, image = TABLES[service]
    names = {"table": table, "user": user, "place": place, "nick": nick, "image": image}
    script = [_LOGS, _SETTLED]
    for event in ("INSERT", "UPDATE"):
        script += [_REPLICA.format(event=event, row="new", version="new.version"), _COPY.format(event=event, **names)]
    script.append(_REPLICA.format(event="DELETE", row="old", version="NULL"))
    script += _append_only(("fault_replica_log", "fault_copy_log", "fault_settled_log"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript("BEGIN IMMEDIATE;" + "".join(script) + "COMMIT;")
        (begun,) = connection.execute("SELECT count(*) FROM fault_replica_log").fetchone()
        if not begun:
            connection.execute(
                "INSERT INTO fault_replica_log (user_id, version, nick_name, head_image, deleted) "
                "SELECT user_id, version, nick_name, head_image, deleted FROM user_profile_replica ORDER BY user_id"
            )


def _append_only(logs: Iterable[str]) -> list[str]:
    return [_APPEND_ONLY.format(log=log, event=event) for log in logs for event in ("UPDATE", "DELETE")]
