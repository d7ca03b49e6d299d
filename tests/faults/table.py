"""A pytest plugin: what the fault tests are told (seed, scale), and the table of what they found.

Every fault test says which fault it injects, how often that really happened, and what the checker found:

    def test_…(world: World, fault: Fault) -> None:
        row = fault("kill -9 · consumer · before commit")
        …
        row.reached(consumer.steps["before_commit"])
        row.found(world.check())

The test fails when a fault was never reached and when a violation was found. The table at the end of the run adds up
the rows of all tests, whichever process ran them: they travel with the tests' reports.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

PROPERTY = "fault"
TOTALS = {"kill -9 · ": "kill -9", "histories · ": "random histories", "fuzzed input · ": "fuzzed inputs"}
"""What the rows are called whose sums are told, and what they are told as."""
MAX_DETAILS = 8
"""How many violations a failure quotes, and a row carries."""


@dataclass
class Row:
    """A line of the table, as one test reports it.

    Args:
        name: the fault, or the planted bug.
        kind: `fault` or `mutant`.
        times: how often it really happened.
        violations: what the checker found, by name.
        details: the first of them in words.
        verdict: of a planted bug: by which names it was caught.
    """

    name: str
    kind: str = "fault"
    times: int = 0
    violations: dict[str, int] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)
    verdict: str = ""
    failed: bool = False
    test: str = ""

    def reached(self, times: int = 1) -> None:
        """The fault has happened so often, besides what was said before."""
        self.times += times

    def found(self, violations: Iterable[Any]) -> None:
        """What the checker found: objects with a `name`, which say the rest as text."""
        for violation in violations:
            self.violations[violation.name] = self.violations.get(violation.name, 0) + 1
            if len(self.details) < MAX_DETAILS:
                self.details.append(str(violation))


Fault = Callable[[str], Row]
"""Opens a row of the table for a fault, by its name. The type of the fixture `fault`."""

_ROWS = pytest.StashKey[list[Row]]()
_TABLE = pytest.StashKey["_Table"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "fault tests")
    group.addoption("--seed", type=int, help="what all randomness of the fault tests begins with; random by default")
    group.addoption("--scale", type=float, default=1.0, help="how many times as many kills, histories and inputs")
    group.addoption("--fault-log", type=Path, help="append the rows of the table to this file, as JSON lines")


def pytest_configure(config: pytest.Config) -> None:
    told = getattr(config, "workerinput", None)
    if told is not None:
        config.option.seed = told["fault_seed"]
        return
    if config.option.seed is None:
        config.option.seed = random.SystemRandom().randrange(2**31)
    config.pluginmanager.register(_Table(config), "fault-table")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tells a worker of pytest-xdist, which makes a configuration of its own, the seed of this run."""
    node.workerinput["fault_seed"] = node.config.option.seed


def rows_of(item: pytest.Item) -> list[Row]:
    """The rows that a test has opened."""
    return item.stash.setdefault(_ROWS, [])


def open_row(item: pytest.Item, name: str, kind: str = "fault") -> Row:
    """A line of the table for a test."""
    row = Row(name, kind, test=item.nodeid)
    rows_of(item).append(row)
    return row


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    try:
        result = yield
    except BaseException:
        for row in rows_of(item):
            row.failed = True
        raise
    problems = [problem for row in rows_of(item) if (problem := _problem(row))]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    for row in rows_of(item):
        item.user_properties.append((PROPERTY, asdict(row)))


def _problem(row: Row) -> str | None:
    if row.kind == "fault" and row.violations:
        row.failed = True
        return f"{row.name}: {_counted(row.violations)}\n" + "\n".join(f"  {line}" for line in row.details)
    if row.times == 0:
        row.failed = True
        return f"{row.name}: was never reached, so nothing is proved"
    return None


def _counted(numbers: dict[str, int]) -> str:
    return ", ".join(f"{n} × {name}" for name, n in sorted(numbers.items()))


class _Table:
    """Collects the rows in the process that the user looks at."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.rows: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def pytest_report_header(self) -> str:
        return f"fault tests: --seed {self._config.option.seed} --scale {self._config.option.scale:g}"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.rows += [dict(value) for name, value in report.user_properties if name == PROPERTY]  # type: ignore[call-overload]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for line in lines_of(self.rows):
            terminalreporter.write_line(line)
        if self.rows:
            seconds = time.monotonic() - self._began
            terminalreporter.write_line(f"seed {self._config.option.seed}, {seconds:.0f} s; again with: --seed")

    def pytest_sessionfinish(self) -> None:
        if self._config.option.fault_log is not None:
            with self._config.option.fault_log.open("a", encoding="utf-8") as log:
                log.writelines(json.dumps(row) + "\n" for row in self.rows)


def lines_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The tables as text: one of the faults, one of the planted bugs, each name once, and their sums."""
    lines: list[str] = []
    faults = _summed([row for row in rows if row["kind"] == "fault"])
    mutants = _summed([row for row in rows if row["kind"] == "mutant"])
    if faults:
        body = [
            (row["name"], f"{row['times']:,}", _counted(row["violations"]) or ("FAILED" if row["failed"] else "0"))
            for row in faults
        ]
        lines += _table(("fault", "times reached", "violations"), body)
    if mutants:
        body = [
            (row["name"], row["verdict"] or _counted(row["violations"]) or "–", "MISSED" if row["failed"] else "caught")
            for row in mutants
        ]
        lines += _table(("mutant", "caught by", "verdict"), body)
    return [*lines, *_totals(faults, mutants)]


def _totals(faults: Sequence[dict[str, Any]], mutants: Sequence[dict[str, Any]]) -> list[str]:
    """The sums of both tables in words."""
    lines = []
    if faults:
        sums = {
            what: sum(row["times"] for row in faults if row["name"].startswith(prefix))
            for prefix, what in TOTALS.items()
        }
        told = ", ".join(f"{times:,} {what}" for what, times in sums.items() if times)
        broken = sum(sum(row["violations"].values()) for row in faults)
        lines.append(f"{len(faults):,} faults{': ' if told else ''}{told}; {broken:,} violations")
    if mutants:
        caught = sum(not row["failed"] for row in mutants)
        lines.append(f"{len(mutants):,} mutants; {caught:,} caught")
    return lines


def _summed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    summed: dict[str, dict[str, Any]] = {}
    for row in rows:
        into = summed.setdefault(row["name"], row | {"times": 0, "violations": {}, "failed": False})
        into["times"] += row["times"]
        into["failed"] |= row["failed"]
        for name, n in row["violations"].items():
            into["violations"][name] = into["violations"].get(name, 0) + n
    return sorted(summed.values(), key=lambda row: (row["test"].partition("::")[0], row["name"]))


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return ["", line(head), rule, *(line(row) for row in body), ""]
