"""When to try again: pure policies, so that they can be tested without waiting."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from imsync.bus.outcome import DeadLetter, Outcome, Retry

KILLS_CONSUMER = "kills_consumer"
"""The reason of a dead letter on which consumers died."""


class Delays(Protocol):
    """How long to wait before each further attempt."""

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait after the failure number `attempt` (1 is the first)."""
        ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with equal jitter: half of each delay is fixed, half is random.

    Jitter keeps many clients of one restarted server from returning all at once
    (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/).

    Args:
        first_seconds: the longest first delay.
        factor: what each further delay is multiplied by.
        longest_seconds: where the growth ends.
    """

    first_seconds: float = 0.1
    factor: float = 2.0
    longest_seconds: float = 5.0

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait after the failure number `attempt` (1 is the first)."""
        growth = self.factor ** min(attempt - 1, 64)
        ceiling = min(self.first_seconds * growth, self.longest_seconds)
        return ceiling / 2 + rng.random() * ceiling / 2


@dataclass(frozen=True, slots=True)
class Steps:
    """Fixed delays, one after the other; the last one repeats. Up to a tenth is added at random.

    Args:
        seconds: the delays, at least one.
    """

    seconds: Sequence[float]

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) < 0:
            raise ValueError("give at least one delay, and none below 0")

    def delay(self, attempt: int, rng: random.Random) -> float:
        """Seconds to wait after the failure number `attempt` (1 is the first)."""
        step = self.seconds[min(attempt, len(self.seconds)) - 1]
        return step * (1 + rng.random() / 10)


ROCKETMQ_STEPS = Steps((10, 30, 60, 120, 180, 240, 300, 360, 420, 480, 540, 600, 1200, 1800, 3600, 7200))
"""The delays of RocketMQ's concurrent consumers, which give up after 16 of them
(https://rocketmq.apache.org/docs/featureBehavior/10consumerretrypolicy): 4 h 46 min in all."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What happens to an event on which the handler fails, or the whole process dies.

    Args:
        max_attempts: after so many recorded failures it becomes a dead letter.
        backoff: how long it waits in between: a `Backoff`, `Steps`, or anything with their `delay`.
        max_deaths: an event that was tried alone becomes a dead letter after so many consumers died on it.
    """

    max_attempts: int = 5
    backoff: Delays = field(default_factory=Backoff)
    max_deaths: int = 3

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.max_deaths < 1:
            raise ValueError("max_attempts and max_deaths must be at least 1")

    def decide(self, outcome: Outcome, failures: int) -> Outcome:
        """The outcome to settle: a `Retry` whose failures have reached the limit becomes a `DeadLetter`.

        Args:
            failures: how often the handler has failed on this event, this time included.
        """
        if isinstance(outcome, Retry) and failures >= self.max_attempts:
            return DeadLetter("max_attempts", f"failed {failures} times, last: {outcome.error}", outcome.where)
        return outcome

    def condemn(self, deaths: int) -> DeadLetter | None:
        """The dead letter of an event on which so many consumers died; None while it may be tried again."""
        if deaths < self.max_deaths:
            return None
        return DeadLetter(KILLS_CONSUMER, f"{deaths} consumers died while they tried it alone")
