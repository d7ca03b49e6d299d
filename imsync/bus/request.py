"""A command whose reply is read later: the server works on it while its sender does something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from imsync.bus.connection import translated

if TYPE_CHECKING:
    from redis import Redis


class Request:
    """One command on a connection that nobody else uses until its reply is read, or it is dropped.

    The reply is as the server gave it: redis-py's own commands make it into dictionaries first, which takes longer than
    reading it.

    Args:
        client: whose pool gives the connection.
        where: what error messages call the server.
        command: the command and its arguments.

    Raises:
        RedisUnreachable: nobody knows whether the server got it.
    """

    def __init__(self, client: Redis, where: str, *command: str | bytes | int) -> None:
        self._where = where
        self._pool: Any = client.connection_pool
        self._connection: Any
        with translated(where):
            self._connection = self._pool.get_connection()
            try:
                self._connection.send_command(*command)
            except BaseException:
                self.drop()
                raise

    def reply(self) -> Any:
        """Waits for the reply. To be called once.

        Raises:
            RedisUnreachable: it did not come; the server may have carried the command out.
            RedisRefused, GroupMissing: the server answered with an error.
        """
        with translated(self._where):
            try:
                reply = self._connection.read_response()
            except ResponseError:  # whole, so that what comes next on this connection is the next reply
                self._release()
                raise
            except BaseException:
                self.drop()
                raise
        self._release()
        return reply

    def drop(self) -> None:
        """Closes the connection, and with it gives up the reply."""
        self._connection.disconnect()
        self._release()

    def _release(self) -> None:
        self._pool.release(self._connection)
