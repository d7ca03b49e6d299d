"""What `imsync verify` tells, and how a repair goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from imsync.cli.run import Run

if TYPE_CHECKING:
    from imsync.im.flight import Flight
    from imsync.im.repair import Plan, Rechecked, Touched
    from imsync.im.user_store import UserStore
    from imsync.im.verify import Drift, Verdict
    from imsync.store.projection import Copies

REMEDIES = {
    "dead_lettered": "imsync dead list tells why; --repair sends a newer event",
    "trimmed": "--repair; find out who trims the stream",
    "lost_by_server": "imsync relay sends it again; --repair if it is too old",
    "stale_join": "--repair; joins must copy from the replica",
    "edited": "--repair makes the copy as its source again",
    "ahead": "was user.db restored? --repair makes the copies follow it",
    "missing": "--repair",
    "orphan": "--repair deletes the user at the source, and so the copies",
    "resurrected": "--repair deletes the copies again",
    "unknown": "--repair",
}
"""What helps, by cause. A line of a terminal holds it."""

PLACES = {
    "outbox": "in the outbox",
    "undelivered": "undelivered",
    "pending": "pending",
    "fan_out": "in an unfinished fan-out",
    "after_export": "after the export",
    "editing": "being edited",
}
"""What people call the places where an event may be on its way."""


def describe(verdict: Verdict, plan: Plan | None = None) -> dict[str, object]:
    """A verdict for programs."""
    return {
        "users": verdict.users,
        "rows": verdict.rows,
        "drift": verdict.drift,
        "in_flight": verdict.in_flight,
        "flight": {place: verdict.ways[place] for place in PLACES} | {"held_by": _holders(verdict)},
        "causes": {str(cause): n for cause, n in verdict.causes.most_common()},
        "unrepairable": verdict.unrepairable,
        "repaired": 0,
        "examples": [_example(drift, plan) for drift in verdict.examples],
    }


def _holders(verdict: Verdict) -> list[dict[str, object]]:
    from imsync.cli.names import readable

    return [
        {"projection": projection, "consumer": readable(consumer), "users": n}
        for (projection, consumer), n in verdict.held_by.most_common()
    ]


def _example(drift: Drift, plan: Plan | None) -> dict[str, object]:
    return {
        "user": drift.user_id,
        "projection": drift.projection,
        "cause": str(drift.cause),
        "detail": drift.detail,
        "mend": str(drift.mend),
        "source_version": drift.source_version,
        "copy_version": drift.copy_version,
    } | ({"new_version": plan.new_version(drift.user_id)} if plan else {})


def report(run: Run, verdict: Verdict) -> None:
    """Prints a verdict."""
    if run.as_json:
        run.out.row(describe(verdict))
    else:
        _show(run, verdict, None)


def _show(run: Run, verdict: Verdict, plan: Plan | None) -> None:
    from imsync.cli.lines import fold
    from imsync.cli.render import number

    if verdict.examples:
        columns = ("#user", "projection", "cause", "#source", "#copy", *(("#new",) if plan else ()))
        rows = [
            (e.user_id, e.projection, e.cause, _version(e.source_version), _version(e.copy_version))
            + ((_version(plan.new_version(e.user_id)),) if plan else ())
            for e in verdict.examples
        ]
        run.out.table(columns, rows)
        if len(verdict.examples) <= 3:
            for each in verdict.examples:
                run.out.text(f"{each.user_id} in {each.projection}:")
                run.out.text(f"  {each.detail}")
    if verdict.drift > len(verdict.examples) > 0:
        run.out.text(f"… and {number(verdict.drift - len(verdict.examples))} more: see --examples")
    for cause, n in verdict.causes.most_common():
        # what helps is about a touch; where none reaches, the lines below say what does
        run.out.text(f"{cause} {n:,}" if n == verdict.beyond[cause] else f"{cause} {n:,}: {REMEDIES[cause]}")
    for line in _left(verdict):
        run.out.text(line)
    for projection, n in sorted(verdict.unfinished.items()):
        users = "1 user" if n == 1 else f"{n:,} users"
        run.out.text(f"{projection}: fan-out of {users} unfinished: start imsync consume {projection}")
    found = "no drift" if not verdict.drift else f"{verdict.drift:,} drifted"
    users = "1 user" if verdict.users == 1 else f"{verdict.users:,} users"
    copies = "1 row" if verdict.rows == 1 else f"{verdict.rows:,} rows"
    summary = f"{users}, {copies}: {found}{_flight(verdict)}"
    # one line for whoever searches it; whoever reads it may have a narrow terminal
    for line in fold(summary) if run.out.on_a_terminal else [summary]:
        run.out.text(line)


def _version(version: int | None) -> str:
    """A version as a table has room for it."""
    from imsync.store.projection import NO_ROOM

    if version is None:
        return "-"
    return str(version) if version < NO_ROOM else f"2^63-{2**63 - version}"


def _left(verdict: Verdict) -> list[str]:
    """What a touch does not mend, and what does."""
    from imsync.im.causes import Mend

    lines = []
    for (projection, mend), n in sorted(verdict.mends.items()):
        if mend is Mend.BY_HAND:
            lines.append(f"{projection}: no event can carry the ids of {n:,}: delete their rows by hand")
        elif mend is not Mend.TOUCH:
            first = "--repair, then " if mend is Mend.TOUCH_REBUILD else ""
            lines.append(f"{projection}: no event reaches {n:,} of them: {first}imsync rebuild {projection}")
    return lines


def _flight(verdict: Verdict) -> str:
    from imsync.cli.names import readable

    if not verdict.in_flight:
        return ""
    parts = [f"{n:,} {PLACES[place]}" for place, n in verdict.ways.items() if place != "pending"]
    parts += [f"{n:,} with {readable(consumer)}" for (_, consumer), n in verdict.held_by.most_common(3)]
    return f", {verdict.in_flight:,} in flight ({', '.join(parts)})"


class Repair:
    """A repair after a comparison: the plan, the question, the touch, the relay, and the look afterwards."""

    def __init__(
        self,
        run: Run,
        users: UserStore,
        projections: Sequence[Copies],
        flight_to: Callable[[str], Flight],
        verdict: Verdict,
        plan: Plan,
    ) -> None:
        self._run = run
        self._users = users
        self._projections = projections
        self._flight_to = flight_to
        self._verdict = verdict
        self._plan = plan

    def carry_out(self, *, dry_run: bool, yes: bool, patience_seconds: float | None) -> bool:
        """Repairs what was found, and prints what came of it; whether no drift is left.

        Args:
            patience_seconds: how long to wait for the groups; None does not wait, and so proves nothing.
        """
        from imsync.cli.confirm import confirm
        from imsync.im.wording import counted

        run, plan = self._run, self._plan
        planned = plan.to_touch
        if not run.as_json:
            _show(run, self._verdict, plan)
        if dry_run or not planned:
            self._tell(planned, dry_run=dry_run)
            return not self._verdict.drift
        confirm(run, f"publish {counted(planned, 'user')} anew, under a higher version each?", yes=yes)
        from imsync.im.repair import touch

        with run.out.progress("touching", planned) as advance:
            touched = touch(self._users, plan, on_users=advance)
        for user_id, why in list(touched.refused.items())[:10]:
            run.out.note(f"user {user_id} was not touched: {why}")
        published, relayed = self._relay(touched.last_seq)
        checked = None
        if patience_seconds is not None and relayed:
            checked = self._look_again(touched.users, patience_seconds)
        self._tell(planned, touched=touched, published=published, checked=checked)
        return checked is not None and checked.repaired == plan.drifted and not self._verdict.unrepairable

    def _relay(self, last_seq: int) -> tuple[int, bool]:
        """Publishes the outbox, as `imsync publish` does: how many events, and whether all went."""
        from imsync.bus.publisher import Publisher
        from imsync.errors import ImsyncError
        from imsync.im.events import DESTINATION

        try:
            bus = self._run.bus
            publisher = Publisher(bus.stream(DESTINATION), self._users.source, attempts=2, telemetry=bus.telemetry)
            relay = self._run.relay(self._users, publisher=publisher)
        except ImsyncError as error:
            self._say_kept(error)
            return 0, False
        try:
            relay.deliver(last_seq)
        except ImsyncError as error:
            self._say_kept(error)
            return relay.published, False
        return relay.published, True

    def _say_kept(self, error: Exception) -> None:
        self._run.out.note(f"{error}; the events are kept in the outbox and will be sent later: imsync relay")

    def _look_again(self, touched: int, patience_seconds: float) -> Rechecked:
        from imsync.bus.inspection import view_group
        from imsync.im.events import DESTINATION
        from imsync.im.repair import recheck

        for projection in self._projections:
            if not view_group(self._run.bus, DESTINATION, projection.name).alive:
                self._run.out.note(f"no consumer of {projection.name} is alive: imsync consume {projection.name}")
        with self._run.out.progress("waiting", touched) as advance:
            return recheck(
                self._users,
                self._projections,
                self._flight_to,
                self._plan,
                patience_seconds=patience_seconds,
                on_users=advance,
            )

    def _tell(
        self,
        planned: int,
        *,
        dry_run: bool = False,
        touched: Touched | None = None,
        published: int = 0,
        checked: Rechecked | None = None,
    ) -> None:
        from imsync.im.wording import counted

        data: Mapping[str, object] = describe(self._verdict, self._plan) | {
            "repaired": checked.repaired if checked else 0,
            "planned": planned,
            "touched": touched.users if touched else 0,
            "published": published,
            "outbox": self._users.backlog().unsent,
            "waiting": checked.waiting if checked else None,
            "wrong": checked.wrong if checked else None,
            "dry_run": dry_run,
        }
        if dry_run:
            self._run.out.result(data, f"dry run: {counted(planned, 'user')} would be touched; nothing was changed")
        elif not planned:
            self._run.out.result(data, "nothing to touch")
        else:
            names = {"repaired": "repaired", "waiting": "still in flight", "wrong": "still wrong",
                     "outbox": "waiting in the outbox"}  # fmt: skip
            counts = [f"{data['touched']:,} touched", f"{published:,} published"]
            counts += [f"{data[key]:,} {name}" for key, name in names.items() if data[key]]
            if checked is None and not data["outbox"]:
                counts.append("look again with imsync verify")
            self._run.out.result(data, ", ".join(counts))
