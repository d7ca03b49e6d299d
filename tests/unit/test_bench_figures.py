"""`imsync bench`: from what was measured to figures, and to what people and programs see of them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.bench import doubts, figures
from imsync.bench.clock import paced
from imsync.bench.machine import filesystem, fsync_cost
from imsync.bench.results import Bar, Latency, Machine, Phases, Result, Spread, Sync, Work
from imsync.cli.bench_drawing import drawing
from imsync.cli.bench_picture import blocks, described, short
from imsync.cli.lines import cells
from imsync.cli.render import Grid, Line, bar, console, fitted
from tests.pages import EVIL

MACHINE = Machine("Valkey 9.1.2", "unix:///tmp/x", True, "/tmp/x", "ext4", 2, 0.1, "3.11.7", "3.40.1")
FINITE = st.floats(0.001, 90_000)


def work(events: int = 1000, seconds: float = 0.1, cpu: float = 0.05, server: float | None = 0.01) -> Work:
    return Work(events, seconds, cpu, 50.0, [(seconds / 2, events // 2), (seconds, events)], server)


def result(latencies: Sequence[float] = (0.4, 0.6, 12.0), **more: object) -> Result:
    ours, theirs = [work(), work(seconds=0.2)], [work(seconds=0.2), work(seconds=0.2)]
    found = figures.works("publish", ours, theirs) | figures.works("consume", ours, theirs)
    found |= figures.latencies([latencies, latencies], [[0.2], [0.2]])
    made = Result(
        MACHINE, 9_892, 40_244, 60_000, 5, 7, 500_000, found, Sync(70, 0.21, 1.0, 3.0),
        Phases(0.2, 0.1, 0.6, 0.05, 0.05, 30), 0.9, 0.1, 0.05, "consumer",
        Latency(500.0, {"imsync": 500.0, "by_hand": 499.0}, len(latencies), figures.histogram(latencies, [0.2])),
        figures.timeline(ours[0].progress, theirs[0].progress), (), 45.0,
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert [figures.percentile(values, share) for share in (0.001, 0.5, 0.9, 0.99, 1.0)] == [1, 50, 90, 99, 100]
    assert figures.percentile([7.0], 0.5) == 7.0
    assert figures.percentile([1.0, 2.0, 3.0], 0.5) == 2.0


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is half as fast in one round is so for both."""
    figure = figures.compared([100.0, 50.0, 120.0], [50.0, 25.0, 100.0])
    assert figure.imsync == Spread(100.0, 50.0, 120.0)
    assert figure.ratio == Spread(2.0, 1.2, 2.0)


def test_works_are_counted_per_hundred_thousand() -> None:
    found = figures.works("consume", [work(cpu=0.03)], [work(cpu=0.06, seconds=0.5)])
    assert found["consume_per_second"].imsync.value == 10_000
    assert found["consume_per_second"].ratio.value == 5
    assert found["consume_cpu_seconds_per_100k"].imsync.value == pytest.approx(3.0)
    assert found["server_cpu_seconds_per_100k"].by_hand.value == pytest.approx(1.0)
    assert "server_cpu_seconds_per_100k" not in figures.works("consume", [work(server=None)], [work()])
    assert "consume_peak_mib" not in figures.works("publish", [work()], [work()])


def test_latencies_of_all_rounds_count_together() -> None:
    found = figures.latencies([[1.0, 2.0], [9.0, 9.0]], [[1.0], [3.0]])
    assert found["latency_p50_ms"].imsync == Spread(2.0, 1.0, 9.0)
    assert found["latency_max_ms"].imsync == Spread(9.0, 2.0, 9.0)
    assert found["latency_max_ms"].ratio == Spread(3.0, 2.0, 3.0)


ROUNDS = st.lists(st.lists(FINITE.map(abs), min_size=1, max_size=9), min_size=3, max_size=3)


@given(ROUNDS, ROUNDS)
def test_what_is_told_of_all_rounds_lies_between_the_ends(ours: list[list[float]], theirs: list[list[float]]) -> None:
    for figure in figures.latencies(ours, theirs).values():
        for side in (figure.imsync, figure.by_hand, figure.ratio):
            assert side.low <= side.value <= side.high


@given(st.lists(FINITE, max_size=50), st.lists(FINITE, max_size=50))
def test_every_edit_is_in_one_bar(ours: list[float], theirs: list[float]) -> None:
    bars = figures.histogram(ours, theirs)
    assert (sum(b.imsync for b in bars), sum(b.by_hand for b in bars)) == (len(ours), len(theirs))
    edges = [b.up_to_ms for b in bars]
    assert edges == sorted(set(edges))
    if bars:
        assert edges[-1] >= max([*ours, *theirs])
        below = sum(value <= edges[0] for value in ours)
        assert bars[0].imsync == below
        assert bars[0].imsync + bars[0].by_hand > 0, "it begins where the edits do"


def test_what_is_above_all_edges_has_a_bar_of_its_own() -> None:
    assert figures.histogram([figures.EDGES_MS[-1] * 2, 1.0], [1.0])[-1] == Bar(figures.EDGES_MS[-1] * 2, 1, 0)
    assert figures.histogram([], []) == []


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.integers(1, 2000)), min_size=1, max_size=30))
def test_a_timeline_adds_up_to_the_events(steps: list[tuple[float, int]]) -> None:
    progress: list[tuple[float, int]] = []
    for seconds, events in steps:
        before = progress[-1] if progress else (0.0, 0)
        progress.append((before[0] + seconds, before[1] + events))
    ticks = figures.timeline(progress, [(progress[-1][0] / 2, 100)])
    step = progress[-1][0] / figures.TICKS
    assert sum(tick.imsync * step for tick in ticks if tick.imsync is not None) == pytest.approx(progress[-1][1])
    known = [tick.by_hand for tick in ticks if tick.by_hand is not None]
    assert len(known) in (figures.TICKS // 2, figures.TICKS // 2 + 1)
    assert all(tick.by_hand is None for tick in ticks[figures.TICKS // 2 + 1 :]), "it has ended"


def test_no_progress_is_no_timeline() -> None:
    assert figures.timeline([], []) == []


def test_phases_are_shares_of_the_whole() -> None:
    assert figures.phases(10.0, [(1.0, 2.0, 0.5, 4.0), (1.0, 2.0, 0.5, 4.0)]) == Phases(0.2, 0.2, 0.4, 0.1, 0.1, 2)
    assert figures.phases(1.0, []) is None
    overlapping = figures.phases(1.0, [(1.0, 2.0, 1.0, 2.0)])  # steps of several batches at once
    assert overlapping is not None
    assert overlapping.read == 0
    assert overlapping.decode + overlapping.store + overlapping.acknowledge == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("own", "server", "disk", "limit"),
    [
        (0.9, 0.2, 0.3, "consumer"),
        (0.3, 0.9, 0.3, "server"),
        (0.3, 0.2, 0.01, "waiting"),
        (0.4, 0.1, 0.5, "disk"),
        (0.95, None, None, "consumer"),
        (0.5, None, None, "waiting"),
    ],
)
def test_who_is_always_at_work_is_the_limit(own: float, server: float | None, disk: float | None, limit: str) -> None:
    assert figures.limit(own, server, disk) == limit
    ours = work(seconds=1.0, cpu=own, server=server)
    assert figures.shares([ours]) == (own, server)


# ── doubts ───────────────────────────────────────────────────────────────────────────────────────────────


def kinds(made: Result) -> list[str]:
    return [each.kind for each in (*doubts.before(made.machine), *doubts.after(made))]


def test_a_quiet_machine_raises_no_doubts() -> None:
    steady = figures.works("publish", [work(), work()], [work(), work()])
    assert kinds(result(figures=steady)) == []


def test_what_makes_the_figures_mean_less_is_said() -> None:
    steady = figures.works("consume", [work(), work()], [work(), work()])
    shaky = figures.works("consume", [work(), work(seconds=0.14)], [work(), work()])
    late = Latency(500.0, {"imsync": 300.0, "by_hand": 500.0}, 3, [])
    assert kinds(result(figures=steady, machine=replace(MACHINE, load=1.5))) == ["busy"]
    assert kinds(result(figures=steady, machine=replace(MACHINE, filesystem="tmpfs"))) == ["memory"]
    assert kinds(result(figures=shaky)) == ["spread"]
    assert kinds(result(figures=steady, latency=late)) == ["late"]
    assert kinds(result(figures=steady, rounds=1)) == ["one_round"]
    assert kinds(result(figures=steady, interrupted=True)) == ["interrupted"]


# ── the machine and its clock ────────────────────────────────────────────────────────────────────────────


def test_an_fsync_is_measured_and_leaves_no_file(tmp_path: Path) -> None:
    sync = fsync_cost(tmp_path, 0.0)
    assert sync.count == 5
    assert 0 < sync.p50_ms <= sync.p99_ms <= sync.max_ms
    assert list(tmp_path.iterdir()) == []


def test_a_disk_in_memory_is_known() -> None:
    assert filesystem(Path("/dev/shm")) == "tmpfs"
    assert filesystem(Path("/proc")) == "proc"


def test_every_edit_gets_its_turn_once_however_late_it_is() -> None:
    turns = list(paced(2, 500, 10_000.0))
    assert turns[:2] == [(0, 1), (1, 2)]
    assert turns[2][0] == 2
    assert turns[-1][1] == 502
    assert all(before[1] == after[0] for before, after in pairwise(turns))


# ── what is shown ────────────────────────────────────────────────────────────────────────────────────────


def test_figures_have_three_digits() -> None:
    shown = [short(value) for value in (0, 0.123, 1.234, 12.34, 123.4, 1234, 12_345, 999_600, 1_234_567)]
    assert shown == ["0", "0.12", "1.23", "12.3", "123", "1,234", "12.3k", "1M", "1.23M"]


def test_a_bar_is_as_long_as_its_share_and_never_nothing() -> None:
    assert [bar(share, 4) for share in (0.0, 0.001, 0.5, 0.53125, 1.0)] == ["", "▏", "██", "██▏", "████"]


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_wider_than_the_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    extreme = result([0.05, 0.2, 1.0, 5.0, 30.0, 800.0, 60_000.0, 300_000.0])
    slow = {name: replace(each, ratio=Spread(10_000.0, 9_999.0, 100_000.0)) for name, each in extreme.figures.items()}
    for made in (extreme, replace(extreme, figures=slow)):
        out = console(sys.stdout)
        for block in blocks(made, width):
            if isinstance(block, Line):
                out.print(block.text)
            else:
                assert isinstance(block, Grid)
                out.print(fitted(block, width))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if cells(line.rstrip()) > width] == []
    assert len(lines) > 40


def test_the_object_for_programs_is_plain() -> None:
    text = json.dumps(described(result()), allow_nan=False)
    again = json.loads(text)
    assert again["figures"]["consume_per_second"]["imsync"] == {"value": 7500.0, "low": 5000.0, "high": 10000.0}
    assert sum(each["imsync"] for each in again["latency"]["histogram"]) == again["latency"]["edits"] == 3
    partial = described(result(figures={}, latency=None, sync=None, phases=None, consumer_share=None, limit=None))
    assert partial["latency"] is partial["fsync"] is partial["time"] is partial["limit"] is None


def test_the_picture_is_whole_and_loads_nothing() -> None:
    evil = replace(MACHINE, where=EVIL, embedded=False, server=EVIL)
    for made in (result(), result(machine=evil), result(figures={}, latency=None, timeline=(), rounds=0)):
        text = drawing(made)
        root = ET.fromstring(text)
        names = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert names <= {"svg", "style", "rect", "text", "line", "polyline"}
        assert not any("href" in name or name.startswith("on") for element in root.iter() for name in element.attrib)
        assert "prefers-color-scheme: dark" in text
        assert "url(" not in text
    words = " ".join(each.text or "" for each in ET.fromstring(drawing(result())).iter())
    for word in ("Rates", "Latency", "Rate while draining", "ratio 1.50", "imsync", "by hand", "500,000 rows"):
        assert word in words
