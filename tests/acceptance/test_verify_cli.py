"""`verify`: what it prints, what it refuses, and that after a repair with living consumers a second one finds nothing.

The commands run in this process, which takes a tenth of the time, except the consumers and one on a terminal.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imsync.bus import Bus
from imsync.im.events import DESTINATION
from imsync.im.group_store import GroupStore
from tests.acceptance.driver import Imsync
from tests.acceptance.inprocess import InProcess
from tests.drifting import OPTIONS, Refusing, foreign
from tests.servers import Server, eventually
from tests.stores import sql

DEAD_PORT = "redis://127.0.0.1:1"
MAX = 2**63 - 1


@pytest.fixture
def im(here: InProcess, server: Server) -> InProcess:
    """Made stores and a server, with the groups of `init`; heartbeats that end soon."""
    return here.on(server, CONSUMER_HEARTBEAT_MS="100", CONSUMER_BLOCK_MS="50")


def by_hand(im: Imsync, store: str, statement: str, *parameters: object) -> None:
    sql(im.data / f"{store}.db", statement, parameters)


def edit(im: Imsync, user: int, name: str) -> None:
    im.ok("publish", "user-update", "--user", user, "--nick-name", name)


def members(im: Imsync) -> list[int]:
    """Living users that are in at least two groups."""
    rows = im.query("group", "SELECT user_id FROM im_group_member GROUP BY user_id HAVING count(*) > 1 ORDER BY 1")
    living = set(im.users())
    return [user for (user,) in rows if user in living]


def rename(im: Imsync, user: int) -> None:
    """Makes one row of a user wrong."""
    by_hand(im, "group", "UPDATE im_group_member SET user_nick_name = 'x' WHERE user_id = ?", user)


def bring_apart(im: Imsync) -> dict[str, int]:
    """Every cause that a touch mends, each for a user of its own in the group store; how many of each."""
    users = iter(members(im))
    dead, unknown, trimmed, join, hand, ahead, missing = (next(users) for _ in range(7))
    (gone,) = im.query("user", "SELECT min(id) FROM im_user WHERE deleted = 1")[0]
    edit(im, join, "joined 1")
    edit(im, join, "joined 2")
    edit(im, dead, "dead")
    with Bus.from_url(im.url) as bus, closing(GroupStore(im.data / "group.db")) as groups:
        stream = bus.stream(DESTINATION)

        def consume(handler: Any) -> None:
            bus.consumer(DESTINATION, group="group", events=groups.events, handler=handler, options=OPTIONS).run()

        consume(Refusing(groups, [dead]))
        edit(im, trimmed, "trimmed")
        stream.append(foreign(ahead, 30, "ahead", "urn:of:another"))
        stream.append(foreign(99, 4, "nobody", "urn:of:another"))
        edit(im, unknown, "unknown")
        held = [entry.id for entry in stream.read_new("group", "somebody", 10)]
        stream.acknowledge("group", held[-1:])
        stream.trim(held[1], exact=True)
        consume(groups)
    by_hand(im, "group", "UPDATE im_group_member SET user_nick_name = 'joined 1' WHERE user_id = ? AND group_id = "
            "(SELECT min(group_id) FROM im_group_member WHERE user_id = ?)", join, join)  # fmt: skip
    rename(im, hand)
    by_hand(im, "group", "DELETE FROM user_profile_replica WHERE user_id = ?", missing)
    by_hand(im, "group", "UPDATE user_profile_replica SET deleted = 0, nick_name = 'back' WHERE user_id = ?", gone)
    return dict.fromkeys(
        ["dead_lettered", "unknown", "trimmed", "stale_join", "edited", "ahead", "missing", "orphan", "resurrected"], 1
    )


def test_every_cause_is_gone_after_a_repair_with_living_consumers(im: InProcess) -> None:
    im.ok("consume", "friend", "--until-empty")
    causes = bring_apart(im)
    overrides = im.overrides()
    found = im.json("verify", "--group", "group", code=3)
    assert found["causes"] == causes
    assert (found["drift"], found["unrepairable"], found["repaired"]) == (len(causes), 0, 0)
    consumers = [im.start("consume", service) for service in ("group", "friend")]
    eventually(lambda: im.alive("group") and im.alive("friend"))
    done = im.json("verify", "--repair", "--wait", "--yes")
    assert done["causes"]["dead_lettered"] == 1
    drifted = {each["user"] for each in done["examples"]}
    assert done["planned"] == done["touched"] == done["repaired"] == len(drifted)
    assert (done["outbox"], done["waiting"], done["wrong"]) == (0, 0, 0)
    again = im.json("verify", "--strict")
    assert (again["drift"], again["in_flight"], again["causes"]) == (0, 0, {})
    assert im.wrong_copies() == []
    assert im.overrides() == overrides
    for consumer in consumers:
        im.end(consumer, 15)


def test_what_the_server_lost_is_repaired_too(im: InProcess) -> None:
    user = members(im)[0]
    for service in ("group", "friend"):
        im.ok("consume", service, "--until-empty")
    edit(im, user, "lost")
    with im.client() as client:
        client.flushall()
    assert im.json("verify", code=3)["causes"] == {"lost_by_server": 2}
    consumers = [im.start("consume", service) for service in ("group", "friend")]
    eventually(lambda: im.alive("group") and im.alive("friend"))
    assert im.json("verify", "--repair", "--wait", "--yes")["repaired"] == 1
    im.ok("verify")
    for consumer in consumers:
        im.end(consumer, 15)


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_plan_is_printed_and_changes_nothing(im: InProcess) -> None:
    first, second, third = members(im)[:3]
    rename(im, first)
    by_hand(im, "group", "UPDATE user_profile_replica SET version = 7 WHERE user_id = ?", second)
    by_hand(im, "group", "UPDATE user_profile_replica SET version = ? WHERE user_id = ?", MAX, third)
    before = im.everything()
    plan = im.json("verify", "--repair", "--dry-run", code=3)
    assert (plan["planned"], plan["touched"], plan["unrepairable"], plan["dry_run"]) == (2, 0, 1, True)
    versions = {each["user"]: (each["copy_version"], each["new_version"], each["mend"]) for each in plan["examples"]}
    assert versions == {first: (1, 2, "touch"), second: (7, 8, "touch"), third: (MAX, None, "rebuild")}
    said = im.run("verify", "--repair", "--dry-run").expect(3)
    assert "dry run: 2 users would be touched; nothing was changed" in said.out
    assert "group: no event reaches 1 of them: imsync rebuild group" in said.out
    assert "ahead 2: was user.db restored?" in said.out
    alone = im.run("verify", "--user", third).expect(3).out
    assert "\nahead 1\n" in alone, "no touch helps, so none is named"
    refusal = im.run("verify", "--repair").expect(2)
    assert "nobody to ask: publish 2 users anew" in refusal.err
    assert im.json("verify", "--repair", code=2)["error"]["kind"] == "usage"
    assert im.everything() == before


def test_what_no_event_reaches_is_mended_by_the_rebuild_that_it_names(im: InProcess) -> None:
    user = members(im)[0]
    by_hand(im, "group", "UPDATE user_profile_replica SET version = ? WHERE user_id = ?", MAX, user)
    done = im.json("verify", "--repair", "--yes", "--wait", code=3)
    assert (done["planned"], done["touched"], done["unrepairable"]) == (0, 0, 1)
    im.ok("rebuild", "group", "--yes")
    im.ok("verify")
    edit(im, user, "as ever")
    im.ok("consume", "group", "--until-empty")
    assert im.wrong_copies("group") == []


def test_what_is_no_text_is_drift_like_any_other(im: InProcess) -> None:
    """Written by hand into the rows of one user, and into the replica of another."""
    first, second = members(im)[:2]
    by_hand(im, "group", "UPDATE im_group_member SET user_nick_name = CAST(x'ff41' AS TEXT) WHERE user_id = ?", first)
    by_hand(im, "group", "UPDATE user_profile_replica SET nick_name = CAST(x'c328' AS TEXT) WHERE user_id = ?", second)
    done = im.json("verify", code=3)
    assert {(each["user"], each["cause"]) for each in done["examples"]} == {(first, "edited"), (second, "edited")}
    assert "differ" in im.run("trace", first).expect(3).out
    im.run("verify", "--repair", "--yes").expect(3)
    im.ok("consume", "group", "--until-empty")
    im.ok("consume", "friend", "--until-empty")
    im.ok("verify")
    assert im.wrong_copies("group") == []


def test_without_a_consumer_it_says_which_to_start(im: InProcess) -> None:
    rename(im, members(im)[0])
    done = im.run("verify", "--repair", "--yes", "--wait", "--timeout", "0s").expect(3)
    assert "no consumer of group is alive: imsync consume group" in done.err
    assert done.out.splitlines()[-1] == "1 touched, 1 published, 1 still in flight"
    im.ok("consume", "group", "--until-empty")
    im.ok("consume", "friend", "--until-empty")
    im.ok("verify", "--strict")


def test_without_waiting_nobody_has_seen_it(im: InProcess) -> None:
    rename(im, members(im)[0])
    done = im.json("verify", "--repair", "--yes", code=3)
    assert (done["touched"], done["published"], done["repaired"], done["waiting"], done["wrong"]) == (
        1,
        1,
        0,
        None,
        None,
    )
    assert im.json("verify")["in_flight"] == 2
    assert im.json("verify", "--strict", code=3)["flight"]["undelivered"] == 2


def test_without_redis_a_repair_waits_in_the_outbox(im: InProcess) -> None:
    rename(im, members(im)[0])
    done = im.run("verify", "--repair", "--yes", "--wait", "--url", DEAD_PORT).expect(3)
    assert "the events are kept in the outbox and will be sent later: imsync relay" in done.err
    assert done.out.splitlines()[-1] == "1 touched, 0 published, 1 waiting in the outbox"
    im.ok("relay", "--until-empty")
    im.ok("consume", "group", "--until-empty")
    assert im.json("verify")["drift"] == 0


def test_who_waits_for_what(im: InProcess) -> None:
    first, second, third = members(im)[:3]
    im.ok("consume", "group", "--until-empty")
    edit(im, first, "held")
    with im.client() as client:
        client.xreadgroup("group", b"some\x1b[2Jbody", {im.stream: ">"})
    edit(im, second, "unread")
    im.run("publish", "user-update", "--user", third, "--nick-name", "kept", "--url", DEAD_PORT).expect(0)
    found = im.json("verify", "--group", "group")
    assert found["flight"] == {
        "outbox": 1, "undelivered": 1, "pending": 1, "fan_out": 0, "after_export": 0, "editing": 0,
        "held_by": [{"projection": "group", "consumer": r"some\x1b[2Jbody", "users": 1}],
    }  # fmt: skip
    said = im.ok("verify", "--group", "group").out
    assert r"3 in flight (" in said
    assert r"1 with some\x1b[2Jbody" in said


# ── which users ──────────────────────────────────────────────────────────────────────────────────────────


def test_some_users(im: InProcess) -> None:
    users = members(im)
    for user in users[:9]:
        rename(im, user)
    some = im.json("verify", "--user", users[0], "--user", users[20], "--user", users[0], code=3)
    assert (some["users"], some["drift"]) == (2, 1)
    assert "there is no user" not in im.run("verify", "--user", users[20]).expect(0).out
    for nobody in (12345, 0, 2**63, -(2**63), 10**30):
        assert f"nobody knows a user {nobody}" in im.run("verify", "--user", nobody).expect(2).err
    said = im.run("verify", "--user", users[0]).expect(3).out
    assert f"{users[0]} in group:\n  " in said
    assert "rows show what no remembered event has said" in said
    assert len(im.json("verify", "--examples", 3, code=3)["examples"]) == 3
    assert im.json("verify", "--examples", 0, code=3)["drift"] == 9
    assert "… and 6 more" in im.run("verify", "--examples", 3).expect(3).out
    assert im.json("verify", "--group", "friend")["drift"] == 0


def test_a_sample(im: InProcess) -> None:
    everybody = len(im.users("true"))
    by_hand(im, "group", "UPDATE user_profile_replica SET nick_name = 'x'")

    def sampled(*flags: object) -> set[int]:
        found = im.json("verify", "--group", "group", "--sample", 30, "--examples", 100, *flags, code=3)
        assert (found["users"], found["drift"]) == (30, 30)
        return {each["user"] for each in found["examples"]}

    assert sampled("--seed", 5) == sampled("--seed", 5) != sampled("--seed", 6)
    assert sampled() != sampled()
    assert im.json("verify", "--sample", 10**6, code=3)["users"] == everybody
    assert "--seed" in im.run("verify", "--sample", 1, "--group", "group").expect(3).err


@pytest.mark.parametrize(
    "words",
    [
        "--wait", "--yes", "--dry-run", "--seed 5", "--user 1 --sample 2", "--group nobody", "--sample 0",
        "--against x --wait --repair", "--against x --group group", "--export x --repair", "--export x --user 1",
        "--export x --against y", "--repair --wait --timeout 5", "--examples -1",
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(im: InProcess, words: str) -> None:
    assert im.json("verify", *words.split(), code=2)["error"]["kind"] == "usage"


# ── stores on different hosts ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def other(im: InProcess, clean_environment: Path) -> Iterator[InProcess]:
    """Another host on the same Redis, to which the projections have moved; `im` has the user store alone."""
    folder = clean_environment / "other"
    folder.mkdir()
    other = InProcess(folder, CONSUMER_BLOCK_MS="50", CONSUMER_HEARTBEAT_MS="250", URL=im.url)
    other.data.mkdir(mode=0o700)
    for name in ("group", "friend"):
        shutil.move(im.data / f"{name}.db", other.data)
    yield other
    other.close()


def test_copies_on_another_host(im: InProcess, other: InProcess, tmp_path: Path) -> None:
    user = im.users()[0]
    files = {name: tmp_path / f"{name}.ndjson" for name in ("group", "friend")}
    edit(im, user, "elsewhere")
    for name, path in files.items():
        other.ok("consume", name, "--until-empty")
        done = other.json("verify", "--export", path, "--group", name)
        assert done["projection"] == name
        assert path.stat().st_mode & 0o777 == 0o600
    against = [word for path in files.values() for word in ("--against", path)]
    assert im.json("verify", *against)["drift"] == 0
    assert im.json("verify", *against)["rows"] == other.copies()
    edit(im, user, "once more")
    assert im.json("verify", *against)["flight"]["after_export"] == 0
    assert im.json("verify", *against)["flight"]["undelivered"] == 2
    rename(other, user)
    other.ok("consume", "group", "--until-empty")
    assert im.json("verify", *against)["flight"]["after_export"] == 1
    rename(other, user)
    other.ok("verify", "--export", files["group"], "--group", "group")
    assert im.json("verify", *against, "--user", user, code=3)["causes"] == {"edited": 1}
    away = im.run("verify", "--against", files["group"], "--url", DEAD_PORT).expect(3)
    assert "judged by what the files and the outbox tell alone" in away.err
    done = im.json("verify", *against, "--repair", "--yes", code=3)
    assert (done["planned"], done["touched"], done["repaired"]) == (1, 1, 0)
    for name, path in files.items():
        other.ok("consume", name, "--until-empty")
        other.ok("verify", "--export", path, "--group", name)
    assert im.json("verify", *against, "--strict")["in_flight"] == 0


def test_files_that_are_refused(im: InProcess, other: InProcess, tmp_path: Path, template: Path) -> None:
    path = tmp_path / "file"
    assert "add --group group or --group friend" in other.run("verify", "--export", path).expect(2).err
    (other.data / "friend.db").rename(tmp_path / "away.db")
    assert other.json("verify", "--export", path)["projection"] == "group"
    twice = im.run("verify", "--against", path, "--against", path).expect(2)
    assert "two files hold the copies of group" in twice.err
    other.run("verify", "--export", tmp_path / "no folder" / "file", "--group", "group").expect(2)
    other.run("verify", "--export", path, "--group", "group", "--url", DEAD_PORT).expect(4)
    by_hand(im, "user", "UPDATE meta SET value = 'another' WHERE key = 'store_id'")
    assert "copies of another user store" in im.run("verify", "--against", path).expect(2).err
    path.write_bytes(path.read_bytes()[:-30])
    assert im.json("verify", "--against", path, code=2)["error"]["kind"] == "usage"
    assert im.json("verify", "--against", tmp_path / "nothing", code=2)["error"]["kind"] == "usage"


# ── on a terminal ────────────────────────────────────────────────────────────────────────────────────────


def test_a_terminal_of_80_columns_shows_whole_ids(im: InProcess) -> None:
    users = members(im)[:4]
    rename(im, users[0])
    by_hand(im, "group", "UPDATE user_profile_replica SET version = 12345678 WHERE user_id = ?", users[1])
    by_hand(im, "group", "UPDATE user_profile_replica SET version = ? WHERE user_id = ?", MAX, users[2])
    by_hand(im, "friend", "UPDATE user_profile_replica SET nick_name = 'x' WHERE user_id = ?", users[3])
    screen = im.on_a_terminal("verify", "--repair", answer="n\n").expect(1).out.splitlines()
    for user in users:
        assert any(line.split()[:1] == [str(user)] for line in screen), screen
    assert [line for line in screen if len(line.rstrip()) > 80 and "[y/N]" not in line] == []  # the echo is elsewhere
    assert any("2^63-1" in line for line in screen)
    assert any("publish 3 users anew, under a higher version each? [y/N]" in line for line in screen)
    assert im.query("user", "SELECT count(*) FROM outbox") == [(0,)]
