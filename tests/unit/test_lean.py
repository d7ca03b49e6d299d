"""Lean events: what is refused and what is read is the same as with whole ones."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, timedelta, timezone
from typing import Annotated, Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from imsync.bus.codec import Decoder, encode
from imsync.bus.entry import Entry
from imsync.bus.event import Attribute, Event, PositiveInt
from imsync.bus.lean import LeanEvent, lean_schema
from imsync.errors import DataError
from imsync.im.events import User2FriendEvent, User2GroupEvent, UserDeleted, UserUpdated
from imsync.im.simulator import INVALID_KINDS, invalid_body

VIEWS = (User2GroupEvent, UserDeleted)
WHOLE = Decoder(VIEWS, ignore=["im.user.seen.v1"])
LEAN = Decoder(VIEWS, ignore=["im.user.seen.v1"], lean=True)
UPDATE = UserUpdated(id=2**63 - 1, version=3, nick_name="晓明 🚀", head_image="", head_image_thumb="https://x/y")


def read(decoder: Decoder[Any], body: bytes) -> object:
    """All that can be told of what a decoder makes of a body, alone and in a batch."""
    events, others = decoder.read_all([Entry("1-0", body)])
    in_batch = [vars(event) for event in events], [repr(other) for other in others.values()]
    try:
        event = decoder.decode(body)
    except DataError as refusal:
        alone: object = [], [repr(refusal)]
        told: object = refusal.reason, refusal.message
    else:
        alone = ([vars(event)], []) if event else ([], ["None"])
        told = event and (type(event).__name__, {name: getattr(event, name) for name in FIELDS[type(event).__name__]})
    assert in_batch == alone
    return told


FIELDS = {view.__name__: tuple(view.model_fields) for view in VIEWS}


def test_a_lean_event_has_the_fields_and_what_its_class_says() -> None:
    event: Any = LEAN.decode(encode(UPDATE, source="urn:here"))
    assert isinstance(event, LeanEvent)
    assert (event.id, event.version, event.nick_name, event.head_image_thumb) == (
        2**63 - 1,
        3,
        "晓明 🚀",
        "https://x/y",
    )
    assert (event.event_id, event.occurred_at) == (UPDATE.event_id, UPDATE.occurred_at)
    assert (event.source, event.traceparent) == ("urn:here", None)
    assert (event.final, event.event_type, event.event_destination) == (False, "im.user.updated.v1", "user-update")
    assert (event.event_subject(), event.event_sequence()) == (str(2**63 - 1), 3)
    gone: Any = LEAN.decode(encode(UserDeleted(id=7, version=4), source="urn:here"))
    assert (gone.final, gone.id, type(gone).__name__) == (True, 7, "UserDeleted")
    assert repr(gone).startswith("UserDeleted(event_id=UUID(")


@pytest.mark.parametrize("kind", INVALID_KINDS)
def test_what_is_invalid_is_refused_for_the_same_reason(kind: str) -> None:
    body = invalid_body(kind, random.Random(kind))
    assert isinstance(read(LEAN, body), tuple)
    assert read(LEAN, body) == read(WHOLE, body)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.floats(), st.text(max_size=9), st.just([]), st.just({}),
    st.sampled_from(["1.0", "im.user.updated.v1", "im.user.deleted.v1", "im.user.seen.v1", "0" * 18 + "7", "a\0b",
                     "a\x7fb", "a\x1fb", "é"]),
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(["specversion", "type", "source", "id", "time", "sequence", "traceparent", "x"]),
                    VALUES, max_size=3),
    st.dictionaries(st.sampled_from(["id", "nickName", "headImage", "headImageThumb", "destination"]), VALUES,
                    max_size=2),
    st.sets(st.sampled_from(["specversion", "type", "source", "id", "time", "sequence", "data"]), max_size=1),
    st.booleans(),
)  # fmt: skip
def test_whatever_is_sent_is_read_alike(
    envelope: dict[str, Any], data: dict[str, Any], without: set[str], ascii_only: bool
) -> None:
    event: dict[str, Any] = json.loads(encode(UPDATE, source="urn:here"))
    event |= envelope
    event["data"] |= data
    sent = {name: value for name, value in event.items() if name not in without}
    body = json.dumps(sent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    assert read(LEAN, body) == read(WHOLE, body)


TIMES = st.one_of(
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(-timedelta(minutes=210))]))
    .map(lambda time: time.isoformat())
    .flatmap(lambda text: st.sampled_from([text, text.replace("+00:00", "Z"), text.replace("T", " ")])),
    st.from_regex(r"[0-2][0-9]{3}-[0-3][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]\.[0-9]{6}Z", fullmatch=True),
    st.sampled_from(
        ["2026-W48-2T00:12:13.123456Z", "2026-11-24T24:00:00.000000Z", "2026-11-24T23:59:60.000000Z", "2026-11-24", "",
         "0000-01-01T00:00:00.000000Z", "2026-11-24T00:12:13.123456", "20261124T001213.123456Z",
         "2026-11-24T00:12:13,123456Z", "٢026-11-24T00:12:13.123456Z", "2026-11-24T00:12:13.123456z"]
    ),
)  # fmt: skip


@settings(max_examples=500)
@given(TIMES)
def test_times_are_read_alike_however_they_are_written(text: str) -> None:
    assert re.search(PLAIN_TIME, encode(UPDATE, source="urn:here").decode())  # what is replaced is read by the fast way
    body = re.sub(PLAIN_TIME, json.dumps(text, ensure_ascii=False), encode(UPDATE, source="urn:here").decode(), count=1)
    whole, lean = read(WHOLE, body.encode()), read(LEAN, body.encode())
    assert whole == lean
    if isinstance(lean, tuple) and lean[0] == "User2GroupEvent":
        (event,), _ = LEAN.read_all([Entry("1-0", body.encode())])
        assert isinstance(event, LeanEvent)
        assert event.occurred_at.utcoffset() == lean[1]["occurred_at"].utcoffset()


PLAIN_TIME = r'"[0-9-]{10}T[0-9:]{8}\.[0-9]{6}Z"'


class Stripping(Event, type="stripping.v1"):
    model_config = ConfigDict(str_strip_whitespace=True)


@pytest.mark.parametrize("time", [" {}", "{} ", "{}\u2003"])
def test_a_class_that_strips_its_texts_strips_no_times(time: str) -> None:
    body = re.sub(
        PLAIN_TIME, lambda found: f'"{time.format(found[0][1:-1])}"', encode(Stripping(), source="a").decode()
    )
    for lean in (False, True):
        _, others = Decoder([Stripping], lean=lean).read_all([Entry("1-0", body.encode())])
        assert "time" in str(others["1-0"]) or "occurred_at" in str(others["1-0"])


@pytest.mark.parametrize("text", ["\0", "\x1f", "\x7f", "\\", '"', "\u2028"])
@pytest.mark.parametrize("name", ["source", "nickName"])
@pytest.mark.parametrize("escaped", [True, False])
def test_control_characters_are_refused_however_they_are_written(name: str, text: str, escaped: bool) -> None:
    event: dict[str, Any] = json.loads(encode(UPDATE, source="urn:here"))
    (event if name == "source" else event["data"])[name] = "?"
    written = f"\\u{ord(text):04x}" if escaped else text
    body = json.dumps(event, ensure_ascii=False).replace("?", written).encode()
    assert read(LEAN, body) == read(WHOLE, body)
    is_refused = (text in "\0\x1f\x7f") if name == "source" else text == "\0"
    is_broken = not escaped and text in '\0\x1f\\"'
    assert bool(LEAN.read_all([Entry("1-0", body)])[1]) == (is_refused or is_broken)


class Quoted(Event, type="test.quoted.v1", destination="tests"):
    name: Attribute
    also: Annotated[Attribute, BeforeValidator(unquote)]

    @field_validator("name", mode="before")
    @classmethod
    def _unquoted(cls, value: Any) -> Any:
        return unquote(value)


@pytest.mark.parametrize("field", ["name", "also"])
def test_a_control_character_that_a_validator_makes_is_refused(field: str) -> None:
    decoder = Decoder([Quoted], lean=True)
    values = {"name": "a%20b", "also": "c%20d"}
    body = encode(Quoted.model_construct(**values), source="urn:here")
    event: Any = decoder.read_all([Entry("1-0", body)])[0][0]
    assert (event.name, event.also) == ("a b", "c d")
    body = encode(Quoted.model_construct(**values | {field: "a%0Ab"}), source="urn:here")
    events, others = decoder.read_all([Entry("1-0", body)])
    assert not events
    assert "should match pattern" in str(others["1-0"])


class Checked(Event, type="test.checked.v1", destination="tests"):
    low: PositiveInt
    high: PositiveInt

    @model_validator(mode="after")
    def _in_order(self) -> Checked:
        if self.low > self.high:
            raise ValueError("not in order")
        return self


class Hooked(Event, type="test.hooked.v1", destination="tests"):
    number: PositiveInt

    def model_post_init(self, context: Any, /) -> None:
        self.__dict__["number"] = 7


class Private(Event, type="test.private.v1", destination="tests"):
    _seen: int = PrivateAttr(default=3)


class Optional(Event, type="test.optional.v1", destination="tests"):
    number: PositiveInt = Field(default=3)


@pytest.mark.parametrize(
    "event", [Checked(low=1, high=2), Hooked(number=1), Private(), Optional()], ids=lambda event: type(event).__name__
)
def test_a_class_that_is_more_than_its_fields_is_read_whole(event: Event) -> None:
    assert lean_schema(type(event)) is None
    assert Decoder([type(event)], lean=True).decode(encode(event, source="urn:here")) == event.model_copy(
        update={"source": "urn:here"}
    )


def test_a_view_is_lean_beside_one_that_cannot_be() -> None:
    both: Decoder[Any] = Decoder([Checked, User2FriendEvent], lean=True)
    assert isinstance(both.decode(encode(UPDATE, source="urn:here")), LeanEvent)
    assert isinstance(both.decode(encode(Checked(low=1, high=1), source="urn:here")), Checked)
    bad = encode(Checked.model_construct(low=2, high=1, source="urn:here"), source="urn:here")
    with pytest.raises(DataError):
        both.decode(bad)
