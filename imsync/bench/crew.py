"""The processes that do the work, so that producer, consumer and server do not share one interpreter lock."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

import imsync
from imsync.bench.place import Place
from imsync.bench.results import Side
from imsync.errors import ImsyncError

POLL_SECONDS = 0.05
PATIENCE_SECONDS = 120.0
"""How long one job may take."""


class Worker:
    """One process. See `imsync.bench.worker`.

    Args:
        log: where its standard error goes.
        go_on: called several times per second while it is waited for; what it raises ends the waiting.
    """

    def __init__(self, side: Side, place: Place, log: Path, go_on: Callable[[], None]) -> None:
        self._side = side
        self._log = log
        self._go_on = go_on
        self._read = b""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("IMSYNC_")}
        paths = [str(Path(imsync.__file__).parent.parent), *filter(None, [environment.get("PYTHONPATH")])]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "imsync.bench.worker", side],
                env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # a Ctrl-C in the terminal is for whoever started it
            )
        self._jobs, self._answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._send(asdict(place))

    def ask(self, job: str, **values: object) -> None:
        """Tells it what to do."""
        self._send({"job": job, **values})

    def answer(self) -> Mapping[str, Any]:
        """Waits for what it says next: what a job has come to, or that it is ready for what follows.

        Raises:
            ImsyncError: it failed, ended, or does not get on.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._read:
            self._go_on()
            if not select.select([self._answers], [], [], POLL_SECONDS)[0]:
                if time.monotonic() > deadline:
                    raise ImsyncError("a process of the benchmark is not getting on", "is this machine very busy?")
                continue
            chunk = os.read(self._answers.fileno(), 1 << 20)
            if not chunk:
                raise ImsyncError(f"a process of the benchmark ended: {self._last_words()}")
            self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            raise ImsyncError(f"{'imsync' if self._side == 'imsync' else 'the loop by hand'} failed: "
                              f"{message['failed']}")  # fmt: skip
        done: Mapping[str, Any] = message.get("done", {})
        return done

    def close(self) -> None:
        """Ends it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._jobs, self._answers):
            with suppress(OSError):  # what was not sent any more
                pipe.close()

    def _send(self, message: object) -> None:
        try:
            self._jobs.write(json.dumps(message, default=str).encode() + b"\n")
            self._jobs.flush()
        except OSError:
            raise ImsyncError(f"a process of the benchmark ended: {self._last_words()}") from None

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")
