"""The benchmark: what it says of its numbers is right, and what does not start ends it with a reason."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import pytest

import bench.server
from bench import results
from bench.__main__ import _check, main
from bench.chart import chart
from bench.figure import AT_LEAST, AT_MOST, Figure, Goal, Result, Row, Side
from bench.figures import figures
from bench.instructions.__main__ import judge
from bench.locks import LockTimes
from bench.server import Server
from bench.stats import Spread, percentile
from bench.table import cells, page_rows, terminal
from bench.traffic import State, bodies
from imsync.bus.codec import Decoder
from imsync.im.events import UserUpdated
from imsync.im.simulator import simulate_edits


@pytest.mark.parametrize(
    ("script", "message"),
    [("exit 3", "ended while starting, with exit code 3"), ("exec sleep 600", "does not listen on .* after 0.3 s")],
)
@pytest.mark.timeout(10)
def test_a_server_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    binary = tmp_path / "redis-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(bench.server, "START_SECONDS", 0.3)
    with pytest.raises(SystemExit, match=message):
        Server(tmp_path)


def row(sign: str, bound: float, *values: float, worst: bool = False) -> Row:
    return Row("what", Goal(sign, bound, worst), Spread.of(values))


@pytest.mark.parametrize(
    ("measured", "shown", "verdict"),
    [
        (row(AT_LEAST, 3.0, 2.0, 3.0, 3.5), "3.00", "met"),
        (row(AT_LEAST, 3.0, 2.0, 2.9, 3.5), "2.90", "missed"),
        (row(AT_MOST, 0.5, 0.1, 0.5, 0.9), "0.50", "met"),
        (row(AT_MOST, 0.5, 0.1, 0.51, 0.9), "0.51", "missed"),
        (row(AT_MOST, 50.0, 1.0, 2.0, 51.0, worst=True), "51.0", "missed"),
        (row(AT_LEAST, 2.0, 1.9, 2.0, 3.0, worst=True), "1.90", "missed"),
    ],
)
def test_a_verdict_is_of_what_is_shown(measured: Row, shown: str, verdict: str) -> None:
    assert cells(measured)[2] == shown
    assert cells(measured)[4] == verdict


def test_a_check_forgives_the_noise_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = row(AT_LEAST, 3.0, 2.0, 2.5, 3.5)  # half the range is 30 % of the median
    quiet = row(AT_LEAST, 3.0, 2.5, 2.5, 2.51)
    nearly = row(AT_MOST, 1.0, 1.04, 1.04, 1.04)
    assert _check({"store": Result([noisy, nearly], [], "")})
    assert not _check({"store": Result([noisy, quiet], [], "")})
    assert capsys.readouterr().err == "missed: store: what is 2.50, the goal is ≥ 3 (noise 0%)\n"


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0


def test_the_table_fits_a_terminal() -> None:
    spread = Spread.of([123_456.0, 234_567.0])
    few = Spread.of([12.5, 123.0])
    rows = [Row("a user in 100,000 groups, p99 of others", Goal(AT_MOST, 50.0), few, "ms")]
    sides = [Side("imsync consume group, 10,000,000 events", spread, spread.times(1e-4))]
    assert max(map(len, terminal({"figure": Result(rows, sides, "events/s")}).splitlines())) <= 80


def test_a_figure_measured_again_replaces_its_own_part_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KEPT", "PAGE", "CHART"):
        monkeypatch.setattr(results, name, tmp_path / "images" / name)
    (tmp_path / "images").mkdir()
    known = {name: Figure(name, f"Title of {name}", lambda bench: Result([], [], "")) for name in ("one", "two")}

    def kept(value: float, *, quick: bool = False) -> results.Kept:
        side = Side("imsync", Spread.of([value]), Spread.of([1.0]), {"more": "x"})
        return results.Kept(Result([row(AT_LEAST, 1.0, value)], [side], "events/s", ["A note."]), "cmd", "box", quick)

    results.write(known, {"one": kept(1.5), "two": kept(2.5)})
    results.write(known, {"two": kept(0.5, quick=True)})
    assert results.read() == {"one": kept(1.5), "two": kept(0.5, quick=True)}
    page = (tmp_path / "images" / "PAGE").read_text(encoding="utf-8")
    assert "| what | ≥ 1 | 1.50 | 1.50 to 1.50 | met | `cmd` |" in page
    assert "| what | ≥ 1 | 0.50 | 0.50 to 0.50 | missed | `cmd` |" in page
    assert page.count("Scaled down") == 1


def test_the_results_are_those_that_were_kept() -> None:
    kept = results.read()
    assert list(kept) == [name for name in figures() if name in kept]
    page = results.PAGE.read_text(encoding="utf-8")
    lines = page_rows({n: each.result for n, each in kept.items()}, {n: each.command for n, each in kept.items()})
    assert "\n".join(lines) in page
    assert results.CHART.read_text(encoding="utf-8") == chart({name: each.result for name, each in kept.items()})


def test_the_chart_is_well_formed_whatever_the_labels() -> None:
    spread = Spread.of([1.0, 2.0])
    picture = chart({"publish": Result([], [Side("<a> & b", spread, spread), Side("no ratio", spread)], "events/s")})
    texts = [each.text for each in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "<a> & b" in texts
    assert "no ratio" not in texts


def test_an_unknown_figure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["nonsense"])
    assert ended.value.code == 2
    assert "no such figure: nonsense" in capsys.readouterr().err


def test_events_from_the_template_are_events() -> None:
    states = {user_id: State('Zoë "x"\\', "a", "b", 1) for user_id in range(1, 30)}
    made = list(islice(bodies(simulate_edits(list(states), count=500, seed=7), states, "urn:x", 500), 500))
    decode = Decoder([UserUpdated]).decode
    events = [event for body in made if (event := decode(body)) is not None]
    assert len({event.event_id for event in events}) == 500
    assert all(event.event_id.version == 7 for event in events)
    newest = {event.id: event for event in events}
    for user_id, event in newest.items():
        assert event.version == states[user_id].version
        assert event.nick_name == states[user_id].nick_name
        assert event.head_image_thumb == states[user_id].head_image_thumb


def test_a_template_that_writes_otherwise_than_imsync_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.traffic.encode", lambda event, source: json.dumps({"id": str(event.event_id)}).encode())
    states = {1: State("a", "b", "c", 1)}
    with pytest.raises(SystemExit, match="otherwise than imsync"):
        next(bodies(simulate_edits([1], count=1, seed=7), states, "urn:x", 1))


def test_a_lock_is_timed_from_its_begin_to_its_end(tmp_path: Path) -> None:
    locks = LockTimes()
    with locks.of_connections(), closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as store:
        store.execute("CREATE TABLE t (a)")
        store.execute("BEGIN")
        store.execute("COMMIT")
        assert locks.longest_seconds == 0.0
        for end in (store.commit, store.rollback, lambda: store.execute("COMMIT")):
            store.execute("BEGIN IMMEDIATE")
            store.execute("INSERT INTO t VALUES (1)")
            end()
            assert locks.longest_seconds > 0.0
            locks.longest_seconds = 0.0


def test_instructions_are_judged_with_a_margin() -> None:
    bounds = {"margin": {"share": 0.05}, "ratios": {"encode": 1.0, "decode": 1.0, "apply": 1.0}}
    exceeded, lower = judge({"encode": 1.04, "decode": 1.06, "apply": 0.85}, bounds)
    assert [line.split()[0] for line in exceeded] == ["decode"]
    assert [line.split()[0] for line in lower] == ["apply"]
    assert "6% above its bound" in exceeded[0]
