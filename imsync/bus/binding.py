"""A store belongs to its group: what the group has acknowledged is in this store, and must be in any that follows it.

Two machines in one group with stores of their own would each get half of the events; a store that was deleted,
or restored from a copy, would miss for good what its group has acknowledged already. So Redis keeps, per group, the
id of the store and its generation (the number of its transactions), raised in the round trip that acknowledges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import WatchError

from imsync.bus.connection import translated
from imsync.bus.handler import BoundStore
from imsync.bus.keys import Keys
from imsync.bus.request import Command
from imsync.bus.stream import Stream
from imsync.errors import StoreMismatch

if TYPE_CHECKING:
    from redis import Redis


class Binding:
    """The binding of one group to the store that its handler writes.

    Args:
        store: the handler's.
    """

    def __init__(self, client: Redis, stream: Stream, keys: Keys, group: str, store: BoundStore) -> None:
        self._client: Any = client
        self._stream = stream
        self._keys = keys
        self._key = keys.store(group)
        self._group = group
        self._store = store

    def check(self) -> None:
        """Sees to it that this is the group's store; the first one that a group meets becomes its store.

        Raises:
            StoreMismatch: another store is bound to the group, or this one is older than what the group has
                acknowledged: a copy, or a second file made from one.
        """
        if not self._is_bound():
            self._bind()

    def mismatch(self) -> StoreMismatch | None:
        """Why this cannot be the group's store; None when it can. Changes nothing."""
        try:
            self._is_bound()
        except StoreMismatch as error:
            return error
        return None

    def _is_bound(self) -> bool:
        """Whether this is the group's store; otherwise it may become it."""
        # the server first: a store that is being written meanwhile is only newer
        bound = bound_stores(self._client, self._stream, self._keys, self._group)
        generation = self._store.generation
        mine = bound.pop(self._store.store_id, None)
        if bound:
            raise self._mismatch(f"group {self._group!a} feeds another store ({next(iter(bound))}), not this one")
        if mine is None and generation == 0 and self._was_fed():
            raise self._mismatch(f"group {self._group!a} was fed before, and this store has never been")
        if mine is not None and mine > generation:
            raise self._mismatch(
                f"this store is older than what group {self._group!a} has acknowledged "
                f"(generation {generation} of {mine}): it was restored from a copy, or a second copy is at work"
            )
        return mine is not None

    def _bind(self) -> None:
        with translated(self._stream.where), self._client.pipeline() as pipeline:
            pipeline.watch(self._key)
            if not pipeline.exists(self._key):
                pipeline.multi()
                pipeline.zadd(self._key, {self._store.store_id: self._store.generation})
                try:
                    pipeline.execute()
                except WatchError:  # somebody was quicker: a store of the same id, or another
                    pass
                else:
                    return
        self.check()

    def rebind(self, generation: int) -> None:
        """Makes this store the group's, whatever was before.

        Args:
            generation: the store's; 0 as long as it is not whole, so that it refuses to be used itself.
        """
        with translated(self._stream.where):
            (
                self._client.pipeline(transaction=True)
                .delete(self._key)
                .zadd(self._key, {self._store.store_id: generation})
                .execute()
            )

    def advance(self) -> Command:
        """The command that notes the store's generation. It never lowers one, and never binds another store."""
        return ("ZADD", self._key, "XX", "GT", self._store.generation, self._store.store_id)

    def note(self) -> None:
        """Notes the store's generation at once, before something is acknowledged in another way."""
        with translated(self._stream.where):
            self._client.execute_command(*self.advance())

    def _was_fed(self) -> bool:
        group = next((info for info in self._stream.groups() if info.name == self._group), None)
        return group is not None and group.last_delivered_id != "0-0"

    def _mismatch(self, message: str) -> StoreMismatch:
        return StoreMismatch(
            message, f"use the store that belongs to it, or fill this one from the source: imsync rebuild {self._group}"
        )


def bound_stores(client: Redis, stream: Stream, keys: Keys, group: str) -> dict[str, int]:
    """The store that a group feeds, by its id, with the generation that was noted last; empty when there is none."""
    rows: Any
    with translated(stream.where):
        rows = client.zrange(keys.store(group), 0, -1, withscores=True)
    return {member.decode(errors="replace"): int(score) for member, score in rows}
