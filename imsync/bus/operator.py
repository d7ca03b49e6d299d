"""What an operator does to groups and consumers. Nothing of this is on the way of an event.

Its script is one of two in imsync. The other one acknowledges at a server that is at `maxmemory`: no other consumer or
producer needs a permission for scripts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from imsync.bus.connection import translated
from imsync.bus.keys import Keys
from imsync.bus.stream import Stream

if TYPE_CHECKING:
    from redis import Redis

_REMOVE_CONSUMER = """
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if held.err then return held end
if redis.call('EXISTS', KEYS[2]) == 1 then return 'alive' end
if #held > 0 then return 'holds' end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 'removed'
"""


class Removal(StrEnum):
    """What became of a consumer that was to be removed."""

    REMOVED = "removed"
    ALIVE = "alive"
    HOLDS = "holds"


def remove_consumer(client: Redis, stream: Stream, keys: Keys, group: str, consumer: str) -> Removal:
    """Removes a consumer that is dead and holds nothing; any other is left alone.

    Deleting a consumer drops for good what it holds, and between a look and the deletion it may come back, or a read
    that is still under way may give it entries. So the server looks and deletes in one script.
    https://redis.io/docs/latest/commands/xgroup-delconsumer/

    Raises:
        GroupMissing: there is no such group.
        RedisUnreachable, RedisRefused: it may or may not have been removed.
    """
    evaluate: Any = client.eval
    with translated(stream.where):
        answer = evaluate(
            _REMOVE_CONSUMER, 2, keys.stream, _raw(keys.alive(group, consumer)), _raw(group), _raw(consumer)
        )
    return Removal(answer.decode())


def drop_group(client: Redis, stream: Stream, keys: Keys, group: str) -> bool:
    """Destroys a group, and what Redis keeps for it besides: the binding to its store, and the records of failures.
    Its dead letters stay. False when there is no such group.

    Nobody is asked: what the group has pending or has not read is not delivered to it any more.

    Raises:
        RedisUnreachable, RedisRefused: it may or may not have been destroyed; do it again.
    """
    destroyed = stream.destroy_group(group)
    with translated(stream.where):
        client.delete(*(_raw(key) for key in (keys.store(group), keys.failures(group), keys.attempting(group))))
    return destroyed


def _raw(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
