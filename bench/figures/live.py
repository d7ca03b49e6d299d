"""Runs edits at a steady rate with a consumer that follows, and looks at how late the copies are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.job import KEYS, expert_store, verify
from bench.processes import Started, loop
from bench.run import Bench
from bench.stats import percentile
from imsync.im.workspace import Workspace

RATE = 500
START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Lateness:
    """One run: milliseconds from an edit's commit to that of its copies, and the longest time of the write lock."""

    p50: float
    p99: float
    longest_lock_ms: float


def live(bench: Bench, who: str, workspace: Workspace, edits: int, *, big_user: int = 0) -> Lateness:
    """Edits and follows, as two processes.

    Args:
        who: `imsync` or `expert`.
        workspace: stores of their own, which are written.
        big_user: is edited once a second besides, and not looked at.
    """
    url, client = bench.scratch()
    group = "group" if who == "imsync" else "expert"
    client.execute_command("XGROUP", "CREATE", KEYS.stream, group, "0", "MKSTREAM")
    path = workspace.path_of("group") if who == "imsync" else expert_store(workspace)
    total = edits + (len(range(RATE // 2, edits, RATE)) if big_user else 0)
    editing = loop(f"live_{who}", "edit", url, workspace.path_of("user"), RATE, edits)
    follower = Started(loop(f"live_{who}", "follow", url, path, total))
    try:
        _wait_for_reader(client)
        edited = Started([*editing, str(big_user)] if big_user else editing).wait().result["times"]
    except BaseException:
        follower.kill()
        raise
    followed = follower.wait().result
    verify(who, workspace, Path(path))
    client.flushdb()
    copied = followed["times"]
    if edited.keys() != copied.keys():
        raise SystemExit(f"{who}: {len(edited)} edits, and {len(copied)} were applied")
    late = [(copied[name] - edited[name]) / 1000 for name in edited if int(name.rpartition("-")[2]) < edits]
    return Lateness(percentile(late, 0.5), percentile(late, 0.99), followed.get("longest_lock_ms", 0.0))


def _wait_for_reader(client: Any) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not client.info("clients")["blocked_clients"]:
        if time.monotonic() > deadline:
            raise SystemExit("the consumer does not begin to read")
        time.sleep(0.02)
