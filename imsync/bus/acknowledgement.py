"""XACK whose reply is read later: the server works on it while the consumer decodes the next batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redis import exceptions as redis_errors

from imsync.bus.connection import translated
from imsync.bus.request import Request


class Acknowledgement:
    """Entries that the server is asked to acknowledge.

    Args:
        request: XACK, or a MULTI in which it is the second command.
        where: what error messages call the server.
        ids: the entries'.
        when_full: does the same as the MULTI, which the server refuses when its memory is full.
    """

    def __init__(
        self, request: Request, where: str, ids: Sequence[str], when_full: Callable[[], int] | None = None
    ) -> None:
        self._request = request
        self._where = where
        self.ids = ids
        self._when_full = when_full

    def finish(self) -> int:
        """Waits for the server; how many of the entries were pending until now. To be called once.

        Raises:
            RedisUnreachable: it did not answer; it may have acknowledged all.
            RedisRefused: it has acknowledged none, unless the other command failed within the MULTI.
        """
        with translated(self._where):
            if self._when_full is None:
                return int(self._request.raw_reply())
            try:
                replies = self._request.raw_reply()
                for reply in replies:
                    if isinstance(reply, redis_errors.RedisError):
                        raise reply
                return int(replies[1])
            except redis_errors.OutOfMemoryError as full:
                try:
                    return self._when_full()
                except redis_errors.NoPermissionError:  # the trouble is the memory: it has to wait for some
                    raise full from None

    def drop(self) -> None:
        """Gives up the reply."""
        self._request.drop()
