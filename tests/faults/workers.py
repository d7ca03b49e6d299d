"""What the workers of the fault tests do: real producers, relays and consumers, each a process of its own.

A job is a value: it is sent to the process, and its `run` does the work there. See `nursery` for how it is started.
"""

from __future__ import annotations

import io
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import imsync.cli
import imsync.cli.app
from imsync.bus import Backoff, Bus, ConsumerOptions, RetryPolicy
from imsync.cli.signals import stopping
from imsync.errors import ImsyncError
from imsync.im.events import DESTINATION
from imsync.im.relay import Relay
from imsync.im.user_store import ProfileEdit, UserStore
from imsync.im.workspace import Workspace
from tests.faults.history import Attempt, History
from tests.faults.steps import At, Failpoints, SteppingEndpoint

log = logging.getLogger("tests.faults")

STOP_SECONDS = 10.0
BACKOFF = Backoff(first_seconds=0.01, longest_seconds=0.1)


class Context(Protocol):
    """What a job is given in its process."""

    failpoints: Failpoints

    def ready(self) -> None:
        """Tells the test that signals are heard from now on."""
        ...

    def stopped_by(self, stop: Callable[[], None]) -> None:
        """Tells the test that a signal has called `stop`, and calls it."""
        ...


class Job(Protocol):
    """Something to do in a process of its own. Pickled, so a class at the top of a module."""

    steps: Sequence[At]

    def run(self, context: Context) -> Any:
        """Does it. What it returns is `Worker.result`."""
        ...


@contextmanager
def _stopping(context: Context, stop: Callable[[], None]) -> Iterator[None]:
    with stopping(lambda: context.stopped_by(stop), deadline_seconds=STOP_SECONDS):
        context.ready()
        yield


class Editor:
    """Makes edits that are all different, and notes them in the history.

    Args:
        name: what its tokens begin with; unique in the history.
    """

    def __init__(
        self,
        store: UserStore,
        history: History,
        *,
        name: str,
        seed: object,
        users: Sequence[int] | None = None,
        failpoints: Failpoints | None = None,
    ) -> None:
        self._store = store
        self._history = history
        self._name = name
        self._rng = random.Random(f"{seed}/{name}")
        self._users = users or store.active_ids()
        self._number = 0
        self._reach = failpoints.reach if failpoints else lambda step, detail="": None
        if failpoints:
            self._edit_many: Callable[..., Any] = _inside(failpoints, "edit", store.edit_many)
            self._delete: Callable[..., Any] = _inside(failpoints, "edit", store.delete_user)
        else:
            self._edit_many, self._delete = store.edit_many, store.delete_user

    def edit(self, count: int, *, per_transaction: int = 5) -> int:
        """Makes so many edits; how many were accepted. Few users get most of them, often several at once."""
        accepted = 0
        while count > 0:
            size = min(count, self._rng.randint(1, per_transaction))
            accepted += self._apply([self._attempt(self._user()) for _ in range(size)])
            count -= size
        return accepted

    def edit_users(self, users: Sequence[int]) -> int:
        """Makes one edit of each, in one transaction."""
        return self._apply([self._attempt(user) for user in users])

    def delete(self, user: int) -> None:
        """Deletes a user."""
        attempt = Attempt(self._token(), user, {}, deletes=True)
        self._history.attempted([attempt])
        self._reach("before_edit")
        self._delete(user)
        self._reach("after_commit")
        self._history.accepted([attempt.token])

    def close(self) -> None:
        """Closes the store."""
        self._store.close()

    def _apply(self, attempts: Sequence[Attempt]) -> int:
        self._history.attempted(attempts)
        self._reach("before_edit")
        report = self._edit_many([ProfileEdit(user_id=each.user, **each.values) for each in attempts])
        self._reach("after_commit")
        rejected = {rejection.index for rejection in report.rejected}
        self._history.accepted(each.token for index, each in enumerate(attempts) if index not in rejected)
        return int(report.accepted)

    def _user(self) -> int:
        return self._users[int(len(self._users) * self._rng.random() ** 2)]

    def _token(self) -> str:
        self._number += 1
        return f"{self._name}-{self._number}"

    def _attempt(self, user: int) -> Attempt:
        token, kind = self._token(), self._rng.random()
        values = {}
        if kind >= 0.70:
            values["nick_name"] = f"晓 {token}"
        if kind < 0.70 or kind >= 0.95:
            values["head_image"] = f"https://cdn.example.com/{token}.webp"
            values["head_image_thumb"] = f"https://cdn.example.com/{token}_96.webp"
        return Attempt(token, user, values)


def _inside(failpoints: Failpoints, what: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with failpoints.inside(what):
            return method(*args)

    return call


@dataclass(frozen=True)
class ProducerJob:
    """Edits profiles.

    Args:
        name: unique among the producers of a history.
        count: how many edits; None for as many as there is time for.
        deletes: users to delete at the end.
    """

    data_dir: Path
    history: Path
    name: str
    seed: int = 0
    count: int | None = 50
    per_transaction: int = 5
    pause_seconds: float = 0.0
    users: Sequence[int] | None = None
    deletes: Sequence[int] = ()
    busy_timeout_ms: int = 5000
    steps: Sequence[At] = ()

    def run(self, context: Context) -> dict[str, int]:
        stop = threading.Event()
        with _stopping(context, stop.set):
            store = Workspace(self.data_dir, self.busy_timeout_ms).user_store()
            history = History(self.history)
            editor = Editor(
                store, history, name=self.name, seed=self.seed, users=self.users, failpoints=context.failpoints
            )
            accepted = 0
            while not stop.is_set() and (self.count is None or accepted < self.count):
                left = self.per_transaction if self.count is None else self.count - accepted
                accepted += editor.edit(min(left, self.per_transaction), per_transaction=self.per_transaction)
                if self.pause_seconds:
                    stop.wait(self.pause_seconds)
            for user in self.deletes:
                editor.delete(user)
            store.close()
        return {"accepted": accepted}


@dataclass(frozen=True)
class RelayJob:
    """Publishes the outbox.

    Args:
        until_empty: end when nothing waits; otherwise when told to.
        relay: further arguments of `Relay`.
    """

    data_dir: Path
    url: str
    batch: int = 20
    until_empty: bool = False
    attempts: int = 2
    busy_timeout_ms: int = 5000
    relay: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[At] = ()

    def run(self, context: Context) -> dict[str, int]:
        failpoints = context.failpoints
        stop = threading.Event()
        with _stopping(context, stop.set):
            store = Workspace(self.data_dir, self.busy_timeout_ms).user_store()
            bus = Bus(SteppingEndpoint(self.url, failpoints), attempts=self.attempts)
            publisher = bus.publisher(DESTINATION)
            failpoints.around(publisher, "send", "before_send", "", "after_send")
            failpoints.around(store, "mark_sent", "before_mark", "mark", "after_mark")
            relay = Relay(store, publisher, batch=self.batch, **self.relay)
            if self.until_empty:
                relay.deliver(2**63 - 1, stop=stop)
            else:
                relay.run(stop, poll_seconds=0.01, on_trouble=_tell, backoff=BACKOFF)
            store.close()
            bus.close()
        return {"published": relay.published}


@dataclass(frozen=True)
class ConsumerJob:
    """Feeds a projection.

    Args:
        service: `group` or `friend`.
        options: those of `ConsumerOptions` that differ from `QUICK`.
        handler: changes the store before it is used as the handler: a function of this module or a test's.
    """

    data_dir: Path
    url: str
    service: str = "group"
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    busy_timeout_ms: int = 5000
    handler: Callable[[Any], Any] | None = None
    steps: Sequence[At] = ()

    def run(self, context: Context) -> dict[str, Any]:
        failpoints = context.failpoints
        store = Workspace(self.data_dir, self.busy_timeout_ms).projection(self.service)
        failpoints.around(store, "apply", "before_apply", "apply", "after_commit")
        failpoints.around(store, "go_on", "before_go_on", "go_on", "after_go_on")
        failpoints.around(store, "record_dead", "before_bury", "bury", "after_record_dead")
        failpoints.around(store, "record_lost", "before_lose", "lose", "after_record_lost")
        bus = Bus(SteppingEndpoint(self.url, failpoints))
        consumer = bus.consumer(
            DESTINATION,
            group=self.service,
            events=store.events,
            handler=self.handler(store) if self.handler else store,
            name=self.name,
            options=quick(**self.options),
            on_trouble=_tell,
        )
        with _stopping(context, consumer.stop):
            counts = consumer.run()
        store.close()
        bus.close()
        return {"consumer": consumer.name} | asdict(counts)


@dataclass(frozen=True)
class CommandJob:
    """Runs a command of imsync's command line."""

    arguments: Sequence[str]
    steps: Sequence[At] = ()

    def run(self, context: Context) -> dict[str, Any]:
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        context.ready()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                imsync.cli.main(self.arguments)
            except SystemExit as end:
                code = end.code
        return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def quick(**changes: Any) -> ConsumerOptions:
    """The options of a consumer that notices everything soon: small batches, a short life after death."""
    values: dict[str, Any] = {
        "batch": 20,
        "block_ms": 50,
        "heartbeat_ms": 60,
        "retry": RetryPolicy(max_attempts=3, backoff=Backoff(first_seconds=0.01, longest_seconds=0.05)),
        "backoff": BACKOFF,
    }
    return ConsumerOptions(**(values | changes))


def _tell(error: ImsyncError, seconds: float) -> None:
    """As the commands do: one line per trouble."""
    log.warning("%s; again in %.2f s", error.message, seconds)


# ── handlers that fail ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Failing:
    """Makes a handler fail, for `ConsumerJob.handler`.

    Args:
        users: on batches that hold an event of one of them; on every batch when empty.
        times: so often; None for ever.
        error: what it raises.
    """

    users: Sequence[int] = ()
    times: int | None = None
    error: Callable[[str], Exception] = RuntimeError

    def __call__(self, store: Any) -> Any:
        apply = store.apply
        left = [self.times]

        def failing(batch: Sequence[Any]) -> Any:
            meant = not self.users or any(received.event.id in self.users for received in batch)
            if meant and left[0] != 0:
                left[0] = None if left[0] is None else left[0] - 1
                raise self.error("it fails, as it was told to")
            return apply(batch)

        store.apply = failing
        return store
