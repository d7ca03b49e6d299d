"""`imsync consume group --until-empty` against the hand-written expert loop, on one backlog, in one run.

    python -m bench.consume [--events 100000] [--rounds 5] [--write]

Each round starts both from the same stores and the same stream, as processes of their own, one after the other, and
compares every member row with the user store at the end. Rates are the processes' own (without start-up); the ratio
is taken round by round, so that it holds on a noisy machine. --write puts the table into bench/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from imsync.bus import Bus, Endpoint
from imsync.bus.keys import Keys
from imsync.cli.publish import CHUNK
from imsync.im.demo_data import generate
from imsync.im.events import DESTINATION
from imsync.im.relay import Relay
from imsync.im.setup import make_stores
from imsync.im.simulator import simulate_edits
from imsync.im.user_store import ProfileEdit
from imsync.im.workspace import Workspace

TOP = Path(__file__).resolve().parent.parent
RESULTS = TOP / "bench" / "RESULTS.md"
START_SECONDS = 10.0
BEGIN, END = "<!-- consume: begin -->", "<!-- consume: end -->"


@dataclass(frozen=True)
class Measured:
    """One process: events per second by its own clock, CPU seconds, peak memory."""

    events: int
    rate: float
    cpu_seconds: float
    peak_mib: float


class Server:
    """A Redis of the benchmark's own, append-only file on, fsync every second: redis-server when there is one."""

    def __init__(self, folder: Path) -> None:
        from imsync.embedded import find_server_binary

        binary = shutil.which("redis-server") or str(find_server_binary())
        self.socket = folder / "bench.sock"
        self.process = subprocess.Popen(
            [binary, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder), "--save", "",
             "--appendonly", "yes", "--appendfsync", "everysec"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.url = f"unix://{self.socket}"
        deadline = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"{binary} ended while starting, with exit code {self.process.returncode}")
            if time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise SystemExit(f"{binary} does not listen on {self.socket} after {START_SECONDS:g} s")
            time.sleep(0.01)
        info = cast(Any, Endpoint(self.url).connect()).info("server")
        self.version = f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"

    def stop(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait()


def prepare(server: Server, folder: Path, events: int) -> Workspace:
    """Stores, and a backlog of so many events in the stream."""
    workspace = Workspace(folder / "template")
    make_stores(workspace, generate())
    users = workspace.user_store()
    edits = simulate_edits(users.active_ids(), count=events, seed=7)
    with Bus.from_url(server.url) as bus:
        relay = Relay(users, bus.publisher(DESTINATION))
        while chunk := [edit for _, edit in zip(range(CHUNK), edits, strict=False)]:
            report = users.edit_many(
                [
                    ProfileEdit(
                        user_id=edit.user_id,
                        nick_name=edit.nick_name,
                        head_image=edit.head_image,
                        head_image_thumb=edit.head_image_thumb,
                    )
                    for edit in chunk
                ]
            )
            relay.deliver(report.last_seq)
    users.close()
    return workspace


def expert_store(workspace: Workspace, path: Path) -> None:
    """The same member rows in the layout of the expert loop."""
    store = sqlite3.connect(path)
    store.executescript(
        f"""
        ATTACH '{workspace.path_of("group")}' AS source;
        CREATE TABLE im_group_member (
            group_id INTEGER, user_id INTEGER, user_nick_name TEXT, head_image TEXT,
            remark_nick_name TEXT, quit INTEGER,
            PRIMARY KEY (group_id, user_id)
        );
        INSERT INTO im_group_member
            SELECT group_id, user_id, user_nick_name, head_image, remark_nick_name, quit
            FROM source.im_group_member ORDER BY group_id, user_id;
        CREATE INDEX im_group_member_user ON im_group_member (user_id);
        """
    )
    store.close()


def run(command: list[str], environment: dict[str, str]) -> tuple[dict[str, Any], float, float]:
    """Runs a process; its JSON result, CPU seconds and peak memory in MiB."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, cwd=TOP)
        peak = 0.0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            peak = max(peak, high_water_mib(process.pid))
            time.sleep(0.01)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        if process.returncode:
            raise SystemExit(f"{command} failed with {process.returncode}")
        output.seek(0)
        return json.loads(output.read()), ended[2].ru_utime + ended[2].ru_stime, peak


def high_water_mib(pid: int) -> float:
    """The peak memory of a running process so far. (Its ru_maxrss would include that of the process it was forked
    from.) 0 where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def wrong_rows(workspace: Workspace, path: Path) -> int:
    """Member rows that differ from the user store."""
    store = sqlite3.connect(path)
    store.execute(f"ATTACH '{workspace.path_of('user')}' AS source")
    (wrong,) = store.execute(
        "SELECT count(*) FROM im_group_member AS m JOIN source.im_user AS u ON u.id = m.user_id "
        "WHERE m.user_nick_name <> u.nick_name OR m.head_image <> u.head_image_thumb"
    ).fetchone()
    store.close()
    return int(wrong)


def one_round(server: Server, workspace: Workspace, folder: Path) -> tuple[Measured, Measured]:
    """Both, once, from the same start."""
    client = cast(Any, Endpoint(server.url).connect())
    keys = Keys("imsync", DESTINATION)
    stream = keys.stream
    environment = {key: value for key, value in os.environ.items() if not key.startswith("IMSYNC_")}
    measured = []
    for name in ("expert", "imsync"):
        shutil.rmtree(folder / "round", ignore_errors=True)
        copy = Workspace(folder / "round")
        shutil.copytree(workspace.data_dir, copy.data_dir)
        group = "expert" if name == "expert" else "group"
        client.execute_command("XGROUP", "DESTROY", stream, group)
        client.execute_command("XGROUP", "CREATE", stream, group, "0")
        client.delete(keys.store(group))  # each round has a store of its own
        if name == "expert":
            path = folder / "round" / "expert.db"
            expert_store(workspace, path)
            command = [sys.executable, "bench/expert.py", server.url, str(path)]
        else:
            path = copy.path_of("group")
            command = [sys.executable, "-m", "imsync", "consume", "group", "--until-empty", "--json",
                       "--url", server.url, "--data-dir", str(copy.data_dir), "--config", os.devnull]  # fmt: skip
        result, cpu, peak = run(command, environment)
        if wrong := wrong_rows(workspace, path):
            raise SystemExit(f"{name} left {wrong} rows wrong")
        measured.append(Measured(result["events"], result["events"] / result["seconds"], cpu, peak))
    return measured[0], measured[1]


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into bench/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imsync-bench-") as name:
        folder = Path(name)
        server = Server(folder)
        try:
            print(
                f"{server.version}, SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}",
                flush=True,
            )
            workspace = prepare(server, folder, options.events)
            rounds = []
            for number in range(options.rounds):
                expert, imsync = one_round(server, workspace, folder)
                rounds.append((expert, imsync))
                print(
                    f"round {number + 1}: expert {expert.rate:,.0f}/s, imsync {imsync.rate:,.0f}/s, "
                    f"ratio {imsync.rate / expert.rate:.2f}",
                    flush=True,
                )
        finally:
            server.stop()
    ratios = [imsync.rate / expert.rate for expert, imsync in rounds]
    table = [
        f"`python -m bench.consume --events {options.events} --rounds {options.rounds} --write` on {server.version}, "
        f"SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}, {os.cpu_count()} cores:",
        "",
        "| | events/s, median (min to max) | CPU s per 100,000 | peak MiB |",
        "|---|---|---|---|",
        *(
            f"| {label} | {statistics.median(m.rate for m in side):,.0f} ({min(m.rate for m in side):,.0f} to "
            f"{max(m.rate for m in side):,.0f}) | "
            f"{statistics.median(m.cpu_seconds / m.events for m in side) * 100_000:.2f} | "
            f"{max(m.peak_mib for m in side):.0f} |"
            for label, side in (
                ("expert loop", [expert for expert, _ in rounds]),
                ("imsync consume group", [imsync for _, imsync in rounds]),
            )
        ),
        "",
        f"Ratio imsync / expert: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}). "
        "All member rows were right after every round, for both.",
    ]
    print("\n" + "\n".join(table))
    if options.write:
        text = RESULTS.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        RESULTS.write_text(before + BEGIN + "\n" + "\n".join(table) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
