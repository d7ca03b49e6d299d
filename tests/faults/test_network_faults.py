"""What networks do to connections: nothing is lost, nothing happens twice, and nobody is blamed for it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import pytest

from tests.faults import proxy as proxy_module
from tests.faults.evidence import DEAD, STREAM, load_group, rows
from tests.faults.proxy import Proxy, Trap
from tests.faults.rig import World
from tests.faults.steps import At
from tests.faults.table import Fault, Row
from tests.faults.traffic import Traffic, settled
from tests.servers import eventually

AWAY = "cannot reach Redis"
"""What everybody says whose connection broke, or could not be made."""

ATTEMPTING = "imsync:{user-update}:attempting:"


def come_to_rest(world: World, row: Row) -> None:
    """Heals; those that have survived must do what is left, and do no harm."""
    world.heal()
    world.settle(by_living=True)
    row.found(world.check())


def letters(world: World, service: str = "group") -> Counter[str]:
    """How many dead letters each entry has."""
    return Counter(letter.source_id for letter in load_group(world.client, service).letters)


def unsent(world: World) -> int:
    """How many events wait in the outbox."""
    ((number,),) = rows(world.stores / "user.db", "SELECT count(*) FROM outbox WHERE sent_ms IS NULL")
    return int(number)


# ── connections end ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", ["cut", "reset"])
def test_all_connections_end_at_once(world: World, fault: Fault, end: str) -> None:
    row = fault(f"network · connections {end}")
    if end == "reset":
        world._proxy = Proxy(world.server, tcp=True)
    traffic = Traffic(world)
    for _ in range(5):
        traffic.progress()
        getattr(world.proxy, end)()
    traffic.progress()
    traffic.stop()
    row.reached(world.proxy.happened[end])
    come_to_rest(world, row)


@dataclass(frozen=True)
class Command:
    """A request that is lost, or whose reply is.

    Args:
        words: what it holds.
        reply_bytes: how much of a truncated reply arrives: less than the shortest one that says something has.
        nth: at which of them it begins.
        times: how many of them it happens to.
    """

    words: tuple[str, ...]
    reply_bytes: int
    nth: int = 1
    times: int = 3


COMMANDS = {
    # the first one of its pipeline that is lost; those before it are in the stream
    "XADD": Command(("XADD",), 7, nth=4, times=1),
    "XREADGROUP >": Command(("XREADGROUP", ">", "group"), 100),
    # the first one of all finds nothing
    "XREADGROUP 0": Command(("XREADGROUP", "0", "group"), 100, nth=2),
    "XACK": Command(("XACK", "group"), 2),
    "XCLAIM": Command(("XCLAIM", "group"), 100, times=1),
    # the first ones of all must succeed, or the consumers do not start
    "PEXPIRE of the heartbeat": Command(("PEXPIRE",), 3, nth=5),
    "EXEC of the dead letters": Command(("EXEC",), 2, times=1),
}
DEEDS: dict[str, Callable[[Proxy, Command], Trap]] = {
    "reply dropped": lambda proxy, c: proxy.drop_reply(*c.words, nth=c.nth, times=c.times),
    "reply truncated": lambda proxy, c: proxy.truncate_reply(*c.words, after=c.reply_bytes, nth=c.nth, times=c.times),
    "cut before it": lambda proxy, c: proxy.cut_at(*c.words, nth=c.nth, times=c.times),
    "request truncated": lambda proxy, c: proxy.truncate_request(*c.words, after=11, nth=c.nth, times=c.times),
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_request_or_its_reply_is_lost(world: World, fault: Fault, name: str, deed: str) -> None:
    row = fault(f"network · {deed} · {name}")
    command, lose = COMMANDS[name], DEEDS[deed]
    world.edit(60)
    if name != "XADD":
        world.publish()
    if name == "XCLAIM":
        world.consumer(at=[At("before_apply")], options={"batch": 5}).reach("before_apply").kill()
    if name == "XREADGROUP 0":
        world.proxy.drop_reply("XREADGROUP", ">", "group")  # so that it holds entries that it does not know of
    if name == "EXEC of the dead letters":
        traffic = Traffic(world, heartbeat_ms=60_000)  # whose beats are the only other transactions
        traffic.progress()
        trap = lose(world.proxy, command)
        world.inject(b"{")
    else:
        trap = lose(world.proxy, command)
        traffic = Traffic(world)
    eventually(lambda: trap.happened == command.times)
    row.reached(trap.happened)
    traffic.progress()
    traffic.stop()
    come_to_rest(world, row)
    assert all(number == 1 for number in letters(world).values())


# ── requests that arrive when their client has long gone on ──────────────────────────────────────────


@pytest.mark.parametrize("name", ["XADD", "XREADGROUP >", "XREADGROUP 0", "XACK"])
def test_a_request_arrives_late(world: World, fault: Fault, name: str) -> None:
    """A read that the server carries out for nobody gives entries to a consumer that does not know of them, and lives:
    nobody takes them over."""
    row = fault(f"network · arrives late · {name}")
    world.edit(20)
    if name != "XADD":
        world.publish()
    if name == "XREADGROUP 0":
        world.proxy.drop_reply("XREADGROUP", ">", "group")
    trap = world.proxy.hold(*COMMANDS[name].words, nth=COMMANDS[name].nth)
    traffic = Traffic(world, impatient=True)
    trap.wait()
    consumer = traffic.consumers[0]
    if name != "XADD":  # the publisher sends again by itself
        traffic.say(AWAY, consumer)
    traffic.progress()
    if name == "XREADGROUP >":
        consumer.freeze()
        # what it had asked for is over when its BLOCK is, and then there is something left for the late one
        delivered = load_group(world.client, "group").last_delivered
        eventually(lambda: len(world.client.xrange(STREAM, f"({delivered}")) > 10)  # type: ignore[arg-type]
        held = len(world.pending())
        trap.release()
        eventually(lambda: len(world.pending()) > held)
        consumer.thaw()
    else:
        trap.release()
    row.reached(trap.happened)
    traffic.progress()
    traffic.stop()
    come_to_rest(world, row)


def test_a_claim_arrives_late(world: World, fault: Fault) -> None:
    """The entries are the consumer's by then, and it has not been told."""
    row = fault("network · arrives late · XCLAIM")
    world.edit(20)
    world.publish()
    world.consumer(at=[At("before_apply")], options={"batch": 5}).reach("before_apply").kill()
    late, next_one = world.proxy.hold("XCLAIM", "group"), world.proxy.hold("XCLAIM", "group", nth=2)
    traffic = Traffic(world, impatient=True)
    next_one.wait()  # it has given up on the first one
    holders = set(world.pending().values())
    late.release()
    eventually(lambda: set(world.pending().values()) != holders)
    next_one.release()  # it finds nothing that is idle
    row.reached(late.happened)
    traffic.progress()
    traffic.stop()
    come_to_rest(world, row)


def test_a_dead_letter_arrives_late(world: World, fault: Fault) -> None:
    row = fault("network · arrives late · EXEC of the dead letters")
    traffic = Traffic(world, impatient=True, heartbeat_ms=60_000)
    traffic.progress()
    trap = world.proxy.hold("EXEC")
    poison = world.inject(b"{")
    trap.wait()
    eventually(lambda: letters(world)[poison] and letters(world, "friend")[poison])
    trap.release()
    row.reached(trap.happened)
    traffic.progress()
    traffic.stop()
    come_to_rest(world, row)
    assert (letters(world), letters(world, "friend")) == ({poison: 1}, {poison: 1})


# ── nothing moves ────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sent_disappears(world: World, fault: Fault) -> None:
    """For longer than imsync's own socket timeouts."""
    row = fault("network · black hole")
    traffic = Traffic(world)
    traffic.progress()
    traffic.stop()
    world.proxy.blackhole()
    with world.watching(*traffic.readers):
        world.edit(20)
        traffic.say(AWAY, *traffic.consumers)
    assert unsent(world) == 20, "edits are accepted all the same"
    row.reached(world.proxy.happened["blackhole"])
    come_to_rest(world, row)


@pytest.mark.parametrize("lost", ["requests", "replies"])
def test_one_direction_is_lost(world: World, fault: Fault, lost: str) -> None:
    """Where only replies are lost everything is carried out, again at every attempt."""
    row = fault(f"network · half open · {lost} are lost")
    traffic = Traffic(world, impatient=True)
    traffic.progress()
    world.proxy.blackhole(requests=lost == "requests", replies=lost == "replies")
    with world.watching(*traffic.readers):
        traffic.say(AWAY, times=2)
    row.reached(world.proxy.happened["blackhole"])
    world.proxy.heal()
    traffic.stop()
    come_to_rest(world, row)


def test_the_network_stalls_and_then_delivers(world: World, fault: Fault) -> None:
    """Whatever piled up is carried out, for clients that have given up long ago."""
    row = fault("network · stalled")
    traffic = Traffic(world, impatient=True)
    for _ in range(3):
        traffic.progress()
        world.proxy.stall()
        traffic.say(AWAY)
        world.proxy.heal()
    traffic.progress()
    row.reached(world.proxy.happened["stall"])
    traffic.stop()
    come_to_rest(world, row)


def test_connections_are_refused(world: World, fault: Fault) -> None:
    row = fault("network · connections refused")
    traffic = Traffic(world)
    traffic.progress()
    world.proxy.refuse()
    with world.watching(*traffic.readers):
        traffic.say(AWAY, times=10)
    assert unsent(world) > 0, "edits are accepted all the same"
    world.proxy.accept()
    traffic.progress()
    traffic.stop()
    row.reached(world.proxy.happened["refuse"])
    come_to_rest(world, row)


# ── it is slow ───────────────────────────────────────────────────────────────────────────────────────


def test_everything_takes_long(world: World, fault: Fault, rng: random.Random) -> None:
    """A beat takes longer than a heartbeat lasts: every consumer seems dead to the others, and is not."""
    row = fault("network · slow, 50 to 200 ms")
    traffic = Traffic(world)
    others = [world.consumer(service, options={"batch": 5}) for service in world.services]
    traffic.progress()
    for _ in range(3):
        world.proxy.slow(requests=rng.uniform(0.0, 0.05), replies=rng.uniform(0.05, 0.15))
        traffic.progress(5)
    traffic.stop()
    row.reached(world.proxy.happened["slow"])
    come_to_rest(world, row)
    assert all(worker.result for worker in [*traffic.consumers, *others])


class _Trickling(proxy_module._Link):
    """A connection on which 16 bytes move per millisecond."""

    def send_up(self, message: bytes) -> None:
        self._trickle(self.up, message)

    def send_down(self, message: bytes) -> None:
        self._trickle(self.down, message)

    def _trickle(self, queue: proxy_module.deque[tuple[float, memoryview]], message: bytes) -> None:
        due = max(time.monotonic(), queue[-1][0] if queue else 0.0)
        for at in range(0, len(message), 16):
            due += 0.001
            queue.append((due, memoryview(message)[at : at + 16]))
        self.proxy.happened["trickle"] += 1


def test_bytes_trickle(world: World, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read ever finds a whole message."""
    row = fault("network · a trickle of bytes")
    traffic = Traffic(world)
    traffic.progress()
    monkeypatch.setattr(proxy_module, "_Link", _Trickling)
    world.proxy.cut()
    traffic.progress(30)
    monkeypatch.undo()
    world.proxy.cut()
    traffic.stop()
    row.reached(world.proxy.happened["trickle"])
    come_to_rest(world, row)


# ── it comes and goes ────────────────────────────────────────────────────────────────────────────────

FLAPS = 20


def test_the_network_flaps_at_any_moment(world: World, fault: Fault, rng: random.Random) -> None:
    row = fault("network · flaps · any moment")
    traffic = Traffic(world)
    traffic.progress()
    for _ in range(FLAPS):
        world.proxy.flap(1, up=rng.random() * 0.05, down=rng.random() * 0.03)
    traffic.progress()
    traffic.stop()
    row.reached(world.proxy.happened["flap"])
    come_to_rest(world, row)
    assert not any(world.client.exists(DEAD + service, ATTEMPTING + service) for service in world.services)


def test_the_network_flaps_while_the_same_entries_are_delivered(world: World, fault: Fault, rng: random.Random) -> None:
    """Redis counts deliveries, and there are more of them than anything may fail or kill: that blames nobody."""
    row = fault("network · flaps · the same entries again and again")
    places: list[Callable[[], Trap]] = [
        lambda: world.proxy.drop_reply("XREADGROUP", "0", "group"),
        lambda: world.proxy.truncate_reply("XREADGROUP", "0", "group", after=rng.randint(1, 400)),
        lambda: world.proxy.cut_at("XACK", "group"),
        lambda: world.proxy.truncate_request("XACK", "group", after=rng.randint(1, 60)),
    ]
    world.edit(20)
    world.publish()
    world.proxy.drop_reply("XREADGROUP", ">", "group")
    trap = world.proxy.drop_reply("XREADGROUP", "0", "group", nth=2)
    traffic = Traffic(world, batch=20)
    for _ in range(FLAPS - 1):
        row.reached(trap.wait().happened)
        trap = rng.choice(places)()
    row.reached(trap.wait().happened)
    last = world.proxy.hold("XACK", "group").wait()
    deliveries = [each["times_delivered"] for each in world.client.xpending_range(STREAM, "group", "-", "+", 100)]
    last.release()
    traffic.stop()
    come_to_rest(world, row)
    assert max(deliveries) > FLAPS / 2
    assert not world.client.exists(DEAD + "group", ATTEMPTING + "group")


def test_the_network_is_away_for_longer_than_a_heartbeat(world: World, fault: Fault) -> None:
    """Another consumer takes over what the one holds that is away; it applies them too when it comes back."""
    row = fault("network · away for longer than the heartbeat")
    world.edit(40)
    world.publish()
    with closing(Proxy(world.server)) as line:  # that only one worker has
        away = world.consumer(url=line.url, at=[At("before_apply")]).reach("before_apply")
        held = len(world.pending())
        line.refuse()
        other = world.consumer()
        eventually(lambda: settled(world)[0] == 40 and not world.pending())
        row.reached(line.happened["refuse"])
        line.accept()
        away.go_on(for_good=True)
        other.terminate()
        assert other.finish()["taken_over"] == held > 0
        world.relay()
        world.consumer("friend")
        world.edit(20)  # for the one that was away
        come_to_rest(world, row)
    assert away.result["duplicates"] > 0
    assert away.result["applied"] > 0
