"""`dead list|show|purge` and `replay dead`: found, looked at, redriven or let go, and the accounts close."""

from __future__ import annotations

import base64
import signal
import time
from typing import Any

import pytest

from tests.acceptance.driver import Imsync
from tests.acceptance.inprocess import InProcess
from tests.letters import accounts, bury, consume, edit, letters
from tests.servers import eventually
from tests.stores import sql


def listed(im: Imsync, *args: object) -> list[dict[str, Any]]:
    return im.run("dead", "list", *args, "--json").expect(0).rows()


@pytest.fixture
def buried(on_server: Imsync) -> InProcess:
    """Three events of two users that the group service gave up, and that the friend service applied."""
    im = InProcess.of(on_server)
    one, two, *_ = im.users()
    edit(im, (one, "Mia"), (two, "Noah"), (one, "Mia the second"))
    bury(im)
    consume(im, "friend")
    return im


def test_the_list_says_whom_a_letter_is_about_and_whether_anybody_needs_it(buried: InProcess) -> None:
    im = buried
    one, two, *_ = im.users()
    rows = listed(im)
    assert [(r["user"], r["version"], r["reason"], r["superseded"]) for r in rows] == [
        (one, 2, "max_attempts", False), (two, 2, "max_attempts", False), (one, 3, "max_attempts", False),
    ]  # fmt: skip
    assert all(r["type"] == "im.user.updated.v1" and 0 <= r["age_seconds"] < 60 for r in rows)
    assert [r["version"] for r in listed(im, "--user", one)] == [2, 3]
    assert [r["id"] for r in listed(im, "--id", rows[1]["id"], "--id", rows[2]["source_id"])] == [
        rows[1]["id"], rows[2]["id"]
    ]  # fmt: skip
    assert listed(im, "--reason", "invalid") == listed(im, "--group", "friend") == listed(im, "--since", "0s") == []
    assert len(listed(im, "--since", "1h", "--reason", "max_attempts", "--limit", 2)) == 2
    words = im.ok("dead", "list", "--limit", 2).out
    assert f"user {two}, version 2; im.user.updated.v1; entry {rows[1]['source_id']}, delivered once" in words
    assert "there are more" in words
    assert im.ok("dead", "list", "--user", 1).out == "no dead letters match\n"


def test_redriving_applies_to_the_groups_own_store_and_leaves_the_stream_alone(buried: InProcess) -> None:
    im = buried
    one, two, *_ = im.users()
    with im.client() as client:
        length = client.xlen(im.stream)
    plan = im.json("replay", "dead", "--dry-run")
    assert [(e["user"], e["version"], e["predicted"], e["result"]) for e in plan["entries"]] == [
        (one, 2, "superseded", None), (two, 2, "applied", None), (one, 3, "applied", None),
    ]  # fmt: skip
    assert (plan["planned"], plan["applied"], plan["dry_run"]) == (3, 0, True)
    assert accounts(im)["dead"] == 3, "a dry run changes nothing"
    refused = im.run("replay", "dead", "--json").expect(2).json()["error"]
    assert "redrive 3 dead letters?" in refused["message"]

    done = im.json("replay", "dead", "--yes")
    assert [e["result"] for e in done["entries"]] == [e["predicted"] for e in plan["entries"]]
    assert [done[name] for name in ("planned", "applied", "superseded", "duplicates", "dead", "gone")] == [
        3, 2, 1, 0, 0, 0
    ]  # fmt: skip
    assert im.json("status")["healthy"]
    after = accounts(im)
    assert [after[name] for name in ("applied", "superseded", "dead", "unexplained", "foreign")] == [2, 1, 0, 0, 0]
    assert im.wrong_copies() == []
    with im.client() as client:
        assert client.xlen(im.stream) == length
    assert im.ok("replay", "dead").out == "no dead letters\n"


def test_what_nobody_could_decode_then_is_redriven_without_a_trace(on_server: Imsync) -> None:
    from imsync.im.events import User2GroupEvent
    from imsync.im.user_store import UserStore

    im = InProcess.of(on_server)
    one, two, *_ = im.users()
    store = UserStore(im.data / "user.db")
    store.delete_user(one)
    store.close()
    edit(im, (two, "Noah"))
    bury(im, events=[User2GroupEvent])  # knows no tombstones
    consume(im, "friend")
    assert [(r["reason"], r["user"], r["version"]) for r in listed(im)] == [
        ("unknown_type", one, 2), ("max_attempts", two, 2),
    ]  # fmt: skip
    assert accounts(im)["foreign"] == 1
    assert im.json("replay", "dead", "--yes")["applied"] == 2
    after = accounts(im)
    assert [after[name] for name in ("published", "applied", "dead", "foreign", "unexplained")] == [2, 2, 0, 0, 0]
    assert after["problems"] == []


def test_what_is_still_bad_stays_and_says_why(buried: InProcess) -> None:
    im = buried
    with im.client() as client:
        client.xadd(im.stream, {"event": "not JSON"})
    consume(im, "group")
    done = im.json("replay", "dead", "--yes", code=1)
    assert (done["applied"], done["superseded"], done["dead"], done["failed"]) == (2, 1, 1, 0)
    (left,) = letters(im)
    assert (left.reason, done["entries"][-1]["result"]) == ("bad_json", "bad")
    assert "Invalid JSON" in done["entries"][-1]["result_reason"]
    words = im.run("replay", "dead", "--yes").expect(1).out
    assert f"group {left.id} stays: bad_json: Invalid JSON" in words
    assert "imsync dead purge lets go of it" in " ".join(words.split())
    assert words.splitlines()[-1] == "1 still bad"


def test_a_redrive_that_is_killed_before_it_deletes_is_a_repeat_the_next_time(buried: InProcess) -> None:
    im = buried
    consume(im, "group")  # the store is bound by now, so a redrive first writes its generation
    with im.client() as client:
        client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
        try:
            process = im.start("replay", "dead", "--yes")
            eventually(lambda: ("applied", 2) in im.query("group", "SELECT outcome, count(*) FROM settled GROUP BY 1"))
            process.send_signal(signal.SIGKILL)
            process.wait()
        finally:
            client.execute_command("CLIENT", "UNPAUSE")
    assert len(letters(im)) == 3, "committed, and not deleted"
    assert all(each["superseded"] for each in listed(im))
    done = im.json("replay", "dead", "--yes")
    assert (done["planned"], done["duplicates"], done["applied"]) == (3, 3, 0)
    after = accounts(im)
    assert [after[name] for name in ("applied", "superseded", "dead", "unexplained")] == [2, 1, 0, 0]
    assert im.wrong_copies("group") == []
    assert letters(im) == []


def test_a_rate_is_kept_and_a_signal_ends_it(buried: InProcess) -> None:
    im = buried
    began = time.monotonic()
    assert im.json("replay", "dead", "--yes", "--limit", 2, "--rate", 4)["planned"] == 2
    assert time.monotonic() - began > 0.25
    edit(im, *((user, "anew") for user in im.users()[2:7]))
    bury(im)
    left = len(letters(im))
    process = im.start("replay", "dead", "--yes", "--rate", "0.01")
    eventually(lambda: len(letters(im)) < left)
    done = im.end(process, signal.SIGTERM).expect(0).json()
    assert done["applied"] + done["superseded"] == left - len(letters(im)) == 1
    assert [e["result"] for e in done["entries"]].count(None) == left - 1


def test_a_store_that_is_not_the_groups_is_refused(buried: InProcess) -> None:
    im = buried
    consume(im, "group")
    sql(im.data / "group.db", "UPDATE meta SET value = 'somebody else' WHERE key = 'store_id'")
    for flags in ((), ("--dry-run",)):
        error = im.run("replay", "dead", "--yes", *flags, "--json").expect(5).json()["error"]
        assert error["kind"] == "store_mismatch"
        assert "imsync rebuild group" in error["hint"]
    assert len(letters(im)) == 3


# ── showing and purging ──────────────────────────────────────────────────────────────────────────────


def test_a_letter_is_shown_whole(buried: InProcess) -> None:
    im = buried
    first = listed(im)[0]
    (shown,) = im.run("dead", "show", first["id"], "--json").expect(0).rows()
    assert {**first, "age_seconds": 0} == {k: 0 if k == "age_seconds" else v for k, v in shown.items() if k in first}
    assert shown["event"]["data"]["nickName"] == "Mia"
    assert base64.b64decode(shown["raw_base64"]["event"]).decode() == shown["raw"]["event"]
    assert (shown["predicted"], shown["predicted_reason"], shown["applied_version"]) == ("applied", None, 1)
    words = im.ok("dead", "show", first["source_id"]).out
    for part in ("reason      max_attempts", "raised at   letters.py:", "redriven    applied", "nickName = Mia"):
        assert part in words
    im.run("dead", "show", "1-1").expect(2)
    im.run("dead", "show", "x").expect(2)


def test_letters_of_both_services_are_shown(on_server: Imsync) -> None:
    im = InProcess.of(on_server)
    edit(im, (im.users()[0], "Mia"))
    bury(im, "group")
    bury(im, "friend")
    entry = listed(im)[0]["source_id"]
    assert [r["group"] for r in im.run("dead", "show", entry, "--json").expect(0).rows()] == ["group", "friend"]
    assert [r["group"] for r in im.run("dead", "show", entry, "--group", "friend", "--json").rows()] == ["friend"]


def test_purging_takes_only_letters_and_only_those_that_were_meant(buried: InProcess) -> None:
    im = buried
    one = im.users()[0]
    ids = [each.id for each in letters(im)]
    before = im.query("group", "SELECT * FROM tally ORDER BY 1, 2"), im.query("group", "SELECT * FROM settled")
    assert "say which" in im.run("dead", "purge", "--yes").expect(2).err
    plan = im.json("dead", "purge", "--user", one, "--dry-run")
    assert (plan["planned"], plan["purged"], len(letters(im))) == (2, 0, 3)
    assert [(e["user"], e["superseded"]) for e in plan["entries"]] == [(one, False)] * 2
    im.run("dead", "purge", "--all", "--json").expect(2)  # nobody to ask
    assert im.json("dead", "purge", "--superseded", "--yes")["planned"] == 0
    assert im.json("dead", "purge", "--user", one, "--yes")["purged"] == 2
    assert [each.id for each in letters(im)] == [ids[1]]
    words = im.ok("dead", "purge", "--all", "--yes").out
    assert "1 dead letter deleted; in the accounts their events stay settled as dead" in words
    after = im.query("group", "SELECT * FROM tally ORDER BY 1, 2"), im.query("group", "SELECT * FROM settled")
    assert after == before
    assert (accounts(im)["dead"], accounts(im)["problems"]) == (3, []), "status is green, and the accounts remember"
    assert im.json("verify", code=3)["drift"] == 2


def test_a_newer_version_makes_a_letter_safe_to_drop(buried: InProcess) -> None:
    im = buried
    one = im.users()[0]
    ids = [each.id for each in letters(im)]
    edit(im, (one, "Mia the third"))
    consume(im, "group")
    words = im.ok("dead", "list").out
    assert words.count("safe to drop: version 4 is applied already") == 2
    assert words.splitlines()[-1] == "3 dead letters; 2 safe to drop: imsync dead purge --superseded"
    assert im.json("dead", "purge", "--superseded", "--yes")["purged"] == 2
    assert [each.id for each in letters(im)] == [ids[1]]


def test_without_the_store_nobody_can_tell(buried: InProcess) -> None:
    im = buried
    for file in im.data.glob("group.db*"):
        file.rename(im.folder / file.name)
    assert [r["superseded"] for r in listed(im)] == [None] * 3
    assert "nobody can tell" in im.run("dead", "list").expect(0).err
    im.run("replay", "dead", "--yes").expect(5)
    assert im.json("dead", "purge", "--superseded", "--yes")["planned"] == 0
