"""Many commands in one round trip, packed by hand: redis-py's pipelines take longer for a command than the server does.

The connection is redis-py's, from the client's pool. https://redis.io/docs/latest/develop/using-commands/pipelining/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors

from imsync.bus.connection import as_imsync_error, translated
from imsync.errors import ImsyncError

if TYPE_CHECKING:
    from redis import Redis

PIECE_BYTES = 48 * 1024
"""About how much is sent at once: what a socket takes without waiting for the server. Each piece has the client's
timeout for itself."""


class RoundTrip:
    """Commands that differ in their last argument. They are sent piece by piece while the caller does something else,
    as long as it calls `send_some`; `results` sends what is left.

    Args:
        client: whose pool the connection comes from.
        where: what error messages call the server.
        command: what all commands begin with.
        last: the last argument of each.
    """

    def __init__(self, client: Redis, where: str, command: tuple[bytes, ...], last: Iterable[bytes]) -> None:
        self._pool: Any = client.connection_pool
        self._where = where
        self._pieces = _pieces(command, last)
        self._connection: Any = None
        self._sent = 0
        self._trouble: redis_errors.RedisError | None = None

    def send_some(self) -> None:
        """Sends the next piece, if any is left. Trouble is told by `results`."""
        try:
            if self._trouble is None:
                self._send_piece()
        except redis_errors.RedisError as error:
            self._trouble = error

    def results(self) -> list[str | ImsyncError]:
        """For each command the text that the server answered, or the error. To be asked for once.

        Raises:
            RedisUnreachable: the connection broke; any number of commands may have been carried out.
        """
        with translated(self._where):
            try:
                if self._trouble is not None:
                    raise self._trouble
                while self._send_piece():
                    pass
                replies = self._replies()
            except BaseException:
                self.abandon()
                raise
        self._give_back()
        return [
            as_imsync_error(reply, self._where) if isinstance(reply, redis_errors.RedisError) else reply.decode()
            for reply in replies
        ]

    def abandon(self) -> None:
        """Breaks the connection: whoever got it next would read what was meant for this one."""
        if self._connection is not None:
            self._connection.disconnect()
            self._give_back()

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(connection)

    def _send_piece(self) -> bool:
        """Whether there was any."""
        for count, piece in self._pieces:
            if self._connection is None:
                self._connection = self._pool.get_connection()
            self._connection.send_packed_command([piece])
            self._sent += count
            return True
        return False

    def _replies(self) -> list[Any]:
        replies: list[Any] = []
        if self._connection is None:
            return replies
        read = self._connection.read_response
        while len(replies) < self._sent:
            try:
                replies.append(read())
            except redis_errors.ResponseError as error:
                replies.append(error)
        return replies


def _pieces(command: tuple[bytes, ...], last: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Commands as https://redis.io/docs/latest/develop/reference/protocol-spec/ has them: (how many, their bytes)."""
    begin = b"*%d\r\n" % (len(command) + 1) + b"".join([b"$%d\r\n%b\r\n" % (len(each), each) for each in command])
    parts: list[bytes] = []
    size = count = 0
    for argument in last:
        parts += (begin, b"$%d\r\n" % len(argument), argument, b"\r\n")
        size += len(begin) + len(argument)
        count += 1
        if size >= PIECE_BYTES:
            yield count, b"".join(parts)
            parts.clear()
            size = count = 0
    if parts:
        yield count, b"".join(parts)
