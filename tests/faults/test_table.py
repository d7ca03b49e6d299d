"""The table tells what was reached and found, whichever process it happened in, and fails what proves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import soak
from tests.faults.nursery import CHECKOUT

TESTS = """
import random
from dataclasses import dataclass

import pytest

from tests.faults.table import open_row

@dataclass
class Found:
    name: str

@pytest.mark.parametrize("n", [1, 2, 3])
def test_fine(request, n):
    open_row(request.node, "harmless").reached(n)

def test_broken(request):
    row = open_row(request.node, "harmful")
    row.reached()
    row.found([Found("version_fell"), Found("version_fell"), Found("pending_left")])

def test_nothing(request):
    open_row(request.node, "imaginary")

def test_raises(request):
    open_row(request.node, "unexpected").reached()
    raise RuntimeError("boom")

def test_kills(request):
    open_row(request.node, "kill -9 · somebody").reached(2)

def test_mutant(request):
    row = open_row(request.node, "bug", "mutant")
    row.reached()
    row.found([Found("pending_left")])
    row.verdict = "pending_left"

def test_seed(request):
    print("seed is", request.config.option.seed, "scale is", request.config.option.scale)
    open_row(request.node, f"seed {request.config.option.seed}").reached()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_of_table.py").write_text(TESTS)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(CHECKOUT / "pyproject.toml"), "--rootdir", str(folder),
         "-p", "no:cacheprovider", "test_of_table.py", *arguments],
        cwd=folder, env={"PYTHONPATH": str(CHECKOUT), "PATH": ""}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("workers", ["0", "2"])
def test_rows_are_added_up(tmp_path: Path, workers: str) -> None:
    log = tmp_path / "log.jsonl"
    result = run(tmp_path, "-n", workers, "--seed", "42", "--scale", "2.5", "--fault-log", str(log))
    lines = {" ".join(line.split()) for line in result.stdout.splitlines()}
    assert lines >= {
        "fault tests: --seed 42 --scale 2.5",
        "| harmless | 6 | 0 |",
        "| harmful | 1 | 1 × pending_left, 2 × version_fell |",
        "| imaginary | 0 | FAILED |",
        "| unexpected | 1 | FAILED |",
        "| seed 42 | 1 | 0 |",
        "| bug | pending_left | caught |",
        "6 faults: 2 kill -9; 3 violations",
        "1 mutants; 1 caught",
    }
    assert "imaginary: was never reached" in result.stdout
    assert "3 failed, 6 passed" in result.stdout
    assert result.returncode == 1
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == sorted(
        ["harmless"] * 3 + ["harmful", "imaginary", "unexpected", "bug", "seed 42", "kill -9 · somebody"]
    )


def test_it_is_one_choice_for_all_processes(tmp_path: Path) -> None:
    result = run(tmp_path, "-n", "2", "-k", "test_fine or test_seed")
    (chosen,) = (line.split()[3] for line in result.stdout.splitlines() if line.startswith("fault tests:"))
    assert f"| seed {chosen} " in result.stdout
    assert result.returncode == 0


def test_a_soak_plays_rounds_and_adds_them_up(tmp_path: Path) -> None:
    test = tmp_path / "test_of_table.py"
    test.write_text(TESTS)
    arguments = ["--minutes", "0.001", "--seed", "7", "--scale", "2", "--workers", "0", str(test)]
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults.soak", *arguments],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "== round 1: --seed 7 --scale 2" in lines
    assert "| seed 7 | 1 | 0 |" in lines
    assert "== 1 round, 0 min, first seed 7, 1 failed" in lines
    assert "| harmless | 6 | 0 |" in lines
    assert result.returncode == 1


def test_the_table_of_a_soak_goes_into_the_document(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{soak.BEGIN}\nan older one\n{soak.END}\nafter\n")
    for told in ("first", "second"):
        soak.write(told, ["", "| a | b |", ""], document)
    assert document.read_text() == f"before\n{soak.BEGIN}\nsecond\n\n| a | b |\n\n{soak.END}\nafter\n"
    assert soak.BEGIN in soak.DOCUMENT.read_text()
