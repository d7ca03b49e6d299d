"""The user store's file: processes that share it, die over it or lock it, and files that it refuses."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from imsync.errors import StoreUnusable
from imsync.im.events import UserUpdated
from imsync.im.friend_store import FriendStore
from imsync.im.group_store import GroupStore
from imsync.im.outbox import ALL_PLACES
from imsync.im.user_store import SCHEMA, SQL, Profile, ProfileEdit, UserStore
from tests.servers import Spawn
from tests.stores import MIA, NOAH, PEOPLE, hear, nick, outbox_events, sql, tell


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "user.db"


@pytest.fixture
def store(path: Path) -> Iterator[UserStore]:
    made = UserStore(path, create=True)
    made.bootstrap(PEOPLE, origin="test")
    yield made
    made.close()


# ── processes ────────────────────────────────────────────────────────────────────────────────────────

EDITOR = """
import sys
from pathlib import Path
from imsync.im.user_store import ProfileEdit, UserStore
store, field = UserStore(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True); sys.stdin.readline()
for n in range(int(sys.argv[3])):
    assert store.edit(ProfileEdit(user_id=1, **{field: f"{n:04d}"}))
"""


def test_two_processes_that_edit_one_user_lose_nothing(store: UserStore, path: Path, spawn: Spawn) -> None:
    store.edit(ProfileEdit(user_id=1, nick_name="-", head_image="-"))
    each = 80
    editors = [spawn("-c", EDITOR, path, field, each) for field in ("nick_name", "head_image")]
    assert [hear(editor) for editor in editors] == ["ready", "ready"]
    for editor in editors:
        tell(editor)
    assert [editor.wait(60) for editor in editors] == [0, 0]
    told = [event for event in outbox_events(path) if isinstance(event, UserUpdated)]
    assert [event.version for event in told] == list(range(2, 2 * each + 3))
    assert len({event.event_id for event in told}) == len(told)
    following = {"-": "0000"} | {f"{n:04d}": f"{n + 1:04d}" for n in range(each)}
    for before, after in pairwise(told):  # each edit changed its own field and kept what the other had written
        assert (after.nick_name, after.head_image) in {
            (following[before.nick_name], before.head_image),
            (before.nick_name, following[before.head_image]),
        }
    last = f"{each - 1:04d}"
    assert store.profiles([1])[1] == Profile(1, "mia", last, last, "mia_t.png", version=2 * each + 2)


RESTLESS = """
import sys
from pathlib import Path
from imsync.im.user_store import ProfileEdit, UserStore
store = UserStore(Path(sys.argv[1]))
n = 0
while True:
    names = [f"{sys.argv[2]}-{(n := n + 1)}" for _ in range(5)]
    store.edit_many([ProfileEdit(user_id=i % 2 + 1, nick_name=name) for i, name in enumerate(names)])
    print(n, flush=True)
"""
DYING = """
import os, signal, sys
from pathlib import Path
from imsync.im.user_store import ProfileEdit, UserStore
store, statement, countdown = UserStore(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
def trace(sql):
    global countdown
    countdown -= sql.startswith(statement)
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)
store._database._connection.set_trace_callback(trace)
store.edit_many([ProfileEdit(user_id=1, nick_name=f"N{n}") for n in range(5)])
store.edit(ProfileEdit(user_id=1, nick_name="last"))
"""


def assert_every_version_has_its_event(path: Path) -> int:
    """Opens the store again, as after a crash. How many events there are."""
    store = UserStore(path)
    told = outbox_events(path)
    for profile in (MIA, NOAH):
        current = store.profiles([profile.id])[profile.id]
        own = [event for event in told if event.id == profile.id]
        assert [event.version for event in own] == list(range(profile.version + 1, current.version + 1))
        if own:
            last = own[-1]
            assert isinstance(last, UserUpdated)
            assert last.nick_name == current.nick_name
    store.close()
    assert sql(path, "PRAGMA integrity_check") == [("ok",)]
    return len(told)


def test_kill_9_in_the_middle_of_edits_parts_no_version_from_its_event(
    store: UserStore, path: Path, spawn: Spawn
) -> None:
    store.close()
    rng = random.Random(1)
    seen = 0
    for round_number in range(3):
        editor = spawn("-c", RESTLESS, path, round_number)
        for _ in range(rng.randrange(5, 40)):
            reported = int(hear(editor))
        time.sleep(rng.random() / 500)  # somewhere within a transaction
        editor.kill()
        assert editor.wait(10) == -signal.SIGKILL
        total = assert_every_version_has_its_event(path)
        assert total >= seen + reported  # what was reported as done stays done
        seen = total


@pytest.mark.parametrize(
    ("statement", "countdown", "survive"),
    [
        ("UPDATE im_user", 1, 0),
        ("INSERT INTO outbox", 1, 0),
        ("INSERT INTO outbox", 4, 0),
        ("COMMIT", 1, 0),
        ("BEGIN", 2, 5),
    ],
)
def test_kill_9_just_before_a_statement(
    store: UserStore, path: Path, spawn: Spawn, statement: str, countdown: int, survive: int
) -> None:
    store.close()
    assert spawn("-c", DYING, path, statement, countdown).wait(30) == -signal.SIGKILL
    assert assert_every_version_has_its_event(path) == survive


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE"); print("locked", flush=True)
sys.stdin.readline()
"""


def test_a_lock_of_another_process_is_waited_for_and_then_reported(path: Path, store: UserStore, spawn: Spawn) -> None:
    impatient = UserStore(path, busy_timeout_ms=200)
    holder = spawn("-c", HOLDER, path)
    assert hear(holder) == "locked"
    began = time.monotonic()
    with pytest.raises(StoreUnusable, match="locked") as raised:
        impatient.edit(nick(1, "B"))
    assert 0.15 < time.monotonic() - began < 4
    assert raised.value.hint
    assert impatient.profiles([1]) == {1: MIA}  # readers are not locked out
    tell(holder)
    assert holder.wait(10) == 0
    assert impatient.edit(nick(1, "B"))
    impatient.close()


MAKER = """
import sys
from pathlib import Path
from imsync.errors import StoreUnusable
from imsync.im.user_store import UserStore
print("ready", flush=True); sys.stdin.readline()
while True:
    try:
        print(UserStore(Path(sys.argv[1]), create=True).source)
        break
    except StoreUnusable as error:
        assert "locked" in error.message, error
"""


def test_processes_that_make_one_store_at_once_agree_on_what_it_is(path: Path, spawn: Spawn) -> None:
    makers = [spawn("-c", MAKER, path) for _ in range(3)]
    assert {hear(maker) for maker in makers} == {"ready"}
    for maker in makers:
        tell(maker)
    sources = {hear(maker) for maker in makers}
    with closing(UserStore(path)) as store:
        assert sources == {store.source}
    assert [maker.wait(10) for maker in makers] == [0, 0, 0]


def test_who_is_overtaken_while_making_a_store_takes_what_the_other_made(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(store: UserStore, key: str) -> str:
        found = look(store, key)
        if not found:
            sql(path, "INSERT INTO meta (key, value) VALUES ('store_id', 'theirs')")
        return found

    look = UserStore._meta
    monkeypatch.setattr(UserStore, "_meta", overtaken)
    with closing(UserStore(path, create=True)) as store:
        assert store.source == "urn:imsync:user-store:theirs"


# ── the file ─────────────────────────────────────────────────────────────────────────────────────────


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_for_their_owner_only(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with closing(UserStore(path, create=True)) as store:
            store.bootstrap(PEOPLE, origin="test")
            assert mode(path.parent) == 0o700
            assert {file.name: mode(file) for file in path.parent.iterdir()} == {
                "user.db": 0o600,
                "user.db-wal": 0o600,
                "user.db-shm": 0o600,
            }
    finally:
        os.umask(before)


def test_commits_are_durable(store: UserStore) -> None:
    execute = store._database._connection.execute
    assert execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: every commit is flushed to the disk
    statements: list[str] = []
    store._database._connection.set_trace_callback(statements.append)
    store.edit(nick(1, "B"))
    assert statements[0] == "BEGIN IMMEDIATE"
    assert statements[-1] == "COMMIT"


def refusal(path: Path, *, create: bool = False) -> StoreUnusable:
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreUnusable) as raised:
        UserStore(path, create=create)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert str(path) in raised.value.message
    assert raised.value.hint
    assert raised.value.exit_code == 5
    return raised.value


def test_a_missing_store_is_not_made_in_passing(path: Path) -> None:
    assert "there is no user store" in refusal(path).message
    path.parent.mkdir()
    refusal(path)
    assert list(path.parent.iterdir()) == []


def test_an_emptied_store_is_not_taken_for_a_fresh_one(store: UserStore, path: Path) -> None:
    store.close()
    path.write_bytes(b"")
    assert "empty" in refusal(path).message


def version_1(path: Path) -> None:
    """A store as the first version of imsync left it, with events that were sent and events that wait."""
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            SQL["schema"]
            + f"""
            PRAGMA application_id = {SCHEMA.magic};
            PRAGMA user_version = 1;
            PRAGMA journal_mode = WAL;
            INSERT INTO meta VALUES ('store_id', 'the-first'), ('origin', 'demo');
            INSERT INTO im_user VALUES (1, 'mia', 'Mia', 'mia.png', 'mia_t.png', 7, 0, 5);
            UPDATE counter SET n = 4;
            """
        )
        rows = [  # the second was refused at first, and the last round trip has ten more
            (1, 2, "90-1", 100),
            (2, 3, "100-0", 110),
            (3, 4, "90-2", 100),
            *((seq, seq + 1, f"120-{seq - 4}", 120) for seq in range(4, 16)),
            (16, 17, None, None),
        ]
        for seq, version, entry_id, sent_ms in rows:
            connection.execute(
                "INSERT INTO outbox VALUES (?, ?, 1, ?, ?, 3, ?, ?)",
                (seq, b"%016d" % seq, version, b"body %d" % seq, entry_id, sent_ms),
            )
        connection.commit()


def test_a_store_of_version_1_is_migrated_with_all_that_is_in_it(path: Path) -> None:
    version_1(path)
    columns = "seq, event_id, user_id, version, body, created_ms, entry_id, sent_ms"
    before = sql(path, f"SELECT {columns} FROM outbox ORDER BY seq") + sql(path, "SELECT * FROM im_user")
    with closing(UserStore(path)) as store:
        assert sql(path, "PRAGMA user_version") == [(2,)]
        assert sql(path, f"SELECT {columns} FROM outbox ORDER BY seq") + sql(path, "SELECT * FROM im_user") == before
        assert (store.source, store.is_demo) == ("urn:imsync:user-store:the-first", True)
        assert (store.published(), store.resent(), store.backlog().unsent) == (4, 0, 1)
        in_order = ["90-1", "90-2", "100-0", *(f"120-{n}" for n in range(12))]
        assert [row.entry_id for row in reversed(store.sent_below(ALL_PLACES, 99))] == in_order
        assert [row.entry_id for row in store.newest_sent()] == ["120-11", "120-10"]
        assert [row.seq for row in store.unsent(9)] == [16]
        assert store.mark_sent([(16, "130-0")]) == 1
        assert [row.entry_id for row in store.newest_sent()] == ["130-0", "120-11"]
        assert store.take_back(3, ALL_PLACES) == 14
        assert store.edit(nick(1, "Amy"))
    with closing(UserStore(path)) as again:
        assert again.backlog().unsent == 15


def test_processes_that_migrate_one_store_at_once_do_it_once(path: Path, spawn: Spawn) -> None:
    version_1(path)
    makers = [spawn("-c", MAKER.replace(", create=True", ""), path) for _ in range(3)]
    assert {hear(maker) for maker in makers} == {"ready"}
    for maker in makers:
        tell(maker)
    assert {hear(maker) for maker in makers} == {"urn:imsync:user-store:the-first"}
    assert [maker.wait(10) for maker in makers] == [0, 0, 0]
    assert sql(path, "SELECT count(*), count(DISTINCT place) FROM outbox WHERE place IS NOT NULL") == [(15, 15)]


def test_a_migration_that_fails_leaves_version_1(path: Path) -> None:
    version_1(path)
    sql(path, "INSERT INTO counter VALUES ('resent', 0)")  # in the way of its last statement
    with pytest.raises((StoreUnusable, sqlite3.IntegrityError)):
        UserStore(path)
    assert sql(path, "PRAGMA user_version") == [(1,)]
    assert "place" not in {column[1] for column in sql(path, "PRAGMA table_info(outbox)")}
    sql(path, "DELETE FROM counter WHERE name = 'resent'")
    UserStore(path).close()
    assert sql(path, "PRAGMA user_version") == [(2,)]


def test_a_newer_schema_is_refused(store: UserStore, path: Path) -> None:
    store.close()
    sql(path, "PRAGMA user_version = 99")
    error = refusal(path)
    assert "schema version 99" in error.message
    assert error.hint == "upgrade imsync"


@pytest.mark.parametrize("other", [GroupStore, FriendStore, None], ids=["group", "friend", "somebody else's"])
@pytest.mark.parametrize("create", [False, True])
def test_another_file_is_refused(path: Path, other: type[GroupStore | FriendStore] | None, create: bool) -> None:
    if other is None:
        path.parent.mkdir()
        sql(path, "CREATE TABLE recipes (name)")
    else:
        other(path, create=True).close()
    assert "is not a user store" in refusal(path, create=create).message


@pytest.mark.parametrize("create", [False, True])
def test_a_damaged_file_is_refused(store: UserStore, path: Path, create: bool) -> None:
    store.close()
    path.write_bytes(b"no database at all" * 500)
    assert "damaged" in refusal(path, create=create).hint


def test_a_page_that_is_damaged_later_is_reported(store: UserStore, path: Path) -> None:
    store.edit_many([ProfileEdit(user_id=1, head_image=f"{n}".zfill(2000)) for n in range(20)])
    store.close()
    whole = path.read_bytes()
    page = int.from_bytes(whole[16:18], "big")
    path.write_bytes(whole[:page] + os.urandom(len(whole) - page))

    def use() -> None:
        with closing(UserStore(path)) as again:
            again.edit(nick(1, "B"))

    with pytest.raises(StoreUnusable) as raised:
        use()
    assert "damaged" in raised.value.hint


def test_where_no_file_can_be_made_the_store_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder" / "user.db").mkdir(parents=True)
    for path in (tmp_path / "file" / "user.db", tmp_path / "folder" / "user.db"):
        refusal(path, create=True)
        refusal(path)
