"""A proxy before a server, which does to the connection what networks do: programmable, and it counts what it did.

It understands the protocol well enough to act at the k-th request that holds given words, or at the reply to it,
however the bytes are cut into chunks:

    proxy = Proxy(server)                       # clients connect to proxy.url
    proxy.drop_reply("XREADGROUP", ">")         # carried out, the reply lost, the connection closed
    proxy.cut_at("XADD", nth=3)                 # closed before the third XADD reaches the server
    trap = proxy.hold("XACK")                   # held before it reaches the server, until …
    trap.wait(); worker.kill(); trap.release()  # … the test says so: the server carries it out
    proxy.blackhole(); proxy.heal()
    assert proxy.happened["drop_reply"] == 1

One thread moves the bytes and owns all state; what a test asks for is done on that thread before the call returns.
"""

from __future__ import annotations

import secrets
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.faults.resp import Framer, arguments, is_push
from tests.servers import Server

T = TypeVar("T")

Word = str | bytes

_CHUNK = 1 << 18
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with a timeout of 0: closing discards what is unsent and sends RST (socket(7))."""


class Trap:
    """Something that is to happen to the nth request that holds all of some words, and again to later ones.

    Args:
        name: what `Proxy.happened` calls it.
        nth: which of the matching requests is the first that it happens to.
        times: how many of them it happens to; None for all.
    """

    def __init__(self, proxy: Proxy, name: str, words: tuple[Word, ...], nth: int, times: int | None, at: int) -> None:
        self.name = name
        self.bytes_kept = at
        self.happened = 0
        self._proxy = proxy
        self._words = [word.encode() if isinstance(word, str) else word for word in words]
        self._matches = 0
        self._nth = nth
        self._times = times
        self._event = threading.Event()
        self.links: list[_Link] = []

    def takes(self, words: list[bytes]) -> bool:
        """Whether it happens to this request."""
        if not all(word in words for word in self._words):
            return False
        self._matches += 1
        past = self._matches - self._nth
        return past >= 0 and (self._times is None or past < self._times)

    def note(self) -> None:
        """It has happened once more."""
        self.happened += 1
        self._proxy.happened[self.name] += 1
        self._event.set()

    def wait(self, within: float = 10.0) -> Trap:
        """Waits until it has happened."""
        assert self._event.wait(within), f"{self.name} at {self._words} did not happen within {within:g} s"
        return self

    def release(self) -> None:
        """Lets held requests go on to the server, even if their client is dead by now."""
        self._proxy.call(lambda: [link.go_on() for link in self.taken()])

    def cut(self) -> None:
        """Closes the connections of held requests, which never reach the server."""
        self._proxy.call(lambda: [link.close() for link in self.taken()])

    def taken(self) -> list[_Link]:
        """The connections whose requests it holds, which it holds no longer."""
        taken, self.links = self.links, []
        return taken


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.up: deque[tuple[float, memoryview]] = deque()
        self.down: deque[tuple[float, memoryview]] = deque()
        self.requests, self.replies = Framer(), Framer()
        self.expected: deque[Trap | None] = deque()  # for each request sent: what happens to its reply
        self.waiting: deque[bytes] = deque()  # requests behind one that is held
        self.held = False
        self.swallowed = False
        self.closed = False
        self.client_gone = self.server_gone = False
        self.end: Callable[[], None] | None = None  # what happens when all that is on its way has left

    # ── the client's side ────────────────────────────────────────────────────────────────────────────

    def from_client(self) -> None:
        chunk = _receive(self.client)
        if chunk is None:
            return
        if not chunk:
            self.client_gone = True
        elif self.proxy.swallows_requests:
            self.swallow()
        else:
            self.waiting.extend(self.requests.feed(chunk))
            self.forward()

    def forward(self) -> None:
        """Sends waiting requests to the server, until one of them is held or is the last."""
        while self.waiting and not self.held and self.end is None:
            request = self.waiting.popleft()
            words = arguments(request)
            trap = self.proxy.trap_for(words)
            if words[:1] == [b"XACK"]:
                group = words[2].decode(errors="replace")
                self.proxy.acknowledged.setdefault(group, set()).update(word.decode() for word in words[3:])
            if trap is None or trap.name in ("drop_reply", "truncate_reply"):
                self.send_up(request)
                self.expected.append(trap)
                continue
            if trap.name == "hold":
                self.held = True
                self.waiting.appendleft(request)
                trap.links.append(self)
            elif trap.name == "truncate_request":
                self.send_up(request[: trap.bytes_kept])
                self.end = self.close
            else:
                self.end = self.reset if trap.name == "reset_at" else self.close
            trap.note()

    def go_on(self) -> None:
        """Sends the request that was held, and what came after it."""
        if self.closed:
            return
        self.held = False
        self.send_up(self.waiting.popleft())
        self.expected.append(None)
        self.forward()

    def send_up(self, message: bytes) -> None:
        delay = self.proxy.request_delay
        self.proxy.happened["slow"] += delay > 0
        self.up.append((time.monotonic() + delay, memoryview(message)))

    # ── the server's side ────────────────────────────────────────────────────────────────────────────

    def from_server(self) -> None:
        chunk = _receive(self.server)
        if chunk is None:
            return
        if not chunk:
            self.server_gone = True
        elif self.proxy.swallows_replies:
            self.swallow()
        else:
            for reply in self.replies.feed(chunk):
                if self.end is not None:
                    return
                trap = self.expected.popleft() if self.expected and not is_push(reply) else None
                if trap is None:
                    self.send_down(reply)
                    continue
                if trap.name == "truncate_reply":
                    self.send_down(reply[: trap.bytes_kept])
                self.end = self.close
                trap.note()

    def send_down(self, message: bytes) -> None:
        delay = self.proxy.reply_delay
        self.proxy.happened["slow"] += delay > 0
        self.down.append((time.monotonic() + delay, memoryview(message)))

    def swallow(self) -> None:
        """Notes that bytes of this connection are gone: it cannot be used any more once the network is back."""
        self.proxy.happened["blackhole"] += not self.swallowed
        self.swallowed = True

    # ── both ─────────────────────────────────────────────────────────────────────────────────────────

    def flush(self, now: float) -> None:
        """Sends what is due, and ends when there is nothing left to do."""
        try:
            _send_due(self.server, self.up, now)
        except OSError:
            self.server_gone = True
            self.up.clear()
        try:
            _send_due(self.client, self.down, now)
        except OSError:
            self.client_gone = True
            self.down.clear()
        if self.client_gone:
            self.down.clear()
        if self.up or self.down:
            return
        if self.end is not None:
            self.end()
        elif (self.client_gone and not self.held) or self.server_gone:
            self.close()

    def interest(self) -> tuple[int, int]:
        """What to wait for at the client and at the server."""
        reading = 0 if self.proxy.stalled else selectors.EVENT_READ
        now = time.monotonic()

        def writing(queue: deque[tuple[float, memoryview]]) -> int:
            return selectors.EVENT_WRITE if queue and queue[0][0] <= now else 0

        at_client = 0 if self.client_gone or self.end is not None else reading
        return at_client | writing(self.down), (0 if self.server_gone else reading) | writing(self.up)

    def next_due(self) -> float | None:
        """When the next delayed bytes are to be sent."""
        return min((queue[0][0] for queue in (self.up, self.down) if queue), default=None)

    def reset(self) -> None:
        """Closes with RST where the client's connection is TCP."""
        if self.client.family != socket.AF_UNIX:
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def close(self) -> None:
        """Closes both connections."""
        if self.closed:
            return
        self.closed = True
        self.proxy.forget(self)
        self.client.close()
        self.server.close()


class Proxy:
    """Stands between clients and a server.

    Args:
        server: the server, or the path of its unix socket.
        tcp: listen on a loopback port; a unix socket otherwise. Only TCP knows resets.
    """

    def __init__(self, server: Server | Path, *, tcp: bool = False) -> None:
        self.upstream = server.socket if isinstance(server, Server) else server
        self.happened: Counter[str] = Counter()
        """How often each fault has happened to a connection, by its name."""
        self.acknowledged: dict[str, set[str]] = {}
        """The ids of all entries that clients have acknowledged, by group."""
        self.request_delay = self.reply_delay = 0.0
        self.swallows_requests = self.swallows_replies = False
        self.stalled = False
        self._traps: list[Trap] = []
        self._links: set[_Link] = set()
        self._path = None if tcp else self.upstream.with_name(f"p{secrets.token_hex(4)}")
        self._selector = selectors.DefaultSelector()
        self._asked: deque[Callable[[], None]] = deque()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listener: socket.socket | None = None
        self._port = 0
        self._listen()
        self.url = f"unix://{self._path}" if self._path else f"redis://127.0.0.1:{self._port}/0"
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    # ── what happens at a request ────────────────────────────────────────────────────────────────────

    def hold(self, *words: Word, nth: int = 1, times: int | None = 1) -> Trap:
        """Holds the request before it reaches the server, until `Trap.release` or `Trap.cut`."""
        return self._trap("hold", words, nth, times)

    def cut_at(self, *words: Word, nth: int = 1, times: int | None = 1) -> Trap:
        """Closes the connection before the request reaches the server; those before it were carried out."""
        return self._trap("cut_at", words, nth, times)

    def reset_at(self, *words: Word, nth: int = 1, times: int | None = 1) -> Trap:
        """As `cut_at`, with RST on TCP."""
        return self._trap("reset_at", words, nth, times)

    def truncate_request(self, *words: Word, after: int, nth: int = 1, times: int | None = 1) -> Trap:
        """Lets so many bytes of the request through and closes the connection: it is not carried out."""
        return self._trap("truncate_request", words, nth, times, after)

    def drop_reply(self, *words: Word, nth: int = 1, times: int | None = 1) -> Trap:
        """The request is carried out; instead of its reply the client sees the connection closed."""
        return self._trap("drop_reply", words, nth, times)

    def truncate_reply(self, *words: Word, after: int, nth: int = 1, times: int | None = 1) -> Trap:
        """The request is carried out; the client gets so many bytes of the reply, then the connection is closed."""
        return self._trap("truncate_reply", words, nth, times, after)

    # ── what happens to all connections ──────────────────────────────────────────────────────────────

    def cut(self) -> int:
        """Closes all connections; how many there were."""
        return self._end_all("cut", _Link.close)

    def reset(self) -> int:
        """Resets all connections (RST on TCP); how many there were."""
        return self._end_all("reset", _Link.reset)

    def slow(self, *, requests: float = 0.0, replies: float = 0.0) -> None:
        """Delays whatever is sent from now on by so many seconds, per direction. Counts the messages."""
        self._set(request_delay=requests, reply_delay=replies)

    def blackhole(self, *, requests: bool = True, replies: bool = True) -> None:
        """Connections are accepted, and what is sent disappears. With one direction: half open. Connections that
        have lost bytes are closed by `heal`.
        """
        self._set(swallows_requests=requests, swallows_replies=replies)

    def stall(self) -> None:
        """Connections are accepted and nothing moves; `heal` delivers what has piled up."""
        self._set(stalled=True)
        self.happened["stall"] += len(self._links)

    def refuse(self) -> None:
        """Closes all connections, and refuses those that clients attempt, until `accept` or `heal`."""

        def unlisten() -> None:
            for link in list(self._links):
                link.close()
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None
                self.happened["refuse"] += 1

        self.call(unlisten)

    def accept(self) -> None:
        """Accepts connections again after `refuse`."""
        self.call(lambda: self._listen() if self._listener is None else None)

    def flap(self, times: int, *, up: float = 0.05, down: float = 0.02, within: float = 10.0) -> None:
        """So often: waits for a client to be connected for `up` seconds, closes all connections, and refuses others
        for `down` seconds. Returns when the network is up for good.
        """
        for _ in range(times):
            deadline = time.monotonic() + within
            while not self._links:
                assert time.monotonic() < deadline, f"nobody connects within {within:g} s"
                time.sleep(0.002)
            time.sleep(up)
            cut = len(self._links)
            self.refuse()
            self.happened["flap"] += cut > 0
            time.sleep(down)
            self.accept()

    def heal(self) -> None:
        """The network is as it should be: no traps, no delays; what was held goes on."""

        def mend() -> None:
            traps, self._traps = self._traps, []
            self.request_delay = self.reply_delay = 0.0
            self.swallows_requests = self.swallows_replies = self.stalled = False
            for link in [link for link in self._links if link.swallowed]:
                link.close()
            for trap in traps:
                for link in trap.taken():
                    link.go_on()
            if self._listener is None:
                self._listen()

        self.call(mend)

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._links)

    def close(self) -> None:
        """Closes everything and ends the thread."""
        self._set(_closed=True)
        self._thread.join()

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────

    def call(self, task: Callable[[], T]) -> T:
        """Does something on the proxy's own thread, and waits until it is done."""
        done = threading.Event()
        results: list[Any] = []

        def run() -> None:
            try:
                results.append((True, task()))
            except BaseException as error:
                results.append((False, error))
            done.set()

        self._asked.append(run)
        self._waker.send(b"!")
        assert done.wait(20), "the proxy's thread is gone"
        fine, result = results[0]
        if not fine:
            raise result
        return result  # type: ignore[no-any-return]

    def trap_for(self, words: list[bytes]) -> Trap | None:
        """What is to happen to this request. Every trap counts it, also where another one takes it."""
        takers = [trap for trap in self._traps if trap.takes(words)]
        return takers[0] if takers else None

    def forget(self, link: _Link) -> None:
        """The link is about to be closed."""
        self._links.discard(link)
        for side in (link.client, link.server):
            if side.fileno() in self._selector.get_map():
                self._selector.unregister(side)

    def _trap(self, name: str, words: tuple[Word, ...], nth: int, times: int | None, at: int = 0) -> Trap:
        trap = Trap(self, name, words, nth, times, at)
        self.call(lambda: self._traps.append(trap))
        return trap

    def _set(self, **values: object) -> None:
        self.call(lambda: self.__dict__.update(values))

    def _end_all(self, name: str, end: Callable[[_Link], None]) -> int:
        def run() -> int:
            links = list(self._links)
            for link in links:
                end(link)
            self.happened[name] += len(links)
            return len(links)

        return self.call(run)

    def _listen(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(self._path))
        else:
            listener = socket.socket(socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            self._port = listener.getsockname()[1]
        listener.listen(128)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener

    def _take_connection(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self.upstream))
        except OSError:  # the server is down, and so is its address
            server.close()
            client.close()
            return
        client.setblocking(False)
        server.setblocking(False)
        self._links.add(_Link(self, client, server))

    def _run(self) -> None:
        while not self._closed:
            due = min((at for link in self._links if (at := link.next_due()) is not None), default=None)
            for link in self._links:
                for side, wanted in zip((link.client, link.server), link.interest(), strict=True):
                    self._wait_for(side, wanted, link)
            timeout = None if due is None else max(0.0, due - time.monotonic())
            for key, events in self._selector.select(timeout):
                if key.fileobj is self._woken:
                    self._woken.recv(_CHUNK)
                    while self._asked:
                        self._asked.popleft()()
                elif key.fileobj is self._listener:
                    self._take_connection()
                elif key.data in self._links and events & selectors.EVENT_READ:
                    (key.data.from_client if key.fileobj is key.data.client else key.data.from_server)()
            now = time.monotonic()
            for link in list(self._links):
                link.flush(now)
        for link in list(self._links):
            link.close()
        for each in (self._listener, self._waker, self._woken):
            if each is not None:
                each.close()
        self._selector.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _wait_for(self, side: socket.socket, wanted: int, link: _Link) -> None:
        key = self._selector.get_map().get(side.fileno())
        if key is None:
            if wanted:
                self._selector.register(side, wanted, link)
        elif not wanted:
            self._selector.unregister(side)
        elif key.events != wanted:
            self._selector.modify(side, wanted, link)


def _receive(side: socket.socket) -> bytes | None:
    """What has arrived; empty at the end; None when it was a false alarm."""
    try:
        return side.recv(_CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _send_due(side: socket.socket, queue: deque[tuple[float, memoryview]], now: float) -> None:
    while queue and queue[0][0] <= now:
        due, data = queue[0]
        try:
            sent = side.send(data)
        except BlockingIOError:
            return
        if sent < len(data):
            queue[0] = (due, data[sent:])
        else:
            queue.popleft()
