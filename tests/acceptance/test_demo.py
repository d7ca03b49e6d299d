"""`imsync demo` for real: it proves what it says, and leaves no process and no file however it is ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.driver import CHECKOUT, CLI, environment

# The demo at a scale that takes seconds; its steady traffic alone would go on for a minute.
SMALL = """
import sys
from imsync.cli.demo import tell
from imsync.cli.run import Run
from imsync.cli.story import Scale
try:
    tell(Run({}, as_json=True), Scale(users=50, groups=5, edits=6000, rate=100.0, burst=50))
except KeyboardInterrupt:
    sys.exit(130)
"""

Signals = Callable[[subprocess.Popen[str]], None]


@pytest.fixture
def folder() -> Iterator[Path]:
    """The only folder for temporary files of what is started with it; a short path, as a socket needs."""
    folder = Path(tempfile.mkdtemp(prefix="im-", dir="/tmp"))
    yield folder
    for pid in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


def processes_of(folder: Path) -> list[int]:
    """The processes that have the folder on their command line or in their environment."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (each / "cmdline").read_bytes() + (each / "environ").read_bytes():
                found.append(int(each.name))
    return found


@contextlib.contextmanager
def started(words: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        words,
        cwd=CHECKOUT,
        env=environment(folder) | {"TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def one(number: int) -> Signals:
    return lambda process: process.send_signal(number)


def storm(*numbers: int) -> Signals:
    """Every millisecond another, for as long as the process lives: they hit all of its cleaning up."""

    def send(process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            for number in numbers:
                process.send_signal(number)
            time.sleep(0.001)

    return send


@pytest.mark.parametrize("moment", ["started on a unix socket", "consumer started", "a producer makes"])
@pytest.mark.parametrize(
    "send",
    [
        one(signal.SIGINT),
        one(signal.SIGTERM),
        one(signal.SIGHUP),
        storm(signal.SIGINT),
        storm(signal.SIGHUP, signal.SIGTERM),
    ],
    ids=["INT", "TERM", "HUP", "INT-storm", "HUP-TERM-storm"],
)
def test_a_signal_ends_it_and_nothing_is_left(folder: Path, send: Signals, moment: str) -> None:
    with started([sys.executable, "-c", SMALL], folder) as process:
        assert process.stderr is not None
        assert any(moment in line for line in process.stderr), "it told nothing of it"
        assert len(processes_of(folder)) >= 2, "no process to leave behind"
        send(process)
        _, told = process.communicate(timeout=30)
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []
    assert process.returncode == 130, told


def test_files_are_removed_even_when_the_server_does_not_end(folder: Path) -> None:
    code = (
        "from imsync.embedded import EmbeddedServer\n"
        "stop = EmbeddedServer.stop\n"
        "def stubborn(self):\n    stop(self)\n    raise OSError('it does not end')\n"
        "EmbeddedServer.stop = stubborn\n"
    )
    with started([sys.executable, "-c", code + SMALL], folder) as process:
        assert process.stderr is not None
        assert any("a producer makes" in line for line in process.stderr)
        process.terminate()
        _, told = process.communicate(timeout=30)
    assert "it does not end" in told
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_the_real_one(folder: Path) -> None:
    began = time.monotonic()
    with started([*CLI, "demo", "--json"], folder) as process:
        out, told = process.communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert process.returncode == 0, told
    ending = json.loads(out)
    assert ending["proved"] is True
    assert (ending["drift"], ending["in_flight"], ending["unexplained"]) == (0, 0, 0)
    assert 0 < ending["taken_over"] <= ending["held_by_victim"]
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []
