"""Simulated edits through the user store, its outbox and the relay, all durable, against the expert's publishing."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.figure import AT_LEAST, Figure, Goal, Result, Row, Side
from bench.job import KEYS
from bench.processes import imsync, loop, run
from bench.run import Bench
from bench.stats import Spread
from imsync.im.demo_data import generate
from imsync.im.setup import make_stores
from imsync.im.workspace import Workspace

EXPERT, IMSYNC = "expert loop, publishing alone", "imsync publish user-update"


def measure(bench: Bench) -> Result:
    """Runs the command for one edit and for many: the difference is without the start-up."""
    edits = bench.size(100_000, 20_000)
    url, client = bench.scratch()

    def expert() -> float:
        client.flushdb()
        return run(loop("expert", "publish", url, edits)).rate

    made = 0

    def ours() -> float:
        nonlocal made
        client.flushdb()
        made += 1
        workspace = Workspace(bench.folder / f"edits-{made}")
        make_stores(workspace, generate())
        command = imsync("publish", "user-update", "--url", url, "--data-dir", workspace.data_dir)
        start = run([*command, "--count", "1", "--seed", "1"])
        whole = run([*command, "--count", str(edits)])
        if whole.result["published"] != edits or whole.result["outbox"]:
            raise SystemExit(f"imsync publish user-update said {whole.result}")
        _verify(client, workspace.path_of("user"), edits + 1)
        return edits / (whole.seconds - start.seconds)

    found = bench.interleaved(bench.rounds(5), {EXPERT: expert, IMSYNC: ours})
    client.flushdb()
    published, edited = Spread.of(found[EXPERT]), Spread.of(found[IMSYNC])
    return Result(
        [Row("edits through the outbox", Goal(AT_LEAST, 0.3), edited.against(published))],
        [Side(name, spread, spread.against(published)) for name, spread in ((EXPERT, published), (IMSYNC, edited))],
        "edits/s",
        [
            f"`imsync publish user-update --count {edits}`, less the time of `--count 1`: simulating, comparing, one "
            "transaction per thousand edits with synchronous=FULL, publishing, and noting the entry ids. The last "
            "event of every user was compared with its row.",
        ],
    )


def _verify(client: Any, user_db: Path, expected: int) -> None:
    newest: dict[int, tuple[int, str]] = {}
    entries = client.xrange(KEYS.stream)
    for _, fields in entries:
        event = json.loads(fields[b"event"])
        newest[event["data"]["id"]] = int(event["sequence"]), event["data"]["nickName"]
    with closing(sqlite3.connect(user_db)) as store:
        rows = {row[0]: row[1:] for row in store.execute("SELECT id, version, nick_name FROM im_user")}
    if len(entries) != expected or any(rows[user_id] != state for user_id, state in newest.items()):
        raise SystemExit(f"{len(entries):,} of {expected:,} events, or some are not as their rows")


FIGURE = Figure("edits", "Edits through the outbox", measure, checked=True)
