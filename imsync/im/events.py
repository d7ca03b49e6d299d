"""What the user service publishes, and the views that its readers take of it.

One fact, one stream, one consumer group per service: a view declares the same CloudEvents type as the fact
and only the fields which that service keeps, so a new subscriber needs no change at the producer.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import StringConstraints, computed_field

from imsync.bus.event import NO_NUL, Event, PositiveInt, SequenceNumber

DESTINATION = "user-update"
USER_UPDATED = "im.user.updated.v1"
USER_DELETED = "im.user.deleted.v1"

NICK_NAME_MAX = 255
IMAGE_URL_MAX = 2048

NickName = Annotated[str, StringConstraints(max_length=NICK_NAME_MAX, pattern=NO_NUL)]
"""A display name, at most 255 characters, without NUL (which strict pydantic lets through)."""

ImageUrl = Annotated[str, StringConstraints(max_length=IMAGE_URL_MAX, pattern=NO_NUL)]
"""Where a picture is, at most 2,048 characters; empty for no picture."""


class IMBaseEvent(Event):
    """What every event about a user carries.

    - `id`: the user's id.
    - `version`: the version of the user's own row, counted up in the transaction of the edit. Never a clock.
    """

    final: ClassVar[bool] = False
    """Whether nothing comes after it."""

    id: PositiveInt
    version: SequenceNumber

    @computed_field  # type: ignore[prop-decorator]
    @property
    def destination(self) -> str:
        """The logical topic."""
        return self.event_destination

    def event_subject(self) -> str:
        """The user's id, as text."""
        return str(self.id)

    def event_sequence(self) -> int:
        """The version."""
        return self.version


class UserUpdated(IMBaseEvent, type=USER_UPDATED, destination=DESTINATION):
    """A user was created (version 1) or edited. Carries the full public profile, every field required, so that
    a newer event supersedes an older one whole. An empty string is a value ("no avatar").
    """

    nick_name: NickName
    head_image: ImageUrl
    head_image_thumb: ImageUrl


PROFILE_FIELDS = ("nick_name", "head_image", "head_image_thumb")
"""What of a profile is published."""


class UserDeleted(IMBaseEvent, type=USER_DELETED, destination=DESTINATION):
    """The tombstone. Deletion is final: its version is the last."""

    final: ClassVar[bool] = True


class User2GroupEvent(IMBaseEvent, type=USER_UPDATED, destination=DESTINATION):
    """The group service's view of `UserUpdated`."""

    nick_name: NickName
    head_image_thumb: ImageUrl


class User2FriendEvent(IMBaseEvent, type=USER_UPDATED, destination=DESTINATION):
    """The friend service's view of `UserUpdated`."""

    nick_name: NickName
    head_image: ImageUrl
