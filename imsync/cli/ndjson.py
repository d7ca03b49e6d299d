"""Edits as newline-delimited JSON (https://github.com/ndjson/ndjson-spec), one object per line, as they arrive."""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from threading import Event
from typing import TYPE_CHECKING, BinaryIO

from imsync.errors import UsageError

if TYPE_CHECKING:
    from imsync.im.user_store import ProfileEdit

LINE_BYTES = 64 * 1024
"""The longest line. The longest edit, all in escapes, is far shorter."""
READ_BYTES = 64 * 1024
POLL_SECONDS = 0.1

_JSON_NAMES = {
    "id": "user_id",
    "nickName": "nick_name",
    "headImage": "head_image",
    "headImageThumb": "head_image_thumb",
}


def arriving(source: BinaryIO, stop: Event, *, most: int) -> Iterator[list[bytes]]:
    """The lines of a stream, as many at once as have arrived, without waiting for more of them.

    Args:
        source: the stream. Nobody else reads from it.
        stop: when it is set, what has arrived is the end; half a line is dropped.
        most: the most lines at once.

    Returns:
        Lists of lines, without their ends and never empty. Of a line above `LINE_BYTES` only a part is there, which
        is above it too.
    """
    raw: BinaryIO = getattr(source, "raw", source)  # what a buffer holds back, select does not see
    lines: list[bytes] = []
    rest = b""
    while not stop.is_set():
        if not _ready(raw, 0.0 if lines else POLL_SECONDS):
            if lines:
                yield lines
                lines = []
            continue
        block = raw.read(READ_BYTES)
        if block == b"":
            lines += [rest] if rest else []
            break
        *whole, rest = (rest + (block or b"")).split(b"\n")
        rest = rest[: LINE_BYTES + 1]
        lines += whole
        while len(lines) >= most:
            yield lines[:most]
            lines = lines[most:]
    if lines:
        yield lines


def _ready(source: BinaryIO, seconds: float) -> bool:
    """Whether there is something to read, or the end, within so many seconds."""
    try:
        descriptor = source.fileno()
    except OSError:  # a stream in memory
        return True
    return bool(select.select([descriptor], [], [], seconds)[0])


def parsed(line: bytes) -> ProfileEdit:
    """The edit that a line describes.

    Raises:
        UsageError: the line is too long or describes none; the message never holds the line's content.
    """
    from imsync.im.user_store import ProfileEdit

    if len(line) > LINE_BYTES:
        raise UsageError(f"longer than {LINE_BYTES // 1024} KiB")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("not a JSON object") from None
    if not isinstance(value, dict):
        raise UsageError("not a JSON object")
    if unknown := value.keys() - _JSON_NAMES.keys():
        raise UsageError(f"unknown field {sorted(unknown)[0][:40]!a}")
    if "id" not in value:
        raise UsageError("no id")
    if nulls := [name for name, content in value.items() if content is None]:
        raise UsageError(f"{nulls[0]} is null: leave a field out to keep it")
    return ProfileEdit.checked(**{_JSON_NAMES[name]: content for name, content in value.items()})
