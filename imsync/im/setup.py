"""Making the stores: demo data in the user store, and both projections filled from the same snapshot."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imsync.errors import StoreUnusable, UsageError
from imsync.im.demo_data import DemoData
from imsync.im.friend_store import Friendship, FriendStore
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.user_store import Profile, UserStore
from imsync.im.workspace import Workspace

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Made:
    """How many rows were made."""

    users: int
    groups: int
    members: int
    friends: int


def refuse_existing(workspace: Workspace) -> None:
    """Waits for another process that makes stores in this folder, and refuses a folder that has some.

    Raises:
        UsageError: there are stores already, whole or cut short: they are never overwritten.
        StoreUnusable: the folder cannot be read.
    """
    if workspace.data_dir.is_dir():
        with _alone(workspace):
            _refuse_existing(workspace)


def _refuse_existing(workspace: Workspace) -> None:
    existing = [path for path in (*workspace.files, _unfinished(workspace)) if path.exists()]
    if not existing:
        return
    if not workspace.path_of("user").exists():  # it comes last
        left = ", ".join(path.name for each in existing for path in _files_of(each) if path.exists())
        if _unfinished(workspace).exists():
            raise UsageError(
                f"an init in {workspace.data_dir} was cut short: there is no user.db",
                f"remove what it left there, then run it again: {left}",
            )
        raise UsageError(
            f"{workspace.data_dir} has no user.db, and has {left}",
            "if user.db was lost, restore it from a backup; only what an init left that was cut short may be removed",
        )
    raise UsageError(
        f"{workspace.data_dir} has stores already: {', '.join(path.name for path in existing)}",
        "use them, or choose another folder with --data-dir",
    )


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """Holds a lock on the folder itself: one process at a time makes stores in it. The kernel frees it when its
    holder dies, however it dies, and it leaves no file.
    """
    try:
        workspace.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(workspace.data_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StoreUnusable(f"{workspace.data_dir} cannot be used: {error.strerror}", "check the folder") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _unfinished(workspace: Workspace) -> Path:
    """What the user store is called until it is whole."""
    return workspace.path_of("user").with_name("user.db.new")


def _files_of(store: Path) -> list[Path]:
    """A store's file and those that SQLite puts beside it."""
    return [store.with_name(store.name + suffix) for suffix in ("", "-wal", "-shm")]


def make_stores(workspace: Workspace, data: DemoData, on_step: Callable[[str], None] = lambda step: None) -> Made:
    """Makes the stores of a fresh data folder. Nothing is left behind when it fails.

    `user.db` appears last and whole: a folder that has it has all stores.

    Args:
        on_step: called with the name of the store that comes next.

    Raises:
        UsageError: there are stores already.
        StoreUnusable: the folder cannot be written.
    """
    profiles = [
        Profile(u.id, u.user_name, u.nick_name, u.head_image, u.head_image_thumb, 1, 0)
        if not u.deleted
        else Profile(u.id, u.user_name, "", "", "", 2, 1)
        for u in data.users
    ]
    made: list[Path] = []

    def next_store(name: str, path: Path) -> Path:
        on_step(name)
        made.append(path)
        return path

    with _alone(workspace):
        _refuse_existing(workspace)
        try:
            made.append(_unfinished(workspace))
            users = UserStore(_unfinished(workspace), create=True)  # first for its name, which the others note
            groups = GroupStore(next_store("group", workspace.path_of("group")), create=True)
            groups.bootstrap(
                profiles,
                (Group(g.id, g.name, g.owner_id) for g in data.groups),
                (Member(m.group_id, m.user_id, m.remark_nick_name, m.quit) for m in data.members),
                source=users.source,
            )
            groups.close()
            friends = FriendStore(next_store("friend", workspace.path_of("friend")), create=True)
            friends.bootstrap(
                profiles,
                (Friendship(f.user_id, f.friend_id, f.remark_nick_name) for f in data.friends),
                source=users.source,
            )
            friends.close()
            on_step("user")
            users.bootstrap(profiles, origin=DEMO)
            users.close()
            _unfinished(workspace).rename(workspace.path_of("user"))
        except BaseException:
            for store in made:
                for path in _files_of(store):
                    path.unlink(missing_ok=True)
            raise
    return Made(len(data.users), len(data.groups), len(data.members), len(data.friends))
