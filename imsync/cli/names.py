"""Names of groups and consumers: whoever may use the server has chosen them, and they need not be text."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from imsync.cli.render import safe
from imsync.errors import UsageError


def readable(name: str) -> str:
    """A name as it is shown, in JSON too: bytes that are no UTF-8 and invisible characters become escapes."""
    return safe(name.encode(errors="surrogateescape").decode(errors="backslashreplace"))


def word(name: str) -> str:
    """A name as it may be typed into a shell."""
    return shlex.quote(readable(name))


def find_group(typed: str, names: Collection[str]) -> str:
    """The group that somebody means: its name itself, or as it is shown.

    Raises:
        UsageError: there is none, or more than one is shown so.
    """
    found = [name for name in names if name == typed] or [name for name in names if readable(name) == typed]
    if len(found) == 1:
        return found[0]
    there = f"there are {', '.join(sorted(map(readable, names)))}" if names else "the stream has none"
    raise UsageError(f"no group {typed[:80]!a}" if not found else f"several groups are shown as {typed[:80]!a}", there)
