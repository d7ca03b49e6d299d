"""`imsync report`: the page from a live system, from a recording, and from what is left of either."""

from __future__ import annotations

import errno
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

from tests.acceptance.driver import Imsync
from tests.pages import EVIL, Parsed, check

DEAD_PORT = "redis://127.0.0.1:1"
QUICK = ("--for", "600ms")


def made(im: Imsync, *words: object, code: int = 0) -> tuple[dict[str, Any], Parsed]:
    """The result, and the page, which must be whole and harmless."""
    file = im.folder / "report.html"
    result: dict[str, Any] = im.json("report", "--html", file, *words, code=code)
    assert result["bytes"] == file.stat().st_size
    return result, check(file.read_text())


def recording(im: Imsync, count: int = 3) -> Path:
    file = im.folder / "samples"
    im.ok("status", "--watch", "--interval", "100ms", "--count", count, "--record", file)
    return file


def test_a_page_of_a_live_system(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 30)
    im.ok("consume", "group", "--until-empty")
    im.ok("consume", "friend", "--until-empty")
    result, page = made(im, *QUICK)
    assert (result["samples"], result["drift"], result["in_flight"], result["problems"]) == (2, 0, 0, 0)
    assert result["healthy"] is True
    assert result["first"] < result["last"]
    for words in ("healthy", "No drift", "the accounts close", "Throughput", "edits over 48 h"):
        assert words in page.text
    assert "needs attention" not in page.text


def test_what_is_wrong_is_on_the_page_with_what_helps(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 30, "--invalid", 0.1)
    im.ok("consume", "group", "--until-empty")
    with closing(sqlite3.connect(im.data / "group.db")) as store, store:
        store.execute("UPDATE im_group_member SET user_nick_name = 'by hand'")
    result, page = made(im, *QUICK)
    assert result["healthy"] is False
    assert result["drift"] > 0
    assert result["in_flight"] > 0
    for words in ("needs attention", "dead letters", "imsync dead list --group group", f"{result['drift']:,} drifted"):
        assert words in page.text
    result, page = made(im, *QUICK, "--no-verify")
    assert (result["drift"], result["in_flight"]) == (None, None)
    assert "not compared: left out with --no-verify" in page.text


def test_hostile_names_from_a_live_system(inside: Imsync) -> None:
    im = inside
    name = EVIL.replace("\x00", "").encode(errors="surrogateescape")
    with im.client() as client:
        client.xadd(im.stream, {"event": "x"})
        client.xgroup_create(im.stream, name, "0")
        client.xreadgroup("group", name, {im.stream: ">"})
        key = im.keys.alive("group", "").encode() + name
        client.set(key, json.dumps({"host": EVIL[:60], "pid": 1, "since": 1}))
        client.set(key.replace(b":alive:", b":vitals:"), json.dumps({"last_error": EVIL[:60], "last_error_ms": 1}))
    _, page = made(im, *QUICK)
    assert "<script>alert(1)</script>" in page.text


def test_a_page_of_a_recording_alone(inside: Imsync) -> None:
    """On a machine that has nothing else."""
    im = inside
    im.ok("publish", "user-update", "--count", 5)
    file = recording(im)
    with file.open("a") as more:
        more.write("cut sho\n")
    im.set(DATA_DIR=str(im.folder / "nothing"), URL="")
    done = im.run("report", "--html", im.folder / "r.html", "--samples", file, "--json").expect(0)
    assert "1 lines of" in done.err
    assert "the state is the last recorded one" in done.err
    result = done.json()
    assert (result["samples"], result["drift"]) == (3, None)
    page = check((im.folder / "r.html").read_text())
    assert "user.db, group.db, friend.db not here" in page.text
    assert not (im.folder / "nothing").exists(), "and nothing was started for it"
    im.set(URL=DEAD_PORT)
    assert im.json("report", "--html", im.folder / "r.html", "--samples", file)["samples"] == 3


def test_a_recording_and_the_state_of_now(inside: Imsync) -> None:
    im = inside
    file = recording(im)
    im.ok("publish", "user-update", "--count", 5)
    result, page = made(im, "--samples", file)
    assert result["samples"] == 3, "one more look is no sample"
    assert "stream5entries" in page.text
    assert made(im, "--samples", file, *QUICK)[0]["samples"] == 5


def test_what_cannot_be_is_said(inside: Imsync) -> None:
    im = inside
    page = im.folder / "r.html"
    assert im.json("report", "--html", page, "--url", DEAD_PORT, code=4)["error"]["kind"] == "redis_unreachable"
    usage = [
        ("--html", im.folder),
        ("--html", "/dev/null"),
        ("--html", im.folder / "nobody" / "r.html", *QUICK),
        ("--html", page, "--samples", im.folder / "nothing"),
        ("--html", page, "--for", "soon"),
        (),
    ]
    for words in usage:
        assert im.json("report", *words, code=2)["error"]["kind"] == "usage"
    assert not page.exists()
    im.set(DATA_DIR=str(im.folder / "nothing"), URL="")
    assert im.json("report", "--html", page, code=5)["error"]["kind"] == "store_unusable"


def test_a_page_is_written_whole_or_not_at_all(inside: Imsync) -> None:
    im = inside
    folder = im.folder / "pages"
    folder.mkdir()
    (folder / "r.html").write_text("the one before")
    (folder / "link").symlink_to(folder / "r.html")
    im.ok("report", "--html", folder / "link", *QUICK)
    assert (folder / "link").is_symlink()
    assert (folder / "r.html").read_text().startswith("<!doctype html>")
    (folder / "r.html").write_text("the one before")
    full = OSError(errno.ENOSPC, "No space left on device")
    for step in ("os.fsync", "os.replace"):
        with mock.patch(step, side_effect=full):
            error = im.json("report", "--html", folder / "r.html", *QUICK, code=2)["error"]
        assert "No space left" in error["message"]
        assert (folder / "r.html").read_text() == "the one before"
    assert sorted(path.name for path in folder.iterdir()) == ["link", "r.html"]
