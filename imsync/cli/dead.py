"""`imsync dead list`: the dead letters."""

from __future__ import annotations

from typing import Annotated

import typer

from imsync.cli.run import Run, command


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    dead = typer.Typer(help="Look at events that could not be applied.", no_args_is_help=True)
    command(dead, "list")(list_)
    app.add_typer(dead, name="dead")


def list_(
    run: Run,
    group: Annotated[
        str | None, typer.Option(help="Only this service: group or friend. Both without.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many of each, the oldest first.")] = 100,
) -> None:
    """List the dead letters with their reasons.

    With --json one object per line, with the raw bytes of the original entry as text.
    """
    from imsync.bus.dead_letter import read
    from imsync.errors import UsageError
    from imsync.im.events import DESTINATION
    from imsync.im.workspace import PROJECTIONS

    if group is not None and group not in PROJECTIONS:
        raise UsageError(f"no service {group!a}", f"one of {', '.join(PROJECTIONS)}")
    run.expect_stores()
    rows: list[tuple[object, ...]] = []
    for service in [group] if group else PROJECTIONS:
        stream = run.bus.dead_letters(DESTINATION, service)
        for letter in map(read, stream.range(count=limit)):
            if run.as_json:
                raw = {
                    name.decode(errors="replace"): value.decode(errors="replace") for name, value in letter.raw.items()
                }
                run.out.row(
                    {
                        "group": service,
                        "id": letter.id,
                        "source_id": letter.source_id,
                        "event_id": letter.event_id,
                        "reason": letter.reason,
                        "message": letter.message,
                        "where": letter.where,
                        "consumer": letter.consumer,
                        "deliveries": letter.deliveries,
                        "published_at": letter.published_at,
                        "dead_at": letter.dead_at,
                        "raw": raw,
                    }
                )
            else:
                where = f" (at {letter.where})" if letter.where else ""
                rows.append((service, letter.source_id, letter.deliveries, letter.reason, letter.message + where))
    if run.as_json:
        return
    if rows:
        run.out.table(("group", "entry", "#deliveries", "reason", "message"), rows)
    else:
        print("no dead letters")
