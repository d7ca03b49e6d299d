"""What `imsync check` judges: each bound with its value and its verdict. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from imsync.im.health import LATE_SECONDS, STALLED_SECONDS, Problem
from imsync.im.overview import GroupOverview, Overview
from imsync.im.workspace import PROJECTIONS

if TYPE_CHECKING:
    from imsync.errors import ImsyncError


class Verdict(StrEnum):
    """What became of a check."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Check:
    """One bound.

    Args:
        name: what is measured.
        group: of which group; None for the outbox and the stream.
        value: None when it is unknown, and for what has no number.
        bound: the most that is fine; None for what has no number.
        what: what is wrong, or why it is unknown; empty when it is fine.
        remedy: what to type; empty when it is fine.
    """

    name: str
    group: str | None
    value: float | None
    bound: float | None
    verdict: Verdict
    what: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds that were asked for. None: not this one."""

    lag: int | None = None
    lag_seconds: float | None = None
    pending_age: float | None = None
    dead: int | None = None
    outbox_age: float | None = None

    @property
    def any(self) -> bool:
        """Whether one was asked for."""
        return any(getattr(self, name) is not None for name in self.__slots__)


_REMEDIES: dict[str, Callable[[str], str]] = {
    "lag": lambda group: f"imsync consume {group}",
    "lag_seconds": lambda group: f"imsync consume {group}",
    "pending_age": lambda group: f"imsync replay pending --group {group}",
    "dead": lambda group: f"imsync dead list --group {group}",
}


def judge(overview: Overview, bounds: Bounds) -> list[Check]:
    """Every check: the bounds that were asked for, or else all that `status` looks at."""
    return list(_asked(overview, bounds) if bounds.any else _all(overview))


# ── the bounds that were asked for ───────────────────────────────────────────────────────────────────────


def _asked(overview: Overview, bounds: Bounds) -> Iterator[Check]:
    wanted = [(name, getattr(bounds, name)) for name in _REMEDIES if getattr(bounds, name) is not None]
    for name, bound in wanted:
        if not overview.groups:
            yield from (_unknown(name, group, bound, overview.redis) for group in PROJECTIONS)
        yield from (_bounded(group, name, bound) for group in overview.groups)
    if bounds.outbox_age is not None:
        if overview.outbox is None:
            yield _unknown("outbox_age", None, bounds.outbox_age, overview.stores.get("user"))
        else:
            value = overview.outbox.backlog.oldest_seconds or 0.0
            yield _compared("outbox_age", None, value, bounds.outbox_age, overview.problems, "imsync relay")


def _bounded(group: GroupOverview, name: str, bound: float) -> Check:
    view = group.view
    value: float | None
    match name:
        case "lag":
            value = view.lag
            if value is None and view.lag_at_least > bound:
                value = view.lag_at_least  # how many more does not matter
        case "lag_seconds":
            value = view.lag_seconds
        case "pending_age":
            value = _pending_age(group)
        case _:
            value = view.dead
    if value is None:
        what = f"this server cannot tell the {name.replace('_', ' ')} of {view.group}"
        return Check(name, view.group, None, bound, Verdict.UNKNOWN, what, "give another bound")
    return _compared(name, view.group, value, bound, group.problems, _REMEDIES[name](view.group))


def _pending_age(group: GroupOverview) -> float | None:
    """Since the oldest pending entry was published; 0 when nothing is pending."""
    return group.view.oldest_pending_seconds if group.view.pending else 0.0


_KINDS = {
    "lag": ("no_consumer", "late"),
    "lag_seconds": ("no_consumer", "late"),
    "pending_age": ("held_by_dead", "late"),
    "dead": ("dead_letters",),
    "outbox_age": ("outbox",),
}
"""The problems of `status` that say why a bound is passed."""


def _compared(
    name: str, group: str | None, value: float, bound: float, problems: Sequence[Problem], remedy: str
) -> Check:
    if value <= bound:
        return Check(name, group, value, bound, Verdict.OK)
    told = next((each for each in problems if each.kind in _KINDS[name]), None)
    of = f" of {group}" if group else ""
    what = told.what if told else f"the {name.replace('_', ' ')}{of} is above the bound"
    return Check(name, group, value, bound, Verdict.FAILED, what, told.remedy if told else remedy)


# ── all that status looks at ─────────────────────────────────────────────────────────────────────────────


def _all(overview: Overview) -> Iterator[Check]:
    told: list[Problem] = []
    if overview.redis:
        hint = overview.redis.hint
        yield Check("redis", None, None, None, Verdict.UNKNOWN, overview.redis.message, hint)
    for group in overview.groups:
        yield from _group(group, told, overview.stores.get(group.view.group) or overview.stores.get("user"))
    if overview.outbox:
        seconds = overview.outbox.backlog.oldest_seconds or 0.0
        yield _told("outbox_age", None, seconds, STALLED_SECONDS, overview.problems, ("outbox",), told)
    else:
        yield _unknown("outbox_age", None, STALLED_SECONDS, overview.stores.get("user"))
    stored = [each for each in overview.problems if each.kind == "store_unusable"]  # unknown, as above
    for problem in overview.problems:
        if problem not in told and problem not in stored:
            yield Check(problem.kind, problem.group, None, None, Verdict.FAILED, problem.what, problem.remedy)


def _group(group: GroupOverview, told: list[Problem], error: ImsyncError | None) -> Iterator[Check]:
    view, problems = group.view, group.problems
    late = STALLED_SECONDS if not view.alive else LATE_SECONDS
    held = STALLED_SECONDS if view.held_by_dead else LATE_SECONDS
    lagging = [each for each in problems if each.kind == "no_consumer"]
    lagging += [each for each in problems if each.kind == "late" and (view.lag_seconds or 0.0) > LATE_SECONDS]
    yield _told("lag_seconds", view.group, view.lag_seconds, late, lagging, ("no_consumer", "late"), told)
    hanging = [each for each in problems if each.kind in ("held_by_dead", "late") and each not in lagging]
    kinds = ("held_by_dead", "late")
    yield _told("pending_age", view.group, _pending_age(group), held, hanging, kinds, told)
    yield _told("dead", view.group, view.dead, 0, problems, ("dead_letters",), told)
    accounting, outcomes = group.accounting, group.outcomes
    values: dict[str, int | None] = {
        "conflicts": outcomes.conflicts if outcomes else None,
        "lost": accounting.lost if accounting else None,
        "unexplained": accounting.unexplained if accounting else None,
    }
    for name, value in values.items():
        if value is None and accounting:
            what = f"the accounts of {view.group} cannot be closed while nobody knows how many entries wait for it"
            yield Check(name, view.group, None, 0, Verdict.UNKNOWN, what)
        elif value is None:
            yield _not_here(name, group) if error is None else _unknown(name, view.group, 0, error)
        else:
            yield _told(name, view.group, value, 0, problems, (name,), told)


def _told(
    name: str,
    group: str | None,
    value: float | None,
    bound: float,
    problems: Sequence[Problem],
    kinds: Sequence[str],
    told: list[Problem],
) -> Check:
    """A check that `status` makes: its verdict is that one, so that the two never differ."""
    found = [each for each in problems if each.kind in kinds]
    told += found
    if found:
        return Check(name, group, value, bound, Verdict.FAILED, found[0].what, found[0].remedy)
    if value is None:
        what = f"this server cannot tell the {name.replace('_', ' ')} of {group}"
        return Check(name, group, None, bound, Verdict.UNKNOWN, what, "imsync status")
    return Check(name, group, value, bound, Verdict.OK)


def _not_here(name: str, group: GroupOverview) -> Check:
    what = f"the {name} events of {group.view.group} cannot be told without its store and the user store"
    remedy = "run this where they are, or give the bounds that can be known here, such as --max-lag"
    return Check(name, group.view.group, None, 0, Verdict.UNKNOWN, what, remedy)


def _unknown(name: str, group: str | None, bound: float, error: ImsyncError | None) -> Check:
    if error is None:
        what = "user.db is not here"
        remedy = "run this where it is, or give the bounds that can be known here, such as --max-lag"
        return Check(name, group, None, bound, Verdict.UNKNOWN, what, remedy)
    return Check(name, group, None, bound, Verdict.UNKNOWN, error.message, error.hint)
