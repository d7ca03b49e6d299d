"""What is no event of ours is refused, whatever it is: with a reason, and without echoing a byte of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from imsync.bus.codec import MAX_BODY_BYTES, Decoder, encode
from imsync.bus.event import Event, PositiveInt
from imsync.errors import DataError
from imsync.im.events import User2FriendEvent, User2GroupEvent, UserDeleted, UserUpdated

Document: TypeAlias = dict[str, Any]


class Part(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str


class Order(Event, type="shop.order.v1", destination="orders"):
    id: PositiveInt
    parts: tuple[Part, ...] = ()
    counts: dict[str, PositiveInt] | None = None
    weight: float = 0.0
    mode: Literal["cash", "card"] = "cash"
    due: datetime | None = None


UPDATED = UserUpdated(
    event_id=UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
    occurred_at=datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
    source="urn:test",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    id=42,
    version=7,
    nick_name="晓明",
    head_image="h",
    head_image_thumb="t",
)
BODY = encode(UPDATED, source="urn:unused")
ORDER_BODY = encode(Order(id=1, source="urn:test", parts=(Part(name="x"),), counts={"a": 1}), source="urn:unused")
DECODER: Decoder[Event] = Decoder([UserUpdated, UserDeleted, Order], ignore=["x.ignored"])


def refused(body: bytes) -> DataError:
    with pytest.raises(DataError) as raised:
        DECODER.decode(body)
    assert "\n" not in raised.value.message
    return raised.value


def changed(**attributes: object) -> bytes:
    return json.dumps(json.loads(BODY) | attributes).encode()


def with_data(**fields: object) -> bytes:
    document = json.loads(BODY)
    return json.dumps(document | {"data": document["data"] | fields}).encode()


def raw(old: bytes, new: bytes) -> bytes:
    """The body with other bytes, where JSON's own writer would not write them."""
    assert BODY.count(old) == 1
    return BODY.replace(old, new)


def without(name: str, inside: str | None = None) -> bytes:
    document = json.loads(BODY)
    del (document[inside] if inside else document)[name]
    return json.dumps(document).encode()


WRONG: dict[str, list[object]] = {
    "specversion": [None, 1.0, "0.3", "1.0 ", [], {}, True],
    "type": [None, 7, 1.5, True, [], {}],
    "source": [None, 7, "", "x" * 257, "a\x1b[2J", "a\x7f", "a\0", [], {}],
    "id": [None, 7, "", "x", "017f22e2-79b0-7cc3-98c4-dc0c0c0739", [], {}],
    "time": [None, 7, True, "", "now", "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z", [], {}],
    "sequence": [
        None, 7, 7.0, True, "", "0", "0" * 19, "0" * 19 + "7", "9" * 19, str(2**63), "-7", "+7", " 7", "7 ",
        "7\n", "1_0", "7.0", "1e3", "0x7", "７", "٧", [], {},
    ],
    "traceparent": [7, "", "x" * 257, "a\nb", [], {}],
    "data": [None, 7, "x", [], {}, True, [{"id": 42}]],
}  # fmt: skip
WRONG_DATA: dict[str, list[object]] = {
    "id": [None, 0, -1, 2**63, 2**64, -(2**63), 10**400, True, False, 7.0, 7.5, 1e300, "7", "", [], {}, [7]],
    "nickName": [None, 7, True, "x" * 256, "😀" * 256, "a\0", "\0", [], {}, ["x"]],
    "headImage": [None, 7, False, "x" * 2049, "a\0b", [], {}],
    "headImageThumb": [None, 0, True, "x" * 2049, "\0", [], {}],
}

# ── every field, every way to be wrong ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_envelope_attributes(name: str, value: object) -> None:
    error = refused(changed(**{name: value}))
    assert error.reason == "invalid"
    assert name in error.message


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_DATA.items() for value in values])
def test_wrong_fields(name: str, value: object) -> None:
    error = refused(with_data(**{name: value}))
    assert error.reason == "invalid"
    assert error.message.startswith(f"data.{name}: ")


@pytest.mark.parametrize("name", ["specversion", "type", "source", "id", "time", "sequence", "data"])
def test_missing_envelope_attributes(name: str) -> None:
    error = refused(without(name))
    assert error.reason == "invalid"
    assert name in error.message


@pytest.mark.parametrize("name", ["id", "nickName", "headImage", "headImageThumb"])
@pytest.mark.parametrize("reader", [UserUpdated, User2GroupEvent, User2FriendEvent])
def test_no_reader_fills_in_a_missing_or_null_field_that_it_uses(name: str, reader: type[Event]) -> None:
    used = {
        "id": "id",
        "nickName": "nick_name",
        "headImage": "head_image",
        "headImageThumb": "head_image_thumb",
    }
    decoder: Decoder[Event] = Decoder([reader])
    for body in (without(name, "data"), with_data(**{name: None})):
        if used[name] in reader.model_fields:
            with pytest.raises(DataError, match=f"data.{name}: "):
                decoder.decode(body)
        else:
            assert decoder.decode(body) == decoder.decode(BODY)


def test_optional_attributes_may_be_absent_or_null() -> None:
    expected = UPDATED.model_copy(update={"traceparent": None})
    for body in (changed(traceparent=None), without("traceparent"), without("subject")):
        read = DECODER.decode(body)
        assert read == (UPDATED if body == without("subject") else expected)


def test_defaults_of_the_constructor_are_not_defaults_of_the_wire() -> None:
    """An event without identity would be a new one every time it is read."""

    class Bare(Event, type="bare.v1", destination="bare"):
        pass

    decoder = Decoder([Bare])
    envelope = {"specversion": "1.0", "type": "bare.v1", "id": str(UPDATED.event_id), "source": "s"}
    complete = envelope | {"time": "2026-02-03T04:05:06Z"}
    assert decoder.decode(json.dumps(complete).encode()) is not None
    for name in ("id", "time", "source"):
        for body in ({k: v for k, v in complete.items() if k != name}, complete | {name: None}):
            with pytest.raises(DataError) as raised:
                decoder.decode(json.dumps(body).encode())
            assert raised.value.reason == "invalid"
    # nor may Python's names stand in for those of the wire
    aliased = {"event_id" if k == "id" else k: v for k, v in complete.items()}
    with pytest.raises(DataError, match="lacks id"):
        decoder.decode(json.dumps(aliased).encode())


# ── bounds ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        with_data(id=1), with_data(id=2**63 - 1), changed(sequence="1"), changed(sequence=str(2**63 - 1)),
        with_data(nickName=""), with_data(nickName="x" * 255), with_data(nickName="😀" * 255),
        with_data(headImage=""), with_data(headImage="x" * 2048), with_data(headImageThumb="x" * 2048),
        changed(source="x" * 256), changed(extension={"a": [1]}), with_data(addedLater={"a": [None]}),
        changed(time="2026-02-03T04:05:06.000007+23:59"), raw("晓明".encode(), b"\\ud83d\\ude00"),
    ],
)  # fmt: skip
def test_what_is_just_within_the_bounds_is_read(body: bytes) -> None:
    assert isinstance(DECODER.decode(body), UserUpdated)


NESTED = 20_000


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "bad_json"),
        (b"\x00", "bad_json"),
        (b"\xef\xbb\xbf" + BODY, "bad_json"),
        (BODY.decode().encode("utf-16"), "bad_json"),
        (BODY[:-1], "bad_json"),
        (BODY + b"{}", "bad_json"),
        (b"[" * MAX_BODY_BYTES, "bad_json"),
        (b'{"a":' * (MAX_BODY_BYTES // 5), "bad_json"),
        (raw(b'"id":42', b'"id":42,"x":' + b"[" * NESTED + b"]" * NESTED), "bad_json"),
        (raw(b'"id":42', b'"id":' + b"9" * 50_000), "bad_json"),
        (raw(b'"id":42', b'"id":42,"x":' + b"9" * 50_000), "bad_json"),
        (raw(b'"id":42', b'"id":042'), "bad_json"),
        (raw("晓明".encode(), b"\xff"), "bad_json"),
        (raw("晓明".encode(), b"\xed\xa0\x80"), "bad_json"),  # a surrogate, in CESU-8
        (raw("晓明".encode(), b"\xc0\x80"), "bad_json"),  # NUL, overlong
        (raw("晓明".encode(), b"\\ud800"), "bad_json"),
        (raw("晓明".encode(), b"\\udc00\\ud800"), "bad_json"),
        (raw("晓明".encode(), b"a\nb"), "bad_json"),
        (raw("晓明".encode(), b"\\u0000"), "invalid"),
        (raw(b'"id":42', b'"id":NaN'), "invalid"),
        (raw(b'"id":42', b'"id":Infinity'), "invalid"),
        (raw(b'"id":42', b'"id":1e999'), "invalid"),
        (raw(b'"id":42', b'"id":42.0'), "invalid"),
        (raw(b'"id":42', b'"id":-0'), "invalid"),
        (raw(b'"id":42', b'"id":42,"id":null'), "invalid"),
        (raw(b'"nickName"', b'"nick_name"'), "invalid"),
        (b"null", "invalid"),
        (b"7", "invalid"),
        (b'"im.user.updated.v1"', "invalid"),
        (b"[" + BODY + b"]", "invalid"),
        (b"{}", "invalid"),
        (b" " * (MAX_BODY_BYTES - len(BODY) + 1) + BODY, "too_large"),
        (b"[" * (MAX_BODY_BYTES + 1), "too_large"),
        (ORDER_BODY.replace(b'"weight":0.0', b'"weight":NaN'), "invalid"),
        (ORDER_BODY.replace(b'"weight":0.0', b'"weight":-Infinity'), "invalid"),
        (ORDER_BODY.replace(b'"weight":0.0', b'"weight":1e999'), "invalid"),
    ],
    ids=lambda value: value[:30] + b"..." + value[-30:] if isinstance(value, bytes) else value,
)
def test_malformed_bodies(body: bytes, reason: str) -> None:
    assert refused(body).reason == reason


def test_the_size_is_checked_before_anything_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder([UserUpdated])
    parsed: list[bytes] = []

    def parse(body: bytes, **_: object) -> UserUpdated:
        parsed.append(body)
        return UPDATED

    monkeypatch.setattr(decoder, "_validate", parse)
    with pytest.raises(DataError):
        decoder.decode(bytes(MAX_BODY_BYTES + 1))
    assert parsed == []
    decoder.decode(bytes(MAX_BODY_BYTES))
    assert len(parsed) == 1


def test_of_duplicate_keys_the_last_counts_everywhere() -> None:
    """As in Python's json and most parsers: nobody can be shown one value and act on the other."""
    once, twice = b'"type":"im.user.updated.v1"', b'"type":"x.ignored"'
    assert DECODER.decode(raw(once, twice + b"," + once)) == UPDATED
    assert DECODER.decode(raw(once, once + b"," + twice)) is None
    renamed = DECODER.decode(raw(b'"headImage":"h"', b'"headImage":null,"headImage":"new"'))
    assert renamed == UPDATED.model_copy(update={"head_image": "new"})


def test_unknown_types_are_refused_unless_they_are_ignored() -> None:
    assert DECODER.decode(changed(type="x.ignored")) is None
    assert DECODER.decode(changed(type="x.ignored", data=None, time=7)) is None
    for other in (
        "x.other",
        "",
        "im.user.updated.v2",
        "imsync.im.events.UserUpdated",
        "X.IGNORED",
        "x" * 60_000,
    ):
        assert refused(changed(type=other)).reason == "unknown_type"
    assert refused(changed(type="x.ignored", specversion="0.3")).reason == "invalid"
    only = Decoder([UserDeleted])
    with pytest.raises(DataError) as raised:
        only.decode(BODY)
    assert raised.value.reason == "unknown_type"


def test_a_decoder_needs_types_of_its_own() -> None:
    class Untyped(Event):
        pass

    declarations: list[tuple[list[type[Event]], list[str]]] = [
        ([], []),
        ([Untyped], []),
        ([UserUpdated, User2GroupEvent], []),
        ([UserUpdated], [UserUpdated.event_type]),
    ]
    for events, ignore in declarations:
        with pytest.raises(ValueError, match="declare"):
            Decoder(events, ignore)


# ── secrets and noise ────────────────────────────────────────────────────────────────────────────────

WINDOW = 12
# without vowels, blanks and brackets, so that no piece of a secret is a piece of a message by chance
secrets = st.text(st.characters(codec="utf-8", exclude_characters="aeiou []"), min_size=WINDOW, max_size=300).map(
    lambda noise: f"§{noise}"
)
places: list[Callable[[str], bytes]] = [
    *(lambda secret, name=name: changed(**{name: secret}) for name in WRONG.keys() - {"source", "traceparent"}),
    *(lambda secret, name=name: with_data(**{name: [secret]}) for name in WRONG_DATA),
    *(lambda secret, name=name: with_data(**{name: {secret: secret}}) for name in WRONG_DATA),
    lambda secret: with_data(nickName=secret + "\0"),
    lambda secret: with_data(id=secret),
    lambda secret: changed(source=secret * 100),
    lambda secret: changed(source="a\n" + secret),
    lambda secret: changed(traceparent="a\n" + secret),
    lambda secret: secret.encode(),
    lambda secret: b'{"' + secret.encode(),
    lambda secret: order_with(counts={secret: 0}),
    lambda secret: order_with(counts={secret: secret}),
    lambda secret: order_with(parts=[{"name": 1, secret: secret}]),
    lambda secret: order_with(parts=secret),
    lambda secret: order_with(mode=secret),
    lambda secret: order_with(due=secret),
]


def order_with(**fields: object) -> bytes:
    document = json.loads(ORDER_BODY)
    return json.dumps(document | {"data": document["data"] | fields}).encode()


@settings(max_examples=30)
@given(secret=secrets)
@example(secret="hunter2-hunter2")
def test_errors_do_not_echo_the_input(secret: str) -> None:
    for place in places:
        error = refused(place(secret))
        shown = f"{error!r} {error} {error.message} {error.hint} {error.reason}"
        windows = (secret[start : start + WINDOW] for start in range(len(secret) - WINDOW + 1))
        assert not any(window in shown for window in windows)
        # nor does its traceback
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None


def reads_or_refuses(body: bytes) -> None:
    reason = ""
    try:
        read = DECODER.decode(body)
    except DataError as error:
        reason = error.reason
    assert reason in {"bad_json", "unknown_type", "invalid", "too_large"} or read is None or read.source


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    reads_or_refuses(body)


mutations = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete", "repeat"]), st.integers(0, 10_000), st.binary(max_size=4)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400)
@given(st.sampled_from([BODY, ORDER_BODY]), mutations)
def test_mutated_bodies_are_read_or_refused(body: bytes, steps: list[tuple[str, int, bytes]]) -> None:
    for kind, place, noise in steps:
        at = place % max(1, len(body))
        head, tail = body[:at], body[at:]
        match kind:
            case "flip":
                body = head + bytes(byte ^ 1 << place % 8 for byte in tail[:1]) + tail[1:]
            case "insert":
                body = head + noise + tail
            case "delete":
                body = head + tail[1 + len(noise) :]
            case "repeat":
                body = head + tail[:40] + tail
    reads_or_refuses(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.data())
def test_other_values_anywhere_in_the_document_are_read_or_refused(data: st.DataObject) -> None:
    document: Document = json.loads(data.draw(st.sampled_from([BODY, ORDER_BODY])))
    inside = document["data"] if data.draw(st.booleans()) else document
    name = data.draw(st.sampled_from(sorted(inside)))
    inside[name] = data.draw(json_values)
    reads_or_refuses(json.dumps(document).encode())
