"""Hostile entries: a generator of mutated bodies, an oracle that says which of them are events, and a list of poison.

The oracle reads with Python's own json and checks by hand. Where it is not certain what a reader should say, such as of
the many ways to write a time, it says so, and nothing is concluded.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from imsync.bus.codec import MAX_BODY_BYTES, encode
from imsync.bus.event import MAX_INT, Event, PositiveInt, SequenceNumber
from imsync.im.events import IMAGE_URL_MAX, NICK_NAME_MAX, UserDeleted, UserUpdated

MARKER = "Zq7x"
"""What strings of the inputs are made of: no message of an error may hold it."""
TEN_MB = 10 * 1024 * 1024
DEEPEST = 200
"""How deep JSON may be nested."""


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)

    name: Annotated[str, StringConstraints(max_length=20)]
    amount: PositiveInt
    parts: tuple[Part, ...] = ()


class Varied(Event, type="test.varied.v1", destination="varied"):
    """Somebody's event with fields of many types."""

    id: PositiveInt
    version: SequenceNumber
    small: Annotated[int, Field(ge=-5, le=5)]
    weight: float
    sure: bool
    colour: Colour
    mode: Literal["cash", "card"]
    parts: tuple[Part, ...]
    by_region: dict[str, int]
    due: datetime | None
    born: date | None
    key: UUID | None
    price: Decimal | None
    span: timedelta | None
    either: int | str
    note: str = "-"

    def event_sequence(self) -> int:
        return self.version


# ── the wire, with what JSON's own writer would not write ────────────────────────────────────────────


@dataclass(frozen=True)
class Raw:
    """These bytes, as they are."""

    text: bytes


def written(value: Any) -> bytes:
    """As JSON. Objects are lists of pairs, and bytes may be smuggled in."""
    match value:
        case Raw(text):
            return text
        case [(_, _), *_] if all(isinstance(each, tuple) for each in value):
            return b"{%b}" % b",".join(written(name) + b":" + written(inner) for name, inner in value)
        case list():
            return b"[%b]" % b",".join(map(written, value))
    return json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")


BEGAN = datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC)


def valid(rng: random.Random) -> Event:
    """An event as publishers send it. Its texts hold the marker."""
    number = rng.choice((1, 2, rng.getrandbits(rng.randrange(1, 63)) + 1, MAX_INT))
    version = rng.choice((1, rng.getrandbits(20) + 1, MAX_INT))
    text = MARKER * rng.randrange(12) + rng.choice(("", "晓明", "😀", '"\\/', "\x01\n", "\u202e", "é"))
    identity: dict[str, Any] = {
        "event_id": UUID(int=rng.getrandbits(128)),
        "occurred_at": BEGAN + timedelta(seconds=rng.randrange(-(10**9), 10**9)),
        "source": f"urn:{MARKER}:{rng.randrange(9)}",
        "traceparent": rng.choice((None, f"00-{MARKER}-01")),
        "id": number,
        "version": version,
    }
    match rng.randrange(4):
        case 0:
            return UserDeleted(**identity)
        case 1:
            part = Part(name=MARKER, amount=number, parts=(Part(name="", amount=1),) * rng.randrange(3))
            return Varied(
                **identity,
                small=rng.randrange(-5, 6),
                weight=rng.choice((0.0, -1.5, 1e300, 5e-324, float(number))),
                sure=rng.random() < 0.5,
                colour=rng.choice(list(Colour)),
                mode=rng.choice(("cash", "card")),
                parts=(part,) * rng.randrange(3),
                by_region={text: -number, "b": 0},
                due=rng.choice((None, BEGAN)),
                born=rng.choice((None, date(2000, 2, 29))),
                key=rng.choice((None, UUID(int=number))),
                price=rng.choice((None, Decimal("12.50"))),
                span=rng.choice((None, timedelta(seconds=number % 10**6))),
                either=rng.choice((number, text)),
            )
    picture = rng.choice((text, "", "x" * IMAGE_URL_MAX))
    return UserUpdated(
        **identity, nick_name=rng.choice((text, "n" * NICK_NAME_MAX)), head_image=picture, head_image_thumb=text
    )


# ── mutations ────────────────────────────────────────────────────────────────────────────────────────

ODD: Sequence[bytes] = (
    *(b"null", b"true", b"false", b"undefined", b"'x'", b"/**/1", b" 1 "),
    *(b"0", b"-0", b"1", b"-1", b"1.0", b"1.5", b"-1e3", b"1e999", b"1E+2", b"5e-324", b"0." + b"1" * 400),
    *(b"01", b"+1", b".5", b"1.", b"0x10", b"1_000", b"NaN", b"Infinity", b"-Infinity", b"nan"),
    *(b"%d" % (sign * number) for sign in (1, -1) for number in (MAX_INT, 2**63, 2**64, 10**400)),
    *(b"9" * 4300, b"9" * 4301, b"9" * 30_000),
    *(b'""', b'"0"', b'"1"', b'"7.0"', b'"true"', b'"null"', b'"\xd9\xa7"', b'"9223372036854775808"'),
    *(b'"\\u0000"', b'"a\\u0000b"', b'"\x00"', b'"\x1f"', b'"\\x41"', b'"\\u12"', b'"\\"', b'"'),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\ud800\\u0041"', b'"\xed\xa0\x80"', b'"\xff"'),
    *(b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b'"\xef\xbf\xbf"', b'"\xef\xbb\xbf"'),
    *(b'"%b"' % (MARKER.encode() * n) for n in (3, 63, 65, 513, 5_000)),
    *(b'"%b"' % ("😀".encode() * n) for n in (255, 256, 2048, 2049)),
    *(b'"2026-02-03T04:05:06Z"', b'"2026-02-03T04:05:06"', b'"1700000000"'),
    *(b'"9999-12-31T23:59:59-23:59"', b'"0001-01-01T00:00:00+14:00"', b'"2026-02-30T00:00:00Z"'),
    *(b'"0000000000000000007"', b'"017f22e2-79b0-7cc3-98c4-dc0c0c07398f"', b'"1.0"', b'"0.3"'),
    *(b'"im.user.updated.v1"', b'"im.user.deleted.v1"', b'"im.user.updated.v2"', b'"test.varied.v1"', b'"x.ignored"'),
    *(b"[]", b"{}", b"[[]]", b"[null]", b'{"":null}', b'{"a":1,"a":2}', b"[1,2", b'{"a"', b"[" * 5000),
    *(b"[" * n + b"]" * n for n in (190, 250, 20_000)),
    b'{"a":' * 3000 + b"1" + b"}" * 3000,
)
"""Values in JSON, some of which are none."""

NEAR_TEXT: Sequence[bytes] = (
    *(
        b'""',
        b'"\\u0000"',
        b'"n\\u0000"',
        b'"\\u001f"',
        b'"\x7f"',
        b'"\\ud83d\\ude00"',
        b'"\\ud83d"',
        b"null",
        b"7",
        b'["n"]',
    ),
    *(b'"%b"' % (b"n" * n) for n in (1, 254, 255, 256, 257, 2047, 2048, 2049)),
    *(b'"%b"' % ("😀".encode() * n) for n in (255, 256)),
)
NEAR_NUMBER: Sequence[bytes] = (
    *(b"%d" % number for number in (0, 1, -1, 2, MAX_INT - 1, MAX_INT, MAX_INT + 1, 2**64, -MAX_INT, 10**30)),
    *(b"1.0", b"1e0", b"-0", b"true", b"false", b"null", b'"1"', b"[1]", b"1" + b"0" * 4300),
)
"""Values that are almost right, in the place of a text or of a number."""

Mutation: TypeAlias = Callable[[bytes, random.Random], bytes]


def _flip(body: bytes, rng: random.Random) -> bytes:
    changed = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body))
    return body[:at] + rng.choice((b"\x00", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"}", b",", b"\n")) + body[at + 1 :]


def _cut(body: bytes, rng: random.Random) -> bytes:
    return body[: rng.randrange(len(body))]


def _remove(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body))
    return body[:at] + body[at + rng.randrange(1, 40) :]


def _repeat(body: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(body)), rng.randrange(1, 200)
    return body[: at + length] + body[at : at + length] * rng.choice((1, 2, 50)) + body[at + length :]


def _insert(body: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.choice((rng.randbytes(rng.randrange(1, 9)), rng.choice(ODD))) + body[at:]


def _splice(body: bytes, rng: random.Random) -> bytes:
    other = encode(valid(rng), source="urn:other")
    return body[: rng.randrange(len(body))] + other[rng.randrange(len(other)) :]


def _around(body: bytes, rng: random.Random) -> bytes:
    before, after = rng.choice(
        (
            (b"[", b"]"), (b"\xef\xbb\xbf", b""), (b"", b"{}"), (b"", b" \n\t\r"), (b" ", b""), (b"", b"\x00"),
            (b'{"a":', b"}"), (b'"', b'"'), (b"", b","), (b"\x0b", b""), (b"", b"\xc2\xa0"),
        )
    )  # fmt: skip
    return before + body + after


def _recode(body: bytes, rng: random.Random) -> bytes:
    return body.decode(errors="replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))


def _structure(body: bytes, rng: random.Random) -> bytes:
    """Another value, key or member somewhere in the document."""
    try:
        document: Any = json.loads(body, object_pairs_hook=list)
    except (ValueError, RecursionError):  # something else has been done to it
        return _insert(body, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        document = _changed(document, rng)
    return written(document)


def _changed(document: Any, rng: random.Random) -> Any:
    if not isinstance(document, list) or not document:
        return Raw(rng.choice(ODD))
    at = rng.randrange(len(document))
    nested = [i for i, each in enumerate(document) if isinstance(each, tuple) and isinstance(each[1], list)]
    if nested and rng.random() < 0.6:  # the fields of the event lie in there
        at = rng.choice(nested)
    if not isinstance(document[at], tuple):  # an array
        return [*document[:at], _changed(document[at], rng), *document[at + 1 :]]
    name, value = document[at]
    if isinstance(value, list) and rng.random() < 0.75:
        return [*document[:at], (name, _changed(value, rng)), *document[at + 1 :]]
    near = NEAR_TEXT if isinstance(value, str) else NEAR_NUMBER
    odd = Raw(rng.choice(near if rng.random() < 0.5 else ODD))
    match rng.randrange(8):
        case 0:
            return [*document[:at], *document[at + 1 :]]
        case 1:  # the same key again, the last or the first of which is right
            return [*document, (name, odd)] if rng.random() < 0.5 else [(name, odd), *document]
        case 2:
            return [
                *document,
                (rng.choice(("alien", MARKER, "", "__proto__", "event_id", "nick_name", "destination")), odd),
            ]
        case 3:
            keys = (Raw(b'"\\u006eickName"'), Raw(b'"\xff"'), Raw(b"7"), Raw(b'"id\\u0000"'), MARKER, "ID", " id")
            return [*document[:at], (rng.choice(keys), value), *document[at + 1 :]]
        case 4:
            return [*document[:at], (name, [value]), *document[at + 1 :]]
        case 5:
            return rng.sample(document, len(document))
        case _:
            return [*document[:at], (name, odd), *document[at + 1 :]]


def _huge(body: bytes, rng: random.Random) -> bytes:
    size = rng.choice((MAX_BODY_BYTES - len(body), MAX_BODY_BYTES - len(body) + 1, MAX_BODY_BYTES * 4))
    match rng.randrange(4):
        case 0:
            return b" " * size + body
        case 1:
            return body + b"\n" * size
        case 2:
            return body[:-1] + b',"alien":"' + b"x" * max(0, size - 11) + b'"}'
    return b"[" * size


def _noise(body: bytes, rng: random.Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return rng.randbytes(rng.choice((0, 1, 2, 16, 300)))
        case 1:
            return b"".join(rng.choices((b"{", b"}", b"[", b"]", b",", b":", b'"a"', b"1", b"null", b" "), k=30))
        case 2:
            return rng.choice(ODD)
    return bytes(rng.choices(range(32, 127), k=rng.randrange(100)))


MUTATIONS: Sequence[tuple[Mutation, int]] = (
    (_structure, 80), (_flip, 8), (_overwrite, 6), (_cut, 4), (_remove, 4), (_repeat, 4), (_insert, 6), (_splice, 4),
    (_around, 3), (_recode, 1), (_noise, 4),
)  # fmt: skip
ONE_IN = {"untouched": 20, "huge": 500, "ten_mb": 4000}
"""How rarely a body stays as it is, is near the size limit or beyond it, or has 10 MB."""


def inputs(rng: random.Random, count: int) -> Iterator[bytes]:
    """So many bodies, most of them valid ones that something was done to."""
    mutations, weights = zip(*MUTATIONS, strict=True)
    ten_mb = b'{"specversion":"1.0","data":"' + b"x" * TEN_MB
    for number in range(count):
        body = encode(valid(rng), source="urn:unused")
        if number % ONE_IN["ten_mb"] == 0:
            yield ten_mb
        elif number % ONE_IN["huge"] == 1:
            yield _huge(body, rng)
        elif number % ONE_IN["untouched"] == 2:
            yield body
        else:
            for mutation in rng.choices(mutations, weights, k=rng.choice((1, 1, 1, 1, 2))):
                body = mutation(body, rng) if body else body
            yield body


# ── the oracle ───────────────────────────────────────────────────────────────────────────────────────

_DIGITS = re.compile(r"[0-9]{1,19}")
_ATTRIBUTE = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_UTC_TIME = re.compile(
    r"2[0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z"
)
_NO_TIME = re.compile(r"[^0-9]*")


class Uncertain(Exception):
    """The oracle does not know."""


def expected(body: bytes) -> bool | None:
    """Whether a reader of user events (the group service's views) should take this; None when that is uncertain."""
    if len(body) > MAX_BODY_BYTES:
        return False
    try:
        document = json.loads(body.decode(), parse_int=_integer, parse_float=_float, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return False
    try:
        # the first two: what a JSON text may hold anywhere, also where nobody looks
        return _encodable(document) and _depth(body) <= DEEPEST and _is_event(document)
    except Uncertain:
        return None


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > 4300:
        raise ValueError("more digits than the decoder's parser takes before a point")
    return int(digits)  # of so many digits, Python's own limit


def _float(digits: str) -> float:
    _integer(re.split("[.eE]", digits)[0])
    return float(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of keys that come twice the last counts, but the first must be right too."""
    if not _encodable(pairs):
        raise ValueError("a lone surrogate, which Python's json lets through")
    return dict(pairs)


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _depth(body: bytes) -> int:
    """How deep valid JSON is nested."""
    outside = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", body, flags=re.DOTALL)
    depth = deepest = 0
    for byte in outside:
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, depth)
    return deepest


def _is_event(document: Any) -> bool:
    if not isinstance(document, dict) or document.get("specversion") != "1.0":
        return False
    kind, data = document.get("type"), document.get("data")
    if kind not in ("im.user.updated.v1", "im.user.deleted.v1") or not isinstance(data, dict):
        return False
    traceparent = document.get("traceparent")
    right = (
        _is_positive(data.get("id"))
        and _is_version(document.get("sequence"))
        and _is_text(document.get("source"), _ATTRIBUTE)
        and (traceparent is None or _is_text(traceparent, _ATTRIBUTE))
    )
    if kind == "im.user.updated.v1":
        right = right and _is_bounded(data.get("nickName"), NICK_NAME_MAX)
        right = right and _is_bounded(data.get("headImageThumb"), IMAGE_URL_MAX)
    # the uncertain last: something else that is wrong is certain
    return right and _is_uuid(document.get("id")) and _is_time(document.get("time"))


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_INT


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and bool(_DIGITS.fullmatch(value)) and 1 <= int(value) <= MAX_INT


def _is_text(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and bool(pattern.fullmatch(value))


def _is_bounded(value: Any, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest and "\0" not in value


def _is_uuid(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if not _UUID.fullmatch(value):
        raise Uncertain  # there are other ways to write one
    return True


def _is_time(value: Any) -> bool:
    if not isinstance(value, str) or _NO_TIME.fullmatch(value):
        return False
    if not _UTC_TIME.fullmatch(value):
        raise Uncertain
    return True


# ── poison by class ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Poison:
    """An entry, and what must become of it.

    Args:
        entry: the body, or all fields of the entry.
        reason: of its dead letter; empty when it is applied.
    """

    entry: bytes | Mapping[bytes, bytes]
    reason: str = ""


UPDATED = UserUpdated(
    event_id=UUID("017f22e2-79b0-7cc3-98c4-dc0c0c07398f"),
    occurred_at=BEGAN,
    source="urn:test:poison",
    id=987_654_321,
    version=7,
    nick_name="nick",
    head_image="image",
    head_image_thumb="thumb",
)
BODY = encode(UPDATED, source="urn:unused")


def _with(old: bytes, new: bytes) -> bytes:
    assert BODY.count(old) == 1, old
    return BODY.replace(old, new)


def _said(user: int, version: int = 1, body: Callable[[bytes], bytes] = lambda body: body) -> bytes:
    """An event that may be applied, of a user of its own."""
    event = UPDATED.model_copy(update={"id": user, "version": version, "event_id": UUID(int=user)})
    return body(encode(event, source="urn:unused"))


_NICK, _ID, _SEQUENCE = b'"nick"', b'"id":987654321', b'"0000000000000000007"'

POISON: Mapping[str, Poison] = {
    "bad JSON": Poison(BODY[:-1], "bad_json"),
    "bad UTF-8": Poison(_with(_NICK, b'"\xff\xfe"'), "bad_json"),
    "lone surrogate, escaped": Poison(_with(_NICK, b'"\\ud800"'), "bad_json"),
    "lone surrogate, as bytes": Poison(_with(_NICK, b'"\xed\xa0\x80"'), "bad_json"),
    "NaN": Poison(_with(_ID, b'"id":NaN'), "invalid"),
    "Infinity": Poison(_with(_ID, b'"id":-Infinity'), "invalid"),
    "depth bomb": Poison(b"[" * 60_000, "bad_json"),
    "depth bomb in an alien field": Poison(_with(_ID, _ID + b',"x":' + b"[" * 20_000 + b"]" * 20_000), "bad_json"),
    "duplicate keys, the last of them bad": Poison(_with(_ID, _ID + b',"id":null'), "invalid"),
    "duplicate keys, the last of them good": Poison(
        _said(1_000_001, body=lambda body: body.replace(b'"nickName"', b'"nickName":null,"nickName"'))
    ),
    "2**63 as an id": Poison(_with(_ID, b'"id":9223372036854775808'), "invalid"),
    "2**63 as a version": Poison(_with(_SEQUENCE, b'"9223372036854775808"'), "invalid"),
    "negative id": Poison(_with(_ID, b'"id":-1'), "invalid"),
    "negative version": Poison(_with(_SEQUENCE, b'"-7"'), "invalid"),
    "a number of 50,000 digits": Poison(_with(_ID, b'"id":' + b"9" * 50_000), "bad_json"),
    "NUL, escaped": Poison(_with(_NICK, b'"\\u0000"'), "invalid"),
    "NUL, as a byte": Poison(_with(_NICK, b'"\x00"'), "bad_json"),
    "10 MB": Poison(b"x" * TEN_MB, "too_large"),
    "10 MB of valid JSON": Poison(BODY + b" " * TEN_MB, "too_large"),
    "unknown type": Poison(_with(b"im.user.updated.v1", b"im.user.renamed.v1"), "unknown_type"),
    "unknown schema version": Poison(_with(b"im.user.updated.v1", b"im.user.updated.v2"), "unknown_type"),
    "unknown envelope version": Poison(_with(b'"specversion":"1.0"', b'"specversion":"2.0"'), "invalid"),
    "the name of a class as its type": Poison(
        _with(b"im.user.updated.v1", b"imsync.im.events.UserUpdated"), "unknown_type"
    ),
    "version far in the future": Poison(_said(1_000_002, version=MAX_INT)),
    "wrong types": Poison(_with(_NICK, b"7"), "invalid"),
    "a number as text": Poison(_with(_ID, b'"id":"987654321"'), "invalid"),
    "a float": Poison(_with(_ID, b'"id":987654321.0'), "invalid"),
    "missing fields": Poison(_with(b'"nickName":"nick",', b""), "invalid"),
    "null fields": Poison(_with(_NICK, b"null"), "invalid"),
    "too long a name": Poison(_with(_NICK, b'"' + b"n" * 256 + b'"'), "invalid"),
    "an array of events": Poison(b"[" + BODY + b"]", "invalid"),
    "null": Poison(b"null", "invalid"),
    "byte order mark": Poison(b"\xef\xbb\xbf" + BODY, "bad_json"),
    "UTF-16": Poison(BODY.decode().encode("utf-16"), "bad_json"),
    "empty body": Poison(b"", "bad_json"),
    "empty entry": Poison({b"": b""}, "no_event_field"),
    "another field": Poison({b"data": BODY}, "no_event_field"),
    "alien fields": Poison(
        _said(1_000_003, body=lambda body: body.replace(b'"data":{', b'"alien":[NaN,{}],"data":{"alien":"\\u0000",'))
    ),
    "alien fields of the entry": Poison({b"alien": b"\xff", b"event": _said(1_000_004), b"": b"\x00"}),
}
"""One or more of every class. Those that are applied are each of a user of their own."""
