"""The story that `imsync demo` tells, with real processes on a real server, in a temporary folder.

Edits flow, a consumer is killed with SIGKILL while it holds entries, a survivor takes them over, and every copy is
compared with its source.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import imsync
from imsync.bus import Bus
from imsync.bus.inspection import view_group
from imsync.embedded import EmbeddedServer
from imsync.errors import ImsyncError
from imsync.im.demo_data import generate
from imsync.im.events import DESTINATION
from imsync.im.flight import GroupFlight
from imsync.im.health import account
from imsync.im.setup import Made, make_stores
from imsync.im.verify import Verdict, verify
from imsync.im.wording import counted
from imsync.im.workspace import PROJECTIONS, Workspace
from imsync.store.settlement import Percentiles

HEARTBEAT_MS = 500
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.1
WORTH_KILLING = 20
"""So many entries should the victim hold: its batch is then in the middle."""
VICTIM, SURVIVOR = "group-1", "group-2"


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the story is: users and groups, steady edits at a rate per second, then a burst of edits."""

    users: int = 10_000
    groups: int = 2_000
    edits: int = 12_000
    rate: float = 2_000.0
    burst: int = 20_000
    seed: int = 7


@dataclass(frozen=True, slots=True)
class Glance:
    """The numbers at one moment. `unfinished`: of how many users the fan-out is under way."""

    seconds: float
    published: int
    settled: Mapping[str, int]
    undelivered: Mapping[str, int | None]
    pending: Mapping[str, int]
    unfinished: int
    alive: Sequence[str]


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended. `taken_over`: the victim's entries that the survivor took over; `events_per_second`: how fast
    the burst went through edit, outbox, stream and both projections.
    """

    made: Made
    events: int
    applied: int
    superseded: int
    held_by_victim: int
    taken_over: int
    staleness: Percentiles
    events_per_second: float
    unexplained: int
    verdict: Verdict
    seconds: float

    @property
    def proved(self) -> bool:
        """Whether every copy is right and every event accounted for."""
        return not self.verdict.drift and not self.verdict.in_flight and not self.unexplained


class Story:
    """One telling. Use it as a context: when it ends, no process and no file is left.

    Args:
        say: called with a line whenever something happens.
        show: called with the numbers while waiting.
        interrupted: whether somebody wants it to end; asked several times per second. A signal handler that raises
            could hit the very moment in which a process has been started and is not yet known here.
    """

    def __init__(
        self,
        scale: Scale,
        say: Callable[[str], None],
        show: Callable[[Glance], None],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._scale = scale
        self._print = say
        self._show = show
        self._interrupted = interrupted
        self._began = time.monotonic()
        self._folder = Path(tempfile.mkdtemp(prefix="imsync-demo-"))
        self._workspace = Workspace(self._folder / "data")
        self._server = EmbeddedServer(self._workspace.data_dir)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Story:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            for process in self._processes.values():
                if process.poll() is None:
                    process.kill()
                process.wait()
            self._server.stop()
        finally:
            shutil.rmtree(self._folder)

    def tell(self) -> Ending:
        """Tells it, from the first row to the proof.

        Raises:
            ImsyncError: a process failed, or something did not happen in time.
            KeyboardInterrupt: it was interrupted.
        """
        scale = self._scale
        self._go_on()
        status = self._server.start()
        self._say(f"{status.version} started on a unix socket, pid {status.pid}")
        data = generate(users=scale.users, groups=scale.groups, seed=scale.seed)
        made = make_stores(self._workspace, data, on_step=self._go_on)
        self._say(f"{made.users:,} users, {made.members:,} group members, {made.friends:,} friendships")
        with Bus.from_url(status.url) as bus:
            for service in PROJECTIONS:
                bus.stream(DESTINATION).create_group(service)
            for name, service in ((VICTIM, "group"), (SURVIVOR, "group"), ("friend-1", "friend")):
                self._start(name, "consume", service, "--name", name, "--json")
            self._say("two group consumers and a friend consumer started, each a process of its own")
            return self._act(bus, made)

    def _act(self, bus: Bus, made: Made) -> Ending:
        scale = self._scale
        self._publish("producer", scale.edits, scale.rate, seed=scale.seed)
        self._say(f"a producer makes {scale.edits:,} edits, {scale.rate:,.0f} per second")
        self._wait(bus, lambda glance: glance.published >= scale.edits // 2)
        held = self._kill_while_it_holds_entries(bus, VICTIM)
        self._say(
            f"kill -9 {VICTIM}, in the middle of a batch: it leaves {counted(held, 'entry', 'entries')} unacknowledged"
        )
        self._wait(bus, lambda glance: self._has_ended("producer") and self._at_rest(glance))
        self._finish("producer")
        group_store = self._workspace.projection("group")
        staleness = group_store.staleness()
        group_store.close()
        self._say(f"{SURVIVOR} has taken them over: nothing undelivered, nothing pending")
        began = time.monotonic()
        self._publish("burst", scale.burst, None, seed=scale.seed + 1)
        self._say(f"a burst of {scale.burst:,} edits, as fast as they can be made")
        self._wait(bus, lambda glance: self._has_ended("burst") and self._at_rest(glance))
        burst_seconds = time.monotonic() - began
        self._finish("burst")
        counts = [self._stop(SURVIVOR), self._stop("friend-1")]
        self._say("the consumers were told to stop, and ended by themselves")
        return self._prove(bus, made, held, counts[0], staleness, scale.burst / burst_seconds)

    def _prove(
        self,
        bus: Bus,
        made: Made,
        held: int,
        survivor: Mapping[str, int],
        staleness: Percentiles,
        events_per_second: float,
    ) -> Ending:
        users = self._workspace.user_store()
        projections = self._workspace.projections()
        verdict = verify(
            users, projections, lambda group: GroupFlight(bus.stream(DESTINATION), group), on_page=self._go_on
        )
        accounts = [
            account(users.source, users.published(), users.published(), p.tallies(), view.pending, view.lag)
            for p in projections
            for view in (view_group(bus, DESTINATION, p.name),)
        ]
        users.close()
        for projection in projections:
            projection.close()
        return Ending(
            made=made,
            events=accounts[0].published,
            applied=accounts[0].applied,
            superseded=accounts[0].superseded,
            held_by_victim=held,
            taken_over=survivor["taken_over"],
            staleness=staleness,
            events_per_second=round(events_per_second, 1),
            unexplained=sum(1 if each.unexplained is None else abs(each.unexplained) for each in accounts),
            verdict=verdict,
            seconds=round(time.monotonic() - self._began, 1),
        )

    def _say(self, line: str) -> None:
        self._go_on()
        self._print(line)

    def _go_on(self, step: object = None) -> None:
        """Raises KeyboardInterrupt when it was interrupted."""
        if self._interrupted():
            raise KeyboardInterrupt

    # ── processes ────────────────────────────────────────────────────────────────────────────────────

    def _start(self, name: str, *arguments: str) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("IMSYNC_")}
        environment |= {
            "IMSYNC_CONFIG": os.devnull,  # the demo is the same whatever is configured here
            "IMSYNC_DATA_DIR": str(self._workspace.data_dir),
            "IMSYNC_CONSUMER_HEARTBEAT_MS": str(HEARTBEAT_MS),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(imsync.__file__).parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
            ),
        }
        self._processes[name] = subprocess.Popen(
            [sys.executable, "-m", "imsync", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self._folder / f"{name}.log").open("wb"),
            start_new_session=True,  # a Ctrl-C in the terminal is for the demo, which ends them in order
        )

    def _publish(self, name: str, count: int, rate: float | None, *, seed: int) -> None:
        pace = [] if rate is None else ["--rate", str(rate)]
        self._start(name, "publish", "user-update", "--count", str(count), *pace, "--seed", str(seed), "--json")

    def _finish(self, name: str) -> dict[str, int]:
        """Waits for the end of a process and reads its result."""
        output, _ = self._processes[name].communicate(timeout=PATIENCE_SECONDS)
        if self._processes[name].returncode:
            raise ImsyncError(f"{name} failed: {self._last_words(name)}")
        result: dict[str, int] = json.loads(output)
        return result

    def _has_ended(self, name: str) -> bool:
        return self._processes[name].poll() is not None

    def _stop(self, name: str) -> dict[str, int]:
        self._processes[name].send_signal(signal.SIGTERM)
        return self._finish(name)

    def _kill_while_it_holds_entries(self, bus: Bus, name: str) -> int:
        """SIGSTOP first, so that what it holds cannot change between the look and the SIGKILL."""
        process = self._processes[name]
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self._go_on()
            process.send_signal(signal.SIGSTOP)
            held = bus.stream(DESTINATION).pending_summary("group").by_consumer.get(name, 0)
            if held >= (WORTH_KILLING if time.monotonic() < deadline - PATIENCE_SECONDS / 2 else 1):
                process.kill()
                process.wait()
                return held
            process.send_signal(signal.SIGCONT)
            time.sleep(POLL_SECONDS / 10)
        raise ImsyncError(f"{name} never held an entry: {self._last_words(name)}")

    def _last_words(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    # ── numbers ──────────────────────────────────────────────────────────────────────────────────────

    def _at_rest(self, glance: Glance) -> bool:
        nothing_comes = not any(glance.pending.values()) and all(lag == 0 for lag in glance.undelivered.values())
        return nothing_comes and not glance.unfinished

    def _wait(self, bus: Bus, condition: Callable[[Glance], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self._go_on()
            glance = self._glance(bus)
            self._show(glance)
            if condition(glance):
                return
            for name, process in self._processes.items():
                if process.poll() not in (None, 0, -signal.SIGKILL):
                    raise ImsyncError(f"{name} failed: {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise ImsyncError("the demo is not getting on", "is this machine very busy? try again")
            time.sleep(POLL_SECONDS)

    def _glance(self, bus: Bus) -> Glance:
        users = self._workspace.user_store()
        published = users.published()
        users.close()
        views = [view_group(bus, DESTINATION, service) for service in PROJECTIONS]
        settled, unfinished = {}, 0
        for service in PROJECTIONS:
            projection = self._workspace.projection(service)
            settled[service] = sum(projection.tallies().values())
            unfinished += projection.put_off.users
            projection.close()
        return Glance(
            seconds=time.monotonic() - self._began,
            published=published,
            settled=settled,
            undelivered={view.group: view.lag for view in views},
            pending={view.group: view.pending for view in views},
            unfinished=unfinished,
            alive=[name for view in views for name in view.alive],
        )
