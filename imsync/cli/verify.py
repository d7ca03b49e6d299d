"""`imsync verify`: the proof that the copies are right, and the repair of those that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.im.export import ExportedCopies
    from imsync.im.flight import Flight
    from imsync.im.repair import Plan
    from imsync.im.user_store import UserStore
    from imsync.im.verify import Verdict
    from imsync.store.projection import Copies

REPAIR_PANEL = "Repair"
ELSEWHERE_PANEL = "Stores on different hosts"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "verify")(verify)


def verify(
    run: Run,
    user: Annotated[
        list[int] | None, typer.Option(help="Only this user; may be repeated.", show_default=False)
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Only so many random users of the user store.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="With --sample: the same seed takes the same users.", show_default=False)
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Only the copies of this service: group or friend.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 also when something is in flight.")] = False,
    examples: Annotated[int, typer.Option(min=0, help="How many of the drifted users to show.")] = 20,
    repair: Annotated[
        bool, typer.Option("--repair", help="Publish the drifted users anew, by their source.",
                           rich_help_panel=REPAIR_PANEL)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --repair: print the plan and change nothing.",
                           rich_help_panel=REPAIR_PANEL)
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --repair: do not ask.", rich_help_panel=REPAIR_PANEL)
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="With --repair: wait until the groups have applied it, and look again.",
                           rich_help_panel=REPAIR_PANEL)
    ] = False,
    timeout: Annotated[
        str, typer.Option(help="With --wait: for how long at most.", rich_help_panel=REPAIR_PANEL)
    ] = "30s",
    export: Annotated[
        Path | None, typer.Option(help="Write the copies of one service to this file, where its store is.",
                                  show_default=False, rich_help_panel=ELSEWHERE_PANEL)
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Compare with exported copies, where user.db is; may be repeated.",
                                        show_default=False, rich_help_panel=ELSEWHERE_PANEL)
    ] = None,
) -> None:  # fmt: skip
    """Compare every user with every copy, and name why copies are wrong. Exits with 3 when it finds drift.

    May run while traffic flows: what an event on its way explains is in flight, not drift. Changes nothing without
    --repair, which touches the drifted users at their source: the same content under a higher version, published like
    any edit.
    """
    from imsync.cli.durations import milliseconds
    from imsync.cli.verifying import Repair, report

    _check(user=user, sample=sample, seed=seed, group=group, export=export, against=against, repair=repair,
           strict=strict, only_with_repair=dry_run or yes or wait, wait=wait)  # fmt: skip
    if export:
        _export(run, export, group)
        return
    patience_seconds = milliseconds(timeout) / 1000
    with ExitStack() as stack:
        users = stack.enter_context(closing(run.workspace.user_store()))
        projections, flight_to = _compared(run, users, group, against, stack)
        plan = stack.enter_context(_plan(projections)) if repair else None
        verdict = _compare(run, users, projections, flight_to, _keys(run, users, projections, user, sample, seed),
                           examples, plan)  # fmt: skip
        if plan is None:
            report(run, verdict)
            failed = verdict.drift > 0
        else:
            session = Repair(run, users, projections, flight_to, verdict, plan)
            failed = not session.carry_out(
                dry_run=dry_run, yes=yes, patience_seconds=patience_seconds if wait else None
            )
    if failed or (strict and verdict.in_flight):
        raise typer.Exit(3)


def _check(
    *,
    user: list[int] | None,
    sample: int | None,
    seed: int | None,
    group: str | None,
    export: Path | None,
    against: list[Path] | None,
    repair: bool,
    strict: bool,
    only_with_repair: bool,
    wait: bool,
) -> None:
    """Refuses options that do not go together."""
    from imsync.cli.selection import services
    from imsync.errors import UsageError

    see = "see `imsync verify --help`"
    if export and (against or user or sample or repair or strict):
        raise UsageError("--export writes all copies of a service, and compares nothing", see)
    if user and sample:
        raise UsageError("--user and --sample exclude each other", see)
    if seed is not None and not sample:
        raise UsageError("--seed goes with --sample", see)
    if only_with_repair and not repair:
        raise UsageError("--dry-run, --yes and --wait go with --repair", see)
    services(group)
    if against and group:
        raise UsageError("--against says by its file whose copies they are, without --group", see)
    if against and wait:
        raise UsageError("--wait cannot see copies on another host", "repair without it, then export and compare again")


# ── what is compared ─────────────────────────────────────────────────────────────────────────────────────


def _compared(
    run: Run, users: UserStore, group: str | None, against: Sequence[Path] | None, stack: ExitStack
) -> tuple[Sequence[Copies], Callable[[str], Flight]]:
    """The copies, and what is on its way to each."""
    if against:
        files = [stack.enter_context(closing(_opened(path, users))) for path in against]
        names = [file.name for file in files]
        if twice := [name for name in names if names.count(name) > 1]:
            from imsync.errors import UsageError

            raise UsageError(f"two files hold the copies of {twice[0]}", "give the newer one")
        barriers = {file.name: file.barrier for file in files}
        return files, _Elsewhere(run, barriers).flight_to

    def flight_to(name: str) -> Flight:
        from imsync.im.events import DESTINATION
        from imsync.im.flight import GroupFlight

        return GroupFlight(run.bus.stream(DESTINATION), name, run.bus.dead_letters(DESTINATION, name))

    stores = run.workspace.projections() if group is None else [run.workspace.projection(group)]
    for store in stores:
        stack.callback(store.close)
    return stores, flight_to


def _opened(path: Path, users: UserStore) -> ExportedCopies:
    from imsync.errors import UsageError
    from imsync.im.export import ExportedCopies
    from imsync.im.workspace import PROJECTIONS

    file = ExportedCopies(path, {name: kind.expected for name, kind in PROJECTIONS.items()})
    if file.sources and users.source not in file.sources:
        file.close()
        raise UsageError(f"{path} holds copies of another user store", "check --data-dir, and where it was exported")
    return file


class _Elsewhere:
    """What is on its way to groups whose copies were exported; without Redis, as far as the files tell."""

    def __init__(self, run: Run, barriers: dict[str, str]) -> None:
        self._run = run
        self._barriers = barriers
        self._reachable: bool | None = None

    def flight_to(self, name: str) -> Flight:
        from imsync.errors import ImsyncError
        from imsync.im.events import DESTINATION
        from imsync.im.flight import ExportFlight, GroupFlight

        if self._reachable is None:
            try:
                self._run.bus.ping()
                self._reachable = True
            except ImsyncError as error:
                self._reachable = False
                self._run.out.note(f"{error.message}; judged by what the files and the outbox tell alone")
        bus = self._run.bus if self._reachable else None
        live = GroupFlight(bus.stream(DESTINATION), name, bus.dead_letters(DESTINATION, name)) if bus else None
        return ExportFlight(self._barriers[name], live)


def _keys(
    run: Run,
    users: UserStore,
    projections: Sequence[Copies],
    user: Sequence[int] | None,
    sample: int | None,
    seed: int | None,
) -> Iterable[int] | None:
    """The ids to compare; None for all."""
    import random

    from imsync.bus.event import MAX_INT
    from imsync.errors import UsageError
    from imsync.im.sample import sample_ids
    from imsync.im.verify import FIRST_KEY

    if user:
        for key in user:
            is_id = FIRST_KEY < key <= MAX_INT
            if not is_id or (users.state(key) is None and all(each.state(key) is None for each in projections)):
                raise UsageError(f"nobody knows a user {key}", "the ids are in the table im_user of user.db")
        return sorted(set(user))
    if sample:
        chosen = random.randrange(2**32) if seed is None else seed
        if seed is None:
            run.out.note(f"a random sample: --seed {chosen} takes the same again")
        return sample_ids(users, sample, random.Random(chosen))
    return None


@contextmanager
def _plan(projections: Sequence[Copies]) -> Iterator[Plan]:
    from imsync.im.repair import Plan

    with Plan([each.name for each in projections]) as plan:
        yield plan


def _compare(
    run: Run,
    users: UserStore,
    projections: Sequence[Copies],
    flight_to: Callable[[str], Flight],
    keys: Iterable[int] | None,
    examples: int,
    plan: Plan | None,
) -> Verdict:
    from imsync.im.verify import verify as compare

    total = users.count_users if keys is None else None  # a large store takes its time to count
    with run.out.progress("verifying", total) as advance:
        return compare(
            users,
            projections,
            flight_to,
            keys=keys,
            max_examples=examples,
            on_page=advance,
            on_drift=plan.add if plan else lambda drift: None,
        )


# ── export ───────────────────────────────────────────────────────────────────────────────────────────────


def _export(run: Run, path: Path, group: str | None) -> None:
    """Writes the copies of a service to a file."""
    from imsync.errors import UsageError
    from imsync.im.events import DESTINATION
    from imsync.im.export import export_copies
    from imsync.im.flight import barrier
    from imsync.im.workspace import PROJECTIONS

    here = [name for name in PROJECTIONS if run.workspace.path_of(name).exists()]
    if group is None and len(here) > 1:
        raise UsageError("a file holds the copies of one service", f"add --group {' or --group '.join(here)}")
    with closing(run.workspace.projection(group or next(iter(here), next(iter(PROJECTIONS))))) as projection:
        settled_below = barrier(run.bus.stream(DESTINATION), projection.name)  # before anything is read
        with run.out.progress(f"exporting {projection.name}", None) as advance:
            written = export_copies(
                projection,
                path,
                barrier=settled_below,
                sources={source for source, _ in projection.tallies()},
                on_page=advance,
            )
        data = {
            "file": str(path),
            "projection": projection.name,
            "users": written.keys,
            "rows": written.rows,
            "barrier": settled_below,
        }
    run.out.result(data, f"{written.keys:,} users, {written.rows:,} rows of {data['projection']} in {path}")
