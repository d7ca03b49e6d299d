"""Counts machine instructions per event, as ratios to json.loads of the same bodies in the same process.

    python -m bench.instructions            compares with bench/bounds.toml: exit code 1 above a bound and its margin
    python -m bench.instructions --write    makes what is measured now the bound

Instructions do not depend on what else the machine does. To raise a bound on purpose, run it with --write and say in
the commit what the instructions buy.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.instructions.workload import EVENTS, PHASES

TOP = Path(__file__).resolve().parents[2]
BOUNDS = TOP / "bench" / "bounds.toml"
REFERENCE = "json.loads"
MARGIN = 0.05
BELOW = 0.10
"""Who is faster by more than this is told that the bound may be lowered."""
HEAD = """\
# Instructions per event, as a ratio to json.loads of the same bodies. Made by `make instructions ARGS=--write`.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts, and compares or writes; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--write", action="store_true", help="make what is measured now the bound")
    options = parser.parse_args(arguments)
    if not shutil.which("valgrind"):
        print("instructions: valgrind not found; on Debian: apt install valgrind", file=sys.stderr)
        return 1
    counted = count()
    ratios = {name: counted[name] / counted[REFERENCE] for name in PHASES[2:]}
    if options.write:
        write(ratios)
        print(f"instructions: wrote {BOUNDS.relative_to(TOP)}", file=sys.stderr)
    bounds = tomllib.loads(BOUNDS.read_text(encoding="utf-8"))
    print(f"{'':12} {'per event':>10} {'ratio':>7} {'bound':>7}")
    print(f"{REFERENCE:12} {counted[REFERENCE] / EVENTS:10,.0f} {1.0:7.2f}")
    for name, ratio in ratios.items():
        print(f"{name:12} {counted[name] / EVENTS:10,.0f} {ratio:7.2f} {bounds['ratios'][name]:7.2f}")
    exceeded, lower = judge(ratios, bounds)
    for line in lower:
        print(f"instructions: {line}", file=sys.stderr)
    for line in exceeded:
        print(f"instructions: {line}", file=sys.stderr)
    return 1 if exceeded else 0


def count() -> dict[str, int]:
    """Runs the workload under callgrind; the instructions of each phase, warm."""
    with tempfile.TemporaryDirectory(prefix="imsync-callgrind-") as folder:
        out = Path(folder) / "out"
        done = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--dump-before=getsid",
             sys.executable, "-m", "bench.instructions.workload"],
            cwd=TOP, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"valgrind failed with {done.returncode}:\n{done.stderr[-2000:]}")
        dumps = sorted(Path(folder).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [_total(path) for path in dumps]
    if len(totals) < 2 * len(PHASES):
        raise SystemExit(f"{len(totals)} dumps for {2 * len(PHASES)} phases: valgrind does not see getsid")
    return dict(zip(PHASES, totals[len(PHASES) : 2 * len(PHASES)], strict=True))


def judge(ratios: Mapping[str, float], bounds: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """What is above its bound and the margin; and what is far below it."""
    margin = bounds["margin"]["share"]
    exceeded, lower = [], []
    for name, ratio in ratios.items():
        bound = bounds["ratios"][name]
        if ratio > bound * (1 + margin):
            exceeded.append(
                f"{name} takes {ratio:.2f} times the instructions of {REFERENCE}, {ratio / bound - 1:.0%} above its "
                f"bound of {bound:.2f}; if that is meant, `make instructions ARGS=--write` raises it"
            )
        elif ratio < bound * (1 - BELOW):
            less = 1 - ratio / bound
            lower.append(f"{name} is {less:.0%} below its bound; `make instructions ARGS=--write` lowers it")
    return exceeded, lower


def write(ratios: Mapping[str, float]) -> None:
    """Makes ratios the bounds."""
    lines = [HEAD, "[margin]", f"share = {MARGIN}", "", "[ratios]"]
    lines += [f"{name} = {ratio:.3f}" for name, ratio in ratios.items()]
    BOUNDS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _total(path: Path) -> int:
    found = re.search(r"^totals: (\d+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{path.name} has no total")
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
