"""Whether a server is set up for what imsync promises. Pure: what was asked is in the facts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from imsync.bus.codec import MAX_BODY_BYTES
from imsync.bus.facts import Facts
from imsync.bus.finding import Finding, bad, ok, unknown, warn

OLDEST = (6, 2)
FULL, FILLING = 0.9, 0.75
"""Shares of the memory limit from which it is red, and yellow."""
SKEW_WARN_SECONDS, SKEW_BAD_SECONDS = 2.0, 60.0
"""From the second on a loss is no longer told from what was trimmed: see `imsync.im.loss`."""
SHORT_TIMEOUT_SECONDS = 300


def version(facts: Facts) -> Finding:
    """Whether the server has the commands that imsync sends."""
    name = "version"
    if facts.info is None:
        return _no_info(name, facts)
    text = str(facts.info.get("redis_version", ""))
    numbers = tuple(int(each) for each in re.findall(r"\d+", text)[:2])
    valkey = facts.info.get("valkey_version")
    called = f"Valkey {valkey}" if valkey else f"Redis {text}"
    if numbers < OLDEST:
        return bad(name, f"{called} lacks XAUTOCLAIM and XTRIM MINID", "upgrade to Redis 6.2 or later, or to Valkey")
    if numbers < (7, 0):
        return ok(name, f"{called}: the lag is counted entry by entry, and ACL rules cannot tie a command to a key")
    return ok(name, f"{called}: all that imsync makes use of")


def eviction(facts: Facts) -> Finding:
    """Whether the server may throw away keys of its own choice."""
    name = "eviction"
    if facts.info is None or "maxmemory_policy" not in facts.info:
        return _no_info(name, facts)
    policy, limit = str(facts.info["maxmemory_policy"]), int(facts.info.get("maxmemory", 0))
    remedy = "CONFIG SET maxmemory-policy noeviction, and in redis.conf too"
    if policy == "noeviction":
        return ok(name, "maxmemory-policy noeviction")
    if not limit:
        return warn(name, f"maxmemory-policy {policy}: without effect until somebody sets maxmemory", remedy)
    if policy.startswith("volatile"):
        return bad(name, f"maxmemory-policy {policy}: heartbeats are evicted, and living consumers seem dead", remedy)
    return bad(name, f"maxmemory-policy {policy}: the stream and the dead letters are evicted, whole", remedy)


def memory(facts: Facts) -> Finding:
    """How much room is left."""
    name = "memory"
    if facts.info is None or "used_memory" not in facts.info:
        return _no_info(name, facts)
    used, limit = int(facts.info["used_memory"]), int(facts.info.get("maxmemory", 0))
    whose = "maxmemory"
    if not limit:
        limit, whose = int(facts.info.get("total_system_memory", 0)), "the machine's memory, with no maxmemory set"
    if not limit:
        return ok(name, f"{_size(used)} used, no maxmemory")
    share = used / limit
    evidence = f"{_size(used)} used, {share:.0%} of {_size(limit)} ({whose})"
    remedy = "raise maxmemory, lower retention.entries, or drop groups that pin the stream"
    if share >= FULL:
        return bad(name, evidence, remedy)
    return warn(name, evidence, remedy) if share >= FILLING else ok(name, evidence)


def persistence(facts: Facts) -> Finding:
    """What a restart would lose. Events are sent again from the outbox; dead letters are in Redis alone."""
    name = "persistence"
    if facts.info is None or "aof_enabled" not in facts.info:
        return _no_info(name, facts)
    remedy = "CONFIG SET appendonly yes, and in redis.conf too"
    if facts.info["aof_enabled"]:
        if facts.config is None:
            return unknown(
                name, f"appendonly yes; {facts.asker} may not ask how often it is synced",
                "as an administrator: CONFIG GET appendfsync, which should be everysec or always",
            )  # fmt: skip
        fsync = facts.config.get("appendfsync", "everysec")
        evidence = f"appendonly yes, appendfsync {fsync}"
        if fsync == "no":
            remedy = "CONFIG SET appendfsync everysec, and in redis.conf too"
            return warn(name, f"{evidence}: a power cut loses up to half a minute", remedy)
        return ok(name, evidence)
    if facts.config is None:
        return unknown(
            name, f"appendonly no; {facts.asker} may not ask for snapshots",
            "as an administrator: CONFIG GET save; better, CONFIG SET appendonly yes",
        )  # fmt: skip
    if facts.config.get("save"):
        return warn(name, f"snapshots only (save {facts.config['save']}): a crash loses what came since", remedy)
    return bad(name, "neither append-only file nor snapshots: a restart loses every dead letter", remedy)


def saving(facts: Facts) -> Finding:
    """Whether the last writes to the server's disk succeeded."""
    name = "saving"
    if facts.info is None or "rdb_last_bgsave_status" not in facts.info:
        return _no_info(name, facts)
    failed = [
        what
        for key, what in (
            ("aof_last_write_status", "writing the append-only file"),
            ("aof_last_bgrewrite_status", "rewriting the append-only file"),
            ("rdb_last_bgsave_status", "saving a snapshot"),
        )
        if facts.info.get(key, "ok") != "ok"
    ]
    if not failed:
        return ok(name, "the last writes to disk succeeded")
    return bad(
        name, f"failed: {', '.join(failed)}; the server may refuse writes (MISCONF)",
        "look at the server's log and at the space on its disk",
    )  # fmt: skip


def role(facts: Facts) -> Finding:
    """Whether the server takes writes."""
    name = "role"
    if facts.info is None or "role" not in facts.info:
        return _no_info(name, facts)
    if facts.info["role"] != "master":
        host, port = facts.info.get("master_host", "?"), facts.info.get("master_port", "?")
        return bad(name, f"a replica of {host}:{port}: it takes no writes", "point --url / IMSYNC_URL at the primary")
    replicas = int(facts.info.get("connected_slaves", 0))
    wanted = int((facts.config or {}).get("min-replicas-to-write") or 0)
    evidence = f"primary with {replicas} replica{'' if replicas == 1 else 's'}"
    good = int(facts.info.get("min_slaves_good_slaves", replicas))
    if wanted > good:
        return bad(
            name, f"{evidence}, {good} in time, and min-replicas-to-write {wanted}: it refuses writes",
            "bring the replicas back, or lower min-replicas-to-write",
        )  # fmt: skip
    return ok(name, evidence)


def idle_timeout(facts: Facts) -> Finding:
    """Whether the server closes connections that rest."""
    name = "idle-timeout"
    if facts.config is None:
        return _no_config(name, facts, "timeout", "0")
    seconds = int(facts.config.get("timeout", 0))
    if 0 < seconds < SHORT_TIMEOUT_SECONDS:
        return warn(
            name, f"timeout {seconds}: connections that rest for {seconds} s are closed, and consumers report trouble",
            "CONFIG SET timeout 0, and in redis.conf too",
        )  # fmt: skip
    return ok(name, f"timeout {seconds}")


def output_buffer(facts: Facts, batch: int) -> Finding:
    """Whether a batch fits into what the server holds for a client.

    Args:
        batch: how many entries one read takes.
    """
    name = "output-buffer"
    if facts.config is None:
        return _no_config(name, facts, "client-output-buffer-limit", "normal 0 0 0")
    limits = re.search(r"normal (\d+) (\d+) (\d+)", facts.config.get("client-output-buffer-limit", ""))
    if limits is None:
        return unknown(name, "the server has no client-output-buffer-limit", "ask whoever runs it")
    hard = int(limits[1])
    most = batch * MAX_BODY_BYTES
    if 0 < hard < most:
        return warn(
            name, f"clients get at most {_size(hard)}; {batch:,} of the largest events are {_size(most)}",
            "CONFIG SET client-output-buffer-limit 'normal 0 0 0', or lower consumer.batch",
        )  # fmt: skip
    return ok(name, "no limit for normal clients" if not hard else f"normal clients get {_size(hard)}")


def clock_skew(facts: Facts) -> Finding:
    """How far the two clocks are apart: entry ids are made by the one, and lags are measured by the other."""
    name = "clock"
    if facts.skew_seconds is None:
        return unknown(name, f"{facts.asker} may not ask for the TIME", "compare `date` on both machines")
    beyond = abs(facts.skew_seconds) - facts.skew_error_seconds
    direction = "ahead of" if facts.skew_seconds > 0 else "behind"
    evidence = f"the server is {abs(facts.skew_seconds):.3f} s {direction} this machine"
    remedy = "set both clocks by NTP"
    if beyond > SKEW_BAD_SECONDS:
        return bad(name, f"{evidence}: what is lost cannot be told from what was trimmed", remedy)
    return warn(name, f"{evidence}: lags are wrong by that", remedy) if beyond > SKEW_WARN_SECONDS else ok(
        name, f"{evidence}, ± {facts.skew_error_seconds:.3f} s"
    )  # fmt: skip


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    version, role, eviction, memory, persistence, saving, idle_timeout, clock_skew
)  # fmt: skip
"""Those that need nothing but the facts."""


def _no_info(name: str, facts: Facts) -> Finding:
    return unknown(name, f"{facts.asker} may not ask for INFO", "run `imsync doctor` as the operator")


def _no_config(name: str, facts: Facts, directive: str, wanted: str) -> Finding:
    return unknown(
        name, f"{facts.asker} may not ask for CONFIG GET {directive}",
        f"as an administrator: CONFIG GET {directive}, which should be {wanted}",
    )  # fmt: skip


def _size(value: Any) -> str:
    """Bytes for people."""
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
