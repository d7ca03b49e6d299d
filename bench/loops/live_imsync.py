"""Edits through the user store, the outbox and a relay that sends each at once, and the consumer that applies them.
Two processes:

    python -m bench.loops.live_imsync edit URL USER.DB RATE COUNT [BIG_USER]
    python -m bench.loops.live_imsync follow URL GROUP.DB COUNT

Both print the times of their commits by nickname, which every edit has its own of.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from bench.locks import LockTimes
from bench.loops.pacing import fields, now_us, paced
from imsync.bus import Bus, ConsumerOptions, Counts, Outcome, Received
from imsync.bus.deferred import finish
from imsync.bus.garbage import collect_rarely
from imsync.im.events import DESTINATION, IMBaseEvent, User2GroupEvent
from imsync.im.group_store import GroupStore
from imsync.im.relay import Relay
from imsync.im.user_store import ProfileEdit, UserStore


def edit(url: str, path: str, rate: str, count: str, big: str = "0") -> None:
    """Edits at a steady rate."""
    times: dict[str, int] = {}
    store = UserStore(Path(path))
    user_ids = [user_id for user_id in store.active_ids() if user_id != int(big)]
    with Bus.from_url(url) as bus:
        relay = Relay(store, bus.publisher(DESTINATION), at_once=True)
        for number, user_id in paced(user_ids, float(rate), int(count), often=int(big) or None):
            nick_name, image, thumb = fields(number)
            profile = ProfileEdit(user_id=user_id, nick_name=nick_name, head_image=image, head_image_thumb=thumb)
            with relay.standing_by():
                made = store.edit_many([profile])
                times[nick_name] = now_us()
                relay.deliver(made.last_seq)
    print(json.dumps({"times": times}))


class Timed(GroupStore):
    """A group store that notes when it has committed what."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.times: dict[str, int] = {}

    def apply(self, batch: Sequence[Received[IMBaseEvent]]) -> list[Outcome]:
        """As the group store does it."""
        outcomes = super().apply(batch)
        now = now_us()
        for received in batch:
            if not received.event.final:
                self.times[cast(User2GroupEvent, received.event).nick_name] = now
        return outcomes


def follow(url: str, path: str, count: str) -> None:
    """Applies so many events."""
    locks = LockTimes()
    with locks.of_connections():
        store = Timed(Path(path))
        with Bus.from_url(url) as bus:

            def on_batch(counts: Counts) -> None:
                if counts.events >= int(count):
                    consumer.stop()

            consumer = bus.consumer(
                DESTINATION,
                group="group",
                events=store.events,
                handler=store,
                options=ConsumerOptions(),
                on_batch=on_batch,
            )
            collect_rarely()  # as `imsync consume` does
            consumer.run()
        finish(store)  # stopped behind the last event, it may have left some of the user in very many groups
        store.close()
    print(json.dumps({"times": store.times, "longest_lock_ms": locks.longest_seconds * 1000}))


COMMANDS: dict[str, Callable[..., None]] = {"edit": edit, "follow": follow}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
