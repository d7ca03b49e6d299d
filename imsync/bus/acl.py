"""Who may do what in Redis: three users of few rights, by the commands that imsync sends and the keys it touches.

https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from imsync.bus.keys import Keys

PLACEHOLDER = ">CHANGE-ME"
"""Stands for a password in an ACL rule."""


class Role(StrEnum):
    """What a user does."""

    PRODUCER = "producer"
    CONSUMER = "consumer"
    OPERATOR = "operator"


class Dialect(StrEnum):
    """Which servers understand the rules.

    From Redis 7.0 on, and in every Valkey, a permission for commands can be tied to keys (selectors) and to reading or
    writing. Redis 6.2 knows only commands and keys: what a user may do to one key, it may do to all of its keys.
    """

    REDIS_7 = "7.0"
    REDIS_6 = "6.2"


@dataclass(frozen=True, slots=True)
class Grant:
    """Commands that a user may send, and on which keys.

    Args:
        commands: ACL rules such as `+xgroup|create`, in words.
        key: the pattern of the keys; empty for commands without one.
        access: what they may do to these keys by it: `~` both, `%R~` read, `%W~` write.
    """

    commands: str
    key: str = ""
    access: str = "~"

    @property
    def rules(self) -> list[str]:
        """The single commands."""
        return self.commands.split()


def grants(role: Role, keys: Keys) -> list[Grant]:
    """What a role needs, and nothing else. The first grant is of commands without keys, or of all."""
    connection = Grant("+ping +select +time +multi +exec +unwatch")
    match role:
        case Role.PRODUCER:
            # reading is for what the server has lost, and for pruning what every group has acknowledged
            stream = Grant("+xadd +xrange +xpending +xinfo|stream +xinfo|groups", keys.stream)
            return [Grant("+ping +select"), stream]
        case Role.CONSUMER:
            reading = "+xreadgroup +xack +xclaim +xpending +xinfo|stream +xinfo|groups +xrange +xtrim"
            return [
                connection,
                Grant(f"{reading} +xgroup|create +xgroup|delconsumer", keys.stream),
                Grant("+xadd +type +watch", keys.dead("*"), "%W~"),
                Grant("+get +mget +set +del +pexpire +pttl +watch", keys.alive("*", "*")),
                Grant("+set +del", keys.vitals("*", "*")),
                Grant("+zadd +zrange +exists +watch", keys.store("*")),
                Grant("+hmget +hincrby +hdel +expire", keys.failures("*")),
                Grant("+hset +hkeys +hdel +expire", keys.attempting("*")),
            ]
        case Role.OPERATOR:
            keyed = "+get +mget +set +del +pexpire +pttl +watch +exists +type +zadd +zrange"
            hashes = "+hmget +hincrby +hset +hkeys +hdel +expire"
            looking = "+info +config|get"
            return [Grant(f"{connection.commands} {looking} +@stream {keyed} {hashes} +eval", keys.all)]


def user_name(role: Role, prefix: str) -> str:
    """The name of a role's user: another one for every prefix, because users are the server's."""
    return f"{prefix}-{role}"


def rules(role: Role, keys: Keys, dialect: Dialect) -> list[str]:
    """A role's permissions as rules for ACL SETUSER, in their order; a selector is one rule."""
    first, *others = grants(role, keys)
    if dialect is Dialect.REDIS_7:
        selectors = [f"({each.access}{each.key} {each.commands})" for each in others]
        return ["resetchannels", *([f"~{first.key}"] if first.key else []), *first.rules, *selectors]
    patterns = [f"~{each.key}" for each in (first, *others) if each.key]
    commands = dict.fromkeys(rule for each in (first, *others) for rule in each.rules)
    return ["resetchannels", *patterns, *commands]


def password_rule(password: str) -> str:
    """A password as a rule that does not tell it: its SHA-256, as the server itself keeps it."""
    return f"#{hashlib.sha256(password.encode()).hexdigest()}"
