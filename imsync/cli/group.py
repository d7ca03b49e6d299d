"""`imsync group list|create|drop`: the consumer groups of the stream, those of imsync's services and any others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bus.stream import Stream

START = "0"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="The consumer groups of the stream.", no_args_is_help=True)
    command(group, "list")(list_)
    command(group, "create")(create)
    command(group, "drop")(drop)
    app.add_typer(group, name="group")


def list_(run: Run) -> None:
    """List the consumer groups of the stream, whoever made them.

    With --json one object per line. A group that pins has not acknowledged an entry that retention would remove.
    """
    from imsync.bus.inspection import view_groups
    from imsync.cli.looking import look_at_the_stream
    from imsync.cli.names import readable
    from imsync.cli.render import number, seconds
    from imsync.im.events import DESTINATION
    from imsync.im.workspace import PROJECTIONS

    run.expect_stores()
    pinned_by = look_at_the_stream(run).pinned_by
    views = view_groups(run.bus, DESTINATION)
    if run.as_json:
        for view in views:
            run.out.row(
                {
                    "group": readable(view.group),
                    "service": view.group in PROJECTIONS,
                    "last_delivered_id": view.last_delivered_id,
                    "lag": view.lag,
                    "lag_seconds": view.lag_seconds,
                    "pending": view.pending,
                    "oldest_pending_seconds": view.oldest_pending_seconds,
                    "consumers": view.consumers,
                    "alive": len(view.alive),
                    "dead": view.dead,
                    "pins": readable(view.group) == pinned_by,
                }
            )
    elif views:
        run.out.table(
            ("group", "last delivered", "#lag", "#pending", "#oldest", "#consumers", "#alive", "#dead", "pins"),
            [
                (
                    readable(view.group), view.last_delivered_id, number(view.lag), number(view.pending),
                    seconds(view.oldest_pending_seconds), view.consumers, len(view.alive), view.dead,
                    "yes" if readable(view.group) == pinned_by else "no",
                )
                for view in views
            ],
        )  # fmt: skip
    else:
        print("no groups")


def create(
    run: Run,
    name: Annotated[str, typer.Argument(help="The group: 1 to 64 of A-Z a-z 0-9 . _ : -")],
    start: Annotated[
        str | None,
        typer.Option(
            help="Deliver what comes after: an entry id, now, or so long ago (30m, 24h); 0 is the start. "
            "Without it the start, unless entries have left it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Create a consumer group.

    A group sees only what the stream still holds. Before you start one late with --start, load a snapshot of the
    source into its store, taken after that start. The services of imsync do that with `imsync rebuild`.
    """
    from imsync.bus.keys import check_name
    from imsync.im.events import DESTINATION
    from imsync.im.workspace import PROJECTIONS

    check_name("group", name)
    service = name in PROJECTIONS
    run.expect_stores()
    stream = run.bus.stream(DESTINATION)
    if any(info.name == name for info in stream.groups()):
        run.out.result({"group": name, "created": False, "start": None}, f"group {name} exists already")
        return
    begins = START if start is None else _start_id(stream, start)
    from_the_start = start is None or service
    if from_the_start:
        _refuse_what_would_miss(run, stream, name, service=service, late=begins != START)
    created = stream.create_group(name, begins)
    if from_the_start and created:
        try:  # a consumer may have been trimming at that moment
            _refuse_what_would_miss(run, stream, name, service=service, late=False, again=True)
        except Exception:
            stream.destroy_group(name)
            raise
    words = {START: "at the start of the stream", "$": "with what is published from now on"}
    run.out.result(
        {"group": name, "created": created, "start": begins},
        f"group {name} begins {words.get(begins, f'after {begins}')}",
    )


def _refuse_what_would_miss(
    run: Run, stream: Stream, name: str, *, service: bool, late: bool, again: bool = False
) -> None:
    """Refuses a group that begins at the start when entries have left it, and one of imsync's that begins late.

    What is not in the stream any more, the group would miss for ever, and nobody would notice before `verify`.

    Raises:
        UsageError: it would miss entries.
    """
    from imsync.bus.retention import gone_from_the_start
    from imsync.errors import UsageError

    rebuild = f"imsync rebuild {name} fills its store from the users and makes the group"
    if late:
        raise UsageError(f"the {name} service would miss for ever what was published before", rebuild)
    missing = gone_from_the_start(stream, _published(run))
    if missing:
        raise UsageError(
            f"at least {missing:,} entries have left the stream: group {name} would miss them for ever",
            rebuild if service else "load a snapshot into its store, then say with --start where it begins",
        )
    if missing is None and not again:
        run.out.note(f"this server cannot tell whether entries have left the stream before group {name}")


def _published(run: Run) -> int:
    """How many events the user store has published, if it is on this machine; 0 otherwise."""
    if not run.workspace.path_of("user").exists():
        return 0
    users = run.workspace.user_store()
    published = users.published()
    users.close()
    return published


def _start_id(stream: Stream, text: str) -> str:
    """The entry id after which a group begins, as XGROUP CREATE takes it."""
    from imsync.bus.entry import id_parts, is_entry_id
    from imsync.cli.durations import milliseconds
    from imsync.errors import UsageError

    if text == "now":
        return "$"
    if is_entry_id(text):
        return text if any(id_parts(text)) else START
    try:
        return f"{max(0, stream.server_time_ms() - milliseconds(text))}-0"
    except UsageError:
        raise UsageError(f"bad start {text[:40]!a}", "0, now, an entry id, or how long ago: 30m, 24h") from None


def drop(
    run: Run,
    name: Annotated[str, typer.Argument(help="The group, as `imsync group list` shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even while consumers of it are alive.")] = False,
) -> None:
    """Drop a consumer group for good, with what it has pending.

    Its dead letters stay, and so do its store and the entries of the stream. A consumer that is started for it makes
    the group again, at the start of the stream.
    """
    from imsync.bus.inspection import view_group
    from imsync.bus.operator import drop_group
    from imsync.cli.confirm import confirm
    from imsync.cli.names import find_group, readable
    from imsync.cli.render import safe
    from imsync.errors import UsageError
    from imsync.im.events import DESTINATION

    run.expect_stores()
    stream = run.bus.stream(DESTINATION)
    view = view_group(run.bus, DESTINATION, find_group(name, [info.name for info in stream.groups()]))
    shown = readable(view.group)
    if view.alive and not force:
        raise UsageError(
            f"group {shown} has living consumers: {', '.join(map(readable, view.alive))[:200]}",
            "stop them first, or add --force",
        )
    undelivered = "an unknown number of" if view.lag is None else f"{view.lag:,}"
    loss = f"{view.pending:,} pending and {undelivered} undelivered entries"
    confirm(run, f"drop group {shown} with {loss}?", yes=yes)
    dropped = drop_group(run.bus.client, stream, run.bus.keys(DESTINATION), view.group)
    run.out.result(
        {
            "group": shown,
            "dropped": dropped,
            "pending": view.pending,
            "undelivered": view.lag,
            "alive": len(view.alive),
            "dead": view.dead,
        },
        safe(f"dropped group {shown} with {loss}" if dropped else f"group {shown} is gone already"),
    )
