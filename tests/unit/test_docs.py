"""The documents tell the truth: links lead somewhere, examples run, and what they name exists."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import imsync
from imsync.bus.keys import Keys
from imsync.cli.reference import COMMON, commands, parameters
from imsync.embedded import EmbeddedServer
from imsync.im.causes import Cause
from imsync.settings.loading import load
from imsync.settings.model import fields, tables
from tests.faults.checker import NAMES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
OTHER_VARIABLES = {"IMSYNC_CONFIG", "IMSYNC_DEBUG"}
"""Variables that are no settings."""

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    text: str


@cache
def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


@cache
def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def code(page: Path) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def test_these_are_all_pages() -> None:
    names = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/delivery.md"} <= names
    assert len(DECISIONS) >= 9


# ── links ────────────────────────────────────────────────────────────────────────────────────────────────


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert ROOT in file.parents, target
        assert not anchor or anchor in anchors(file), target


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        page = queue.pop()
        if page not in reached:
            reached.add(page)
            targets = re.findall(r"\]\(([^)\s#]+\.md)", prose(page))
            queue += [(page.parent / target).resolve() for target in targets if "://" not in target]
    assert set(PAGES) - reached == set()


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────


@page
def test_variables_and_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    variables = {f"IMSYNC_{key.replace('.', '_').upper()}" for key in fields()} | OTHER_VARIABLES
    assert set(re.findall(r"IMSYNC_[A-Z_]*[A-Z]", text)) - variables == set()
    names = "|".join(tables())
    named = {word for word in code(page) if re.fullmatch(rf"({names})\.[a-z_]+", word)}
    if page.name == "json.md":  # a result may have an object named like a table of settings
        named -= set(re.findall(r"^\| `([^`]+)` \|", prose(page), re.MULTILINE))
    assert named - fields().keys() == set()


@page
def test_toml_blocks_are_configuration_that_loads(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(block for block in blocks(page) if block.language == "toml"):
        file = tmp_path / f"{number}.toml"
        file.write_text(block.text, encoding="utf-8")
        loaded = load({"config": file}, {}, tmp_path)
        values = tomllib.loads(block.text)
        assert sum(origin == str(file) for origin in loaded.origins.values()) == sum(
            len(value) if isinstance(value, dict) else 1 for value in values.values()
        )


@page
def test_files_and_folders_exist(page: Path) -> None:
    paths = [word for word in code(page) if re.fullmatch(r"\.?[\w.-]+(/[\w.-]+)+\.(py|sql|md|lock|toml)", word)]
    paths += [word for word in code(page) if re.fullmatch(r"(tests|docs|imsync|examples)/([\w-]+/)*", word)]
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "imsync" / path).exists(), path


@page
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    lines = [*code(page), *(line for block in blocks(page) for line in block.text.splitlines())]
    for line in lines:
        if made := re.match(r"make ([a-z-]+)", line):
            assert made[1] in targets, line


def mentions(page: Path) -> Iterator[str]:
    """The imsync command lines in a page: in backquotes, and in blocks for a shell."""
    yield from (word for word in code(page) if word.startswith("imsync "))
    for block in blocks(page):
        if block.language in ("sh", "console"):
            lines = (line.removeprefix("$ ") for line in block.text.splitlines())
            yield from (line for line in lines if line.startswith("imsync "))


@cache
def known_commands() -> dict[str, Any]:
    return dict(commands())


def check_command_line(line: str) -> None:
    """Fails unless the command exists, and takes the options."""
    known = known_commands()
    common = {option for each in known.values() for p in parameters(each) for option in p.opts if is_common(p)}
    words = shlex.split(line, comments=True)
    name = words.pop(0)
    while words and f"{name} {words[0]}" in known:
        name = f"{name} {words.pop(0)}"
    options = {option for each in parameters(known[name]) for option in each.opts} | common | {"--help", "-h"}
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used <= options, line
    takes_more = any(not option.startswith("-") for option in options)
    is_group = hasattr(known[name], "commands")
    assert not is_group or not words or words[0].startswith("-"), f"{line}: no such command"
    assert takes_more or is_group or not words or words[0].startswith("-"), f"{line}: {words[0]} is no option"


def is_common(parameter: Any) -> bool:
    return bool(parameter.rich_help_panel == COMMON)


@page
def test_command_lines_can_be_typed(page: Path) -> None:
    for line in mentions(page):
        check_command_line(line)


def test_hints_can_be_typed() -> None:
    """The commands that messages and docstrings name, in backquotes."""
    found = [
        (path.name, line)
        for path in sorted((ROOT / "imsync").rglob("*.py"))
        for line in re.findall(r"`(imsync [^`\n{]+)`", path.read_text(encoding="utf-8"))
    ]
    assert len(found) > 5
    for _, line in found:
        if "|" not in line:  # `imsync server start|stop` stands for several
            check_command_line(line)


def test_a_command_line_that_cannot_be_typed_is_found() -> None:
    for line in ("imsync nonsense", "imsync nothing create", "imsync verify --nothing", "imsync consume group now"):
        with pytest.raises(AssertionError):
            check_command_line(line)
    check_command_line("imsync publish user-update --user 7 --nick-name 'a b' --json  # fine")


def test_redis_keys_are_those_of_the_code() -> None:
    keys = Keys("imsync", "user-update")
    names = {"group": "group", "consumer": "CONSUMER"}
    there_are = {keys.stream}
    for name, make in inspect.getmembers(Keys, inspect.isfunction):
        if not name.startswith("_"):
            there_are.add(make(keys, *(names[each] for each in list(inspect.signature(make).parameters)[1:])))
    assert {keys.dead("group"), keys.alive("group", "CONSUMER")} < there_are
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(imsync:[^`]+)`", text)) == there_are


def test_rules_of_the_checker_are_those_of_the_fault_tests() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.M)
    assert dict(rows) == NAMES


def test_causes_of_drift_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "delivery.md").read_text(encoding="utf-8")
    section = text.split("| cause | meaning |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [str(cause) for cause in Cause]


# ── examples ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because servers put their sockets there. Its server ends with the test."""
    with tempfile.TemporaryDirectory(prefix="im-", dir="/tmp") as name:
        yield Path(name)
        for place in [Path(name), *(each for each in Path(name).iterdir() if each.is_dir())]:
            if (place / "redis").is_dir():
                EmbeddedServer(place).stop()


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """An environment in which `imsync` runs this checkout, and nothing else is configured."""
    program = folder / "bin" / "imsync"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -W error -m imsync "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:{os.defpath}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "IMSYNC_DATA_DIR": str(folder / "data"),
        "LC_ALL": "C.UTF-8",
    }


def steps(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


def plain(text: str) -> str:
    """Without what differs from run to run: durations, and the widths of columns and boxes."""
    text = re.sub(r"\b\d[\d,.]* (ms|s|min|h)\b", "TIME", text)
    return " ".join(re.sub("─+", "─", text).split())


def matches(printed: str, shown: list[str]) -> bool:
    """Whether a command printed what is shown, where `…` stands for anything."""
    pattern = ".*".join(re.escape(part.strip()) for part in plain("\n".join(shown)).split("…"))
    return re.fullmatch(pattern.replace(r"\ ", " ?"), plain(printed)) is not None


@pytest.mark.slow
def test_the_tour_prints_what_it_shows(folder: Path, environment: dict[str, str]) -> None:
    (tour,) = [block for block in blocks(ROOT / "README.md") if block.language == "console"]
    assert len(steps(tour)) > 5
    for command, shown in steps(tour):
        run = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
        assert matches(run.stdout, shown), f"{command} printed:\n{run.stdout}"


def test_only_times_and_widths_may_differ() -> None:
    assert matches("5 events in 0.1 s: 2 applied\n", ["5 events in 7.0 min: 2 applied"])
    assert matches("a   b\n────\n 1 s   2\nhealthy\n", ["…", "healthy"])
    assert not matches("5 events in 0.1 s: 2 applied\n", ["5 events in 0.1 s: 3 applied"])
    assert not matches("healthy\nnot\n", ["…", "healthy"])


@page
def test_python_blocks_run(page: Path, folder: Path, environment: dict[str, str]) -> None:
    for block in blocks(page):
        if block.language == "python":
            command = [sys.executable, "-W", "error", "-c", block.text]
            run = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
            )
            assert run.returncode == 0, run.stderr


PROJECTION_PRINTS = """\
3 users, 4 chats: 0 drifted, 1 in flight
3 users, 4 chats: 0 drifted, 0 in flight
3 users, 5 chats: 3 drifted, 0 in flight
  user 1: stale_join
  user 2: edited
  user 99: orphan
3 touched, 3 repaired
4 users, 5 chats: 0 drifted, 0 in flight
"""


@pytest.mark.parametrize(
    ("name", "prints"),
    [("orders", "100 events, 100 invoices, 505899 cents\n"), ("projection", PROJECTION_PRINTS)],
)
def test_the_example_runs(folder: Path, environment: dict[str, str], name: str, prints: str) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py")]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == prints


@page
def test_blocks_are_of_a_kind_that_is_tested(page: Path) -> None:
    kinds = {block.language for block in blocks(page)}
    assert kinds <= {"sh", "console", "python", "toml", "text"}
    assert "console" not in kinds or page.name == "README.md"


# ── decisions and changes ────────────────────────────────────────────────────────────────────────────────


def test_decisions_are_numbered_listed_and_short() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^- \[(\d{4})\]\((\1-[\w-]+\.md)\) (.+)$", index, re.MULTILINE)
    assert [name for _, name, _ in listed] == [path.name for path in DECISIONS]
    assert [int(number) for number, _, _ in listed] == list(range(1, len(DECISIONS) + 1))
    for number, name, title in listed:
        text = (ROOT / "docs" / "decisions" / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {number} {title}\n"), name
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Context", "Decision", "Consequence"], name
        assert len(text.splitlines()) < 20, name


def test_the_changelog_has_this_version_under_unreleased() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert versions[:2] == ["Unreleased", imsync.__version__]
