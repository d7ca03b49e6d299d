"""Reads config and password files: their text, who else may read them, and which line a key is on."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path

from imsync.errors import ConfigError


def problem(message: str, hint: str = "") -> ConfigError:
    """Make the error of one printable line: names come from files that a stranger may have written."""
    lines = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) for text in (message, hint))
    return ConfigError(*lines)


def read_text(file: Path) -> tuple[str, bool]:
    """Return a file's text, and whether only its owner may read it."""
    try:
        with file.open("rb") as handle:
            private = not stat.S_IMODE(os.fstat(handle.fileno()).st_mode) & 0o077
            return handle.read().decode("utf-8-sig"), private
    except UnicodeDecodeError:
        raise problem(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise problem(f"{file} cannot be read: {error.strerror}", "name another file, or mend this one") from None


def read_password(file: Path) -> str:
    """Return a password file's content without its last line end. Only the owner may be able to read it."""
    text, private = read_text(file)
    if not private:
        raise problem(f"{file} is refused, because others may read it", f"chmod 600 {file}")
    password = re.sub(r"\r?\n\Z", "", text)
    if not password:
        raise problem(f"{file} is empty", "write the password into it, and nothing else")
    return password


def parse_toml(file: Path, text: str) -> dict[str, object]:
    """Parse a config file's text. The error says `file:line:column`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        if found:
            raise problem(f"{file}:{found[1]}:{found[2]}: {message[: found.start()]}") from None
        last = text.rstrip("\n").split("\n")
        message = message.removesuffix(" (at end of document)")
        raise problem(f"{file}:{len(last)}:{len(last[-1]) + 1}: {message} at the end of the file") from None
    except (ValueError, RecursionError):
        # A number of more than 4,300 digits, or a thousand nested brackets.
        raise problem(f"{file} is not usable as TOML: a number or a nesting in it is too large") from None


def line_of(key: str, text: str) -> int | None:
    """Find the line that gives a key, or None where it is written in an unusual way (inline, quoted)."""
    table = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if header := re.match(r"\s*\[+\s*([\w.-]+)\s*\]", line):
            table = header[1] + "."
            if header[1] == key:
                return number
        elif (pair := re.match(r"\s*([\w.-]+)\s*=", line)) and table + pair[1] == key:
            return number
    return None
