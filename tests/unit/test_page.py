"""The page of `imsync report`: it loads nothing, and nothing hostile gets out of the text it is in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.cli import charts
from imsync.cli.charts import Series
from imsync.cli.page import Drift, Report, page
from imsync.cli.samples import Point, point_of, read
from imsync.errors import UsageError
from imsync.store.settlement import percentiles, upper_edge_ms
from tests.pages import EVIL, check

NOW = 1_795_000_000.0


def sample(name: str = "group", at: float = NOW, **more: Any) -> dict[str, Any]:
    """A sample, with a text in every place that holds one."""
    return {
        "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds"),
        "groups": [
            {
                "group": name, "stream": name, "lag": 3, "lag_seconds": 1.5, "pending": 2, "dead": 1, "consumers": 1,
                "members": [
                    {"consumer": name, "alive": True, "host": name, "pid": 7, "pending": 1, "events": 5,
                     "last_error": name, "last_error_at": name},
                ],
                "staleness": {"p50_ms": 12.0, "p99_ms": 120.0},
                "outcomes": {"applied": 5, "superseded": 1, "dead": 1, "duplicates": 2, "lost": 0},
                "accounting": {"published": 7, "unexplained": 0},
            }
        ],
        "outbox": {"unsent": 4, "oldest_seconds": 2.0},
        "retention": {"length": 9},
        "problems": [{"what": name, "remedy": name}],
        "healthy": False,
        "rates": {"edits_per_second": 3.0, "groups": [
            {"group": name, "events_per_second": 2.5, "p50_ms": 11.0, "p99_ms": 99.0},
        ]},
        "redis": None,
    } | more  # fmt: skip


def report(*samples: Mapping[str, Any], **more: Any) -> str:
    points = [point for each in samples if (point := point_of(each))]
    values: dict[str, Any] = {
        "where": "redis://host", "version": "1", "made_at": NOW, "state": samples[-1], "points": points,
        "histograms": {"group": {int(NOW // 3600): {20: 5, 40: 1}, int(NOW // 3600) - 5: {60: 2}}},
        "upper_edge_ms": upper_edge_ms, "drift": Drift(users=1, rows=2), "zone": UTC,
    }  # fmt: skip
    return page(Report(**(values | more)))


def test_a_page_loads_nothing_and_says_so_to_the_browser() -> None:
    parsed = check(report(sample(), sample(at=NOW + 1)))
    policies = [a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(parsed.style.encode()).digest()).decode()
    assert policies == [f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"]
    for word in ("Throughput", "Lag", "Staleness", "Outcomes", "No drift", "Who consumes", "the accounts close"):
        assert word in parsed.text
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 520px"):
        assert rule in parsed.style


def test_nothing_hostile_gets_out_of_its_text() -> None:
    away = sample(EVIL, redis={"message": EVIL, "hint": EVIL})
    found = Drift(users=1, rows=1, drift=1, causes={EVIL: 1}, examples=[(2**63 - 1, EVIL, EVIL, 1, 1)])
    text = report(sample(EVIL), away, drift=found, where=EVIL, histograms={EVIL: {int(NOW // 3600): {5: 1}}})
    parsed = check(text)
    assert not set("\x1b\u202e\x00\udcfe") & set(text)
    assert "<script>alert(1)</script>" in parsed.text, "shown as it was written"
    text.encode()  # no lone surrogates
    assert check(report(sample(), drift=Drift(EVIL))).elements


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(sample())), JSON), st.sampled_from(sorted(sample()["groups"][0])), JSON)
def test_a_sample_may_hold_anything(changed: dict[str, Any], key: str, value: object) -> None:
    """It may come from another machine, or from somebody else."""
    inner = sample()
    inner["groups"][0][key] = value
    for strange in (inner | changed, inner, sample() | {"groups": value}):
        check(report(sample(at=NOW - 1), strange))


def test_an_empty_page_is_a_page() -> None:
    text = report({}, histograms={}, drift=Drift("user.db not here"))
    assert "not compared: user.db not here" in check(text).text


def test_gaps_are_told_of() -> None:
    away = sample(at=NOW + 1, redis={"message": "x", "hint": ""}, groups=[])
    text = check(report(sample(), away, sample(at=NOW + 2))).text
    assert "Redis was away in 1 of 3 samples" in text


# ── charts ───────────────────────────────────────────────────────────────────────────────────────────────


def polylines(text: str) -> list[str]:
    return re.findall(r'points="([^"]+)"', text)


def test_a_line_is_interrupted_where_nothing_is_known() -> None:
    series = Series("a", [(0, 0.0), (1, 50.0), (2, None), (3, 100.0), (4, 100.0)], 0)
    drawn = charts.lines("t", "", [series], charts.linear(100.0, str), ("from", "to"))
    assert polylines(drawn) == ["0.0,160.0 150.0,80.0", "450.0,0.0 600.0,0.0"]


def test_a_line_is_interrupted_where_nobody_looked() -> None:
    points: list[tuple[float, float | None]] = [(float(x), 1.0) for x in (0, 1, 2, 3, 60, 61)]
    found = charts.with_gaps(points)
    assert found == [*points[:4], (4.0, None), *points[4:]]
    assert charts.with_gaps([]) == []


def test_of_many_points_the_peaks_stay() -> None:
    points: list[tuple[float, float | None]] = [(float(i), 0.0) for i in range(10_000)]
    points[7777] = (7777.0, 99.0)
    assert max(y or 0 for _, y in charts.thinned(points, peaks=True)) == 99.0
    assert max(y or 0 for _, y in charts.thinned(points, peaks=False)) < 3.0
    assert len(charts.thinned(points, peaks=True)) <= charts.MOST_POINTS
    assert charts.thinned([(0.0, None)] * 1000, peaks=False)[0] == (0.0, None)


@given(st.floats(min_value=0, max_value=1e18))
def test_a_scale_reaches_above_the_highest(highest: float) -> None:
    scale = charts.linear(highest, str)
    assert scale.high >= highest * 0.999999
    assert 0 <= scale.height_of(highest) <= charts.HEIGHT
    power = charts.logarithmic(highest / 1000, highest, str)
    assert power.low <= max(highest / 1000, 1e-6) * 1.000001
    assert power.high >= highest * 0.999999
    assert 2 <= len(power.labels) <= 7


def test_edits_are_counted_below_the_age_that_they_had() -> None:
    """A bar's label is the upper edge of what it counts."""
    hour = int(NOW // 3600)
    text = report(sample(), sample(at=NOW + 1), histograms={"g": {hour: {29: 7}}})  # 28 to 32 ms
    assert "50 ms: 7" in text
    assert "20 ms: 7" not in text


def test_percentiles_are_those_of_the_store() -> None:
    assert percentiles({}).p50_ms is None
    assert percentiles({20: 99, 40: 1}).p99_ms == upper_edge_ms(20)
    assert percentiles({20: 98, 40: 2}).p99_ms == upper_edge_ms(40)


# ── recorded samples ─────────────────────────────────────────────────────────────────────────────────────


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "samples"
    away = sample(at=NOW + 2, groups=[], redis={"message": "x"})
    lines = [json.dumps(sample(at=NOW + 1)), "", '{"time": "cut sho', "[1]", '"x"', "{}", json.dumps(away)]
    lines += [json.dumps(sample()), '{"time": NaN}', "[" * 100_000]
    file.write_text("\n".join(lines))
    found = read(file)
    assert [point.at for point in found.points] == [NOW, NOW + 1, NOW + 2]
    assert [point.away for point in found.points] == [False, False, True]
    assert found.skipped == 6
    assert found.last["groups"], "the last one that saw the groups"
    first = found.points[0]
    assert first == Point(
        NOW, 3.0, 4.0, False, {"group": 2.5}, {"group": 3.0}, {"group": 2.0}, {"group": 11.0}, {"group": 99.0}
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300, 10**400, True, "7", [7], {}])
def test_what_is_no_number_is_unknown(value: object) -> None:
    """JSON of Python's has numbers that JSON has not."""
    point = point_of(sample(outbox={"unsent": value}))
    assert point is not None
    assert point.unsent is None


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n{}\n")
    for name, words in (("empty", "holds no sample"), ("missing", "cannot read"), (".", "cannot read")):
        with pytest.raises(UsageError, match=words):
            read(tmp_path / name)


def test_times_are_of_one_zone() -> None:
    text = report(sample(), sample(at=NOW + 600))
    for seconds in (0, 300, 600):
        assert f"<span>{datetime.fromtimestamp(NOW + seconds, UTC):%H:%M:%S}</span>" in text
