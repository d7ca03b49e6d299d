"""What must be true in a random history: after every step, and when all is healed. Names every broken promise.

Looks into the files past the code under test, at what triggers have written there, and at the in-memory server.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from imsync.bus.dead_letter import DeadLetterRecord
from imsync.bus.dead_letter import read as read_letter
from tests.faults.subjects import SETTLED_HOURS, USERS

if TYPE_CHECKING:
    from tests.faults.histories import World

FIRST = -(2**63)
MAX_ATTEMPTS = 3
MAX_DEATHS = 3


class Violation(AssertionError):
    """A promise is broken.

    Args:
        name: which one, for those who expect it.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


def holds(name: str, condition: bool, message: object = "") -> None:
    """Raises a violation of that name unless the condition is true."""
    if not condition:
        raise Violation(name, str(message))


def event_key(body: bytes | None) -> bytes | None:
    """The event id in a body, however it is read."""
    try:
        return UUID(json.loads(body or b"")["id"]).bytes
    except (ValueError, TypeError, KeyError):
        return None


def _comes_to(fan_out: tuple[int, int, bool] | None, place: int) -> bool:
    """Whether a fan-out will still visit a row: it goes from its position to the end, and then, if a newer version
    found it there, from the beginning to where that was.
    """
    if fan_out is None:
        return False
    position, until, wrapped = fan_out
    return position <= place < until if wrapped else place >= position or place < until


class Promises:
    """What was seen of a history's world so far, against which each look at it is held."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._copies = sqlite3.connect(world.projection_path, isolation_level=None)
        self._users = sqlite3.connect(world.users.path, isolation_level=None)
        self._versions = {} if world.kind.rows == "" else dict.fromkeys(USERS[:-1], 1)
        self.gone: set[int] = set()
        self._effects_read = 0
        self._keys: set[bytes] = set()
        self._settled_read = 0
        self._settled: dict[bytes, str] = {}
        self._forgotten: Counter[str] = Counter()
        self._may_repeat: Counter[bytes] = Counter()
        self._acknowledged_read = 0
        self._acknowledged: set[str] = set()
        self._letters: set[tuple[str, bytes]] = set()
        self.unvisited = 0
        """How many rows fan-outs had not come to at the last look."""
        self.overtaken = 0
        """How many fan-outs newer versions had found under way then."""

    def close(self) -> None:
        self._copies.close()
        self._users.close()

    # ── after every step ─────────────────────────────────────────────────────────────────────────────

    def check(self) -> None:
        self._read_settled()
        self._check_effects()
        if self._world.kind.rows:
            self._check_copies()
        self._check_tallies()
        self._check_acknowledged()
        self._check_order_of_sending()

    def _check_effects(self) -> None:
        world = self._world
        for n, user, version, nick, image, deleted, key in self._copies.execute(
            "SELECT n, user_id, version, nick, image, deleted, event_key FROM test_effects WHERE n > ?",
            (self._effects_read,),
        ).fetchall():
            self._effects_read = n
            told = f"user {user} got version {version} after {self._versions.get(user, 0)}"
            if world.kind.rows:
                holds("resurrected", user not in self.gone, told)
                holds("version_fell", version > self._versions.get(user, 0), told)
            else:
                repeats = key in self._keys
                holds("two_effects_of_one_event", not repeats or self._may_repeat[key] > 0, told)
                self._may_repeat[key] -= repeats
                self._keys.add(key)
            self._versions[user] = max(version, self._versions.get(user, 0))
            if deleted:
                self.gone.add(user)
            if nick != world.too_late:
                state = world.model.accepted.get((user, version))
                right = state and (world.kind.content(state), state.deleted) == ((nick, image), bool(deleted))
                holds("effect_without_edit", bool(right), f"{told}: {nick!r} {image!r} {deleted}, accepted: {state}")

    def unfinished(self) -> set[int]:
        """The users whose fan-out is under way."""
        if not self._world.kind.rows:
            return set()
        return {user for (user,) in self._copies.execute("SELECT user_id FROM fan_out")}

    def _check_copies(self) -> None:
        rows = self._world.kind.rows
        under_way = {
            user: (position, until, bool(wrapped))
            for user, position, until, wrapped in self._copies.execute(
                "SELECT user_id, position, until, wrapped FROM fan_out"
            )
        }
        differing = self._copies.execute(
            f"SELECT user_id, place FROM ({rows}) AS copy LEFT JOIN user_profile_replica AS r USING (user_id) "
            "WHERE copy.nick <> coalesce(r.nick_name, '') OR copy.image <> coalesce(r.head_image, '')"
        ).fetchall()
        wrong = [(user, place) for user, place in differing if not _comes_to(under_way.get(user), place)]
        self.unvisited = len(differing)
        self.overtaken = sum(until > FIRST for _, until, _ in under_way.values())
        holds("copies_differ", not wrong, f"{wrong} are not what the replica says, and no fan-out comes to them")
        remarks = {row[:2]: row[2] for row in self._copies.execute(f"SELECT user_id, place, remark FROM ({rows})")}
        holds("override_touched", remarks == self._world.remarks, f"{remarks}, not {self._world.remarks}")

    def _tallies(self) -> Counter[tuple[bool, str]]:
        """How many events were settled, by whether they are of our user store, and how."""
        total: Counter[tuple[bool, str]] = Counter()
        for source, outcome, n in self._copies.execute("SELECT source, outcome, n FROM tally"):
            total[source == self._world.users.source, outcome] += n
        return total

    def _read_settled(self) -> None:
        for n, key, outcome, entry_id, first in self._copies.execute(
            "SELECT n, event_key, outcome, entry_id, first FROM test_settled WHERE n > ?", (self._settled_read,)
        ).fetchall():
            self._settled_read = n
            if first and key in self._settled:
                age_hours = (self._world.now_ms - self._world.first_written_ms(key)) / 3_600_000
                told = f"{key!r} after {age_hours:.1f} h: {self._settled[key]}, {outcome}"
                given_once = len(self._world.memory.written[self._world.stream.key, entry_id]) == 1
                known = entry_id in self._acknowledged and given_once
                holds("pruned_too_early", age_hours > SETTLED_HOURS and not known, told)
                self._forgotten[self._settled[key]] += 1
                self._may_repeat[key] += 1
            self._settled[key] = outcome

    def _check_tallies(self) -> None:
        tallies: Counter[str] = Counter()
        for (_, outcome), n in self._tallies().items():
            tallies[outcome] += n
        rows = Counter(self._settled.values()) + self._forgotten
        agree = all(rows[outcome] == tallies[outcome] for outcome in ("applied", "superseded", "dead", "lost"))
        holds(
            "accounting_open",
            agree and tallies["applied"] == self._effects_read,
            f"settled {dict(rows)}, tallies {dict(tallies)}, effects {self._effects_read}",
        )

    def _check_acknowledged(self) -> None:
        memory, stream = self._world.memory, self._world.stream
        acknowledged = memory.acknowledged[self._acknowledged_read :]
        self._acknowledged_read += len(acknowledged)
        if not acknowledged:
            return
        self._acknowledged.update(entry_id for _, entry_id, _ in acknowledged)
        letters = [read_letter(entry) for entry in self._world.letters.range()]
        for letter in letters:
            body = letter.raw.get(b"event", b"")
            written = memory.written[stream.key, letter.source_id]
            holds("dead_letter_garbled", {b"event": body} in written, f"{body[:60]!r}")
            holds("innocent_dead_letter", not self._is_innocent(letter, body), f"{letter.reason}: {body[:60]!r}")
            self._letters.add((letter.source_id, body))
        for _, entry_id, fields in acknowledged:
            body = fields[b"event"]
            key = self.key_of(entry_id, body)
            outcome = self._settled.get(key) or self._settled.get(b"entry:" + entry_id.encode())
            trimmed = (entry_id, body) in self._world.trimmed
            # of an id that was given twice, its first entry may be the one that is known
            ambiguous = trimmed and len(memory.written[stream.key, entry_id]) > 1
            holds("acknowledged_before_commit", outcome is not None or ambiguous, f"entry {entry_id}: {body[:60]!r}")
            if outcome == "dead" and not trimmed:
                known = any(event_key(seen) == event_key(body) for _, seen in self._letters)
                found = (entry_id, body) in self._letters or (body not in self._world.poison and known)
                holds("dead_letter_missing", found, f"of entry {entry_id}: {body[:60]!r}")

    def is_dead(self, key: bytes) -> bool:
        """Whether an event is settled as dead."""
        return self._settled.get(key) == "dead"

    def key_of(self, entry_id: str, body: bytes) -> bytes:
        """What an entry is settled as."""
        key = None if body in self._world.poison else event_key(body)
        return key or b"entry:" + entry_id.encode()

    def _is_innocent(self, letter: DeadLetterRecord, body: bytes) -> bool:
        memory, entry_id = self._world.memory, letter.source_id
        # records are kept by entry id, so those of an id that was given twice count for both
        given_twice = len(memory.written[self._world.stream.key, entry_id]) > 1
        match letter.reason:
            case "max_attempts":
                return self._world.failures[letter.event_id] < (1 if given_twice else MAX_ATTEMPTS)
            case "kills_consumer":  # it did, or may have: somebody ended, or seemed to, while it was being tried alone
                key, begins = self._world.keys.attempting(self._world.kind.name), f"{entry_id}/".encode()
                marks = memory.marks.items()
                tried = sum(n for (name, mark), n in marks if name == key and mark.startswith(begins))
                return event_key(body) not in self._world.deadly and tried < MAX_DEATHS
        return body not in self._world.poison

    def _check_order_of_sending(self) -> None:
        if self._world.disordered or self._world.shuffled:
            self._world.disordered = bool(self._world.users.unsent(1))
            return
        overtaken = self._users.execute(
            "SELECT a.user_id FROM outbox AS a JOIN outbox AS b ON b.user_id = a.user_id AND b.seq > a.seq "
            "WHERE a.sent_ms IS NULL AND b.sent_ms IS NOT NULL"
        ).fetchall()
        holds("overtaken", not overtaken, f"a later edit of users {overtaken} was sent before an earlier one")

    # ── when all is healed ───────────────────────────────────────────────────────────────────────────

    def check_end(self) -> None:
        published = [row[0] for row in self._users.execute("SELECT event_key FROM test_published")]
        holds("outbox_left", self._world.users.backlog().unsent == 0)
        if self._world.kind.rows:
            holds("copies_differ", not self.unfinished(), f"the fan-outs of {self.unfinished()} never end")
            self._check_converged()
        else:
            missing = set(published) - self._keys - self._world.missed
            holds("accepted_edit_without_outcome", not missing, f"{len(missing)} events never took effect")
        tallies = self._tallies()
        counted = self._world.users.published()
        settled = sum(tallies[True, outcome] for outcome in ("applied", "superseded", "dead"))
        told = f"{len(published)} enqueued, {counted} published, {dict(tallies)}"
        holds("accounting_open", counted == len(published), told)
        open_ = counted - settled
        holds("accounting_open", -self._forgotten.total() <= open_ <= len(self._world.missed), told)

    def _check_converged(self) -> None:
        world = self._world
        replicas = {
            user: (version, (nick, image), bool(deleted))
            for user, version, nick, image, deleted in self._copies.execute(
                "SELECT user_id, version, nick_name, head_image, deleted FROM user_profile_replica"
            )
        }
        at_least: dict[int, int] = {}
        for key, user, version in self._users.execute("SELECT event_key, user_id, version FROM test_published"):
            if key in world.missed:
                at_least.setdefault(user, 1)
            elif user in at_least:
                at_least[user] = version
        for user, state in world.model.users.items():
            found = replicas.get(user)
            if user in at_least and (found[0] if found else 1) >= at_least[user]:
                continue  # what was trimmed before it was read is lost; any version after that must be there
            expected = (state.version, world.kind.content(state), state.deleted)
            holds("copies_differ", found == expected, f"user {user}: {found}, not {expected}")

    def check_copy(self, path: Path) -> None:
        """Of a copy that its group takes for its own: what was acknowledged has been settled in it."""
        with closing(sqlite3.connect(path)) as copy:
            there = {key for (key,) in copy.execute("SELECT event_key FROM settled")}
        here = {key for (key,) in self._copies.execute("SELECT event_key FROM settled")}
        acknowledged = {
            self.key_of(entry_id, fields[b"event"]) for _, entry_id, fields in self._world.memory.acknowledged
        }
        missing = (acknowledged & here) - there
        holds("old_copy_accepted", not missing, f"{len(missing)} acknowledged events are not in it")
