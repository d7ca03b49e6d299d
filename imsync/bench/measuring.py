"""The benchmark: who does what when, and what is left behind, which is nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from imsync.bench import doubts, figures
from imsync.bench.field import Field
from imsync.bench.machine import filesystem, fsync_cost, load_average
from imsync.bench.place import Place
from imsync.bench.plan import Plan
from imsync.bench.results import SIDES, Figure, Latency, Machine, Phases, Result, Side, Sync, Work
from imsync.bus import Bus, Endpoint
from imsync.bus.connection import translated
from imsync.embedded import EmbeddedServer
from imsync.errors import ImsyncError, InfrastructureError, RedisRefused, StoreUnusable

PREFIX = "imsync-bench-"
ROUNDS = 5
"""As many rounds are planned; where the time allows it there are more."""
MOST_ROUNDS = 20
SLICES = 3
"""In so many parts each side's latency is measured, in turns."""
LATENCY_SHARE, SYNC_SHARE, SPARE_SHARE = 0.3, 0.02, 0.2
"""Of the whole time; the last beyond it."""
WARM_EVENTS, FEWEST, WORTH_IT, MOST = 20_000, 1_000, 15_000, 300_000
"""Events of the first round, which is not counted; and per round, when nobody says how many."""
BUILD_SECONDS, OVERHEAD_SECONDS = 0.00006, 0.4
"""What it takes to make an event before the clock starts, and to begin and check a round, about."""


Step = Callable[[str, float], None]
"""Is told what comes next, and which share of the time has passed."""


class Bench:
    """One measurement. Use it as a context: when it ends, no process, no file and no key is left.

    Args:
        endpoint: the server; None for one of its own.
        parent: in which folder the temporary one is made; the system's when None.
        interrupted: whether somebody wants it to end; asked several times per second.

    Raises:
        StoreUnusable: there is no room for the temporary folder.
        ImsyncError: the server of its own does not start.
        RedisUnreachable, RedisRefused: nothing was begun.
    """

    def __init__(
        self,
        plan: Plan,
        endpoint: Endpoint | None,
        parent: Path | None = None,
        *,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._plan = plan
        self._given = endpoint
        self._on_step: Step = lambda step, share: None
        self._interrupted = interrupted
        self._began = time.monotonic()
        self.prefix = PREFIX + os.urandom(4).hex()
        """What its keys start with."""
        self._load = load_average()
        self._closing = ExitStack()
        self._parent = parent
        self._field: Field | None = None
        self._published: dict[Side, list[Work]] = {side: [] for side in SIDES}
        self._consumed: dict[Side, list[Work]] = {side: [] for side in SIDES}
        self._latencies: dict[Side, list[list[float]]] = {side: [] for side in SIDES}
        self._made: dict[Side, list[float]] = {side: [] for side in SIDES}
        self._sync: Sync | None = None
        self._phases: Phases | None = None
        self._disk_share: float | None = None
        self._events = 0
        self.left_behind: InfrastructureError | None = None
        """Why its keys are still on the server; None when none is."""

    def __enter__(self) -> Bench:
        try:
            self._set_up()
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    def _close_field(self, field: Field) -> None:
        """Ends the workers. What a server of its own holds goes with it."""
        field.close()
        if not self.machine.embedded:
            try:
                field.delete_keys()
            except InfrastructureError as error:
                self.left_behind = error

    def measure(self, on_step: Step = lambda step, share: None) -> None:
        """Measures, until the time is over: `result` has what was measured by then.

        Args:
            on_step: is told what comes next.

        Raises:
            ImsyncError: something failed, or a row was wrong.
            KeyboardInterrupt: it was interrupted.
        """
        self._on_step = on_step
        try:
            self._measure(self._plan)
        except ImsyncError:
            self._bus.ping()  # which says so when it is the server that is away
            raise

    def _measure(self, plan: Plan) -> None:
        self._step("making the stores")
        field = self._field = Field(self._place, self._bus, plan, self._folder, self._go_on)
        self._closing.callback(self._close_field, field)
        self._step("measuring fsync")
        self._sync = fsync_cost(self._folder, max(0.1, SYNC_SHARE * plan.seconds), self._go_on)
        self._step("warming up")
        fewest = min(FEWEST, plan.events or FEWEST)
        warm = min(plan.events or WARM_EVENTS, max(fewest, int(plan.seconds * 500)))
        first = field.round(warm, 0, with_phases=True)
        self._phases = first.phases
        if first.phases is not None:
            fsyncs = first.phases.batches * self._sync.p50_ms / 1000
            self._disk_share = min(1.0, fsyncs / first.consumed["imsync"].seconds)
        self._measure_latency(field, max(0.2, LATENCY_SHARE * plan.seconds / (2 * SLICES)))
        self._events = plan.events or max(fewest, self._fitting(first.seconds / warm))
        self._step("making the events")
        field.prepare(self._events)
        spare = SPARE_SHARE * plan.seconds  # for a second round: one alone has no spread
        longest, number = 0.0, 0
        while number < MOST_ROUNDS and (not number or self._left() + (number == 1) * spare > longest):
            number += 1
            began = time.monotonic()
            self._step(f"round {number}")
            found = field.round(self._events, number)
            for side in SIDES:
                self._published[side].append(found.published[side])
                self._consumed[side].append(found.consumed[side])
            longest = max(longest, time.monotonic() - began)

    def result(self, *, interrupted: bool = False) -> Result:
        """What was measured until now."""
        found: dict[str, Figure] = {}
        rounds = len(self._consumed["by_hand"])
        if rounds:
            found |= figures.works("publish", self._published["imsync"], self._published["by_hand"])
            found |= figures.works("consume", self._consumed["imsync"], self._consumed["by_hand"])
        latency = None
        if slices := min(map(len, self._latencies.values())):
            ours, theirs = (self._latencies[side][:slices] for side in SIDES)
            found |= figures.latencies(ours, theirs)
            together = [[each for part in side for each in part] for side in (ours, theirs)]
            made: dict[Side, float] = {side: sum(self._made[side][:slices]) / slices for side in SIDES}
            latency = Latency(self._plan.rate, made, len(together[0]), figures.histogram(*together))
        own, server = figures.shares(self._consumed["imsync"]) if rounds else (None, None)
        field = self._field
        result = Result(
            machine=self.machine,
            users=field.users if field else 0,
            rows=field.rows if field else 0,
            events=self._events,
            rounds=rounds,
            seed=self._plan.seed,
            checked_rows=field.checked if field else 0,
            figures=found,
            sync=self._sync,
            phases=self._phases,
            consumer_share=own,
            server_share=server,
            disk_share=self._disk_share,
            limit=None if own is None else figures.limit(own, server, self._disk_share),
            latency=latency,
            timeline=figures.timeline(*(self._consumed[side][-1].progress for side in SIDES)) if rounds else (),
            seconds=time.monotonic() - self._began,
            interrupted=interrupted,
        )
        return replace(result, doubts=[*doubts.before(result.machine), *doubts.after(result)])

    def _fitting(self, seconds: float) -> int:
        """How many events a round may have: rather few rounds than short ones.

        Args:
            seconds: what one event takes, on both sides together.
        """
        for rounds in range(ROUNDS, 2, -1):
            events = int((self._left() / rounds - OVERHEAD_SECONDS) / (seconds + BUILD_SECONDS / rounds))
            if events >= WORTH_IT:
                break
        return min(MOST, events // 1000 * 1000)

    def _measure_latency(self, field: Field, seconds: float) -> None:
        for number in range(SLICES):
            for side in SIDES if number % 2 else SIDES[::-1]:
                self._step(f"latency at {self._plan.rate:,.0f}/s")
                found, made = field.latency(side, seconds, number)
                self._latencies[side].append(found)
                self._made[side].append(made)

    # ── where ────────────────────────────────────────────────────────────────────────────────────────

    def _set_up(self) -> None:
        self._go_on()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
        except OSError as error:
            what = f"{self._parent or tempfile.gettempdir()} cannot be written: {error.strerror}"
            raise StoreUnusable(what, "set TMPDIR, or --data-dir") from error
        self._closing.callback(shutil.rmtree, self._folder, ignore_errors=True)
        endpoint, own = self._given, None
        if endpoint is None:
            own = EmbeddedServer(self._folder / "server")
            self._closing.callback(own.stop)
            endpoint = Endpoint(own.start().url)
        self._place = Place(
            url=endpoint.url,
            username=endpoint.username,
            password=endpoint.password,
            tls_ca_file=str(endpoint.tls_ca_file or ""),
            prefix=self.prefix,
            template=self._folder / "template",
            round_=self._folder / "round",
        )
        self._bus = Bus(endpoint, prefix=self.prefix)
        self._closing.callback(self._bus.close)
        self._bus.ping()
        self._may_use_keys()
        self.machine = Machine(
            server=self._server_name(),
            where=str(endpoint),
            embedded=own is not None,
            folder=str(self._folder),
            filesystem=filesystem(self._folder),
            cores=os.cpu_count() or 1,
            load=self._load,
            python=platform.python_version(),
            sqlite=sqlite3.sqlite_version,
        )

    def _may_use_keys(self) -> None:
        """Raises RedisRefused unless the user may use keys of this prefix."""
        try:
            with translated(str(self._bus.endpoint)):
                self._bus.client.unlink(*self._place.all_keys(()))
        except RedisRefused as error:
            raise RedisRefused(error.message, f"this needs a user who may use all keys {PREFIX}*") from error

    def _server_name(self) -> str:
        try:
            with translated(str(self._bus.endpoint)):
                info: Mapping[str, Any] = cast(Any, self._bus.client).info("server")
        except RedisRefused:
            return "Redis"
        valkey = info.get("valkey_version")
        return f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '')}".strip()

    def _left(self) -> float:
        return self._plan.seconds - (time.monotonic() - self._began)

    def _step(self, step: str) -> None:
        self._go_on()
        self._on_step(step, min(1.0, (time.monotonic() - self._began) / self._plan.seconds))

    def _go_on(self) -> None:
        """Raises KeyboardInterrupt when it was interrupted."""
        if self._interrupted():
            raise KeyboardInterrupt
