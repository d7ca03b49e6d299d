"""The group of a consumer, which makes it where it is missing."""

from __future__ import annotations

from imsync.bus.logfields import Fields
from imsync.bus.retention import gone_from_the_start
from imsync.bus.stream import Stream
from imsync.errors import GroupMissing, InfrastructureError


class OwnGroup:
    """Makes one group, at the start of its stream: never at `$`, which would skip what was published meanwhile.

    Args:
        may_repeat: whether the handler may be given again what the group had before it was deleted.
        log: the consumer's.
    """

    def __init__(self, stream: Stream, group: str, *, may_repeat: bool, log: Fields) -> None:
        self._stream = stream
        self._group = group
        self._may_repeat = may_repeat
        self._log = log

    def create(self) -> None:
        """Creates it, unless it exists.

        Raises:
            RedisUnreachable, RedisRefused: nobody knows whether it does, or it does not.
        """
        if self._stream.create_group(self._group) and (gone := gone_from_the_start(self._stream)):
            what = "the first %d entries of %s are gone: group %s must have had them, or needs a snapshot instead"
            self._log.warning(what, gone, self._stream.key, self._group)

    def create_again(self, missing: GroupMissing) -> None:
        """Creates it after it was deleted, or says loudly that it could not.

        Raises:
            GroupMissing: the handler would repeat its effects.
        """
        if not self._may_repeat:
            raise GroupMissing(
                f"group {self._group} of {self._stream.key} was deleted, and this handler would repeat its effects",
                "decide where it should start, and create it with XGROUP CREATE",
            ) from missing
        self._log.error("group %s of %s was deleted: created again from the start", self._group, self._stream.key)
        try:
            self.create()
        except InfrastructureError as again:
            self._log.error("group %s could not be created: %s", self._group, again)
