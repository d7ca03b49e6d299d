"""A destination with consumers, on real servers; and the two stores of copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.consumers import Rig
from tests.projections import FRIEND, GROUP, Kind, Store
from tests.servers import Server


@pytest.fixture
def rig(server: Server) -> Iterator[Rig]:
    """On the default server."""
    with closing(Rig(server.url)) as rig:
        yield rig


@pytest.fixture
def any_rig(any_server: Server) -> Iterator[Rig]:
    """On each kind of server in turn."""
    with closing(Rig(any_server.url)) as rig:
        yield rig


@pytest.fixture(params=[GROUP, FRIEND], ids=["group", "friend"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of store of copies in turn."""
    made: Kind = request.param
    return made


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Iterator[Store]:
    """An empty one of that kind."""
    with closing(kind.make(tmp_path / "copies.db", create=True)) as made:
        yield made
