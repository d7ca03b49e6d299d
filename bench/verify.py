"""What `imsync verify --json` costs: CPU on the stores of `imsync init`, and peak memory on a large store.

    python -m bench.verify [--rounds 5] [--large] [--users 1000000]

The CPU is that of the whole process, start-up included, user and system, by wait4. The peak memory is VmHWM, read while
the process runs. --large builds a store with SQL in a temporary folder first: three memberships and two friendships per
user.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imsync.embedded import EmbeddedServer
from imsync.im.friend_store import FriendStore
from imsync.im.group_store import GroupStore
from imsync.im.user_store import UserStore
from imsync.im.workspace import Workspace

TOP = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.02

USERS = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
    INSERT INTO im_user SELECT 7280009836970909185 + i * 4099, 'user' || i, 'name of ' || i,
        'https://cdn.example.org/' || i || '.jpg', 'https://cdn.example.org/' || i || '_t.jpg', 1, 0, 0 FROM n
"""
REPLICAS = """
    INSERT INTO user_profile_replica
    SELECT id, version, nick_name, {picture}, deleted, 0 FROM source.im_user ORDER BY id
"""
MEMBERS = """
    INSERT INTO im_group_member SELECT u.id, g.n, u.nick_name, u.head_image_thumb, '', 0
    FROM source.im_user AS u, (SELECT 1 AS n UNION SELECT 2 UNION SELECT 3) AS g ORDER BY u.id
"""
FRIENDS = """
    INSERT INTO im_friend SELECT u.id, f.n, u.nick_name, u.head_image, ''
    FROM source.im_user AS u, (SELECT 1 AS n UNION SELECT 2) AS f ORDER BY u.id
"""


@dataclass(frozen=True)
class Measured:
    """One run: what it printed, CPU seconds of the whole process, its peak memory, and how long it took."""

    result: dict[str, Any]
    cpu_seconds: float
    peak_mib: float
    seconds: float


def imsync(data_dir: Path, *words: str) -> Measured:
    """Runs a command to its end."""
    environment = {**os.environ, "IMSYNC_DATA_DIR": str(data_dir)}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(TOP / "cli.py"), *words, "--json"], env=environment, stdout=subprocess.PIPE
    )
    peak_kib = 0
    while True:
        peak_kib = max(peak_kib, _peak_kib(process.pid))
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(POLL_SECONDS)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.stdout is not None
    with process.stdout as out:
        printed = out.read()
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}: {printed!r}")
    return Measured(json.loads(printed), usage.ru_utime + usage.ru_stime, peak_kib / 1024, time.monotonic() - began)


def _peak_kib(pid: int) -> int:
    """VmHWM, which begins anew with the program that a process runs; 0 when the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def build(data_dir: Path, users: int) -> None:
    """Makes stores of so many users, right in all."""
    workspace = Workspace(data_dir)
    UserStore(workspace.path_of("user"), create=True).close()
    GroupStore(workspace.path_of("group"), create=True).close()
    FriendStore(workspace.path_of("friend"), create=True).close()
    _fill(workspace.path_of("user"), None, [(USERS, (users,))])
    source = workspace.path_of("user")
    _fill(workspace.path_of("group"), source, [(REPLICAS.format(picture="head_image_thumb"), ()), (MEMBERS, ())])
    _fill(workspace.path_of("friend"), source, [(REPLICAS.format(picture="head_image"), ()), (FRIENDS, ())])


def _fill(path: Path, source: Path | None, statements: list[tuple[str, tuple[int, ...]]]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as store:
        store.execute("PRAGMA synchronous = OFF")
        if source:
            store.execute("ATTACH ? AS source", (str(source),))
        for statement, parameters in statements:
            store.execute(statement, parameters)
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def main() -> None:
    """Measures, and prints a line for each store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--users", type=int, default=1_000_000, help="with --large")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="im-") as folder:
        data_dir = Path(folder) / "data"
        if options.large:
            build(data_dir, options.users)
            rounds = [imsync(data_dir, "verify")]
        else:
            try:
                imsync(data_dir, "init")
                rounds = [imsync(data_dir, "verify") for _ in range(options.rounds)]
            finally:
                EmbeddedServer(data_dir).stop()
        first = rounds[0].result
        cpu = [each.cpu_seconds for each in rounds]
        peak = max(each.peak_mib for each in rounds)
        print(
            f"{first['users']:,} users, {first['rows']:,} rows: CPU {min(cpu):.2f} s at best, "
            f"{statistics.median(cpu):.2f} s median of {len(cpu)}; peak {peak:.0f} MiB; "
            f"{min(each.seconds for each in rounds):.2f} s at best"
        )


if __name__ == "__main__":
    main()
