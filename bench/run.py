"""What the figures of one run share: the server, the sizes, the rounds, the jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from bench.job import Job, demo_job
from bench.server import Server, connect

T = TypeVar("T")

OTHERS_ROUNDS = 3


class Scale(StrEnum):
    """How much is measured."""

    QUICK = "quick"
    NORMAL = "normal"
    FULL = "full"


@dataclass
class Bench:
    """One run.

    Args:
        folder: for scratch files.
        wanted_rounds: of every figure; None leaves it to them.
    """

    folder: Path
    server: Server
    scale: Scale
    wanted_rounds: int | None = None
    _jobs: dict[int, Job] = field(default_factory=dict)
    _databases: int = 0

    def size(self, normal: int, quick: int, full: int | None = None) -> int:
        """A number that depends on the scale."""
        if self.scale is Scale.QUICK:
            return quick
        return full if full is not None and self.scale is Scale.FULL else normal

    def rounds(self, normal: int, quick: int = 3) -> int:
        """How many rounds to measure."""
        return self.wanted_rounds or (quick if self.scale is Scale.QUICK else normal)

    def database(self) -> int:
        """The number of a database that nobody has used."""
        self._databases += 1
        return self._databases

    def scratch(self) -> tuple[str, Any]:
        """The URL of a database that is empty now, and a client: for who leaves nothing there."""
        url = self.server.database(0)
        client = connect(url)
        client.flushdb()
        return url, client

    def job(self, events: int) -> Job:
        """The job with so many events, made when it is first asked for."""
        if events not in self._jobs:
            self.say(f"  a backlog of {events:,} events")
            self._jobs[events] = demo_job(self.server, self.database(), self.folder, events)
        return self._jobs[events]

    def say(self, text: str) -> None:
        """A line of progress."""
        print(text, file=sys.stderr, flush=True)

    def interleaved(
        self, rounds: int, sides: Mapping[str, Callable[[], T]], others: Mapping[str, Callable[[], T]] | None = None
    ) -> dict[str, list[T]]:
        """Measures every side once per round, another one first each time; the values by side.

        Args:
            others: are measured in the first rounds only, `OTHERS_ROUNDS` at most: no goal depends on them.
        """
        found: dict[str, list[T]] = {name: [] for name in (*sides, *(others or {}))}
        for number in range(rounds):
            self.say(f"  round {number + 1} of {rounds}")
            measured = {**sides, **((others or {}) if number < OTHERS_ROUNDS else {})}
            names = list(measured)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].append(measured[name]())
        return found
