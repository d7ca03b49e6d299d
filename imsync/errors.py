"""The errors imsync raises, and what each one means to a caller.

Every error carries a one-line message, a hint (what to do about it) and a stable `kind` that programs can
test for. Foreign errors (redis-py, sqlite3, pydantic) are translated at the seam where they occur and never
travel further.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ImsyncError(Exception):
    """Something failed.

    Args:
        message: one line, without a trailing period, naming what failed and on what.
        hint: one line saying what to do about it, or an empty string.
    """

    kind: ClassVar[str] = "failed"
    """A stable name for programs: the `kind` of the JSON error object."""
    exit_code: ClassVar[int] = 1
    """What a command that ends with this error exits with."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ImsyncError):
    """The caller asked for something that cannot be done as asked: bad values, unknown users."""

    kind = "usage"
    exit_code = 2


class ConfigError(ImsyncError):
    """A configuration value is missing, unknown, out of range or unreadable."""

    kind = "config"
    exit_code = 2


class InfrastructureError(ImsyncError):
    """A server or a disk is in trouble. Nothing is wrong with the data: try again later, for ever.

    Handlers may raise it themselves; the consumer retries the batch with backoff and dead-letters nothing.
    """

    kind = "infrastructure"


class RedisUnreachable(InfrastructureError):
    """No usable connection to Redis: refused, timed out, cut, or still loading."""

    kind = "redis_unreachable"
    exit_code = 4


class RedisRefused(InfrastructureError):
    """Redis answered, but with a refusal: out of memory, read-only, no permission, wrong password.

    Args:
        is_about_rights: the user may not do this; somebody else may.
    """

    kind = "redis_refused"
    exit_code = 4

    def __init__(self, message: str, hint: str = "", *, is_about_rights: bool = False) -> None:
        super().__init__(message, hint)
        self.is_about_rights = is_about_rights


class GroupMissing(InfrastructureError):
    """The stream or its consumer group does not exist (NOGROUP): it was deleted, or never created."""

    kind = "group_missing"
    exit_code = 4


class LeaseTaken(InfrastructureError):
    """Another living consumer has this name. It is waited for.

    Args:
        name: the consumer's name.
        holder: who has it: its host and pid, as far as they are known.
    """

    kind = "lease_taken"
    exit_code = 4

    def __init__(self, name: str, holder: Mapping[str, object]) -> None:
        host, pid = str(holder.get("host", "an unknown host"))[:64], str(holder.get("pid", "?"))[:20]
        super().__init__(
            f"another consumer named {name} is alive on {host!a} (pid {pid!a})",
            "it is waited for; give this one a name of its own, or none",
        )


class StoreUnusable(InfrastructureError):
    """A SQLite store cannot be opened, read or written: missing, locked, full, read-only, corrupt, newer."""

    kind = "store_unusable"
    exit_code = 5


class StoreMismatch(ImsyncError):
    """A store does not belong to its group: another file is bound to it, or this one is an older copy of it. What
    the group has acknowledged would be missing here for good, so nothing is consumed.
    """

    kind = "store_mismatch"
    exit_code = 5


class DataError(ImsyncError):
    """An entry's bytes are not an event that the reader declared. It will never get better by retrying.

    Args:
        reason: a short stable word for programs (`bad_json`, `unknown_type`, `invalid`, `too_large`, …).
        message: one line that says what is wrong, without echoing the input.
    """

    kind = "data"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
