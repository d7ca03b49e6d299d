"""What both sides work on: users, memberships, edits, and the rows that must come of them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from imsync.errors import ImsyncError, StoreUnusable
from imsync.im.demo_data import generate
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.simulator import simulate_edits
from imsync.im.user_store import Profile, ProfileEdit, UserStore

USERS_PER_GROUP = 5
"""As many users as this, and there is another group: the demo data's shape."""

BY_HAND = """
CREATE TABLE im_group_member (
    group_id INTEGER, user_id INTEGER, user_nick_name TEXT, head_image TEXT, remark_nick_name TEXT, quit INTEGER,
    PRIMARY KEY (group_id, user_id)
);
CREATE TABLE im_user (id INTEGER PRIMARY KEY, nick_name TEXT, head_image TEXT, head_image_thumb TEXT);
"""
INDEX = "CREATE INDEX im_group_member_user ON im_group_member (user_id)"


@dataclass(frozen=True, slots=True)
class Stores:
    """The files of one round, or those that each round starts from."""

    folder: Path

    @property
    def user(self) -> Path:
        """The user service's store, imsync's."""
        return self.folder / "user.db"

    @property
    def group(self) -> Path:
        """The group service's store, imsync's."""
        return self.folder / "group.db"

    @property
    def by_hand(self) -> Path:
        """Both tables of the hand-written loop, in the layout that comes to mind first."""
        return self.folder / "by-hand.db"


def make(stores: Stores, *, users: int, seed: int) -> int:
    """Makes the stores that each round starts from; how many member rows there are.

    Raises:
        StoreUnusable: the folder cannot be written.
    """
    data = generate(users=users, groups=max(1, users // USERS_PER_GROUP), seed=seed)
    profiles = [
        Profile(u.id, u.user_name, u.nick_name, u.head_image, u.head_image_thumb) for u in data.users if not u.deleted
    ]
    living = {profile.id: profile for profile in profiles}
    members = [each for each in data.members if each.user_id in living]
    stores.folder.mkdir(mode=0o700)
    user_store = UserStore(stores.user, create=True)
    user_store.bootstrap(profiles, origin="bench")
    group_store = GroupStore(stores.group, create=True)
    group_store.bootstrap(
        profiles,
        (Group(g.id, g.name, g.owner_id) for g in data.groups),
        (Member(m.group_id, m.user_id, m.remark_nick_name, m.quit) for m in members),
        source=user_store.source,
    )
    group_store.close()
    user_store.close()
    rows = [
        (m.group_id, m.user_id, living[m.user_id].nick_name, living[m.user_id].head_image_thumb, m.remark_nick_name,
         int(m.quit))
        for m in members
    ]  # fmt: skip
    try:
        with closing(sqlite3.connect(stores.by_hand)) as by_hand, by_hand:
            by_hand.executescript(BY_HAND)
            by_hand.executemany("INSERT INTO im_group_member VALUES (?, ?, ?, ?, ?, ?)", sorted(rows))
            by_hand.execute(INDEX)
            by_hand.executemany(
                "INSERT INTO im_user VALUES (?, ?, ?, ?)",
                [(p.id, p.nick_name, p.head_image, p.head_image_thumb) for p in profiles],
            )
    except sqlite3.Error as error:
        raise StoreUnusable(f"cannot write {stores.by_hand}: {error}", "is there room on the disk?") from error
    return len(rows)


def fresh(template: Stores, round_: Stores) -> None:
    """The files as each round starts with them."""
    shutil.rmtree(round_.folder, ignore_errors=True)
    shutil.copytree(template.folder, round_.folder)


def profiles_of(path: Path) -> dict[int, Profile]:
    """All profiles of a user store, by id."""
    store = UserStore(path)
    try:
        return store.profiles(store.active_ids())
    finally:
        store.close()


def edits(profiles: Iterable[int], *, count: int, seed: int) -> list[ProfileEdit]:
    """What people change, the same for the same seed."""
    return [
        ProfileEdit(
            user_id=each.user_id,
            nick_name=each.nick_name,
            head_image=each.head_image,
            head_image_thumb=each.head_image_thumb,
        )
        for each in simulate_edits(sorted(profiles), count=count, seed=seed)
    ]


def history(profiles: dict[int, Profile], changes: Iterable[ProfileEdit]) -> list[Profile]:
    """The profile after each edit, in their order."""
    now, found = dict(profiles), []
    for change in changes:
        after = now[change.user_id] = now[change.user_id].edited(change)
        found.append(after)
    return found


def check(path: Path, before: dict[int, Profile], after: Sequence[Profile], rows: int) -> int:
    """Compares every member row with what the edits make of it; how many rows that were.

    Args:
        before: the profiles at first.
        after: their history.
        rows: how many there must be.

    Raises:
        ImsyncError: a row is wrong, or missing: what was measured was no work.
    """
    right = {user_id: (p.nick_name, p.head_image_thumb) for user_id, p in before.items()}
    right |= {p.id: (p.nick_name, p.head_image_thumb) for p in after}
    with closing(sqlite3.connect(path)) as store:
        found = store.execute("SELECT user_id, user_nick_name, head_image FROM im_group_member").fetchall()
    wrong = sum(right.get(user_id) != (nick_name, image) for user_id, nick_name, image in found)
    if wrong or len(found) != rows:
        what = f"{path.name} has {wrong:,} wrong rows and {len(found):,} of {rows:,} afterwards"
        raise ImsyncError(what, "this is a defect: its figures would mean nothing")
    return len(found)
