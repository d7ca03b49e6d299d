"""Dead letters of real events: a service whose handler fails on everything, and settles all the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

from imsync.bus import Bus, ConsumerOptions, RetryPolicy
from imsync.bus.dead_letter import DeadLetterRecord, read
from imsync.bus.handler import Received
from imsync.bus.inspection import view_group
from imsync.bus.outcome import Outcome
from imsync.im.events import DESTINATION
from imsync.im.health import account, judge_group
from imsync.im.profile_projection import ProfileProjection
from imsync.im.relay import Relay
from imsync.im.workspace import Workspace
from tests.acceptance.driver import Imsync
from tests.stores import nick

QUICK = ConsumerOptions(until_empty=True, block_ms=50, heartbeat_ms=100, retry=RetryPolicy(max_attempts=1))


class Breaking:
    """A handler with a defect, over a store that keeps the settlement log."""

    def __init__(self, store: ProfileProjection) -> None:
        self.record_dead = store.record_dead
        self.record_lost = store.record_lost

    def apply(self, batch: Sequence[Received[Any]]) -> list[Outcome]:
        raise ValueError("no such colour")


def bury(im: Imsync, service: str = "group", events: Sequence[Any] | None = None) -> None:
    """Lets a service give up everything that it is given.

    Args:
        events: what it can decode; its own views when None.
    """
    with closing(Workspace(im.data).projection(service)) as store, Bus.from_url(im.url) as bus:
        bus.consumer(
            DESTINATION, group=service, events=events or store.events, handler=Breaking(store), options=QUICK
        ).run()  # fmt: skip


# In this process, because a command takes a third of a second to start.


def edit(im: Imsync, *edits: tuple[int, str]) -> None:
    """Edits nicknames, given as (user, name), and publishes them."""
    with closing(Workspace(im.data).user_store()) as users, Bus.from_url(im.url) as bus:
        assert users.edit_many([nick(*each) for each in edits]).accepted == len(edits)
        Relay(users, bus.publisher(DESTINATION)).drain()


def consume(im: Imsync, *services: str) -> None:
    """Lets services apply what there is for them."""
    for service in services:
        with closing(Workspace(im.data).projection(service)) as store, Bus.from_url(im.url) as bus:
            bus.consumer(DESTINATION, group=service, events=store.events, handler=store, options=QUICK).run()


def letters(im: Imsync, service: str = "group") -> list[DeadLetterRecord]:
    """The dead letters of a service."""
    with Bus.from_url(im.url) as bus:
        return [read(entry) for entry in bus.dead_letters(DESTINATION, service).range()]


def accounts(im: Imsync, service: str = "group") -> dict[str, Any]:
    """The accounting of a group, and what is wrong with it, as `status` finds them."""
    with (
        closing(Workspace(im.data).user_store()) as users,
        closing(Workspace(im.data).projection(service)) as store,
        Bus.from_url(im.url) as bus,
    ):
        published = users.published()
        view = view_group(bus, DESTINATION, service)
        found = account(users.source, published, published, store.tallies(), view.pending, view.lag)
        return asdict(found) | {"problems": [each.what for each in judge_group(view, found)]}
