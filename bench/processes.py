"""Runs what is measured as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

TOP = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.02
PEERS_PYTHON = Path(sys.prefix) / "bench" / "bin" / "python"
"""Where `make bench` puts the packages of others."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that has ended.

    Args:
        result: the JSON object that it printed.
        cpu_seconds: of the whole process, start-up included, user and system.
        peak_mib: VmHWM; 0 where there is no /proc.
    """

    result: dict[str, Any]
    cpu_seconds: float
    peak_mib: float
    seconds: float

    @property
    def rate(self) -> float:
        """Events per second by the process's own clock."""
        return float(self.result["events"] / self.result["seconds"])


class Started:
    """A process that runs. Its output goes to a file, so that it never waits for a reader."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("IMSYNC_")}
        self._command = command
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in wait()
        self._began = time.monotonic()
        self._process = subprocess.Popen(command, env=environment, stdout=self._output, cwd=TOP)

    def wait(self) -> Ran:
        """Waits for its end.

        Raises:
            SystemExit: it failed.
        """
        peak = 0.0
        process = self._process
        try:
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                peak = max(peak, _high_water_mib(process.pid))
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        seconds = time.monotonic() - self._began
        with self._output as output:
            output.seek(0)
            printed = output.read()
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, self._command))} failed with {process.returncode}")
        return Ran(json.loads(printed), ended[2].ru_utime + ended[2].ru_stime, peak, seconds)

    def kill(self) -> None:
        """Ends it, when its partner has failed."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def run(command: Sequence[str]) -> Ran:
    """Runs a process to its end. Raises SystemExit when it fails."""
    return Started(command).wait()


def loop(name: str, *arguments: object, python: Path | str = sys.executable) -> list[str]:
    """The command line of a program in `bench/loops/`."""
    return [str(python), "-m", f"bench.loops.{name}", *map(str, arguments)]


def imsync(*words: object) -> list[str]:
    """The command line of imsync's own command. It reads nobody's configuration."""
    return [sys.executable, "-m", "imsync", *map(str, words), "--json", "--config", os.devnull]


def peers() -> Path | None:
    """The Python that has the packages of others; None when it was not made."""
    return PEERS_PYTHON if PEERS_PYTHON.exists() else None


def _high_water_mib(pid: int) -> float:
    # ru_maxrss would include that of the process it was forked from
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
