"""The dashboard and the alerting rules, and what they ask Prometheus for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "imsync.json").read_text(encoding="ascii"))
PANELS = DASHBOARD["panels"]

OF_PROMETHEUS = {"instance", "job"}
"""Labels that the scrape gives."""


def dashboard_queries() -> list[str]:
    found = [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
    return [re.sub(r"\[\$__rate_interval\]", "[5m]", expr) for expr in found]


def alerts() -> list[dict[str, str]]:
    """The rules: a file of one line per key, so that no parser of YAML is needed to read it."""
    rules: list[dict[str, str]] = []
    for line in (FOLDER / "alerts.yml").read_text(encoding="ascii").splitlines():
        if found := re.fullmatch(r"      (- | {2})(\w+): (.+)", line):
            if found[1] == "- ":
                rules.append({})
            rules[-1][found[2]] = found[3]
    return rules


QUERIES = [*dashboard_queries(), *(rule["expr"] for rule in alerts())]
