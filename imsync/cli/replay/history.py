"""`imsync replay from`: applies once more what the stream still holds, or sets the group back."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli import positions
from imsync.cli.run import Run
from imsync.cli.selection import Group, check_user, services

if TYPE_CHECKING:
    from imsync.bus.binding import Binding
    from imsync.bus.entry import StreamInfo
    from imsync.bus.inspection import GroupView
    from imsync.im.profile_projection import ProfileProjection
    from imsync.im.reapplying import Part, PartPlan

OUTCOMES = ("applied", "superseded", "duplicate", "bad")
NAMES = {"duplicate": "duplicates"}


@dataclass
class _Planned:
    """What is planned for one group.

    Args:
        position: the last entry id that the group was given.
        seek: the position that the group would be moved to; None without --seek.
        trimmed: whether entries have left the stream after the point where the part begins.
    """

    group: str
    plan: PartPlan
    position: str
    pending: int
    alive: int
    trimmed: bool
    seek: str | None = None

    def described(self) -> dict[str, object]:
        from imsync.bus.clock import time_of

        return {
            "group": self.group,
            "entries": self.plan.entries,
            "first_id": self.plan.first_id,
            "last_id": self.plan.last_id,
            "first_at": time_of(self.plan.first_id),
            "last_at": time_of(self.plan.last_id),
            "predicted": {NAMES.get(name, name): self.plan.predicted[name] for name in OUTCOMES},
            "predicted_entries": self.plan.played,
            "exact": self.plan.is_exact,
            "last_delivered_id": self.position,
            "pending": self.pending,
            "consumers": self.alive,
            "seek": self.seek,
        }


def from_(
    run: Run,
    start: Annotated[
        str,
        typer.Argument(help=f"Where to begin: {positions.HELP}. A time is in UTC unless it names an offset."),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            help="Where to end, in the same forms; that entry is included. The end of the stream without.",
            show_default=False,
        ),
    ] = None,
    user: Annotated[int | None, typer.Option(help="Only the events about this user.", show_default=False)] = None,
    group: Group = None,
    seek: Annotated[
        bool, typer.Option("--seek", help="Set the group back to this point, and leave the work to its consumers.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Apply once more what the stream holds from a point on, without moving the group.

    What the store has settled is a repeat and changes nothing; what it has never met, or has given up, is applied
    behind the version gate. Consumers may be at work meanwhile. Entries that are no events are left alone. A store
    that its group refuses is refused here too: `imsync rebuild group` or `imsync rebuild friend` fills it.
    """  # fmt: skip
    from imsync.cli.confirm import confirm
    from imsync.errors import UsageError
    from imsync.im.wording import counted

    wanted = services(group)
    check_user(user)
    if seek and (to is not None or user is not None):
        raise UsageError("--seek moves the whole group", "leave out --to and --user")
    run.expect_stores()
    part = _part(run, start, to, user)
    plans = [_plan(run, service, part, seek=seek) for service in wanted]
    if not run.as_json:
        for planned in plans:
            _print_plan(planned, part)
    totals: Counter[str] = Counter()
    work = [each for each in plans if (each.seek != each.position if seek else each.plan.entries)]
    if work and not dry_run:
        confirm(run, _question(work, seek=seek), yes=yes)
        totals = _seek(run, work) if seek else _apply(run, work, part)
    if run.as_json:
        run.out.row(_summary(plans, totals, part, dry_run=dry_run))
    elif not work:
        print("nothing to replay")
    elif dry_run:
        print("dry run: nothing was changed")
    elif seek:
        print(f"moved {counted(totals['moved'], 'group')}")
    else:
        print(_told(totals) or "nothing was done")
    if totals["failed"]:
        raise typer.Exit(1)


def _summary(plans: list[_Planned], totals: Counter[str], part: Part, *, dry_run: bool) -> dict[str, object]:
    return {
        "planned": sum(each.plan.entries for each in plans),
        "applied": totals["applied"],
        "superseded": totals["superseded"],
        "duplicates": totals["duplicate"],
        "dead": 0,
        "bad": totals["bad"],
        "failed": totals["failed"],
        "moved": totals["moved"],
        "from": part.start,
        "to": part.end,
        "user": part.user,
        "dry_run": dry_run,
        "groups": [each.described() for each in plans],
    }


def _part(run: Run, start: str, to: str | None, user: int | None) -> Part:
    """The part that is meant. It ends where the stream ends now, so that it has an end while traffic flows."""
    from imsync.bus.entry import id_parts
    from imsync.cli.positions import position
    from imsync.errors import UsageError
    from imsync.im.events import DESTINATION
    from imsync.im.reapplying import Part

    stream = run.bus.stream(DESTINATION)
    now_ms = stream.server_time_ms()
    first = position(start, now_ms)
    info = stream.info()
    last = position(to, now_ms, end=True) if to is not None else info.last_generated_id if info else "0-0"
    if to is not None and id_parts(last) < id_parts(first):
        raise UsageError(f"--to {to[:40]!a} is before {start[:40]!a}", "the first point comes first")
    return Part(first, last, user)


def _plan(run: Run, service: str, part: Part, *, seek: bool) -> _Planned:
    from imsync.bus.entry import id_before
    from imsync.bus.inspection import view_group
    from imsync.im.events import DESTINATION
    from imsync.im.reapplying import plan

    stream = run.bus.stream(DESTINATION)
    view = view_group(run.bus, DESTINATION, service)
    store, binding = _store(run, service)
    with closing(store):
        if refused := binding.mismatch():
            raise refused
        target = id_before(part.start) if seek else None
        if target is not None:
            _check_back(service, target, view)
        info = stream.info()
        with run.out.progress(f"reading {service}", None) as advance:
            found = plan(stream, store, part, _batch(run), on_entries=advance)
    return _Planned(
        service, found, view.last_delivered_id, view.pending, len(view.alive), _is_trimmed(info, part), target
    )


def _check_back(service: str, target: str, view: GroupView) -> None:
    """Makes sure that this would set the group back, and not forward."""
    from imsync.errors import GroupMissing, UsageError

    if not view.exists:
        raise GroupMissing(f"there is no group {service}", f"imsync consume {service} makes it")
    if _is_after(target, view.last_delivered_id):
        raise UsageError(
            f"group {service} stands at {view.last_delivered_id}, before that point: it would never be given what is "
            "in between",
            "without --seek the part is applied now, and the group goes on where it stands",
        )


def _is_trimmed(info: StreamInfo | None, part: Part) -> bool:
    """Whether entries have left the stream that were behind the point where the part begins, as far as one can tell."""
    if info is None:
        return False
    gone = info.removed is None or info.removed > 0
    return gone and (info.first_id is None or _is_after(info.first_id, part.start))


def _is_after(one: str, other: str) -> bool:
    from imsync.bus.entry import id_parts

    return id_parts(one) > id_parts(other)


def _store(run: Run, service: str) -> tuple[ProfileProjection, Binding]:
    from imsync.im.events import DESTINATION

    store = run.workspace.projection(service)
    return store, run.bus.binding(DESTINATION, service, store)


def _batch(run: Run) -> int:
    return run.consumer_options().batch


def _apply(run: Run, work: list[_Planned], part: Part) -> Counter[str]:
    """Applies the part for each group. A signal ends it after the batch at hand."""
    from imsync.bus.deferred import finish
    from imsync.cli.signals import stopping
    from imsync.im import reapplying
    from imsync.im.events import DESTINATION

    totals: Counter[str] = Counter()
    stop = threading.Event()
    stream = run.bus.stream(DESTINATION)
    with (
        stopping(stop.set, deadline_seconds=run.settings.consumer.stop_deadline_seconds),
        run.out.progress("replaying", sum(each.plan.entries for each in work)) as advance,
    ):
        for planned in work:
            store, binding = _store(run, planned.group)
            with closing(store):
                binding.check()
                for entries, done in reapplying.run(stream, store, part, _batch(run), binding):
                    totals.update(done)
                    advance(entries)
                    if stop.is_set():
                        run.out.note("stopped: run it again, what is done is a repeat then")
                        return totals
                finish(store, stop)
    return totals


def _seek(run: Run, work: list[_Planned]) -> Counter[str]:
    from imsync.bus.inspection import view_group
    from imsync.im.events import DESTINATION

    stream = run.bus.stream(DESTINATION)
    for planned in work:
        if planned.seek is not None:
            # somebody may have moved it while the question was being answered
            _check_back(planned.group, planned.seek, view_group(run.bus, DESTINATION, planned.group))
            stream.set_position(planned.group, planned.seek)
    return Counter(moved=len(work))


def _question(work: list[_Planned], *, seek: bool) -> str:
    from imsync.im.wording import counted

    groups = " and ".join(each.group for each in work)
    if seek:
        return f"set group {groups} back?" if len(work) == 1 else f"set groups {groups} back?"
    entries = sum(each.plan.entries for each in work)
    return f"apply {counted(entries, 'entry', 'entries')} once more?"


def _told(counts: Counter[str]) -> str:
    words = {"duplicate": "duplicates", "bad": "no events"}
    return ", ".join(f"{counts[name]:,} {words.get(name, name)}" for name in (*OUTCOMES, "failed") if counts[name])


def _print_plan(planned: _Planned, part: Part) -> None:
    from imsync.bus.clock import time_of
    from imsync.cli.lines import say
    from imsync.im.wording import counted

    plan, group = planned.plan, planned.group
    lines = [f"group {group}: {counted(plan.entries, 'entry', 'entries')}"]
    if plan.entries:
        lines += [
            f"  from {plan.first_id}  {time_of(plan.first_id) or ''}",
            f"  to   {plan.last_id}  {time_of(plan.last_id) or ''}",
        ]
        whose = "" if part.user is None else f" of user {part.user}"
        sample = "" if plan.is_exact else f", of the first {plan.played:,} entries"
        lines.append(f"  predicted{whose}{sample}: {_told(plan.predicted) or 'nothing'}")
    if planned.trimmed:
        lines.append("  the stream begins later than that: what has left it cannot be replayed")
    if planned.seek is not None:
        lines.append(f"  --seek sets the group from {planned.position} back to {planned.seek}")
        if planned.pending:
            stay = "entry stays as it is" if planned.pending == 1 else "entries stay as they are"
            lines.append(f"  {planned.pending:,} pending {stay}; imsync replay pending applies those of the dead")
        who = f"its {planned.alive} living consumers are" if planned.alive != 1 else "its living consumer is"
        lines.append(f"  {who if planned.alive else 'the next consumer is'} given all of it again; duplicates change "
                     "nothing, and until then the group has a lag")  # fmt: skip
        if bad := plan.predicted["bad"]:
            become = "entry that is no event becomes a" if bad == 1 else "entries that are no events become"
            lines.append(f"  {bad:,} {become} dead letter{'' if bad == 1 else 's'} once more")
    elif plan.entries and plan.is_exact and not plan.predicted["applied"]:
        lines.append("  this would change nothing: the store has settled these events, or newer ones")
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        say(line.strip(), indent)
