"""Where a benchmark works: a server, the keys that are its own there, and a folder. Knows no client and no store, so
that the hand-written loop loads nothing of imsync's that it does not use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from imsync.bus.keys import Keys

DESTINATION = "user-update"
GROUP, BY_HAND = "group", "by-hand"
"""The consumer groups of imsync, and of the hand-written loop."""


@dataclass(frozen=True, slots=True, repr=False)
class Place:
    """What a worker must know to begin.

    Args:
        url, username, password, tls_ca_file: the server.
        prefix: what all keys start with.
        template: the folder of the stores that each round starts from.
        round_: the folder of the round's stores.
    """

    url: str
    username: str
    password: str
    tls_ca_file: str
    prefix: str
    template: Path
    round_: Path

    @property
    def keys(self) -> Keys:
        """The keys of imsync."""
        return Keys(self.prefix, DESTINATION)

    @property
    def by_hand(self) -> str:
        """The stream that the hand-written loop publishes to."""
        return f"{self.prefix}:{{{DESTINATION}}}:{BY_HAND}"

    def all_keys(self, consumers: Iterable[str]) -> list[str]:
        """Every key that may be there, if imsync's consumers had these names."""
        keys = self.keys
        found = [keys.stream, self.by_hand, keys.dead(GROUP), keys.store(GROUP), keys.failures(GROUP)]
        found.append(keys.attempting(GROUP))
        for name in consumers:
            found += [keys.alive(GROUP, name), keys.vitals(GROUP, name)]
        return found
