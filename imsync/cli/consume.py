"""`imsync consume group|friend`: the consumers."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.metrics import LOOPBACK, Host, Port, serving
from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bus import Counts

Name = Annotated[
    str | None,
    typer.Option(help="This consumer's name, used by nobody else. Unique without.", show_default=False),
]
Batch = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="The most events per transaction.", show_default=False)
]
MaxEvents = Annotated[int | None, typer.Option(min=1, help="End after so many deliveries.", show_default=False)]
UntilEmpty = Annotated[
    bool,
    typer.Option("--until-empty", help="End when nothing is left: takes over what the dead hold, and leaves alone "
                 "what the living hold."),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    consume = typer.Typer(help="Apply the events to the copies of a service.", no_args_is_help=True)
    command(consume, "group")(group)
    command(consume, "friend")(friend)
    app.add_typer(consume, name="consume")


def group(
    run: Run,
    name: Name = None,
    batch: Batch = None,
    max_events: MaxEvents = None,
    until_empty: UntilEmpty = False,
    metrics_port: Port = None,
    metrics_host: Host = LOOPBACK,
) -> None:
    """Keep the members' nicknames and thumbs in step.

    Until told to stop: SIGINT or SIGTERM finish the transaction at hand and acknowledge it.
    """
    with serving(run, "consumer", metrics_port, metrics_host):
        _consume(run, "group", name, batch, max_events, until_empty)


def friend(
    run: Run,
    name: Name = None,
    batch: Batch = None,
    max_events: MaxEvents = None,
    until_empty: UntilEmpty = False,
    metrics_port: Port = None,
    metrics_host: Host = LOOPBACK,
) -> None:
    """Keep the friends' nicknames and pictures in step.

    Until told to stop: SIGINT or SIGTERM finish the transaction at hand and acknowledge it.
    """
    with serving(run, "consumer", metrics_port, metrics_host):
        _consume(run, "friend", name, batch, max_events, until_empty)


def _consume(
    run: Run, service: str, name: str | None, batch: int | None, max_events: int | None, until_empty: bool
) -> None:
    from imsync.bus.garbage import collect_rarely
    from imsync.cli.signals import stopping
    from imsync.errors import InfrastructureError
    from imsync.im.events import DESTINATION

    store = run.workspace.projection(service)
    options = run.consumer_options(
        until_empty=until_empty, max_events=max_events, **({} if batch is None else {"batch": batch})
    )
    seen = 0
    with run.out.progress(f"consuming {service}", max_events) as advance:

        def on_batch(counts: Counts) -> None:
            nonlocal seen
            advance(counts.events - seen)
            seen = counts.events

        def on_trouble(error: InfrastructureError, delay: float) -> None:
            hint = f" ({error.hint})" if error.hint else ""
            fields = {"kind": error.kind, "group": service, "consumer": consumer.name, "delay_seconds": delay}
            run.out.note(f"{error.message}{hint}; again in {delay:.1f} s", logging.WARNING, **fields)

        consumer = run.bus.consumer(
            DESTINATION,
            group=service,
            events=store.events,
            handler=store,
            name=name,
            options=options,
            on_batch=on_batch,
            on_trouble=on_trouble,
        )
        collect_rarely()
        began = time.monotonic()
        with stopping(consumer.stop, deadline_seconds=run.settings.consumer.stop_deadline_seconds):
            counts = consumer.run()
    store.close()
    _tell(run, service, consumer.name, counts, time.monotonic() - began)


def _tell(run: Run, service: str, name: str, counts: Counts, elapsed: float) -> None:
    data = {
        "group": service,
        "consumer": name,
        "events": counts.events,
        "applied": counts.applied,
        "superseded": counts.superseded,
        "duplicates": counts.duplicates,
        "dead": counts.dead,
        "ignored": counts.ignored,
        "taken_over": counts.taken_over,
        "lost": counts.lost,
        "left_pending": counts.left_pending,
        "seconds": round(elapsed, 3),
    }
    extra = ", ".join(
        f"{value:,} {outcome.replace('_', ' ')}"
        for outcome in ("duplicates", "dead", "ignored", "taken_over", "lost", "left_pending")
        if (value := getattr(counts, outcome))
    )
    events = "1 event" if counts.events == 1 else f"{counts.events:,} events"
    run.out.result(
        data,
        f"{events} in {elapsed:.1f} s: {counts.applied:,} applied, "
        f"{counts.superseded:,} superseded" + (f", {extra}" if extra else ""),
    )
