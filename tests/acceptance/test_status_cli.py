"""`imsync status` on hosts that have only some of the stores, and in every state that somebody is woken for."""

from __future__ import annotations

import json
import signal
import socket
import time
from datetime import datetime
from typing import Any

from imsync.bus import Bus
from imsync.embedded import EmbeddedServer
from imsync.im.events import DESTINATION
from imsync.im.workspace import Workspace
from tests.acceptance.driver import Imsync, freeze
from tests.servers import eventually

LAST = f"{2**64 - 1}-{2**64 - 1}"


def kinds(status: dict[str, Any]) -> list[str]:
    return [each["kind"] for each in status["problems"]]


def vitals(im: Imsync, consumer: str) -> dict[str, Any]:
    """What a consumer of the group service tells of its work, by its key."""
    with im.client() as client:
        told = client.get(im.keys.vitals("group", consumer))
    return {} if told is None else dict(json.loads(told))


def without(im: Imsync, *stores: str) -> None:
    """Makes it a host that never had these stores."""
    for name in stores:
        for path in im.data.glob(f"{name}.db*"):
            path.unlink()


# ── some of the stores ───────────────────────────────────────────────────────────────────────────────────


def test_a_host_with_one_service_sees_what_redis_knows_of_the_other(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 9)
    im.ok("consume", "group", "--until-empty")
    without(im, "user", "friend")
    status = im.json("status")
    group, friend = status["groups"]
    assert (group["store"], friend["store"]) == ("here", "elsewhere")
    assert (friend["lag"], friend["accounting"], friend["outcomes"], friend["staleness"]) == (9, None, None, None)
    assert group["outcomes"]["applied"] + group["outcomes"]["superseded"] == 9
    assert (group["accounting"], group["lag"]) == (None, 0), "what was published, only the user store knows"
    assert group["staleness"]["p99_ms"] > 0
    assert (status["outbox"], status["elsewhere"]) == (None, ["user", "friend"])
    said = im.ok("status").out
    assert f"user.db and friend.db are not in {im.data}" in said
    assert "outbox:" not in said


def test_a_host_without_stores_sees_what_redis_knows(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 9)
    consumer = im.start("consume", "group", "--name", "ann")
    eventually(lambda: vitals(im, "ann").get("events") == 9)
    im.set(DATA_DIR=str(im.folder / "nothing"))
    status = im.json("status")
    assert [(each["lag"], each["store"]) for each in status["groups"]] == [(0, "elsewhere"), (9, "elsewhere")]
    (ann,) = status["groups"][0]["members"]
    assert ann["events"] == 9
    assert (ann["consumer"], ann["alive"], ann["host"], ann["pid"]) == ("ann", True, socket.gethostname(), consumer.pid)
    assert (ann["troubles"], ann["last_error"]) == (0, None)
    assert ann["since"] < ann["last_batch"]
    said = im.ok("status").out
    assert f"ann ({socket.gethostname()}, pid {consumer.pid})" in said
    assert not (im.folder / "nothing").exists()


def test_where_a_relay_was_at_work_the_user_store_is_not_elsewhere(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 1)
    (im.data / "user.db").unlink()
    status = im.json("status", code=5)
    assert (kinds(status), status["error"]["kind"]) == (["store_unusable"], "store_unusable")
    assert "there is no user store" in status["problems"][0]["what"]


def test_a_damaged_store_does_not_hide_the_rest(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 9)
    (im.data / "group.db").write_bytes(b"not a database" * 1000)
    status = im.json("status", code=5)
    group, friend = status["groups"]
    assert (group["store"], group["accounting"], group["lag"]) == ("unusable", None, 9)
    assert friend["accounting"]["published"] == 9
    assert (status["outbox"]["unsent"], status["healthy"]) == (0, False)
    assert status["problems"][0]["group"] == "group"
    said = im.run("status").expect(5).out
    assert "damaged" in said
    assert "outbox: 0 unsent" in said
    (im.data / "user.db").write_bytes(b"not a database" * 1000)
    assert im.json("status", code=5)["outbox"] is None
    assert "outbox: unknown" in im.run("status").expect(5).out


# ── what somebody is woken for ───────────────────────────────────────────────────────────────────────────


def age_outbox(im: Imsync, seconds: int = 60) -> None:
    """Makes what waits in the outbox older than it is."""
    with im.locked("user") as store:
        store.execute("UPDATE outbox SET created_ms = created_ms - ? WHERE sent_ms IS NULL", (seconds * 1000,))
        store.execute("COMMIT")


def test_a_relay_that_is_stopped_is_named(inside: Imsync) -> None:
    im = inside
    relay = im.start("relay")
    lock = im.data / "user.db.relay-lock"
    eventually(lambda: lock.exists() and f'"pid": {relay.pid}' in lock.read_text())
    freeze(relay)
    assert im.json("publish", "user-update", "--count", 3)["outbox"] > 0
    age_outbox(im)
    (problem,) = im.json("status", code=3)["problems"]
    assert problem["what"].endswith(f"the relay that holds it is stopped (pid {relay.pid})")
    assert problem["remedy"].startswith(f"kill -CONT {relay.pid}; ")
    relay.kill()
    relay.wait()
    (problem,) = im.json("status", code=3)["problems"]
    assert problem["what"].endswith("in the outbox")
    assert problem["remedy"] == "imsync relay"
    im.ok("relay", "--until-empty")
    assert im.json("status")["healthy"]


def test_a_stream_that_takes_no_more_is_told_of_and_its_remedy_helps(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 5)
    with im.client() as client:
        body = client.xrange(im.stream)[0][1]
        client.xadd(im.stream, body, id=LAST)
    assert kinds(im.json("status", code=3)) == ["stream_full"]
    for service in ("group", "friend"):
        im.ok("consume", service, "--until-empty")
    status = im.json("status", code=3)
    assert kinds(status) == ["stream_full"]
    assert [each["lag"] for each in status["groups"]] == [0, 0]
    kept = im.json("publish", "user-update", "--count", 5, "--seed", 2)
    assert kept["outbox"] == kept["accepted"] > 0
    with im.client() as client:
        client.delete(im.stream)
    im.ok("relay", "--until-empty")
    for service in ("group", "friend"):
        im.ok("consume", service, "--until-empty")
    assert im.json("verify")["drift"] == 0
    assert im.json("status")["healthy"]


def test_what_a_consumer_suffers_from_is_seen_from_elsewhere(inside: Imsync) -> None:
    im = inside
    im.set(STORE_BUSY_TIMEOUT_MS="50")
    consumer = im.start("consume", "group", "--name", "ann")
    with im.locked("group"):
        im.ok("publish", "user-update", "--count", 3)
        eventually(lambda: vitals(im, "ann").get("last_error"))
        (member,) = im.json("status")["groups"][0]["members"]
        assert member["last_error"] == "store_unusable"
        assert member["troubles"] > 0
        assert datetime.fromisoformat(member["last_error_at"]).timestamp() <= time.time()
        assert "store_unusable" in im.ok("status").out
    im.end(consumer, signal.SIGTERM).expect(0)


def test_a_lag_that_nobody_can_tell_is_unknown(inside: Imsync) -> None:
    """More entries than are counted, on a server that does not tell after a deletion."""
    im = inside
    with Bus.from_url(im.url) as bus:
        stream = bus.stream(DESTINATION)
        ids = [each for each in stream.append_many([b"x"] * 10_010) if isinstance(each, str)]
        stream.acknowledge("friend", [each.id for each in stream.read_new("friend", "ann", 2)])
        stream.delete([ids[7]])
        # the consumer that lives here is this test
        bus.client.set(bus.keys(DESTINATION).alive("friend", "ann"), "{}", px=60_000)
    friend = im.run("status", "--json").json()["groups"][1]
    assert (friend["group"], friend["lag"]) == ("friend", None)
    row = next(line for line in im.run("status").out.splitlines() if line.startswith("friend"))
    assert row.split()[1] == "unknown"
    checked = im.json("check", "--max-lag", 100_000, code=4)["checks"]
    assert {each["group"]: each["verdict"] for each in checked} == {"group": "ok", "friend": "unknown"}
    assert im.json("check", "--max-lag", 9_000, code=3)["checks"][1]["verdict"] == "failed", "at least so many"


def test_the_embedded_server_and_all_stores_are_of_one_folder(im: Imsync) -> None:
    """Where imsync starts the server, a store that is missing is lost, and not elsewhere."""
    EmbeddedServer(im.data).start()
    (im.data / "friend.db").unlink()
    status = im.json("status", code=5)
    assert [each["store"] for each in status["groups"]] == ["here", "unusable"]
    assert (status["elsewhere"], kinds(status)) == ([], ["store_unusable"])


def test_a_table_fits_a_narrow_terminal(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 20)
    im.ok("consume", "group", "--until-empty")
    wide = im.run("status").out
    assert "foreign" in wide
    narrow = im.on_a_terminal("status", columns=72).out
    assert "foreign" not in narrow
    assert "published" in narrow
    lines = [line for line in narrow.splitlines() if line.startswith(("group", "friend", "─"))]
    assert len(lines) == 8, "no row is broken in two"
    assert max(map(len, lines)) <= 72


def test_the_store_knows_how_stale_its_copies_were_by_the_hour(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 20)
    im.ok("consume", "group", "--until-empty")
    store = Workspace(im.data).projection("group")
    (hour,) = store.staleness_by_hour()
    assert abs(hour - time.time() / 3600) < 1.1
    rows = im.query("group", "SELECT sum(n) FROM staleness")
    assert sum(store.staleness_by_hour()[hour].values()) == rows[0][0] > 0
    store.close()
