"""Making the stores: demo data in the user store, and both projections filled from the same snapshot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from imsync.errors import UsageError
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
    """Raises UsageError when the folder has stores already: they are never overwritten."""
    if existing := [path.name for path in workspace.files if path.exists()]:
        raise UsageError(
            f"{workspace.data_dir} has stores already: {', '.join(existing)}",
            "use them, or choose another folder with --data-dir",
        )


def make_stores(workspace: Workspace, data: DemoData, on_step: Callable[[str], None] = lambda step: None) -> Made:
    """Makes the stores of a fresh data folder. Nothing is left behind when it fails.

    Args:
        on_step: called with the name of the store that comes next.

    Raises:
        UsageError: there are stores already.
        StoreUnusable: the folder cannot be written.
    """
    refuse_existing(workspace)
    profiles = [
        Profile(u.id, u.user_name, u.nick_name, u.head_image, u.head_image_thumb, 1, 0)
        if not u.deleted
        else Profile(u.id, u.user_name, "", "", "", 2, 1)
        for u in data.users
    ]
    try:
        on_step("group")
        groups = GroupStore(workspace.path_of("group"), create=True)
        groups.bootstrap(
            profiles,
            (Group(g.id, g.name, g.owner_id) for g in data.groups),
            (Member(m.group_id, m.user_id, m.remark_nick_name, m.quit) for m in data.members),
        )
        groups.close()
        on_step("friend")
        friends = FriendStore(workspace.path_of("friend"), create=True)
        friends.bootstrap(profiles, (Friendship(f.user_id, f.friend_id, f.remark_nick_name) for f in data.friends))
        friends.close()
        on_step("user")
        users = UserStore(workspace.path_of("user"), create=True)
        users.bootstrap(profiles, origin=DEMO)
        users.close()
    except BaseException:
        for path in workspace.files:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise
    return Made(len(data.users), len(data.groups), len(data.members), len(data.friends))
