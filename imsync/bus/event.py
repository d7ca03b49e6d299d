"""`Event`: what a publisher sends and a handler receives, one class per kind of fact.

On the wire an event is one CloudEvents 1.0 JSON object in structured mode
(https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md). The identity of the event (its id, time,
source) are CloudEvents attributes; the fields that a subclass declares are the members of `data`, in
camelCase. One flat model reads both: every field knows its place on the wire, which costs one validation and
one object per event.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from pydantic import (
    AliasGenerator,
    AliasPath,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StringConstraints,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, core_schema

from imsync.bus.keys import check_name
from imsync.bus.uuid7 import uuid7

MAX_INT = 2**63 - 1
"""The largest id or version: what SQLite's INTEGER holds."""

PositiveInt = Annotated[int, Field(ge=1, le=MAX_INT)]
"""An id or a count, `1 ≤ n ≤ 2**63 - 1`. (Strict pydantic alone lets 2**63 through; SQLite then overflows.)"""


class _DigitsOnTheWire:
    """An integer in Python that JSON carries as a string of digits, as CloudEvents attributes do."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        in_python = handler(source)
        digits = core_schema.str_schema(pattern=r"^[0-9]{1,19}$", strict=True)
        bounded = core_schema.int_schema(ge=1, le=MAX_INT, strict=False)
        return core_schema.json_or_python_schema(
            json_schema=core_schema.chain_schema([digits, bounded]), python_schema=in_python
        )


SequenceNumber = Annotated[PositiveInt, _DigitsOnTheWire(), Field(validation_alias="sequence", exclude=True)]
"""The type of a field that travels as the CloudEvents extension `sequence`: the version of the subject."""

NO_NUL = r"^[^\x00]*$"
"""A pattern against NUL, which strict pydantic lets through and C's functions take for an end."""
NO_CONTROLS = r"^[^\x00-\x1f\x7f]*$"
"""A pattern against control characters."""

Attribute = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=NO_CONTROLS)]
"""A CloudEvents attribute of text: bounded, without control characters."""


def _now() -> datetime:
    return datetime.now(UTC)


class Event(BaseModel):
    """Base of all events. Subclass it with the CloudEvents type and the destination:

        class OrderPaid(Event, type="shop.order.paid.v1", destination="orders"):
            order_id: PositiveInt

    Several classes may declare one type: each service declares (and so validates) only the fields it uses.

    Fields are strict (no coercion), frozen, and unknown members are ignored, so that a producer may add some.
    Every event carries:

    - `event_id`: a UUIDv7, the identity by which repeats are recognised. Stable: publishing the same object
      again publishes the same event.
    - `occurred_at`: when the fact happened, timezone-aware.
    - `source`: the CloudEvents source, a URI reference that names the producer. Set by the bus when empty.
    - `traceparent`: W3C trace context, optional.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        hide_input_in_errors=True,
        allow_inf_nan=False,  # JSON has neither: they would travel as null
        alias_generator=AliasGenerator(
            validation_alias=lambda name: AliasPath("data", to_camel(name)), serialization_alias=to_camel
        ),
        validate_by_name=True,
        validate_by_alias=False,  # `id` is the event's on the wire and may be a field of the subclass here
    )

    event_type: ClassVar[str] = ""
    """The CloudEvents type, such as `shop.order.paid.v1`."""
    event_destination: ClassVar[str] = ""
    """The logical topic that events of this class are published to."""

    event_id: UUID = Field(default_factory=uuid7, validation_alias="id", exclude=True)
    occurred_at: AwareDatetime = Field(default_factory=_now, validation_alias="time", exclude=True)
    source: Attribute | None = Field(default=None, validation_alias="source", exclude=True)
    traceparent: Attribute | None = Field(default=None, validation_alias="traceparent", exclude=True)

    def __init_subclass__(cls, *, type: str | None = None, destination: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if type is not None:
            cls.event_type = type
        if destination is not None:
            cls.event_destination = check_name("destination", destination)

    def event_subject(self) -> str | None:
        """The CloudEvents subject: what the event is about within its source, or None."""
        return None

    def event_sequence(self) -> int | None:
        """The position of this event among those of its subject (a version), or None."""
        return None
