"""`trace`: at every place where an event can be, the picture says so, and says what to type."""

from __future__ import annotations

import shlex
from contextlib import closing
from typing import Any

import pytest

from imsync.cli.lines import cells
from imsync.im.user_store import UserStore
from imsync.im.workspace import Workspace
from tests.acceptance.driver import Imsync
from tests.acceptance.inprocess import InProcess
from tests.letters import bury, consume, edit, letters
from tests.stores import nick, sql

NOBODY_LISTENS = "unix:///nobody/listens/here"


@pytest.fixture
def im(on_server: Imsync) -> InProcess:
    made = InProcess.of(on_server)
    consume(made, "group", "friend")
    return made


@pytest.fixture
def user(im: InProcess) -> int:
    """Somebody with several rows in each service."""
    ((found,),) = im.query(
        "group",
        "SELECT user_id FROM im_group_member WHERE user_id NOT IN"
        " (SELECT user_id FROM user_profile_replica WHERE deleted) GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1",
    )
    return int(found)


def traced(im: InProcess, user: int, code: int = 0, service: str = "group") -> dict[str, Any]:
    """What it says of one service, with the other keys of the whole under `whole`."""
    whole = im.json("trace", user, code=code)
    found: dict[str, Any] = next(each for each in whole["groups"] if each["group"] == service)
    return found | {"whole": whole}


def follow(im: InProcess, remedy: str) -> None:
    """Types what was advised."""
    program, *words = shlex.split(remedy)
    assert program == "imsync"
    more = {"replay dead": ["--yes"], "replay from": ["--yes"], "consume group": ["--until-empty"]}
    more |= {"relay": ["--until-empty"]}
    name = " ".join(words[:2]) if words[0] != "relay" else "relay"
    im.ok(*words, *more.get(name, []))


def test_all_is_well(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"), (user, "Mia the second"))
    consume(im, "group", "friend")
    found = traced(im, user)
    whole = found["whole"]
    assert (whole["verdict"], whole["version"], whole["nick_name"], whole["redis_error"]) == (
        "in_step", 3, "Mia the second", None,
    )  # fmt: skip
    assert [(e["version"], e["sent"], e["in_stream"]) for e in whole["events"]] == [(3, True, True), (2, True, True)]
    assert (found["newest"], found["version"], found["verdict"]) == ("applied", 3, "in_step")
    ((rows,),) = im.query("group", "SELECT count(*) FROM im_group_member WHERE user_id = ?", user)
    assert (found["rows"], found["rows_at"]) == (rows, [{"version": 3, "rows": rows}])
    words = im.ok("trace", user).out
    assert f"█ {rows} of {rows} rows at v3" in words
    assert words.splitlines()[-1] == "in step: every copy is as the profile says"


def test_somebody_who_was_never_edited(im: InProcess, user: int) -> None:
    found = traced(im, user)
    assert (found["whole"]["events"], found["newest"], found["whole"]["verdict"]) == ([], "none", "in_step")


def test_nobody(im: InProcess) -> None:
    assert im.run("trace", 5, "--json").expect(2).json()["error"]["message"] == "there is no user 5"
    im.run("trace", 2**63).expect(2)
    im.run("trace", "Mia").expect(2)


def test_waiting_in_the_outbox(im: InProcess, user: int) -> None:
    with closing(UserStore(im.data / "user.db")) as users:
        users.edit(nick(user, "Mia"))
    found = traced(im, user)
    assert (found["newest"], found["verdict"], found["whole"]["verdict"]) == ("waiting", "on_its_way", "on_its_way")
    assert found["whole"]["events"][0]["entry_id"] is None
    assert found["remedy"] == "imsync relay"
    assert "v2  waiting to be sent" in im.ok("trace", user).out
    follow(im, found["remedy"])
    assert traced(im, user, code=3)["newest"] == "undelivered"


def test_waiting_in_the_stream_with_and_without_a_consumer(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    found = traced(im, user, code=3)
    assert (found["newest"], found["consumers"], found["verdict"]) == ("undelivered", 0, "wrong")
    with im.client() as client:
        client.xgroup_createconsumer(im.stream, "group", "ann")
        client.set(im.keys.alive("group", "ann"), "{}", px=60_000)
    living = traced(im, user, code=3)
    assert (living["consumers"], living["verdict"], living["remedy"]) == (1, "on_its_way", "")
    follow(im, found["remedy"])
    assert traced(im, user, code=3)["verdict"] == "in_step", "the friend service has not come that far"


def test_pending_with_the_living_and_with_the_dead(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    with im.client() as client:
        client.xreadgroup("group", "ann", {im.stream: ">"})
        client.set(im.keys.alive("group", "ann"), "{}", px=60_000)
        found = traced(im, user, code=3)
        assert (found["newest"], found["consumer"], found["consumer_alive"]) == ("pending", "ann", True)
        assert (found["verdict"], found["deliveries"]) == ("on_its_way", 1)
        client.delete(im.keys.alive("group", "ann"))
    found = traced(im, user, code=3)
    assert (found["consumer_alive"], found["verdict"]) == (False, "wrong")
    assert "pending with ann (dead)" in im.run("trace", user).out
    follow(im, found["remedy"])
    assert traced(im, user, code=3)["verdict"] == "in_step"


def test_a_dead_letter_and_what_becomes_of_it(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    consume(im, "friend")
    bury(im)
    found = traced(im, user, code=3)
    assert (found["newest"], found["verdict"], len(found["dead_letters"])) == ("dead", "wrong", 1)
    (letter,) = letters(im)
    assert f"dead letter {letter.id} v2: max_attempts" in im.run("trace", user).out
    follow(im, found["remedy"])
    assert traced(im, user)["dead_letters"] == []


def test_a_dead_event_whose_letter_was_purged(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    consume(im, "friend")
    bury(im)
    im.json("dead", "purge", "--all", "--yes")
    found = traced(im, user, code=3)
    assert (found["newest"], found["dead_letters"]) == ("dead", [])
    follow(im, found["remedy"])
    assert traced(im, user)["whole"]["verdict"] == "in_step"


def test_one_that_nobody_could_decode(im: InProcess, user: int) -> None:
    from imsync.im.events import UserDeleted

    edit(im, (user, "Mia"))
    consume(im, "friend")
    bury(im, events=[UserDeleted])
    found = traced(im, user, code=3)
    assert (found["newest"], [each["reason"] for each in found["dead_letters"]]) == ("dead", ["unknown_type"])


def test_a_letter_of_an_older_version_is_safe_to_drop(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    bury(im)
    edit(im, (user, "Mia the second"))
    consume(im, "group", "friend")
    found = traced(im, user)
    assert (found["verdict"], found["dead_letters"][0]["superseded"]) == ("in_step", True)
    im.json(*shlex.split(found["remedy"])[1:], "--yes")
    assert letters(im) == []


def test_trimmed_before_it_was_delivered(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    with im.client() as client:
        client.xtrim(im.stream, maxlen=0, approximate=False)
    found = traced(im, user, code=3)
    assert (found["newest"], found["whole"]["events"][0]["in_stream"]) == ("lost", False)
    assert found["remedy"] == f"imsync verify --repair --user {user}"
    assert "v2 is not there any more" in im.run("trace", user).out


def test_an_event_that_the_group_was_moved_over(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    consume(im, "friend")
    with im.client() as client:
        client.xgroup_setid(im.stream, "group", "$")
    found = traced(im, user, code=3)
    assert (found["newest"], found["verdict"]) == ("unsettled", "wrong")
    follow(im, found["remedy"])
    assert traced(im, user)["whole"]["verdict"] == "in_step"


def test_rows_that_differ_are_told_by_the_version_that_they_hold(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    consume(im, "group", "friend")
    edit(im, (user, "Mia the second"))
    consume(im, "group", "friend")
    path, one = im.data / "group.db", "SELECT group_id FROM im_group_member WHERE user_id = ? ORDER BY 1 LIMIT 1"
    change = "UPDATE im_group_member SET user_nick_name = ? WHERE user_id = ?"
    total = traced(im, user)["rows"]
    assert total > 2
    sql(path, f"{change} AND group_id = ({one})", ("Mia", user, user))
    sql(path, f"{change} AND group_id = ({one} OFFSET 1)", ("by hand", user, user))
    found = traced(im, user, code=3)
    assert (found["newest"], found["version"], found["verdict"]) == ("applied", 3, "wrong")
    by_version = {each["version"]: each["rows"] for each in found["rows_at"]}
    assert by_version == {3: total - 2, 2: 1, None: 1}
    words = im.run("trace", user).expect(3).out
    assert f"{total - 2} of {total} rows at v3, 1 at v2, 1 at other content" in words
    assert found["what"] == "2 rows of group differ from version 3, which is applied"
    assert found["remedy"] == f"imsync verify --repair --user {user}"


def test_of_versions_with_one_content_the_rows_hold_the_applied_one(im: InProcess, user: int) -> None:
    im.ok("publish", "user-update", "--user", user, "--head-image", "large.png")  # which members do not copy
    found = traced(im, user, code=3)
    assert (found["version"], [each["version"] for each in found["rows_at"]]) == (1, [1])
    consume(im, "group")
    found = traced(im, user, code=3)
    assert (found["version"], [each["version"] for each in found["rows_at"]]) == (2, [2])


def test_a_projection_that_is_ahead(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    consume(im, "group", "friend")
    sql(im.data / "user.db", "UPDATE im_user SET version = 1 WHERE id = ?", (user,))
    found = traced(im, user, code=3)
    assert "newer than the source" in found["what"]


def test_the_deleted(im: InProcess, user: int) -> None:
    with closing(UserStore(im.data / "user.db")) as users:
        users.delete_user(user)
    im.ok("relay", "--until-empty")
    consume(im, "group", "friend")
    found = traced(im, user)
    assert (found["deleted"], found["whole"]["deleted"], found["whole"]["verdict"]) == (True, True, "in_step")
    assert [each["version"] for each in found["rows_at"]] == [2]


def test_of_two_tombstones_none_is_newer(im: InProcess, user: int) -> None:
    """As `verify` has it: a repair for one service publishes the deletion anew, and the other keeps what it has."""
    with closing(UserStore(im.data / "user.db")) as users:
        users.delete_user(user)
    im.ok("relay", "--until-empty")
    consume(im, "group", "friend")
    sql(im.data / "group.db", "UPDATE user_profile_replica SET deleted = 0 WHERE user_id = ?", (user,))
    im.run("verify", "--repair", "--yes").expect(3)  # nobody has applied it yet
    consume(im, "group", "friend")
    im.ok("verify")
    assert traced(im, user, service="friend")["verdict"] == "in_step"
    assert im.json("status")["healthy"]  # a deletion that comes twice contradicts nothing


def test_the_tombstone_of_the_living(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    consume(im, "group", "friend")
    sql(im.data / "group.db", "UPDATE user_profile_replica SET deleted = 1 WHERE user_id = ?", (user,))
    found = traced(im, user, code=3)
    repair, rebuild = found["remedy"].split(", then ")
    im.run(*shlex.split(repair)[1:], "--yes").expect(3)
    consume(im, "group", "friend")
    assert traced(im, user, code=3)["remedy"] == rebuild == "imsync rebuild group"
    follow(im, f"{rebuild} --yes")
    assert traced(im, user)["verdict"] == "in_step"
    assert im.json("status")["healthy"]


def test_overrides_are_counted(im: InProcess, user: int) -> None:
    sql(im.data / "group.db", "UPDATE im_group_member SET remark_nick_name = 'me' WHERE user_id = ?", (user,))
    found = traced(im, user)
    assert found["overrides"] == found["rows"]
    assert f"{found['rows']} rows have their own name, which no event touches" in im.ok("trace", user).out


def test_without_redis_the_stores_still_speak(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"))
    consume(im, "group")
    im.set(URL=NOBODY_LISTENS)
    found, friend = traced(im, user, code=4), traced(im, user, code=4, service="friend")
    assert NOBODY_LISTENS in found["whole"]["redis_error"]
    assert (found["newest"], found["verdict"], found["consumers"]) == ("applied", "in_step", None)
    assert (friend["newest"], friend["verdict"], friend["version"]) == ("unknown", "unknown", 1)
    assert (friend["dead_letters"], found["whole"]["events"][0]["in_stream"]) == (None, None)
    words = im.run("trace", user).expect(4).out
    assert "unknown: cannot reach Redis" in words
    assert words.splitlines()[-1] == "unknown: not all could be asked"


def test_without_one_of_the_stores(im: InProcess, user: int) -> None:
    for file in im.data.glob("friend.db*"):
        file.unlink()
    friend = traced(im, user, code=5, service="friend")
    assert (friend["version"], friend["rows"], friend["rows_at"], friend["verdict"]) == (None, None, [], "unknown")
    assert traced(im, user, code=5)["verdict"] == "in_step"


def test_the_seams_that_it_stands_on(im: InProcess, user: int) -> None:
    edit(im, (user, "Mia"), (user, "Mia the second"))
    workspace = Workspace(im.data)
    with closing(workspace.user_store()) as users, closing(workspace.projection("group")) as store:
        newest, older = users.events_of(user)
        assert (newest.version, older.version, newest.seq > older.seq) == (3, 2, True)
        assert users.events_of(user, 1) == [newest]
        assert users.events_of(5) == []
        assert b"Mia the second" in newest.body
        assert newest.entry_id
        assert newest.sent_ms
        assert newest.created_ms <= newest.sent_ms
        state = store.state(user)
        assert state is not None
        assert store.contents(user) == {state.content: state.rows}
        assert store.contents(5) == {}


def test_it_fits_a_terminal_of_80_columns(im: InProcess, user: int) -> None:
    edit(im, *((user, f"name {number} " + "長" * 60) for number in range(8)))
    with im.client() as client:
        client.xreadgroup("group", "a-host-with-a-long-name.example.net.12345.abcdef", {im.stream: ">"})
    for args in (("trace", user), ("replay", "pending", "--min-idle", "0s", "--dry-run")):
        shown = im.on_a_terminal(*args).out
        assert len(shown.splitlines()) > 5
        assert [line for line in shown.splitlines() if cells(line) > 80] == []
