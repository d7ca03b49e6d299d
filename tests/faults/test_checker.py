"""Every rule of the checker finds what breaks it, and says so by its name; a world in which all is well breaks none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.checker import NAMES, STRICT, Violation, check, check_effort, check_exit
from tests.faults.evidence import (
    Change,
    Copy,
    Effect,
    Evidence,
    Group,
    Letter,
    Projection,
    Published,
    Source,
    User,
    event_id_of,
    parts,
)
from tests.faults.history import Attempt, Injected, Story, parse

OURS = "urn:imsync:user-store:7"


def values(token: str) -> dict[str, str]:
    return {"nick_name": f"n {token}", "head_image": f"i {token}", "head_image_thumb": f"t {token}"}


def event(number: int) -> str:
    return f"{number:032x}"


def fine() -> Evidence:
    """Users 1 and 2 at version 1 in the beginning. User 1 was edited twice (a, b), user 2 once and deleted (c, d);
    edit e was attempted and nobody knows of it. One entry of poison came in between.
    """
    story = Story(
        attempts={
            **{token: Attempt(token, user, values(token)) for token, user in (("a", 1), ("b", 1), ("c", 2), ("e", 2))},
            "d": Attempt("d", 2, {}, deletes=True),
        },
        accepted={"a", "b", "c", "d"},
        injected={"3-1": Injected("3-1", "dead")},
    )
    began = {1: User(1, False, values("0")), 2: User(1, False, values("0"))}
    source = Source(
        users={1: User(3, False, values("b")), 2: User(3, True, dict.fromkeys(values(""), ""))},
        outbox=[
            Published(event(1), 1, 2, values("a"), "1-0"),
            Published(event(2), 2, 2, values("c"), "2-0"),
            Published(event(3), 1, 3, values("b"), "3-0"),
            Published(event(4), 2, 3, None, "4-0"),
        ],
        published=4,
        name=OURS,
    )
    effects = [
        Effect(1, 1, "n 0", "t 0"),
        Effect(2, 1, "n 0", "t 0"),
        Effect(2, 2, "n c", "t c"),
        Effect(1, 3, "n b", "t b"),
        Effect(2, 3, "", "", True),
    ]
    settled = {
        event(1): ("superseded", "1-0"),
        event(2): ("applied", "2-0"),
        event(3): ("applied", "3-0"),
        event(4): ("applied", "4-0"),
        "entry:3-1": ("dead", "3-1"),
    }
    projection = Projection(
        "group",
        replicas={effect.user: effect for effect in effects},
        copies=[Copy(1, 10, "n b", "t b", "Boss"), Copy(2, 10, "", "")],
        settled=settled,
        tallies={(OURS, "applied"): 3, (OURS, "superseded"): 1, ("", "dead"): 1, (OURS, "duplicate"): 7},
        effects=effects,
        copied=[Copy(2, 10, "n c", "t c"), Copy(1, 10, "n b", "t b", "Boss"), Copy(2, 10, "", "")],
        changes=[Change(key, entry_id, None, outcome) for key, (outcome, entry_id) in settled.items()],
    )
    return Evidence(
        story,
        began,
        source,
        {"group": projection},
        {"group": Group(last_delivered="4-0", letters=[Letter("3-1", "", "bad_json")])},
        {"1-0": event(1), "2-0": event(2), "3-0": event(3), "3-1": None, "4-0": event(4)},
        {"group": {(1, 10): "Boss", (2, 10): ""}},
    )


def with_source(**changes: Any) -> Evidence:
    evidence = fine()
    return replace(evidence, source=replace(evidence.source, **changes))


def with_events(change: Callable[[list[Published]], Iterable[Published]]) -> Evidence:
    outbox = list(change(list(fine().source.outbox)))
    return with_source(outbox=outbox, published=len(outbox))


def with_projection(**changes: Any) -> Evidence:
    evidence = fine()
    return replace(evidence, projections={"group": replace(evidence.projections["group"], **changes)})


def with_effects(*more: Effect) -> Evidence:
    return with_projection(effects=[*fine().projections["group"].effects, *more])


def with_group(evidence: Evidence | None = None, **changes: Any) -> Evidence:
    evidence = evidence or fine()
    return replace(evidence, groups={"group": replace(evidence.groups["group"], **changes)})


def unsettled(number: int, **changes: Any) -> Evidence:
    """An event that has never been settled."""
    projection = fine().projections["group"]
    return replace(
        with_projection(
            settled={key: row for key, row in projection.settled.items() if key != event(number)},
            changes=[change for change in projection.changes if change.key != event(number)],
        ),
        **changes,
    )


def without_entry(evidence: Evidence, entry_id: str) -> Evidence:
    return replace(evidence, stream={key: value for key, value in evidence.stream.items() if key != entry_id})


def resettled(*more: Change) -> Evidence:
    return with_projection(changes=[*fine().projections["group"].changes, *more])


ROW = fine().source.users[1]
FIRST = fine().source.outbox[0]

CASES: dict[str, list[Callable[[], Evidence]]] = {
    "accepted_edit_without_outcome": [
        lambda: with_events(lambda events: events[1:]),
        lambda: replace(fine(), story=replace(fine().story, accepted={"a", "b", "c", "d", "e"})),
        lambda: with_events(lambda events: events[:3]),  # the deletion is gone
        lambda: unsettled(1),
        lambda: unsettled(4),
    ],
    "effect_without_edit": [
        lambda: with_events(lambda events: [*events, replace(FIRST, event_id=event(9), version=4, values=values("x"))]),
        lambda: with_events(lambda events: [replace(FIRST, values=values("a") | {"head_image": ""}), *events[1:]]),
        lambda: with_events(lambda events: [replace(FIRST, values=values("c")), *events[1:]]),  # another user's
        lambda: with_events(lambda events: [*events, replace(FIRST, event_id=event(9), version=4, values=values("b"))]),
        lambda: with_events(lambda events: [*events, replace(FIRST, event_id=event(9), version=4, values=None)]),
        lambda: with_effects(Effect(1, 4, "n x", "t b")),
        lambda: with_effects(Effect(1, 4, "n b", "")),
        lambda: with_effects(Effect(1, 4, "n b", "i b")),  # the other picture
        lambda: with_effects(Effect(1, 4, "", "", True)),
    ],
    "edit_without_event": [
        lambda: with_source(users=fine().source.users | {1: replace(ROW, version=4)}),
        lambda: with_source(users=fine().source.users | {1: replace(ROW, values=values("a"))}),
        lambda: with_events(lambda events: events[1:]),
    ],
    "two_edits_of_one_version": [
        lambda: with_events(lambda events: [*events, replace(FIRST, event_id=event(9))]),
    ],
    "version_fell": [
        lambda: with_effects(Effect(1, 2, "n a", "t a")),
        lambda: with_effects(Effect(1, 3, "n a", "t a")),
    ],
    "resurrected": [lambda: with_effects(Effect(2, 4, "n c", "t c"))],
    "replica_removed": [lambda: with_effects(Effect(1, None, "n b", "t b"))],
    "two_effects_of_one_event": [lambda: with_effects(Effect(1, 3, "n b", "t b"))],
    "outcome_contradicts_effect": [
        lambda: with_projection(settled=fine().projections["group"].settled | {event(1): ("applied", "1-0")}),
        lambda: with_projection(settled=fine().projections["group"].settled | {event(3): ("superseded", "3-0")}),
        lambda: unsettled(3),
    ],
    "outcome_changed": [
        lambda: resettled(Change(event(1), "1-0", "superseded", "applied")),
        lambda: resettled(Change(event(3), "3-0", "applied", "dead")),
    ],
    "pruned_too_early": [
        lambda: resettled(
            Change(event(3), "3-0", "applied", None), Change(event(3), "9-0", None, "superseded")
        ),
    ],
    "accounting_open": [
        lambda: with_source(published=3),
        lambda: with_projection(tallies=fine().projections["group"].tallies | {(OURS, "applied"): 2}),
        lambda: with_projection(tallies=fine().projections["group"].tallies | {(OURS, "superseded"): 2}),
        lambda: unsettled(1),
    ],
    "copies_differ": [
        lambda: with_projection(replicas=fine().projections["group"].replicas | {1: Effect(1, 2, "n b", "t b")}),
        lambda: with_projection(replicas=fine().projections["group"].replicas | {1: Effect(1, 3, "n a", "t b")}),
        lambda: with_projection(replicas=fine().projections["group"].replicas | {2: Effect(2, 3, "", "")}),
        lambda: with_projection(replicas=fine().projections["group"].replicas | {3: Effect(3, 1, "", "")}),
        lambda: with_projection(replicas={1: Effect(1, 3, "n b", "t b")}),
        lambda: with_projection(copies=[Copy(1, 10, "n a", "t b", "Boss"), Copy(2, 10, "", "")]),
        lambda: with_projection(copies=[Copy(1, 10, "n b", "", "Boss"), Copy(2, 10, "", "")]),
        lambda: with_projection(copies=[Copy(3, 10, "n b", "t b")]),
    ],
    "override_touched": [
        lambda: with_projection(copies=[Copy(1, 10, "n b", "t b", ""), Copy(2, 10, "", "")]),
        lambda: with_projection(
            copied=[Copy(1, 11, "n b", "t b", "Chief"), Copy(1, 11, "n b", "t b", "n b")],
        ),
    ],
    "group_missing": [lambda: with_group(exists=False)],
    "pending_left": [lambda: with_group(pending={"3-0": "c1"})],
    "undelivered_left": [lambda: with_group(last_delivered="3-1")],
    "outbox_left": [
        lambda: with_source(outbox=[*fine().source.outbox[:3], replace(fine().source.outbox[3], sent=False)]),
    ],
    "entry_lost_silently": [
        lambda: without_entry(unsettled(1), "1-0"),
        lambda: without_entry(with_projection(settled={}, changes=[]), "3-1"),
    ],
    "acknowledged_before_commit": [
        lambda: unsettled(1),
        lambda: unsettled(1, acknowledged={"group": {"1-0", "2-0"}}),
        lambda: with_projection(
            settled={key: row for key, row in fine().projections["group"].settled.items() if row[0] != "dead"},
            changes=fine().projections["group"].changes[:4],
        ),
    ],
    "skipped_by_group": [lambda: unsettled(1, acknowledged={"group": {"2-0"}, "friend": {"1-0"}})],
    "dead_letter_missing": [
        lambda: with_group(letters=[]),
        lambda: with_projection(settled=fine().projections["group"].settled | {event(1): ("dead", "1-0")}),
        lambda: with_group(
            with_projection(settled=fine().projections["group"].settled | {"entry:3-1": ("applied", "3-1")}),
            letters=[],
        ),
    ],
    "buried_twice": [lambda: with_group(letters=[Letter("3-1", "", "bad_json")] * 2)],
    "innocent_dead_letter": [
        lambda: with_group(letters=[Letter("3-1", "", "bad_json"), Letter("1-0", event(1), "max_attempts")]),
    ],
    "published_twice": [lambda: replace(fine(), stream=fine().stream | {"3-2": event(1)})],
    "published_out_of_order": [
        lambda: replace(fine(), stream={"1-0": event(3), "2-0": event(2), "3-0": event(1), "4-0": event(4)}),
    ],
}  # fmt: skip


def names(violations: Iterable[Violation]) -> set[str]:
    return {violation.name for violation in violations}


def test_where_all_is_well_nothing_is_found() -> None:
    assert check(fine(), also=STRICT) == []


def test_every_rule_has_a_case_that_breaks_it() -> None:
    by_hand = {"no_progress"}  # the rig says it: test_rig.py
    processes = {"too_much_cpu", "too_many_log_lines", "unclean_exit"}  # below
    assert CASES.keys() | by_hand | processes == NAMES.keys()


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}-{n}") for name, cases in CASES.items() for n, case in enumerate(cases)],
)
def test_a_broken_rule_is_found_by_its_name(name: str, case: Callable[[], Evidence]) -> None:
    assert name in names(check(case(), also=STRICT))


@pytest.mark.parametrize("name", sorted(STRICT))
def test_strict_rules_are_asked_for(name: str) -> None:
    assert names(check(CASES[name][0]())) == set()


def test_a_process_may_not_be_busy_in_vain() -> None:
    limits: dict[str, Any] = {"seconds": 2.0, "cpu_share": 0.25, "lines_per_second": 10}
    assert list(check_effort("consumer", cpu_seconds=0.5, log_lines=20, **limits)) == []
    assert names(check_effort("consumer", cpu_seconds=0.51, log_lines=20, **limits)) == {"too_much_cpu"}
    assert names(check_effort("consumer", cpu_seconds=0.5, log_lines=21, **limits)) == {"too_many_log_lines"}


def test_a_process_ends_well_when_it_is_told_to() -> None:
    assert list(check_exit("consumer", 0)) == []
    for code in (1, -9, None):
        assert names(check_exit("consumer", code, "a\nb")) == {"unclean_exit"}


# ── what is no violation ─────────────────────────────────────────────────────────────────────────────

HARMLESS: dict[str, Callable[[], Evidence]] = {
    "an edit that nobody knows of took effect": lambda: replace(
        fine(), story=replace(fine().story, accepted={"a", "c", "d"})
    ),
    "an edit was thrown away with the user store": lambda: replace(
        fine(), story=replace(fine().story, accepted={"a", "b", "c", "d", "e"}, forgotten={"e"})
    ),
    "a repeat": lambda: replace(fine(), stream=fine().stream | {"3-2": event(1)}),
    "an entry was trimmed after it was settled": lambda: without_entry(fine(), "1-0"),
    "a settled row was pruned": lambda: resettled(Change(event(1), "1-0", "superseded", None)),
    "a dead letter was redriven": lambda: with_group(
        resettled(Change(event(1), "1-0", "dead", "superseded")), letters=[Letter("3-1", "", "bad_json")]
    ),
    "an event of somebody else took effect": lambda: replace(
        with_projection(
            effects=[Effect(1, 1, "n 0", "t 0"), Effect(1, 2, "n z", "t z"), *fine().projections["group"].effects[1:]]
        ),
        story=replace(
            fine().story,
            injected=fine().story.injected | {"1-1": Injected("1-1", "settled", 1, values("z"))},
        ),
        stream=fine().stream | {"1-1": event(1)},
    ),
}


@pytest.mark.parametrize("case", HARMLESS.values(), ids=HARMLESS)
def test_what_is_harmless_is_not_found(case: Callable[[], Evidence]) -> None:
    assert check(case()) == []


def test_what_was_trimmed_while_pending_is_declared() -> None:
    evidence = without_entry(unsettled(1), "1-0")
    projection = evidence.projections["group"]
    declared = replace(
        projection,
        settled=projection.settled | {"entry:1-0": ("lost", "1-0")},
        changes=[*projection.changes, Change("entry:1-0", "1-0", None, "lost")],
        tallies=projection.tallies | {("", "lost"): 1, (OURS, "superseded"): 0},
    )
    assert names(check(replace(evidence, projections={"group": declared}))) == set()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_line_that_was_cut_short_was_not_written() -> None:
    story = parse(['{"attempt": "a", "user": 1, "values": {}, "deletes": false}', '{"accepted": "a"}', '{"accep'])
    assert (set(story.attempts), story.accepted) == ({"a"}, {"a"})


def test_entry_ids_compare_as_numbers() -> None:
    assert sorted(["10-0", "9-10", "9-9"], key=parts) == ["9-9", "9-10", "10-0"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"1", b"null", b"[]", b"{}", b'{"id": 7}', b'{"id": "x"}', b"[" * 9999]
)
def test_what_is_no_event_has_no_id(body: bytes) -> None:
    assert event_id_of(body) is None
