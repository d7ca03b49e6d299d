"""What a server tells of itself, as far as this user may ask: INFO, CONFIG GET, TIME."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors

from imsync.bus.connection import translated

if TYPE_CHECKING:
    from redis import Redis

CONFIG = ("timeout", "client-output-buffer-limit", "save", "appendfsync", "min-replicas-to-write")
"""The directives that are asked for. What else matters, INFO has too."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A server at one moment.

    Args:
        where: what to call it, never with a password.
        user: who asked: an ACL user.
        info: INFO; None when it is refused.
        config: the directives of CONFIG GET, as text; None when it is refused.
        skew_seconds: how far its clock is ahead of this machine's; None when TIME is refused.
        skew_error_seconds: the most by which that may be wrong.
        answer_seconds: how long it took to answer.
    """

    where: str
    user: str
    info: Mapping[str, Any] | None
    config: Mapping[str, str] | None
    skew_seconds: float | None
    skew_error_seconds: float
    answer_seconds: float

    @property
    def asker(self) -> str:
        """Who asked, for messages."""
        return f"user {self.user}"


def gather(client: Redis, where: str, clock: Callable[[], float] = time.time) -> Facts:
    """Asks the server. Changes nothing.

    Args:
        clock: this machine's, in unix seconds.

    Raises:
        RedisUnreachable: it does not answer.
        RedisRefused: it lets nobody in with these credentials, or is of no use for other reasons.
    """
    asked: Any = client
    with translated(where):
        began = time.perf_counter()
        asked.ping()
        answer_seconds = time.perf_counter() - began
        before = clock()
        server_time = _allowed(lambda: asked.time())
        after = clock()
        info = _allowed(lambda: asked.info("everything"))
        directives = [_allowed(partial(asked.config_get, name)) for name in CONFIG]
    config = None
    if None not in directives:
        config = {_text(name): _text(value) for found in directives for name, value in found.items()}
    skew = None if server_time is None else server_time[0] + server_time[1] / 1e6 - (before + after) / 2
    # whoever gives no name is the server's default user
    user = asked.connection_pool.connection_kwargs.get("username") or "default"
    return Facts(where, user, info, config, skew, max(0.0, after - before) / 2, answer_seconds)


def _allowed(command: Callable[[], Any]) -> Any:
    """What a command answers; None when it is refused, or is none of this server's."""
    try:
        return command()
    except redis_errors.AuthenticationError:
        raise
    except redis_errors.ResponseError:
        return None


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
