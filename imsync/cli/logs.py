"""Log lines on stderr: warnings and errors, each on one line and safe for a terminal."""

from __future__ import annotations

import logging
import os
import sys

from imsync.cli.render import safe


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return safe(f"imsync: {record.levelname.lower()}: {record.getMessage()}")


def configure() -> None:
    """Sends imsync's log records to stderr: warnings and above, everything with IMSYNC_DEBUG."""
    debug = bool(os.environ.get("IMSYNC_DEBUG"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("imsync: %(levelname)s: %(message)s") if debug else _OneLine())
    logger = logging.getLogger("imsync")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.propagate = False
