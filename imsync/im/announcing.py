"""What the user store tells of its users: many events at once, as bytes, without making each event first.

The bytes are those of `encode(profile.event())`, whose checks and conversions take three times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from json.encoder import encode_basestring
from typing import NamedTuple

from imsync.bus.codec import encode, identity, in_envelope, timestamp
from imsync.bus.event import MAX_INT
from imsync.bus.telemetry import Telemetry
from imsync.bus.uuid7 import uuid7s
from imsync.im.events import DESTINATION, IMAGE_URL_MAX, NICK_NAME_MAX, UserUpdated
from imsync.im.profile import Profile


class Announcement(NamedTuple):
    """An event as the outbox holds it. `event_id` is its 16 bytes."""

    event_id: bytes
    user_id: int
    version: int
    body: bytes


def announcements(profiles: Sequence[Profile], source: str, telemetry: Telemetry) -> list[Announcement]:
    """The events that tell of profiles, in their order. All happen at this moment.

    Args:
        source: their CloudEvents source.
        telemetry: who may give them a place in a trace.

    Raises:
        pydantic.ValidationError: a profile breaks the bounds of an event.
    """
    if telemetry.traces:
        events = telemetry.traced([profile.event() for profile in profiles])
        return [Announcement(event.event_id.bytes, event.id, event.version, encode(event, source=source))
                for event in events]  # fmt: skip
    time = timestamp(datetime.now(UTC))
    return [
        _announcement(profile, event_id, time, source)
        for profile, event_id in zip(profiles, uuid7s(len(profiles)), strict=True)
    ]


def _announcement(profile: Profile, event_id: bytes, time: str, source: str) -> Announcement:
    user_id, _, nick_name, head_image, head_image_thumb, version, deleted = profile
    try:
        if (
            deleted
            or type(version) is not int
            or not 1 <= version <= MAX_INT
            or not 1 <= user_id <= MAX_INT
            or len(nick_name) > NICK_NAME_MAX
            or len(head_image) > IMAGE_URL_MAX
            or len(head_image_thumb) > IMAGE_URL_MAX
            or "\0" in nick_name
            or "\0" in head_image
            or "\0" in head_image_thumb
        ):
            raise ValueError
        data = (
            f'{{"id":{user_id},"nickName":{encode_basestring(nick_name)},"headImage":{encode_basestring(head_image)},'
            f'"headImageThumb":{encode_basestring(head_image_thumb)},"destination":"{DESTINATION}"}}'
        ).encode()
    except (TypeError, ValueError):  # no update, or one that breaks a bound: the model says which
        event = profile.event()
        return Announcement(event.event_id.bytes, event.id, event.version, encode(event, source=source))
    text = event_id.hex()
    dashed = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
    body = in_envelope(UserUpdated, source, identity(dashed, time), data, str(user_id), version)
    return Announcement(event_id, user_id, version, body)
