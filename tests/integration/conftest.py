"""A destination with consumers, on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.consumers import Rig
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
