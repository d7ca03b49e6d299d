"""Which of the three roles a user can fill: every command that a role needs is asked for, in a form that has no effect.

A server looks at a command's permissions before it looks at its arguments, so an argument that is nonsense tells the
two apart: "no permission", or a complaint about the argument. It works on every version, without a right to ask
(ACL DRYRUN is an administrator's, and younger than Redis 6.2). Each refusal is a line in the server's ACL LOG, so a
role is not asked any further whose first command is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors

from imsync.bus.acl import Role, grants
from imsync.bus.connection import translated
from imsync.bus.finding import Finding, bad, ok
from imsync.bus.keys import Keys

if TYPE_CHECKING:
    from redis import Redis

PROBE = "imsync-doctor"
"""Stands for a group, a consumer, a field: nobody has the name."""

_ARGUMENTS: Mapping[str, str] = {
    "+xadd": "{key} nonsense event x",
    "+xrange": "{key} nonsense + COUNT 1",
    "+xpending": "{key} {probe}",
    "+xinfo|stream": "{key}",
    "+xinfo|groups": "{key}",
    "+xreadgroup": "GROUP {probe} {probe} STREAMS {key} nonsense",
    "+xack": "{key} {probe} nonsense",
    "+xclaim": "{key} {probe} {probe} 0 nonsense",
    "+xtrim": "{key} MINID nonsense",
    "+xgroup|create": "{key} {probe} nonsense",
    "+xgroup|delconsumer": "{key} {probe} {probe}",
    "+xgroup|destroy": "{key} {probe}",
    "+xdel": "{key} nonsense",
    "+xread": "COUNT 1 STREAMS {key} nonsense",
    "+type": "{key}",
    "+watch": "{key}",
    "+get": "{key}",
    "+mget": "{key}",
    "+set": "{key} x PX nonsense",
    "+del": "{key}",
    "+pexpire": "{key} nonsense",
    "+pttl": "{key}",
    "+zadd": "{key} nonsense {probe}",
    "+zrange": "{key} nonsense 0",
    "+exists": "{key}",
    "+hmget": "{key} {probe}",
    "+hincrby": "{key} {probe} nonsense",
    "+hset": "{key} {probe} x {probe}",
    "+hkeys": "{key}",
    "+hdel": "{key} {probe}",
    "+expire": "{key} nonsense",
    "+eval": "nonsense 1 {key}",
    "+config|get": "timeout",
}
"""Arguments without effect, by command. Those that are not listed take none."""
_OF_ALL_STREAM_COMMANDS = "+xdel +xread +xgroup|destroy"
"""What tells whether a user has `+@stream`."""
_NOT_ASKED = {"+select"}
"""The connection has done it already if it needs it."""
_FIRST = {Role.PRODUCER: "+xadd", Role.CONSUMER: "+xreadgroup", Role.OPERATOR: "+xdel"}
"""What tells the roles apart."""


def missing(client: Redis, keys: Keys, role: Role, where: str) -> list[str] | None:
    """The ACL rules that the user lacks for a role; None when it has nothing to do with the role.

    Args:
        client: one that nobody else uses meanwhile.

    Raises:
        RedisUnreachable, RedisRefused: nobody knows.
    """
    wanted = grants(role, keys)
    # the grant with the stream is the one that tells
    telling = next(grant for grant in wanted if grant.key in (keys.stream, keys.all))
    if not _may(client, _FIRST[role], telling.key, where):
        return None
    lacking: dict[str, None] = {}
    for grant in wanted:
        for rule in grant.rules:
            probed = _OF_ALL_STREAM_COMMANDS.split() if rule == "+@stream" else [rule]
            if not all(each in _NOT_ASKED or _may(client, each, grant.key, where) for each in probed):
                lacking[rule] = None
    return list(lacking)


def _may(client: Any, rule: str, pattern: str, where: str) -> bool:
    key = pattern.replace("*", PROBE)
    words = _ARGUMENTS.get(rule, "").format(key=key, probe=PROBE).split()
    with translated(where):
        try:
            client.execute_command(*rule[1:].upper().split("|"), *words)
        except redis_errors.NoPermissionError:
            return False
        except redis_errors.ExecAbortError as error:  # how EXEC is refused
            return "NOPERM" not in str(error)
        except redis_errors.ResponseError:
            return True  # it may, and has not
        finally:
            if rule in ("+multi", "+watch"):
                client.connection_pool.disconnect()  # and with it what has begun
    return True


def check(client: Redis, keys: Keys, user: str, where: str) -> Finding:
    """Which roles the user can fill. One that it can fill in part is bad: it stops in the middle of its work.

    Raises:
        RedisUnreachable, RedisRefused: nobody knows.
    """
    name = "rights"
    whole: list[str] = []
    partly: list[str] = []
    for role in Role:
        lacking = missing(client, keys, role, where)
        if lacking == []:
            whole.append(role)
        elif lacking is not None:
            partly.append(f"a {role} lacks {' '.join(lacking)}")
    remedy = "`imsync config acl` prints what each role needs"
    if partly:
        return bad(name, f"user {user} may do only a part: {'; '.join(partly)}", remedy)
    if not whole:
        return bad(name, f"user {user} may neither produce nor consume under {keys.stream}", remedy)
    return ok(name, f"user {user} may be {', '.join(whole)}")
