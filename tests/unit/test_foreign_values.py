"""What anybody who may use the server can write where imsync reads: it is taken for what it is, and nothing breaks."""

from __future__ import annotations

import pytest

from imsync.bus.dead_letter import letter, read
from imsync.bus.entry import Entry
from imsync.bus.handler import Rejected
from imsync.bus.outcome import DeadLetter
from imsync.bus.vitals import read_object

LAST = "18446744073709551615-18446744073709551615"
"""The highest entry id that Redis takes."""


def test_an_entry_of_no_known_time_can_be_buried() -> None:
    rejected = Rejected(None, LAST, DeadLetter("bad_json", "no"))
    written = letter(rejected, Entry.of(LAST, {b"event": b"{"}), "group", "consumer", 3)
    record = read(Entry.of("1-0", written.fields))
    assert (record.published_at, record.source_id, record.deliveries) == ("", LAST, 3)


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"1", b"null", b"{", None, b"[" * 5000])
def test_a_heartbeat_that_nobody_of_ours_wrote_names_nobody(value: bytes | None) -> None:
    assert read_object(value) == {}


def test_a_heartbeat_names_its_process() -> None:
    assert read_object(b'{"host": "a", "pid": 7}') == {"host": "a", "pid": 7}
