"""Log lines on stderr: warnings and errors, each on one line and safe for a terminal."""

from __future__ import annotations

import logging
import os
import sys

from imsync.cli.render import safe


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return safe(f"imsync: {record.levelname.lower()}: {record.getMessage()}")


class _WithTraceback(_OneLine):
    def format(self, record: logging.LogRecord) -> str:
        head = super().format(record)
        return head if record.exc_info is None else f"{head}\n{safe_lines(self.formatException(record.exc_info))}"


def safe_lines(text: str) -> str:
    """A traceback, whose last lines may quote what somebody sent: every line of it safe, and indented, so that none
    looks like one of imsync's own.
    """
    return "\n".join(f"  {safe(line)}" for line in text.split("\n"))


def configure() -> None:
    """Sends imsync's log records to stderr: warnings and above, everything with IMSYNC_DEBUG."""
    debug = bool(os.environ.get("IMSYNC_DEBUG"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithTraceback() if debug else _OneLine())
    logger = logging.getLogger("imsync")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.propagate = False
