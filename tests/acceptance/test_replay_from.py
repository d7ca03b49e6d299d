"""`replay from`: what the stream holds is applied once more, or the group is set back, as the plan has said."""

from __future__ import annotations

import signal
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from imsync.bus import Bus
from imsync.im.events import DESTINATION
from imsync.im.reapplying import Part, plan
from imsync.im.workspace import Workspace
from tests.acceptance.driver import Imsync
from tests.acceptance.inprocess import InProcess
from tests.letters import accounts, bury, consume, edit
from tests.servers import eventually
from tests.stores import sql


@pytest.fixture
def im(on_server: Imsync) -> InProcess:
    """Stores that are bound to their groups."""
    made = InProcess.of(on_server)
    consume(made, "group", "friend")
    return made


def group_of(result: dict[str, Any], name: str = "group") -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in result["groups"] if each["group"] == name)
    return found


def entry_ids(im: Imsync) -> list[str]:
    with im.client() as client:
        return [entry_id.decode() for entry_id, _ in client.xrange(im.stream)]


def skipped(im: Imsync, group: str = "group") -> None:
    """Somebody has moved the group over what it was never given."""
    with im.client() as client:
        client.xgroup_setid(im.stream, group, "$")


def edits(im: Imsync, number: int) -> list[int]:
    """Edits as many users, and the first one twice; their ids."""
    users = im.users()[:number]
    edit(im, *((user, f"name {user}") for user in users), (users[0], "once more"))
    return users


def test_what_was_settled_is_a_repeat_and_the_plan_says_so(im: InProcess) -> None:
    edits(im, 3)
    consume(im, "group", "friend")
    before = im.query("group", "SELECT * FROM user_profile_replica"), accounts(im)
    words = im.ok("replay", "from", "start", "--group", "group", "--dry-run").out
    assert "group group: 4 entries" in words
    assert "predicted: 4 duplicates" in words
    assert "this would change nothing" in words
    done = im.json("replay", "from", "start", "--yes")
    assert (done["planned"], done["duplicates"], done["applied"]) == (8, 8, 0)
    after = im.query("group", "SELECT * FROM user_profile_replica"), accounts(im)
    assert after == (before[0], before[1] | {"duplicates": 4})


def test_what_the_group_was_never_given_is_applied_as_predicted(im: InProcess) -> None:
    edits(im, 5)
    with im.client() as client:
        client.xadd(im.stream, {"event": "not JSON"})
    skipped(im)
    assert accounts(im)["unexplained"] == 6
    foretold = im.json("replay", "from", "start", "--group", "group", "--dry-run")
    assert group_of(foretold)["predicted"] == {"applied": 5, "superseded": 1, "duplicates": 0, "bad": 1}
    assert (group_of(foretold)["exact"], foretold["applied"]) == (True, 0)
    assert "nobody to ask" in im.run("replay", "from", "start", "--json").expect(2).json()["error"]["message"]
    done = im.json("replay", "from", "start", "--group", "group", "--yes")
    assert {name: done[name] for name in group_of(foretold)["predicted"]} == group_of(foretold)["predicted"]
    assert (done["moved"], done["failed"]) == (0, 0)
    after = accounts(im)
    assert (after["unexplained"], after["applied"], after["problems"]) == (0, 5, [])
    assert im.wrong_copies("group") == []
    with im.client() as client:
        assert client.xlen(im.keys.dead("group")) == 0, "what is no event is left alone"
        ((_, noted),) = client.zrange(im.keys.store("group"), 0, -1, withscores=True)
    assert im.query("group", "SELECT value FROM meta WHERE key = 'generation'") == [(str(int(noted)),)]


def test_only_a_part_and_only_one_user(im: InProcess) -> None:
    users = edits(im, 4)
    ids = entry_ids(im)
    skipped(im)
    result = im.json("replay", "from", ids[1], "--to", ids[2], "--group", "group", "--dry-run")
    found = group_of(result)
    assert (found["entries"], found["first_id"], found["last_id"]) == (2, ids[1], ids[2])
    assert datetime.fromisoformat(found["first_at"]).timestamp() * 1000 == int(ids[1].split("-")[0])
    done = im.json("replay", "from", "1h", "--user", users[0], "--group", "group", "--yes")
    assert (done["planned"], done["applied"], done["superseded"], done["bad"]) == (5, 1, 1, 0)
    versions = dict(im.query("group", "SELECT user_id, version FROM user_profile_replica"))
    assert [versions[user] for user in users] == [3, 1, 1, 1]


def test_points_are_ids_times_and_durations(im: InProcess) -> None:
    edits(im, 1)
    first, last = entry_ids(im)
    milliseconds = int(first.split("-")[0])
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)

    def planned(*args: object) -> int:
        found: int = group_of(im.json("replay", "from", *args, "--dry-run", "--group", "group"))["entries"]
        return found

    assert planned("start") == planned(first) == planned(milliseconds) == planned("1h") == planned("0-0") == 2
    assert planned(last) == 1
    assert planned(at.isoformat()) == planned(at.isoformat().replace("+00:00", "Z")) == 2
    assert planned(at.astimezone().isoformat()) == 2
    assert planned((at + timedelta(days=1)).isoformat()) == planned("now") == 0
    assert planned("start", "--to", first) == 1
    assert planned("start", "--to", (at - timedelta(seconds=1)).isoformat()) == 0
    assert planned(at.replace(tzinfo=None).isoformat()) == 2, "UTC when it names no offset"
    for bad in ("yesterday", "2026-13-01", f"{2**64}-0", "-1h", "12"):
        im.run("replay", "from", "--dry-run", "--", bad).expect(2)
    im.run("replay", "from", "now", "--to", "1h", "--dry-run").expect(2)


def test_an_event_that_was_given_up_is_applied_and_its_letter_is_safe_to_drop(im: InProcess) -> None:
    edits(im, 2)
    bury(im)
    done = im.json("replay", "from", "start", "--group", "group", "--yes")
    assert (done["applied"], done["superseded"]) == (2, 1)
    assert (accounts(im)["dead"], accounts(im)["unexplained"]) == (0, 0)
    assert im.json("dead", "purge", "--superseded", "--yes")["purged"] == 3
    assert accounts(im)["problems"] == []


def test_beyond_its_bound_a_plan_counts_and_says_that_it_is_a_sample(im: InProcess) -> None:
    edits(im, 9)
    with closing(Workspace(im.data).projection("group")) as store, Bus.from_url(im.url) as bus:
        found = plan(bus.stream(DESTINATION), store, Part("-", "+"), batch=2, exact=4)
        assert (found.entries, found.played, found.is_exact) == (10, 4, False)
        assert found.predicted == {"applied": 4}
        whole = plan(bus.stream(DESTINATION), store, Part("-", "+"), batch=5, exact=10)
        assert (whole.entries, whole.played, whole.is_exact) == (10, 10, True)


# ── setting the group back ───────────────────────────────────────────────────────────────────────────


def test_seek_sets_the_group_back_and_leaves_the_work_to_its_consumers(im: InProcess) -> None:
    edits(im, 3)
    with im.client() as client:
        client.xadd(im.stream, {"event": "not JSON"})
    ids = entry_ids(im)
    consume(im, "group")
    edit(im, (im.users()[0], "pending"))
    with im.client() as client:
        client.xreadgroup("group", "somebody", {im.stream: ">"})
    words = im.ok("replay", "from", ids[1], "--seek", "--group", "group", "--dry-run").out
    for part in ("1 pending entry stays as it is", "1 entry that is no event becomes a dead letter once more"):
        assert part in " ".join(words.split())
    assert im.json("replay", "from", ids[1], "--seek", "--group", "group", "--dry-run")["moved"] == 0
    done = im.json("replay", "from", ids[1], "--seek", "--group", "group", "--yes")
    assert (done["moved"], done["applied"], group_of(done)["pending"]) == (1, 0, 1)
    assert len(im.pending()) == 1
    with im.client() as client:
        (info,) = [each for each in client.xinfo_groups(im.stream) if each["name"] == b"group"]
        given = [entry_id.decode() for entry_id, _ in client.xrange(im.stream, b"(" + info["last-delivered-id"], "+")]
    assert given == [*ids[1:], *entry_ids(im)[len(ids) :]]
    consume(im, "group")
    after = accounts(im)
    assert (after["unexplained"], after["applied"]) == (0, 4)
    assert after["duplicates"] >= 3
    assert im.wrong_copies("group") == []


def test_seek_never_moves_forward_over_what_was_not_delivered(im: InProcess) -> None:
    edits(im, 3)
    error = im.run("replay", "from", "now", "--seek", "--yes", "--json").expect(2).json()["error"]
    assert "never be given" in error["message"]
    assert im.json("replay", "from", "start", "--seek", "--yes")["moved"] == 0, "it stands there"
    for more in (("--to", "now"), ("--user", 7)):
        im.run("replay", "from", "start", "--seek", *more).expect(2)
    with im.client() as client:
        client.xgroup_destroy(im.stream, "group")
    im.run("replay", "from", "start", "--seek", "--group", "group", "--yes").expect(4)


def test_nor_when_somebody_sets_it_back_further_before_the_question_is_answered(
    im: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits(im, 3)
    consume(im, "group")
    ids = entry_ids(im)

    def answered(*args: object, **more: object) -> None:
        with im.client() as client:
            client.xgroup_setid(im.stream, "group", "0")

    monkeypatch.setattr("imsync.cli.confirm.confirm", answered)
    im.run("replay", "from", ids[2], "--seek", "--group", "group").expect(2)
    with im.client() as client:
        assert client.xinfo_groups(im.stream)[1]["last-delivered-id"] == b"0-0"


def test_a_refused_store_is_refused_and_rebuild_is_named(im: InProcess) -> None:
    edits(im, 1)
    consume(im, "group")
    sql(im.data / "group.db", "UPDATE meta SET value = 'somebody else' WHERE key = 'store_id'")
    for flags in (("--yes",), ("--dry-run",), ("--seek", "--yes")):
        error = im.run("replay", "from", "start", *flags, "--group", "group", "--json").expect(5).json()["error"]
        assert (error["kind"], "imsync rebuild group" in error["hint"]) == ("store_mismatch", True)


def test_what_was_trimmed_is_said_to_be_gone(im: InProcess) -> None:
    edits(im, 3)
    consume(im, "group", "friend")
    with im.client() as client:
        client.xtrim(im.stream, maxlen=1, approximate=False)
    assert "what has left it cannot be replayed" in im.ok("replay", "from", "start", "--dry-run").out
    assert "cannot be replayed" not in im.ok("replay", "from", entry_ids(im)[0], "--dry-run").out


def test_consumers_at_work_at_the_same_time_are_harmless(im: InProcess) -> None:
    users = im.users()
    edit(im, *((user, f"first {user}") for user in users))
    consumer = im.start("consume", "group", "--batch", 7)
    eventually(lambda: im.alive())
    for number in range(3):
        edit(im, *((user, f"{number} {user}") for user in users))
        done = im.json("replay", "from", "start", "--group", "group", "--yes")
        assert done["failed"] == done["bad"] == 0
    eventually(lambda: accounts(im)["undelivered"] == accounts(im)["pending"] == 0, within=20)
    assert im.end(consumer, signal.SIGTERM).code == 0
    after = accounts(im)
    assert after["applied"] + after["superseded"] == after["published"] == 4 * len(users)
    assert (after["unexplained"], after["conflicts"]) == (0, 0)
    assert im.wrong_copies("group") == []


def test_an_entry_of_the_largest_id_breaks_nothing(im: InProcess) -> None:
    """Anybody who may add one can add it; nothing can be added behind it."""
    edits(im, 1)
    with im.client() as client:
        client.xadd(im.stream, {"event": "not JSON"}, id=f"{2**64 - 1}-{2**64 - 1}")
    for service in ("group", "friend"):
        consume(im, service)
    assert im.json("status", code=3)["groups"][0]["lag"] == 0
    assert im.json("replay", "from", "start", "--dry-run")["planned"] == 6
    assert im.json("replay", "pending", "--min-idle", "0s")["planned"] == 0
    im.ok("dead", "list")


# ── pending entries ──────────────────────────────────────────────────────────────────────────────────


def test_the_plan_of_pending_entries_comes_true(im: InProcess) -> None:
    edits(im, 3)
    with im.client() as client:
        client.xadd(im.stream, {"event": "not JSON"})
        (_, fields), *_ = client.xrange(im.stream)
        client.xadd(im.stream, fields)
        trimmed = client.xadd(im.stream, {"event": "trimmed"})
        client.xreadgroup("group", "somebody", {im.stream: ">"})
        client.xdel(im.stream, trimmed)
    words = im.ok("replay", "pending", "--min-idle", "0s", "--group", "group", "--dry-run").out
    assert [line.split()[-1] for line in words.splitlines()[2:-1]] == [
        "superseded", "applied", "applied", "applied", "bad_json", "duplicate", "lost",
    ]  # fmt: skip
    done = im.json("replay", "pending", "--min-idle", "0s", "--group", "group")
    assert [(e["predicted"], e["predicted_reason"]) for e in done["entries"]][4:] == [
        ("bad", "bad_json"), ("duplicate", None), ("lost", None),
    ]  # fmt: skip
    totals = {name: done[name] for name in ("applied", "superseded", "duplicates", "dead", "lost", "failed")}
    assert totals == {"applied": 3, "superseded": 1, "duplicates": 1, "dead": 1, "lost": 1, "failed": 0}
