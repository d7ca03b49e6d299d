"""The dashboard and the alerting rules ask for metrics and labels that exist, and are put together rightly.

What the processes really serve is compared in the acceptance tests.
"""

from __future__ import annotations

import itertools
import json
import re

import pytest

from imsync.telemetry import names
from tests.grafana import DASHBOARD, FOLDER, OF_PROMETHEUS, PANELS, QUERIES, alerts
from tests.promql import Query, parse

OF_OTHERS: dict[str, set[str]] = {
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
    "node_textfile_mtime_seconds": {"file"},
}
"""What Prometheus' own client and node_exporter serve."""


def known() -> dict[str, set[str]]:
    """Every series with its labels."""
    found = dict(OF_OTHERS)
    for metric in (names.BUILD, *names.CONSUMER, *names.RELAY, *names.CHECK):
        for sample in metric.samples:
            found[sample] = {*metric.labels, *(["le"] if sample.endswith("_bucket") else [])}
    return found


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_asks_for_what_there_is(expression: str) -> None:
    query = parse(expression)
    assert query.metrics, "it asks for nothing"
    there_is = known()
    assert query.metrics.keys() - there_is.keys() == set(), "no such metric"
    for metric, labels in query.metrics.items():
        assert labels - there_is[metric] - OF_PROMETHEUS == set(), f"no such label of {metric}"
    of_any = set().union(*(there_is[metric] for metric in query.metrics))
    assert query.labels - of_any - OF_PROMETHEUS == set(), "grouped by a label that nothing has"


def test_every_metric_is_on_the_dashboard() -> None:
    shown = set().union(*(parse(expression).metrics for expression in QUERIES))
    unseen = {
        metric.name for metric in (*names.CONSUMER, *names.RELAY, *names.CHECK) if not shown & set(metric.samples)
    }
    assert unseen == {"imsync_group_staleness_seconds"}  # the histogram says more


def test_counters_are_asked_for_their_rate_and_histograms_by_le() -> None:
    counters = {m.name for m in (*names.CONSUMER, *names.RELAY) if m.kind == "counter"}
    for expression in QUERIES:
        for metric in parse(expression).metrics.keys() & counters:
            assert re.search(rf"(rate|increase)\({metric}[^)]*\[", expression), expression
        if "_bucket" in expression:
            assert re.search(r"histogram_quantile\([\d.]+, sum by \(le[,)]", expression), expression


def test_the_tokenizer() -> None:
    assert parse('sum by (le, g) (rate(a_bucket{g=~"$group", x!="b{c}"}[5m])) / on (i) b > 0.5') == Query(
        {"a_bucket": {"g", "x"}, "b": set()}, {"le", "g", "i"}
    )
    assert parse("histogram_quantile(0.99, sum(a)) and b or c offset 5m unless time() - d") == Query(
        {"a": set(), "b": set(), "c": set(), "d": set()}, set()
    )
    for broken in ("sum(a", "a}", "a $ b", 'a{b="c}', "(a]"):
        with pytest.raises(ValueError, match=r"PromQL|brackets"):
            parse(broken)


# ── the dashboard ────────────────────────────────────────────────────────────────────────────────────────


def test_the_data_source_is_chosen_by_whoever_looks() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    uid = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"] == uid
            assert all(target["datasource"] == uid for target in panel["targets"])
    definition = re.fullmatch(r"label_values\((\w+), (\w+)\)", variables["group"]["query"]["query"])
    assert definition is not None
    assert definition[2] in known()[definition[1]]
    used = set(re.findall(r"\$(\w+)", json.dumps(PANELS))) - {"__rate_interval"}
    assert used == {"group"}


def test_panels_lie_side_by_side() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]


def test_panels_say_what_they_show() -> None:
    for panel in PANELS:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["description"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs)


# ── the alerting rules ───────────────────────────────────────────────────────────────────────────────────


def test_every_rule_has_what_a_rule_needs() -> None:
    rules = alerts()
    assert len(rules) > 8
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert re.fullmatch(r"\{severity: (warning|critical)\}", rule["labels"])
        assert re.fullmatch(r'\{summary: "[^"]+", runbook: "[^"]+"\}', rule["annotations"])
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]))
        query = parse(rule["expr"])
        kept = query.labels if re.match(r"(sum|min|histogram_quantile)", rule["expr"]) else set().union(
            *(known()[metric] for metric in query.metrics)
        )  # fmt: skip
        assert labels <= kept, f"{rule['alert']} tells a label that its query does not keep"


def test_no_rule_is_passed_over() -> None:
    text = (FOLDER / "alerts.yml").read_text(encoding="ascii")
    assert text.count("- alert:") == text.count("expr:") == len(alerts())
