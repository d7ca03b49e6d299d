"""`make soak`: the fault tests in larger numbers, again and again with other seeds, until the time is over.

The first round is always played to its end, whatever the time. The table adds up all rounds; `--write` puts it into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.table import lines_of

CHECKOUT = Path(__file__).parents[2]
DOCUMENT = CHECKOUT / "docs" / "reliability.md"
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
SCALE = 10
"""Ten times what CI does: 2,000 kills, 20,000 histories, 500,000 inputs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Plays rounds; 0 when all was well in all of them."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no further round after so long")
    parser.add_argument("--seed", type=int, help="of the first round; the following ones take the following numbers")
    parser.add_argument("--scale", type=float, default=SCALE, help="how many times as much as CI does")
    parser.add_argument("--workers", default="2", help="test processes side by side")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md if all was well")
    parser.add_argument("pytest", nargs="*", help="what is run instead of all fault tests, and other arguments")
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    began = time.monotonic()
    failures, rounds = 0, 0
    with tempfile.TemporaryDirectory(prefix="imsync-soak-") as folder:
        log = Path(folder, "rows.jsonl")
        while rounds == 0 or time.monotonic() - began < options.minutes * 60:
            print(f"== round {rounds + 1}: --seed {seed + rounds} --scale {options.scale:g}", flush=True)
            failures += subprocess.run(_command(options, seed + rounds, log), cwd=CHECKOUT).returncode != 0
            rounds += 1
        rows: list[dict[str, Any]] = (
            [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
        )
    minutes = (time.monotonic() - began) / 60
    told = f"{rounds} round{'' if rounds == 1 else 's'}, {minutes:.0f} min, first seed {seed}, {failures} failed"
    print(f"\n== {told}")
    print("\n".join(lines_of(rows)))
    if failures or not rows:
        return 1
    if options.write:
        write(f"`make soak MINUTES={options.minutes:g} SEED={seed}`: {told}.", lines_of(rows))
    return 0


def write(told: str, lines: Sequence[str], document: Path = DOCUMENT) -> None:
    """Puts the table of a soak into the document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text("\n".join([before + BEGIN, told, *lines, END + after]), encoding="utf-8")


def _command(options: argparse.Namespace, seed: int, log: Path) -> list[str]:
    return [
        sys.executable, "-m", "pytest", *(options.pytest or ["tests/faults"]), "-q", "-p", "no:cacheprovider",
        "-c", str(CHECKOUT / "pyproject.toml"), "--rootdir", str(CHECKOUT),
        "-n", options.workers, "--dist", "worksteal", "-o", "timeout=3600",
        "--seed", str(seed), "--scale", str(options.scale), "--fault-log", str(log),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
