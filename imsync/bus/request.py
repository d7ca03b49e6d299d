"""Commands whose reply is read later: the server works on them while its sender does something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from imsync.bus.connection import translated

if TYPE_CHECKING:
    from redis import Redis


Command = tuple[str | bytes | int, ...]


class Request:
    """Commands on a connection that nobody else uses until its reply is read, or it is dropped.

    The reply is as the server gave it: redis-py's own commands make it into dictionaries first, which takes longer than
    reading it.

    Args:
        client: whose pool gives the connection.
        where: what error messages call the server.
        commands: one or more commands with their arguments, which travel together.

    Raises:
        RedisUnreachable: nobody knows whether the server got it.
    """

    def __init__(self, client: Redis, where: str, *commands: Command) -> None:
        self._where = where
        self._commands = len(commands)
        self._pool: Any = client.connection_pool
        self._connection: Any
        with translated(where):
            self._connection = self._pool.get_connection()
            try:
                self._connection.send_packed_command(self._connection.pack_commands(commands))
            except BaseException:
                self.drop()
                raise

    def reply(self) -> Any:
        """Waits for the reply to the last command. To be called once.

        Raises:
            RedisUnreachable: it did not come; the server may have carried out any of the commands.
            RedisRefused, GroupMissing: the server answered one of them with an error, the first of which this is.
        """
        with translated(self._where):
            return self.raw_reply()

    def raw_reply(self) -> Any:
        """As `reply`, with the errors that redis-py raises."""
        reply: Any = None
        refused: ResponseError | None = None
        try:
            for _ in range(self._commands):
                try:
                    reply = self._connection.read_response()
                except ResponseError as error:  # whole, so that what comes next on this connection is the next reply
                    refused = refused or error
        except BaseException:
            self.drop()
            raise
        self._release()
        if refused:
            raise refused
        return reply

    def drop(self) -> None:
        """Closes the connection, and with it gives up the reply."""
        self._connection.disconnect()
        self._release()

    def _release(self) -> None:
        self._pool.release(self._connection)
