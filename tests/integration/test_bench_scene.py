"""`imsync bench` counts no work that was not done: every member row is compared with what the edits make of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from imsync.bench import scene
from imsync.bench.scene import Stores
from imsync.errors import ImsyncError
from imsync.im.group_store import GroupStore

USERS = 60


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path / "template")


def test_both_sides_start_from_the_same_rows(stores: Stores) -> None:
    rows = scene.make(stores, users=USERS, seed=7)
    before = scene.profiles_of(stores.user)
    assert rows > USERS
    assert scene.check(stores.group, before, [], rows) == scene.check(stores.by_hand, before, [], rows) == rows
    with closing(sqlite3.connect(stores.by_hand)) as by_hand:
        (users,) = by_hand.execute("SELECT count(*) FROM im_user").fetchone()
        assert users == len(before)
        by_hand.execute("ATTACH ? AS ours", (str(stores.group),))
        columns = "group_id, user_id, user_nick_name, head_image, remark_nick_name, quit"
        for one, other in (("main", "ours"), ("ours", "main")):
            rows_of = [f"SELECT {columns} FROM {name}.im_group_member" for name in (one, other)]
            assert by_hand.execute(" EXCEPT ".join(rows_of)).fetchall() == []


def test_edits_are_changes_and_their_versions_rise(stores: Stores) -> None:
    scene.make(stores, users=USERS, seed=7)
    before = scene.profiles_of(stores.user)
    edits = scene.edits(before, count=300, seed=1)
    assert edits == scene.edits(before, count=300, seed=1) != scene.edits(before, count=300, seed=2)
    history, versions = scene.history(before, edits), {user_id: p.version for user_id, p in before.items()}
    for profile in history:
        versions[profile.id] += 1
        assert profile.version == versions[profile.id]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE im_group_member SET user_nick_name = 'x' WHERE rowid = (SELECT min(rowid) FROM im_group_member)",
        "UPDATE im_group_member SET head_image = '' WHERE head_image <> ''",
        "DELETE FROM im_group_member WHERE rowid = (SELECT max(rowid) FROM im_group_member)",
    ],
)
def test_a_row_that_is_wrong_or_missing_is_found(stores: Stores, damage: str) -> None:
    rows = scene.make(stores, users=USERS, seed=7)
    before = scene.profiles_of(stores.user)
    with closing(sqlite3.connect(stores.by_hand)) as store, store:
        assert store.execute(damage).rowcount > 0
    with pytest.raises(ImsyncError, match=r"wrong rows and [\d,]+ of "):
        scene.check(stores.by_hand, before, [], rows)


def test_work_that_was_not_done_is_found(stores: Stores) -> None:
    rows = scene.make(stores, users=USERS, seed=7)
    before = scene.profiles_of(stores.user)
    store = GroupStore(stores.group)
    members = {row.user_id for row in store.members(_a_group(stores))}
    store.close()
    history = scene.history(before, scene.edits(before, count=200, seed=1))
    after = [profile for profile in history if profile.id in members]
    assert after
    with pytest.raises(ImsyncError, match="wrong rows"):
        scene.check(stores.group, before, after, rows)


def _a_group(stores: Stores) -> int:
    with closing(sqlite3.connect(stores.group)) as store:
        return int(store.execute("SELECT min(group_id) FROM im_group_member").fetchone()[0])
