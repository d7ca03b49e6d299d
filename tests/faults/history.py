"""What was asked of the system, written down outside of it: every attempted edit before, every accepted one after.

Each record is one line of JSON and one write to a file opened with O_APPEND, so that what a process has written
survives its death, and several processes may write at once.

Every edit sets its fields to values that no other edit of the history sets: whoever meets a value later knows the edit
that it came from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FIELDS = ("nick_name", "head_image", "head_image_thumb")


@dataclass(frozen=True)
class Attempt:
    """An edit that somebody tried to make.

    Args:
        token: its identity.
        values: what it sets, by field; empty for a deletion.
    """

    token: str
    user: int
    values: Mapping[str, str]
    deletes: bool = False


@dataclass(frozen=True)
class Injected:
    """An entry that a test wrote into the stream itself.

    Args:
        expects: what must become of it in every group: `dead`, or `settled` for whatever else.
        user, values: what it says about whom, where it is an event that may take effect.
    """

    entry_id: str
    expects: str
    user: int = 0
    values: Mapping[str, str] = field(default_factory=dict)
    deletes: bool = False


@dataclass
class Story:
    """A history that was read back."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    injected: dict[str, Injected] = field(default_factory=dict)
    touched: set[int] = field(default_factory=set)


class History:
    """Writes to a history. Each process opens it for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def attempted(self, attempts: Iterable[Attempt]) -> None:
        """These edits are about to be made; nobody knows yet whether they will be."""
        self._write(
            {"attempt": each.token, "user": each.user, "values": dict(each.values), "deletes": each.deletes}
            for each in attempts
        )

    def accepted(self, tokens: Iterable[str]) -> None:
        """The system has accepted these edits: they must take effect."""
        self._write({"accepted": token} for token in tokens)

    def forgotten(self, tokens: Iterable[str]) -> None:
        """Somebody has thrown these accepted edits away on purpose: a user store was restored from a backup."""
        self._write({"forgotten": token} for token in tokens)

    def injected(self, entry: Injected) -> None:
        """An entry that does not come from the user store."""
        self._write(
            [
                {
                    "injected": entry.entry_id, "expects": entry.expects, "user": entry.user,
                    "values": dict(entry.values), "deletes": entry.deletes,
                }
            ]
        )  # fmt: skip

    def touched(self, users: Iterable[int]) -> None:
        """These users get a version without an edit: a repair publishes them again."""
        self._write({"touched": user} for user in users)

    def read(self) -> Story:
        """All of it, whoever wrote it."""
        return read(self.path)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, records: Iterable[Mapping[str, Any]]) -> None:
        if text := "".join(json.dumps(record) + "\n" for record in records):
            data = text.encode()
            assert os.write(self._file, data) == len(data)


def read(path: Path) -> Story:
    """The history in a file. A line that was cut short by its writer's death was not written."""
    return parse(path.read_text(encoding="utf-8").splitlines())


def parse(lines: Sequence[str]) -> Story:
    """The history in these lines."""
    story = Story()
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "attempt" in record:
            token = record["attempt"]
            story.attempts[token] = Attempt(token, record["user"], record["values"], record["deletes"])
        elif "accepted" in record:
            story.accepted.add(record["accepted"])
        elif "forgotten" in record:
            story.forgotten.add(record["forgotten"])
        elif "touched" in record:
            story.touched.add(record["touched"])
        else:
            entry = Injected(record["injected"], record["expects"], record["user"], record["values"], record["deletes"])
            story.injected[entry.entry_id] = entry
    return story
