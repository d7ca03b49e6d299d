"""Where the published events are: how a store has settled them, and whether the accounts of its group close."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imsync.bus.outcome import Effect
from imsync.store.settlement import CONFLICT, COVERED, DEAD, LOST

Tallies = Mapping[tuple[str, str], int]
"""How many events a store has settled, by (source, outcome)."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How a store has settled events, whoever wrote them.

    Args:
        duplicates: repeats that changed nothing.
        lost: entries that were trimmed before they were applied.
        conflicts: events that contradict what was applied: a restored user store.
    """

    applied: int
    superseded: int
    dead: int
    duplicates: int
    lost: int
    conflicts: int

    @property
    def settled(self) -> int:
        """How many came to an end, repeats included: what a consumer gets through."""
        return self.applied + self.superseded + self.dead + self.duplicates

    @classmethod
    def of(cls, tallies: Tallies) -> Outcomes:
        """From a store's tallies."""

        def every(outcome: str) -> int:
            return sum(n for (_, settled_as), n in tallies.items() if settled_as == outcome)

        outcomes = (Effect.APPLIED, Effect.SUPERSEDED, DEAD, Effect.DUPLICATE, LOST, CONFLICT)
        return cls(*(every(str(outcome)) for outcome in outcomes))


@dataclass(frozen=True, slots=True)
class Accounting:
    """Where the published events of our user store are. At rest published = applied + superseded + dead + lost +
    covered; in flight the rest is bounded by pending + undelivered.

    Args:
        undelivered: entries not given to the group yet; None when unknown.
        lost: trimmed before they were applied, and not settled by a later entry.
        covered: events that this store never settled, because the snapshot of its last rebuild had their effect; less
            those that it had settled twice by then.
        duplicates: repeats that changed nothing.
        foreign: settled events that our outbox did not write.
        conflicts: events that contradict what was applied: a restored user store.
        unexplained: what the numbers do not explain: 0 when the accounting closes; None when nobody knows, because what
            is missing may be undelivered.
    """

    published: int
    applied: int
    superseded: int
    dead: int
    pending: int
    undelivered: int | None
    lost: int
    covered: int
    duplicates: int
    foreign: int
    conflicts: int
    unexplained: int | None


def account(
    source: str,
    published: int,
    at_most: int,
    tallies: Tallies,
    pending: int,
    undelivered: int | None,
) -> Accounting:
    """Closes the accounts of one group. Pure.

    Args:
        source: the CloudEvents source of our user store; events of other sources are foreign.
        published: events that our outbox had noted as sent before the rest was looked at.
        at_most: how many may be in the stream: those noted as sent after the rest was looked at, and those not
            noted yet.
        tallies: the projection's counts by (source, outcome).
    """
    settled = {str(Effect.APPLIED), str(Effect.SUPERSEDED), DEAD}

    def ours(outcome: str) -> int:
        return tallies.get((source, outcome), 0)

    done = ours(str(Effect.APPLIED)) + ours(str(Effect.SUPERSEDED)) + ours(DEAD) + ours(COVERED)
    missing = published - done
    # an entry that was lost says not whose it was: what is not missing was published again, and settled then
    lost = min(max(0, missing), sum(n for (_, outcome), n in tallies.items() if outcome == LOST))
    not_there = max(0, missing - pending - lost)
    unexplained: int | None = min(0, at_most - done)
    if not unexplained and not_there:
        unexplained = None if undelivered is None else max(0, not_there - undelivered)
    return Accounting(
        published=published,
        applied=ours(str(Effect.APPLIED)),
        superseded=ours(str(Effect.SUPERSEDED)),
        dead=ours(DEAD),
        pending=pending,
        undelivered=undelivered,
        lost=lost,
        covered=ours(COVERED),
        duplicates=sum(n for (_, outcome), n in tallies.items() if outcome == str(Effect.DUPLICATE)),
        foreign=sum(n for (origin, outcome), n in tallies.items() if origin != source and outcome in settled),
        conflicts=sum(n for (_, outcome), n in tallies.items() if outcome == CONFLICT),
        unexplained=unexplained,
    )
