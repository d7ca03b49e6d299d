"""What is printed: the keys that scripts rely on, nothing that a terminal would obey, and quick help."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest

import imsync
from imsync.bus import Bus, ConsumerOptions, Outcome, Received, RetryPolicy
from imsync.embedded import EmbeddedServer
from imsync.im.events import DESTINATION, User2GroupEvent
from tests.acceptance.driver import CLI, Imsync, hidden_characters
from tests.acceptance.hostile import BOLD, plant

HELP_CPU_SECONDS = 0.4
"""The goal is 0.25 on a machine that does nothing else; what fails this is no noise."""


def assert_has(result: Any, promised: Any, path: str = "") -> None:
    """That every promised key is there, with a value of one of the promised types."""
    if isinstance(promised, dict):
        for key, each in promised.items():
            assert key in result, f"{path}.{key} is missing"
            assert_has(result[key], each, f"{path}.{key}")
    elif isinstance(promised, list):
        assert isinstance(result, list), path
        assert result, f"{path} is empty, and proves nothing"
        for element in result:
            assert_has(element, promised[0], f"{path}[]")
    else:
        types = promised if isinstance(promised, tuple) else (promised,)
        assert type(result) in types, f"{path} is {result!r}"  # type(), because a bool is an int


NUMBER = (int, float)
UNKNOWN_NUMBER = (int, float, type(None))
PUBLISH = dict.fromkeys(("accepted", "unchanged", "rejected", "published", "outbox"), int)
CONSUME = dict.fromkeys(("events", "applied", "superseded", "dead", "taken_over", "lost"), int) | {"seconds": NUMBER}
REPLAY = {**dict.fromkeys(("planned", "applied", "superseded", "dead"), int), "entries": [dict[str, object]]}
VERIFY = {"users": int, "rows": int, "drift": int, "in_flight": int, "causes": {}, "repaired": int}
ACCOUNTING = dict.fromkeys(
    ("published", "applied", "superseded", "dead", "pending", "lost", "duplicates", "foreign", "unexplained"), int
) | {"undelivered": (int, type(None))}
STATUS = {
    "groups": [
        {
            "group": str, "stream": str, "lag": (int, type(None)), "lag_seconds": UNKNOWN_NUMBER, "pending": int,
            "oldest_pending_seconds": UNKNOWN_NUMBER, "consumers": int, "dead": int, "accounting": ACCOUNTING,
        }
    ],
    "outbox": {"unsent": int, "oldest_seconds": UNKNOWN_NUMBER},
    "healthy": bool,
}  # fmt: skip


def test_the_promised_keys(inside: Imsync) -> None:
    im = inside
    im.ok("consume", "group", "--until-empty")  # so that the store is its group's before somebody else reads
    assert_has(im.json("publish", "user-update", "--count", 20, "--invalid", 0.1), PUBLISH)
    assert_has(im.run("status", "--json").json(), STATUS)  # with a lag
    assert_has(im.json("consume", "friend", "--until-empty"), CONSUME)
    with im.client() as client:
        client.xreadgroup("group", "somebody", {im.stream: ">"})
    assert_has(im.json("status", code=3), STATUS)  # with pending entries and dead letters
    replayed = im.json("replay", "pending", "--min-idle", "0s")
    assert_has(replayed, {**REPLAY, "entries": [{"id": str, "owner": str, "idle_seconds": NUMBER, "deliveries": int}]})
    assert_has(im.json("verify"), VERIFY)
    letter = im.run("dead", "list", "--json").rows()[0]
    assert_has(letter, dict.fromkeys(("reason", "group", "consumer", "source_id"), str) | {"deliveries": int})
    assert letter["raw"].keys() == {"event"}


class Failing:
    """A handler with a defect."""

    def apply(self, batch: Sequence[Received[User2GroupEvent]]) -> list[Outcome]:
        raise ValueError("no such colour")


def test_a_dead_letter_tells_where_its_handler_failed(inside: Imsync) -> None:
    im = inside
    im.ok("publish", "user-update", "--count", 1)
    options = ConsumerOptions(until_empty=True, retry=RetryPolicy(max_attempts=1))
    with Bus.from_url(im.url) as bus:
        bus.consumer(DESTINATION, group="group", events=[User2GroupEvent], handler=Failing(), options=options).run()
    (letter,) = im.run("dead", "list", "--json").expect(0).rows()
    assert letter["reason"] == "max_attempts"
    assert letter["message"].endswith("ValueError: no such colour")
    assert re.match(r"test_output\.py:\d+ apply < ", letter["where"])
    published, dead = (datetime.fromisoformat(letter[key]) for key in ("published_at", "dead_at"))
    assert round(published.timestamp() * 1000) == int(letter["source_id"].split("-")[0])
    assert published <= dead
    assert re.search(r"ValueError: no such colour \(at test_output\.py:\d+ apply < ", im.ok("dead", "list").out)


# ── hostile contents ─────────────────────────────────────────────────────────────────────────────────


def test_nothing_hostile_reaches_the_terminal(inside: Imsync) -> None:
    """The driver looks for hidden characters in every output; here are the commands, and the lines."""
    im = inside
    for service in ("group", "friend"):  # so that each store is its group's before somebody else reads
        im.ok("consume", service, "--until-empty")
    plant(im)
    listed = im.ok("dead", "list").out
    assert BOLD in listed  # as it was written, not as markup
    im.set(CONSUMER_HEARTBEAT_MS="250")
    planned = im.ok("replay", "pending", "--min-idle", "0s", "--dry-run").out
    assert BOLD in planned
    ends = [im.run("status"), im.run("verify"), im.run("consume", "group", "--until-empty")]
    assert [done.code for done in ends] == [3, 0, 0], ends
    assert "taken over" in ends[-1].out  # from the owner whose name is no text
    for text in (listed, planned, *(done.out + done.err for done in ends)):
        assert "\nimsync: fine" not in text
    assert im.json("replay", "pending", "--min-idle", "0s")["taken_over"] == 2
    for done in (im.run("dead", "list", "--json"), im.run("status", "--json")):
        assert done.out.isascii()
        assert done.rows()  # each line is an object of its own


# ── where it goes ────────────────────────────────────────────────────────────────────────────────────


def many_dead_letters(im: Imsync, count: int = 3000) -> None:
    """More than a pipe holds."""
    EmbeddedServer(im.data).start()
    with im.client() as client:
        pipeline = client.pipeline(transaction=False)
        for _ in range(count):
            pipeline.xadd(im.keys.dead("group"), {"reason": "x" * 60, "message": "y" * 60})
        pipeline.execute()


@pytest.mark.parametrize("moment", ["at_once", "after_a_line"])
@pytest.mark.parametrize("flags", [["--json"], []], ids=["json", "table"])
def test_a_reader_that_goes_away_is_no_error(im: Imsync, moment: str, flags: list[str]) -> None:
    many_dead_letters(im, 1 if moment == "at_once" else 3000)  # less than a buffer holds, and more
    reader, writer = os.pipe()
    with open(reader, "rb") as lines:
        if moment == "at_once":
            lines.close()
        words = [*CLI, "dead", "list", "--limit", "5000", *flags]
        process = subprocess.Popen(words, stdout=writer, stderr=subprocess.PIPE, cwd=im.folder, env=im.environ)
        os.close(writer)
        if moment == "after_a_line":
            assert lines.readline()
            lines.close()
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (1, b"")


@pytest.mark.parametrize("command", ["dead list", "verify --json", "status --help"])
def test_output_that_cannot_be_written_is_told(on_server: Imsync, command: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*CLI, *command.split()],
            stdout=full, stderr=subprocess.PIPE, cwd=on_server.folder, env=on_server.environ, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line


@pytest.mark.parametrize("stream", ["<&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_reason_to_fail(im: Imsync, stream: str) -> None:
    command = f'exec "$@" {stream}'
    words = ["bash", "-c", command, "bash", *CLI, "publish", "user-update", "--stdin", "--json"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, cwd=im.folder, env=im.environ, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ("accepted" in done.stdout) == (stream in ("<&-", "2>&-"))


def seen_on_a_terminal(im: Imsync, *args: str, colours: bool) -> str:
    with im.terminal(*args, colours=colours) as shown:
        shown.end()
        return shown.seen


COLOUR = re.compile(r"\x1b\[[0-9;]*\b(3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")


@pytest.mark.parametrize("args", [("--help",), ("dead", "list")], ids=" ".join)
def test_no_color_is_honoured_on_a_terminal(im: Imsync, args: tuple[str, ...]) -> None:
    many_dead_letters(im, 1)
    assert not COLOUR.search(seen_on_a_terminal(im, *args, colours=False))
    if args == ("--help",):
        assert COLOUR.search(
            seen_on_a_terminal(im, *args, colours=True)
        )  # so the pattern finds colours where there are some


# ── help, version, completion ────────────────────────────────────────────────────────────────────────


def test_help_is_quick_and_imports_no_client(bare: Imsync, record_property: Any) -> None:
    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    taken = []
    for _ in range(5):
        before = cpu()
        assert "Usage: imsync" in bare.ok("--help").out
        taken.append(cpu() - before)
    record_property("help_cpu_seconds", min(taken))
    print(f"imsync --help: {min(taken):.3f} s of CPU")
    assert min(taken) < HELP_CPU_SECONDS

    # coverage.py would import modules of its own
    environ = {name: value for name, value in bare.environ.items() if not name.startswith("COVERAGE_")}
    traced = subprocess.run(
        [sys.executable, "-X", "importtime", *CLI[1:], "--help"], capture_output=True, text=True, env=environ
    )
    modules = {line.rpartition("|")[2].strip() for line in traced.stderr.splitlines()}
    assert "typer" in modules
    assert not modules & {"redis", "sqlite3", "imsync.bus", "imsync.settings", "imsync.im"}


def test_the_version(bare: Imsync) -> None:
    assert bare.ok("--version").out == f"imsync {imsync.__version__}\n"


def test_help_without_a_command_is_wrong_usage(bare: Imsync) -> None:
    for words in ((), ("consume",)):
        done = bare.run(*words).expect(2)
        assert "Usage: imsync" in done.out + done.err


@pytest.fixture
def installed(bare: Imsync) -> Imsync:
    """With a program `imsync` on the PATH, as pip makes it."""
    program = bare.folder / "bin" / "imsync"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{CLI[0]}" "{CLI[1]}" "$@"\n')
    program.chmod(0o755)
    bare.environ["PATH"] = f"{program.parent}:{bare.environ['PATH']}"
    return bare


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ("imsync con", "config consume consumer"),
        ("imsync consume ", "friend group"),
        ("imsync publish user-update --nick", "--nick-name"),
    ],
)
def test_bash_completes(installed: Imsync, words: str, choices: str) -> None:
    """What bash does on <TAB>, with the script that imsync prints for it."""
    script = """
        eval "$(imsync --show-completion bash)"
        IFS=' ' read -r -a COMP_WORDS <<< "$1"; [[ $1 == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _imsync_completion imsync
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script, "bash", words], capture_output=True, text=True, env=installed.environ, check=True
    )
    assert sorted(done.stdout.split()) == choices.split(), done
    assert done.stderr == ""


def test_the_driver_sees_what_it_looks_for() -> None:
    """The check that stands behind every test of this folder."""
    assert hidden_characters("小明 👩🏽\u200d💻 e\u0308\n") == set()
    assert hidden_characters("a\x1bb\x9b\u202e\x07\u2028\r") == set("\x1b\x9b\u202e\x07\u2028\r")
