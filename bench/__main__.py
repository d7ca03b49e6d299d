"""Measures imsync against the hand-written loop and others.

python -m bench                     every figure
python -m bench store latency       some of them
python -m bench --quick             every figure at a small scale, in a few minutes
python -m bench --full              every figure, memory up to 10,000,000 events
python -m bench --check             the ratios alone: exit code 1 where one misses its goal by more than the noise
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import results
from bench.figure import Figure, Result
from bench.figures import figures
from bench.processes import TOP
from bench.run import Bench, Scale
from bench.server import Server
from bench.table import terminal

CHECK_ROUNDS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes when asked; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its server and its processes end with it
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    known = figures()
    options = _options(known, arguments)
    names = options.figures or [name for name, figure in known.items() if figure.checked or not options.check]
    scale = Scale.QUICK if options.quick else Scale.FULL if options.full else Scale.NORMAL
    rounds = options.rounds or (CHECK_ROUNDS if options.check else None)
    measured: dict[str, Result] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="imsync-bench-") as name:
        server = Server(Path(name) / "server")
        try:
            machine = (
                f"{server.version}, SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}, "
                f"{os.cpu_count()} cores"
            )
            print(f"bench: {machine}", file=sys.stderr)
            bench = Bench(Path(name), server, scale, rounds)
            for figure in (known[each] for each in names):
                print(f"{figure.name}: {figure.title}", file=sys.stderr, flush=True)
                began = time.monotonic()
                try:
                    measured[figure.name] = figure.measure(bench)
                    print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
                except SystemExit as failure:  # the others took long enough to be worth having
                    failed[figure.name] = str(failure)
                    print(f"  failed: {failure}", file=sys.stderr, flush=True)
        finally:
            server.stop()
    if scale is Scale.QUICK:
        print("scaled down (--quick): the numbers are noisier, and some sizes are a tenth\n")
    print(terminal(measured))
    if options.write:
        flags = "".join(f" --{name}" for name in ("quick", "full") if getattr(options, name))
        flags += f" --rounds {options.rounds}" if options.rounds else ""
        kept = {
            name: results.Kept(result, f"python -m bench {name}{flags}", machine, scale is Scale.QUICK)
            for name, result in measured.items()
        }
        for path in results.write(known, kept):
            print(f"bench: wrote {path.relative_to(TOP)}", file=sys.stderr)
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    return int(bool(failed) or (options.check and not _check(measured)))


def _options(known: dict[str, Figure], arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(known))
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    size.add_argument("--full", action="store_true", help="the largest sizes")
    parser.add_argument("--rounds", type=int, help="of every figure; otherwise it chooses itself")
    parser.add_argument("--write", action="store_true", help="put the figures into bench/RESULTS.md, and the chart")
    parser.add_argument("--check", action="store_true", help="judge the ratios, with a margin for the noise")
    options = parser.parse_args(arguments)
    if unknown := set(options.figures) - known.keys():
        parser.error(f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def _check(measured: dict[str, Result]) -> bool:
    """Whether every goal is met but for noise; says which are not."""
    missed = [
        f"{name}: {row.label} is {row.goal.judged(row.spread):.2f}, the goal is {row.goal.sign} {row.goal.bound:g} "
        f"(noise {row.spread.noise:.0%})"
        for name, result in measured.items()
        for row in result.rows
        if not row.goal.met_but_for_noise(row.spread)
    ]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return not missed


if __name__ == "__main__":
    sys.exit(main())
