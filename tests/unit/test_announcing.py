"""What the store tells of profiles without making events is byte for byte what it would tell with them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from imsync.bus.codec import Decoder, encode
from imsync.bus.event import MAX_INT, Event
from imsync.bus.telemetry import Telemetry, TelemetryEvent
from imsync.errors import DataError
from imsync.im.announcing import announcements
from imsync.im.events import IMAGE_URL_MAX, NICK_NAME_MAX, IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.profile import Profile

SOURCE = "urn:imsync:user-store:1"
READER: Decoder[IMBaseEvent] = Decoder([UserUpdated, UserDeleted])

characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
awkward = st.sampled_from(['"', "\\", "\x01", "\x1f", "\x7f", "\n", "\u2028", "\ufeff", "é", "晓", "👩", "\u200d", "/"])
ids = st.integers(1, MAX_INT)
profiles = st.builds(
    Profile,
    id=ids,
    user_name=st.just("mia"),
    nick_name=st.text(characters | awkward, max_size=NICK_NAME_MAX),
    head_image=st.text(characters | awkward, max_size=IMAGE_URL_MAX),
    head_image_thumb=st.text(characters | awkward, max_size=IMAGE_URL_MAX),
    version=ids,
    deleted=st.sampled_from([0, 0, 0, 1]),
)


def read(body: bytes) -> IMBaseEvent:
    event = READER.decode(body)
    assert event is not None
    return event


@given(st.lists(profiles, max_size=5))
def test_the_bytes_are_those_of_the_event(people: list[Profile]) -> None:
    before = datetime.now(UTC)
    made = announcements(people, SOURCE, Telemetry())
    after = datetime.now(UTC)
    assert len(made) == len(people)
    for profile, (event_id, user_id, version, body) in zip(people, made, strict=True):
        event = read(body)
        told = profile.event().model_copy(update={"event_id": UUID(bytes=event_id), "occurred_at": event.occurred_at})
        assert body == encode(told, source=SOURCE)
        assert (user_id, version) == (profile.id, profile.version)
        assert before <= event.occurred_at <= after
        assert event.occurred_at.tzinfo is not None


def test_a_moment_without_a_fraction_has_its_six_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Noon(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Noon:
            return cls(2026, 1, 2, 12, 0, 0, 0, tz)

    monkeypatch.setattr("imsync.im.announcing.datetime", Noon)
    ((_, _, _, body),) = announcements([Profile(1, "mia", "Mia", "", "")], SOURCE, Telemetry())
    assert json.loads(body)["time"] == "2026-01-02T12:00:00.000000Z"


@pytest.mark.parametrize(
    "broken",
    [
        {"id": 0}, {"id": -1}, {"id": 2**63}, {"version": 0}, {"version": 2**63}, {"version": 1.5},
        {"nick_name": "x" * 256}, {"nick_name": "a\0"}, {"nick_name": b"x"}, {"nick_name": None}, {"nick_name": 7},
        {"head_image": "x" * 2049}, {"head_image": "\0"}, {"head_image": b"x"}, {"head_image": "\ud800"},
        {"head_image_thumb": "x" * 2049}, {"head_image_thumb": "\0"}, {"head_image_thumb": None},
    ],
)  # fmt: skip
def test_what_no_event_can_tell_is_refused_by_the_event(broken: dict[str, Any]) -> None:
    profile = Profile(1, "mia", "Mia", "", "")._replace(**broken)
    with pytest.raises(ValidationError) as expected:
        profile.event()
    with pytest.raises(ValidationError) as raised:
        announcements([profile], SOURCE, Telemetry())
    assert raised.value.errors() == expected.value.errors()


def test_a_source_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(DataError):
        announcements([Profile(1, "mia", "Mia", "", "")], "a\n", Telemetry())


def test_who_traces_gives_each_event_its_place() -> None:
    class Tracing:
        def __call__(self, event: TelemetryEvent) -> None: ...

        def traceparent(self, event: Event) -> str:
            return f"00-{event.event_id.hex}-b7ad6b7169203331-01"

    made = announcements([Profile(n, "x", "X", "", "") for n in (1, 2)], SOURCE, Telemetry([Tracing()]))
    assert [read(each.body).traceparent for each in made] == [
        f"00-{each.event_id.hex()}-b7ad6b7169203331-01" for each in made
    ]
