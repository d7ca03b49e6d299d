"""Nothing that an event, a letter or a name holds reaches a terminal as it is: trace, dead letters, replay plans."""

from __future__ import annotations

import json

import pytest

from tests.acceptance.driver import Imsync, hidden_characters
from tests.acceptance.hostile import BOLD, HOSTILE, plant
from tests.acceptance.inprocess import InProcess
from tests.letters import bury, consume, edit, letters

NAME = HOSTILE.replace("\x00", "")[:64]


@pytest.fixture
def planted(on_server: Imsync) -> InProcess:
    """Hostile letters, among them one that can be decoded, hostile entries and a hostile consumer."""
    im = InProcess.of(on_server)
    consume(im, "group", "friend")
    edit(im, (im.users()[1], NAME))
    bury(im)
    plant(im)
    body = json.dumps({"specversion": "1.0", "type": HOSTILE, "subject": "7", "sequence": "1", "data": {}})
    with im.client() as client:
        client.xadd(im.keys.dead("group"), {"reason": HOSTILE, "source_id": HOSTILE, "raw.event": body})
    return im


def test_in_words_and_as_json(planted: InProcess) -> None:
    """The driver looks for hidden characters in every output."""
    im = planted
    found = letters(im)
    assert len(found) == 5
    commands = [
        *(("dead", "show", each.id) for each in found),
        ("dead", "list"),
        ("dead", "list", "--reason", HOSTILE.replace("\x00", "")),
        ("dead", "purge", "--all", "--dry-run"),
        ("replay", "dead", "--dry-run"),
        ("replay", "pending", "--min-idle", "0s", "--dry-run"),
        ("replay", "from", "start", "--dry-run"),
        ("trace", im.users()[0]),
        ("trace", im.users()[1]),
    ]
    seen = ""
    for command in commands:
        words = im.run(*command)
        assert words.code in (0, 3), words
        assert words.out
        assert "\nimsync: fine" not in words.out + words.err
        as_json = im.run(*command, "--json")
        assert as_json.code == words.code
        assert as_json.out.isascii()
        assert as_json.rows() or "--reason" in command
        seen += words.out
    assert BOLD in seen  # as it was written, not as markup
    assert "\\x1b[2J" in seen  # visible
    assert "nickName = \\x1b[2J" in seen  # also what could be decoded


def test_on_a_terminal_of_80_columns(planted: InProcess) -> None:
    im = planted
    for command in (("dead", "list"), ("dead", "show", letters(im)[0].id), ("trace", str(im.users()[1]))):
        shown = im.on_a_terminal(*command).out
        assert len(shown.splitlines()) > 5
        assert not hidden_characters(shown)


def test_redriving_and_purging_say_nothing_hostile_either(planted: InProcess) -> None:
    im = planted
    done = im.run("replay", "dead", "--yes").expect(1)
    assert "1 applied" in done.out
    im.run("replay", "dead", "--yes", "--json").expect(1)
    assert im.json("dead", "purge", "--all", "--yes")["purged"] == 4
