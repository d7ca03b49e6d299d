"""`imsync relay`: keeps the outbox drained."""

from __future__ import annotations

import threading
import time
from typing import Annotated

import typer

from imsync.cli.run import Run, command


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "relay")(relay)


def relay(
    run: Run,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when the outbox is empty.")] = False,
) -> None:
    """Keep publishing what waits in the outbox, until told to stop."""
    from imsync.cli.signals import stopping
    from imsync.im.events import DESTINATION
    from imsync.im.relay import Relay

    store = run.workspace.user_store()
    run.bus.ping()
    stop = threading.Event()
    began = time.monotonic()
    with run.out.progress("relaying", None) as advance:
        worker = Relay(
            store,
            run.bus.publisher(DESTINATION),
            batch=run.settings.relay.batch,
            on_sent=advance,
            on_waiting=lambda: run.out.note("another relay is at work on this outbox; waiting for it"),
        )
        with stopping(stop.set, deadline_seconds=run.settings.consumer.stop_deadline_seconds):
            if until_empty:
                published = worker.deliver(up_to_seq=2**63 - 1, stop=stop)
            else:
                published = worker.run(
                    stop,
                    poll_seconds=run.settings.relay.poll_ms / 1000,
                    on_trouble=lambda error, delay: run.out.note(f"{error.message}; again in {delay:.1f} s"),
                )
    waiting = store.backlog().unsent
    store.close()
    run.out.result(
        {"published": published, "outbox": waiting, "seconds": round(time.monotonic() - began, 3)},
        f"{published:,} published, {waiting:,} wait",
    )
