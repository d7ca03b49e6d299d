"""What is to be measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted.

    Args:
        seconds: about how long it may take.
        users: how many there are.
        rate: edits per second when latency is measured.
        events: per round; as many as the time allows when None.
        seed: the same one makes the same users and edits.
    """

    seconds: float = 45.0
    users: int = 10_000
    rate: float = 500.0
    events: int | None = None
    seed: int = 7
