"""Many commands in one round trip, packed by hand: redis-py's pipelines take longer for a command than the server does.

The connection is redis-py's, from the client's pool. https://redis.io/docs/latest/develop/using-commands/pipelining/
"""

from __future__ import annotations

import os
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


SMALL_POOL = 10
"""A pool with fewer connections has a limit that somebody has set: none is kept from it."""


class Line:
    """A client's connection, kept for one round trip after another: to give it back to the pool and to get it again
    takes longer than to send a command.

    Args:
        client: whose pool the connection comes from. It remains the pool's, which closes it with its own.
    """

    def __init__(self, client: Redis) -> None:
        self._pool: Any = client.connection_pool
        self._kept: list[Any] = []  # at most one, unless threads came at once

    def take(self) -> Any:
        """A connection that nobody else uses until it is given back.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        try:
            connection = self._kept.pop()
        except IndexError:
            return self._pool.get_connection()
        if connection.pid != os.getpid():  # it is the parent's, and so is what stands in it
            return self._pool.get_connection()
        try:
            if not connection.can_read():
                return connection
        except (redis_errors.RedisError, OSError):
            pass
        self.drop(connection)  # the server has closed it, or has said what nobody asked for
        return self._pool.get_connection()

    def give_back(self, connection: Any) -> None:
        """Keeps a connection for the next round trip, unless the pool has few or wants it made anew."""
        if self._kept or self._pool.max_connections < SMALL_POOL or connection.should_reconnect():
            self._pool.release(connection)
        else:
            self._kept.append(connection)

    def release(self) -> None:
        """Gives the pool what is kept."""
        while self._kept:
            self._pool.release(self._kept.pop())

    def drop(self, connection: Any) -> None:
        """Closes a connection."""
        connection.disconnect()
        self._pool.release(connection)


class RoundTrip:
    """Commands that differ in their last argument. They are sent piece by piece while the caller does something else,
    as long as it calls `send_some`; `results` sends what is left.

    Args:
        line: where the connection comes from.
        where: what error messages call the server.
        command: what all commands begin with.
        last: the last argument of each.
    """

    def __init__(self, line: Line, where: str, command: tuple[bytes, ...], last: Iterable[bytes]) -> None:
        self._line = line
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
        connection, self._connection = self._connection, None
        if connection is not None:
            self._line.give_back(connection)
        return [
            as_imsync_error(reply, self._where) if isinstance(reply, redis_errors.RedisError) else reply.decode()
            for reply in replies
        ]

    def abandon(self) -> None:
        """Breaks the connection: whoever got it next would read what was meant for this one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._line.drop(connection)

    def _send_piece(self) -> bool:
        """Whether there was any."""
        for count, piece in self._pieces:
            if self._connection is None:
                self._connection = self._line.take()
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
