"""Lines for people that fit into their terminal: folded at words, or cut."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

from imsync.cli.render import safe

NARROWEST = 40


def width() -> int:
    """How wide a line of stdout may be; wide where it goes to no terminal."""
    return max(NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 200


def width_of(terminal: TextIO) -> int:
    """How wide a terminal is that need not be stdout."""
    try:
        return max(NARROWEST, os.get_terminal_size(terminal.fileno()).columns)
    except OSError:
        return 80


def cells(text: str) -> int:
    """How many columns a text takes: CJK and emoji take two each."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fold(text: object, indent: str = "", columns: int | None = None) -> Iterator[str]:
    """A text from anywhere in lines, each indented; broken at blanks, and where there is none at the edge."""
    room = max(NARROWEST // 2, (columns or width()) - cells(indent))
    line = ""
    for word in safe(text).split(" "):
        if line and cells(line) + 1 + cells(word) > room:
            yield indent + line
            line = word
        else:
            line = f"{line} {word}" if line else word
        while cells(line) > room:
            head = shortened_to(line, room)
            yield indent + head
            line = line[len(head) :]
    yield indent + line


def say(text: object, indent: str = "") -> None:
    """Prints a text from anywhere, folded."""
    for line in fold(text, indent):
        print(line)


def shortened_to(text: str, columns: int) -> str:
    """As much of the beginning as fits."""
    taken = 0
    for index, character in enumerate(text):
        taken += cells(character)
        if taken > columns:
            return text[: max(1, index)]
    return text


def shorten(text: object, columns: int) -> str:
    """A text from anywhere on one line, with an ellipsis where it was cut."""
    shown = safe(text)
    return shown if cells(shown) <= columns else shortened_to(shown, max(1, columns - 1)) + "…"
