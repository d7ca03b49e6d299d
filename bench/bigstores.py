"""Stores of any size, made with SQL in seconds."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from imsync.im.friend_store import FriendStore
from imsync.im.group_store import GroupStore
from imsync.im.user_store import UserStore
from imsync.im.workspace import Workspace

USERS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT INTO im_user SELECT 7280009836970909185 + i * 4099, 'user' || i, 'name of ' || i,
        'https://cdn.example.org/' || i || '.jpg', 'https://cdn.example.org/' || i || '_t.jpg', 1, 0, 0 FROM n
"""
REPLICAS = """
    INSERT INTO user_profile_replica
    SELECT id, version, nick_name, {picture}, deleted, 0 FROM source.im_user ORDER BY id
"""
MEMBERS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT INTO im_group_member (user_id, group_id, user_nick_name, head_image, remark_nick_name, quit)
    SELECT u.id, n.i, u.nick_name, u.head_image_thumb, '', 0 FROM source.im_user AS u, n ORDER BY u.id, n.i
"""
FRIENDS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT INTO im_friend (user_id, friend_id, friend_nick_name, friend_head_image, remark_nick_name)
    SELECT n.i, u.id, u.nick_name, u.head_image, '' FROM source.im_user AS u, n ORDER BY u.id, n.i
"""
JOIN_MANY = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT OR IGNORE INTO im_group_member (user_id, group_id, user_nick_name, head_image, remark_nick_name, quit)
    SELECT u.id, n.i, u.nick_name, u.head_image_thumb, '', 0 FROM source.im_user AS u, n WHERE u.id = ?
"""


def build(workspace: Workspace, users: int, *, memberships: int, friendships: int) -> None:
    """Makes stores of so many users, right in all."""
    source = workspace.path_of("user")
    UserStore(source, create=True).close()
    GroupStore(workspace.path_of("group"), create=True).close()
    FriendStore(workspace.path_of("friend"), create=True).close()
    _fill(source, None, [(USERS, (users,))])
    group = [(REPLICAS.format(picture="head_image_thumb"), ()), (MEMBERS, (memberships,))]
    _fill(workspace.path_of("group"), source, group)
    friend = [(REPLICAS.format(picture="head_image"), ()), (FRIENDS, (friendships,))]
    _fill(workspace.path_of("friend"), source, friend)


def join_many(workspace: Workspace, user_id: int, groups: int) -> None:
    """Puts a user into so many groups."""
    _fill(workspace.path_of("group"), workspace.path_of("user"), [(JOIN_MANY, (groups, user_id))])


def _fill(path: Path, source: Path | None, statements: list[tuple[str, tuple[int, ...]]]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as store:
        store.execute("PRAGMA synchronous = OFF")
        store.execute("PRAGMA cache_size = -400000")
        if source:
            store.execute("ATTACH ? AS source", (str(source),))
        for statement, parameters in statements:
            store.execute(statement, parameters)
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
