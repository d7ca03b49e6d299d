"""Recorded samples: what `status --watch --record` has written, read again for `report`.

The file may come from another machine, and is read with suspicion: what is not as it should be is passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from imsync.errors import UsageError

MOST_GROUPS = 12
"""Of more groups in a sample, the others are passed over."""
LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Point:
    """What is drawn of one sample. None: unknown.

    Args:
        at: unix seconds.
        edits: edits per second.
        unsent: rows that wait in the outbox.
        away: whether Redis was away.
        events, lag, pending, p50_ms, p99_ms: by group.
    """

    at: float
    edits: float | None
    unsent: float | None
    away: bool
    events: Mapping[str, float | None] = field(default_factory=dict)
    lag: Mapping[str, float | None] = field(default_factory=dict)
    pending: Mapping[str, float | None] = field(default_factory=dict)
    p50_ms: Mapping[str, float | None] = field(default_factory=dict)
    p99_ms: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recording:
    """A file of samples.

    Args:
        points: in the order of their times.
        last: the last sample that saw the groups, else the last one, as `status --watch --json` tells it.
        skipped: lines that are no samples.
    """

    points: Sequence[Point]
    last: Mapping[str, Any]
    skipped: int


def read(path: Path) -> Recording:
    """Reads a file.

    Raises:
        UsageError: it cannot be read, or holds no sample.
    """
    points: list[Point] = []
    last: Mapping[str, Any] | None = None
    skipped = 0
    try:
        with path.open("rb") as lines:
            for sample in _samples(lines):
                point = None if sample is None else point_of(sample)
                if sample is None or point is None:
                    skipped += 1
                    continue
                points.append(point)
                if last is None or point.lag or not rows(last, "groups"):
                    last = sample
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "a file of imsync status --watch --record") from error
    if last is None:
        raise UsageError(f"{path} holds no sample", "record some: imsync status --watch --record FILE")
    return Recording(sorted(points, key=lambda point: point.at), last, skipped)


def _samples(lines: Any) -> Iterator[Mapping[str, Any] | None]:
    """The objects in the file; None for each line that is none."""
    while line := lines.readline(LONGEST_LINE):
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError):
            sample = None
        yield sample if isinstance(sample, dict) else None


def point_of(sample: Mapping[str, Any]) -> Point | None:
    """What is drawn of a sample; None when it is none."""
    try:
        at = datetime.fromisoformat(text(sample, "time") or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    groups = {name: each for each in rows(sample, "groups") if (name := text(each, "group"))}
    rates = {name: each for each in rows(sample, "rates", "groups") if (name := text(each, "group"))}
    return Point(
        at=at,
        edits=number(sample, "rates", "edits_per_second"),
        unsent=number(sample, "outbox", "unsent"),
        away=isinstance(sample.get("redis"), dict),
        events={name: number(each, "events_per_second") for name, each in rates.items()},
        lag={name: number(each, "lag") for name, each in groups.items()},
        pending={name: number(each, "pending") for name, each in groups.items()},
        p50_ms={name: number(each, "p50_ms") for name, each in rates.items()},
        p99_ms={name: number(each, "p99_ms") for name, each in rates.items()},
    )


# ── what is in a sample ──────────────────────────────────────────────────────────────────────────────────


def at(sample: Mapping[str, Any], *path: str) -> Any:
    """What is at a path of keys; None when there is nothing."""
    found: Any = sample
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def number(sample: Mapping[str, Any], *path: str) -> float | None:
    """A number; None when there is none."""
    found = at(sample, *path)
    if not isinstance(found, int | float) or isinstance(found, bool):
        return None
    try:
        value = float(found)
    except OverflowError:
        return None
    return value if abs(value) < 2**63 else None  # which NaN is not


def text(sample: Mapping[str, Any], *path: str) -> str | None:
    """A text; None when there is none."""
    found = at(sample, *path)
    return found if isinstance(found, str) else None


def rows(sample: Mapping[str, Any], *path: str, most: int = MOST_GROUPS) -> list[Mapping[str, Any]]:
    """The objects of an array, so many at most; none when there is no array."""
    found = at(sample, *path)
    if not isinstance(found, list):
        return []
    objects: list[Mapping[str, Any]] = [each for each in found if isinstance(each, dict)]
    return objects[:most]
