"""When to try again: pure policies, so that they can be tested without waiting."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from imsync.bus.outcome import DeadLetter, Outcome, Retry


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
class RetryPolicy:
    """What happens to an event on which the handler fails.

    Args:
        max_attempts: after so many failures it becomes a dead letter.
        backoff: how long it waits in between.
    """

    max_attempts: int = 5
    backoff: Backoff = field(default_factory=Backoff)

    def decide(self, outcome: Outcome, failures: int) -> Outcome:
        """The outcome to settle: a `Retry` whose failures have reached the limit becomes a `DeadLetter`.

        Args:
            failures: how often the handler has failed on this event, this time included.
        """
        if isinstance(outcome, Retry) and failures >= self.max_attempts:
            return DeadLetter("max_attempts", f"failed {failures} times, last: {outcome.error}")
        return outcome
