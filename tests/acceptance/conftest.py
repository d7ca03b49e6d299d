"""The command line on data folders of the tests' own, made once per process and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.driver import Imsync, free_port
from tests.acceptance.inprocess import InProcess
from tests.servers import Server, StartServer

USERS, GROUPS = 300, 40
EDITS = 1000


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder as `imsync init` makes it, with nobody at work on it: safe to copy."""
    imsync = Imsync(tmp_path_factory.mktemp("template"))
    try:
        imsync.ok("init", "--users", USERS, "--groups", GROUPS)
        imsync.ok("server", "stop")
    finally:
        imsync.close()
    assert not list(imsync.data.glob("*.db-wal")), "the last process to close a store empties its log"
    return imsync.data


@pytest.fixture(scope="session")
def busy_template(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """The same after `EDITS` edits, which are published and which nobody has consumed."""
    imsync = Imsync(tmp_path_factory.mktemp("busy"))
    shutil.copytree(template, imsync.data)
    try:
        imsync.ok("publish", "user-update", "--count", EDITS)
    finally:
        imsync.close()
    return imsync.data


@pytest.fixture
def bare(clean_environment: Path) -> Iterator[Imsync]:
    """The command line without stores."""
    imsync = Imsync(clean_environment)
    yield imsync
    imsync.close()


@pytest.fixture
def im(bare: Imsync, template: Path) -> Imsync:
    """The command line on a data folder that `init` has made, with its own embedded server."""
    shutil.copytree(template, bare.data)
    return bare


@pytest.fixture
def stores(im: Imsync) -> Imsync:
    """The command line on made stores alone, that never had a server of their own."""
    shutil.rmtree(im.data / "redis")
    (im.data / "server.lock").unlink()
    return im


@pytest.fixture
def here(bare: Imsync, template: Path) -> InProcess:
    """The made stores alone, with the commands in this process."""
    bare.data.mkdir(mode=0o700)
    for name in ("user", "group", "friend"):
        shutil.copy(template / f"{name}.db", bare.data)
    return InProcess.of(bare)


@pytest.fixture
def on_server(stores: Imsync, server: Server) -> Imsync:
    """The command line on made stores and a server that other tests use too, with the groups of `init`."""
    return stores.on(server)


@pytest.fixture
def inside(on_server: Imsync) -> Imsync:
    """The same, with the commands in this process."""
    return InProcess.of(on_server)


@pytest.fixture
def tcp_server(start_server: StartServer) -> Callable[..., tuple[Server, str]]:
    """Starts a server of the test's own on loopback TCP; the server and its URL."""

    def start(kind: str, **settings: Any) -> tuple[Server, str]:
        port = free_port()
        return start_server(kind, port=port, bind="127.0.0.1", **settings), f"redis://127.0.0.1:{port}/0"

    return start


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes at the end of the test what it is given."""
    with ExitStack() as stack:
        yield stack
