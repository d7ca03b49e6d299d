"""Drives the real command line, one process per command, and looks at its stores and its server from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import redis

from imsync.bus.keys import Keys
from imsync.embedded import EmbeddedServer
from imsync.im.events import DESTINATION
from tests.servers import Server, eventually
from tests.terminals import Terminal

CHECKOUT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, str(CHECKOUT / "cli.py")]


def environment(home: Path) -> dict[str, str]:
    """What a command gets: nothing of the machine's or the developer's own settings."""
    kept = {name: value for name, value in os.environ.items() if name == "PATH" or name.startswith("COV")}
    return kept | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The one object that it printed, and nothing else."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"not one line: {self}"
        return json.loads(lines[0])

    def rows(self) -> list[dict[str, Any]]:
        """The objects that it printed, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]

    def expect(self, code: int) -> Done:
        """Itself, when it ended with this code."""
        assert self.code == code, self
        return self


class Imsync:
    """The command line on one data folder.

    Every output is checked for what must never be in one: tracebacks, control and bidi characters, secrets.

    Args:
        folder: the current folder of the commands; the data folder is in it.
        settings: environment variables without their prefix, such as `URL`.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.environ = environment(folder)
        self.secrets: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        self.set(DATA_DIR=str(self.data), **settings)

    def on(self, server: Server, **settings: str) -> Self:
        """Has the commands use a server, which gets the groups of `init`."""
        self.set(URL=server.url, **settings)
        with self.client() as client:
            for group in ("group", "friend"):
                client.xgroup_create(self.stream, group, "0", mkstream=True)
        return self

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────

    def set(self, **settings: str) -> None:
        """Changes settings for the commands to come."""
        self.environ |= {f"IMSYNC_{name}": value for name, value in settings.items()}

    def run(self, *args: object, stdin: str | bytes | None = None, **more: str) -> Done:
        """Runs a command to its end. `more` are environment variables by their full names."""
        words = tuple(map(str, args))
        done = subprocess.run(
            [*CLI, *words],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=60,
            cwd=self.folder,
            env=self.environ | more,
        )
        return self.checked(words, done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *args: object, **more: Any) -> Done:
        """Runs a command that must succeed."""
        return self.run(*args, **more).expect(0)

    def json(self, *args: object, code: int = 0, **more: Any) -> Any:
        """Runs a command with --json and returns the object that it prints."""
        return self.run(*args, "--json", **more).expect(code).json()

    def start(self, *args: object, **more: str) -> subprocess.Popen[str]:
        """Starts a command with --json that goes on until it is ended."""
        process = subprocess.Popen(
            [*CLI, *map(str, args), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environ | more,
        )
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str], number: int | None = None, seconds: float = 30.0) -> Done:
        """Sends a signal, if one is given, and waits for the end of a command that was started."""
        if number is not None:
            process.send_signal(number)
        out, err = process.communicate(timeout=seconds)
        return self.checked(("(started)",), process.returncode, out, err)

    @contextlib.contextmanager
    def terminal(self, *args: object, columns: int = 80, lines: int = 40, colours: bool = False) -> Iterator[Terminal]:
        """A command on a terminal of its own, killed when the block ends before it does."""
        environ = self.environ if colours else self.environ | {"NO_COLOR": "1"}
        shown = Terminal([*CLI, *map(str, args)], environ, self.folder, columns, lines)
        try:
            yield shown
        finally:
            shown.close()

    def on_a_terminal(self, *args: object, columns: int = 80, answer: str = "") -> Done:
        """Runs a command to its end on a terminal, on which somebody has typed the answer to what it will ask."""
        with self.terminal(*args, columns=columns) as shown:
            shown.press(answer.encode())
            code = shown.end()
            return self.checked(tuple(map(str, args)), code, shown.left(), "")

    def checked(self, args: tuple[str, ...], code: int, out: str, err: str) -> Done:
        """A command's end, after a look at what must never be in its output."""
        done = Done(args, code, out, err)
        assert "Traceback" not in out + err, done
        assert not (hidden := hidden_characters(out + err)), f"{hidden!a} in {done}"
        for secret in self.secrets:
            assert secret not in out + err, done
        return done

    # ── the outside view ─────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        """The server that the commands use."""
        return self.environ.get("IMSYNC_URL") or EmbeddedServer(self.data).url

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A redis-py client of the commands' server that decodes nothing."""
        with redis.Redis.from_url(self.url, password=self.environ.get("IMSYNC_PASSWORD")) as client:
            yield client

    @property
    def keys(self) -> Keys:
        """The keys of the destination."""
        return Keys(self.environ.get("IMSYNC_PREFIX", "imsync"), DESTINATION)

    @property
    def stream(self) -> str:
        """The key of the stream."""
        return self.keys.stream

    def pending(self, group: str = "group", count: int = 100_000) -> list[dict[str, Any]]:
        """What the group's consumers hold, as redis-py tells it."""
        with self.client() as client:
            rows: list[dict[str, Any]] = client.xpending_range(self.stream, group, "-", "+", count)
        return rows

    def alive(self, group: str = "group") -> list[str]:
        """The names of the group's consumers that have a heartbeat."""
        start = self.keys.alive(group, "-")[:-1]
        with self.client() as client:
            return [key.decode().removeprefix(start) for key in client.scan_iter(f"{start}*", count=1000)]

    @contextlib.contextmanager
    def store(self, name: str) -> Iterator[sqlite3.Connection]:
        """A store, opened for reading only."""
        with contextlib.closing(sqlite3.connect(f"file:{self.data / name}.db?mode=ro", uri=True)) as connection:
            yield connection

    def query(self, name: str, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """All rows of a query on a store."""
        with self.store(name) as connection:
            return connection.execute(sql, parameters).fetchall()

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[sqlite3.Connection]:
        """Holds a store's write lock, as another process would."""
        path = self.data / f"{name}.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def users(self, where: str = "deleted = 0") -> list[int]:
        """The ids of users, in rising order."""
        return [row[0] for row in self.query("user", f"SELECT id FROM im_user WHERE {where} ORDER BY id")]

    def everything(self) -> object:
        """What is in the stores and in Redis, but for when keys expire."""
        stores = []
        for name in ("user", "group", "friend"):
            if (self.data / f"{name}.db").exists():
                with self.store(name) as connection:
                    stores.append(list(connection.iterdump()))
        with self.client() as client:
            return stores, {key: client.dump(key) for key in sorted(client.scan_iter("*", count=1000))}

    def wrong_copies(self, *services: str) -> list[tuple[Any, ...]]:
        """Every row of the group and friend stores, or of one, that is not a copy of its user, by SQL of its own."""
        wrong: list[tuple[Any, ...]] = []
        for name, table, user, columns in (
            ("group", "im_group_member", "user_id", {"user_nick_name": "nick_name", "head_image": "head_image_thumb"}),
            ("friend", "im_friend", "friend_id", {"friend_nick_name": "nick_name", "friend_head_image": "head_image"}),
        ):  # fmt: skip
            if services and name not in services:
                continue
            with self.store(name) as connection:
                connection.execute("ATTACH ? AS source", (f"file:{self.data / 'user.db'}?mode=ro",))
                same = " AND ".join(f"t.{copy} IS u.{original}" for copy, original in columns.items())
                wrong += connection.execute(
                    f"SELECT '{name}', t.*, u.* FROM main.{table} AS t"
                    f" LEFT JOIN source.im_user AS u ON u.id = t.{user} WHERE u.id IS NULL OR NOT ({same})"
                ).fetchall()
        return wrong

    def copies(self) -> int:
        """How many rows there are that copy a user."""
        return sum(
            self.query(name, f"SELECT count(*) FROM {table}")[0][0]
            for name, table in (("group", "im_group_member"), ("friend", "im_friend"))
        )

    def overrides(self) -> list[tuple[Any, ...]]:
        """The members' and friends' own nicknames, which events never touch."""
        members = "SELECT user_id, group_id, remark_nick_name, quit FROM im_group_member ORDER BY 1, 2"
        friends = "SELECT friend_id, user_id, remark_nick_name FROM im_friend ORDER BY 1, 2"
        return self.query("group", members) + self.query("friend", friends)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────

    def close(self) -> None:
        """Ends every process that was started here, and the embedded server."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        try:
            if self.data.is_dir():
                EmbeddedServer(self.data).stop()
        finally:
            self._kill_server()

    def _kill_server(self) -> None:
        """Where stopping is broken: the process that runs on this folder's socket is killed all the same."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.data / "redis" / "running.lock").read_text())
            if str(self.data) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def hidden_characters(text: str) -> set[str]:
    """What a terminal may take for a command, or a reader not see: control, bidi and other invisible characters."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n", "\u200d"}


def state_of(pid: int) -> str:
    """The one-letter state of a process: `T` when it is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def freeze(process: subprocess.Popen[str]) -> None:
    """SIGSTOP, and waits until every thread of the process stands still."""
    process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")
    eventually(lambda: all(state_of(int(task.name)) == "T" for task in tasks.iterdir()))


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def event_ids(bodies: Iterable[bytes]) -> list[str]:
    """The ids of encoded events."""
    return [json.loads(body)["id"] for body in bodies]
