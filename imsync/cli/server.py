"""`imsync server start|stop|status`: the embedded server of a data folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.embedded import EmbeddedServer, ServerStatus


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    server = typer.Typer(help="The server that imsync runs when no --url is given.", no_args_is_help=True)
    command(server, "start")(start)
    command(server, "stop")(stop)
    command(server, "status")(status)
    app.add_typer(server, name="server")


def start(run: Run) -> None:
    """Start the server of the data folder, unless it runs already."""
    _show(run, _server(run).start())


def stop(run: Run) -> None:
    """Stop the server of the data folder. Its data is kept."""
    stopped = _server(run).stop()
    run.out.result({"stopped": stopped}, "stopped" if stopped else "no server was running")


def status(run: Run) -> None:
    """Tell whether the server of the data folder runs. Starts nothing."""
    _show(run, _server(run).status())


def _server(run: Run) -> EmbeddedServer:
    from imsync.embedded import EmbeddedServer
    from imsync.errors import UsageError

    if run.settings.url:
        raise UsageError("a Redis URL is configured, so there is no server of its own", "unset --url / IMSYNC_URL")
    return EmbeddedServer(run.settings.data_dir)


def _show(run: Run, status: ServerStatus) -> None:
    from imsync.cli.render import seconds

    text = (
        f"{status.version} at {status.url}, pid {status.pid}, up {seconds(status.uptime_seconds)}"
        if status.running
        else f"no server runs in {status.data_dir}"
    )
    run.out.result(
        {
            "running": status.running,
            "url": status.url,
            "pid": status.pid,
            "version": status.version,
            "uptime_seconds": status.uptime_seconds,
            "data_dir": str(status.data_dir),
            "started": status.started,
        },
        text,
    )
