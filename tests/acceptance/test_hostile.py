"""Nothing hostile reaches a terminal or a log line: every command is fed with what anybody can write into events,
dead letters, names, heartbeats, stores, folders and standard input, and its bytes are looked at.

The tree of commands is discovered: one that is neither fed nor exempt, with a reason, fails here.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imsync.cli.reference import commands
from imsync.embedded import EmbeddedServer
from tests.acceptance.driver import hidden_characters
from tests.acceptance.inprocess import InProcess
from tests.servers import Server

MARK = "HoStIlE"
BOLD = "[bold red]x[/]"
TEXT = (
    f"{MARK}\x1b[2J\x1b]52;c;QUFB\x07 \x9b31m\x85 \u202e\u2066\u200b\ufeff \r\nimsync: fine\n\u2028{BOLD}"
    f" [link=f:///]y[/link] \x00\x7f\x08"
)
"""ESC and OSC 52 (which writes the clipboard), C1, bidi overrides and what has no width, line ends and a line that
looks like imsync's own, rich's markup and links, NUL."""
RAW = TEXT.encode() + b"\xff\xed\xa0\x80"
"""The same with bytes that are no UTF-8, and a surrogate."""
IN_JSON = json.dumps(TEXT + "\ud800")
IN_A_NAME = TEXT.replace("\x00", "").replace("/", "")[:60] + "\udcff"

FED: dict[str, list[str]] = {
    "init": ["--users 5 --groups 2"],  # there are stores already: it names the folder
    "publish user-update": ["--stdin", "--count 2", "--user {user} --nick-name x"],
    "relay": ["--until-empty"],
    "tail": ["-e", "-e --dead group", "-e --user 7", "-e --format {all_letters}", "--dead {name} -e"],
    "status": ["", "--watch --count 1 --interval 100ms --record {path}"],
    "check": ["", "--max-lag 0 --format prometheus"],
    "report": ["--html {path} --for 0s", "--html {missing} --for 0s", "--html {path} --samples {missing} --for 0s"],
    "trace": ["{user}", "7"],
    "verify": [
        "",
        "--user {user}",
        "--export {path} --group group",
        "--repair --dry-run",
        "--repair --yes --wait --timeout 0s",
    ],
    "doctor": ["", "--deep"],
    "bench": ["--seconds 1 --users 10 --events 100 --rate 50 --svg {path}", "--svg {missing}"],
    "consume group": ["--until-empty", "--until-empty --name taken"],
    "consume friend": ["--until-empty"],
    "replay pending": ["--min-idle 0s --dry-run", "--min-idle 0s"],
    "rebuild group": ["--dry-run", "--yes"],
    "rebuild friend": ["--dry-run", "--yes"],
    "group list": [""],
    "group create": ["{name}", "search"],
    "group drop": ["{name} --yes", "nobody --yes", "search --yes"],
    "consumer list": [""],
    "consumer prune": ["--dry-run", "--yes"],
    "replay dead": ["--dry-run", "--yes", "--reason {name} --dry-run"],
    "replay from": ["start --dry-run", "start --yes", "start --seek --yes", "{name} --dry-run"],
    "dead list": ["", "--group group", "--reason {name}", "--id {name}"],
    "dead show": ["{letter}", "{name}"],
    "dead purge": ["--all --dry-run", "--reason {name} --yes", "--all --yes"],
    "server start": [""],
    "server status": [""],
    "server stop": [""],
    "config show": [""],
    "config init": ["{path}", "{missing}"],
    "config acl": ["", "--role {name}", "--password-file {missing} --role producer"],
}
"""How each command is run. `{name}` is a hostile name, `{path}` a file to make, `{missing}` one that cannot be."""
EXEMPT = {
    "demo": "works in a folder and on a server of its own, on data of its own",
}
SHOWS = {"tail", "dead list", "dead show", "replay pending", "group list", "group drop", "consumer list",
         "consumer prune", "doctor", "bench", "config show", "config init"}  # fmt: skip
"""Commands that show what they are fed with: without the mark in their output, the feeding would prove nothing."""
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What rich writes for colours: select graphic rendition."""
WITHOUT_URL = {"server start", "server status", "server stop"}


class Raw(InProcess):
    """The command line in this process, with output as bytes."""

    def bytes_of(self, *words: str, stdin: bytes = b"", **more: str) -> bytes:
        """What it writes to stdout and stderr."""
        _, out, err = self.written(*words, stdin=stdin, **more)
        return out + err

    def letter(self) -> str:
        """The id of a dead letter of group `group`."""
        with self.client() as client:
            found = client.xrange(self.keys.dead("group"), count=1)
        return found[0][0].decode() if found else "1-1"


@pytest.fixture
def hostile(clean_environment: Path, template: Path, server: Server) -> Iterator[Raw]:
    """Stores in a folder with such a name, and a server."""
    raw = Raw(clean_environment, URL=server.url, CONSUMER_HEARTBEAT_MS="100", CONSUMER_BLOCK_MS="20")
    raw.data = clean_environment / IN_A_NAME
    raw.set(DATA_DIR=str(raw.data))
    raw.data.mkdir(mode=0o700)
    for name in ("user", "group", "friend"):
        shutil.copy(template / f"{name}.db", raw.data)
    for name, table, column in (
        ("group", "im_group_member", "user_nick_name"),
        ("friend", "im_friend", "friend_nick_name"),
    ):
        with closing(sqlite3.connect(raw.data / f"{name}.db")) as store, store:
            store.execute(f"UPDATE {table} SET {column} = ?", (TEXT.replace("\x00", ""),))  # by hand: drift
    yield raw
    EmbeddedServer(raw.data).stop()


def plant(im: Raw) -> None:
    """Puts what an attacker can put wherever there is a place for it."""
    name = TEXT.encode()
    event = (
        f'{{"specversion":"1.0","type":{IN_JSON},"source":{IN_JSON},"id":{IN_JSON},"subject":"7","time":{IN_JSON},'
        f'"sequence":{IN_JSON},"traceparent":{IN_JSON},"data":{{"id":7,"nickName":{IN_JSON},{IN_JSON}:{IN_JSON}}}}}'
    )
    declared = event.replace(f'"type":{IN_JSON}', '"type":"im.user.updated.v1"')
    with im.client() as client:
        client.flushall()
        for group in ("group", "friend", name + b"\xfe"):
            client.xgroup_create(im.stream, group, "0", mkstream=True)
        for body in (RAW, event.encode(), declared.encode(), b"[" * 5000):
            client.xadd(im.stream, {"event": body})
        client.xadd(im.stream, {RAW: RAW})
        for group in ("group", "friend", name + b"\xfe"):
            client.xreadgroup(group, name + b"\xff", {im.stream: ">"}, count=3)
        for fields in (
            dict.fromkeys(("reason", "message", "where", "consumer", "group", "deliveries", "source_id", "event_id",
                           "published_at", "dead_at", "raw.event"), RAW),
            {"reason": RAW, "raw.event": declared, b"raw." + RAW: RAW},
            {RAW: RAW},
        ):  # fmt: skip
            client.xadd(im.keys.dead("group"), fields)
        client.zadd(im.keys.store("friend"), {RAW: 7})
        client.hset(im.keys.failures("group"), RAW, RAW)
        client.set(im.keys.alive("group", "taken"), json.dumps({"host": TEXT, "pid": TEXT, "token": TEXT}), px=150)


def words_of(command: str, line: str, im: Raw) -> list[str]:
    """The arguments of a run."""
    from imsync.cli.event_format import LETTERS

    values = {
        "user": str(im.users()[0]),
        "name": IN_A_NAME.replace("\udcff", ""),
        "path": str(im.folder / f"{IN_A_NAME}.{os.urandom(4).hex()}"),
        "letter": im.letter(),
        "missing": str(im.folder / "no folder" / IN_A_NAME),
        "all_letters": " ".join(f"%{letter}" for letter in LETTERS) + TEXT.replace("\n", ""),
    }
    return [*command.split(), *(word.format(**values) for word in line.split())]


def assert_harmless(written: bytes, words: list[str]) -> str:
    """That a terminal shows these bytes as they are; the text."""
    text = written.decode("utf-8")  # no byte that is none
    assert not (hidden := hidden_characters(text)), f"{hidden!a} of {words!a}: {text!a}"
    assert "\nimsync: fine" not in text, words
    assert "Traceback" not in text, f"{words!a}: {text!a}"
    return text


RUNS = [(command, line, as_json, debug)
        for command, lines in FED.items() for line in lines for as_json in (False, True) for debug in (False, True)
        if not (debug and as_json)]  # fmt: skip


def test_every_command_is_fed_or_exempt() -> None:
    leaves = {name.removeprefix("imsync ") for name, command in commands() if not hasattr(command, "commands")}
    assert leaves == FED.keys() | EXEMPT.keys(), "feed the command that is missing here, or say why not"
    assert not FED.keys() & EXEMPT.keys()
    assert FED.keys() >= SHOWS


@pytest.mark.parametrize("command", FED)
def test_nothing_hostile_is_printed(hostile: Raw, command: str, caplog: pytest.LogCaptureFixture) -> None:
    shown = ""
    stdin = b"".join(
        line + b"\n"
        for line in (RAW.replace(b"\n", b" "), f'{{"id":{IN_JSON}}}'.encode(), f'{{{IN_JSON}:1}}'.encode(),
                     f'{{"id":7280009836970909185,"nickName":{IN_JSON}}}'.encode(), b"[" * 5000)
    )  # fmt: skip
    for ours, line, as_json, debug in RUNS:
        if ours != command:
            continue
        plant(hostile)
        words = [*words_of(command, line, hostile), *(["--json"] if as_json else [])]
        more = {"IMSYNC_DEBUG": "1"} if debug else {}
        if command in WITHOUT_URL:
            more["IMSYNC_URL"] = ""
        written = hostile.bytes_of(*words, stdin=stdin, **more)
        shown += assert_harmless(written, words)
        if as_json:
            assert written.split(b"imsync: ")[0].isascii()
    assert command not in SHOWS or MARK in shown, f"{command} was not reached by what it was fed with"
    assert BOLD in shown or command not in ("tail", "dead list"), "markup is shown as it was written"


def test_a_terminal_gets_nothing_hostile_either(hostile: Raw) -> None:
    """There rich writes colours; of them, and of nothing else, the escapes are."""
    for words in (["dead", "list"], ["tail", "-e"], ["group", "list"], ["doctor"]):
        plant(hostile)
        with hostile.terminal(*words, colours=True) as shown:
            assert shown.end() in (0, 3)
        text = shown.seen.replace("\r\n", "\n")
        assert MARK in text
        without_colours = COLOUR.sub("", text)
        assert not hidden_characters(without_colours), f"{words}: {text!a}"


def test_the_log_of_a_library_user_is_harmless() -> None:
    """Records that hold something from outside reach the command line's handler only."""
    from imsync.cli.logs import configure

    for debug in ("", "1"):
        written = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(written):
            patch.setenv("IMSYNC_DEBUG", debug)
            configure()
            try:
                raise ValueError(TEXT + "\ud800")
            except ValueError:
                logging.getLogger("imsync.test").exception("of %s", TEXT)
        lines = written.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert MARK in lines
        assert not hidden_characters(lines), ascii(lines)
        assert "\nimsync: fine" not in lines
