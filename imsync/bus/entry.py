"""What the stream commands answer: entries, what is pending, groups, consumers, the stream itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

FIELD: Final = b"event"
"""The one field of an entry."""

LARGEST: Final = 2**64 - 1
"""The largest number in an entry id, before the dash and behind it."""

Fields = Mapping[bytes, bytes]

_ENTRY_ID = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")


class Entry(NamedTuple):
    """One entry of a stream. A batch holds thousands of them, so one that has the event's field and no other, as all
    that imsync writes, goes without a mapping.

    Args:
        body: the event's bytes; None when the entry has no such field.
        foreign: all its fields, when they are not that one alone. Empty when it was trimmed or deleted while it was
            pending.
    """

    id: str
    body: bytes | None
    foreign: Fields | None = None

    @classmethod
    def of(cls, entry_id: str, fields: Fields) -> Entry:
        """An entry with these fields."""
        return cls(entry_id, fields.get(FIELD), None if fields.keys() == {FIELD} else fields)

    @property
    def fields(self) -> Fields:
        """All its fields."""
        if self.foreign is not None:
            return self.foreign
        return {FIELD: self.body} if self.body is not None else {}


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """An entry that was delivered and not yet acknowledged."""

    id: str
    consumer: str
    idle_ms: int
    deliveries: int


@dataclass(frozen=True, slots=True)
class PendingSummary:
    """The pending entries of a group: how many, the oldest id, and how many each consumer holds."""

    count: int
    oldest_id: str | None
    by_consumer: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A consumer group. `lag` is None where the server cannot tell it (always on 6.2)."""

    name: str
    consumers: int
    pending: int
    last_delivered_id: str
    lag: int | None


@dataclass(frozen=True, slots=True)
class ConsumerInfo:
    """A consumer as the server remembers it, alive or not. `idle_ms`: since it last asked for anything."""

    name: str
    pending: int
    idle_ms: int


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream. The ids are None when it is empty; `last_generated_id` outlives the entries. `removed`: how many
    entries were trimmed or deleted since it was made; None where the server cannot tell it (6.2).
    """

    length: int
    first_id: str | None
    last_id: str | None
    last_generated_id: str
    removed: int | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter to be written: the id of the entry that it replaces, and the fields to keep."""

    source_id: str
    fields: Fields


def id_parts(entry_id: str) -> tuple[int, int]:
    """An entry id as numbers that compare as Redis orders them: (unix milliseconds, sequence)."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def is_entry_id(text: str) -> bool:
    """Whether Redis takes this for one: a 64-bit number of milliseconds, and one that counts within them."""
    numbers = _ENTRY_ID.fullmatch(text)
    return numbers is not None and all(int(each) <= LARGEST for each in numbers.groups(default="0"))


def id_before(entry_id: str) -> str:
    """The largest entry id below this one: a group that stands there is given this one next. 0-0 when there is none."""
    milliseconds, sequence = id_parts(entry_id)
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{milliseconds - 1}-{LARGEST}" if milliseconds else "0-0"


def id_after(entry_id: str) -> str:
    """The smallest entry id above this one; `LAST_ID` when there is none."""
    milliseconds, sequence = id_parts(entry_id)
    if sequence < LARGEST:
        return f"{milliseconds}-{sequence + 1}"
    return f"{milliseconds + 1}-0" if milliseconds < LARGEST else LAST_ID


def following(entry_id: str) -> str:
    """The exclusive form of a range's start: everything after this id."""
    return f"({entry_id}"


LAST_ID: Final = f"{LARGEST}-{LARGEST}"
"""The largest entry id there can be."""
AFTER_ALL: Final = following(LAST_ID)
"""The exclusive form of a range's start behind which there can be nothing."""
