"""An entry's bytes for somebody who only looks: whatever can be told of them, and never an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from imsync.bus.codec import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class Envelope:
    """What an entry holds. All texts are as somebody wrote them: hostile.

    Args:
        event: the JSON object; None when the bytes are no such object.
        error: why there is none; empty when there is one.
    """

    event: Mapping[str, Any] | None
    error: str = ""

    def text(self, attribute: str) -> str:
        """A CloudEvents attribute; empty when it is missing or no text."""
        value = self.event.get(attribute) if self.event else None
        return value if isinstance(value, str) else ""

    @property
    def type(self) -> str:
        """What kind of event it is."""
        return self.text("type")

    @property
    def subject(self) -> str:
        """What it is about: of an event about a user, the user's id."""
        return self.text("subject")

    @property
    def version(self) -> str:
        """The `sequence` without the zeros in front."""
        return self.text("sequence").lstrip("0")


def look(body: bytes | None) -> Envelope:
    """Reads what there is to read. Validates nothing: see `Decoder` for that.

    Args:
        body: of an entry; None when it has none.
    """
    if body is None:
        return Envelope(None, "the entry has no field named event")
    if len(body) > MAX_BODY_BYTES:
        return Envelope(None, f"entry of {len(body)} bytes, the limit is {MAX_BODY_BYTES}")
    try:
        value = json.loads(body, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        return Envelope(None, "nested too deeply")
    except UnicodeDecodeError:
        return Envelope(None, "not UTF-8")
    except ValueError:  # whose text may quote the input
        return Envelope(None, "not JSON")
    if not isinstance(value, dict):
        return Envelope(None, "JSON, but no object")
    return Envelope(value)


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and the infinities are no JSON, though Python reads them


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
