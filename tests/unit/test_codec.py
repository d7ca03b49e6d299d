"""The wire form, byte by byte, and that everybody reads it: we, our views and any CloudEvents SDK."""

from __future__ import annotations

import functools
import json
import operator
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from imsync.bus.codec import MAX_BODY_BYTES, Decoder, encode
from imsync.bus.event import MAX_INT, Event, PositiveInt
from imsync.bus.uuid7 import uuid7, uuid7s
from imsync.errors import DataError
from imsync.im.events import (
    IMAGE_URL_MAX,
    NICK_NAME_MAX,
    IMBaseEvent,
    User2FriendEvent,
    User2GroupEvent,
    UserDeleted,
    UserUpdated,
)

EVENT_ID = UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f")
OCCURRED_AT = datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
SOURCE = "urn:imsync:user-store:1"

UPDATED = UserUpdated(
    event_id=EVENT_ID,
    occurred_at=OCCURRED_AT,
    id=42,
    version=7,
    nick_name='晓明 "Zoë" 🚀\n',
    head_image="",
    head_image_thumb="https://img.example/42_t.png",
)
DELETED = UserDeleted(event_id=EVENT_ID, occurred_at=OCCURRED_AT, id=42, version=MAX_INT)


class Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    sku: str
    amount: PositiveInt


class OrderPaid(Event, type="shop.order.paid.v1", destination="orders"):
    """Somebody else's event: nested and optional fields, and an `id` of its own that is a text."""

    id: str
    lines: tuple[Line, ...] = ()
    paid_at: datetime | None = None
    note: str | None = None
    by_region: dict[str, int] | None = None
    total_weight: float = 0.0


READERS: Decoder[Event] = Decoder([UserUpdated, UserDeleted, OrderPaid])


def decoded(body: bytes) -> Event:
    event = READERS.decode(body)
    assert event is not None
    return event


# ── what is written ──────────────────────────────────────────────────────────────────────────────────


def test_the_wire_form_of_an_update_byte_by_byte() -> None:
    assert encode(UPDATED, source=SOURCE).decode() == (
        '{"specversion":"1.0","type":"im.user.updated.v1","source":"urn:imsync:user-store:1",'
        '"id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f","time":"2026-02-03T04:05:06.000007Z",'
        '"subject":"42","sequence":"0000000000000000007",'
        '"data":{"id":42,"nickName":"晓明 \\"Zoë\\" 🚀\\n","headImage":"",'
        '"headImageThumb":"https://img.example/42_t.png","destination":"user-update"}}'
    )


def test_the_wire_form_of_a_tombstone_byte_by_byte() -> None:
    assert encode(DELETED, source=SOURCE).decode() == (
        '{"specversion":"1.0","type":"im.user.deleted.v1","source":"urn:imsync:user-store:1",'
        '"id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f","time":"2026-02-03T04:05:06.000007Z",'
        '"subject":"42","sequence":"9223372036854775807",'
        '"data":{"id":42,"destination":"user-update"}}'
    )


def test_the_wire_form_of_a_generic_event_byte_by_byte() -> None:
    event = OrderPaid(
        event_id=EVENT_ID,
        occurred_at=OCCURRED_AT,
        source="urn:shop",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        id="A-1",
        lines=(Line(sku="x", amount=3),),
    )
    assert encode(event, source="urn:other").decode() == (
        '{"specversion":"1.0","type":"shop.order.paid.v1","source":"urn:shop",'
        '"id":"017f22e2-79b0-7cc3-98c4-dc0c0c07398f","time":"2026-02-03T04:05:06.000007Z",'
        '"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",'
        '"data":{"id":"A-1","lines":[{"sku":"x","amount":3}],"paidAt":null,"note":null,'
        '"byRegion":null,"totalWeight":0.0}}'
    )


def test_sequences_sort_as_text_in_the_order_of_the_versions() -> None:
    versions = [1, 9, 10, 99, 2**31, MAX_INT - 1, MAX_INT]
    sequences = [
        json.loads(encode(UserDeleted(id=1, version=version), source=SOURCE))["sequence"] for version in versions
    ]
    assert sequences == sorted(sequences)


def test_an_event_keeps_its_identity_and_two_events_never_share_one() -> None:
    before = time.time_ns() // 1_000_000
    events = [UserDeleted(id=1, version=1) for _ in range(10_000)]
    after = time.time_ns() // 1_000_000
    assert len({event.event_id for event in events}) == len(events)
    assert all(before <= event.event_id.int >> 80 <= after for event in events)
    assert all(event.occurred_at.utcoffset() == timedelta(0) for event in events)
    assert events == sorted(events, key=lambda event: event.occurred_at)
    assert events[-1].occurred_at > events[0].occurred_at
    assert encode(events[0], source=SOURCE) == encode(events[0], source=SOURCE)


def test_many_uuid7_are_as_good_as_single_ones() -> None:
    before = time.time_ns() // 1_000_000
    made = [UUID(bytes=each) for each in uuid7s(5_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(made)) == 5_000
    assert {(each.version, each.variant) for each in made} == {(7, "specified in RFC 4122")}
    assert all(before <= each.int >> 80 <= after for each in made)
    changing = functools.reduce(operator.or_, (each.int ^ made[0].int for each in made))
    assert changing & ((1 << 80) - 1) == (0xFFF << 64) | ((1 << 62) - 1), "74 bits of it are random"
    assert uuid7s(0) == []


def test_uuid7_has_the_bits_of_rfc_9562() -> None:
    # the test vector of its appendix A.6
    randomness = (0xCC3 << 64 | 0x18C4DC0C0C07398F).to_bytes(10, "big")
    assert str(uuid7(0x017F22E279B0, randomness)) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=16))
def test_uuid7_is_version_7_and_sorts_by_time(unix_ms: int, randomness: bytes) -> None:
    made = uuid7(unix_ms, randomness)
    assert (made.version, made.variant, made.int >> 80) == (7, "specified in RFC 4122", unix_ms)
    assert made < uuid7(unix_ms + 1, bytes(10))


@pytest.mark.parametrize(
    ("offset", "written"),
    [
        (timedelta(hours=5, minutes=30), "2026-02-02T22:35:06.000007Z"),
        (timedelta(seconds=30), "2026-02-03T04:04:36.000007Z"),  # RFC 3339 has no such offset
    ],
)
def test_times_are_written_in_utc(offset: timedelta, written: str) -> None:
    event = UPDATED.model_copy(update={"occurred_at": OCCURRED_AT.replace(tzinfo=timezone(offset))})
    body = encode(event, source=SOURCE)
    assert json.loads(body)["time"] == written
    assert decoded(body).occurred_at == event.occurred_at


# ── what cannot be written ───────────────────────────────────────────────────────────────────────────


def test_what_readers_would_refuse_is_not_written() -> None:
    class Untyped(Event):
        id: PositiveInt

    big = OrderPaid(id="1", note="x" * MAX_BODY_BYTES)
    cases: list[tuple[Event, str, str]] = [
        (Untyped(id=1), SOURCE, "untyped"),
        (big, SOURCE, "too_large"),
        (OrderPaid(id="\ud800"), SOURCE, "invalid"),
        (
            OrderPaid(id="1", occurred_at=datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))),
            SOURCE,
            "invalid",
        ),
        *((OrderPaid(id="1"), source, "invalid") for source in ("", "x" * 257, "a\n", "\ud800")),
    ]
    for event, source, reason in cases:
        with pytest.raises(DataError) as raised:
            encode(event, source=source)
        assert raised.value.reason == reason
    exactly = OrderPaid(id="1", note="x" * (MAX_BODY_BYTES - len(encode(OrderPaid(id="1", note=""), source=SOURCE))))
    assert len(encode(exactly, source=SOURCE)) == MAX_BODY_BYTES
    assert decoded(encode(exactly, source=SOURCE)) == exactly.model_copy(update={"source": SOURCE})


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_does_not_have_are_not_even_constructed(weight: float) -> None:
    with pytest.raises(ValidationError):
        OrderPaid(id="1", total_weight=weight)


@pytest.mark.parametrize(
    "change",
    [
        {"id": 0}, {"id": 2**63}, {"id": -1}, {"id": True}, {"id": 7.0}, {"id": "7"}, {"id": None},
        {"version": 0}, {"version": 2**63}, {"version": -1}, {"version": True}, {"version": 7.0},
        {"version": "7"}, {"version": None},
        {"nick_name": None}, {"nick_name": "x" * 256}, {"nick_name": "a\0"}, {"nick_name": b"x"},
        {"nick_name": "\ud800"}, {"head_image": "x" * 2049}, {"head_image": None},
        {"head_image_thumb": "x" * 2049}, {"head_image_thumb": "\0"},
        {"event_id": "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"}, {"event_id": None},
        {"occurred_at": datetime(2026, 1, 1)}, {"occurred_at": "2026-01-01T00:00:00Z"}, {"occurred_at": None},
        {"source": ""}, {"source": "x" * 257}, {"source": "a\x7f"}, {"traceparent": 1},
    ],
)  # fmt: skip
def test_an_event_out_of_bounds_is_not_constructed(change: dict[str, object]) -> None:
    good = {name: getattr(UPDATED, name) for name in UserUpdated.model_fields}
    assert UserUpdated(**good) == UPDATED
    with pytest.raises(ValidationError):
        UserUpdated(**(good | change))


def test_events_are_frozen_and_their_destination_is_that_of_the_class() -> None:
    with pytest.raises(ValidationError):
        UPDATED.version = 8
    assert UPDATED.destination == UserUpdated.event_destination == "user-update"


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────

# what strict UTF-8 can carry; NUL besides where a field does not forbid it
text = st.text(st.characters(exclude_categories=["Cs"]))
no_nul = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
attributes = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=0xA0), min_size=1, max_size=256)
ids = st.integers(1, MAX_INT)
# a day away from the ends, where UTC has no name for some local times
times = st.datetimes(
    datetime(1, 1, 2),
    datetime(9999, 12, 30),
    timezones=st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone),
)
identity = {
    "event_id": st.uuids(),
    "occurred_at": times,
    "source": attributes,
    "traceparent": st.none() | attributes,
}
images = st.text(no_nul, max_size=IMAGE_URL_MAX)
updates = st.builds(
    UserUpdated,
    id=ids,
    version=ids,
    nick_name=st.text(no_nul, max_size=NICK_NAME_MAX),
    head_image=images,
    head_image_thumb=images,
    **identity,
)
deletions = st.builds(UserDeleted, id=ids, version=ids, **identity)
orders = st.builds(
    OrderPaid,
    id=text,
    lines=st.lists(st.builds(Line, sku=text, amount=ids), max_size=3).map(tuple),
    paid_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    note=st.none() | text,
    by_region=st.none() | st.dictionaries(text, st.integers(-MAX_INT, MAX_INT), max_size=3),
    total_weight=st.floats(allow_nan=False, allow_infinity=False),
    **identity,
)


def plainly(event: Event, source: str) -> bytes:
    """The wire form, written member by member."""
    time = event.occurred_at.astimezone(UTC).isoformat(timespec="microseconds")[:-6]
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "type": event.event_type,
        "source": event.source or source,
        "id": str(event.event_id),
        "time": f"{time}Z",
        "subject": event.event_subject(),
        "sequence": None if (sequence := event.event_sequence()) is None else f"{sequence:019d}",
        "traceparent": event.traceparent,
    }
    members = {name: value for name, value in envelope.items() if value is not None}
    data = event.model_dump_json(by_alias=True)
    return f'{json.dumps(members, separators=(",", ":"))[:-1]},"data":{data}}}'.encode()


sources = st.sampled_from(["urn:imsync:user-store:1", "é", "/a b"])


@given(updates | deletions | orders, sources, st.booleans(), st.booleans())
def test_every_event_is_written_as_by_hand(event: Event, source: str, in_utc: bool, whole_second: bool) -> None:
    changes: dict[str, Any] = {"source": None} if in_utc else {}
    if in_utc:  # as nearly all are that were not made up
        changes["occurred_at"] = event.occurred_at.astimezone(UTC)
    if whole_second:
        changes["occurred_at"] = changes.get("occurred_at", event.occurred_at).replace(microsecond=0)
    event = event.model_copy(update=changes)
    assert encode(event, source=source) == plainly(event, source)


def test_an_identity_that_was_never_validated_is_written_as_its_text() -> None:
    class Moment(datetime):
        def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
            return super().isoformat(sep, timespec)

    for changes in (
        {"event_id": "an id"},
        {"occurred_at": Moment(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)},
        {"occurred_at": datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)},
        {"occurred_at": datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC)},
    ):
        event = UPDATED.model_copy(update=changes)
        assert encode(event, source=SOURCE) == plainly(event, SOURCE)


@given(updates | deletions | orders)
def test_what_is_written_is_read(event: Event) -> None:
    body = encode(event, source="urn:unused")
    assert decoded(body) == event
    # and not a byte more than JSON: any parser reads it alike
    assert json.loads(body)["id"] == str(event.event_id)


def test_the_largest_profile_fits() -> None:
    for widest in ("\x01", "🚀", '"'):
        profile = UserUpdated(
            id=MAX_INT,
            version=MAX_INT,
            nick_name=widest * NICK_NAME_MAX,
            head_image=widest * IMAGE_URL_MAX,
            head_image_thumb=widest * IMAGE_URL_MAX,
            source="s" * 256,
            traceparent="t" * 256,
        )
        assert decoded(encode(profile, source=SOURCE)) == profile


@given(updates | deletions)
def test_the_views_read_what_the_user_service_writes(event: IMBaseEvent) -> None:
    body = encode(event, source="urn:unused")
    for view, fields in (
        (User2GroupEvent, {"nick_name", "head_image_thumb"}),
        (User2FriendEvent, {"nick_name", "head_image"}),
    ):
        reader: Decoder[IMBaseEvent] = Decoder([view, UserDeleted])
        read = reader.decode(body)
        assert read is not None
        assert type(read) is (view if isinstance(event, UserUpdated) else UserDeleted)
        expected = event.model_dump(include=fields | {"id", "destination"})
        assert read.model_dump() == expected
        for name in ("event_id", "occurred_at", "source", "traceparent", "version"):
            assert getattr(read, name) == getattr(event, name)


# ── CloudEvents SDK ──────────────────────────────────────────────────────────────────────────────────


@given(updates | deletions | orders)
def test_the_official_sdk_reads_what_we_write(event: Event) -> None:
    read = JSONFormat().read(None, encode(event, source="urn:unused"))
    data: Any = read.get_data()
    assert read.get_specversion() == "1.0"
    assert read.get_id() == str(event.event_id)
    assert read.get_source() == event.source
    assert read.get_type() == event.event_type
    assert read.get_subject() == event.event_subject()
    assert read.get_time() == event.occurred_at
    assert read.get_extension("traceparent") == event.traceparent
    if isinstance(event, IMBaseEvent):
        assert read.get_extension("sequence") == f"{event.version:019d}"
        assert data["id"] == event.id
        assert data["destination"] == "user-update"
    if isinstance(event, UserUpdated):
        assert (data["nickName"], data["headImage"], data["headImageThumb"]) == (
            event.nick_name,
            event.head_image,
            event.head_image_thumb,
        )


@given(updates)
def test_we_read_what_the_official_sdk_writes(event: UserUpdated) -> None:
    written = CloudEvent(
        attributes={
            "id": str(event.event_id),
            "source": event.source,
            "type": "im.user.updated.v1",
            "time": event.occurred_at.astimezone(UTC),
            "datacontenttype": "application/json",
            "dataschema": "https://schemas.example/im/user",
            "subject": str(event.id),
            "sequence": f"{event.version:019d}",
            "partitionkey": "42",
        }
        | ({"traceparent": event.traceparent} if event.traceparent else {}),
        data={
            "id": event.id,
            "nickName": event.nick_name,
            "headImage": event.head_image,
            "headImageThumb": event.head_image_thumb,
            "addedLater": [1, {"x": None}],
        },
    )
    assert decoded(JSONFormat().write(written)) == event
