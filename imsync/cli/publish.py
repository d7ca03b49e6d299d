"""`imsync publish user-update`: one edit, a simulation, or edits from standard input."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.im.profile import Edit
    from imsync.im.relay import Order, Relay
    from imsync.im.simulator import Faults, SimulatedEdit
    from imsync.im.user_store import EditReport, OutboxRow, ProfileEdit, UserStore

CHUNK = 1000
"""The most edits in one transaction."""
SIMULATED_CHUNK = 4000
"""The same for a simulation that is to be as fast as possible: edits of one user share the writing of its row."""
RELAY_PATIENCE_SECONDS = 5.0
"""How long another relay may hold the outbox without getting on."""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    publish = typer.Typer(help="Edit profiles and publish the events.", no_args_is_help=True)
    command(publish, "user-update")(user_update)
    app.add_typer(publish, name="publish")


def user_update(
    run: Run,
    user: Annotated[int | None, typer.Option(help="Edit this user.", show_default=False)] = None,
    nick_name: Annotated[str | None, typer.Option(help="The new nickname.", show_default=False)] = None,
    head_image: Annotated[
        str | None, typer.Option(help="The new picture's URL; empty for none.", show_default=False)
    ] = None,
    head_image_thumb: Annotated[
        str | None, typer.Option(help="The new thumb's URL; empty for none.", show_default=False)
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Simulate so many edits.", show_default=False)] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Simulated edits per second; as fast as possible without.",
                                   show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed simulates the same edits.")] = 7,
    dup: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of events to publish twice.")] = 0.0,
    reorder: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of events to publish late.")] = 0.0,
    invalid: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="How many undecodable entries to add, as a share.")
    ] = 0.0,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read edits from standard input, one JSON object per line: "
                           '{"id": 7, "nickName": "…", "headImage": "…", "headImageThumb": "…"}.')
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="With --stdin: apply none if a line is bad.")] = False,
) -> None:  # fmt: skip
    """Edit profiles in the user store and publish the events through its outbox.

    One edit with --user, a simulation with --count, or many with --stdin. An edit that changes nothing publishes
    nothing. When Redis is away the edits are kept, and sent later.
    """
    from imsync.errors import UsageError
    from imsync.im.simulator import Faults

    fields = {"nick_name": nick_name, "head_image": head_image, "head_image_thumb": head_image_thumb}
    if [user is not None, count is not None, stdin].count(True) != 1:
        raise UsageError("say what to publish", "one of --user ID, --count N and --stdin")
    if user is None and any(value is not None for value in fields.values()):
        raise UsageError("--nick-name and the pictures go with --user", "or give them as lines with --stdin")
    faults = Faults(dup, reorder, invalid)
    if count is None and (rate is not None or any(faults)):
        raise UsageError(
            "--rate, --dup, --reorder and --invalid go with --count", "see `imsync publish user-update -h`"
        )
    if strict and not stdin:
        raise UsageError("--strict goes with --stdin", "see `imsync publish user-update -h`")
    store = run.workspace.user_store()
    session = _Session(run, store, faults, random.Random(seed))
    if user is not None:
        _one(session, user, fields)
    elif count is not None:
        _simulate(session, count, rate, seed)
    else:
        _from_stdin(session, strict)
    session.finish()


@dataclass
class _Session:
    """One run of the command: edits are applied in chunks, and relayed as long as Redis is there."""

    run: Run
    store: UserStore
    faults: Faults
    rng: random.Random
    accepted: int = 0
    unchanged: int = 0
    invalid: int = 0
    rejected: list[dict[str, object]] = field(default_factory=list)
    _last_seq: int = 0
    _relay: Relay | None = None
    _failures: int = 0
    _not_before: float = 0.0

    def edit(self, edits: Sequence[Edit]) -> EditReport:
        """Applies edits in one transaction."""
        report = self.store.edit_many(edits)
        self.note(report)
        return report

    def note(self, report: EditReport) -> None:
        """Counts what became of edits."""
        self.accepted += report.accepted
        self.unchanged += report.unchanged
        self._last_seq = max(self._last_seq, report.last_seq)

    def relay(self, stop: threading.Event | None = None, *, at_once: bool = False) -> None:
        """Publishes the outbox. In trouble the edits are kept, the first failure is told, and it is tried again later.

        Args:
            stop: when it is set, what is left stays in the outbox.
            at_once: try even if the last failure was a moment ago.
        """
        from imsync.bus.retry import Backoff
        from imsync.errors import ImsyncError

        if time.monotonic() < self._not_before and not at_once:
            return
        try:
            patience = 0.0 if self._failures else RELAY_PATIENCE_SECONDS
            self._ready_relay().deliver(self._last_seq, patience_seconds=patience, stop=stop)
            self._add_invalid()
            self._failures = 0
        except ImsyncError as error:
            self._failures += 1
            # a generator of its own: what is simulated depends on the seed alone
            delay = Backoff(first_seconds=0.5, longest_seconds=30.0).delay(self._failures, random.Random())
            self._not_before = time.monotonic() + delay
            if self._failures == 1:
                self.run.out.note(f"{error.message}; the edits are kept in the outbox and will be sent later")

    def edit_and_relay(self, edits: Sequence[Edit], stop: threading.Event) -> None:
        """Applies edits in one transaction, and publishes the outbox right after it."""
        from imsync.errors import ImsyncError

        try:
            standing_by: AbstractContextManager[None] = self._ready_relay().standing_by()
        except ImsyncError:  # `relay` tells, and the edits are kept
            standing_by = nullcontext()
        with standing_by:
            self.edit(edits)
            self.relay(stop)

    def _ready_relay(self) -> Relay:
        from imsync.bus.publisher import Publisher
        from imsync.im.events import DESTINATION

        if self._relay is None:
            # few attempts: the edits go on meanwhile, and it is tried again later
            publisher = Publisher(
                self.run.bus.stream(DESTINATION), self.store.source, attempts=2, telemetry=self.run.bus.telemetry
            )
            self._relay = self.run.relay(self.store, publisher=publisher, order=self._order(), at_once=True)
        return self._relay

    def _order(self) -> Order:
        from imsync.im.simulator import distort

        def as_is(rows: Any) -> Any:
            return rows

        def distorted(rows: Any) -> list[OutboxRow]:
            return distort(list(rows), self.faults, self.rng)

        return distorted if self.faults.dup or self.faults.reorder else as_is

    def _add_invalid(self) -> None:
        from imsync.im.events import DESTINATION
        from imsync.im.simulator import invalid_bodies

        wanted = int(self.accepted * self.faults.invalid) - self.invalid
        if wanted > 0:
            self.run.bus.publisher(DESTINATION).send(invalid_bodies(self.rng, wanted))
            self.invalid += wanted

    def finish(self) -> None:
        """Relays what is left, and prints the result."""
        self.relay(at_once=True)
        backlog = self.store.backlog()
        data: dict[str, object] = {
            "accepted": self.accepted,
            "unchanged": self.unchanged,
            "rejected": len(self.rejected),
            "published": self._relay.published if self._relay else 0,
            "outbox": backlog.unsent,
        }
        if self.faults.invalid:
            data["invalid"] = self.invalid
        if self.rejected:
            data["errors"] = self.rejected
        names = {"outbox": "waiting in the outbox"}
        counts = [f"{n:,} {names.get(name, name)}" for name, n in data.items() if isinstance(n, int) and n]
        self.run.out.result(data, ", ".join(counts) or "nothing to do")
        self.store.close()
        if self.rejected:
            raise typer.Exit(2)


def _one(session: _Session, user: int, fields: dict[str, str | None]) -> None:
    from imsync.im.user_store import ProfileEdit

    report = session.edit([ProfileEdit.checked(user_id=user, **fields)])
    for rejection in report.rejected:
        raise rejection.error


def _simulate(session: _Session, count: int, rate: float | None, seed: int) -> None:
    from imsync.cli.signals import stopping
    from imsync.errors import UsageError
    from imsync.im.simulator import simulate_edits

    if not session.store.is_demo:
        raise UsageError(f"{session.store.path} is not demo data", "the simulator edits only what `imsync init` made")
    edits = simulate_edits(session.store.active_ids(), count=count, seed=seed, rate=rate)
    stop = threading.Event()
    deadline = session.run.settings.consumer.stop_deadline_seconds
    with session.run.out.progress("editing", count) as advance, stopping(stop.set, deadline_seconds=deadline):
        for chunk in _paced(edits, stop) if rate is not None else _chunks(edits):
            if stop.is_set():
                break
            session.edit_and_relay(chunk, stop)
            advance(len(chunk))
    made = session.accepted + session.unchanged + len(session.rejected)
    if made < count:
        session.run.out.note(f"told to stop after {made:,} of {count:,} edits")


def _chunks(edits: Iterator[SimulatedEdit]) -> Iterator[list[SimulatedEdit]]:
    while chunk := list(itertools.islice(edits, SIMULATED_CHUNK)):
        yield chunk


def _paced(edits: Iterator[SimulatedEdit], stop: threading.Event) -> Iterator[list[SimulatedEdit]]:
    """The edits when their time has come, as many at once as are due, until told to stop."""
    began = time.monotonic()
    chunk: list[SimulatedEdit] = []
    for edit in edits:
        if chunk and (edit.at > time.monotonic() - began or len(chunk) == CHUNK):
            yield chunk
            chunk = []
        if stop.wait(max(0.0, began + edit.at - time.monotonic())):
            return
        chunk.append(edit)
    if chunk:
        yield chunk


def _from_stdin(session: _Session, strict: bool) -> None:
    from imsync.cli.ndjson import arriving
    from imsync.cli.signals import stopping
    from imsync.errors import ImsyncError

    stop = threading.Event()
    number = 0
    kept: list[tuple[int, ProfileEdit]] = []  # with --strict, until all are known to be good
    with stopping(stop.set, deadline_seconds=session.run.settings.consumer.stop_deadline_seconds):
        for lines in arriving(sys.stdin.buffer, stop, most=CHUNK):
            edits = _good(session, lines, number + 1)
            number += len(lines)
            if strict:
                kept += edits
            elif edits:
                _apply_lines(session, edits, strict=False)
                session.relay(stop)
        if strict and stop.is_set():
            raise ImsyncError("told to stop before the input had ended: no line was applied", "give all lines again")
        if strict and not session.rejected:
            _apply_lines(session, kept, strict=True)


def _good(session: _Session, lines: list[bytes], first_number: int) -> list[tuple[int, ProfileEdit]]:
    """The edits of the good lines, with the lines' numbers; the bad ones are told."""
    from imsync.cli.ndjson import parsed
    from imsync.errors import UsageError

    good: list[tuple[int, ProfileEdit]] = []
    for number, line in enumerate(lines, first_number):
        if not line.strip():
            continue
        try:
            good.append((number, parsed(line)))
        except UsageError as error:
            _reject(session, number, error.message)
    return good


def _apply_lines(session: _Session, edits: list[tuple[int, ProfileEdit]], *, strict: bool) -> None:
    report = session.store.edit_many([edit for _, edit in edits], all_or_none=strict)
    session.note(report)
    for rejection in report.rejected:
        _reject(session, edits[rejection.index][0], rejection.error.message)


def _reject(session: _Session, line_number: int, message: str) -> None:
    session.rejected.append({"line": line_number, "message": message})
    session.run.out.note(f"line {line_number}: {message}")
