"""OpenTelemetry for whoever runs a command under it, such as by `opentelemetry-instrument`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imsync.bus.telemetry import Listener


def tracing() -> Iterable[Listener]:
    """The listener that makes spans, if somebody has configured a tracer provider before the command began. Nothing is
    imported otherwise: without a provider there would be nobody to record them.
    """
    api = sys.modules.get("opentelemetry.trace")
    if api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return []
    from imsync.telemetry.tracing import Tracing

    return [Tracing()]
