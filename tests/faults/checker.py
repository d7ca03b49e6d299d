"""Judges evidence: what must be true after every fault, once everything is healed and at rest.

Every rule is a pure function of the evidence and has a name, which is stable. A violation says which rule was broken,
where, and what shows it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from tests.faults.evidence import PICTURES, Effect, Evidence, Projection, Published, parts
from tests.faults.history import FIELDS, Attempt, Injected

NAMES = {
    "accepted_edit_without_outcome": "an accepted edit has no event, or its event no outcome in a group",
    "effect_without_edit": "an event or a copy says what nobody has ever asked for",
    "edit_without_event": "a user's row is ahead of its events",
    "two_edits_of_one_version": "two events of one user carry one version",
    "version_fell": "the version of a user in a projection did not rise",
    "resurrected": "a user in a projection changed after its tombstone",
    "replica_removed": "a projection has forgotten a user",
    "two_effects_of_one_event": "an event has changed a projection twice",
    "outcome_contradicts_effect": "an event is settled as one thing and did another",
    "outcome_changed": "an outcome was written, and another one over it",
    "pruned_too_early": "a repeat was not recognised: its settled row was gone",
    "accounting_open": "the numbers do not add up",
    "copies_differ": "a copy is not what the user store says",
    "override_touched": "somebody's own name for another was changed",
    "group_missing": "the consumer group does not exist",
    "pending_left": "entries are still pending",
    "undelivered_left": "entries were not delivered to the group",
    "outbox_left": "events wait in the outbox",
    "entry_lost_silently": "an entry is gone without an outcome, and nobody says that it was lost",
    "acknowledged_before_commit": "an entry was acknowledged without an outcome",
    "skipped_by_group": "an entry is neither pending nor acknowledged, and has no outcome",
    "dead_letter_missing": "an event is dead and there is no letter, or poison that is not dead",
    "buried_twice": "an entry has more than one dead letter",
    "innocent_dead_letter": "a dead letter of an event that was fine",
    "published_twice": "an event stands in the stream twice though nothing was wrong",
    "published_out_of_order": "a user's events stand in the stream in another order than they were made",
    "no_progress": "it did not come to rest in time",
    "too_much_cpu": "a process was busy while it could do nothing",
    "too_many_log_lines": "a process said the same again and again",
    "unclean_exit": "a process that was told to stop did not end well",
}
"""Every rule, by its name, and what it means when it is broken."""

STRICT = frozenset({"published_twice", "published_out_of_order"})
"""Rules that hold only where nothing between the relay and the server was disturbed; they are asked for by name."""

OUTCOMES = ("applied", "superseded", "dead")


@dataclass(frozen=True)
class Violation:
    """A broken rule.

    Args:
        name: one of `NAMES`.
        where: `user store`, a service, or a process.
        details: what shows it.
    """

    name: str
    where: str
    details: str

    def __post_init__(self) -> None:
        assert self.name in NAMES, self.name

    def __str__(self) -> str:
        return f"{self.name} ({self.where}): {self.details}"


def check(evidence: Evidence, *, also: Collection[str] = ()) -> list[Violation]:
    """All violations.

    Args:
        also: rules of `STRICT` to check besides.
    """
    found = [*check_source(evidence), *check_outbox(evidence), *check_published(evidence, also)]
    for service in evidence.projections:
        for rule in _RULES:
            found += rule(evidence, service)
    return found


# ── the user store ───────────────────────────────────────────────────────────────────────────────────


def check_source(evidence: Evidence) -> Iterator[Violation]:
    """Every accepted edit is an event, and every event is an attempted edit."""
    source, story = evidence.source, evidence.story
    by_user: dict[int, list[Published]] = defaultdict(list)
    for event in source.outbox:
        by_user[event.user].append(event)
    for token in sorted(story.accepted - story.forgotten):
        attempt = story.attempts[token]
        if not any(comes_from(event, attempt) for event in by_user[attempt.user]):
            yield Violation("accepted_edit_without_outcome", "user store", f"no event of {_told(attempt)}")
    known = known_values(evidence)
    for user, events in by_user.items():
        versions = Counter(event.version for event in events)
        for version, n in versions.items():
            if n > 1:
                yield Violation("two_edits_of_one_version", "user store", f"user {user} version {version}: {n} events")
        began = evidence.began.get(user)
        before = began.values if began else None
        for event in sorted(events, key=lambda event: event.version):
            if ghost := ghost_of(event.user, event.values, known):
                yield Violation("effect_without_edit", "user store", f"event {event.event_id}: {ghost}")
            elif event.values is not None and event.values == before and user not in story.touched:
                text = f"user {user} version {event.version} says nothing that version before did not"
                yield Violation("effect_without_edit", "user store", text)
            before = event.values
    for user, row in source.users.items():
        began = evidence.began.get(user)
        if began is not None and row == began:
            continue
        contents = {event.version: event.values for event in by_user[user]}
        first = began.version + 1 if began is not None else 1
        missing = [version for version in range(first, row.version + 1) if version not in contents]
        if missing and user not in story.touched:  # a repair skips versions
            yield Violation("edit_without_event", "user store", f"user {user}: no event of versions {missing[:5]}")
        elif contents.get(row.version, {}) != (None if row.deleted else row.values):
            text = f"user {user} version {row.version}: the row has {row.values}, its event {contents.get(row.version)}"
            yield Violation("edit_without_event", "user store", text)


def check_outbox(evidence: Evidence) -> Iterator[Violation]:
    """Nothing waits, and what was published is counted."""
    source = evidence.source
    unsent = [event for event in source.outbox if not event.sent]
    if unsent:
        yield Violation("outbox_left", "user store", f"{len(unsent)} events, first {unsent[0].event_id}")
    sent = len(source.outbox) - len(unsent)
    if source.published != sent:
        yield Violation("accounting_open", "user store", f"published says {source.published}, and {sent} rows are sent")


def check_published(evidence: Evidence, also: Collection[str]) -> Iterator[Violation]:
    """What stands in the stream, where nothing has disturbed the relay."""
    events = {event.event_id: event for event in evidence.source.outbox}
    entries: dict[str, list[str]] = defaultdict(list)
    for entry_id, event_id in evidence.stream.items():
        if event_id in events and entry_id not in evidence.story.injected:
            entries[event_id].append(entry_id)
    if "published_twice" in also:
        for event_id, ids in entries.items():
            if len(ids) > 1:
                yield Violation("published_twice", "stream", f"event {event_id} is in entries {', '.join(ids)}")
    if "published_out_of_order" in also:
        newest: Counter[int] = Counter()
        for event_id in sorted(entries, key=lambda event_id: parts(entries[event_id][0])):
            event = events[event_id]
            if event.version < newest[event.user]:
                text = f"user {event.user}: version {event.version} comes after {newest[event.user]}"
                yield Violation("published_out_of_order", "stream", text)
            newest[event.user] = max(newest[event.user], event.version)


# ── a projection ─────────────────────────────────────────────────────────────────────────────────────


def check_effects(evidence: Evidence, service: str) -> Iterator[Violation]:
    """Versions strictly rise, one effect per event, a tombstone is the end, and nothing comes from nowhere."""
    known = known_values(evidence)
    last: dict[int, Effect] = {}
    for effect in evidence.projections[service].effects:
        before, last[effect.user] = last.get(effect.user), effect
        if effect.version is None:
            yield Violation("replica_removed", service, f"user {effect.user}")
            continue
        values = None if effect.deleted else seen_by(service, effect)
        if ghost := ghost_of(effect.user, values, known):
            yield Violation("effect_without_edit", service, f"user {effect.user} version {effect.version}: {ghost}")
        if before is None or before.version is None:
            continue
        if before.deleted:
            yield Violation("resurrected", service, f"user {effect.user}: {before} then {effect}")
        elif effect == before:
            yield Violation("two_effects_of_one_event", service, f"user {effect.user} version {effect.version}")
        elif effect.version <= before.version:
            text = f"user {effect.user}: {before.version} then {effect.version}"
            yield Violation("version_fell", service, text)


def check_copies(evidence: Evidence, service: str) -> Iterator[Violation]:
    """The projection is what the user store says, its rows are what the projection says, overrides stay."""
    projection, picture = evidence.projections[service], PICTURES[service]
    differing = []
    for user, row in evidence.source.users.items():
        right = Effect(user, row.version, row.values["nick_name"], row.values[picture], row.deleted)
        replica = projection.replicas.get(user)
        if replica != right:
            differing.append(f"user {user}: the user store has {right}, the projection {replica}")
    for user in projection.replicas.keys() - evidence.source.users.keys():
        differing.append(f"user {user} is in the projection only")
    for copy in projection.copies:
        replica = projection.replicas.get(copy.user)
        right_content = (replica.nick_name, replica.head_image) if replica else ("", "")
        if (copy.nick_name, copy.head_image) != right_content:
            differing.append(f"user {copy.user}: {copy}, the projection has {replica}")
    for text in differing:
        yield Violation("copies_differ", service, text)
    remarks = dict(evidence.remarks.get(service, {}))
    for copy in [*projection.copied, *projection.copies]:
        place = (copy.user, copy.place)
        if remarks.setdefault(place, copy.remark) != copy.remark:
            yield Violation("override_touched", service, f"user {copy.user} in {copy.place}: {copy.remark!r}")
            remarks[place] = copy.remark


def check_settlements(evidence: Evidence, service: str) -> Iterator[Violation]:
    """An outcome is written once; only the dead may be revived."""
    outcomes: dict[str, str | None] = {}
    for change in evidence.projections[service].changes:
        known = change.key in outcomes
        before, outcomes[change.key] = outcomes.get(change.key), change.after
        if known and before is None and change.after is not None:
            yield Violation("pruned_too_early", service, f"{change.key} was settled again as {change.after}")
        elif change.before is not None and change.after is not None:
            revived = change.before == "dead" and change.after in ("applied", "superseded")
            if not revived and change.before != change.after:
                text = f"{change.key}: {change.before} then {change.after}"
                yield Violation("outcome_changed", service, text)


def check_outcomes(evidence: Evidence, service: str) -> Iterator[Violation]:
    """Every event has an outcome, and it is the one that happened."""
    projection = evidence.projections[service]
    outcomes = final_outcomes(projection)
    lost = {key.removeprefix("entry:") for key, outcome in outcomes.items() if outcome == "lost"}
    events = {event.event_id: event for event in evidence.source.outbox}
    where = _Whereabouts(evidence, service)
    accepted = _accepted_events(evidence)
    for event in events.values():
        if event.event_id in outcomes or not event.sent:
            continue
        fate = where.of_event(event.event_id)
        if fate in ("pending", "undelivered") or (fate == "gone" and event.entry_id in lost):
            continue
        yield Violation(_FATES[fate], service, f"event {event.event_id}, sent as {event.entry_id}")
        if event.event_id in accepted:
            text = f"event {event.event_id} of {_told(accepted[event.event_id])}"
            yield Violation("accepted_edit_without_outcome", service, text)
    for entry in evidence.story.injected.values():
        event_id = evidence.stream.get(entry.entry_id)
        keys = {f"entry:{entry.entry_id}", event_id}
        if keys & outcomes.keys() or entry.entry_id in {change.entry_id for change in projection.changes}:
            continue
        fate = where.of_entry(entry.entry_id)
        if fate not in ("pending", "undelivered"):
            yield Violation(_FATES[fate], service, f"injected entry {entry.entry_id}")
    if service not in evidence.rebuilt:
        yield from _contradictions(evidence, projection, outcomes)


def check_dead_letters(evidence: Evidence, service: str) -> Iterator[Violation]:
    """One letter for each that is dead, and none for anybody else."""
    projection, group = evidence.projections[service], evidence.groups[service]
    letters = {letter.source_id for letter in group.letters}
    events = {_without_dashes(letter.event_id) for letter in group.letters if letter.event_id}
    dead_entries = set()
    for key, (outcome, entry_id) in projection.settled.items():
        if outcome == "dead":
            dead_entries.add(entry_id)
            if entry_id not in letters and key not in events:
                yield Violation("dead_letter_missing", service, f"{key}, entry {entry_id}")
    poison = {entry.entry_id: entry for entry in evidence.story.injected.values() if entry.expects == "dead"}
    for entry_id in poison:
        if entry_id not in letters and entry_id not in dead_entries and entry_id not in group.pending:
            yield Violation("dead_letter_missing", service, f"poison in entry {entry_id}")
    for entry_id, number in Counter(letter.source_id for letter in group.letters).items():
        if number > 1:
            yield Violation("buried_twice", service, f"entry {entry_id}: {number} letters")
    for letter in group.letters:
        if letter.source_id not in poison:
            text = f"entry {letter.source_id}, event {letter.event_id}: {letter.reason}"
            yield Violation("innocent_dead_letter", service, text)


def check_accounting(evidence: Evidence, service: str) -> Iterator[Violation]:
    """The tallies count what is settled, and everything that was published is among it."""
    projection, name = evidence.projections[service], evidence.source.name
    ours = {event.event_id for event in evidence.source.outbox}
    outcomes = final_outcomes(projection)
    counted = Counter(outcome for key, outcome in outcomes.items() if key in ours)
    for outcome in OUTCOMES:
        tally = projection.tallies.get((name, outcome), 0)
        if tally != counted[outcome]:
            text = f"{outcome}: the tally says {tally}, and {counted[outcome]} are settled"
            yield Violation("accounting_open", service, text)
    covered = sum(n for (_, outcome), n in projection.tallies.items() if outcome == "covered")
    lost = sum(n for (_, outcome), n in projection.tallies.items() if outcome == "lost")
    done = sum(projection.tallies.get((name, outcome), 0) for outcome in OUTCOMES) + covered
    if not done <= evidence.source.published <= done + lost:
        text = f"{evidence.source.published} were published, {done} are settled, {lost} are lost"
        yield Violation("accounting_open", service, text)


def check_rest(evidence: Evidence, service: str) -> Iterator[Violation]:
    """The group has been given everything, and holds nothing."""
    group = evidence.groups[service]
    if not group.exists:
        yield Violation("group_missing", service, f"{len(evidence.stream)} entries are in the stream")
        return
    if group.pending:
        holders = Counter(group.pending.values())
        text = f"{len(group.pending)}, first {min(group.pending, key=parts)}, held by {dict(holders)}"
        yield Violation("pending_left", service, text)
    left = [entry_id for entry_id in evidence.stream if parts(entry_id) > parts(group.last_delivered)]
    if left:
        yield Violation("undelivered_left", service, f"{len(left)} after {group.last_delivered}, first {left[0]}")


_RULES: tuple[Callable[[Evidence, str], Iterator[Violation]], ...] = (
    check_effects,
    check_copies,
    check_settlements,
    check_outcomes,
    check_dead_letters,
    check_accounting,
    check_rest,
)


# ── processes ────────────────────────────────────────────────────────────────────────────────────────


def check_effort(
    who: str, *, seconds: float, cpu_seconds: float, log_lines: int, cpu_share: float, lines_per_second: float
) -> Iterator[Violation]:
    """What a process has used and said in a time in which it could do nothing.

    Args:
        cpu_share: how much of one processor it may use.
        lines_per_second: how much it may say, on average.
    """
    if cpu_seconds > cpu_share * seconds:
        yield Violation("too_much_cpu", who, f"{cpu_seconds:.2f} s of {seconds:.2f} s")
    if log_lines > lines_per_second * seconds:
        yield Violation("too_many_log_lines", who, f"{log_lines} in {seconds:.2f} s")


def check_exit(who: str, exit_code: int | None, log: str = "") -> Iterator[Violation]:
    """How a process that was told to stop has ended."""
    if exit_code != 0:
        last = "; ".join(log.splitlines()[-3:])
        yield Violation("unclean_exit", who, f"{'did not end' if exit_code is None else exit_code}; {last}")


# ── what the rules have in common ────────────────────────────────────────────────────────────────────

Known = Mapping[tuple[int, str], Collection[str | None]]
"""By (user, field): all values that anybody has asked for. Under the field `deleted`: whether it was deleted."""

_FATES = {
    "acknowledged": "acknowledged_before_commit",
    "skipped": "skipped_by_group",
    "gone": "entry_lost_silently",
}


def _without_dashes(event_id: str) -> str:
    return event_id.replace("-", "")


def known_values(evidence: Evidence) -> Known:
    """What has been asked for, from the first state on."""
    known: dict[tuple[int, str], set[str | None]] = defaultdict(set)
    for user, row in evidence.began.items():
        if row.deleted:
            known[user, "deleted"].add("")
        for name, value in row.values.items():
            known[user, name].add(value)
    asked: list[Attempt | Injected] = [*evidence.story.attempts.values(), *evidence.story.injected.values()]
    for each in asked:
        if each.deletes:
            known[each.user, "deleted"].add("")
        for name, value in each.values.items():
            known[each.user, name].add(value)
    return known


def ghost_of(user: int, values: Mapping[str, str] | None, known: Known) -> str:
    """What of this nobody has asked for, in words; empty when all is known. None is a deletion."""
    if values is None:
        return "" if known.get((user, "deleted")) else f"nobody has deleted user {user}"
    for name, value in values.items():
        if value not in known.get((user, name), ()):
            return f"nobody has set {name} of user {user} to {value!r}"
    return ""


def seen_by(service: str, effect: Effect) -> dict[str, str]:
    """What a service's copy says, by the fields of the profile."""
    return {"nick_name": effect.nick_name, PICTURES[service]: effect.head_image}


def comes_from(event: Published, attempt: Attempt) -> bool:
    """Whether an event may be that of an edit. Values are unique, so the oldest such event is."""
    if event.values is None:
        return attempt.deletes
    return not attempt.deletes and all(event.values[name] == value for name, value in attempt.values.items())


def final_outcomes(projection: Projection) -> dict[str, str]:
    """How each event was settled, those whose rows have been pruned since included."""
    outcomes = {key: outcome for key, (outcome, _) in projection.settled.items()}
    pruned = {change.key: change.before for change in projection.changes if change.after is None}
    return {key: outcome for key, outcome in pruned.items() if outcome is not None} | outcomes


def _accepted_events(evidence: Evidence) -> dict[str, Attempt]:
    """The events of accepted edits."""
    story = evidence.story
    by_value: dict[tuple[int, str, str], Attempt] = {}
    deletions: dict[int, Attempt] = {}
    for token in story.accepted - story.forgotten:
        attempt = story.attempts[token]
        if attempt.deletes:
            deletions[attempt.user] = attempt
        for name, value in attempt.values.items():
            by_value[attempt.user, name, value] = attempt
    found: dict[str, Attempt] = {}
    seen: set[str] = set()
    for event in sorted(evidence.source.outbox, key=lambda event: event.version):
        if event.values is None:
            if event.user in deletions:
                found[event.event_id] = deletions[event.user]
            continue
        for name in FIELDS:
            attempt_of_value = by_value.get((event.user, name, event.values[name]))
            if attempt_of_value is not None and attempt_of_value.token not in seen:
                seen.add(attempt_of_value.token)
                found[event.event_id] = attempt_of_value
    return found


def _contradictions(evidence: Evidence, projection: Projection, outcomes: Mapping[str, str]) -> Iterator[Violation]:
    effects = {(effect.user, effect.version) for effect in projection.effects}
    claimed = Counter((event.user, event.version) for event in evidence.source.outbox)
    foreign = {entry.user for entry in evidence.story.injected.values()}
    for event in evidence.source.outbox:
        version = (event.user, event.version)
        if claimed[version] > 1 or event.user in foreign:
            continue  # there is no telling whose effect it is
        outcome = outcomes.get(event.event_id)
        if (outcome == "applied") != (version in effects):
            did = "took effect" if version in effects else "took no effect"
            text = f"event {event.event_id} (user {event.user} version {event.version}) is {outcome}, and {did}"
            if outcome is not None or version in effects:
                yield Violation("outcome_contradicts_effect", projection.service, text)


class _Whereabouts:
    """Where entries without an outcome are, as a group sees them."""

    def __init__(self, evidence: Evidence, service: str) -> None:
        self._group = evidence.groups[service]
        self._stream = evidence.stream
        heard = evidence.acknowledged
        self._acknowledged = None if heard is None else heard.get(service, ())
        self._entries: dict[str, list[str]] = defaultdict(list)
        for entry_id, event_id in evidence.stream.items():
            if event_id is not None:
                self._entries[event_id].append(entry_id)

    def of_event(self, event_id: str) -> str:
        """The best that can be said of any of its entries."""
        fates = {self.of_entry(entry_id) for entry_id in self._entries.get(event_id, ())}
        return next((fate for fate in ("pending", "undelivered", "acknowledged", "skipped") if fate in fates), "gone")

    def of_entry(self, entry_id: str) -> str:
        if entry_id in self._group.pending:
            return "pending"
        if entry_id not in self._stream:
            return "gone"
        if parts(entry_id) > parts(self._group.last_delivered):
            return "undelivered"
        return "acknowledged" if self._acknowledged is None or entry_id in self._acknowledged else "skipped"


def _told(attempt: Attempt) -> str:
    what = "deletion" if attempt.deletes else "edit"
    return f"{what} {attempt.token} of user {attempt.user}"
