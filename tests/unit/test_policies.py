"""The pure policies: waits, attempts, names, and how connections are made."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis import Connection, SSLConnection, UnixDomainSocketConnection

from imsync.bus.connection import READ_MARGIN_SECONDS, Endpoint
from imsync.bus.keys import Keys, check_name
from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, DeadLetter, Outcome, Retry
from imsync.bus.retry import Backoff, RetryPolicy, Steps
from imsync.errors import ConfigError, UsageError

# ── when to try again ────────────────────────────────────────────────────────────────────────────────

backoffs = st.builds(
    Backoff,
    first_seconds=st.floats(0.001, 10),
    factor=st.floats(1, 10),
    longest_seconds=st.floats(0.001, 100),
)


@given(backoffs, st.integers(1, 10**9), st.integers())
def test_a_delay_is_between_half_its_ceiling_and_its_ceiling(backoff: Backoff, attempt: int, seed: int) -> None:
    ceiling = min(backoff.first_seconds * backoff.factor ** min(attempt - 1, 64), backoff.longest_seconds)
    delay = backoff.delay(attempt, random.Random(seed))
    assert ceiling / 2 <= delay <= ceiling <= backoff.longest_seconds


class Highest(random.Random):
    def random(self) -> float:
        return 1.0


class Lowest(random.Random):
    def random(self) -> float:
        return 0.0


@pytest.mark.parametrize("seconds", [(), (1.0, -1.0)])
def test_steps_are_delays(seconds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least one delay"):
        Steps(seconds)


@pytest.mark.parametrize("bounds", [{"max_attempts": 0}, {"max_deaths": 0}])
def test_everything_is_tried_at_least_once(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RetryPolicy(**bounds)


def test_the_ceiling_doubles_up_to_the_longest_delay() -> None:
    backoff = Backoff(first_seconds=0.1, factor=2.0, longest_seconds=5.0)
    ceilings = [backoff.delay(attempt, Highest()) for attempt in range(1, 9)]
    assert ceilings == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert [backoff.delay(attempt, Lowest()) for attempt in range(1, 9)] == [delay / 2 for delay in ceilings]


@given(backoffs)
def test_the_ceiling_never_falls(backoff: Backoff) -> None:
    ceilings = [backoff.delay(attempt, Highest()) for attempt in [*range(1, 70), 10**6]]
    assert ceilings == sorted(ceilings)


def test_delays_are_spread_and_repeatable() -> None:
    def delays(seed: int) -> list[float]:
        rng = random.Random(seed)
        return [Backoff().delay(4, rng) for _ in range(1000)]

    assert delays(1) == delays(1) != delays(2)
    in_tenths = [0] * 10
    for delay in delays(1):
        in_tenths[int((delay - 0.4) / 0.4 * 10)] += 1
    assert all(60 <= n <= 140 for n in in_tenths)


@given(st.integers(1, 20), st.integers(1, 40))
def test_a_retry_becomes_a_dead_letter_at_the_limit(max_attempts: int, failures: int) -> None:
    policy = RetryPolicy(max_attempts=max_attempts)
    decided = policy.decide(Retry("the group service says no"), failures)
    if failures < max_attempts:
        assert decided == Retry("the group service says no")
    else:
        assert isinstance(decided, DeadLetter)
        assert decided.reason == "max_attempts"
        assert decided.message == f"failed {failures} times, last: the group service says no"


@pytest.mark.parametrize("outcome", [APPLIED, SUPERSEDED, DUPLICATE, DeadLetter("invalid", "bad")])
def test_other_outcomes_stand_however_often_it_failed_before(outcome: Outcome) -> None:
    assert RetryPolicy(max_attempts=1).decide(outcome, 99) is outcome


# ── names ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_keys_of_a_destination() -> None:
    keys = Keys("imsync", "user-update")
    assert keys.stream == "imsync:{user-update}:stream"
    assert keys.dead("group") == "imsync:{user-update}:dead:group"
    assert keys.alive("group", "host-1") == "imsync:{user-update}:alive:group/host-1"


names = st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True).filter(lambda name: name.upper() != "STREAMS")


@given(prefix=names, destination=names, group=names, consumer=names)
def test_all_keys_of_a_destination_share_its_hash_tag(prefix: str, destination: str, group: str, consumer: str) -> None:
    keys = Keys(prefix, destination)
    all_of_them = [keys.stream, keys.dead(group), keys.alive(group, consumer)]
    assert len(set(all_of_them)) == 3
    for key in all_of_them:
        # Redis Cluster hashes what stands between the first { and the first } after it
        assert re.findall(r"\{(.*?)\}", key) == [destination]
        assert key.startswith(f"{prefix}:")


@given(st.text(max_size=70))
@example("")
@example("x" * 64)
@example("x" * 65)
@example("STREAMS")
@example("streams")
@example("Streams")
@example("streams2")
@example("ok\n")
@example("é")
@example("٧")
@example("a{b}")
def test_a_name_is_one_to_64_plain_characters(name: str) -> None:
    alphabet = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-")
    if 1 <= len(name) <= 64 and set(name) <= alphabet and name.upper() != "STREAMS":
        assert check_name("group", name) == name
        return
    with pytest.raises(UsageError, match="bad group name") as raised:
        check_name("group", name)
    assert raised.value.message.isascii()
    assert raised.value.message.isprintable()


@given(names)
def test_every_such_name_is_accepted(name: str) -> None:
    assert check_name("consumer", name) == name


@pytest.mark.parametrize(("prefix", "destination"), [("im{sync", "x"), ("", "x"), ("x", "a b"), ("x", "STREAMS")])
def test_keys_refuse_bad_names(prefix: str, destination: str) -> None:
    with pytest.raises(UsageError):
        Keys(prefix, destination)


# ── connections ──────────────────────────────────────────────────────────────────────────────────────

passwords = st.text(st.characters(codec="utf-8", exclude_characters="*"), min_size=4).map(lambda text: f"pw§{text}")
urls = [
    "redis://:{}@localhost:6379/0",
    "redis://alice:{}@localhost:6379/0",
    "rediss://alice:{}@localhost:6380",
    "unix://alice:{}@/run/redis.sock?db=3",
    "redis://alice:{}@[::1]:6379/0",
    "redis://localhost:6379/0?password={}",
    "unix:///run/redis.sock?db=1&password={}",
    "redis://localhost/0?Password={}&db=2",
]


@pytest.mark.parametrize("url", urls)
@pytest.mark.parametrize("encoded", [True, False], ids=["percent-encoded", "raw"])
@settings(max_examples=40)
@given(password=passwords)
@example(password="pw§/?#@:[]")
@example(password="pw§pw@pw/pw")
def test_an_endpoint_never_shows_its_password(url: str, encoded: bool, password: str) -> None:
    written = quote(password, safe="") if encoded else password.replace("&", "")
    endpoint = Endpoint(url.format(written), password=f"other {password}")
    for shown in (str(endpoint), repr(endpoint), f"{endpoint}", repr([endpoint])):
        assert "pw§" not in shown
        assert quote("pw§") not in shown
        assert "***" in shown
    error: ConfigError | None = None
    try:
        endpoint.connect()
    except ConfigError as refusal:
        error = refusal
    # that of urllib or redis-py may quote a part of it
    assert error is None or ("pw§" not in f"{error} {error.hint}" and error.__suppress_context__)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://alice@localhost:6379/0", "redis://alice@localhost:6379/0"),
        ("redis://alice:secret@localhost:6379/0", "redis://alice:***@localhost:6379/0"),
        ("redis://:secret@[::1]:6379", "redis://:***@[::1]:6379"),
        ("unix:///run/a@b:c.sock?db=1", "unix:///run/a@b:c.sock?db=1"),
    ],
)
def test_what_an_endpoint_shows(url: str, shown: str) -> None:
    endpoint = Endpoint(url, username="bob", password="secret")
    assert (str(endpoint), repr(endpoint)) == (shown, f"Endpoint({shown!r})")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://localhost:6379/0", Connection),
        ("rediss://localhost:6379/0", SSLConnection),
        ("unix:///run/redis.sock?db=2", UnixDomainSocketConnection),
    ],
)
def test_clients_retry_nothing_and_wait_longer_than_they_block(url: str, kind: type[Connection]) -> None:
    client: Any = Endpoint(url, username="alice", password="secret").connect(block_ms=7000)
    connection = client.connection_pool.make_connection()
    assert type(connection) is kind
    assert connection.retry.get_retries() == 0
    assert list(connection.retry_on_error) == []
    assert not connection.retry_on_timeout
    assert client.get_retry().get_retries() == 0
    assert connection.socket_timeout == 7.0 + READ_MARGIN_SECONDS > 7.0
    assert (connection.username, connection.password) == ("alice", "secret")
    client = Endpoint(url).connect()
    assert client.connection_pool.make_connection().socket_timeout == READ_MARGIN_SECONDS


def test_tls_is_verified(tmp_path: Path) -> None:
    client: Any = Endpoint("rediss://h", tls_ca_file=tmp_path / "ca.pem").connect()
    connection = client.connection_pool.make_connection()
    assert connection.cert_reqs.name == "CERT_REQUIRED"
    assert connection.check_hostname
    assert connection.ca_certs == str(tmp_path / "ca.pem")


@pytest.mark.parametrize("url", ["", "localhost", "http://localhost", "redis://localhost:port", "redis://h:99999999"])
def test_a_url_that_is_not_one_of_redis_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError):
        Endpoint(url).connect()
