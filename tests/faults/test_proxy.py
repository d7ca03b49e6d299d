"""The proxy does what it says, whatever the chunks, and counts it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from redis import Redis
from redis import exceptions as redis_errors

from imsync.bus.connection import Endpoint
from tests.faults.proxy import Proxy
from tests.faults.resp import Framer, arguments, is_push, message_end
from tests.servers import Server, eventually

MakeProxy = Callable[..., Proxy]


@pytest.fixture
def proxy_before() -> Iterator[MakeProxy]:
    made: list[Proxy] = []

    def make(server: Server, *, tcp: bool = False) -> Proxy:
        made.append(Proxy(server, tcp=tcp))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture(params=["unix", "tcp"])
def proxy(request: pytest.FixtureRequest, server: Server, proxy_before: MakeProxy) -> Proxy:
    return proxy_before(server, tcp=request.param == "tcp")


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Redis]:
    """A client of the proxy, which gives up after half a second and repeats nothing."""
    with Endpoint(proxy.url).connect(timeout_seconds=0.5) as client:
        yield client


def pipeline_of_xadds(client: Redis, count: int) -> list[object]:
    pipeline = client.pipeline(transaction=False)
    for number in range(count):
        pipeline.xadd("s", {"n": number})
    return pipeline.execute()


BROKEN = (redis_errors.ConnectionError, redis_errors.TimeoutError)


def breaks(command: Callable[..., object], *arguments: object) -> bool:
    """Whether a command finds the connection broken."""
    try:
        command(*arguments)
    except BROKEN:
        return True
    return False


# ── the protocol ─────────────────────────────────────────────────────────────────────────────────────

MESSAGES = [
    b"+OK\r\n",
    b"-ERR no\r\n",
    b":42\r\n",
    b"$-1\r\n",
    b"$0\r\n\r\n",
    b"$5\r\na\r\nbc\r\n",
    b"*-1\r\n",
    b"*0\r\n",
    b"*2\r\n$1\r\na\r\n*2\r\n:1\r\n$-1\r\n",
    b"_\r\n",
    b"#t\r\n",
    b",1.5\r\n",
    b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n",
    b"~1\r\n$1\r\nx\r\n",
    b"|1\r\n+ttl\r\n:3600\r\n$1\r\nv\r\n",
    b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n",
    b"=7\r\ntxt:abc\r\n",
    b"PING\r\n",
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_are_found_however_they_are_cut(size: int) -> None:
    whole = b"".join(MESSAGES)
    framer = Framer()
    found = [message for at in range(0, len(whole), size) for message in framer.feed(whole[at : at + size])]
    assert found == MESSAGES


@pytest.mark.parametrize("message", MESSAGES)
def test_no_part_of_a_message_is_one(message: bytes) -> None:
    assert message_end(message) == len(message)
    assert all(message_end(message[:length]) is None for length in range(len(message)))


def test_requests_are_words() -> None:
    assert arguments(b"*3\r\n$4\r\nxadd\r\n$1\r\ns\r\n$4\r\n\r\n\r\n\r\n") == [b"XADD", b"s", b"\r\n\r\n"]
    assert arguments(b"ping hello\r\n") == [b"PING", b"hello"]
    assert is_push(b">1\r\n+x\r\n")
    assert not is_push(b"*1\r\n+x\r\n")


# ── at a request ─────────────────────────────────────────────────────────────────────────────────────


def test_a_connection_is_cut_at_the_nth_of_a_pipeline(proxy: Proxy, client: Redis, server: Server) -> None:
    proxy.cut_at("XADD", nth=4)
    with pytest.raises(BROKEN):
        pipeline_of_xadds(client, 10)
    with server.client() as direct:
        eventually(lambda: direct.xlen("s") == 3)
    assert proxy.happened == {"cut_at": 1, "slow": 0}
    assert len(pipeline_of_xadds(client, 2)) == 2  # once only


def test_a_request_is_truncated_in_the_middle_of_a_pipeline(proxy: Proxy, client: Redis, server: Server) -> None:
    proxy.truncate_request("XADD", after=20, nth=3)
    with pytest.raises(BROKEN):
        pipeline_of_xadds(client, 10)
    with server.client() as direct:
        eventually(lambda: direct.xlen("s") == 2)
        eventually(lambda: direct.info("clients")["connected_clients"] == 1)  # which threw the rest away
        assert direct.xlen("s") == 2
    assert proxy.happened["truncate_request"] == 1


def test_a_dropped_reply_is_that_of_a_command_that_was_carried_out(proxy: Proxy, client: Redis, server: Server) -> None:
    client.set("n", 1)
    trap = proxy.drop_reply("INCRBY", nth=2)
    assert client.incr("n") == 2
    with pytest.raises(BROKEN):
        client.incr("n")
    with server.client() as direct:
        assert direct.get("n") == b"3"
    assert (trap.happened, proxy.happened["drop_reply"]) == (1, 1)
    assert client.incr("n") == 4


def test_a_truncated_reply_is_no_reply(proxy: Proxy, client: Redis) -> None:
    client.set("k", "x" * 1000)
    proxy.truncate_reply("GET", after=500)
    with pytest.raises(BROKEN):
        client.get("k")
    assert client.get("k") == b"x" * 1000
    assert proxy.happened["truncate_reply"] == 1


@pytest.mark.parametrize("let_go", [True, False])
def test_a_held_request_of_a_dead_client_is_carried_out_when_released(
    proxy: Proxy, client: Redis, server: Server, let_go: bool
) -> None:
    trap = proxy.hold("SET", "held")
    thread = threading.Thread(target=breaks, args=(client.set, "held", 1), daemon=True)
    thread.start()
    trap.wait()
    thread.join()  # which has given up
    with server.client() as direct:
        assert direct.get("held") is None
        if let_go:
            trap.release()
            eventually(lambda: direct.get("held") == b"1")
        else:
            trap.cut()
            eventually(lambda: proxy.connections == 0)
            assert direct.get("held") is None
    assert client.ping()


def test_what_waits_behind_a_held_request_comes_after_it(proxy: Proxy, server: Server) -> None:
    trap = proxy.hold("XADD", nth=2)
    with Endpoint(proxy.url).connect(timeout_seconds=5) as client, server.client() as direct:
        result: list[list[object]] = []
        thread = threading.Thread(target=lambda: result.append(pipeline_of_xadds(client, 5)))
        thread.start()
        trap.wait()
        eventually(lambda: direct.xlen("s") == 1)
        trap.release()
        thread.join()
        assert [fields[b"n"] for _, fields in direct.xrange("s")] == [b"0", b"1", b"2", b"3", b"4"]
        assert len(result[0]) == 5


def test_words_are_all_needed_and_may_be_anywhere(proxy: Proxy, client: Redis) -> None:
    trap = proxy.cut_at("SET", "b", times=None)
    client.set("a", 1)
    client.get("b")
    for _ in range(3):
        with pytest.raises(BROKEN):
            client.set("b", 1)
    assert trap.happened == 3


# ── everywhere ───────────────────────────────────────────────────────────────────────────────────────


def test_cut_and_reset_end_all_connections(server: Server, proxy: Proxy) -> None:
    for end in (proxy.cut, proxy.reset):
        with server.client() as straight, Endpoint(proxy.url).connect(timeout_seconds=10) as client:
            threads = [threading.Thread(target=breaks, args=(client.blpop, ["nothing"], 5)) for _ in range(2)]
            for thread in threads:
                thread.start()
            # a connection that is cut while it is being made is made again
            eventually(lambda: straight.info("clients")["blocked_clients"] == 2)
            assert proxy.connections == 2
            assert end() == 2
            for thread in threads:
                thread.join(2)
                assert not thread.is_alive()
            assert client.ping()
            client.close()
            eventually(lambda: proxy.connections == 0)
    assert (proxy.happened["cut"], proxy.happened["reset"]) == (2, 2)
    assert proxy.cut() == 0  # nobody was connected: nothing has happened
    assert proxy.happened["cut"] == 2


def test_tcp_is_reset_and_not_closed(server: Server, proxy_before: MakeProxy) -> None:
    proxy = proxy_before(server, tcp=True)
    with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2].partition("/")[0]))) as raw:
        raw.sendall(b"PING\r\n")
        assert raw.recv(100) == b"+PONG\r\n"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            raw.recv(100)


@pytest.mark.parametrize("direction", ["requests", "replies"])
def test_a_blackhole_swallows_one_direction_or_both(
    proxy: Proxy, client: Redis, server: Server, direction: str
) -> None:
    client.set("n", 0)
    proxy.blackhole(requests=direction == "requests", replies=direction == "replies")
    with pytest.raises(redis_errors.TimeoutError):
        client.incr("n")
    with server.client() as direct:
        assert direct.get("n") == (b"0" if direction == "requests" else b"1")
    assert proxy.happened["blackhole"] == 1
    proxy.heal()
    assert client.incr("n")


def test_what_is_swallowed_ends_the_connection_when_the_network_heals(proxy: Proxy) -> None:
    proxy.blackhole()
    with Endpoint(proxy.url).connect(timeout_seconds=10) as client:
        answers: list[bool] = []
        thread = threading.Thread(target=lambda: answers.append(breaks(client.ping)))
        thread.start()
        eventually(lambda: proxy.happened["blackhole"])
        proxy.heal()
        thread.join(5)
        assert answers == [True]
        assert client.ping()


def test_a_stall_delivers_late(proxy: Proxy, server: Server) -> None:
    with Endpoint(proxy.url).connect(timeout_seconds=10) as client, server.client() as direct:
        client.set("k", 0)
        proxy.stall()
        thread = threading.Thread(target=client.set, args=("k", 1))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert direct.get("k") == b"0"
        proxy.heal()
        thread.join(5)
        assert direct.get("k") == b"1"
    assert proxy.happened["stall"] == 1


def test_latency_is_per_direction(proxy: Proxy, client: Redis) -> None:
    client.ping()
    for slow in ({"requests": 0.05}, {"replies": 0.05}):
        proxy.slow(**slow)
        began = time.monotonic()
        client.ping()
        assert time.monotonic() - began >= 0.05
        proxy.heal()
    assert proxy.happened["slow"] == 2


def test_refused_connections_and_flapping(proxy: Proxy, client: Redis) -> None:
    client.ping()
    proxy.refuse()
    for _ in range(2):
        with pytest.raises(redis_errors.ConnectionError):
            client.ping()
    proxy.accept()
    assert client.ping()
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                client.ping()
            except redis_errors.ConnectionError:
                time.sleep(0.002)

    thread = threading.Thread(target=keep_asking)
    thread.start()
    proxy.flap(5, up=0.01, down=0.01)
    stop.set()
    thread.join()
    assert client.ping()
    assert (proxy.happened["refuse"], proxy.happened["flap"]) == (6, 5)


def test_a_server_that_is_down_is_down_through_the_proxy(
    start_server: Callable[..., Server], proxy_before: MakeProxy
) -> None:
    server = start_server()
    proxy = proxy_before(server)
    with Endpoint(proxy.url).connect(timeout_seconds=2) as client:
        assert client.ping()
        server.kill()
        with pytest.raises(redis_errors.ConnectionError):
            client.ping()
        with pytest.raises(redis_errors.ConnectionError):
            client.ping()
        server.start()
        assert client.ping()


def test_large_requests_and_replies_pass_whole(proxy: Proxy) -> None:
    body = bytes(range(256)) * 40_000  # 10 MB
    with Endpoint(proxy.url).connect(timeout_seconds=20) as client:
        client.set("k", body)
        assert client.get("k") == body


def test_acknowledged_entries_are_noted(proxy: Proxy, client: Redis) -> None:
    client.xgroup_create("s", "g", "0", mkstream=True)
    ids = [client.xadd("s", {"n": n}) for n in range(3)]
    client.xreadgroup("g", "c", {"s": ">"})
    client.xack("s", "g", *ids[:2])
    assert proxy.acknowledged == {"g": {entry_id.decode() for entry_id in ids[:2]}}
