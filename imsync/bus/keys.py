"""The names of every Redis key that imsync touches, and the rule for names that people choose.

All keys of one destination share a hash tag, so that one MULTI over them works in a Redis Cluster
(https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from imsync.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}")


def check_name(what: str, name: str) -> str:
    """Return `name` if it may be used as a group, consumer, destination or prefix.

    Raises:
        UsageError: it is empty, longer than 64 characters, holds other characters than `A-Z a-z 0-9 . _ : -`,
            or is the word STREAMS, which XREADGROUP's syntax gives a meaning.
    """
    if not _NAME.fullmatch(name) or name.upper() == "STREAMS":
        raise UsageError(
            f"bad {what} name {name[:80]!a}",
            "use 1 to 64 of A-Z a-z 0-9 . _ : - (and not the word STREAMS)",
        )
    return name


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one destination.

    Args:
        prefix: what every key starts with, so that several systems can share one Redis.
        destination: the logical topic, as events name it.
    """

    prefix: str
    destination: str

    def __post_init__(self) -> None:
        check_name("prefix", self.prefix)
        check_name("destination", self.destination)

    @property
    def _tag(self) -> str:
        return f"{self.prefix}:{{{self.destination}}}"

    @property
    def stream(self) -> str:
        """The stream that carries the events."""
        return f"{self._tag}:stream"

    @property
    def all(self) -> str:
        """The pattern of all keys of the destination, as SCAN and ACL rules take it."""
        return f"{self._tag}:*"

    def dead(self, group: str) -> str:
        """The stream of a group's dead letters."""
        return f"{self._tag}:dead:{group}"

    def store(self, group: str) -> str:
        """The store that a group feeds: a sorted set of one member, the store's id, scored with its generation."""
        return f"{self._tag}:store:{group}"

    def failures(self, group: str) -> str:
        """How often the group's handler has failed on which entry: a hash."""
        return f"{self._tag}:failures:{group}"

    def attempting(self, group: str) -> str:
        """Which suspicious entries are being tried alone, and by whom: a hash."""
        return f"{self._tag}:attempting:{group}"

    def alive(self, group: str, consumer: str) -> str:
        """The heartbeat of one consumer: present while it lives, expired soon after it dies."""
        # a slash, which no name can hold, so that two pairs of names never share a key
        return f"{self._tag}:alive:{group}/{consumer}"

    def vitals(self, group: str, consumer: str) -> str:
        """What one consumer tells of its work: a JSON object that expires with the heartbeat."""
        return f"{self._tag}:vitals:{group}/{consumer}"
