"""What goes to stderr: log records and the commands' messages, each on a line of its own and safe for a terminal.

As text for people, or as JSON for programs: one object per line with `time`, `level`, `logger` and `message`, and the
fields that a record has besides.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TextIO

from imsync.cli.lines import fold, width_of
from imsync.cli.render import safe

TEXT, JSON = "text", "json"

NOTE = "imsync_note"
"""The attribute of a record that is a command's own message."""

_OWN = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", NOTE})
"""What every record has: the other attributes are fields."""

_FIRST = ("time", "level", "logger", "message")


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """The stream."""
        return sys.stderr


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        is_note = hasattr(record, NOTE)
        level = "" if is_note else f"{record.levelname.lower()}: "
        line = safe(f"imsync: {level}{record.getMessage()}")
        return "\n".join(fold(line, columns=width_of(sys.stderr))) if is_note and sys.stderr.isatty() else line


class _Debug(_Text):
    """For developers: with tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        head = super().format(record)
        return head if record.exc_info is None else f"{head}\n{safe_lines(self.formatException(record.exc_info))}"


def safe_lines(text: str) -> str:
    """A traceback, whose last lines may quote what somebody sent: every line of it safe, and indented, so that none
    looks like one of imsync's own.
    """
    return "\n".join(f"  {safe(line)}" for line in text.split("\n"))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": safe(record.getMessage()),
        }
        line |= {safe(name): _plain(value) for name, value in record.__dict__.items() if name not in {*_OWN, *_FIRST}}
        if record.exc_info:
            line["exception"] = safe(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=True)


def _plain(value: object) -> object:
    """A field's value as JSON has it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return safe(value)


def early_format(args: Sequence[str], environ: Mapping[str, str]) -> str:
    """The format as far as it can be told before the settings are read: by the flag, or by the environment."""
    wanted = environ.get("IMSYNC_LOG_FORMAT", TEXT)
    for word, following in pairwise([*args, ""]):
        if word == "--log-format":
            wanted = following
        elif word.startswith("--log-format="):
            wanted = word.partition("=")[2]
    return JSON if wanted == JSON else TEXT


def configure(form: str = TEXT, level: str = "warning") -> None:
    """Sends imsync's log records to stderr; under JSON those of other packages and Python's warnings, too.

    Args:
        level: the least severe that are shown. With IMSYNC_DEBUG everything is, as text with tracebacks.
    """
    debug = bool(os.environ.get("IMSYNC_DEBUG"))
    handler = _Stderr()
    if form == JSON:
        handler.setFormatter(_Json())
    else:
        handler.setFormatter(_Debug() if debug else _Text())
    logger = logging.getLogger("imsync")
    logger.handlers = [handler]
    logger.setLevel(logging.DEBUG if debug else level.upper())
    logger.propagate = False
    if form == JSON:
        logging.captureWarnings(True)
        logging.getLogger().handlers = [handler]


def writes_json() -> bool:
    """Whether stderr is for programs."""
    return any(isinstance(handler.formatter, _Json) for handler in logging.getLogger("imsync").handlers)


def tell(message: str, level: int = logging.INFO, **fields: object) -> None:
    """A command's own message to whoever runs it. It is shown whatever the log level is.

    Args:
        level, fields: what JSON has beside the message.
    """
    logger = logging.getLogger("imsync.cli")
    if not logging.getLogger("imsync").handlers:
        configure()
    record = logger.makeRecord(logger.name, level, "", 0, "%s", (message,), None, extra={**fields, NOTE: True})
    for handler in logging.getLogger("imsync").handlers:
        handler.handle(record)
