"""What became of one delivery, as a value: a handler says it, the consumer settles it in one place."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import TypeAlias

FRAMES = 5
"""How many frames of a traceback are kept: the innermost ones."""


class Effect(StrEnum):
    """What an acknowledged delivery did to the handler's state."""

    APPLIED = "applied"
    """The event took effect."""
    SUPERSEDED = "superseded"
    """A newer version had been applied already, so this one changed nothing."""
    DUPLICATE = "duplicate"
    """This very event had been settled before, so the repeat changed nothing."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The delivery is done, and its effect is committed. The entry is acknowledged."""

    effect: Effect = Effect.APPLIED


@dataclass(frozen=True, slots=True)
class Retry:
    """The handler failed on this event and wants it again later.

    Args:
        error: one line that says what failed.
        where: the innermost frames, when an exception said so: `store.py:41 apply < main.py:7 run`.
    """

    error: str
    where: str = ""

    @classmethod
    def after(cls, error: BaseException) -> Retry:
        """The outcome of an exception: its type, its message, and where it was raised."""
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
        where = " < ".join(f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
        return cls(f"{type(error).__name__}: {error}", where)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The event can never be applied. It moves to the group's dead letters.

    Args:
        reason: a short stable word, such as `invalid`, `unknown_type` or `max_attempts`.
        message: one line that says what is wrong.
        where: as `Retry.where`.
    """

    reason: str
    message: str
    where: str = ""


Outcome: TypeAlias = Ack | Retry | DeadLetter

APPLIED = Ack(Effect.APPLIED)
SUPERSEDED = Ack(Effect.SUPERSEDED)
DUPLICATE = Ack(Effect.DUPLICATE)
