"""How `imsync tail` writes an entry: a format of letters, in the manner of kcat."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from imsync.cli.render import safe
from imsync.errors import UsageError

if TYPE_CHECKING:
    from imsync.bus.dead_letter import DeadLetterRecord
    from imsync.bus.entry import Entry
    from imsync.bus.envelope import Envelope

LETTERS = {
    "i": "entry id",
    "t": "event type",
    "u": "user id",
    "v": "version",
    "e": "event id",
    "T": "when it was published, in UTC",
    "c": "the same without the date",
    "a": "age in seconds",
    "o": "when it happened, by its source",
    "s": "source",
    "d": "the event's data as JSON",
    "b": "the whole body",
    "x": "why it cannot be read",
    "r": "why it is dead",
    "m": "the message of that",
    "E": "the entry that it was",
    "%": "a percent sign",
}
"""What each letter stands for. `r`, `m` and `E` are of dead letters."""

DEFAULT = "%c  %i  %t  %u  v%v"
UNREADABLE = "%c  %i  ! %x"
DEFAULT_DEAD = "%c  %E  %u  v%v  %r: %m"

_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}
NOTHING = "-"
"""What stands for what an entry does not tell."""


def compiled(text: str) -> Callable[[Mapping[str, Callable[[], str]]], str]:
    """A format as a function from the values of its letters to what is printed, a line end included.

    Raises:
        UsageError: there is no such letter or escape.
    """
    parts: list[tuple[bool, str]] = []
    for literal, letter, escape in re.findall(r"([^%\\]+)|%(.?)|\\(.?)", text, re.DOTALL):
        if literal:
            parts.append((False, re.sub(r"[^\n\t]+", lambda found: safe(found[0]), literal)))
        elif letter in LETTERS:
            parts.append((letter != "%", letter))
        elif escape in _ESCAPES:
            parts.append((False, _ESCAPES[escape]))
        else:
            bad = f"%{letter}" if letter or text.endswith("%") else f"\\{escape}"
            letters = " ".join(f"%{each}" for each in LETTERS)
            raise UsageError(f"bad format: {bad!a} stands for nothing", rf"there are {letters} \n \t \\")
    end = "" if parts and not parts[-1][0] and parts[-1][1].endswith("\n") else "\n"

    def write(values: Mapping[str, Callable[[], str]]) -> str:
        return "".join((safe(values[part]()) or NOTHING) if is_letter else part for is_letter, part in parts) + end

    return write


def values(
    entry: Entry, envelope: Envelope, body: bytes | None, letter: DeadLetterRecord | None, now_ms: int
) -> dict[str, Callable[[], str]]:
    """What the letters stand for.

    Args:
        entry: as it is in the stream that is followed.
        envelope: what its body holds.
        letter: when it is a dead letter.
        now_ms: the server's clock, in unix milliseconds.
    """
    import json

    from imsync.bus.clock import seconds_since, time_of
    from imsync.bus.entry import id_parts

    source_id = entry.id if letter is None else letter.source_id
    at = (time_of(entry.id) or "").replace("+00:00", "Z")
    return {
        "i": lambda: entry.id,
        "t": lambda: envelope.type,
        "u": lambda: envelope.subject,
        "v": lambda: envelope.version,
        "e": lambda: envelope.text("id"),
        "T": lambda: at,
        "c": lambda: at[11:23],
        "a": lambda: f"{seconds_since(id_parts(entry.id)[0], now_ms):.3f}" if at else "",
        "o": lambda: envelope.text("time"),
        "s": lambda: envelope.text("source"),
        "d": lambda: json.dumps(envelope.event["data"]) if envelope.event and "data" in envelope.event else "",
        "b": lambda: "" if body is None else body.decode(errors="backslashreplace"),
        "x": lambda: envelope.error,
        "r": lambda: "" if letter is None else letter.reason,
        "m": lambda: "" if letter is None else letter.message,
        "E": lambda: source_id,
    }
