"""What can be told of bytes that may be no event: their type, what they are about, and its version.

For people who look at what could not be applied. Nothing is decided by it, and nothing of it was validated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic_core import from_json

from imsync.bus.codec import MAX_BODY_BYTES, SEQUENCE_DIGITS
from imsync.bus.event import MAX_INT

MAX_TEXT = 256
"""Longer attributes are cut: they are shown to people."""


class Glimpse(NamedTuple):
    """The CloudEvents attributes that could be read; None for those that could not.

    Args:
        type: the event's type, as it stands there: text from the outside.
        subject: what it is about, when that is a number.
        sequence: its position among the events of its subject.
    """

    type: str | None = None
    subject: int | None = None
    sequence: int | None = None


def glimpse(body: bytes | None) -> Glimpse:
    """What can be read of a body. Never raises."""
    if body is None or len(body) > MAX_BODY_BYTES:
        return Glimpse()
    try:
        envelope = from_json(body)
    except ValueError:
        return Glimpse()
    if not isinstance(envelope, dict):
        return Glimpse()
    kind = envelope.get("type")
    return Glimpse(
        kind[:MAX_TEXT] if isinstance(kind, str) and kind else None,
        _number(envelope.get("subject")),
        _number(envelope.get("sequence")),
    )


def _number(text: Any) -> int | None:
    """A number in digits, from 1 to 2**63 - 1."""
    if not isinstance(text, str) or not text.isascii() or not text.isdecimal() or len(text) > SEQUENCE_DIGITS:
        return None
    return value if 1 <= (value := int(text)) <= MAX_INT else None
