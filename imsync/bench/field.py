"""Where both sides take their turns: the workers, their stores, and the keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from imsync.bench import figures, scene
from imsync.bench.crew import Worker
from imsync.bench.place import BY_HAND, DESTINATION, GROUP, Place
from imsync.bench.plan import Plan
from imsync.bench.results import SIDES, Phases, Side, Work
from imsync.bench.scene import Stores
from imsync.bus import Bus
from imsync.bus.connection import translated
from imsync.bus.stream import Stream
from imsync.errors import ImsyncError, InfrastructureError
from imsync.im.user_store import Profile

WARM_EDITS = 20
"""Edits before those whose latency counts."""


@dataclass(frozen=True, slots=True)
class Round:
    """What both did once. `seconds`: for how long they were at work."""

    published: Mapping[Side, Work]
    consumed: Mapping[Side, Work]
    phases: Phases | None

    @property
    def seconds(self) -> float:
        """For how long they were at work."""
        return sum(each.seconds for side in SIDES for each in (self.published[side], self.consumed[side]))


class Field:
    """Makes the stores and starts the workers. To be closed, which ends them.

    Args:
        folder: for the stores and what the workers say.
        go_on: called several times per second; what it raises ends what is going on.

    Raises:
        StoreUnusable: the folder cannot be written.
    """

    def __init__(self, place: Place, bus: Bus, plan: Plan, folder: Path, go_on: Callable[[], None]) -> None:
        self._place = place
        self._bus = bus
        self._plan = plan
        self._template, self._stores = Stores(place.template), Stores(place.round_)
        self._closing = ExitStack()
        self._consumers: list[str] = []
        self._events: tuple[int, list[Profile]] = (0, [])
        self.checked = 0
        """How many member rows were compared so far."""
        self.rows = scene.make(self._template, users=plan.users, seed=plan.seed)
        """How many member rows there are."""
        self._before = scene.profiles_of(self._template.user)
        self._crew: dict[tuple[Side, str], Worker] = {}
        try:
            for side in SIDES:
                for role in ("producer", "consumer"):
                    worker = Worker(side, place, folder / f"{side}-{role}.log", go_on)
                    self._closing.callback(worker.close)
                    self._crew[side, role] = worker
        except BaseException:
            self.close()
            raise

    @property
    def users(self) -> int:
        """How many users there are."""
        return len(self._before)

    def close(self) -> None:
        """Ends the workers."""
        self._closing.close()

    def delete_keys(self) -> None:
        """Deletes every key that both sides may have written.

        Raises:
            RedisUnreachable, RedisRefused: they are still there.
        """
        with translated(str(self._bus.endpoint)):
            self._bus.client.unlink(*self._place.all_keys(self._consumers))

    def prepare(self, events: int) -> None:
        """Has both make the events of a round, unless they have them."""
        if self._events[0] == events:
            return
        seed = self._plan.seed + 1
        for side in SIDES:
            self._crew[side, "producer"].ask("prepare", events=events, seed=seed)
        changes = scene.edits(self._before, count=events, seed=seed)
        self._events = events, scene.history(self._before, changes)
        for side in SIDES:
            self._crew[side, "producer"].answer()

    def round(self, events: int, number: int, *, with_phases: bool = False) -> Round:
        """Both publish so many events, and both apply those that imsync has published.

        Args:
            number: who begins changes from one to the next.

        Raises:
            ImsyncError: a row was wrong afterwards, or something failed.
        """
        self.prepare(events)
        self.delete_keys()
        order = SIDES if number % 2 else SIDES[::-1]
        published: dict[Side, Work] = {side: _work(self._done(side, "producer", "publish")) for side in order}
        self._expect(self._bus.stream(DESTINATION), events)
        self._expect(self._by_hand_stream(), events)
        self._start_afresh(self._bus.stream(DESTINATION))
        consumed: dict[Side, Work] = {}
        phases = None
        for side in order:
            values = {"name": self._consumer(), "with_phases": with_phases} if side == "imsync" else {}
            before = self._server_cpu()
            found = self._done(side, "consumer", "drain", **values)
            after = self._server_cpu()
            server = after - before if after is not None and before is not None else None
            consumed[side] = _work(found, server)
            if found["events"] != events or found.get("settled", events) != events:
                raise ImsyncError(f"{found['events']:,} of {events:,} events were consumed", "this is a defect")
            if with_phases and side == "imsync":
                phases = figures.phases(consumed[side].seconds, [tuple(each) for each in found["batches"]])
        for path in (self._stores.group, self._stores.by_hand):
            self.checked += scene.check(path, self._before, self._events[1], self.rows)
        return Round(published, consumed, phases)

    def latency(self, side: Side, seconds: float, number: int) -> tuple[list[float], float]:
        """Edits at the rate of the plan; for each the milliseconds from its commit to that of its copies, and how many
        were made per second.

        Args:
            number: each has edits of its own.

        Raises:
            ImsyncError: a row was wrong afterwards, or something failed.
        """
        rate, seed = self._plan.rate, self._plan.seed + 2 + number
        count = max(1, round(rate * seconds))
        self.delete_keys()
        self._start_afresh(self._bus.stream(DESTINATION) if side == "imsync" else self._by_hand_stream())
        consumer = self._crew[side, "consumer"]
        values = {"name": self._consumer()} if side == "imsync" else {}
        consumer.ask("follow", count=WARM_EDITS + count, **values)
        consumer.answer()
        commits = self._done(side, "producer", "edit", count=count, rate=rate, seed=seed, warm=WARM_EDITS)["commits"]
        copied: dict[tuple[int, int], float] = {}
        for user_id, version, at in consumer.answer()["copies"]:
            copied.setdefault((user_id, version), at)
        measured = commits[WARM_EDITS:]
        if len(measured) != count or any((user_id, version) not in copied for user_id, version, _ in measured):
            raise ImsyncError("edits were made whose copies never came", "this is a defect")
        changes = scene.edits(self._before, count=WARM_EDITS + count, seed=seed)
        path = self._stores.group if side == "imsync" else self._stores.by_hand
        self.checked += scene.check(path, self._before, scene.history(self._before, changes), self.rows)
        lasted = measured[-1][2] - measured[0][2] + 1 / rate
        return [(copied[user_id, version] - at) * 1000 for user_id, version, at in measured], count / lasted

    def _done(self, side: Side, role: str, job: str, **values: object) -> Mapping[str, Any]:
        worker = self._crew[side, role]
        worker.ask(job, **values)
        return worker.answer()

    def _consumer(self) -> str:
        """A name that no consumer had before."""
        self._consumers.append(f"bench-{len(self._consumers) + 1}")
        return self._consumers[-1]

    def _by_hand_stream(self) -> Stream:
        return Stream(self._bus.client, self._place.by_hand, str(self._bus.endpoint))

    def _start_afresh(self, stream: Stream) -> None:
        scene.fresh(self._template, self._stores)
        for group in (GROUP, BY_HAND):
            stream.create_group(group)

    def _expect(self, stream: Stream, events: int) -> None:
        if (found := stream.length()) != events:
            raise ImsyncError(f"{stream.key} has {found:,} of {events:,} events", "does somebody trim or delete it?")

    def _server_cpu(self) -> float | None:
        """Processor seconds that the server has used; None when it does not tell."""
        try:
            with translated(str(self._bus.endpoint)):
                info: Mapping[str, Any] = cast(Any, self._bus.client).info("cpu")
            return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        except (InfrastructureError, KeyError, ValueError):
            return None


def _work(found: Mapping[str, Any], server_cpu_seconds: float | None = None) -> Work:
    return Work(
        found["events"],
        found["seconds"],
        found["cpu_seconds"],
        found["peak_mib"],
        [(at, n) for at, n in found["progress"]],
        server_cpu_seconds,
    )
