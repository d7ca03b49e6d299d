"""`imsync replay pending`: takes over pending entries and applies them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bus.replay import Planned, Selection
    from imsync.cli.render import Output


NOTHING = {False: "nothing is pending", True: "nothing to replay"}

_YES = {True: "yes", False: "no"}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    replay = typer.Typer(help="Apply events again.", no_args_is_help=True)
    command(replay, "pending")(pending)
    app.add_typer(replay, name="replay")


def pending(
    run: Run,
    group: Annotated[
        str | None, typer.Option(help="Only this service: group or friend. Both without.", show_default=False)
    ] = None,
    min_idle: Annotated[
        str, typer.Option(help="Only entries that were not delivered for so long: 500ms, 30s, 5m.")
    ] = "60s",
    consumer: Annotated[str | None, typer.Option(help="Only entries of this consumer.", show_default=False)] = None,
    id: Annotated[
        list[str] | None,
        typer.Option(help="Only this entry; may be given several times.", show_default=False),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
) -> None:
    """Take over entries that were delivered and never acknowledged, and apply them.

    Takes them from the living too: what they do with them afterwards is a repeat and changes nothing.
    """
    from imsync.bus.replay import Selection
    from imsync.cli.applying import OUTCOMES, apply_pending
    from imsync.cli.durations import milliseconds
    from imsync.errors import UsageError
    from imsync.im.workspace import PROJECTIONS

    if group is not None and group not in PROJECTIONS:
        raise UsageError(f"no service {group!a}", f"one of {', '.join(PROJECTIONS)}")
    if bad := [each for each in id or () if not _is_entry_id(each)]:
        raise UsageError(f"bad entry id {bad[0][:40]!a}", "such as 1795413835783-0")
    selection = Selection(milliseconds(min_idle), consumer, tuple(id or ()), limit)
    run.expect_stores()
    totals = dict.fromkeys(("planned", *OUTCOMES), 0)
    entries: list[dict[str, object]] = []
    for service in [group] if group else PROJECTIONS:
        planned = _plan(run, service, selection)
        entries += [_described(service, each) for each in planned]
        totals["planned"] += len(planned)
        if planned and not dry_run:
            for name, value in apply_pending(run, service, planned, selection.min_idle_ms).items():
                totals[name] += value
    left_alone = not entries and _tell_what_is_left_alone(run, [group] if group else list(PROJECTIONS), min_idle)
    if run.as_json:
        run.out.row({**totals, "dry_run": dry_run, "entries": entries})
    else:
        _print(run.out, totals, entries, nothing=NOTHING[left_alone], dry_run=dry_run)
    if totals["failed"]:
        raise typer.Exit(1)


def _print(
    out: Output, totals: dict[str, int], entries: list[dict[str, object]], *, nothing: str, dry_run: bool
) -> None:
    if entries:
        out.table(
            ("group", "entry", "owner", "alive", "#idle s", "#deliveries"),
            [
                (e["group"], e["id"], e["owner"], _YES[bool(e["owner_alive"])], e["idle_seconds"], e["deliveries"])
                for e in entries[:50]
            ],
        )  # fmt: skip
        if len(entries) > 50:
            print(f"… and {len(entries) - 50:,} more")
    done = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in totals.items() if value)
    print((done or nothing) + (" (dry run: nothing was changed)" if dry_run and entries else ""))


def _is_entry_id(text: str) -> bool:
    """Whether Redis takes it for one: a 64-bit number of milliseconds, and one that counts within them."""
    numbers = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", text)
    return numbers is not None and all(int(each) < 2**64 for each in numbers.groups(default="0"))


def _tell_what_is_left_alone(run: Run, services: list[str], min_idle: str) -> bool:
    """Notes that entries are pending which the selection leaves out. Whether there are any."""
    from imsync.errors import GroupMissing
    from imsync.im.events import DESTINATION

    any_left = False
    for service in services:
        try:
            count = run.bus.stream(DESTINATION).pending_summary(service).count
        except GroupMissing:
            continue
        if count:
            any_left = True
            run.out.note(
                f"{count:,} entries of group {service} are pending, and none of them is selected; "
                f"--min-idle {min_idle} leaves alone what was delivered since (--min-idle 0s takes all)"
            )
    return any_left


def _plan(run: Run, service: str, selection: Selection) -> list[Planned]:
    from imsync.bus.replay import plan
    from imsync.im.events import DESTINATION

    stream = run.bus.stream(DESTINATION)
    return plan(run.bus.client, stream, run.bus.keys(DESTINATION), service, selection)


def _described(service: str, planned: Planned) -> dict[str, object]:
    return {
        "group": service,
        "id": planned.entry.id,
        "owner": planned.entry.consumer,
        "owner_alive": planned.owner_alive,
        "idle_seconds": planned.entry.idle_ms / 1000,
        "deliveries": planned.entry.deliveries,
    }
