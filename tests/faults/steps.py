"""Failpoints: named steps of a process at which a test may hold it, freeze it or let it die.

They are objects that a worker is given, put around what it hands to imsync: the handler, the store, the publisher, the
connection. imsync knows nothing of them. Steps inside a transaction are seen by SQLite's own trace of statements.

| who | steps, in order |
|---|---|
| producer | `before_edit` `in_transaction` `before_commit` `after_commit` (and not yet noted in the history) |
| relay | `before_send` `mid_xadd` `xadd_unread` `after_send` `in_transaction` `before_commit` `after_mark` |
| consumer | `before_apply` `in_transaction` `before_commit` `after_commit` `mid_ack` `ack_unread` |
| consumer, dead letters | `before_bury` `in_transaction` `before_commit` `mid_bury` `bury_unread` |

`mid_…`: half of the bytes of the request have been written. `…_unread`: all of them have, and no reply was read.
`in_transaction`: before its first write. `before_commit`: after its last.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from imsync.bus import Endpoint

PRODUCER_STEPS = ("before_edit", "in_transaction", "before_commit", "after_commit")
RELAY_STEPS = (
    "before_send", "mid_xadd", "xadd_unread", "after_send", "in_transaction", "before_commit", "after_mark"
)  # fmt: skip
CONSUMER_STEPS = ("before_apply", "in_transaction", "before_commit", "after_commit", "mid_ack", "ack_unread")
DEAD_LETTER_STEPS = ("before_bury", "in_transaction", "before_commit", "mid_bury", "bury_unread")

Deed = Literal["hold", "freeze", "die", "note"]


@dataclass(frozen=True)
class At:
    """What is to happen at a step.

    Args:
        step: its name.
        do: `hold` blocks this thread until the test says so, while heartbeats go on; `freeze` stops the whole
            process (SIGSTOP); `die` is kill -9 by its own hand; `note` only counts.
        nth: at which passage it happens first.
        times: how often it happens; None for ever.
        containing: only passages whose detail holds this text count. The detail of what a consumer is about to apply
            are its events, such as `user=7 version=3 event=0197…`; that of a request its bytes.
        inside: for steps in a transaction, which one: `edit`, `mark`, `apply`, `bury` or `lose`.
    """

    step: str
    do: Deed = "hold"
    nth: int = 1
    times: int | None = 1
    containing: str = ""
    inside: str = ""


class Failpoints:
    """Decides at every step what is to happen there.

    Args:
        plan: what is to happen where.
        report: tells the test of a step that is reached: its name and what is done there.
        wait: blocks until the test says go on.
    """

    def __init__(self, plan: Sequence[At], report: Callable[[str, Deed], None], wait: Callable[[], None]) -> None:
        self._plan = plan
        self._report = report
        self._wait = wait
        self._passages: Counter[At] = Counter()
        self._inside = ""
        self._wrote = False
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Nothing happens anywhere from now on."""
        self._plan = ()

    def wants(self, *steps: str) -> bool:
        """Whether anything is to happen at one of these steps, ever."""
        return any(each.step in steps for each in self._plan)

    def reach(self, step: str, detail: str = "") -> None:
        """The process is at this step."""
        for each in self._plan:
            if each.step != step or each.containing not in detail or each.inside not in ("", self._inside):
                continue
            with self._lock:
                self._passages[each] += 1
                past = self._passages[each] - each.nth
            if past >= 0 and (each.times is None or past < each.times):
                self._do(each)

    def _do(self, each: At) -> None:
        self._report(each.step, each.do)
        match each.do:
            case "hold":
                self._wait()
            case "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()  # for the moment that a signal may take

    # ── transactions ─────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def inside(self, what: str) -> Iterator[None]:
        """Statements in this block belong to the transaction of an edit, say."""
        self._inside, self._wrote = what, False
        try:
            yield
        finally:
            self._inside = ""

    def on_statement(self, sql: str) -> None:
        """SQLite is about to run a statement."""
        if not self._inside:
            return
        word = sql.lstrip()[:6].upper()
        if word == "COMMIT":
            self.reach("before_commit")
            self._wrote = False
        elif word in ("INSERT", "UPDATE", "DELETE", "REPLAC") and not self._wrote:
            self._wrote = True
            self.reach("in_transaction")

    @contextmanager
    def watching_transactions(self) -> Iterator[None]:
        """Has every database that is opened in this block tell of its statements. A process of its own uses it."""
        if not self.wants("in_transaction", "before_commit"):
            yield
            return
        connect = sqlite3.connect

        def connect_and_trace(*args: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **options)
            connection.set_trace_callback(self.on_statement)
            return connection

        sqlite3.connect = connect_and_trace  # type: ignore[assignment]
        try:
            yield
        finally:
            sqlite3.connect = connect

    # ── what is put around objects ───────────────────────────────────────────────────────────────────

    def around(self, target: Any, method: str, before: str, inside: str, after: str) -> None:
        """Has an object's method pass a step before it begins and one after it has returned."""
        original = getattr(target, method)

        def stepping(*args: Any, **options: Any) -> Any:
            self.reach(before, describe(args[0]) if args and self._plan else "")
            with self.inside(inside):
                result = original(*args, **options)
            self.reach(after)
            return result

        setattr(target, method, stepping)


def describe(batch: Any) -> str:
    """The events of a batch in words, for `At.containing`."""
    if not isinstance(batch, Sequence):
        return ""
    words = []
    for each in batch:
        event = getattr(each, "event", None)
        if event is not None:
            words.append(f"user={getattr(event, 'id', '')} version={getattr(event, 'version', '')} ")
            words.append(f"event={event.event_id} entry={each.entry_id} ")
    return "".join(words)


class SteppingEndpoint(Endpoint):
    """An endpoint whose connections pass steps while requests are written."""

    def __init__(self, url: str, failpoints: Failpoints) -> None:
        super().__init__(url)
        object.__setattr__(self, "failpoints", failpoints)

    def connect(self, **options: Any) -> Any:
        client = super().connect(**options)
        failpoints: Failpoints = self.failpoints  # type: ignore[attr-defined]
        if failpoints.wants("mid_xadd", "xadd_unread", "mid_ack", "ack_unread", "mid_bury", "bury_unread"):
            pool = client.connection_pool
            pool.connection_class = _stepping(pool.connection_class, failpoints)
        return client


def _stepping(base: type[Any], failpoints: Failpoints) -> type[Any]:
    class Stepping(base):  # type: ignore[misc]
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            data = b"".join([command] if isinstance(command, bytes) else command)
            kind = _kind(data)
            if not kind:
                super().send_packed_command(command, check_health)
                return
            half = len(data) // 2
            detail = data.decode(errors="replace")
            super().send_packed_command([data[:half]], check_health)
            failpoints.reach(f"mid_{kind}", detail)
            super().send_packed_command([data[half:]], False)
            failpoints.reach(f"{kind}_unread", detail)

    return Stepping


def _kind(data: bytes) -> str:
    """What a request is: events, acknowledgements, or dead letters with theirs."""
    adds, acknowledges = b"\r\nXADD\r\n" in data, b"\r\nXACK\r\n" in data
    if adds:
        return "bury" if acknowledges else "xadd"
    return "ack" if acknowledges else ""
