"""The job that all do: a backlog of profile events into 40,690 member rows, from the same start, to the same end."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.server import Server, connect
from bench.traffic import add_all, bodies, read_states, uniform_edits, write_states
from imsync.bus.keys import Keys
from imsync.im.demo_data import generate
from imsync.im.events import DESTINATION
from imsync.im.setup import make_stores
from imsync.im.simulator import SimulatedEdit, simulate_edits
from imsync.im.workspace import Workspace

KEYS = Keys("imsync", DESTINATION)
SEED = 7


@dataclass(frozen=True, slots=True)
class Job:
    """A backlog in a database of its own, and the stores to begin from.

    Args:
        template: `user.db` is as after all edits, `group.db` as before them.
    """

    url: str
    template: Workspace
    events: int
    client: Any

    def begin(self, group: str, folder: Path) -> Workspace:
        """A copy of the stores in a folder that is emptied first, and a consumer group that has read nothing."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.template.data_dir, folder)
        self.rewind(group)
        return Workspace(folder)

    def rewind(self, group: str) -> None:
        """Makes the consumer group anew, at the start of the stream, bound to no store."""
        if self.client.exists(KEYS.stream):
            self.client.execute_command("XGROUP", "DESTROY", KEYS.stream, group)
        self.client.execute_command("XGROUP", "CREATE", KEYS.stream, group, "0", "MKSTREAM")
        self.client.delete(KEYS.store(group))

    def left(self, group: str) -> int:
        """Entries that a group has not acknowledged."""
        (info,) = [each for each in self.client.xinfo_groups(KEYS.stream) if each["name"] == group.encode()]
        last = info["last-delivered-id"].decode()
        unread = self.client.xrange(KEYS.stream, f"({last}", "+", count=1)
        return int(info["pending"]) + len(unread)

    def digest(self) -> str:
        """What `bench.loops.shared.DictSink` says of a dict that is right."""
        edited = {
            user_id: (state.nick_name, state.head_image_thumb)
            for user_id, state in read_states(self.template.path_of("user")).items()
            if state.version > 1
        }
        return digest_of(edited)

    def drop(self) -> None:
        """Removes the backlog and the stores."""
        self.client.flushdb()
        shutil.rmtree(self.template.data_dir)


def demo_job(server: Server, number: int, folder: Path, events: int) -> Job:
    """The job on the data that `imsync init` makes."""
    template = Workspace(folder / f"template-{number}")
    make_stores(template, generate())
    ids = list(read_states(template.path_of("user")))
    return _job(server, number, template, simulate_edits(ids, count=events, seed=SEED), events)


def uniform_job(server: Server, number: int, template: Workspace, events: int) -> Job:
    """A backlog of edits of all users alike, on stores that were built for it."""
    ids = list(read_states(template.path_of("user")))
    return _job(server, number, template, uniform_edits(ids, events, SEED), events)


def _job(server: Server, number: int, template: Workspace, edits: Iterable[SimulatedEdit], events: int) -> Job:
    url = server.database(number)
    client = connect(url)
    path = template.path_of("user")
    states = read_states(path)
    store = template.user_store()
    source = store.source
    store.close()
    if add_all(client, KEYS.stream, bodies(edits, states, source, events)) != events:
        raise SystemExit("the backlog is not whole")
    write_states(path, {user_id: state for user_id, state in states.items() if state.version > 1})
    return Job(url, template, events, client)


def expert_store(workspace: Workspace) -> Path:
    """The same member rows, in the table layout that comes to mind first; its file."""
    path = workspace.data_dir / "expert.db"
    with closing(sqlite3.connect(path)) as store:
        store.executescript(
            f"""
            ATTACH '{workspace.path_of("group")}' AS source;
            CREATE TABLE im_group_member (
                group_id INTEGER, user_id INTEGER, user_nick_name TEXT, head_image TEXT,
                remark_nick_name TEXT, quit INTEGER,
                PRIMARY KEY (group_id, user_id)
            );
            INSERT INTO im_group_member
                SELECT group_id, user_id, user_nick_name, head_image, remark_nick_name, quit
                FROM source.im_group_member ORDER BY group_id, user_id;
            CREATE INDEX im_group_member_user ON im_group_member (user_id);
            """
        )
    return path


def wrong_rows(workspace: Workspace, path: Path) -> int:
    """Member rows that differ from the user store."""
    with closing(sqlite3.connect(path)) as store:
        store.execute("ATTACH ? AS source", (str(workspace.path_of("user")),))
        (wrong,) = store.execute(
            "SELECT count(*) FROM im_group_member AS m JOIN source.im_user AS u ON u.id = m.user_id "
            "WHERE m.user_nick_name <> u.nick_name OR m.head_image <> u.head_image_thumb"
        ).fetchone()
    return int(wrong)


def verify(who: str, workspace: Workspace, path: Path) -> None:
    """Compares every member row with the user store.

    Raises:
        SystemExit: some are wrong.
    """
    if wrong := wrong_rows(workspace, path):
        raise SystemExit(f"{who} left {wrong:,} rows wrong")


def digest_of(copies: dict[int, tuple[str, str]]) -> str:
    """A hash of copies by user: the same for the same copies."""
    lines = "\n".join(f"{user_id} {copies[user_id]!a}" for user_id in sorted(copies))
    return hashlib.sha256(lines.encode()).hexdigest()
