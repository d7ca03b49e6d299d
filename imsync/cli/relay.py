"""`imsync relay`: keeps the outbox drained."""

from __future__ import annotations

import logging
import threading
import time
from typing import Annotated

import typer

from imsync.cli.metrics import LOOPBACK, Host, Port, serving
from imsync.cli.run import Run, command


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "relay")(relay)


def relay(
    run: Run,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when the outbox is empty.")] = False,
    metrics_port: Port = None,
    metrics_host: Host = LOOPBACK,
) -> None:
    """Keep publishing what waits in the outbox, until told to stop.

    What the server has lost since it was sent is sent again. What was sent long ago, and every group has
    acknowledged, leaves the outbox.
    """
    with serving(run, "relay", metrics_port, metrics_host):
        _relay(run, until_empty)


def _relay(run: Run, until_empty: bool) -> None:
    from imsync.cli.signals import stopping
    from imsync.errors import InfrastructureError

    def on_trouble(error: InfrastructureError, delay: float) -> None:
        what = f"{error.message}; again in {delay:.1f} s"
        run.out.note(what, logging.WARNING, kind=error.kind, delay_seconds=delay)

    store = run.workspace.user_store()
    run.bus.ping()
    stop = threading.Event()
    began = time.monotonic()
    with run.out.progress("relaying", None) as advance:
        worker = run.relay(
            store,
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
                    on_trouble=on_trouble,
                )
    waiting = store.backlog().unsent
    store.close()
    lost = f", {worker.resent:,} had been lost and were due again" if worker.resent else ""
    run.out.result(
        {
            "published": published,
            "resent": worker.resent,
            "outbox": waiting,
            "seconds": round(time.monotonic() - began, 3),
        },
        f"{published:,} published, {waiting:,} wait{lost}",
    )
