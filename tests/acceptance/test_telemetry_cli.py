"""Metrics over HTTP, JSON logs and traces of real processes, while events flow and while there is trouble."""

from __future__ import annotations

import json
import re
import select
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from imsync.telemetry import names
from tests.acceptance.driver import CHECKOUT, Done, Imsync, hidden_characters
from tests.acceptance.hostile import HOSTILE
from tests.grafana import OF_PROMETHEUS, QUERIES
from tests.promql import parse
from tests.servers import Server, StartServer, eventually

Process = subprocess.Popen[str]


def next_line(process: Process) -> str:
    """The next line on a process's stderr."""
    stderr = process.stderr
    assert stderr is not None
    eventually(lambda: select.select([stderr], [], [], 0)[0])
    return stderr.readline()


def served(process: Process) -> str:
    """The URL of the metrics of a process that was started with port 0."""
    found = re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", next_line(process))
    assert found is not None
    return found[1]


def stopped(im: Imsync, process: Process) -> Done:
    """Sends SIGTERM to a process once it heeds it, and waits for its end."""
    status = Path(f"/proc/{process.pid}/status")
    caught = 1 << (signal.SIGTERM - 1)
    eventually(lambda: int(re.findall(r"^SigCgt:\s*(\w+)", status.read_text(), re.M)[0], 16) & caught)
    return im.end(process, signal.SIGTERM).expect(0)


class Scrape:
    """What one scrape gives, read by Prometheus' own parser."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.headers["Content-Type"].startswith("text/plain")
            text = response.read().decode()
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the series of a name that have these labels."""
        found = [each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()]
        assert found, f"no {name}{labels}"
        return sum(found)

    def labels(self) -> dict[str, set[str]]:
        """The labels of each series."""
        found: dict[str, set[str]] = {}
        for each in self.samples:
            found.setdefault(each.name, set()).update(each.labels)
        return found


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_consumer_is_scraped_while_events_flow(on_server: Imsync) -> None:
    im = on_server
    consumer = im.start("consume", "group", "--metrics-port", 0)
    url = served(consumer)
    eventually(lambda: "imsync_batches_total" in Scrape(url).labels())
    assert Scrape(url).sum("imsync_events_total") == 0
    total = seen = 0
    for seed in range(2):
        made = im.json("publish", "user-update", "--count", 100, "--seed", seed, "--invalid", 0.05)
        total += made["published"] + made["invalid"]
        eventually(lambda goal=total: Scrape(url).sum("imsync_events_total") >= goal)  # type: ignore[misc]
        now = Scrape(url)
        assert now.sum("imsync_events_total") == total > seen
        seen = total
    assert now.sum("imsync_events_total", outcome="dead") == now.sum("imsync_dead_letters_total") == 10
    assert now.sum("imsync_staleness_seconds_count") == now.sum("imsync_events_total", outcome="applied") > 0
    assert now.sum("imsync_staleness_seconds_sum") > 0
    assert now.sum("imsync_batch_entries_sum") == seen
    assert now.sum("imsync_batch_seconds_count") == now.sum("imsync_batches_total")
    assert now.sum("imsync_build_info") == 1
    assert now.sum("process_resident_memory_bytes") > 1e6
    for family in now.families.values():
        assert family.documentation
    done = stopped(im, consumer).json()
    assert done["events"] == seen
    with pytest.raises(urllib.error.URLError):
        Scrape(url)


def test_metrics_are_served_on_loopback_and_nowhere_else(on_server: Imsync) -> None:
    consumer = on_server.start("consume", "group", "--metrics-port", 0)
    url = served(consumer)
    port = int(re.sub(r"\D", "", url.rpartition(":")[2]))
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with pytest.raises(ConnectionRefusedError):  # another address of this machine
        socket.create_connection(("127.0.0.2", port), timeout=5)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(url.replace("/metrics", "/debug"), timeout=5)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as rude:
        rude.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and goes without a word
    assert Scrape(url).samples
    done = stopped(on_server, consumer)
    assert done.err == ""


@pytest.mark.parametrize("command", ["consume group", "relay"])
def test_a_port_that_is_taken_is_told(on_server: Imsync, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = on_server.run(*command.split(), "--metrics-port", port, "--json").expect(2)
    error = done.json()["error"]
    assert error["kind"] == "usage"
    assert error["message"] == f"cannot serve metrics at 127.0.0.1 port {port}: Address already in use"
    assert "--metrics-port" in error["hint"]
    assert done.err == ""
    assert on_server.alive() == []


def test_every_query_asks_for_what_is_really_served(on_server: Imsync) -> None:
    """The dashboard and the rules, against scrapes of a consumer and a relay; what the check prints by its names."""
    im = on_server
    consumer, relay = im.start("consume", "group", "--metrics-port", 0), im.start("relay", "--metrics-port", 0)
    urls = served(consumer), served(relay)
    im.json("publish", "user-update", "--count", 20)
    eventually(lambda: "imsync_batches_total" in Scrape(urls[0]).labels())
    scraped = [Scrape(url).labels() for url in urls]
    for process in (consumer, relay):
        stopped(im, process)
    mine = [{name for name in each if name.startswith("imsync_")} for each in scraped]
    of_both = set(names.BUILD.samples)
    assert mine[0] == {sample for metric in names.CONSUMER for sample in metric.samples} | of_both
    assert mine[1] == {sample for metric in names.RELAY for sample in metric.samples} | of_both
    there_is = scraped[0] | scraped[1] | {m.name: set(m.labels) for m in names.CHECK}
    there_is["node_textfile_mtime_seconds"] = {"file"}  # of node_exporter
    for expression in QUERIES:
        for metric, labels in parse(expression).metrics.items():
            assert metric in there_is, expression
            assert labels - OF_PROMETHEUS <= there_is[metric], expression


def test_a_relay_is_scraped(stores: Imsync, start_server: StartServer) -> None:
    im, server = stores, start_server(appendonly=True)
    im.set(URL=server.url)
    relay = im.start("relay", "--metrics-port", 0)
    url = served(relay)
    im.json("publish", "user-update", "--count", 1, "--url", "redis://127.0.0.1:1")
    eventually(lambda: Scrape(url).sum("imsync_relay_published_total") == 1)
    with im.client() as client:
        client.flushall()
    eventually(lambda: Scrape(url).sum("imsync_relay_resent_total") == 1)
    eventually(lambda: Scrape(url).sum("imsync_relay_published_total") == 2)
    server.kill()
    eventually(lambda: Scrape(url).sum("imsync_relay_troubles_total", kind="redis_unreachable") >= 1)
    assert Scrape(url).sum("imsync_relay_round_trip_seconds_count") >= 2
    stopped(im, relay)


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────


def documented_fields() -> dict[str, str]:
    """The fields of a log line, with their types."""
    lines = (CHECKOUT / "docs" / "telemetry.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| field | type | meaning |")
    rows = [row.split("|") for row in takewhile(lambda line: line.startswith("|"), lines[start + 2 :])]
    return {name: row[2].strip() for row in rows for name in re.findall(r"`(\w+)`", row[1])}


def logged(done: Done) -> list[dict[str, Any]]:
    """The lines of stderr, each as it is documented."""
    types = {"text": str, "integer": int, "number": float}
    fields = documented_fields()
    assert done.err.isascii()
    lines = [json.loads(line) for line in done.err.splitlines()]
    for line in lines:
        assert line.keys() <= fields.keys()
        assert {name for name, kind in fields.items() if "optional" not in kind} <= line.keys()
        for name, value in line.items():
            assert type(value) is types[fields[name].partition(",")[0]], (name, value)
            assert not isinstance(value, str) or not hidden_characters(value) | ({"\n"} & set(value))
        assert line["time"].endswith("Z")
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    return lines


def test_every_line_of_a_consumer_in_trouble_is_an_object(stores: Imsync, start_server: StartServer) -> None:
    secret = "correct-horse-battery"
    im, server = stores, start_server(appendonly=True, requirepass=secret)
    im.set(URL=server.url, PASSWORD=secret, CONSUMER_HEARTBEAT_MS="250", LOG_FORMAT="json")
    im.secrets.append(secret)
    im.ok("group", "create", "group")
    im.ok("consume", "group", "--until-empty")  # so that the store is its group's before somebody else reads
    with im.client() as client:
        for body in (HOSTILE, json.dumps({"specversion": "1.0", "type": HOSTILE}), "x"):
            client.xadd(im.stream, {"event": body.encode(errors="replace")})
        client.xadd(im.stream, {HOSTILE: HOSTILE})
        client.xreadgroup("group", HOSTILE, {im.stream: ">"}, count=1)
    consumer = im.start("consume", "group")
    with im.client() as client:
        eventually(lambda: client.xlen(im.keys.dead("group")) == 4)
        client.xtrim(im.stream, maxlen=0)
        client.xgroup_destroy(im.stream, "group")
        eventually(lambda: client.xinfo_groups(im.stream))
    server.kill()
    told = next_line(consumer)
    while '"redis_unreachable"' not in told:
        told += next_line(consumer)
    server.start()
    done = stopped(im, consumer)
    lines = logged(im.checked((), 0, "", told + done.err))
    name = done.json()["consumer"]
    dead = [line for line in lines if "reason" in line]
    assert {line["reason"] for line in dead} == {"bad_json", "unknown_type", "no_event_field"}
    assert {(line["level"], line["group"], line["consumer"]) for line in dead} == {("error", "group", name)}
    assert all(re.fullmatch(r"\d+-\d+", line["entry_id"]) and line["entries"] >= 1 for line in dead)
    troubles = [line for line in lines if "delay_seconds" in line]
    assert {line["kind"] for line in troubles} >= {"redis_unreachable", "group_missing"}
    for line in troubles:
        assert (line["level"], line["logger"], line["group"], line["consumer"]) == (
            "warning", "imsync.cli", "group", name,
        )  # fmt: skip
    assert any("created again" in line["message"] for line in lines)


def test_errors_are_objects_too(stores: Imsync, server: Server) -> None:
    """Usage, configuration, Redis: with --json the error is the result, without it is a line on stderr."""
    im = stores
    im.set(URL=server.url)
    for words, kind, code in (
        (["status", "--nonsense", "--log-format", "json"], "usage", 2),
        (["status", "--log-level", "loud", "--log-format=json"], "config", 2),
        (["dead", "list", "--url", "redis://127.0.0.1:1", "--log-format", "json"], "redis_unreachable", 4),
    ):
        done = im.run(*words).expect(code)
        (line,) = logged(done)
        assert (line["level"], line["kind"], done.out) == ("error", kind, "")
    done = im.run("status", "--nonsense", "--log-format", "json", "--json").expect(2)
    assert (done.json()["error"]["kind"], done.err) == ("usage", "")
    assert im.run("status", "--log-format", "xml").expect(2).err == (
        "imsync: flag --log-format: log_format must be text or json\n"
    )


def test_the_format_may_stand_in_the_configuration(stores: Imsync) -> None:
    (stores.folder / "imsync.toml").write_text('log_format = "json"\n')
    stores.set(URL="redis://127.0.0.1:1")
    done = stores.run("publish", "user-update", "--user", stores.users()[0], "--nick-name", "x").expect(0)
    (line,) = logged(done)
    assert "kept in the outbox" in line["message"]
    assert stores.run(
        "publish", "user-update", "--user", stores.users()[0], "--nick-name", "y", "--log-format", "text"
    ).err.startswith("imsync: ")


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────────

LAUNCHER = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

provider = TracerProvider()
exporter = ConsoleSpanExporter(out=open(sys.argv[1], "w"), formatter=lambda span: span.to_json(indent=None) + "\\n")
provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
from imsync.cli import main
main(sys.argv[2:])
"""
"""Configures a tracer provider and runs a command, as OpenTelemetry's launcher does."""

WITHOUT = """
import sys
import opentelemetry.trace
from imsync.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "imsync.telemetry.tracing" not in sys.modules
"""


def run(im: Imsync, script: str, *args: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=im.folder, env=im.environ | {"PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def spans(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """What a command recorded."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    return read


def test_commands_under_a_tracer_provider_continue_one_trace(
    on_server: Imsync, tmp_path: Path, spans: Callable[[str], list[dict[str, Any]]]
) -> None:
    im = on_server
    user = im.users()[0]
    edit = ("publish", "user-update", "--user", user, "--nick-name")
    run(im, LAUNCHER, tmp_path / "publish", *edit, "traced")
    for service in ("group", "friend"):
        run(im, LAUNCHER, tmp_path / service, "consume", service, "--until-empty")
    published = {span["name"]: span for span in spans("publish")}
    create = published["create user-update"]
    assert published["send user-update"]["links"][0]["context"]["span_id"] == create["context"]["span_id"]
    for service in ("group", "friend"):
        (process,) = [span for span in spans(service) if span["name"] == "process user-update"]
        assert process["context"]["trace_id"] == create["context"]["trace_id"]
        assert process["parent_id"] == create["context"]["span_id"]
        assert process["attributes"]["messaging.consumer.group.name"] == service
    run(im, WITHOUT, *edit, "untraced")
    run(im, WITHOUT, "consume", "group", "--until-empty")
    traced, untraced = (json.loads(body) for (body,) in im.query("user", "SELECT body FROM outbox ORDER BY seq"))
    assert ("traceparent" in traced, "traceparent" in untraced) == (True, False)
