"""The one place that makes Redis connections, and the one that names their errors.

redis-py retries by itself when built one way and never when built another; a command whose reply was lost is
then sent again, and an XADD writes the event again. Here nothing retries: imsync does, where the event id is
known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from imsync.bus.tls import explain
from imsync.errors import ConfigError, GroupMissing, ImsyncError, RedisRefused, RedisUnreachable

CONNECT_TIMEOUT_SECONDS = 3.0
READ_MARGIN_SECONDS = 5.0
"""How much longer than a blocking read its socket waits; a shorter timeout tears down healthy connections."""

_NO_INTRODUCTION: dict[str, Any] = (
    {"driver_info": None} if hasattr(redis, "DriverInfo") else {"lib_name": None, "lib_version": None}
)
"""Without CLIENT SETINFO, which users of few rights may not: each time the server would note it in its ACL LOG.
redis-py 7.2 has another name for it."""

_NOT_THERE = ("NOGROUP", "UNBLOCKED", "no such key", "The XGROUP subcommand requires the key to exist")
"""How servers begin to say that a stream or a group does not exist."""


def without_password(url: str) -> str:
    """The URL as it may be shown to people: without whatever may be a password, even in a malformed one."""
    scheme, separator, rest = url.partition("://")
    userinfo, at, address = ("", "", rest) if rest.startswith("/") else rest.rpartition("@")
    user = re.split("[:/?#@]", userinfo)[0]
    secret = ":***" if user != userinfo else ""
    address = re.sub(r"(?i)(password=)[^&]*", r"\1***", address)
    return f"{scheme}{separator}{user}{secret}{at}{address}"


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """Where Redis is and how to log in.

    Args:
        url: `redis://host:port/db`, `rediss://…` (TLS, verified) or `unix:///path?db=0`.
        username: the ACL user, when the URL names none.
        password: its password, when the URL carries none.
        tls_ca_file: the certificate authority that signed the server's certificate; the system's, when None.
    """

    url: str
    username: str = ""
    password: str = ""
    tls_ca_file: Path | None = None

    def __str__(self) -> str:
        return without_password(self.url)

    def __repr__(self) -> str:
        return f"Endpoint({str(self)!r})"

    def connect(self, *, block_ms: int = 0, timeout_seconds: float | None = None) -> Redis:
        """A client of its own, not yet connected.

        Args:
            block_ms: the longest BLOCK, in milliseconds, that will be asked of it.
            timeout_seconds: how long a command may take; when None, long enough for the BLOCK and a slow server.

        Raises:
            ConfigError: the URL is not one of Redis.
        """
        options: dict[str, Any] = {
            "socket_timeout": timeout_seconds or block_ms / 1000 + READ_MARGIN_SECONDS,
            "socket_connect_timeout": timeout_seconds or CONNECT_TIMEOUT_SECONDS,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            **_NO_INTRODUCTION,
        }
        if self.username:
            options["username"] = self.username
        if self.password:
            options["password"] = self.password
        if self.url.startswith("rediss:") and self.tls_ca_file is not None:
            options["ssl_ca_certs"] = str(self.tls_ca_file)
        if self.url.startswith("unix:"):
            del options["socket_connect_timeout"], options["socket_keepalive"]
        try:
            return Redis.from_url(self.url, **options)
        except ValueError:  # whose text may quote a part of the password
            raise ConfigError(f"bad Redis URL {self}", "such as redis://localhost:6379/0") from None


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turns redis-py's errors into imsync's.

    Args:
        where: what is being talked to, for the message: never with a password.

    Raises:
        RedisUnreachable: refused, reset, timed out, or loading its data.
        RedisRefused: the server answered with an error.
        GroupMissing: the stream or the group is not there.
    """
    try:
        yield
    except redis_errors.RedisError as error:
        raise as_imsync_error(error, where) from error


def behind(error: redis_errors.RedisError) -> redis_errors.RedisError | None:
    """What broke the connection, where redis-py tells only that a watched key may have changed meanwhile."""
    cause = error.__context__
    return cause if isinstance(error, redis_errors.WatchError) and isinstance(cause, redis_errors.RedisError) else None


def as_imsync_error(error: redis_errors.RedisError, where: str) -> ImsyncError:
    """The imsync error that stands for one of redis-py. See `translated`."""
    error = behind(error) or error
    # of a pipeline, redis-py puts the command in front, and with it what the event holds
    answer = str(error).rpartition(" of pipeline caused error: ")[2]
    text = " ".join(answer.split()) or type(error).__name__
    if isinstance(error, redis_errors.NoPermissionError):
        hint = "give the user what it lacks: `imsync config acl` prints what each needs"
        return RedisRefused(f"Redis at {where} refuses access: {text}", hint, is_about_rights=True)
    if isinstance(error, redis_errors.AuthenticationError):
        return RedisRefused(f"Redis at {where} refuses access: {text}", "check username and IMSYNC_PASSWORD")
    if isinstance(error, redis_errors.BusyLoadingError):
        return RedisUnreachable(f"Redis at {where} is loading its data", "wait until it has started")
    if isinstance(error, redis_errors.ConnectionError | redis_errors.TimeoutError):
        if trouble := explain(error, where):
            return RedisUnreachable(f"cannot reach Redis at {where}: {trouble[0]}", trouble[1])
        return RedisUnreachable(f"cannot reach Redis at {where}: {text}", "is it running? check --url / IMSYNC_URL")
    if text.startswith(_NOT_THERE):
        return GroupMissing(f"no such stream or group at {where}: {text}", "run `imsync init`, or start a consumer")
    full = isinstance(error, redis_errors.OutOfMemoryError)
    hint = "free memory or raise maxmemory; nothing is lost meanwhile" if full else ""
    return RedisRefused(f"Redis at {where} refuses: {text}", hint)
