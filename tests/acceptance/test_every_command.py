"""What every command keeps to: it ends quietly when its reader has gone, and it fits into a terminal of 80 columns.

The tree of commands is discovered: one that is missing here fails.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from imsync.cli.lines import cells
from imsync.cli.reference import commands
from imsync.embedded import EmbeddedServer
from tests.acceptance.driver import CLI, Imsync
from tests.acceptance.inprocess import InProcess

COLUMNS = 80
ARGUMENTS = {
    "bench": "--seconds 1 --users 20 --events 500 --rate 50 --svg {new}",
    "check": "",
    "config acl": "",
    "config init": "{new}",
    "config show": "",
    "consume friend": "--until-empty",
    "consume group": "--until-empty --batch 10 --max-events 10",
    "consumer list": "",
    "consumer prune": "--dry-run",
    "dead list": "",
    "dead purge": "--all --dry-run",
    "dead show": "{letter}",
    "doctor": "",
    "group create": "search",
    "group drop": "nobody --yes",
    "group list": "",
    "init": "--users 5 --groups 2",
    "publish user-update": "--user {user} --nick-name x",
    "rebuild friend": "--dry-run",
    "rebuild group": "--dry-run",
    "relay": "--until-empty",
    "replay dead": "--dry-run",
    "replay from": "start --dry-run",
    "replay pending": "--min-idle 0s --dry-run",
    "report": "--html {new} --for 0s",
    "server start": "",
    "server status": "",
    "server stop": "",
    "status": "",
    "tail": "--until-end --count 20",
    "trace": "{user}",
    "verify": "",
}
"""How each is run, so that it has something to say."""
EXEMPT = {"demo": "a screen of its own, and a minute"}
FOR_PASTING = {"config acl", "config show", "server start", "server status"}
"""What has lines that must stay whole, or paths of any length."""
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def busy(busy_template: Path) -> Iterator[Imsync]:
    """A system with something of everything: lag, pending entries, dead letters, dead consumers, drift."""
    folder = Path(tempfile.mkdtemp(prefix="im-"))  # a short path, as people have
    im = InProcess(folder)
    shutil.copytree(busy_template, im.data)
    EmbeddedServer(im.data).start()
    try:
        im.run("publish", "user-update", "--count", 20, "--invalid", 0.2)
        im.run("consume", "group", "--until-empty")
        im.run("publish", "user-update", "--count", 20)
        with im.client() as client:
            client.xreadgroup("group", "a-consumer-that-died-long-ago.4711.c0ffee", {im.stream: ">"}, count=7)
        yield im
    finally:
        im.close()
        shutil.rmtree(folder)


def words_of(command: str, im: Imsync) -> list[str]:
    EmbeddedServer(im.data).start()  # one of the commands stops it
    with im.client() as client:
        letter = client.xrange(im.keys.dead("group"), count=1)[0][0].decode()
    new = im.folder / os.urandom(4).hex()
    return f"{command} {ARGUMENTS[command]}".format(letter=letter, user=im.users()[0], new=new).split()


def test_these_are_all_commands() -> None:
    leaves = {name.removeprefix("imsync ") for name, command in commands() if not hasattr(command, "commands")}
    assert leaves == ARGUMENTS.keys() | EXEMPT.keys()


@pytest.mark.parametrize("command", ARGUMENTS)
def test_nobody_reads_what_it_says(busy: Imsync, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [*CLI, *words_of(command, busy)], stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE,
        cwd=busy.folder, env=busy.environ, text=True,
    )  # fmt: skip
    os.close(writer)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 1, 2, 3), errors
    assert all(line.startswith("imsync: ") for line in errors.splitlines()), errors


@pytest.mark.parametrize("command", ARGUMENTS)
def test_it_fits_into_a_narrow_terminal(busy: Imsync, command: str) -> None:
    words, known = words_of(command, busy), ids(busy)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    process = subprocess.Popen(
        [*CLI, *words], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
        cwd=busy.folder, env=busy.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    shown = b"".join(iter(lambda: _read(ours), b"")).decode()
    os.close(ours)
    assert process.wait(60) in (0, 1, 2, 3), shown
    lines = [CONTROL.sub("", line).rstrip() for line in shown.replace("\r\n", "\n").split("\n")]
    text = "\n".join(line.rpartition("\r")[2] for line in lines)
    assert text.strip(), "it says nothing"
    if command not in FOR_PASTING:
        messages = {line for line in text.split("\n") if line.startswith("imsync: ")}  # one line each, for log files
        wide = [line for line in text.split("\n") if cells(line) > COLUMNS and line not in messages]
        assert wide == []
    whole = re.sub(r"\s*\n\s*", "", text)
    broken = [each for each in known if each in whole and not any(each in line for line in text.split("\n"))]
    assert broken == [], "over two lines"


def ids(im: Imsync) -> tuple[str, ...]:
    """Every id that may be shown: of entries, and of users with 19 digits."""
    with im.client() as client:
        entries = [
            entry_id.decode()
            for key in (im.stream, im.keys.dead("group"), im.keys.dead("friend"))
            for entry_id, _ in client.xrange(key)
        ]
    return (*entries, *map(str, im.users("1")))


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end was closed
        return b""
