"""A world to break: a server, the stores of 200 users, a proxy in between, and real processes that work on them.

A row of the fault matrix is a test that makes a world, breaks it, counts that it broke, heals it, and lets the
checker judge what is left:

    def test_a_consumer_is_killed_before_it_commits(world: World, fault: Fault) -> None:
        row = fault("kill -9 · consumer · before commit")
        consumer = world.consumer(at=[At("before_commit")])     # a process; held when it is about to commit
        world.edit(50)                                          # edits of this process, noted in the history
        world.publish()                                         # relayed by this process, past the proxy
        consumer.reach("before_commit").kill()
        row.reached()
        world.heal()                                            # server, network, held and frozen processes
        world.settle()                                          # relay and consumers until nothing is left, then stop
        row.found(world.check())                                # the test fails if anything is found, or never reached

What there is:

- `world.server` (see `tests.servers.Server`: kill, stop, start, freeze), `world.client` (straight to it).
- `world.proxy` (see `proxy`): every worker talks to Redis through it, unless it is given another `url`. It counts what
  it does in `world.proxy.happened`.
- `world.producer()`, `.relay()`, `.consumer("group")`: start a process. `at=[At(step, do, nth, containing)]` are its
  failpoints (see `steps` for their names). They return a `Worker` (see `nursery`): `reach(step)`, `go_on()`, `kill()`,
  `freeze()`, `thaw()`, `terminate()`, `wait()`, `finish()`, `log`, `steps`. Everything else that `ProducerJob`,
  `RelayJob` and `ConsumerJob` take (see `workers`) may be given by name.
- `world.command("verify", "--json")`: a command of imsync, in a process of its own.
- `world.edit(n)`, `.edit_users(ids)`, `.delete(user)`, `.publish()`: the same work, done at once in this process.
- `world.inject(body, expects="dead")`: an entry that is no event of ours; `expects="settled"`: an event that may be.
- `world.watching(worker)`: a block in which nothing can be done, so that little may be used and little be said.
- `world.expect(condition, what)`: progress that must be made within a time; `world.pending()`: who holds what.
- `world.heal()`, `world.settle()`, `world.check()`; `world.settle(by_living=True)` starts nobody: those that have
  survived must do it. What does not come to rest in time is a violation (`no_progress`).
- `world.stores / "group.db"`: the files. `world.history`: what was asked for; see there for `forgotten` (a user store
  was restored) and `touched` (a repair). `world.rebuilt.add("group")`: a projection was rebuilt, so that it has effects
  that it has not settled; `changelog.install` puts the change log into a file that was made anew.

Randomness comes from the fixture `rng` (of `--seed` and the test's name), amounts from `scaled(200)` (`--scale`).
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from redis import Redis

from imsync.bus import Bus, Endpoint, Event
from imsync.bus.codec import encode
from imsync.im.demo_data import generate
from imsync.im.events import DESTINATION
from imsync.im.relay import Relay
from imsync.im.setup import make_stores
from imsync.im.workspace import PROJECTIONS, Workspace
from tests.faults import changelog
from tests.faults.checker import Violation, check, check_effort, check_exit
from tests.faults.evidence import (
    STREAM,
    Evidence,
    User,
    event_id_of,
    load_copies,
    load_group,
    load_projection,
    load_source,
    load_stream,
    parts,
    rows,
)
from tests.faults.history import History, Injected
from tests.faults.nursery import Nursery, Worker
from tests.faults.proxy import Proxy
from tests.faults.steps import At
from tests.faults.workers import CommandJob, ConsumerJob, Editor, ProducerJob, RelayJob
from tests.servers import POLL_SECONDS, Server

USERS, GROUPS = 200, 40
FOREIGN = "urn:test:somebody-else"


@dataclass
class Template:
    """Stores to copy, made once: demo data, with change logs."""

    folder: Path
    began: Mapping[int, User] = field(default_factory=dict)
    remarks: Mapping[str, Mapping[tuple[int, int], str]] = field(default_factory=dict)

    @classmethod
    def make(cls, folder: Path, *, users: int = USERS, groups: int = GROUPS) -> Template:
        """Makes the stores in a folder that does not exist yet."""
        make_stores(Workspace(folder), generate(users=users, groups=groups))
        for service in PROJECTIONS:
            changelog.install(folder / f"{service}.db", service)
        remarks = {
            service: {(copy.user, copy.place): copy.remark for copy in load_copies(folder / f"{service}.db", service)}
            for service in PROJECTIONS
        }
        return cls(folder, load_source(folder / "user.db").users, remarks)

    def copy(self, to: Path) -> Path:
        """A copy of the stores, in a folder that does not exist yet."""
        to.mkdir(mode=0o700, parents=True)
        for name in ("user", *PROJECTIONS):
            (to / f"{name}.db").write_bytes((self.folder / f"{name}.db").read_bytes())
            (to / f"{name}.db").chmod(0o600)
        return to


class World:
    """See the top of this file.

    Args:
        folder: for everything that it writes.
        seed: what the edits of this process begin with.
        proxied: whether workers talk to the server through the proxy.
    """

    def __init__(
        self, folder: Path, template: Template, server: Server, nursery: Nursery, *, seed: object, proxied: bool = True
    ) -> None:
        self.server = server
        self.nursery = nursery
        self.template = template
        self.stores = template.copy(folder / "stores")
        self.history = History(folder / "history.jsonl")
        self.services: tuple[str, ...] = tuple(PROJECTIONS)
        """Whose groups exist and are judged."""
        self.found: list[Violation] = []
        """Violations that were found on the way."""
        self.rebuilt: set[str] = set()
        self.patience = 20.0
        """How long, in seconds, anything may take that must come about."""
        self.mutants: tuple[str, ...] = ()
        """Bugs that are planted in every worker that is started from now on."""
        self.consumer_options: dict[str, Any] = {}
        """Options of every consumer that is started from now on, besides its own."""
        self.relay_options: dict[str, Any] = {}
        """Arguments of every `Relay` that is started from now on, besides its own."""
        self._seed = seed
        self._proxied = proxied
        self._proxy: Proxy | None = None
        self._listening = proxied
        for service in self.services:
            self.bus.stream(DESTINATION).create_group(service)

    # ── what there is ────────────────────────────────────────────────────────────────────────────────

    @property
    def proxy(self) -> Proxy:
        """The proxy before the server."""
        if self._proxy is None:
            self._proxy = Proxy(self.server)
        return self._proxy

    @property
    def url(self) -> str:
        """Where workers find Redis."""
        return self.proxy.url if self._proxied else self.server.url

    @cached_property
    def bus(self) -> Bus:
        """A bus straight to the server."""
        return Bus(Endpoint(self.server.url))

    @cached_property
    def client(self) -> Redis:
        """A client straight to the server."""
        return self.server.client()

    @cached_property
    def _editor(self) -> Editor:
        return Editor(Workspace(self.stores).user_store(), self.history, name="here", seed=self._seed)

    @property
    def users(self) -> list[int]:
        """The ids of those who can be edited, in rising order."""
        return sorted(user for user, row in self.template.began.items() if not row.deleted)

    @property
    def living(self) -> list[Worker]:
        """The workers that have not ended."""
        return [worker for worker in self.nursery.workers if worker.alive]

    # ── work done here ───────────────────────────────────────────────────────────────────────────────

    def edit(self, count: int, *, per_transaction: int = 5) -> int:
        """Makes so many random edits; how many were accepted."""
        return self._editor.edit(count, per_transaction=per_transaction)

    def edit_users(self, users: Sequence[int]) -> int:
        """Makes an edit of each of these users, in one transaction."""
        return self._editor.edit_users(users)

    def delete(self, user: int) -> None:
        """Deletes a user."""
        self._editor.delete(user)

    def publish(self, **relay: Any) -> int:
        """Relays the outbox straight to the server; how many rows were noted as sent.

        Args:
            relay: arguments of `Relay`, such as `batch` and `order`.
        """
        store = Workspace(self.stores).user_store()
        try:
            return Relay(store, self.bus.publisher(DESTINATION), **relay).deliver(2**63 - 1)
        finally:
            store.close()

    def inject(self, body: bytes | Mapping[bytes, bytes], *, expects: str = "dead") -> str:
        """Writes an entry into the stream; its id.

        Args:
            body: what its field `event` holds, or all its fields.
            expects: what must become of it in every group: `dead`, or `settled` for any outcome.
        """
        fields: Any = {b"event": body} if isinstance(body, bytes) else body
        entry_id: Any = self.client.xadd(STREAM, fields)
        self.history.injected(Injected(entry_id.decode(), expects))
        return str(entry_id.decode())

    def inject_event(self, event: Event, *, source: str = FOREIGN, expects: str = "settled") -> str:
        """Writes an event that our outbox has not written; its entry id. It may take effect."""
        body = encode(event, source=source)
        data = json.loads(body)["data"]
        names = {"nickName": "nick_name", "headImage": "head_image", "headImageThumb": "head_image_thumb"}
        values = {name: data[wire] for wire, name in names.items() if wire in data}
        entry_id: Any = self.client.xadd(STREAM, {b"event": body})
        self.history.injected(
            Injected(entry_id.decode(), expects, data.get("id", 0), values, deletes="nickName" not in data)
        )
        assert event_id_of(body) is not None
        return str(entry_id.decode())

    def republish(self) -> int:
        """Writes every event that is in the stream into it again; how many."""
        entries: Any = self.client.xrange(STREAM)
        for _, fields in entries:
            self.client.xadd(STREAM, fields)
        return len(entries)

    # ── processes ────────────────────────────────────────────────────────────────────────────────────

    def producer(self, *, at: Sequence[At] = (), **job: Any) -> Worker:
        """Starts a producer: 50 edits, unless told otherwise. See `ProducerJob`."""
        defaults: dict[str, Any] = {
            "data_dir": self.stores,
            "history": self.history.path,
            "name": f"p{secrets.token_hex(3)}",
            "seed": self._seed,
        }
        return self.nursery.start(ProducerJob(**(defaults | job), steps=tuple(at)), mutants=self.mutants)

    def relay(self, *, at: Sequence[At] = (), **job: Any) -> Worker:
        """Starts a relay. See `RelayJob`."""
        values: dict[str, Any] = {"data_dir": self.stores, "url": self.url} | job
        values["relay"] = self.relay_options | values.get("relay", {})
        return self.nursery.start(RelayJob(**values, steps=tuple(at)), mutants=self.mutants)

    def consumer(self, service: str = "group", *, at: Sequence[At] = (), **job: Any) -> Worker:
        """Starts a consumer. See `ConsumerJob`; `options` are changes to quick ones."""
        values: dict[str, Any] = {"data_dir": self.stores, "url": self.url, "service": service} | job
        values["options"] = self.consumer_options | values.get("options", {})
        self._listening &= self._proxy is not None and values["url"] == self._proxy.url
        return self.nursery.start(ConsumerJob(**values, steps=tuple(at)), mutants=self.mutants)

    def command(self, *arguments: str, within: float = 30.0) -> dict[str, Any]:
        """Runs a command of imsync on these stores and the server; its `code`, `out` and `err`."""
        words = [*arguments, "--data-dir", str(self.stores), "--url", self.url]
        result: dict[str, Any] = self.nursery.start(CommandJob(words)).finish(within)
        return result

    @contextmanager
    def watching(self, *workers: Worker, cpu_share: float = 0.3, lines_per_second: float = 30.0) -> Iterator[None]:
        """In this block the workers can do nothing: what they use and say is bounded. Give it a second or more."""
        began = time.monotonic()
        before = [(worker, worker.cpu_seconds(), len(worker.log.splitlines())) for worker in workers]
        yield
        seconds = time.monotonic() - began
        for worker, cpu, lines in before:
            self.found += check_effort(
                worker.label,
                seconds=seconds,
                cpu_seconds=worker.cpu_seconds() - cpu,
                log_lines=len(worker.log.splitlines()) - lines,
                cpu_share=cpu_share,
                lines_per_second=lines_per_second,
            )

    @contextmanager
    def write_lock(self, store: str = "group", *, patience: float = 5.0) -> Iterator[sqlite3.Connection]:
        """Holds the write lock of a store; another process has it as long as the block lasts.

        Raises:
            sqlite3.OperationalError: somebody else has it, and keeps it for longer than `patience` seconds.
        """
        with closing(sqlite3.connect(self.stores / f"{store}.db", isolation_level=None, timeout=patience)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            yield lock
            lock.execute("ROLLBACK")

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────

    def heal(self) -> None:
        """The server runs, the network is as it should be, nobody is frozen or held."""
        if not self.server.running:
            self.server.start()
        if self._proxy is not None:
            self._proxy.heal()
        for worker in self.living:
            worker.go_on(for_good=True)
            worker.thaw()

    def settle(self, within: float | None = None, *, by_living: bool = False, stop: bool = True) -> float:
        """Lets relays and consumers work until nothing is left, then stops all workers; the seconds that it took.

        Args:
            within: seconds; `patience` when None.
            by_living: starts none. Otherwise those that are missing are started.
            stop: whether the workers are told to stop then, and must do so well.
        """
        began = time.monotonic()
        within = self.patience if within is None else within
        if not by_living:
            self._hire()
        while left := self.left():
            if time.monotonic() - began > within:
                self.found.append(Violation("no_progress", "world", f"{left} after {within:g} s; {self._logs()}"))
                break
            time.sleep(POLL_SECONDS)
        seconds = time.monotonic() - began
        if stop:
            self.stop()
        return seconds

    def expect(self, condition: Callable[[], object], what: str, within: float | None = None) -> bool:
        """Waits until a condition is true; if it is not in time, that is a violation (`no_progress`)."""
        within = self.patience if within is None else within
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                self.found.append(Violation("no_progress", "world", f"{what}: not within {within:g} s; {self._logs()}"))
                return False
            time.sleep(POLL_SECONDS)
        return True

    def pending(self, service: str = "group") -> dict[str, str]:
        """Which entries are pending in a group, and who holds them."""
        return dict(load_group(self.client, service).pending)

    def stop(self, within: float | None = None) -> None:
        """Tells all workers to stop, and waits until they have, for at most half of `patience`."""
        within = self.patience / 2 if within is None else within
        workers = self.living
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                code: int | None = worker.wait(within)
            except AssertionError:
                code = None
                worker.kill()
            self.found += check_exit(worker.label, code, worker.log)

    def left(self) -> str:
        """What is still to be done, in words; empty when the world is at rest."""
        ((unsent,),) = rows(self.stores / "user.db", "SELECT count(*) FROM outbox WHERE sent_ms IS NULL")
        if unsent:
            return f"{unsent} unsent"
        known: Any = self.client.xinfo_groups(STREAM) if self.client.exists(STREAM) else []
        groups = {info["name"].decode(errors="replace"): info for info in known}
        newest: Any = self.client.xrevrange(STREAM, count=1) if groups else []
        for service in self.services:
            if service not in groups:
                return f"group {service} is missing"
            if groups[service]["pending"]:
                return f"{groups[service]['pending']} pending in group {service}"
            delivered = groups[service]["last-delivered-id"].decode()
            if newest and parts(newest[0][0].decode()) > parts(delivered):
                return f"undelivered entries after {delivered} in group {service}"
            if late := rows(self.stores / f"{service}.db", "SELECT user_id FROM fan_out"):
                return f"fan-outs of {late} in group {service}"
        return ""

    def evidence(self) -> Evidence:
        """What there is to be judged."""
        return Evidence(
            story=self.history.read(),
            began=self.template.began,
            source=load_source(self.stores / "user.db"),
            projections={service: load_projection(self.stores / f"{service}.db", service) for service in self.services},
            groups={service: load_group(self.client, service) for service in self.services},
            stream=load_stream(self.client),
            remarks=self.template.remarks,
            acknowledged=self._proxy.acknowledged if self._proxy and self._listening else None,
            rebuilt=frozenset(self.rebuilt),
        )

    def check(self, *, also: Sequence[str] = (), without: Sequence[str] = ()) -> list[Violation]:
        """All violations, those that were found on the way included.

        Args:
            also: rules of `checker.STRICT` that hold here besides.
            without: rules that this fault breaks by its nature. Say why where you use it.
        """
        found = [*self.found, *check(self.evidence(), also=also)]
        return [violation for violation in found if violation.name not in without]

    def close(self) -> None:
        """Ends what it has started, and closes its files."""
        self.nursery.close()
        if self._proxy is not None:
            self._proxy.close()
        self.bus.close()
        self.client.close()
        self.history.close()
        if "_editor" in self.__dict__:
            self._editor.close()

    def _hire(self) -> None:
        """Starts whoever is missing."""
        jobs = [worker.job for worker in self.living]
        if not any(isinstance(job, RelayJob) for job in jobs):
            self.relay()
        for service in self.services:
            if not any(isinstance(job, ConsumerJob) and job.service == service for job in jobs):
                self.consumer(service)

    def _logs(self) -> str:
        return "; ".join(f"{worker}: {' / '.join(worker.log.splitlines()[-2:])}" for worker in self.living)


MakeWorld = Callable[..., World]
"""Makes a world: `make_world(appendonly=True, maxmemory="2mb", proxied=False)`. The type of the fixture."""
