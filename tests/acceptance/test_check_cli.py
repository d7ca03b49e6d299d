"""`imsync check` as monitoring runs it."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from imsync.telemetry.names import CHECK
from tests.acceptance.driver import Imsync

DEAD_PORT = "redis://127.0.0.1:1"


def gauges(text: str) -> dict[tuple[str, str], float]:
    """The values by name and group, as Prometheus reads them."""
    return {
        (sample.name, sample.labels.get("group", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "quantile" not in sample.labels
    }


def test_a_check_follows_what_happens(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 12, "--invalid", 0.1)
    said = im.ok("check")
    assert said.out.splitlines()[0] == "ok: all 13 checks"
    assert im.ok("check", "--max-lag", 20).out.splitlines()[0] == "ok: all 2 checks"
    done = im.run("check", "--max-lag", 5, "--max-lag-seconds", 3600).expect(3)
    assert done.out.splitlines()[0].startswith("2 failed of 4 checks: the lag of group is above the bound; ")
    assert "  try: imsync consume group\n" in done.out
    im.ok("consume", "group", "--until-empty")
    dead = im.json("check", "--max-lag", 5, "--max-dead", 0, code=3)
    assert {(each["group"], each["name"]): each["verdict"] for each in dead["checks"]} == {
        ("group", "lag"): "ok", ("group", "dead"): "failed", ("friend", "lag"): "failed", ("friend", "dead"): "ok",
    }  # fmt: skip
    assert (dead["failed"], dead["unknown"], dead["healthy"]) == (2, 0, False)
    assert "error" not in dead
    by_default = im.json("check", code=3)
    assert {each["name"] for each in by_default["checks"] if each["verdict"] == "failed"} == {"dead"}
    again = im.run("check", "--format", "json").expect(3).json()
    assert [each["verdict"] for each in again["checks"]] == [each["verdict"] for each in by_default["checks"]]


def test_prometheus_reads_it(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 12)
    im.ok("consume", "group", "--until-empty")
    done = im.ok("check", "--format", "prometheus")
    found = gauges(done.out)
    assert found["imsync_group_lag_entries", "friend"] == found["imsync_stream_entries", ""] == 12
    assert found["imsync_group_lag_entries", "group"] == found["imsync_group_unexplained_events", "group"] == 0
    assert found["imsync_healthy", ""] == 1
    assert {name for name, _ in found} == {each.name for each in CHECK} - {"imsync_group_staleness_seconds"}
    assert 'imsync_group_staleness_seconds{group="group",quantile="0.99"}' in done.out
    assert 'imsync_group_staleness_seconds{group="friend"' not in done.out, "nothing was ever copied"
    failed = im.run("check", "--format", "prometheus", "--max-lag", 5).expect(3)
    assert gauges(failed.out)["imsync_healthy", ""] == 0


def test_without_redis_nothing_is_green(stores: Imsync) -> None:
    done = stores.json("check", "--url", DEAD_PORT, code=4)
    assert (done["error"]["kind"], done["healthy"]) == ("redis_unreachable", False)
    assert {each["name"]: each["verdict"] for each in done["checks"]} == {"redis": "unknown", "outbox_age": "ok"}
    assert stores.run("check", "--max-outbox-age", 60, "--url", DEAD_PORT).code == 0, "which is known here"
    done = stores.run("check", "--format", "prometheus", "--url", DEAD_PORT).expect(4)
    assert gauges(done.out) == {
        ("imsync_outbox_unsent_rows", ""): 0, ("imsync_outbox_oldest_seconds", ""): 0, ("imsync_healthy", ""): 0,
    }  # fmt: skip
    assert "cannot reach Redis" in done.err


def test_without_a_store_what_it_knows_is_not_green(inside: Imsync) -> None:
    im = inside
    im.set(DATA_DIR=str(im.folder / "nothing"))
    done = im.json("check", code=5)
    assert "error" not in done, "nothing is in trouble: it is elsewhere"
    assert {each["name"] for each in done["checks"] if each["verdict"] == "unknown"} == {
        "conflicts", "lost", "unexplained", "outbox_age",
    }  # fmt: skip
    assert im.json("check", "--max-lag", 0, "--max-dead", 0, "--max-pending-age", 0)["healthy"]
    said = im.run("check").expect(5).out
    assert "give the bounds that can be known here, such as --max-lag" in said


def test_a_store_that_is_locked_is_not_green(inside: Imsync) -> None:
    im = inside
    (im.data / "user.db").write_bytes(b"not a database" * 1000)
    done = im.json("check", code=5)
    assert done["error"]["kind"] == "store_unusable"
    assert im.json("check", "--max-lag", 0)["healthy"]


def test_bad_usage(bare: Imsync, inside: Imsync) -> None:
    for words in (("--max-lag", "-1"), ("--max-lag-seconds", "nan"), ("--format", "yaml"), ("--max-dead", "few")):
        assert inside.json("check", *words, code=2)["error"]["kind"] == "usage"
    assert inside.run("check", "--max-lag-seconds", "nan").expect(2).out == ""


def test_errors_are_of_the_form_that_was_asked_for(inside: Imsync) -> None:
    inside.set(DATA_DIR=str(inside.folder / "nothing"), URL="")
    for words in (("--json",), ("--format", "json")):
        assert inside.run("check", *words).expect(5).json()["error"]["kind"] == "store_unusable"
    done = inside.run("check").expect(5)
    assert (done.out, "there are no stores" in done.err) == ("", True)
