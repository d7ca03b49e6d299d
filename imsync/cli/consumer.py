"""`imsync consumer list|prune`: the consumers that the server remembers, alive or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imsync.bus.inspection import ConsumerView

REMOVE, APPLY, KEEP = "remove", "apply", "keep"
"""What is planned for a dead consumer: it holds nothing; its entries can be applied here first; they cannot."""

GroupOption = Annotated[
    str | None, typer.Option(help="Only the consumers of this group. All without.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    consumer = typer.Typer(help="The consumers that the server remembers.", no_args_is_help=True)
    command(consumer, "list")(list_)
    command(consumer, "prune")(prune)
    app.add_typer(consumer, name="consumer")


def list_(run: Run, group: GroupOption = None) -> None:
    """List the consumers of every group, alive or not.

    With --json one object per line. Alive is who has a heartbeat, so consumers that are not imsync's never are.
    """
    from imsync.cli.names import readable
    from imsync.cli.render import seconds

    run.expect_stores()
    views = _consumers(run, group)
    if run.as_json:
        for view in views:
            run.out.row(
                {
                    "group": readable(view.group),
                    "consumer": readable(view.name),
                    "alive": view.alive,
                    "pending": view.pending,
                    "idle_seconds": view.idle_ms / 1000,
                }
            )
    elif views:
        run.out.table(
            ("group", "consumer", "alive", "#pending", "#idle"),
            [
                (readable(view.group), readable(view.name), "yes" if view.alive else "no", view.pending,
                 seconds(view.idle_ms / 1000))
                for view in views
            ],
        )  # fmt: skip
    else:
        print("no consumers")


def prune(
    run: Run,
    group: GroupOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove consumers without a heartbeat.

    What they hold is taken over and applied first, when the store of their service is on this machine. A consumer
    that holds anything is kept: removing it would drop that for good.
    """
    from imsync.cli.applying import OUTCOMES
    from imsync.cli.confirm import confirm

    run.expect_stores()
    dead = [_planned(run, view) for view in _consumers(run, group) if not view.alive]
    totals = dict.fromkeys(OUTCOMES, 0)
    doable = [each for each in dead if each.plan != KEEP]
    if doable and not dry_run:
        confirm(run, _question(doable), yes=yes)
        for name, value in _prune(run, doable).items():
            totals[name] += value
    data: dict[str, object] = {
        "planned": len(dead),
        "removed": sum(each.result == "removed" for each in dead),
        "kept": sum(each.kept for each in dead),
        **totals,
        "dry_run": dry_run,
    }
    if run.as_json:
        run.out.row(data | {"consumers": [each.described() for each in dead]})
    else:
        _print(run, dead, data, totals)
    if totals["failed"]:
        raise typer.Exit(1)


@dataclass
class _Dead:
    """A consumer without a heartbeat, and what becomes of it. `result`: as `Removal`, once it was tried."""

    view: ConsumerView
    plan: str
    result: str | None = None

    @property
    def kept(self) -> bool:
        return self.plan == KEEP or self.result in ("alive", "holds")

    def described(self) -> dict[str, object]:
        from imsync.cli.names import readable

        return {
            "group": readable(self.view.group),
            "consumer": readable(self.view.name),
            "pending": self.view.pending,
            "idle_seconds": self.view.idle_ms / 1000,
            "plan": self.plan,
            "result": self.result,
            "remedy": self.remedy() if self.kept else None,
        }

    def remedy(self) -> str:
        """What helps when it is kept."""
        from imsync.cli.names import word
        from imsync.im.workspace import PROJECTIONS

        group = self.view.group
        if self.result == "alive":
            return "none is needed: it has come back"
        if group not in PROJECTIONS:
            return f"start a consumer of group {word(group)}, which takes over what it holds"
        if self.plan == KEEP:
            return f"imsync consume {group}, where {group}.db is"
        return f"imsync replay pending --group {group} --min-idle 0s"


def _planned(run: Run, view: ConsumerView) -> _Dead:
    from imsync.im.workspace import PROJECTIONS

    if not view.pending:
        return _Dead(view, REMOVE)
    has_store = view.group in PROJECTIONS and run.workspace.path_of(view.group).exists()
    return _Dead(view, APPLY if has_store else KEEP)


def _consumers(run: Run, group: str | None) -> list[ConsumerView]:
    from imsync.bus.inspection import view_consumers
    from imsync.cli.names import find_group
    from imsync.errors import GroupMissing
    from imsync.im.events import DESTINATION

    groups = sorted(info.name for info in run.bus.stream(DESTINATION).groups())
    found: list[ConsumerView] = []
    for name in groups if group is None else [find_group(group, groups)]:
        try:
            found += view_consumers(run.bus, DESTINATION, name)
        except GroupMissing:  # deleted this moment, and its consumers with it
            continue
    return found


def _question(dead: Sequence[_Dead]) -> str:
    from imsync.im.wording import counted

    held = sum(each.view.pending for each in dead)
    first = f", after applying the {counted(held, 'entry', 'entries')} that they hold" if held else ""
    return f"remove {counted(len(dead), 'dead consumer')}{first}?"


def _prune(run: Run, dead: Sequence[_Dead]) -> dict[str, int]:
    """Applies what they hold, and removes them; how many entries were applied."""
    from collections import Counter

    from imsync.bus.operator import remove_consumer
    from imsync.bus.replay import Selection, plan
    from imsync.cli.applying import apply_pending
    from imsync.im.events import DESTINATION

    stream = run.bus.stream(DESTINATION)
    keys = run.bus.keys(DESTINATION)
    # as a consumer does it: what was claimed this moment is somebody else's, who lives
    min_idle_ms = run.settings.consumer.heartbeat_ms // 2
    totals: Counter[str] = Counter()
    for each in sorted(dead, key=lambda each: each.plan == APPLY):  # the easy ones first
        group, name = each.view.group, each.view.name
        if each.plan == APPLY:
            planned = plan(run.bus.client, stream, keys, group, Selection(min_idle_ms, name))
            if planned and not any(entry.owner_alive for entry in planned):
                totals.update(apply_pending(run, group, planned, min_idle_ms))
        each.result = str(remove_consumer(run.bus.client, stream, keys, group, name))
    return dict(totals)


def _print(run: Run, dead: Sequence[_Dead], data: dict[str, object], totals: dict[str, int]) -> None:
    from imsync.cli.names import readable
    from imsync.cli.render import seconds

    if not dead:
        print("no dead consumers")
        return
    run.out.table(
        ("group", "consumer", "#pending", "#idle", "plan", "result", "remedy"),
        [
            (readable(each.view.group), readable(each.view.name), each.view.pending,
             seconds(each.view.idle_ms / 1000), each.plan, each.result or "-", each.remedy() if each.kept else "")
            for each in dead
        ],
    )  # fmt: skip
    parts = [f"{data['removed']:,} removed", f"{data['kept']:,} kept"]
    parts += [f"{value:,} {name.replace('_', ' ')}" for name, value in totals.items() if value]
    print(", ".join(parts) if not data["dry_run"] else f"{len(dead):,} dead (dry run: nothing was changed)")
