"""How `imsync tail` writes entries, and what it makes of bytes that anybody may have written."""

from __future__ import annotations

import json

import pytest

from imsync.bus.clock import time_of
from imsync.bus.codec import MAX_BODY_BYTES
from imsync.bus.entry import FIELD, Entry
from imsync.bus.envelope import Envelope, look
from imsync.cli.event_format import LETTERS, compiled, values
from imsync.errors import UsageError

BODY = (
    b'{"specversion":"1.0","type":"im.user.updated.v1","source":"urn:x","id":"0190","time":"2026-11-23T02:30:00Z",'
    b'"subject":"7","sequence":"0000000000000000012","data":{"id":7,"nickName":"\xe5\xb0\x8f"}}'
)
ENTRY = Entry.of("1795401000007-3", {FIELD: BODY})


def written(format: str, body: bytes | None = BODY, entry_id: str = ENTRY.id) -> str:
    return compiled(format)(values(Entry.of(entry_id, {}), look(body), body, None, 1795401002007))


@pytest.mark.parametrize(
    ("format", "line"),
    [
        ("%i %t %u %v", "1795401000007-3 im.user.updated.v1 7 12\n"),
        ("%T|%c|%a|%o", "2026-11-23T02:30:00.007Z|02:30:00.007|2.000|2026-11-23T02:30:00Z\n"),
        (r"%e\t%s\n", "0190\turn:x\n"),
        (r"%%i\\n%x", "%i\\n-\n"),
        ("%d", '{"id": 7, "nickName": "\\u5c0f"}\n'),
        ("%b", BODY.decode() + "\n"),
        ("%r%m", "--\n"),
        ("%E", "1795401000007-3\n"),
        ("", "\n"),
        ("a\nb\x1bc", "a\nb\\x1bc\n"),
    ],
)
def test_what_the_letters_stand_for(format: str, line: str) -> None:
    assert written(format) == line


def test_every_letter_can_be_written() -> None:
    for body in (BODY, b"", b"[]", None):
        for letter in LETTERS:
            assert written(f"%{letter}", body).endswith("\n")


@pytest.mark.parametrize("format", ["%q", "%", "%i %", r"\e", "\\", r"%i\x"])
def test_what_stands_for_nothing_is_refused(format: str) -> None:
    with pytest.raises(UsageError, match="stands for nothing"):
        compiled(format)


def test_an_id_beyond_all_times_has_none() -> None:
    assert written("%T %c %a", entry_id=f"{2**64 - 1}-0") == "- - -\n"
    assert time_of(f"{2**64 - 1}-0") is None


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (None, "no field"),
        (b"", "not JSON"),
        (b"not JSON", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[1]", "no object"),
        (b"[" * MAX_BODY_BYTES, "too deeply"),
        (b'{"a":' * 10_000, "too deeply"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":-Infinity}', "not JSON"),
        (b'{"a":1e999}', "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b'"' + b"x" * MAX_BODY_BYTES + b'"', "the limit is"),
    ],
    ids=range(12),
)
def test_bytes_that_are_no_event_say_why(body: bytes | None, error: str) -> None:
    envelope = look(body)
    assert envelope.event is None
    assert error in envelope.error
    assert (envelope.type, envelope.subject, envelope.version) == ("", "", "")


@pytest.mark.parametrize("value", ["null", "7", "[]", "{}", "true"])
def test_attributes_of_other_types_are_missing(value: str) -> None:
    envelope = look(f'{{"type":{value},"subject":{value},"sequence":{value},"id":{value}}}'.encode())
    assert envelope.event is not None
    assert (envelope.type, envelope.subject, envelope.version, envelope.text("id")) == ("", "", "", "")


def test_what_can_be_read_can_be_printed_as_json() -> None:
    envelope = look(b'{"type":"\\ud800","data":{"a":1.5e300,"b":"\\u0000"}}')
    assert json.loads(json.dumps(envelope.event, ensure_ascii=True, allow_nan=False)) == envelope.event
    assert compiled("%t")(values(ENTRY, envelope, b"", None, 0)) == "\\ud800\n"
    assert Envelope(None).text("type") == ""
