"""`Bus`, the way in: what it publishes where, and what it refuses."""

from __future__ import annotations

import json
import threading

import pytest

from imsync.bus import Bus, Event
from imsync.bus.connection import Endpoint
from imsync.bus.event import PositiveInt
from imsync.errors import DataError, RedisUnreachable
from tests.consumers import Noted
from tests.servers import Server, Spawn


class Elsewhere(Event, type="test.elsewhere.v1", destination="elsewhere"):
    number: PositiveInt


class Nowhere(Event, type="test.nowhere.v1"):
    number: PositiveInt


def test_events_go_to_the_destination_of_their_class(server: Server) -> None:
    with Bus.from_url(server.url) as bus:
        one = bus.publish(Elsewhere(number=1))
        more = bus.publish_many([Elsewhere(number=2), Elsewhere(number=3)])
        assert [entry.id for entry in bus.stream("elsewhere").range()] == [one, *more]
        assert bus.publish_many([]) == []
        assert bus.stream("notes").length() == 0


def test_what_has_no_destination_or_several_is_refused(server: Server) -> None:
    with Bus.from_url(server.url) as bus:
        with pytest.raises(DataError, match="declares no destination"):
            bus.publish(Nowhere(number=1))
        with pytest.raises(DataError, match="events of one destination") as raised:
            bus.publish_many([Elsewhere(number=1), Noted(number=2)])
        assert raised.value.reason == "mixed_destinations"
        assert bus.stream("elsewhere").length() == 0, "none of them, rather than some"


def connections(server: Server) -> int:
    with server.client() as client:
        return int(client.info("stats")["total_connections_received"]) - 1


def test_one_connection_does_for_one_publication_after_another(any_server: Server) -> None:
    with Bus.from_url(any_server.url) as bus:
        bus.publish(Noted(number=1))
        before = connections(any_server)
        for number in range(2, 9):
            bus.publish(Noted(number=number))
        bus.publish_many([Noted(number=9), Noted(number=10)])
        assert connections(any_server) == before + 1, "the look itself"
        assert bus.stream("notes").length() == 10


def test_a_pool_of_one_connection_is_enough(server: Server) -> None:
    with Bus.from_url(f"{server.url}?max_connections=1") as bus:
        bus.publish(Noted(number=1))
        assert bus.stream("notes").length() == 1
        bus.publish(Noted(number=2))
        assert bus.stream("notes").length() == 2


def test_a_stream_that_is_not_needed_any_more_leaves_its_connection_to_others(server: Server) -> None:
    with Bus.from_url(server.url) as bus:
        bus.ping()
        before = connections(server)
        for _ in range(5):
            bus.stream("notes").append(b"{}")
        assert connections(server) == before + 1, "the look itself"


def test_a_connection_that_the_server_has_closed_meanwhile_is_no_trouble(server: Server) -> None:
    with Bus(Endpoint(server.url), attempts=1) as bus:
        bus.publish(Noted(number=1))
        with server.client() as client:
            assert client.client_kill_filter(skipme=True, _type="normal") >= 1
        bus.publish(Noted(number=2))
        server.stop()
        with pytest.raises(RedisUnreachable):
            bus.publish(Noted(number=3))


def test_threads_that_publish_do_not_get_each_others_replies(server: Server) -> None:
    with Bus.from_url(server.url) as bus:
        ids: list[list[str]] = [[], [], [], []]

        def publish(mine: list[str], first: int) -> None:
            for number in range(first, first + 50):
                mine.append(bus.publish(Noted(number=number)))

        threads = [threading.Thread(target=publish, args=(mine, 100 * n + 1)) for n, mine in enumerate(ids)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        numbers = {entry.id: json.loads(entry.body or b"")["data"]["number"] for entry in bus.stream("notes").range()}
        assert [[numbers[each] for each in mine] for mine in ids] == [
            list(range(100 * n + 1, 100 * n + 51)) for n in range(4)
        ]


FORKS = """
import os, sys
from imsync.bus import Bus
from tests.consumers import Noted
bus = Bus.from_url(sys.argv[1])
bus.publish(Noted(number=1))
kept = bus.publisher("notes").stream._line._kept[0]
child = os.fork()
bus.publish(Noted(number=2 if child else 3))
now = bus.publisher("notes").stream._line._kept[0]
if child == 0:
    os._exit(0 if now is not kept and now.pid == os.getpid() else 7)
assert now is kept
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_has_a_connection_of_its_own(server: Server, spawn: Spawn) -> None:
    """Two that read from one socket would take each other's replies."""
    process = spawn("-c", FORKS, server.url)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
