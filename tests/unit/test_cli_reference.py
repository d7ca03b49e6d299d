"""docs/cli.md is what the commands say of themselves, and they say it of every word that can be typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from imsync.cli.app import VERBS, build
from imsync.cli.reference import commands, main, parameters, reference

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = dict(commands())
LEAVES = [name for name, command in COMMANDS.items() if not hasattr(command, "commands")]


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference(), "run `make docs`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_parameter_has_a_help_text(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert command.help.strip()
    assert [each.name for each in parameters(command) if not (each.help or "").strip()] == []


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_and_option_is_in_the_reference(name: str) -> None:
    text = reference()
    assert f"\n## {name}\n" in text
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    common = text.split("\n## Common options\n")[1].split("\n## ")[0]
    for each in parameters(COMMANDS[name]):
        words = each.opts if each.opts[0].startswith("-") else [each.opts[0].upper()]
        assert all(word in section + common for word in words), each.name


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_is_told_of_in_words(name: str) -> None:
    """Beyond the generated page: a person has written what it is for."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(name in page.read_text(encoding="utf-8") for page in pages if page.name != "cli.md")


def test_the_text_depends_on_nothing_around_it(tmp_path: Path) -> None:
    """Another terminal, another environment, another folder: the same bytes."""
    page = tmp_path / "cli.md"
    environment = {"COLUMNS": "40", "TERM": "dumb", "PYTHONPATH": str(ROOT), "IMSYNC_URL": "redis://elsewhere"}
    command = [sys.executable, "-W", "error", "-m", "imsync.cli.reference", str(page)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert page.read_text(encoding="utf-8") == reference()


def test_check_compares_and_writes_nothing(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    assert main(["--check", str(page)]) == 1
    assert not page.exists()
    page.write_text("old", encoding="utf-8")
    assert main(["--check", str(page)]) == 1
    assert page.read_text(encoding="utf-8") == "old"
    assert main([str(page)]) == 0
    assert main(["--check", str(page)]) == 0


def test_help_has_colours_by_the_standard_output_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, mode in ((True, "rich"), (False, None)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal, raising=False)
        assert build().rich_markup_mode == mode


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_alone_is_what_it_is_among_all(verb: str) -> None:
    alone, among_all = shape(get_command(build([verb, "--help"]))), shape(get_command(build()))
    assert alone == {verb: among_all[verb]}


def shape(command: Any) -> Any:
    """The names of what is below a command, or of what it takes."""
    below = getattr(command, "commands", None)
    return {name: shape(each) for name, each in below.items()} if below else [each.opts for each in command.params]


@pytest.mark.parametrize("args", [[], ["--version"], ["-h"], ["consum"], ["--version", "consume"]], ids=" ".join)
def test_whatever_does_not_begin_with_a_verb_is_for_all_of_them(args: list[str]) -> None:
    assert sorted(shape(get_command(build(args)))) == sorted(VERBS)


def test_a_command_loads_no_other_verb() -> None:
    asked = "import sys; from imsync.cli.app import build; build(['consume', 'group'])"
    told = f"print(*(verb for verb in {VERBS} if 'imsync.cli.' + verb in sys.modules))"
    run = subprocess.run([sys.executable, "-c", f"{asked}; {told}"], capture_output=True, text=True, check=True)
    assert run.stdout == "consume\n"
