"""What was measured, as values. Rates are events per second, times are what their names say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["imsync", "by_hand"]
SIDES: tuple[Side, Side] = ("imsync", "by_hand")

Limit = Literal["consumer", "server", "disk", "waiting"]
"""What holds up a consumer: its own processor time, the server's, the disk, or none of them: it waits for something
else, such as a processor that others use, or the network.
"""


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure, and between which values it was from round to round."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of both, and their ratio, which is taken round by round."""

    imsync: Spread
    by_hand: Spread
    ratio: Spread

    def of(self, side: Side) -> Spread:
        """That of one of them."""
        return self.imsync if side == "imsync" else self.by_hand


@dataclass(frozen=True, slots=True)
class Work:
    """What one process did once.

    Args:
        seconds: from before the first command to after the last one.
        cpu_seconds: of the process meanwhile.
        peak_mib: the most memory that it ever had.
        progress: how many events were done by how many seconds, in rising order.
        server_cpu_seconds: of the server meanwhile; None when it does not tell.
    """

    events: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    progress: Sequence[tuple[float, int]] = ()
    server_cpu_seconds: float | None = None

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


@dataclass(frozen=True, slots=True)
class Phases:
    """Where a consumer's time went: shares of 1.

    Args:
        read: waiting for the server and parsing its replies.
        decode: from JSON to events.
        store: the transaction, its fsync included.
        acknowledge: XACK.
        other: the rest.
        batches: how many transactions that was.
    """

    read: float
    decode: float
    store: float
    acknowledge: float
    other: float
    batches: int


@dataclass(frozen=True, slots=True)
class Sync:
    """What one fsync costs, in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the histogram: edits above the one before and up to an edge; of the last bar it is the maximum."""

    up_to_ms: float
    imsync: int
    by_hand: int


@dataclass(frozen=True, slots=True)
class Latency:
    """From the commit of an edit to the commit of its copies.

    Args:
        rate: edits per second that were asked for.
        made: edits per second that were made.
        edits: how many, on each side.
        histogram: their latencies.
    """

    rate: float
    made: Mapping[Side, float]
    edits: int
    histogram: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Tick:
    """The rates in one interval of draining a backlog; None where a side has ended. `seconds`: where it begins."""

    seconds: float
    imsync: float | None
    by_hand: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured.

    Args:
        server: such as `Valkey 9.1.2`.
        where: the server, without a password.
        embedded: whether it was one of the benchmark's own.
        folder: where the stores were.
        filesystem: its kind; empty when nobody knows.
        load: processes that wanted to run in the minute before.
    """

    server: str
    where: str
    embedded: bool
    folder: str
    filesystem: str
    cores: int
    load: float
    python: str
    sqlite: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why the figures may mean less than they say. `kind` is for programs."""

    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Result:
    """All of it; what was not measured is None or empty.

    Args:
        rows: member rows in the group store.
        events: per round.
        rounds: how often both drained a backlog.
        checked_rows: member rows that were compared with what they must be, in all rounds, on both sides.
        figures: by name: see `NAMES`.
        consumer_share, server_share: for how much of the time the consumer, and its server, used a processor.
        disk_share: what its fsyncs take of the time, by the cost of one.
        timeline: the last round's rates.
        seconds: how long it all took.
    """

    machine: Machine
    users: int
    rows: int
    events: int
    rounds: int
    seed: int
    checked_rows: int
    figures: Mapping[str, Figure] = field(default_factory=dict)
    sync: Sync | None = None
    phases: Phases | None = None
    consumer_share: float | None = None
    server_share: float | None = None
    disk_share: float | None = None
    limit: Limit | None = None
    latency: Latency | None = None
    timeline: Sequence[Tick] = ()
    doubts: Sequence[Doubt] = ()
    seconds: float = 0.0
    interrupted: bool = False


NAMES = (
    "publish_per_second",
    "consume_per_second",
    "latency_p50_ms",
    "latency_p90_ms",
    "latency_p99_ms",
    "latency_max_ms",
    "publish_cpu_seconds_per_100k",
    "consume_cpu_seconds_per_100k",
    "server_cpu_seconds_per_100k",
    "consume_peak_mib",
)
"""The figures, in the order in which they are shown."""
