"""Writes the command reference, docs/cli.md, from the commands' own help: `python -m imsync.cli.reference`.

The text depends on nothing but the commands: not on the terminal, the environment or the day. So a test can
compare it with the file, and the file cannot fall behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.main
from typer.core import TyperArgument, TyperOption

if TYPE_CHECKING:
    from typer.core import TyperCommand

PAGE = Path("docs/cli.md")
"""The page, in the folder of the checkout."""

COMMON = "Common options"
"""The help panel of the options that every command takes."""

_HEAD = """\
# Command reference

<!-- Written by `make docs` from the commands' own help. Do not edit. -->

Every command, argument and option. What the commands print with `--json` is on a [page of its own](json.md).
"""

_COMMON = """\
## Common options

Every command takes these, after its own name, and `--help`. The environment may give them instead, but for `--json`:
`IMSYNC_URL`, `IMSYNC_DATA_DIR`, `IMSYNC_CONFIG`, `IMSYNC_LOG_FORMAT`, `IMSYNC_LOG_LEVEL`.
"""


def commands() -> Iterator[tuple[str, TyperCommand]]:
    """Every command with its full name (`imsync publish user-update`), groups before their members."""
    from imsync.cli.app import build

    return _walk("imsync", typer.main.get_command(build()))


def _walk(name: str, command: Any) -> Iterator[tuple[str, TyperCommand]]:
    yield name, command
    for member in getattr(command, "commands", {}).values():
        if not member.hidden:
            yield from _walk(f"{name} {member.name}", member)


def parameters(command: TyperCommand) -> list[TyperArgument | TyperOption]:
    """A command's arguments and options as its help lists them, the hidden ones left out."""
    known = [each for each in command.params if isinstance(each, TyperArgument | TyperOption)]
    return [each for each in known if not each.hidden]


def reference() -> str:
    """The command reference, as Markdown."""
    listed = list(commands())
    leaves = [(name, command) for name, command in listed if not hasattr(command, "commands")]
    common = {each.opts[0]: each for _, command in leaves for each in parameters(command) if _is_common(each)}
    summaries = [(f"[`{name}`](#{name.replace(' ', '-')})", _paragraphs(command)[0]) for name, command in leaves]
    parts = [
        _HEAD,
        _table(("command", "does"), summaries),
        _COMMON,
        _option_table(list(common.values())),
    ]
    for name, command in listed:
        parts += _section(name, command)
    return "\n".join(parts)


def _section(name: str, command: TyperCommand) -> list[str]:
    own = [each for each in parameters(command) if not _is_common(each)]
    arguments = [each for each in own if isinstance(each, TyperArgument)]
    options = [each for each in own if not isinstance(each, TyperArgument)]
    members = [member.name for member in getattr(command, "commands", {}).values() if not member.hidden]
    words = [name, *(_metavar(each) for each in arguments), "COMMAND …" if members else "[OPTIONS]"]
    parts = [
        f"## {name}\n",
        "```text\n" + " ".join(words) + "\n```\n",
        "\n\n".join(_paragraphs(command)) + "\n",
    ]
    if members:
        links = (f"[`{member}`](#{name.replace(' ', '-')}-{member})" for member in members)
        parts.append(f"Commands: {', '.join(links)}.\n")
    if arguments:
        rows = [(f"`{_metavar(each)}`", _kind(each), _default(each), _text(each.help or "")) for each in arguments]
        parts.append(_table(("argument", "type", "default", "meaning"), rows))
    if options:
        parts.append(_option_table(options))
    return parts


def _option_table(options: Sequence[TyperArgument | TyperOption]) -> str:
    return _table(
        ("option", "type", "default", "meaning"),
        [
            (
                ", ".join(f"`{word}`" for word in (*each.opts, *each.secondary_opts)),
                _kind(each),
                _default(each),
                _text(each.help or ""),
            )
            for each in options
        ],
    )


def _is_common(parameter: TyperArgument | TyperOption) -> bool:
    return parameter.rich_help_panel == COMMON


def _metavar(argument: TyperArgument) -> str:
    name = (argument.metavar or argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _kind(parameter: TyperArgument | TyperOption) -> str:
    """What values a parameter takes, in words."""
    if getattr(parameter, "is_flag", False):
        return "flag"
    annotation = parameter.type_descriptor.annotation
    if getattr(annotation, "__origin__", None) is list:
        (annotation,) = annotation.__args__
    kind = {int: "whole number", float: "number", str: "text", Path: "path"}.get(annotation, str(annotation))
    low, high = parameter.min, parameter.max
    if low is not None and high is not None:
        kind += f", {low} to {high}"
    elif low is not None:
        kind += f", {low} or more"
    elif high is not None:
        kind += f", {high} or less"
    return kind + (", may be repeated" if parameter.multiple else "")


def _default(parameter: TyperArgument | TyperOption) -> str:
    if parameter.required:
        return "required"
    if parameter.default is None or getattr(parameter, "is_flag", False):
        return ""
    return f"`{parameter.default}`"


def _paragraphs(command: TyperCommand) -> list[str]:
    """The paragraphs of a command's help, each on one line."""
    paragraphs = (" ".join(each.split()) for each in (command.help or "").split("\n\n"))
    return [_text(each) for each in paragraphs if each] or [""]


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Writes the page, into the checkout that is the current folder.

    Args:
        arguments: `--check` compares instead; other words are the path to write to.

    Returns:
        The exit code: 1 when `--check` finds another text, else 0.
    """
    check = "--check" in arguments
    page = Path(next((word for word in arguments if word != "--check"), PAGE))
    text = reference()
    if check:
        return int(not page.is_file() or page.read_text(encoding="utf-8") != text)
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
