"""Durations on the command line: `0s`, `500ms`, `5m`, `1h`, `2d`."""

from __future__ import annotations

import re

from imsync.errors import UsageError

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(text: str) -> int:
    """A duration in milliseconds.

    Raises:
        UsageError: it is not a number with a unit.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)", text.strip())
    if not match:
        raise UsageError(f"bad duration {text[:40]!a}", "a number and a unit: 500ms, 30s, 5m, 1h, 2d")
    return int(float(match[1]) * _UNITS_MS[match[2]])
