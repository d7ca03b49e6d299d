"""Bytes to events and back: one CloudEvents 1.0 JSON object per entry.

JSON only, a size cap before parsing, and no class is ever looked up by a name from the message: the reader
declares what it reads, and everything else is a `DataError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import (
    CoreSchema,
    PydanticSerializationError,
    SchemaSerializer,
    SchemaValidator,
    core_schema,
    from_json,
)

from imsync.bus.entry import Entry
from imsync.bus.event import Event
from imsync.bus.lean import REQUIRED, lean_schema, may_have_controls
from imsync.errors import DataError

MAX_BODY_BYTES = 64 * 1024
"""Larger bodies are refused before they are parsed, by publishers and readers alike."""

SEQUENCE_DIGITS = 19
"""`sequence` is zero-padded to the digits of 2**63 - 1: the CloudEvents extension wants it to sort as text
(https://github.com/cloudevents/spec/blob/main/cloudevents/extensions/sequence.md)."""

_ON_THE_WIRE = {"event_id": "id", "occurred_at": "time", "source": "source"}
_SOURCE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,256}")
_SEQUENCE_FORM = f"0{SEQUENCE_DIGITS}d"

_id_and_time = SchemaSerializer(
    core_schema.tuple_schema([core_schema.uuid_schema(), core_schema.datetime_schema()])
).to_json
"""Writes `["id","time"]`, in a third of the time that Python's own texts of both take."""
_PAIR_BYTES = len('["017f22e2-79b0-7cc3-98c4-dc0c0c07398f","2026-02-03T04:05:06.000007Z"]')

_NO_CACHE = core_schema.CoreConfig(cache_strings=False)
"""Hardly a text comes twice, and the cache would hold 16,384 of them."""

E = TypeVar("E", bound=Event)


@lru_cache(maxsize=256)
def _head(event_class: type[Event], source: str) -> bytes:
    """The part of the envelope that is the same for every event of a class and a source."""
    if not _SOURCE.fullmatch(source):
        raise DataError("invalid", "a source has 1 to 256 characters, without control characters")
    constants = {"specversion": "1.0", "type": event_class.event_type, "source": source}
    return json.dumps(constants, separators=(",", ":"))[:-1].encode() + b',"id":"'


def encode(event: Event, *, source: str) -> bytes:
    """The wire form of an event.

    Args:
        event: an instance of a subclass that declares a type.
        source: the CloudEvents source to use when the event names none.

    Raises:
        DataError: the class declares no type, the source or a value cannot be written (such as a lone
            surrogate in an unconstrained text), or the result is larger than `MAX_BODY_BYTES`.
    """
    if not event.event_type:
        raise DataError("untyped", f"{type(event).__name__} declares no event type")
    event_id, time, members = event.event_id, event.occurred_at, b""
    try:
        if type(event_id) is UUID and type(time) is datetime and time.tzinfo is UTC:  # not all events were validated
            pair = _id_and_time((event_id, time))
            if len(pair) == _PAIR_BYTES:  # without a fraction of the second it is shorter
                members = b'%b"time":%b' % (pair[2:40], pair[40:-1])
        data = event.__pydantic_serializer__.to_json(event, by_alias=True)
        members = members or identity(event_id, timestamp(time))
    except (OverflowError, PydanticSerializationError) as error:
        raise DataError("invalid", f"{type(event).__name__} has a value that JSON cannot carry") from error
    return in_envelope(
        type(event),
        event.source or source,
        members,
        data,
        event.event_subject(),
        event.event_sequence(),
        event.traceparent,
    )


def in_envelope(
    event_class: type[Event],
    source: str,
    identity: bytes,
    data: bytes,
    subject: str | None,
    sequence: int | None,
    traceparent: str | None = None,
) -> bytes:
    """The wire form of an event, from its parts.

    Args:
        source: its CloudEvents source.
        identity: as `identity` makes it.
        data: what the class declares, as JSON.

    Raises:
        DataError: the source cannot be written, or the result is larger than `MAX_BODY_BYTES`.
    """
    more = ""
    if subject is not None:
        more = f',"subject":{encode_basestring_ascii(subject)}'
    if sequence is not None:
        more += f',"sequence":"{format(sequence, _SEQUENCE_FORM)}"'
    if traceparent is not None:
        more += f',"traceparent":{encode_basestring_ascii(traceparent)}'
    body = b"".join((_head(event_class, source), identity, more.encode(), b',"data":', data, b"}"))
    if len(body) > MAX_BODY_BYTES:
        raise DataError("too_large", f"event of {len(body)} bytes, the limit is {MAX_BODY_BYTES}")
    return body


def identity(event_id: UUID | str, time: str) -> bytes:
    """The envelope's members `id` and `time`, but for the first quote.

    Args:
        time: as `timestamp` writes it.
    """
    return f'{event_id}","time":"{time}"'.encode()


def timestamp(time: datetime) -> str:
    """A time as it travels: in UTC for every reader, and because RFC 3339 has no offsets with seconds.

    Raises:
        OverflowError: in UTC it is before the year 1.
    """
    return f"{time.astimezone(UTC).isoformat(timespec='microseconds')[:-6]}Z"


class _ByType:
    """Chooses the event class by the envelope's `type`, inside the compiled validator: one pass per entry."""

    def __init__(self, events: Mapping[str, type[Event]]) -> None:
        self.events = events

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _tagged({name: handler.generate_schema(event) for name, event in self.events.items()})


def _tagged(by_type: dict[str, CoreSchema]) -> CoreSchema:
    of_one_version = core_schema.tagged_union_schema(dict(by_type), discriminator="type")
    return core_schema.tagged_union_schema({"1.0": of_one_version}, discriminator="specversion")


def _lean_validator(by_type: Mapping[str, type[Event]], *, plain: bool = False) -> Callable[[bytes], Any] | None:
    schemas = {name: schema for name, event in by_type.items() if (schema := lean_schema(event, plain=plain))}
    return SchemaValidator(_tagged(schemas), _NO_CACHE).validate_json if schemas else None


class Decoder(Generic[E]):
    """Reads the events that somebody declared, and nothing else.

    Args:
        events: the event classes to read; no two may declare the same type.
        ignore: types to pass over silently. Any other type is a `DataError`.
        lean: give lean events where the class allows it; see `imsync.bus.lean`. They pass for events of their class as
            long as nobody asks for more than fields.
    """

    def __init__(self, events: Sequence[type[E]], ignore: Collection[str] = (), *, lean: bool = False) -> None:
        by_type = {event.event_type: event for event in events}
        if not events or len(by_type) != len(events) or "" in by_type:
            raise ValueError("declare at least one event class, each with a type of its own")
        if overlap := by_type.keys() & set(ignore):
            raise ValueError(f"declared and ignored at once: {', '.join(sorted(overlap))}")
        self.ignore = frozenset(ignore)
        # called per entry: a batch joined into one array would let a crafted entry shift its neighbours
        self._validate = TypeAdapter(Annotated[Any, _ByType(by_type)]).validator.validate_json
        self._validate_lean = _lean_validator(by_type) if lean else None
        self._validate_plain = _lean_validator(by_type, plain=True) if lean else None

    def read(self, entry: Entry) -> E | None:
        """The event in an entry, or None when its type is one to ignore.

        Raises:
            DataError: as `decode`, and with reason `no_event_field`.
        """
        if entry.body is None:
            raise DataError("no_event_field", "the entry has no field `event`")
        return self.decode(entry.body)

    def read_all(self, entries: Sequence[Entry]) -> tuple[list[E], dict[str, DataError | None]]:
        """The events in entries.

        Returns:
            The events in their order, and by entry id those that are none: None for a type to ignore, or what `read`
            raises.
        """
        events: list[E] = []
        others: dict[str, DataError | None] = {}
        validate_plain, add = self._validate_plain, events.append
        for entry in entries:
            body = entry.body
            if validate_plain and body and len(body) <= MAX_BODY_BYTES and not may_have_controls(body):
                try:
                    add(validate_plain(body))
                    continue
                except ValidationError:
                    pass  # what is wrong with it is found out below
            try:
                event = self.read(entry)
            except DataError as error:
                others[entry.id] = error
            else:
                if event is None:
                    others[entry.id] = None
                else:
                    add(event)
        return events, others

    def decode(self, body: bytes) -> E | None:
        """The event in `body`, or None when its type is one to ignore.

        Raises:
            DataError: with reason `too_large`, `bad_json`, `unknown_type` or `invalid`.
        """
        if len(body) > MAX_BODY_BYTES:
            raise DataError("too_large", f"entry of {len(body)} bytes, the limit is {MAX_BODY_BYTES}")
        event: E
        if self._validate_lean is not None:
            with suppress(ValidationError):  # what is wrong with it is found out below
                event = self._validate_lean(body)
                return event
        try:
            event = self._validate(body, by_alias=True, by_name=False)
        except ValidationError as error:
            refusal = _explain(error)
            if refusal.reason == "unknown_type":
                kind = from_json(body)["type"]
                if not isinstance(kind, str):
                    raise DataError("invalid", "type: Input should be a valid string") from None
                if kind in self.ignore:
                    return None
            raise refusal from None
        # the constructor's defaults must not stand in for what a message left out; null is the same as absent
        if event.source is None or not REQUIRED.issubset(event.__pydantic_fields_set__):
            present = event.model_fields_set - ({"source"} if event.source is None else set())
            missing = ", ".join(wire for name, wire in _ON_THE_WIRE.items() if name not in present)
            raise DataError("invalid", f"the envelope lacks {missing}")
        return event


def _explain(error: ValidationError) -> DataError:
    """A pydantic error as a `DataError`: the place and the rule, never the input."""
    first = error.errors(include_url=False, include_input=False, include_context=True)[0]
    kind = first["type"]
    if kind == "json_invalid":
        return DataError("bad_json", first["msg"])
    if kind == "union_tag_invalid" and first["ctx"]["discriminator"] == "'type'":
        return DataError("unknown_type", "an event type that this reader does not declare")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return DataError("invalid", f"no CloudEvents 1.0 envelope: bad or missing {first['ctx']['discriminator']}")
    # after the two tags, `data` and a declared field; deeper parts may be keys of a mapping, which are input
    where = ".".join(str(part) for part in first["loc"][2:4]) or "the envelope"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return DataError("invalid", f"{where}: {first['msg']}{more}")
