"""A user's profile, what a person changes of it, and the event that tells everybody."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imsync.bus.event import MAX_INT, PositiveInt
from imsync.errors import UsageError
from imsync.im.events import IMAGE_URL_MAX, NICK_NAME_MAX, ImageUrl, NickName, UserDeleted, UserUpdated
from imsync.store.projection import NO_ROOM


class ProfileEdit(BaseModel):
    """What a person changes: the fields that are None stay as they are.

    Raises:
        pydantic.ValidationError: an id out of range, a text too long or with a NUL, an empty nickname.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    user_id: PositiveInt
    nick_name: NickName | None = Field(default=None, min_length=1)
    head_image: ImageUrl | None = None
    head_image_thumb: ImageUrl | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self.nick_name is None and self.head_image is None and self.head_image_thumb is None

    @classmethod
    def checked(cls, **values: Any) -> ProfileEdit:
        """An edit from outside.

        Raises:
            UsageError: it breaks a bound or changes nothing; the message names the field and never the input.
        """
        try:
            edit = cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = str(first["loc"][0])
            raise UsageError(f"bad {field}: {first['msg'][0].lower()}{first['msg'][1:]}", _bounds(field)) from None
        if edit.is_empty:
            raise UsageError("an edit that changes nothing", "give a nick name, a head image or a thumb")
        return edit


def _bounds(field: str) -> str:
    return {
        "user_id": "ids are whole numbers from 1 to 9223372036854775807",
        "nick_name": f"nicknames have 1 to {NICK_NAME_MAX} characters",
        "head_image": f"picture URLs have at most {IMAGE_URL_MAX} characters; empty for no picture",
        "head_image_thumb": f"picture URLs have at most {IMAGE_URL_MAX} characters; empty for no picture",
    }.get(field, "the fields are user_id, nick_name, head_image, head_image_thumb")


class Edit(Protocol):
    """What a person changes of a profile."""

    @property
    def user_id(self) -> int:
        """Whose profile."""

    @property
    def nick_name(self) -> str | None:
        """The name; None when it stays as it is."""

    @property
    def head_image(self) -> str | None:
        """The picture; None when it stays as it is."""

    @property
    def head_image_thumb(self) -> str | None:
        """The small picture; None when it stays as it is."""


class Profile(NamedTuple):
    """A user's row."""

    id: int
    user_name: str
    nick_name: str
    head_image: str
    head_image_thumb: str
    version: int = 1
    deleted: int = 0

    def edited(self, edit: Edit) -> Profile:
        """This profile after the edit: itself when nothing changes, else with the next version."""
        before = self[2:5]
        after = (
            before[0] if edit.nick_name is None else edit.nick_name,
            before[1] if edit.head_image is None else edit.head_image,
            before[2] if edit.head_image_thumb is None else edit.head_image_thumb,
        )
        return self if after == before else Profile(self.id, self.user_name, *after, self.version + 1, self.deleted)

    def event(self) -> UserUpdated | UserDeleted:
        """The event that tells everybody of this state."""
        if self.deleted:
            return UserDeleted(id=self.id, version=self.version)
        return UserUpdated(
            id=self.id,
            version=self.version,
            nick_name=self.nick_name,
            head_image=self.head_image,
            head_image_thumb=self.head_image_thumb,
        )

    def touched(self, above: int) -> Profile:
        """This profile under the next version above its own and another one.

        Raises:
            UsageError: no version is left that a living user could still be edited from.
        """
        version = max(self.version, above) + 1
        if self.deleted:  # nothing comes after a tombstone, so it may take the last version of all
            return self._replace(nick_name="", head_image="", head_image_thumb="", version=min(version, MAX_INT))
        if version > NO_ROOM:
            raise UsageError(f"user {self.id} has no version left above {version - 1}")
        return self._replace(version=version)


def nobody(user_id: int) -> Profile:
    """The tombstone of a user that never was, under a name that nobody has."""
    return Profile(user_id, f"orphan:{user_id}:{uuid4().hex[:8]}", "", "", "", version=0, deleted=1)
