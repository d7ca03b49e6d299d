"""`--metrics-port`: Prometheus metrics over HTTP, from a thread of the command that they are about."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imsync.cli.run import Run

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
REQUEST_SECONDS = 10.0
"""How long a client may take to send its request."""
POLL_SECONDS = 0.1

Port = Annotated[
    int | None,
    typer.Option("--metrics-port", min=0, max=65535, show_default=False,
                 help="Serve Prometheus metrics at this port, under /metrics; 0 takes a free one."),
]  # fmt: skip
Host = Annotated[
    str,
    typer.Option("--metrics-host", help="The address that --metrics-port listens at. Whoever reaches it may read."),
]


@contextmanager
def serving(run: Run, role: str, port: int | None, host: str) -> Iterator[None]:
    """Serves the metrics of what happens in the block. The bus must be used only inside it. Nothing without a port.

    Args:
        role: `consumer` or `relay`.

    Raises:
        UsageError: nobody can listen there.
    """
    if port is None:
        yield
        return
    from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

    from imsync.telemetry.metrics import ConsumerMetrics, RelayMetrics, note_build

    # `…_created` would double the series, and process_start_time_seconds says it once for all
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    note_build(registry)
    run.listeners.append(ConsumerMetrics(registry) if role == "consumer" else RelayMetrics(registry))
    server = _listen(registry, host, port)
    thread = threading.Thread(target=server.serve_forever, args=(POLL_SECONDS,), name="imsync-metrics", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host
    run.out.note(f"metrics at http://{shown}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listen(registry: CollectorRegistry, host: str, port: int) -> ThreadingHTTPServer:
    import socket
    from http.server import ThreadingHTTPServer

    from prometheus_client import MetricsHandler

    from imsync.errors import UsageError

    class Handler(MetricsHandler):
        timeout = REQUEST_SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] not in ("/", "/metrics"):
                self.send_error(404)
                return
            super().do_GET()

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            log.debug("a request for metrics failed", exc_info=True)  # such as by a client that has gone

    Handler.registry = registry
    try:
        Server.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return Server((host, port), Handler)
    except OSError as error:
        raise UsageError(
            f"cannot serve metrics at {host} port {port}: {error.strerror or error}",
            "choose another --metrics-port, or another --metrics-host",
        ) from None
