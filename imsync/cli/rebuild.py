"""`imsync rebuild group|friend`: a projection from a snapshot of the user store."""

from __future__ import annotations

from typing import Annotated

import typer

from imsync.cli.run import Run, command

Create = Annotated[bool, typer.Option("--create", help="Make the store if there is none: it begins without rows.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    rebuild = typer.Typer(help="Fill the copies of a service from the users, in place.", no_args_is_help=True)
    command(rebuild, "group")(group)
    command(rebuild, "friend")(friend)
    app.add_typer(rebuild, name="rebuild")


def group(run: Run, create: Create = False, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Fill group.db from user.db, and give it to its consumer group.

    For a group.db that was lost, restored from a copy, or is refused by its group. Members and their own names are
    left as they are. The consumers of the group must be stopped; edits go on, and wait in the outbox meanwhile.
    """
    _rebuild(run, "group", create=create, dry_run=dry_run, yes=yes)


def friend(run: Run, create: Create = False, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Fill friend.db from user.db, and give it to its consumer group.

    For a friend.db that was lost, restored from a copy, or is refused by its group. Friendships and their own names
    are left as they are. The consumers of the group must be stopped; edits go on, and wait in the outbox meanwhile.
    """
    _rebuild(run, "friend", create=create, dry_run=dry_run, yes=yes)


def _rebuild(run: Run, service: str, *, create: bool, dry_run: bool, yes: bool) -> None:
    from imsync.bus.inspection import view_group
    from imsync.cli.confirm import confirm
    from imsync.errors import InfrastructureError, StoreUnusable
    from imsync.im.events import DESTINATION
    from imsync.im.rebuild import check_stopped, rebuild

    users = run.workspace.user_store()
    view = view_group(run.bus, DESTINATION, service)
    path = run.workspace.path_of(service)
    exists = path.exists()
    if not exists and not create:
        raise StoreUnusable(
            f"there is no {service} store at {path}", "restore it from a backup, or begin without rows: --create"
        )
    plan = {
        "group": service,
        "store": str(path),
        "creates": not exists,
        "users": users.count_users(),
        "pending": view.pending,
        "undelivered": view.lag,
        "consumers": len(view.alive),
        "dry_run": dry_run,
    }
    if not run.as_json:
        undelivered = "an unknown number of" if view.lag is None else f"{view.lag:,}"
        run.out.note(
            f"{'make' if not exists else 'rebuild'} {path} from {plan['users']:,} users, after {view.pending:,} "
            f"pending and {undelivered} undelivered entries of the group"
        )
    if dry_run:
        users.close()
        run.out.result(plan, "dry run: nothing was changed")
        return

    check_stopped(view)  # before a store is made that nobody wants
    confirm(run, f"{'rebuild' if exists else 'make'} the store of group {service}?", yes=yes)

    def on_trouble(error: InfrastructureError, delay: float) -> None:
        run.out.note(f"{error.message}; again in {delay:.1f} s")

    projection = run.workspace.projection(service, create=not exists)
    with run.out.progress(f"rebuilding {service}", users.count_users()) as advance:
        done = rebuild(
            users,
            projection,
            run.bus,
            DESTINATION,
            run.relay(users),
            options=run.consumer_options(until_empty=True),
            on_users=advance,
            on_trouble=on_trouble,
        )
    projection.close()
    users.close()
    again = ": imsync verify --repair, then rebuild again"
    run.out.result(
        plan
        | {
            "users": done.users,
            "changed": done.changed,
            "ahead": done.ahead,
            "covered": done.covered,
            "position": done.position,
        },
        f"{done.users:,} users, {done.changed:,} of them changed; {_covered(done.covered)}"
        + (f"; {done.ahead:,} users are ahead of the source and were left as they are{again}" if done.ahead else ""),
    )


def _covered(events: int) -> str:
    """What the snapshot stands for in the accounts: less than nothing after a user store was restored."""
    if events < 0:
        return f"{-events:,} events that the source does not know any more are written off"
    return f"{events:,} events are covered by the snapshot"
